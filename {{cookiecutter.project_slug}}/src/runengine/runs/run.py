"""A run is its folder: configuration, checkpoints, log, and the id of its MLflow run.

    runs/<experiment>/<start to the microsecond>-<random>/
        run.json         the format of this folder, and the module that trains here
        config.yaml      what was composed; the checkpoints are read with it
        checkpoints/     last.ckpt to resume from, best.ckpt to use, fingerprint.json: their settings, code and data
        starts.jsonl  environment.json  data.json  uncommitted.diff    how, with what and from which code it was started
        history.csv  metrics.jsonl  train.log  mlflow_run_id  tensorboard/  model/
        metrics.json     the best epoch, and the id in MLflow; written last: a folder that has it is finished
        error.txt        why it failed

Training in a folder that holds `last.ckpt` resumes it, in the same MLflow run. One process at a time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..settings import process, project
from ..settings.config import compose, from_root
from ..settings.errors import UserError
from ..settings.files import atomic_file, atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RUNS = Path("runs")
FORMAT = 1  # of a run's folder


@dataclass(unsafe_hash=True)
class Run:
    """The folder, and the only home of the names of its files.

    Args:
        folder: of the run; it need not exist yet.
        starts_over: why the folder holds another run, which is deleted when this one starts; empty if it is kept.
    """

    folder: Path
    starts_over: str = ""

    @property
    def about(self) -> Path:
        return self.folder / "run.json"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def fingerprint(self) -> Path:
        return self.checkpoints / "fingerprint.json"  # among them: DVC brings both or none

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def test_metrics(self) -> Path:
        return self.folder / "test_metrics.json"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def model_refused(self) -> Path:
        return self.folder / "model_refused.txt"  # why there is no model

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def data(self) -> Path:
        return self.folder / "data.json"

    @property
    def diff(self) -> Path:
        return self.folder / "uncommitted.diff"

    @property
    def error(self) -> Path:
        return self.folder / "error.txt"

    @property
    def pruned(self) -> Path:
        return self.folder / "pruned"  # there if a search has ended it early

    @property
    def trial(self) -> Path:
        return self.folder / "trial.json"  # of a search

    @property
    def mlflow_run_id(self) -> Path:
        return self.folder / "mlflow_run_id"

    @property
    def starts(self) -> Path:
        return self.folder / "starts.jsonl"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    def end_of(self, phase: int) -> Path:
        """The last checkpoint of a call of `fit` after which the run has called it again; counted from 0."""
        return self.checkpoints / f"phase-{phase}.ckpt"

    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from, if there is one."""
        return self.last if self.last.exists() and not self.starts_over else None

    def module(self) -> str:
        """Of the script that trains here: `my_project.train`.

        Raises:
            UserError: the folder is of a newer engine than this.
        """
        try:
            about = json.loads(self.about.read_text(encoding="utf-8"))
            number, module = int(about["format"]), str(about["module"])
        except (OSError, ValueError, KeyError, TypeError):
            return project.current().module  # not started yet, or damaged
        if number > FORMAT:
            raise UserError(
                f"{self.folder} was written by a newer engine: its format is {number}, and this engine reads up to "
                f"{FORMAT}. Update the engine (src/{project.ENGINE}), or use the project that trained it."
            )
        return module

    def resume_command(self) -> str:
        """What DVC has started, it must end as well."""
        return "dvc repro" if "DVC_STAGE" in os.environ else f"python -m {self.module()} run_dir={self.folder}"

    def script(self) -> ModuleType:
        """The module that trains here, imported: with its `build_data` and `build_task`."""
        return importlib.import_module(self.module())

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write a figure into the run's folder; MLflow gets it, too."""
        if process.rank() == 0:
            with atomic_file(self.folder / name) as file:
                figure.savefig(file, dpi=120)

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as CSV into the run's folder; MLflow gets it, too."""
        if process.rank() == 0:
            atomic_write(self.folder / name, table.to_csv(index=False))

    def write_about(self) -> None:
        atomic_write(self.about, json.dumps({"format": FORMAT, "module": project.current().module}) + "\n")

    def test_module(self) -> str | None:
        """The owner's `evaluate`, if there is one."""
        name = f"{self.module().rpartition('.')[0]}.evaluate"
        return name if importlib.util.find_spec(name) else None

    def test_command(self) -> str:
        """What measures its best checkpoint on the test split."""
        return f"python -m {self.module().rpartition('.')[0]}.evaluate {self.folder}"

    def mlflow_id(self) -> dict[str, str]:
        """For `dvc exp show`; empty where MLflow has not answered yet."""
        file = self.mlflow_run_id
        return {file.name: file.read_text(encoding="utf-8").strip()} if file.is_file() else {}

    def finished(self) -> bool:
        return self.metrics.is_file() and self.config.is_file()

    def num_starts(self) -> int:
        return len(self.starts.read_text(encoding="utf-8").splitlines()) if self.starts.is_file() else 0


def find(folder: str | None) -> Run:
    """The run in this folder, or with this MLflow id; without one, the run whose best checkpoint is newest.

    Raises:
        UserError: there is none, or it has no checkpoint yet.
    """
    runs = project.from_root(RUNS)
    if folder is None:
        checkpoints = sorted(runs.rglob("checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
        if not checkpoints:
            raise UserError(f"there is no trained run in {runs.resolve()}. Run: make train")
        return Run(checkpoints[-1].parent.parent)
    run = Run(Path(folder) if Path(folder).exists() else project.from_root(Path(folder)))
    if not run.folder.exists() and re.fullmatch("[0-9a-f]{32}", folder):
        ids = (file for file in runs.rglob("mlflow_run_id") if file.read_text(encoding="utf-8").strip() == folder)
        if (file := next(ids, None)) is None:
            raise UserError(f"no run in {RUNS}/ has the MLflow id {folder}. Give the folder of a run.")
        run = Run(file.parent)
    if not run.config.is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml. Look into {RUNS}/.")
    if not run.best.is_file():
        raise UserError(f"{folder} has no checkpoint yet. Run: {run.resume_command()}")
    return run


def load_config(run: Run, *, complete: bool = False) -> DictConfig:
    """The configuration the run was trained with.

    Args:
        run: has one.
        complete: fill in today's defaults of settings that came later, and say so.

    Raises:
        UserError: the file is damaged, or of a newer engine.
    """
    run.module()
    try:
        cfg = OmegaConf.load(run.config)
    except OSError:
        raise
    except Exception:  # what a damaged file raises depends on where it is damaged
        cfg = None
    if not isinstance(cfg, DictConfig) or "trainer" not in cfg:
        raise UserError(f"{run.config} is damaged: it has no `trainer`. Copy it from the run's artifacts in MLflow.")
    if complete:
        defaults = compose(run.module().rpartition(".")[2])
        if added := _fill(cfg, defaults, ""):
            print(
                f"{run.folder} was trained when there was no {', '.join(added)}: today's default is taken.",
                file=sys.stderr,
            )
    return from_root(cfg)


def _fill(cfg: DictConfig, defaults: DictConfig, prefix: str) -> list[str]:
    """Add what is missing; returns the names. A group that is absent was null, and a node of another class differs."""
    added = []
    for key in map(str, defaults):
        if OmegaConf.is_interpolation(defaults, key) or OmegaConf.is_missing(defaults, key):
            continue
        here, default = cfg.get(key), defaults[key]
        if key not in cfg and (prefix or not project.choices(key)):
            OmegaConf.update(cfg, key, default, force_add=True)
            added.append(f"{prefix}{key}")
        elif OmegaConf.is_dict(here) and OmegaConf.is_dict(default) and here.get("_target_") == default.get("_target_"):
            added += _fill(here, default, f"{prefix}{key}.")
    return added


def as_plain(value: Any) -> Any:
    """Lists and dictionaries instead of OmegaConf's own, for what is built from configuration."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
