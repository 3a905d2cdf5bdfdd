"""The model card and the data sheet say what the run has recorded, and keep what a person has written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SOURCE
from ml_project.evaluate import evaluate
from omegaconf import OmegaConf
from runengine import Run, find
from runengine.model_card import QUESTIONS, answer, write_cards
from runengine.runs.provenance import environment

NOT_STATED = "Not stated."
Train = Callable[..., Run]


def test_the_pages_hold_the_figures_of_the_run(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "model=mlp", "optimizer.lr=0.0123")
    card, sheet = (file.read_text() for file in write_cards(run))
    assert "The test split was not measured" in card
    test = evaluate(run)
    card, sheet = (file.read_text() for file in write_cards(run))
    assert f"| `test/accuracy` | {test['test/accuracy']:.4f} |" in card
    assert f"| `val/loss` | {json.loads(run.metrics.read_text())['val/loss']:.4f} |" in card
    assert "| `optimizer.lr` | `0.0123` |" in card
    assert f"torch {environment()['packages']['torch']}" in card
    assert "### per class\n\n| class | images | precision | recall | f1 |\n" in card
    assert "### history" not in card
    assert "### test predictions" not in card  # of 180 rows
    classes = (run.folder / "per_class.csv").read_text().splitlines()[1:]
    assert all(f"| {line.split(',')[0]} | {line.split(',')[1]} | " in card for line in classes)
    split = json.loads(Path("data/processed/split.json").read_text())
    for name, count in split["rows"].items():
        assert f"| `{name}` | {count} |" in sheet
    for file, checksum in split["sha256"].items():
        assert f"| SHA-256 of `{file}` | `{checksum}` |" in sheet
    assert f"| `classes` | {', '.join(split['classes'])} |" in sheet
    assert f"| `input_shape` | {', '.join(map(str, split['input_shape']))} |" in sheet
    assert "| source | `dataset=" in sheet

    Path("data/processed/split.json").write_text(json.dumps(split | {"split_seed": 7}))
    assert "SHA-256 of" not in write_cards(run)[1].read_text()  # other data by now


def recorded(folder: Path, settings: dict[str, Any], **files: object) -> Run:
    """What a run has left that trained something quite different, by a class of its own and without a data folder."""
    run = Run(folder)
    run.folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"experiment_name": "prices", "trainer": {}, **settings}), run.config)
    for name, content in files.items():
        (run.folder / f"{name}.json").write_text(json.dumps(content))
    return run


def test_a_run_of_any_task_has_its_pages(workplace: Path) -> None:
    run = recorded(
        workplace / "runs/prices/1",
        {"monitor": {"metric": "r2", "mode": "max"}, "task": {"_target_": "shop.task.Prices"}},
        run={"format": 1, "module": "shop.train"},
        metrics={"epoch": 3, "step": 80, "loss": 2.5e-6, "r2": 0.91, "mlflow_run_id": "abc"},
        data={"rows": {"train": 80, "test": 20}, "columns": ["size", "age"], "unit": "EUR", "mean": [1.5, 2e-5]},
    )
    (run.folder / "largest_errors.csv").write_text("house,comment,error\n007,a|b,0.12345\n12,,1e5\n13,,\n")
    (run.folder / "all_errors.csv").write_text("error\n" + "0.1\n" * 51)
    (run.folder / "history.csv").write_text("epoch\n1\n")
    card, sheet = (file.read_text() for file in write_cards(run))
    assert card.startswith("# Model card: Prices on prices\n")
    assert "| model | `shop.task.Prices` |" in card
    assert "with the greatest `r2` (epoch 4)." in card
    assert "| `loss` | 2.5e-06 |\n| `r2` | 0.9100 |\n" in card
    assert "abc" not in card
    assert "`python -m shop.evaluate " in card
    heading = "### largest errors\n\n| house | comment | error |\n|---|---|---|\n"
    assert f"{heading}| 007 | a\\|b | 0.1235 |\n| 12 |  | 1e5 |\n| 13 |  |  |\n" in card
    assert "all errors" not in card
    assert sheet.startswith("# Data sheet: prices\n")
    for row in ("`columns` | size, age", "`unit` | EUR", "`mean` | 1.5000, 2e-05", "`train` | 80", "`test` | 20"):
        assert f"| {row} |" in sheet


def test_what_is_not_known_is_left_out(workplace: Path) -> None:
    settings = {"monitor": {"metric": None, "mode": "min"}}
    run = recorded(workplace / "runs/x/1", settings, run={"format": 1, "module": "a.gan"})
    card, sheet = (file.read_text() for file in write_cards(run))
    assert card.startswith("# Model card: gan on prices\n")
    assert "The run is not finished." in card
    assert "The run has no record of its data." in sheet
    run.metrics.write_text('{"epoch": 1, "step": 8}')
    assert "that of the last epoch (epoch 2): no metric is monitored." in write_cards(run)[0].read_text()


def test_what_a_person_wrote_is_kept_and_figures_are_renewed(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1")
    for file in write_cards(run):
        questions = QUESTIONS[file.name]
        page = file.read_text()
        assert all(answer(page, question) == NOT_STATED for question in questions)
        written = "None.\n\nBut for two things:\n\n### one\n\n### other"
        page = page.replace(f"## {questions[2]}\n\n{NOT_STATED}", f"## {questions[2]}\n\n{written}")
        file.write_text(page.replace("val/loss", "wrong"))
    for file in write_cards(run):
        page, questions = file.read_text(), QUESTIONS[file.name]
        assert answer(page, questions[2]) == written
        assert page.count(NOT_STATED) == len(questions) - 1
        assert "wrong" not in page


def test_without_a_run_it_says_what_to_do_before_torch_is_imported(workplace: Path) -> None:
    program = (
        "import sys, runpy\n"
        "sys.argv = ['runengine', 'card']\n"
        "try: runpy.run_module('runengine', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    answered = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=workplace,
        env={"PYTHONPATH": str(SOURCE)},
    )
    assert answered.stderr == f"error: there is no trained run in {workplace / 'runs'}. Run: make train\n"
    assert answered.stdout == "False\n"
    assert answered.returncode == 1
    with pytest.raises(
        ValueError, match=r"nowhere is not the folder of a run: it has no config.yaml. Look into runs/."
    ):
        find("nowhere")
