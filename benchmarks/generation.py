"""How long a project takes to be generated, compared with the same files rendered by cookiecutter alone.

python benchmarks/generation.py            # a minute; --repetitions 5 for a first look, --quick for none
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from conftest import TEMPLATE_PARTS, copy_template  # noqa: E402

from ml_template.answers import remote_url, resolve  # noqa: E402

PROJECT = "{{cookiecutter.project_slug}}"
FLOOR = "bare: rendering alone"
AIM = 1.5  # times the floor, for all that this template adds


def without_hooks(folder: Path, *without: str) -> Path:
    """The template as tests and `make demo` use it, without some of its hooks."""
    copy_template(folder)
    for hook in without:
        (folder / "hooks" / f"{hook}.py").unlink()
    return folder


def bare_template(folder: Path) -> Path:
    """The same files with plain values in the place of our filters and our resolved answers; no hooks, no extension."""
    copy_template(folder)
    for part in set(TEMPLATE_PARTS) - {"cookiecutter.json", PROJECT}:
        shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    questions = json.loads((folder / "cookiecutter.json").read_text(encoding="utf-8"))
    answers = {
        name: value[0] if isinstance(value, list) and name[0] != "_" else value for name, value in questions.items()
    }
    answers |= {"project_slug": "my-project", "package_name": "my_project"}
    answers["data_remote_url"] = remote_url(answers["data_remote"], answers["project_slug"])
    resolve(answers)
    for ours in ("_extensions", "_detected", "__resolved", "__prompts__"):
        del answers[ours]
    (folder / "cookiecutter.json").write_text(json.dumps(answers), encoding="utf-8")
    for file in (folder / PROJECT).rglob("*"):
        if file.is_file() and file.suffix != ".py":
            text = file.read_text(encoding="utf-8")
            file.write_text(re.sub(r"(\{\{[^{}|]*?) *\|[^{}]*\}\}", r"\1 }}", text), encoding="utf-8")
    return folder


def seconds(command: Sequence[str], cwd: Path) -> float:
    """The time of one process from start to end, with nothing of an earlier one in the folder."""
    shutil.rmtree(cwd, ignore_errors=True)
    cwd.mkdir()
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    taken = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout.decode('utf-8', 'replace')}")
    return taken


def measure(subjects: dict[str, list[str]], repetitions: int, folder: Path, *, quick: bool) -> dict[str, list[float]]:
    """Seconds of each subject, one after the other in each repetition, so that a slow minute meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for command in () if quick else subjects.values():
        seconds(command, folder)  # fills the file cache and Python's own
    for repetition in range(repetitions):
        order = list(subjects.items())
        for name, command in order[repetition % len(order) :] + order[: repetition % len(order)]:
            taken[name].append(seconds(command, folder))
    return taken


def conditions(repetitions: int) -> str:
    model = next(
        (line.partition(": ")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    num_files = sum(file.is_file() for file in (ROOT / PROJECT).rglob("*") if "__pycache__" not in file.parts)
    programs = [name for name in ("nvidia-smi", "poetry", "conda", "uv", "pyenv", "git") if shutil.which(name)]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {model}, {os.cpu_count()} cores{load}; {platform.system()}, "
        f"Python {platform.python_version()}, cookiecutter {version('cookiecutter')};\n"
        f"{num_files} files in the template; on PATH: {', '.join(programs) or 'nothing to detect'}; "
        f"{repetitions} repetitions, interleaved"
    )


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines() if Path(file).is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="does it still run? In seconds; the figures mean nothing")
    arguments = parser.parse_args()
    repetitions = 1 if arguments.quick else arguments.repetitions

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home").mkdir()
        # a home without settings, and no folder that others fill
        os.environ.update(TMPDIR=name, HOME=str(folder / "home"), PYTHONDONTWRITEBYTECODE="1")
        generate = [sys.executable, "-m", "cookiecutter", "--no-input"]
        whole = str(without_hooks(folder / "whole"))
        subjects = {
            FLOOR: [*generate, str(bare_template(folder / "bare"))],
            "whole, as a user runs it": [*generate, whole],
            "  without hooks": [*generate, "--accept-hooks", "no", whole],
            "  without pre_prompt": [*generate, str(without_hooks(folder / "a", "pre_prompt"))],
            "  without pre_gen_project": [*generate, str(without_hooks(folder / "b", "pre_gen_project"))],
            "  without post_gen_project": [*generate, str(without_hooks(folder / "c", "post_gen_project"))],
            "cookiecutter's import alone": [sys.executable, "-c", "import cookiecutter.__main__"],
        }
        taken = measure(subjects, repetitions, folder / "out", quick=arguments.quick)

    floor = statistics.median(taken[FLOOR])
    print(conditions(repetitions))
    print(f"\n{'':30}{'median s':>10}{'least':>8}{'most':>8}{'x bare':>8}")
    for subject, each in taken.items():
        median = statistics.median(each)
        print(f"{subject:30}{median:10.3f}{min(each):8.3f}{max(each):8.3f}{median / floor:8.2f}")
    pairs = zip(taken["whole, as a user runs it"], taken[FLOOR], strict=True)
    ratio = statistics.median(whole_s / bare_s for whole_s, bare_s in pairs)
    print(f"\nwhole / bare, pair by pair: {ratio:.2f} (aim: under {AIM})")


if __name__ == "__main__":
    main()
