"""Hydra accepts plugins from this package only, and imports them at every start; the engine does the work."""

from __future__ import annotations

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Settings(SearchPathPlugin):
    """Settings that are not in the project's own conf/ come from the engine's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="runengine", path="pkg://runengine.conf")


class Sweep(Sweeper):
    config: DictConfig
    hydra_context: HydraContext

    def __init__(self, **_: Any) -> None:
        """Accepts the settings of Hydra's own sweeper, which it replaces, and ignores them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from runengine.sweeps.sweep import sweep

        sweep(self.hydra_context, self.task_function, self.config, arguments)
