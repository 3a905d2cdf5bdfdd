"""The engine's own tests, once: in one environment, on the project as it lies in the template."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from conftest import PROJECT, ROOT, extra, install_next_to, run

ENGINE_TESTS = ROOT / "tests/engine"


@pytest.mark.slow
def test_the_engine_keeps_its_promises(python: Path, env: dict[str, str], tmp_path: Path) -> None:
    onnx = install_next_to(python, tmp_path, *extra(PROJECT, "onnx"))
    here = {
        **env,
        "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{onnx}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'b'}", "-c", "pyproject.toml"]
    command: list[str | Path] = [python, "-m", "pytest", *options, "--confcutdir", ENGINE_TESTS, ENGINE_TESTS]
    summary = run(*command, cwd=PROJECT, env=here).output.splitlines()[-1]
    found = re.search(r"\b(\d+) passed", summary)  # some are skipped where there is no GPU
    assert found, summary
    assert int(found[1]) > 0
    assert not re.search(r"\b(failed|errors?)\b", summary), summary
