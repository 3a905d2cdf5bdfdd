"""The questions as a person sees them: a session in a real terminal, from the first question to the last words.

python tests/test_terminal.py > docs/prompts.txt
"""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from conftest import CHOICES, QUESTIONS, ROOT, Answer, copy_template

if sys.platform != "win32":
    import fcntl
    import pty
    import termios

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")
ASKED = re.compile(r"(\):\s*|\[y/N\] )\Z")  # a question ends with its default in parentheses, or asks for yes or no
LINES, COLUMNS = 60, 100
LIMIT_S = 180.0  # for a whole session, which takes a second, or with `make setup` many
BY_NAME = ("package_name", "python_version", "pytorch_index")  # not asked
NAMES = [name for name in QUESTIONS if not name.startswith("_") and name not in (*BY_NAME, "data_remote_url")]


def session(command: list[str], typed: Mapping[str, str], cwd: Path, env: Mapping[str, str]) -> Answer:
    """Answer each question of a program in a terminal of its own: what is typed for its number, else Enter.

    Args:
        typed: from the mark of a question, as [4/11] or [y/N], to what is typed there.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    received, answered, ends_at = b"", 0, time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < ends_at:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(master, 65536)
            except OSError:  # Linux's way to say that nobody has the terminal open any more
                break
            if not data:
                break
            received += data
            new = screen(received[answered:])
            if ASKED.search(new):
                mark = re.findall(r"\[\w+/\w+\]", new)
                os.write(master, typed.get(mark[-1], "").encode() + b"\n" if mark else b"\n")
                answered = len(received)
        status = process.wait(timeout=max(1.0, ends_at - time.monotonic()))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
    return Answer(status, screen(received))


def screen(received: bytes) -> str:
    """What stands on the screen as plain text."""
    return ESCAPES.sub("", received.decode("utf-8", "replace")).replace("\r\n", "\n")


def one_line(text: str) -> str:
    """A screen without its line breaks, which may stand within a question."""
    return " ".join(text.split())


def cookiecutter(
    template: Path, output: Path, config_file: Path, *by_name: str, asked: Sequence[str] = NAMES, **typed: str
) -> Answer:
    """`cookiecutter <template>` with these questions answered, and Enter for the others that are asked."""
    command = [sys.executable, "-m", "cookiecutter", str(template), "--config-file", str(config_file), *by_name]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "PYTHONUTF8": "1"}
    marks = {f"[{asked.index(name) + 1}/{len(asked)}]": text for name, text in typed.items()}
    return session(command, marks, output, env)


@pytest.fixture
def output(tmp_path: Path, bare_machine: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_enter_to_the_end_gives_the_project(template: Path, output: Path, config_file: Path) -> None:
    seen = cookiecutter(template, output, config_file)
    assert seen.returncode == 0, seen.output
    for number, name in enumerate(NAMES, 1):
        assert f"[{number}/{len(NAMES)}] {prompt(name)}" in one_line(seen.output)
    assert seen.output.endswith("\n  cd my-project\n  make setup data train evaluate\n\n")
    assert [folder.name for folder in output.iterdir()] == ["my-project"]
    assert (output / "my-project/src/my_project/train.py").is_file()


def test_a_refused_answer_ends_the_session_with_one_sentence(template: Path, output: Path, config_file: Path) -> None:
    seen = cookiecutter(template, output, config_file, project_slug="torch")
    assert seen.returncode == 1
    sentence = "project_slug torch is a package the project itself uses. Try torch-project."
    assert seen.output.splitlines()[-1] == sentence
    assert "Traceback" not in seen.output
    assert list(output.iterdir()) == []


def test_what_is_not_asked_can_be_given_by_name(template: Path, output: Path, config_file: Path) -> None:
    given = {"package_name": "mine", "python_version": "3.12", "pytorch_index": "https://mirror.example.com/whl"}
    seen = cookiecutter(template, output, config_file, *(f"{name}={value}" for name, value in given.items()))
    assert seen.returncode == 0, seen.output
    hint = f"Not asked: {', '.join(BY_NAME)}. Give them by name: cookiecutter ... python_version=3.12"
    assert one_line(seen.output).count(hint) == 1
    project = output / "my-project"
    assert (project / "src/mine/train.py").is_file()
    assert 'python = "3.12"' in (project / "pyproject.toml").read_text(encoding="utf-8")
    assert "https://mirror.example.com/whl/cpu" in (project / "pyproject.toml").read_text(encoding="utf-8")


def test_only_what_matters_is_asked(template: Path, output: Path, config_file: Path, tmp_path: Path) -> None:
    """An address where data do not go into a folder; the author where Git knows none."""
    asked = [*NAMES[: NAMES.index("data_remote") + 1], "data_remote_url", *NAMES[NAMES.index("data_remote") + 1 :]]
    typed = {
        f"[{NAMES.index('data_remote') + 1}/{len(NAMES)}]": "2",
        f"[{asked.index('data_remote_url') + 1}/{len(asked)}]": "s3://b/f",
    }
    command = [sys.executable, "-m", "cookiecutter", str(template), "--config-file", str(config_file)]
    seen = session(command, typed, output, {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)})
    assert seen.returncode == 0, seen.output
    assert f"[{len(asked)}/{len(asked)}] {prompt('ci')}" in one_line(seen.output)
    assert 'url = "s3://b/f"\n' in (output / "my-project/.dvc/config").read_text(encoding="utf-8")

    git = tmp_path / "gitconfig"
    git.write_text("[user]\nname = Ada\nemail = ada@example.com\n", encoding="utf-8")
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "GIT_CONFIG_GLOBAL": str(git)}
    seen = session([*command, "project_slug=hers"], {}, output, env)
    assert seen.returncode == 0, seen.output
    assert "Your name" not in seen.output
    assert "pytorch_index, author_name (Ada), author_email (ada@example.com). Give them by name:" in one_line(
        seen.output
    )
    assert f"[{len(NAMES) - 2}/{len(NAMES) - 2}] {prompt('ci')}" in one_line(seen.output)
    assert '"Ada"' in (output / "hers/pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{{ 7*7 }}", 'L\'Été: "日本" \\ $(touch pwned) [bold]'])
def test_what_is_typed_is_data(template: Path, output: Path, config_file: Path, text: str) -> None:
    seen = cookiecutter(template, output, config_file, description=text)
    assert seen.returncode == 0, seen.output
    settings = tomllib.loads((output / "my-project/pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["description"] == text
    assert [file.name for file in output.iterdir()] == ["my-project"]


def test_names_follow_from_what_was_typed_before(template: Path, output: Path, config_file: Path) -> None:
    seen = cookiecutter(template, output, config_file, project_name="3D Vision")
    assert seen.returncode == 0, seen.output
    assert f"{prompt('project_slug')} (3d-vision): " in seen.output
    assert (output / "3d-vision/src/p_3d_vision").is_dir()


def test_the_page_of_questions_shows_those_that_are_asked() -> None:
    page = one_line((ROOT / "docs/prompts.txt").read_text(encoding="utf-8"))
    again = "The questions have changed. Run: python tests/test_terminal.py > docs/prompts.txt"
    places = [page.find(f"[{number}/{len(NAMES)}] {prompt(name)}") for number, name in enumerate(NAMES, 1)]
    assert -1 not in places, again
    assert places == sorted(places), again
    asked = {name: choices for name, choices in CHOICES.items() if name in NAMES}
    for name, choices in asked.items():
        for choice in choices:
            assert re.search(rf" \d+ - {re.escape(label(name, choice))}:? ", page), again
    assert page.count("Choose from [") == len(asked), again


def prompt(name: str) -> str:
    """The text of a question."""
    text = QUESTIONS["__prompts__"][name]
    return str(text if isinstance(text, str) else text["__prompt__"])


def label(name: str, choice: str) -> str:
    """The text of a choice."""
    texts = QUESTIONS["__prompts__"][name]
    return str(choice if isinstance(texts, str) else texts.get(choice, choice))


def main() -> None:
    """Print the screen of a session in which only Enter was pressed, on a machine that has nothing but Python."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("home", "out", "empty"):
            (folder / part).mkdir()
        copy_template(folder / "template")
        os.environ.update(HOME=str(folder / "home"), TMPDIR=name, PATH=str(folder / "empty"))
        config = folder / "home/config.yaml"
        config.write_text("{}\n", encoding="utf-8")
        seen = cookiecutter(folder / "template", folder / "out", config)
    print("\n".join(line.rstrip() for line in seen.output.strip("\n").splitlines()))
    sys.exit(seen.returncode)


if __name__ == "__main__":
    main()
