"""Eight tasks that the engine does not know, each in a project of its own: tests/tasks/, in the demo's environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from conftest import ROOT, run

TASKS = ROOT / "tests/tasks"


@pytest.mark.slow
def test_the_engine_takes_any_task(python: Path, env: dict[str, str], tmp_path: Path) -> None:
    here = {**env, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--basetemp={tmp_path / 'b'}"]
    folders: list[str | Path] = ["--rootdir", TASKS, "--confcutdir", TASKS, TASKS]
    command: list[str | Path] = [python, "-m", "pytest", *options, *folders]
    summary = run(*command, cwd=TASKS, env=here).output.splitlines()[-1]
    num_tasks = len([folder for folder in (TASKS / "packages").iterdir() if (folder / "task.py").is_file()])
    assert num_tasks == 8
    found = re.search(r"\b(\d+) passed", summary)
    assert found, summary
    assert int(found[1]) >= 3 * num_tasks  # each is killed, swept and evaluated
    assert not re.search(r"\b(failed|errors?|skipped)\b", summary), summary
