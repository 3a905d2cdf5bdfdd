"""How a command ends that nobody reads any more, as in `... | head`: quietly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SOURCE
from runengine.machine import bench_files
from runengine.machine.verdicts import Row
from runengine.settings.errors import PIPE_CLOSED

ENDS = {
    "much": ("for number in range(100_000): print(number)", PIPE_CLOSED),
    "little": ("print(1)", 0),
    "with a status": ("print(1); sys.exit(3)", 3),
    "with a mistake": ("print(1); raise UserError('it is wrong')", 1),
}


def piped(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit status and stderr of a command whose reader ends before it has read anything."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("does", "status"), ENDS.values(), ids=ENDS)
def test_a_closed_pipe_ends_a_command_quietly(
    does: str, status: int, unbuffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    program = f"import sys\nfrom runengine import UserError, friendly_errors\nwith friendly_errors():\n    {does}"
    said = "error: it is wrong\n" if "UserError" in does else ""
    wanted = (PIPE_CLOSED, "") if unbuffered else (status, said)  # the first letter finds out
    assert piped([sys.executable, "-c", program], tmp_path) == wanted


def test_a_broken_pipe_that_is_not_standard_output_keeps_its_traceback(tmp_path: Path) -> None:
    program = "import runengine\nwith runengine.friendly_errors():\n    raise BrokenPipeError('a worker died')"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError: a worker died\n")


def test_a_comparison_of_two_benches_ends_quietly(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    now = {"chips": ["NVIDIA H100"], "torch": "2.13.0", "at": "2026-11-21"}
    rows = [Row("cuda:0", "product", "8192 x 8192", "bf16", "tflop_s", reached=788.0)]
    file.write_text(json.dumps(bench_files.result(rows, now)), encoding="utf-8")
    status, said = piped([sys.executable, "-m", "runengine", "bench", "--compare", str(file), str(file)], tmp_path)
    assert said == ""
    assert status in (0, PIPE_CLOSED)
