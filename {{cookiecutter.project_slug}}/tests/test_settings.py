"""Every choice of the settings can be composed, and names classes and functions that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

import runengine

import ml_project

PACKAGE = Path(str(ml_project.__file__)).parent
SCRIPTS = sorted(PACKAGE.glob("conf/*.yaml"))


def choices() -> Iterator[tuple[str, str]]:
    """Of each script with settings the groups that it names, with every file of `conf/` and of the engine."""
    for file in SCRIPTS:
        for entry in yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", []):
            for group in entry if isinstance(entry, dict) else ():
                for name in runengine.choices(group):
                    yield file.stem, f"{group}={name}"


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key == "_target_" else targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


@pytest.mark.parametrize(("script", "choice"), list(choices()))
def test_every_choice_composes_and_names_things_that_exist(
    script: str, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")  # what tracking=server wants
    cfg = runengine.compose(script, [choice])
    for target in targets(OmegaConf.to_container(cfg, resolve=True)):
        assert callable(get_object(target)), target
