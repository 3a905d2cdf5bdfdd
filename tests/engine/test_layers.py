"""The engine's modules import each other in one direction, and what is private to libraries stands in one of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import runengine

ENGINE = Path(str(runengine.__file__)).parent
MODULES = sorted(ENGINE.rglob("*.py"))
FILES = sorted(file for file in ENGINE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)

TOP = {
    "__main__",
    "list_jobs",
    "list_runs",
    "look",
    "model_card",
    "program",
    "repository",
    "rerun",
    "testing",
    "training_run",
    "upgrade",
}
# each imports earlier ones
LAYERS = ["manifest", "compat", "settings", "data", "runs", "tracking", "training", "launch", "sweeps"]
MAY_IMPORT = {layer: set(LAYERS[: LAYERS.index(layer)]) for layer in LAYERS}
MAY_IMPORT |= {layer: {*LAYERS, *TOP} for layer in (*TOP, "__init__")}
MAY_IMPORT["upgrade"] = {"manifest"}  # they work where other files are missing
MAY_IMPORT["compat"] = set()  # it knows libraries alone
MAY_IMPORT["machine"] = {"manifest", "settings", "compat", "data", "runs", "tracking", "launch"}
MAY_IMPORT["conf"] = set()

PRIVATE = (
    "hydra._internal", "_trial_id", "fit_loop", "_logger_connector", "_subprocess_cmd", "SlurmInfoWatcher",
    "sys.argv, main.__spec__",
)  # fmt: skip


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of each import of a module: level 0 is absolute, 1 is `from .x`, 2 is `from ..x`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(ENGINE).as_posix())
def test_imports_go_one_way_and_are_relative(file: Path) -> None:
    *folders, name = file.relative_to(ENGINE).with_suffix("").parts
    layer = folders[0] if folders else name
    for level, module in imports(file):
        first = module.split(".")[0]
        assert first not in (ENGINE.name, "hydra_plugins") or level, f"{module} is to be imported relatively"
        if level == len(folders) + 1:  # from the engine's own folder
            assert first in MAY_IMPORT[layer], f"{layer} must not import {first}"
        assert level <= len(folders) + 1


def test_every_module_is_in_a_layer() -> None:
    parts = {file.relative_to(ENGINE).parts[0].removesuffix(".py") for file in MODULES}
    assert parts == MAY_IMPORT.keys()


def test_the_public_names_are_those_that_are_announced() -> None:
    announced = {
        alias.asname
        for node in ast.walk(ast.parse((ENGINE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert announced == runengine.HOMES.keys()
    for name in announced:
        assert getattr(runengine, str(name)).__name__ == name
    with pytest.raises(AttributeError, match="module 'runengine' has no attribute 'nothing'"):
        runengine.nothing  # noqa: B018


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ENGINE).as_posix())
def test_the_engine_is_the_same_in_every_project(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for word in ("ml_project", "{" + "{", "{" + "%"):
        assert word not in text


def test_what_is_private_to_libraries_is_used_in_one_module() -> None:
    texts = {file.relative_to(ENGINE).as_posix(): file.read_text(encoding="utf-8") for file in MODULES}
    for word in PRIVATE:
        assert {name for name, text in texts.items() if word in text} <= {"compat.py"}, word


def test_the_owner_imports_the_engine_by_its_public_names_alone() -> None:
    for file in sorted((ENGINE.parent / "ml_project").rglob("*.py")):
        assert not [module for _, module in imports(file) if module.startswith(f"{ENGINE.name}.")], file
