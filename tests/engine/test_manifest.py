"""The engine says whether it was edited, and is replaced as a complete folder or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import runengine
from conftest import SOURCE
from runengine import Run, UserError, manifest
from runengine.machine.collect_env import Machine
from runengine.machine.doctor import CHECKS, examine
from runengine.settings import project
from runengine.upgrade import Refused, _address_and_tag, changes, upgrade

FOLDER = Path(str(runengine.__file__)).parent
WRITE = "python -m runengine engine --write-manifest"


def test_the_manifest_is_that_of_the_files() -> None:
    assert not manifest.compare(FOLDER), f"the engine has changed since its MANIFEST was written. Run: {WRITE}"
    assert manifest.PLUGIN in manifest.read(FOLDER)
    listed = (FOLDER / "MANIFEST").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ")[1] for line in listed] == sorted(manifest.read(FOLDER))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The engine of a project, as it was released."""
    return copy_engine(tmp_path / "project/src")


def copy_engine(src: Path) -> Path:
    for name in ("runengine", "hydra_plugins"):
        shutil.copytree(SOURCE / name, src / name, ignore=shutil.ignore_patterns("__pycache__"))
    manifest.write(src / "runengine")
    return src / "runengine"


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The project of somebody else, who has a later version."""
    engine = copy_engine(tmp_path / "newer/src")
    release(engine, "0.10.0", "Adds cosine.py.")
    return engine.parents[1]


def release(engine: Path, version: str, about: str) -> None:
    (engine / "VERSION").write_text(f"{version}\n", encoding="utf-8")
    (engine / "cosine.py").write_text(f'VERSION = "{version}"\n', encoding="utf-8")
    (engine / "tracking/payload.py").unlink()
    with (engine.parent / "hydra_plugins/runengine.py").open("a", encoding="utf-8") as plugin:
        plugin.write("\n# the later version\n")
    with (engine / "CHANGELOG.md").open("a", encoding="utf-8") as changelog:
        changelog.write(f"\n## 0.9.1\n\nA correction.\n\n## {version}\n\n{about}\n")
    manifest.write(engine)


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and ".git" not in file.parts)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def of_the_engine(folder: Path) -> dict[str, bytes]:
    return {name: text for name, text in content(folder).items() if not name.startswith("engine-edited-")}


def test_edited_missing_and_added_files_are_named(engine: Path) -> None:
    assert manifest.describe(engine) == "engine 0.1.0, unchanged"
    (engine / "__pycache__").mkdir()
    (engine / "__pycache__/rerun.cpython-311.pyc").touch()
    (engine / ".DS_Store").touch()
    assert manifest.describe(engine) == "engine 0.1.0, unchanged"
    for file in (engine / "rerun.py", engine / "machine/doctor.py", engine.parent / "hydra_plugins/runengine.py"):
        with file.open("a") as text:
            text.write("\n")
    (engine / "conf/trainer/fsdp.yaml").unlink()
    (engine / "ours.py").touch()
    assert manifest.describe(engine) == (
        "engine 0.1.0, edited: ../hydra_plugins/runengine.py, machine/doctor.py, rerun.py, "
        "conf/trainer/fsdp.yaml (missing), ours.py (added)"
    )
    manifest.write(engine)
    assert manifest.describe(engine) == "engine 0.1.0, unchanged"


@pytest.mark.parametrize("text", [None, "", "<<<<<<< HEAD\n", "\ufffd\n"])
def test_a_manifest_that_cannot_be_read_is_said(engine: Path, text: str | None) -> None:
    if text is None:
        (engine / "MANIFEST").unlink()
    else:
        (engine / "MANIFEST").write_text(text, encoding="latin-1", errors="ignore")
    assert manifest.describe(engine) == "engine 0.1.0, but MANIFEST is missing or damaged, so edits cannot be found"


def command(*arguments: str, cwd: Path, expect: int = 0) -> str:
    """A program in a project whose engine is its own."""
    environment = {**os.environ, "PYTHONPATH": str(cwd / "src")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_command_says_it_and_never_fails(engine: Path) -> None:
    here = engine.parents[1]
    (engine / "settings/errors.py").unlink()
    assert command("runengine", "engine", cwd=here) == "engine 0.1.0, edited: settings/errors.py (missing)\n"
    assert command("runengine", "engine", "--write-manifest", cwd=here) == "engine 0.1.0, unchanged\n"


def test_runs_and_the_doctor_say_it(run_training: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    edits = manifest.Edits(["rerun.py"], [], [])
    for found, short, long in (
        (manifest.Edits([], [], []), "0.1.0", "0.1.0, unchanged"),
        (edits, "0.1.0, edited", "0.1.0, edited: rerun.py"),
    ):
        monkeypatch.setattr(manifest, "compare", lambda folder=None, found=found: found)
        manifest.state.cache_clear()
        run = run_training("trainer.max_epochs=1")
        (start,) = run.starts.read_text(encoding="utf-8").splitlines()
        assert json.loads(start)["engine"] == short
        (check,) = [check for check in CHECKS if check.name == "engine"]
        assert examine(check, Machine(project.root())).found == long
    manifest.state.cache_clear()


# --------------------------------------------------------------------------- upgrade


def as_wheel(project: Path) -> str:
    wheel = project.with_name("runengine-0.10.0-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in content(project / "src").items():
            archive.writestr(name, text)
    return str(wheel)


def as_repository(project: Path) -> str:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "core.autocrlf=false"]
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "x"], ["tag", "v0.10.0"]):
        subprocess.run([*git, *arguments], cwd=project, check=True)
    shutil.rmtree(project / "src")  # what is in the working tree does not count
    return f"{project.as_uri()}/.git"


def as_tag(project: Path) -> str:
    """A repository whose newest commit has no engine."""
    address = as_repository(project)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for arguments in (["tag", "release/0.9"], ["rm", "-rq", "src"], ["commit", "-qm", "y"]):
        subprocess.run([*git, *arguments], cwd=project, check=True)
    return f"{address}@v0.10.0"


def as_template(project: Path) -> str:
    folder = project.with_name("template") / ("{" * 2 + "cookiecutter.project_slug" + "}" * 2)
    shutil.copytree(project, folder)
    return str(folder.parent)


@pytest.mark.parametrize(
    "source",
    [str, lambda project: str(project / "src/runengine"), as_wheel, as_repository, as_tag, as_template],
    ids=["project", "engine", "wheel", "git", "tag", "template"],
)
def test_another_version_takes_its_place(engine: Path, newer: Path, source: Callable[[Path], str]) -> None:
    wanted = content(newer / "src")
    (engine / "__pycache__").mkdir()
    (engine / "__pycache__/rerun.cpython-311.pyc").touch()
    said = command("runengine", "upgrade", source(newer), cwd=engine.parents[1])
    assert said == (
        "engine 0.1.0 -> 0.10.0\n\n## 0.9.1\n\nA correction.\n\n## 0.10.0\n\nAdds cosine.py.\n\nRun: make test\n"
    )
    assert content(engine.parents[1]) == {f"src/{name}": text for name, text in wanted.items()}
    assert command("runengine", "engine", cwd=engine.parents[1]) == "engine 0.10.0, unchanged\n"


def test_what_was_edited_is_named_and_kept(engine: Path, newer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = engine.parents[1]
    edited = ("machine/doctor.py", "../hydra_plugins/runengine.py", "ours.py")
    for name in edited:
        with (engine / name).open("a", encoding="utf-8") as file:
            file.write("# ours\n")
    (engine / "model_card.py").unlink()
    before = {name: (engine / name).read_bytes() for name in edited}
    upgrade(str(newer), engine)
    said = capsys.readouterr().out
    assert (
        "\nengine 0.1.0, edited: ../hydra_plugins/runengine.py, machine/doctor.py, model_card.py (missing), "
        "ours.py (added)\n"
        "Your edited files are kept in engine-edited-0.1.0/. Edit the new files in the same way where you still need "
        "it.\n"
    ) in said
    assert {
        f"../{name}" if "hydra" in name else name: text for name, text in content(here / "engine-edited-0.1.0").items()
    } == before
    assert content(here / "src") == content(newer / "src")

    (engine / "rerun.py").write_text("# again\n", encoding="utf-8")
    (engine / "VERSION").write_text("0.1.0\n", encoding="utf-8")
    upgrade(str(newer), engine)
    assert sorted(content(here / "engine-edited-0.1.0-2")) == ["VERSION", "rerun.py"]
    assert content(here / "src") == content(newer / "src")


def test_an_engine_with_files_missing_can_be_replaced(engine: Path, newer: Path) -> None:
    for name in ("settings/errors.py", "settings/project.py", "program.py", "MANIFEST"):
        (engine / name).unlink()
    (engine / "rerun.py").write_text("# ours\n", encoding="utf-8")
    kept = content(engine)
    said = command("runengine", "upgrade", str(newer), cwd=engine.parents[1])
    assert "engine 0.1.0, but MANIFEST is missing or damaged, so edits cannot be found\n" in said
    assert content(engine.parent) == content(newer / "src")
    assert content(engine.parents[1] / "engine-edited-0.1.0").items() >= kept.items()


def damaged(project: Path) -> None:
    (project / "src/runengine/cosine.py").write_text("half", encoding="utf-8")


def without_manifest(project: Path) -> None:
    (project / "src/runengine/MANIFEST").unlink()


def without_a_file(project: Path) -> None:
    (project / "src/runengine/cosine.py").unlink()


def without_version(project: Path) -> None:
    (project / "src/runengine/VERSION").write_text("../..\n", encoding="utf-8")
    manifest.write(project / "src/runengine")


WANTED = "FROM= must be the folder of a project or of the template, the address of a Git repository, or a wheel."
NOT_RELEASED = "Take it from the template, or from a project in which it was not edited."


@pytest.mark.parametrize(("harm", "sentence"), [
    (damaged, f"the engine in SOURCE is not as it was released: cosine.py. {NOT_RELEASED}"),
    (without_a_file, f"the engine in SOURCE is not as it was released: cosine.py (missing). {NOT_RELEASED}"),
    (without_version, f"the engine in SOURCE is not as it was released: VERSION is damaged. {NOT_RELEASED}"),
    (without_manifest, f"SOURCE has no engine: {WANTED}"),
])  # fmt: skip
def test_a_source_that_is_not_as_it_was_released_changes_nothing(
    engine: Path, newer: Path, harm: Callable[[Path], None], sentence: str
) -> None:
    harm(newer)
    before = content(engine.parents[1])
    said = command("runengine", "upgrade", str(newer), cwd=engine.parents[1], expect=1)
    assert said == f"error: {sentence.replace('SOURCE', str(newer))}\n"
    assert content(engine.parents[1]) == before


def test_other_sources_are_refused_in_one_sentence(engine: Path, tmp_path: Path) -> None:
    before = content(engine.parents[1])
    wheel = tmp_path / "half.whl"
    wheel.write_bytes(b"PK\x03\x04 half")
    empty = tmp_path / "empty"
    empty.mkdir()
    nowhere = (tmp_path / "nowhere").as_uri()
    for source, sentence in {
        "": f"no engine was named: {WANTED}",
        "runengine": f"runengine does not exist: {WANTED}",
        str(empty): f"{empty} has no engine: {WANTED}",
        str(wheel): f"{wheel} is not a wheel: it cannot be unpacked. Download it again.",
        nowhere: f"git cannot clone {nowhere}; its message is above.",
    }.items():
        with pytest.raises(Refused) as refused:
            upgrade(source, engine)
        assert str(refused.value) == sentence
    assert content(engine.parents[1]) == before


def test_a_tag_is_written_as_for_pip_and_one_that_is_not_there_is_named(
    engine: Path, newer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(engine.parents[1])
    address = as_tag(newer).rpartition("@")[0]
    empty = tmp_path / "empty.git"
    subprocess.run(["git", "init", "-q", "--bare", empty], check=True)
    nowhere = (tmp_path / "nowhere").as_uri()
    for source, sentence in {
        f"{address}@v0.2.0": f"{address} has no tag v0.2.0. Its newest tags: v0.10.0, release/0.9.",
        f"git+{address}@v0.2.0": f"{address} has no tag v0.2.0. Its newest tags: v0.10.0, release/0.9.",
        f"{empty}@v1": f"{empty} has no tag v1. It has no tags: leave @v1 out.",
        f"{nowhere}@v1": f"git cannot read {nowhere}; its message is above.",
        "nothing@v1": f"nothing@v1 does not exist: {WANTED}",
    }.items():
        with pytest.raises(Refused) as refused:
            upgrade(source, engine)
        assert str(refused.value) == sentence
    assert content(engine.parents[1]) == before
    upgrade(f"git+{address}@release/0.9", engine)
    assert "engine 0.1.0 -> 0.10.0\n" in capsys.readouterr().out


@pytest.mark.parametrize(("source", "address", "tag"), [
    ("https://host/org/name.git", "https://host/org/name.git", ""),
    ("https://me:secret@host/org/name@v1", "https://me:secret@host/org/name", "v1"),
    ("git@host:org/name.git", "git@host:org/name.git", ""),
    ("git@host:org/name.git@v1.0", "git@host:org/name.git", "v1.0"),
    ("ssh://git@host:22/org/name@release/1", "ssh://git@host:22/org/name", "release/1"),
])  # fmt: skip
def test_what_is_before_the_host_is_no_tag(source: str, address: str, tag: str) -> None:
    assert _address_and_tag(source) == (address, tag)


UNTIL = """
import os, runpy, signal, sys
event, left = sys.argv.pop(1), int(sys.argv.pop(1))

def kill(name, arguments):
    global left
    left -= name == event
    if name == event and left < 0:  # the kill is an event, too
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
runpy.run_module("runengine", run_name="__main__")
"""


@pytest.mark.parametrize(("event", "which", "version"), [
    ("shutil.copyfile", 0, "old"), ("shutil.copyfile", 40, "old"),
    ("os.rename", 0, "old"), ("os.rename", 1, "old"), ("os.rename", 2, "new"),
    ("shutil.rmtree", 1, "old"), ("shutil.rmtree", 2, "new"), ("shutil.rmtree", 3, "new"),
])  # fmt: skip
def test_a_kill_at_any_point_leaves_a_complete_engine(
    engine: Path, newer: Path, event: str, which: int, version: str
) -> None:
    here = engine.parents[1]
    wanted = {"old": content(engine), "new": content(newer / "src/runengine")}[version]
    killed = [sys.executable, "-c", UNTIL, event, str(which), "upgrade", str(newer)]
    environment = {**os.environ, "PYTHONPATH": str(engine.parent)}
    done = subprocess.run(killed, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if (event, which) == ("os.rename", 1):  # between two renamings: the Makefile does the same
        assert not engine.exists()
        (engine.parent / ".runengine.old").rename(engine)
    assert content(engine) == wanted
    upgrade(str(newer), engine)
    assert content(engine.parent) == content(newer / "src")


def test_the_changelog_is_shown_between_the_versions(tmp_path: Path) -> None:
    file = tmp_path / "CHANGELOG.md"
    file.write_text(
        "# Changes\n\n## 0.10.0\n\nc\n\n### More\n\n## 0.9.0 (a date)\n\nb\n\n## 0.1.0\n\na\n", encoding="utf-8"
    )
    ten, nine, one = "## 0.10.0\n\nc\n\n### More", "## 0.9.0 (a date)\n\nb", "## 0.1.0\n\na"
    assert changes(file, "0.1.0", "0.10.0") == [ten, nine]
    assert changes(file, "0.9.0", "0.10.0") == [ten]
    assert changes(file, "unknown", "0.9.0") == [nine, one]
    assert changes(file, "0.10.0", "0.9.0") == changes(file, "0.9.0", "0.9.0") == []
    assert changes(tmp_path / "none.md", "0.1.0", "0.9.0") == []


# --------------------------------------------------------------------------- another engine, or half of one


def make_project(engine: Path) -> Path:
    """With the owner's package."""
    here = engine.parents[1]
    shutil.copytree(SOURCE / "ml_project", here / "src/ml_project", ignore=shutil.ignore_patterns("__pycache__"))
    (here / "pyproject.toml").write_text('[tool.runengine]\npackage = "ml_project"\n', encoding="utf-8")
    return here


@pytest.mark.parametrize("file", [
    "program.py", "training_run.py", "settings/errors.py", "settings/process.py", "sweeps/one_run.py",
    "sweeps/sweep.py", "runs/lock.py", "conf/trainer/auto.yaml", manifest.PLUGIN,
])  # fmt: skip
def test_a_missing_file_of_the_engine_gets_one_sentence(engine: Path, file: str) -> None:
    here = make_project(engine)
    (engine / file).unlink()
    sweep = ["seeds=2"] if file == "sweeps/sweep.py" else []  # which only a sweep needs
    said = command("ml_project.train", "tracking=off", *sweep, cwd=here, expect=1)
    assert said == (
        f"error: the engine lacks {os.path.normpath(f'src/runengine/{file}')}. Restore the missing files (git "
        "restore, git checkout), or replace the engine: make upgrade FROM=<folder, git address or wheel>\n"
    )


def test_missing_files_are_counted(engine: Path) -> None:
    here = make_project(engine)
    shutil.rmtree(engine / "settings")
    assert "error: the engine lacks src/runengine/settings/__init__.py, src/runengine/settings/ch" in command(
        "runengine", "doctor", cwd=here, expect=1
    )


def test_the_engine_of_another_project_is_refused_in_one_sentence(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two projects in one environment, or the copy of a project: an editable install names an absolute path."""
    here = make_project(engine)
    sentence = (
        f"error: this environment imports the engine of another project: {FOLDER} in place of {engine}. Give "
        "each project an environment of its own: make clean-env setup\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for program in ("ml_project.train", "runengine"):
        typed = [sys.executable, "-m", program, *(["doctor"] if program == "runengine" else [])]
        done = subprocess.run(typed, cwd=here, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)

    monkeypatch.chdir(here)
    monkeypatch.setattr(project, "_used", [])
    with pytest.raises(UserError, match="imports the engine of another project"):
        project.check_imports()
    project.use(project.Project("other", here.parent, "train"))  # started by somebody who stands in this project
    project.check_imports()
    project.use(project.Project("other", engine.parent / "other", "train"))
    monkeypatch.chdir(here.parent)
    with pytest.raises(UserError, match="imports the engine of another project"):
        project.check_imports()
    monkeypatch.setattr(project, "COPY_OF", here / "pyproject.toml")  # the code that a job of Slurm was given
    project.check_imports()
