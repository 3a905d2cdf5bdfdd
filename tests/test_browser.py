"""Pages of the demo as a person sees them, in Debian's Chromium: tests/browser/look.mjs.

SCREENSHOTS=docs/images .venv/bin/python -m pytest tests/test_browser.py      # renews the pictures there
"""

from __future__ import annotations

import csv
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


def test_the_page_of_predictions_is_sorted_and_filtered_without_a_server(
    browser: Path, project: Path, folder: Path, env: dict[str, str], tmp_path: Path
) -> None:
    printed = run("make", "look", f"RUN={folder.relative_to(project)}", cwd=project, env=env).output
    assert f"wrote {folder.relative_to(project)}/look.html: open it in a browser" in printed
    seen = look(browser, "predictions", folder / "look.html", "probability", tmp_path / "look.png")
    with (folder / "test_predictions.csv").open() as opened:
        answers = list(csv.DictReader(opened))
    mistakes = [answer for answer in answers if answer["label"] != answer["predicted"]]
    assert seen["headings"] == ["", "label", "predicted", "right", "probability", "loss \u25be"]
    assert seen["first"]["shown"] == f"100 shown of {len(answers)} that fit, of {len(answers)}"
    losses = [float(loss) for loss in seen["first"]["loss"]]
    assert len(losses) == 100
    assert losses == sorted(losses, reverse=True)
    assert seen["more"].startswith("200 shown of ")
    rising = [float(probability) for probability in seen["rising"]]
    assert rising == sorted(rising)
    assert min(rising) == pytest.approx(min(float(answer["probability"]) for answer in answers), rel=1e-3)
    assert seen["sorted"] == "probability \u25b4"
    assert seen["wrong"]["shown"] == f"{len(mistakes)} shown of {len(mistakes)} that fit, of {len(answers)}"
    assert set(seen["wrong"]["right"]) <= {"no"}
    sure = [answer for answer in mistakes if float(answer["probability"]) >= 0.5]
    assert len(seen["sure"]["values"]) == len(seen["pictures"]) == len(sure)
    assert set(seen["pictures"]) <= {8}
