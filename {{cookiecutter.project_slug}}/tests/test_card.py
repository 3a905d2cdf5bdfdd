"""The model card and the data sheet say what the run has recorded, and keep what a person has written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_project.card import QUESTIONS, answer, write_cards
from ml_project.config import CONF
from ml_project.evaluate import evaluate
from ml_project.run import Run, find
from ml_project.snapshot import environment

NOT_STATED = "Not stated."
Train = Callable[..., Run]


def test_the_pages_hold_the_figures_of_the_run(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "model=mlp", "optim.lr=0.0123")
    card, sheet = (file.read_text() for file in write_cards(run))
    assert "The test split was not measured" in card
    test = evaluate(run)
    card, sheet = (file.read_text() for file in write_cards(run))
    assert f"| `test/accuracy` | {test['test/accuracy']:.4f} |" in card
    assert f"| `val/loss` | {json.loads(run.metrics.read_text())['val/loss']:.4f} |" in card
    assert "| `optim.lr` | `0.0123` |" in card
    assert f"torch {environment()['packages']['torch']}" in card
    classes = (run.folder / "per_class.csv").read_text().splitlines()[1:]
    assert all(f"| {line.split(',')[0]} | {line.split(',')[1]} | " in card for line in classes)
    split = json.loads(Path("data/processed/split.json").read_text())
    for name, count in split["rows"].items():
        assert f"| `{name}` | {count} |" in sheet
        assert f"| SHA-256 of `{name}.npz` | `{split['sha256'][name]}` |" in sheet
    assert "| source | `source=" in sheet

    Path("data/processed/split.json").write_text(json.dumps(split | {"split_seed": 7}))
    assert "SHA-256 of" not in write_cards(run)[1].read_text()  # other data by now


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
        "sys.argv = ['card']\n"
        "try: runpy.run_module('ml_project.card', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    answered = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=workplace,
        env={"PYTHONPATH": str(CONF.parents[1])},
    )
    assert answered.stderr == f"error: there is no trained run in {workplace / 'runs'}. Run: make train\n"
    assert answered.stdout == "False\n"
    assert answered.returncode == 1
    with pytest.raises(
        ValueError, match=r"nowhere is not the folder of a run: it has no config.yaml. Look into runs/."
    ):
        find("nowhere")
