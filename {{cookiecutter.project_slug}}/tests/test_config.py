"""The configuration: every choice composes, every mistake gets one sentence before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hydra.utils import get_object

from ml_project.config import CONF, LIMITS, compose, flatten

FILES = [file for file in sorted(CONF.glob("*/*.yaml")) if file.parent.name != "source"]
CHOICES = [f"{file.parent.name}={file.stem}" for file in FILES]
SOURCES = [f"source={file.stem}" for file in sorted(CONF.glob("source/*.yaml"))]  # of prepare

DEFAULT = compose("train")
MODELS = ", ".join(sorted(file.stem for file in CONF.glob("model/*.yaml")))
MISTAKES = {
    "optim.lrr=0.1": "optim.lrr is not a setting. Did you mean optim.lr? (To add a new key, write +optim.lrr=...)",
    "model=cmn": f"model=cmn is not one of the choices: {MODELS}. Try ",
    "modelx=cnn": "modelx is not a setting.",
    "optim.lr=fast": f"optim.lr must be a number such as {DEFAULT.optim.lr}, got 'fast'.",
    "data.batch_size=1.5": f"data.batch_size must be a whole number such as {DEFAULT.data.batch_size}, got 1.5.",
    "trainer.detect_anomaly=3": "trainer.detect_anomaly must be true or false, such as False, got 3.",
    "optim.lr=-1": "optim.lr must be > 0, got -1.",
    "model.dropout=1": "model.dropout must be >= 0 and < 1, got 1.",
    "data.batch_size=null": "data.batch_size must be a number >= 1, got None.",
    "experiment_name=a/b": "experiment_name names a folder: letters, digits, '.', '_' and '-' only, got 'a/b'.",
    "trainer.devices=0": "trainer.devices must be >= 1, got 0.",
    "trainer.devices=3 data.batch_size=64": "data.batch_size must divide by the 3 devices, got 64. Try ",
    "patience=0": "patience must be >= 1, got 0.",
    "optim.lr": "'optim.lr' is not a setting. Write key=value, for example optim.lr=0.01.",
}


@pytest.mark.parametrize("choice", [*CHOICES, *SOURCES])
def test_every_choice_composes_and_names_things_that_exist(choice: str) -> None:
    settings = dict(flatten(compose("prepare" if choice in SOURCES else "train", [choice])))
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
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent.parent)}
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    assert answer.returncode == 1
    assert answer.stdout == "False\n"
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith(f"error: {sentence}")


def test_help_names_every_choice() -> None:
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent.parent)}
    command = [sys.executable, "-m", "ml_project.train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    for choice in CHOICES:
        group, _, name = choice.partition("=")
        assert any(line.strip().startswith(f"{group}=") and name in line for line in shown.splitlines()), choice


def test_the_tab_key_completes_settings() -> None:
    program = "ml_project.train"
    typed = "ml_project-train optim.l"
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent.parent), "COMP_LINE": typed}
    command = [sys.executable, "-m", program, "-sc", "query=bash"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert answer.split() == ["optim.lr="]


def test_every_limit_is_of_a_setting_that_exists() -> None:
    known = {key for choice in CHOICES for key, _ in flatten(compose("train", [choice]))}
    known |= {key for key, _ in flatten(compose("prepare"))}
    assert LIMITS.keys() <= known
