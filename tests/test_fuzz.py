"""1,500 answers that nobody expects come out of generation as they went in, and any mix of choices is clean.

Every file that holds an answer is found by comparing with a project made of unmistakable answers, not by a list.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import cookiecutter.hooks
import cookiecutter.main
import cookiecutter.utils
import pytest
import yaml
from conftest import CHOICES, QUESTIONS, Bake, Project, fit
from cookiecutter.environment import StrictEnvironment
from test_generation import assert_clean
from test_terminal import NAMES as ASKED

from ml_template.answers import FREE_TEXT, remote_url, resolve

CHUNKS = [*range(3), *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in range(3, 10))]
GENERATIONS, TYPED = 38, 3  # a chunk, with four free answers each: 1,520 answers in all; three are typed, not replayed
MIXES = 5  # of the other choices, a chunk
SAMPLES = 3  # of the product of all choices, a chunk
CONCRETE = {name: [choice for choice in choices if choice != "auto"] for name, choices in CHOICES.items()}
# nothing else looks like these: where one stands in a project, an answer stands
MARKS = {
    **{name: f"qz{number}qz" for number, name in enumerate(FREE_TEXT)},
    "project_slug": "qz-slug-qz",
    "package_name": "qz_package_qz",
}
PLANES = ((0x20, 0x7F), (0xA0, 0x250), (0x370, 0x900), (0x3000, 0xA000), (0xE000, 0x10000), (0x1F300, 0x1FAFF))
PIECES = """
    { } {{ }} {% %} {# #} {{7*7}} {{cookiecutter}} {{cookiecutter|tojson}} {{''.__class__.__mro__}}
    {%raw%} {%endraw%} {%include'/etc/passwd'%} ' " \''' \""" r\""" \\ \\\\ \\n \\u0041 \\x41 \\N{BEE} ` $ $$ ${HOME}
    $(HOME) $(touch${IFS}pwned) `touch${IFS}pwned` ';touch${IFS}pwned;' ";import${IFS}os;" %PATH% ; | & > < && || !
    # ## --- ... : - ? * & ! @ % ~ null true yes 0x10 1e3 [ ] [[ ]] [a] , = == a=b key:value <<: !!python/name:os.system
    [link](x) **b** _i_ <b> </script> &amp; $x$ ml_project my_ml_project ML_PROJECT ml-project ml\\u005fproject
    ../x /etc/passwd C:\\ \\\\host\\ ~/ .. . O'Brien Zoë 日本 שלום مرحبا 👩‍🔬 🎉 🇩🇪 e\u0301
    \u202e \u200f \u2066 \ufeff \u200b \u00ad \ufffd \ufffe \U000e0041 \U0010ffff
""".split()  # noqa: SIM905

Answers = dict[str, str]
COMPILED: dict[tuple[str | None, ...], CodeType] = {}


def free_text(chance: random.Random) -> str:
    """One line of up to 200 characters, most of them with a meaning to somebody; never a control character."""
    parts = []
    for _ in range(chance.randrange(1, 12)):
        plane = chance.choice(PLANES)
        random_text = "".join(chr(chance.randrange(*plane)) for _ in range(chance.randrange(1, 6)))
        parts.append(chance.choice((random_text, chance.choice(PIECES), chance.choice(PIECES))))
    text = chance.choice(("", " ")).join(parts)[: chance.choice((20, 198))]
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp"))
    text = text.strip() + chance.choice(("", "", "\\", '"', "'", "#", "}}", "$"))
    return text if text.strip() else "x"


def name(chance: random.Random, separator: str) -> str:
    """A slug or a package name, with digits in the end, so that it is not Python's or a device's."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789" + separator
    middle = "".join(chance.choice(letters) for _ in range(chance.randrange(61)))
    return f"{chance.choice(letters[:26])}{middle}{chance.randrange(10, 100) if len(middle) < 60 else 7}"


def given(chance: random.Random) -> Answers:
    names = {"project_slug": name(chance, "-"), "package_name": name(chance, "_")}
    return {**{asked: free_text(chance) for asked in FREE_TEXT}, **names}


@dataclass(frozen=True)
class Place:
    """Where a test generates: everything that a generation may write lies in these folders."""

    template: Path
    config_file: Path
    output: Path
    files: Path
    replays: Path
    home: Path
    cwd: Path

    def replay(self, answers: Answers) -> Project:
        """Generate from a replay file: cookiecutter takes its answers as they are, as it does with typed ones."""
        content: dict[str, Any] = {asked: value for asked, value in QUESTIONS.items() if asked != "__prompts__"}
        content.update(answers)
        content["data_remote_url"] = remote_url(content["data_remote"], content["project_slug"])
        resolve(content)
        file = self.files / "replay.json"
        file.write_text(json.dumps({"cookiecutter": content}), encoding="utf-8")
        options = {"replay": str(file), "output_dir": str(self.output), "config_file": str(self.config_file)}
        with redirect_stdout(io.StringIO()), watched(self.output, self.files, self.replays):
            return Project(Path(cookiecutter.main.cookiecutter(str(self.template), **options)))

    def type_in(self, answers: Answers) -> Project:
        """Generate as a person does, in a process of its own, with all hooks; Enter where there is no answer."""
        typed = "".join(f"{answers.get(asked, '')}\n" for asked in ASKED)
        options = ["--config-file", str(self.config_file), "--output-dir", str(self.output)]
        by_name = [f"{name}={answer}" for name, answer in answers.items() if name not in ASKED]
        done = subprocess.run(
            [sys.executable, "-m", "cookiecutter", str(self.template), *by_name, *options],
            input=typed.encode(),
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout.decode()[-3000:]
        return Project(self.output / answers["project_slug"])

    def assert_untouched(self) -> None:
        """Nothing outside of the projects, which are gone by now, but what cookiecutter itself leaves behind."""
        assert [list(folder.iterdir()) for folder in (self.home, self.cwd, self.output)] == [[], [], []]
        left = [file.name for file in self.files.iterdir() if file.name != "replay.json"]
        assert [name for name in left if not re.fullmatch(r"tmp\w+\.py|cookiecutter\w+", name)] == []


@pytest.fixture
def place(
    template: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare_machine: Path
) -> Place:
    folders = {name: tmp_path / name for name in ("output", "home", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["cwd"])
    monkeypatch.setenv("HOME", str(folders["home"]))
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    files, replays = Path(os.environ["TMPDIR"]), tmp_path / "replay"  # conftest.py's TMPDIR, and its replay_dir
    return Place(template, config_file, folders["output"], files, replays, folders["home"], folders["cwd"])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks run in this process and templates are compiled once, for speed. pre_prompt only changes suggestions."""

    def run_script(script: str, cwd: Path | str = ".") -> None:
        path = sys.path.copy()
        sys.path.insert(0, str(Path(script).parent))
        try:
            with cookiecutter.utils.work_in(cwd):
                runpy.run_path(script, run_name="__main__")
        finally:
            sys.path[:] = path

    def compile_once(self: StrictEnvironment, source: str, *names: str | None) -> CodeType:
        if (source, *names) not in COMPILED:
            COMPILED[source, *names] = compile_template(self, source, *names)
        return COMPILED[source, *names]

    compile_template: Callable[..., CodeType] = StrictEnvironment.compile
    monkeypatch.setattr(StrictEnvironment, "compile", compile_once)
    monkeypatch.setattr(cookiecutter.hooks, "run_script", run_script)
    monkeypatch.setattr(cookiecutter.main, "run_pre_prompt_hook", lambda folder: folder)


@contextmanager
def watched(*writable: Path) -> Iterator[None]:
    """No process may be started here and no file written elsewhere: Python reports both before they happen."""
    global allowed
    seen.clear()
    allowed = tuple(str(folder.resolve()) for folder in writable)
    try:
        yield
    finally:
        allowed = None
    assert seen == []


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if allowed is None:
        return
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
        seen.append((event, str(arguments[:2])))
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.link", "os.symlink"):
        target = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
        if isinstance(target, str):
            whole = str(Path.cwd() / target)
            if ".." in whole or not whole.startswith(allowed):
                seen.append((event, target))


allowed: tuple[str, ...] | None = None
seen: list[tuple[str, str]] = []
sys.addaudithook(audit)  # it stays until the process ends, hence the switch


def test_the_watch_sees_a_command_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(AssertionError, match=r"subprocess\.Popen"), watched(tmp_path / "in"):
        subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(AssertionError, match="pwned"), watched(tmp_path / "in"):
        (tmp_path / "pwned").touch()
    with watched(tmp_path / "in"):
        (tmp_path / "in/file").touch()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_is_given_is_what_stands_in_the_files(place: Place, in_process: None, chunk: int) -> None:
    chance = start(chunk)
    mixes = [mix(chance, CONCRETE) for _ in range(MIXES)]
    models = [Model.of(place.replay({**MARKS, **mix})) for mix in mixes]
    for number in range(GENERATIONS - TYPED):
        answers = given(chance)
        project = place.replay({**answers, **mixes[number % MIXES]})
        models[number % MIXES].compare(project, answers)
    place.assert_untouched()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_is_typed_is_what_stands_in_the_files(place: Place, chunk: int) -> None:
    chance = start(chunk)
    model = Model.of(place.type_in(MARKS))
    for _ in range(TYPED):
        answers = given(chance)
        model.compare(place.type_in(answers), answers)
    place.assert_untouched()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_any_mix_of_choices_gives_a_clean_project(bake: Bake, chunk: int) -> None:
    chance = start(chunk)
    for _ in range(SAMPLES):
        answers = mix(chance, CHOICES)
        project = bake(**answers)
        assert_clean(project, **answers)
        shutil.rmtree(project.path)


def mix(chance: random.Random, choices: dict[str, list[str]]) -> Answers:
    """A choice for each question; again, where two of them are refused together."""
    while not fit(mixed := {asked: chance.choice(options) for asked, options in choices.items()}):
        pass
    return mixed


def start(chunk: int) -> random.Random:
    """Chance, to be had again: FUZZ_SEED=<the number printed> python -m pytest tests/test_fuzz.py."""
    seed = int(os.environ.get("FUZZ_SEED", random.randrange(10**6)))
    print(f"FUZZ_SEED={seed} chunk {chunk}")
    return random.Random(f"{seed} {chunk}")


@dataclass(frozen=True)
class Model:
    """A project made of marks: what any other with the same choices is, but for its answers."""

    files: dict[str, str]

    @classmethod
    def of(cls, project: Project) -> Model:
        files = {name: project.text(name) for name in project.files()}
        shutil.rmtree(project.path)
        with_text = {name for name, text in files.items() if any(MARKS[asked] in text for asked in FREE_TEXT)}
        assert with_text >= {"README.md", "pyproject.toml"}
        return cls(files)

    def compare(self, project: Project, answers: Answers) -> None:
        """The same files, with these answers in the places of the marks; then the project goes."""
        case = ascii(answers)
        about = tomllib.loads(project.text("pyproject.toml"))["project"]
        assert about["description"] == answers["description"], case
        assert about["authors"] == [{"name": answers["author_name"], "email": answers["author_email"]}], case
        assert project.files() == sorted(fill(name, answers) for name in self.files), case
        for name, text in self.files.items():
            got = (project.path / fill(name, answers)).read_bytes().decode()
            kind = Path(name).suffix
            if not any(MARKS[asked] in text for asked in FREE_TEXT) or kind not in READ:
                assert got == fill(text, answers), (name, case)
            else:
                assert READ[kind](got) == fill(READ[kind](text), answers), (name, case)
        shutil.rmtree(project.path)


def fill(value: Any, answers: Answers) -> Any:
    """The answers in the places of their marks, in a text or in what was read from one."""
    if isinstance(value, str):
        return MARK.sub(lambda found: answers[MARKED[found[0]]], value)
    if isinstance(value, dict):
        return {fill(key, answers): fill(part, answers) for key, part in value.items()}
    if isinstance(value, list):
        return [fill(part, answers) for part in value]
    return value


MARKED = {mark: asked for asked, mark in MARKS.items()}
MARK = re.compile("|".join(map(re.escape, MARKED)))
READ: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
    ".cff": yaml.safe_load,
    ".json": json.loads,
    ".md": lambda text: re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text),
}
