"""Every sentence that tells a user what to type names something that can be typed: pytest -rP prints them all.

That it helps is held where the sentence is: by tests that run the command in the state that produced the sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SOURCE
from runengine import compose
from runengine.__main__ import MODULES

PROJECT = SOURCE.parent
HOLE = "\u2026"  # what is filled in when the sentence is said
MANAGERS = sorted(PROJECT.glob("env/*/environment.mk"))
ENGLISH = {"a", "another", "it", "the", "them", "this", "virtual", "what"}  # after "make"
FORM = "key=value"  # stands for any setting
SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)*=[^\s\u2026<>]+")


def targets(file: Path) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", file.read_text(encoding="utf-8"), re.MULTILINE))


TARGETS = targets(PROJECT / "Makefile") | set.intersection(*map(targets, MANAGERS))


def sentences() -> Iterator[tuple[str, str]]:
    """(file, text) of what is in no docstring."""
    for file in sorted([*SOURCE.rglob("*.py"), *PROJECT.glob("scripts/*.py"), *PROJECT.glob("env/**/*.py")]):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in parts | docs:
                continue
            if isinstance(node, ast.JoinedStr):
                values = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                yield file.relative_to(PROJECT).as_posix(), "".join(map(str, values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield file.relative_to(PROJECT).as_posix(), node.value
    for file in (PROJECT / "Makefile", *MANAGERS):
        for said in re.findall(r"error: [^\"']+", file.read_text(encoding="utf-8")):
            yield file.relative_to(PROJECT).as_posix(), said


def named(sentence: str) -> Iterator[tuple[str, str]]:
    """(kind, name) of what it tells to type."""
    for target in re.findall(r"\bmake ([a-z][a-z-]*)\b", sentence):
        if target not in ENGLISH:
            yield "make", target
    for command in re.findall(r"python -m runengine ([a-z-]+)", sentence):
        yield "engine", command
    for word in sentence.split():
        word = word.strip("`'\"();,.:#")
        if SETTING.fullmatch(word) and word != FORM and "..." not in word:
            yield "setting", word


def composes(script: str, setting: str) -> bool:
    try:
        compose(script, [setting])
    except Exception:  # of Hydra's, in many kinds
        return False
    return True


SAID = sorted({(file, sentence) for file, sentence in sentences() if list(named(sentence))})


@pytest.mark.parametrize(("file", "sentence"), SAID, ids=lambda text: text[:60])
def test_what_a_sentence_tells_to_type_exists(file: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # for tracking=server
    for kind, name in named(sentence):
        print(f"{file}: {kind} {name}: {sentence!r}")
        if kind == "make":
            assert name in TARGETS
        elif kind == "engine":
            assert name in MODULES
        else:
            assert composes("train", name) or composes("prepare", name), name


def test_there_are_many() -> None:
    assert len(SAID) > 50
    assert len({file for file, _ in SAID}) > 20
