"""The configuration: every choice composes, every mistake gets one sentence before torch is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SOURCE
from hydra.errors import InstantiationException
from hydra.utils import get_object
from runengine import Run, UserError, compose, load
from runengine.compat import asks_for_targets
from runengine.machine.own_step import own_step
from runengine.runs.run import load_config
from runengine.settings import project
from runengine.settings.check import LIMITS
from runengine.settings.config import flatten
from runengine.settings.errors import explain

FILES = sorted(file for folder in project.conf_folders() for file in folder.glob("*/*.yaml"))
ALL = sorted({f"{file.parent.name}={file.stem}" for file in FILES})
DATASETS = [choice for choice in ALL if choice.startswith("dataset=")]  # of prepare
CHOICES = [choice for choice in ALL if choice not in DATASETS]

DEFAULT = compose("train")
MODELS = ", ".join(project.choices("model"))
MISTAKES = {
    "optimizer.lrr=0.1": "optimizer.lrr is not a setting. Did you mean optimizer.lr?",
    "+lr=0.1": "+lr adds a setting that nothing reads. Did you mean optimizer.lr? A setting of your own",
    "+tracking.uri=x": "+tracking.uri adds a setting that nothing reads. ",
    "model=cmn": f"model=cmn is not one of the choices: {MODELS}. Try ",
    "lr_scheduler=null": "lr_scheduler=null: a group has no null on the command line. Leave it out by '~lr_scheduler'.",
    "modelx=cnn": "modelx is not a setting.",
    "optimizer.lr=fast": f"optimizer.lr must be a number such as {DEFAULT.optimizer.lr}, got 'fast'.",
    "data.batch_size=1.5": f"data.batch_size must be an integer such as {DEFAULT.data.batch_size}, got 1.5.",
    "trainer.detect_anomaly=3": "trainer.detect_anomaly must be true or false, such as False, got 3.",
    "trainer.gradient_clip_val=0": "trainer.gradient_clip_val must be > 0, got 0.",
    "monitor.mode=up": "monitor.mode must be min or max, got up.",
    "data.batch_size=null": "data.batch_size must be a number >= 1, got None.",
    "experiment_name=a/b": "experiment_name names a folder: letters, digits, '.', '_' and '-' only, got 'a/b'.",
    "trainer.devices=0": "trainer.devices must be >= 1, got 0.",
    "trainer.devices=3 data.batch_size=64": "data.batch_size must divide by the 3 devices, got 64. Try ",
    "patience=0": "patience must be >= 1, got 0.",
    "optimizer.lr": "'optimizer.lr' is not a setting. Write key=value, for example optimizer.lr=0.01.",
}


@pytest.mark.parametrize("choice", [*CHOICES, *DATASETS])
def test_every_choice_composes_and_names_things_that_exist(choice: str) -> None:
    settings = dict(flatten(compose("prepare" if choice in DATASETS else "train", [choice])))
    for key, value in settings.items():
        if key.endswith("_target_"):
            assert callable(get_object(value)), key


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES.items())
def test_a_mistake_gets_one_sentence_before_torch_is_imported(typed: str, sentence: str) -> None:
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['train', *{typed.split()!r}]\n"
        "try: runpy.run_module('ml_project.train', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    assert answer.returncode == 1
    assert answer.stdout == "False\n"
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith(f"error: {sentence}")
    assert "write +" not in lines[0]


def test_help_names_every_choice() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "ml_project.train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    for choice in CHOICES:
        group, _, name = choice.partition("=")
        assert any(line.strip().startswith(f"{group}=") and name in line for line in shown.splitlines()), choice


def test_the_tab_key_completes_settings() -> None:
    program = "ml_project.train"
    typed = "ml_project-train optimizer.l"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COMP_LINE": typed}
    command = [sys.executable, "-m", program, "-sc", "query=bash"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert answer.split() == ["optimizer.lr="]


def test_what_prepare_has_found_is_read_and_a_run_keeps_it(run_training: Callable[..., Run]) -> None:
    found = json.loads(Path("data/processed/split.json").read_text())
    wanted = (found["num_classes"], found["input_shape"])
    run = run_training("trainer.max_epochs=1")
    Path("data/other").mkdir()
    Path("data/other/split.json").write_text('{"num_classes": 3, "input_shape": [2, 5, 5]}')
    other = compose("train", ["data.folder=data/other"])
    assert (other.model.num_classes, other.model.input_shape) == (3, [2, 5, 5])

    shutil.rmtree("data")
    assert compose("train").model.num_classes is None
    kept = load_config(run)
    assert "prepared" not in run.config.read_text()
    assert (kept.model.num_classes, kept.model.input_shape) == wanted
    assert load(run).task.model(torch.zeros(1, *wanted[1])).shape == (1, wanted[0])


def test_what_the_pipeline_compares_is_the_same_before_and_after_prepare() -> None:
    command = [sys.executable, "-m", "runengine", "settings", "train"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for file in ("after.yaml", "before.yaml"):
        subprocess.run([*command, file], env=environment, check=True)
        shutil.rmtree("data", ignore_errors=True)
    after = Path("after.yaml").read_text()
    assert "num_classes: '{prepared:num_classes}'" in after
    assert Path("before.yaml").read_text() == after


def test_a_step_without_data_says_what_makes_them() -> None:
    shutil.rmtree("data")
    with pytest.raises(UserError, match=r"^data/processed/train_images.npy does not exist. Run: make data$"):
        own_step(compose("train"), "fp32", torch.device("cpu"), 0.1)


def test_every_limit_is_of_a_setting_that_exists() -> None:
    known = {key for choice in CHOICES for key, _ in flatten(compose("train", [choice]))}
    known |= {key for key, _ in flatten(compose("prepare"))}
    assert LIMITS.keys() <= known


def test_what_the_owners_own_model_refuses_gets_one_sentence_and_nothing_is_written(
    run_training: Callable[..., Run],
) -> None:
    with pytest.raises((InstantiationException, ValueError)) as error:
        run_training("model=cnn", "model.dropout=1")
    what = "model" if asks_for_targets() else "ml_project.model.CNN"
    assert explain(error.value) == f"{what} cannot be built: dropout must be >= 0 and < 1, got 1."
    assert not Path("runs").exists()


TORCH = "torch.optim refuses these settings: "


@pytest.mark.parametrize(("typed", "sentence"), {
    "optimizer.lr=-1": "optimizer.lr must be > 0, got -1.",
    "optimizer.lr=0": "optimizer.lr must be > 0, got 0.",
    "optimizer=sgd optimizer.momentum=1": "optimizer.momentum must be < 1, got 1.",
    "optimizer=sgd optimizer.momentum=-1": f"{TORCH}Invalid momentum value: -1",
    "optimizer.weight_decay=-1": f"{TORCH}Invalid weight_decay value: -1",
}.items())  # fmt: skip
def test_what_an_optimizer_cannot_use_gets_one_sentence_and_nothing_is_written(
    run_training: Callable[..., Run], typed: str, sentence: str
) -> None:
    with pytest.raises((ValueError, UserError)) as error:
        run_training("run_dir=runs/x", *typed.split())
    assert (explain(error.value) or str(error.value)) == sentence
    assert not Path("runs").exists()
