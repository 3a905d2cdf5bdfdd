"""Every benchmark still runs: in seconds, by --quick; its figures mean nothing then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, run

pytestmark = pytest.mark.slow

# a line of each one's table
LINES = {
    "tracking.py faults none": "healthy                          yes  ",
    "survival.py": "each step once       1\n",
    "tracking.py cost": "of the steps a second of tracking=off\n",
    "scale.py sweep": "tracking=off  ",
    "startup.py": "first step, tracking=off  ",
    "loop.py": "+ tracking: all that is on by default  ",
    "loop.py --processes": "all that is on by default  ",
    "scale.py data": "shuffled batches, 2 workers  ",
    "gpu.py": "the report is ",
    "generation.py": "whole / bare, pair by pair: ",
}


@pytest.fixture(scope="module")
def started(demo: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """All of them, two at a time: each waits much of its time."""

    def start(command: str) -> str:
        script, *what = command.split()
        project: list[str | Path] = [] if script == "generation.py" else ["--project", demo[0]]
        folder = tmp_path_factory.mktemp("benchmark")
        report: list[str | Path] = ["--report", folder / "report.md"] if script == "gpu.py" else []
        typed: list[str | Path] = [sys.executable, ROOT / "benchmarks" / script, *what, "--quick", *project, *report]
        return run(*typed, cwd=folder).output

    with ThreadPoolExecutor(2) as pool:
        yield {command: pool.submit(start, command) for command in LINES}


@pytest.mark.parametrize("command", LINES)
def test_a_benchmark_runs(started: dict[str, Future[str]], command: str) -> None:
    printed = started[command].result()
    assert LINES[command] in printed
    assert "NOT WELL" not in printed
    assert "LOST" not in printed


def test_no_benchmark_is_left_out() -> None:
    assert {command.split()[0] for command in LINES} == {file.name for file in (ROOT / "benchmarks").glob("*.py")}
