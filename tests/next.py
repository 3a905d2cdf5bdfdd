"""The engine's own tests with the next versions of what it is built on, before they are released: make test-next"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from conftest import PROJECT, ROOT, extra, link_environment, run

ENGINE_TESTS = ROOT / "tests/engine"
NEXT = (
    "hydra-core>=1.4.0rc3,<1.5",
    "hydra-joblib-launcher>=1.4.0rc3,<1.5",
    "hydra-submitit-launcher>=1.4.0rc3,<1.5",
    "omegaconf>=2.4,<2.5",
)


def test_the_engine_keeps_its_promises_with_what_comes(
    demo: tuple[Path, str], env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "next").mkdir()
    shutil.copy(demo[0] / "pyproject.toml", tmp_path / "next")
    link_environment(demo[0], tmp_path / "next")
    python = tmp_path / "next/.venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--pre", *NEXT, *extra(PROJECT, "onnx"), cwd=tmp_path, env=env)
    print(run(python, "-m", "pip", "freeze", cwd=tmp_path, env=env).output)
    here = {**env, "PYTHONPATH": str(PROJECT / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'b'}", "-c", "pyproject.toml"]
    command: list[str | Path] = [python, "-m", "pytest", *options, "--confcutdir", ENGINE_TESTS, ENGINE_TESTS]
    printed = run(*command, cwd=PROJECT, env=here, expect=None).output
    assert re.search(r"\b\d+ passed", printed.splitlines()[-1]), printed[-6000:]
    assert not re.search(r"\b(failed|errors?)\b", printed.splitlines()[-1]), printed[-6000:]
