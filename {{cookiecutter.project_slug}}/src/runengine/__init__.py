"""The engine of a project's trainings: it knows how a run is started, recorded and resumed, and nothing of its task.

What stands here is for the project to use; everything below may change with the next version. `CHANGELOG.md` says what
has changed, and `docs/` of the project how each part is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.arrays import StoredArray as StoredArray
    from .data.download import download as download
    from .data.loader import loader as loader
    from .data.loader import suggested_workers as suggested_workers
    from .data.prepared import prepared_folder as prepared_folder
    from .data.prepared import read_prepared as read_prepared
    from .data.prepared import train_command as train_command
    from .data.table_files import is_missing as is_missing
    from .data.table_files import read_csv as read_csv
    from .data.table_files import typed_table as typed_table
    from .data.table_files import write_table as write_table
    from .look import write_look as write_look
    from .program import build_all as build_all
    from .program import main as main
    from .runs.find import find as find
    from .runs.find import find_checkpoint as find_checkpoint
    from .runs.provenance import read_data as read_data
    from .runs.run import Run as Run
    from .runs.run import load_config as load_config
    from .runs.weights import Trained as Trained
    from .runs.weights import load as load
    from .runs.weights import load_weights as load_weights
    from .settings.config import compose as compose
    from .settings.console import listed as listed
    from .settings.errors import UserError as UserError
    from .settings.errors import friendly_errors as friendly_errors
    from .settings.files import atomic_file as atomic_file
    from .settings.files import atomic_write as atomic_write
    from .settings.files import sha256 as sha256
    from .settings.project import choices as choices
    from .settings.start import typed_path as typed_path
    from .tracking.export import save_model as save_model
    from .tracking.registry import load_model as load_model
    from .tracking.results import measure as measure
    from .tracking.results import save_test_metrics as save_test_metrics
    from .training.options import evaluation_trainer as evaluation_trainer
    from .training_run import TrainingRun as TrainingRun

HOMES = {
    "TrainingRun": "training_run", "Run": "runs.run", "find": "runs.find", "find_checkpoint": "runs.find",
    "load_config": "runs.run",
    "read_data": "runs.provenance", "main": "program", "build_all": "program",
    "compose": "settings.config", "choices": "settings.project", "typed_path": "settings.start",
    "UserError": "settings.errors", "friendly_errors": "settings.errors", "listed": "settings.console",
    "atomic_file": "settings.files", "atomic_write": "settings.files", "sha256": "settings.files",
    "prepared_folder": "data.prepared", "read_prepared": "data.prepared", "train_command": "data.prepared",
    "read_csv": "data.table_files", "is_missing": "data.table_files",
    "typed_table": "data.table_files", "write_table": "data.table_files",
    "StoredArray": "data.arrays", "download": "data.download",
    "loader": "data.loader", "suggested_workers": "data.loader",
    "write_look": "look", "save_model": "tracking.export", "load_model": "tracking.registry",
    "save_test_metrics": "tracking.results", "measure": "tracking.results",
    "evaluation_trainer": "training.options",
    "Trained": "runs.weights", "load": "runs.weights", "load_weights": "runs.weights",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Each from its module when it is used first: to import all of them takes seconds."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
    except ImportError:
        importlib.import_module(".manifest", __name__).exit_if_incomplete()
        raise
