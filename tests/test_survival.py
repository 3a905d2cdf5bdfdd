"""Trainings that are killed and resumed; the project of `make demo`. More of them: python benchmarks/survival.py."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run

sys.path.append(str(ROOT / "benchmarks"))
from survival import survive

pytestmark = pytest.mark.slow

NUM_KILLS = 3  # these export their models, too
NUM_CHANGED = 24  # half of them are moved, the others damaged
NUM_STARTS = 200
START_TOGETHER = """
import multiprocessing, sys
from runengine import compose
from runengine.runs.open_run import open_run
from runengine.runs.resolve import resolve_run

def start(barrier):
    barrier.wait()
    with open_run(*resolve_run(cfg)):
        pass

cfg = compose("train")
context = multiprocessing.get_context("fork")
barrier = context.Barrier(int(sys.argv[1]))
processes = [context.Process(target=start, args=(barrier,)) for _ in range(int(sys.argv[1]))]
for process in processes: process.start()
for process in processes: process.join()
print("failed", sum(process.exitcode != 0 for process in processes))
"""


def test_killed_trainings_end_like_one_that_was_left_alone(project: Path, tmp_path: Path) -> None:
    kills = survive(project, "my_project", NUM_KILLS, 0, tmp_path, ("register=true",))
    lost = [kill for kill in kills if not kill.survived()]
    assert not lost
    assert sum(kill.left for kill in kills) >= NUM_KILLS // 3  # else they were killed before anything was at stake


def test_killed_trainings_that_were_moved_or_damaged_end_alike_or_are_refused(project: Path, tmp_path: Path) -> None:
    kills = survive(project, "my_project", NUM_CHANGED, 1, tmp_path, move=True, damage=True)
    assert not [kill for kill in kills if not kill.survived()]
    moved = [kill for kill in kills if kill.change.startswith("moved")]
    assert len(moved) == NUM_CHANGED // 2
    assert all(kill.resumed for kill in moved)
    refused = {kill.change.partition(",")[0] for kill in kills if kill.refused}
    assert refused <= {"damaged: config.yaml", "damaged: checkpoints/last.ckpt", "damaged: checkpoints/best.ckpt"}


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_two_hundred_starts_at_once_have_two_hundred_folders(project: Path, python: Path, tmp_path: Path) -> None:
    printed = run(python, "-c", START_TOGETHER, str(NUM_STARTS), cwd=tmp_path).output
    assert printed.endswith("failed 0\n")
    folders = [file.parent for file in tmp_path.glob("runs/digits/*/config.yaml")]
    assert len(folders) == NUM_STARTS
    assert all(len((folder / "starts.jsonl").read_text().splitlines()) == 1 for folder in folders)
