"""Hydra accepts sweepers from this place only, and imports it at every start; the work is done in ml_project.sweep."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Sweep(Sweeper):
    config: DictConfig
    hydra_context: HydraContext

    def __init__(self, **_: Any) -> None:
        """Takes the settings of Hydra's own sweeper, which it replaces, and leaves them alone."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from ml_project.sweep import sweep

        sweep(self.hydra_context, self.task_function, self.config, arguments)
