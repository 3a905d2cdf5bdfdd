"""MLflow's and TensorBoard's pages of the demo as a person sees them, in Debian's Chromium: tests/browser/look.mjs.

SCREENSHOTS=docs/images .venv/bin/python -m pytest tests/test_browser.py      # renews the pictures there
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
from conftest import look, run

pytestmark = pytest.mark.slow

CPU = "system/cpu_utilization_percentage"


def values(folder: Path, metric: str) -> list[float]:
    """A metric as the run's folder has it."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line)["metrics"] for line in lines]
    return [row[metric] for row in rows if metric in row]


@pytest.fixture
def promoted(project: Path, folder: Path, env: dict[str, str]) -> None:
    run("make", "promote", f"RUN={folder.relative_to(project)}", cwd=project, env=env)


@pytest.mark.usefixtures("promoted")  # before the server starts: both write in the database
@pytest.mark.parametrize("served", ["mlflow"], indirect=True)
def test_mlflow_shows_the_run(browser: Path, served: int, folder: Path, tmp_path: Path) -> None:
    seen = look(browser, "mlflow", served, folder.name, tmp_path / "mlflow-run.png")
    assert re.search(r"^Status\s+Finished$", seen["overview"], re.MULTILINE)
    assert re.search(r"^optimizer\.lr\s+0\.003$", seen["overview"], re.MULTILINE)
    assert re.search(r"^test/accuracy\s+0\.9\d+$", seen["overview"], re.MULTILINE)

    drawn = ["train/accuracy", "train/loss", "val/accuracy", "val/loss"]
    assert len(values(folder, "val/loss")) == 15
    assert sorted(seen["curves"]) == sorted(drawn)
    for metric in drawn:
        assert seen["curves"][metric] == pytest.approx(values(folder, metric)), metric
    if values(folder, CPU):  # the training took long enough to be measured; one value is a bar, more are a line
        assert "cpu_utilization_percentage" in seen["system"]

    assert "batch_size: 64" in seen["config"]
    matrix = (folder / "confusion_matrix.png").read_bytes()
    assert seen["imageWidth"] == struct.unpack(">I", matrix[16:20])[0]
    assert "Registered on" in seen["model"]


@pytest.mark.parametrize("served", ["tensorboard"], indirect=True)
def test_tensorboard_draws_the_curves(browser: Path, served: int, folder: Path, tmp_path: Path) -> None:
    seen = look(browser, "tensorboard", served, folder.name, tmp_path / "tensorboard.png")
    assert folder.name in seen["cards"]
    assert f"{values(folder, 'val/accuracy')[-1]:.4g}" in seen["cards"]
    both = [15, 15]  # as measured, and smoothed
    assert seen["points"] == {"train/loss": both, "val/loss": both}
