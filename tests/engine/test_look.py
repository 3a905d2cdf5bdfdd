"""The page of `make look`: what stands in it. tests/test_browser.py looks at it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ml_project.evaluate import evaluate
from PIL import Image
from runengine import Run, UserError, write_look
from runengine import look as look_module
from runengine.look import look

Train = Callable[..., Run]


def content(run: Run) -> Any:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', run.look.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def test_every_example_of_the_test_split_is_there_with_its_answer(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "model=mlp")
    metrics = evaluate(run)
    assert look(run) == run.look
    seen = content(run)
    answers = pd.read_csv(run.folder / "test_predictions.csv")
    table = pd.DataFrame(seen["rows"], columns=seen["columns"])
    assert len(table) == len(answers) == len(seen["pictures"])
    assert table["loss"].is_monotonic_decreasing
    assert table["loss"].mean() == pytest.approx(metrics["test/loss"], rel=1e-5)
    assert (table["right"] == "yes").mean() == pytest.approx(metrics["test/accuracy"])
    assert f"test/accuracy {metrics['test/accuracy']:.4f}" in seen["about"]
    kind, _, data = seen["pictures"][0].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (8, 8)


def test_pictures_stay_with_their_rows_and_are_made_small(tmp_path: Path) -> None:
    run = Run(tmp_path)
    table = pd.DataFrame({"loss": [0.5, 2.0, 1.0], "name": ["a", "b", "c"]})
    write_look(run, table, lambda row: Image.new("RGB", (200, 300), (50 * row, 0, 0)))
    seen = content(run)
    assert [row[1] for row in seen["rows"]] == ["b", "c", "a"]
    drawn = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))) for each in seen["pictures"]]
    assert [each.getpixel((0, 0))[0] for each in drawn] == [50, 100, 0]  # type: ignore[index]
    assert drawn[0].size == (85, 128)


def test_what_is_no_number_is_empty_and_no_text_ends_the_script(tmp_path: Path) -> None:
    run = Run(tmp_path / "</title><script>alert(1)</script>")
    run.folder.mkdir(parents=True)
    cells = {"loss": [float("nan"), float("inf"), 1.0], "text": ["</script><script>alert(1)", None, "ä"]}
    write_look(run, pd.DataFrame(cells | {"right": [True, False, True], "count": np.arange(3)}))
    assert sorted(content(run)["rows"], key=str) == [
        [1.0, "ä", "True", 2], [None, "</script><script>alert(1)", "True", 0], [None, None, "False", 1],
    ]  # fmt: skip
    assert run.look.read_text().count("<script>alert") == 0


def test_of_very_many_examples_the_worst_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_module, "MOST_ROWS", 3)
    write_look(Run(tmp_path), pd.DataFrame({"bits": range(10)}), sort="bits")
    seen = content(Run(tmp_path))
    assert seen["rows"] == [[9], [8], [7]]
    assert seen["about"] == "the 3 of 10 examples with the greatest bits"


def test_a_page_that_cannot_be_made_is_one_sentence(
    run_training: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    with pytest.raises(UserError) as refused:
        write_look(run, pd.DataFrame({"error": [1.0]}))
    assert str(refused.value) == (
        f"the page of {tmp_path} is sorted by loss, which is none of its columns: error. Add it, or pass sort=..."
    )
    write_look(run, pd.DataFrame({"error": [1.0]}), sort="error")
    with pytest.raises(UserError, match=r"has no rows: the test split is empty. Run: make data$"):
        write_look(run, pd.DataFrame({"loss": []}))
    run = run_training("trainer.max_epochs=1", "model=mlp")
    monkeypatch.setattr("ml_project.evaluate.look", lambda _: None)
    with pytest.raises(UserError) as refused:
        look(run)
    assert str(refused.value) == (
        f"ml_project.evaluate.look has written no page for {run.folder}. Let it call runengine.write_look."
    )
    monkeypatch.delattr("ml_project.evaluate.look")
    with pytest.raises(UserError) as refused:
        look(run)
    assert str(refused.value) == (
        "src/ml_project/evaluate.py has no function `look(run)` that says what the test split holds. Write one: it "
        "calls runengine.write_look."
    )
