"""A run is its folder: configuration, checkpoints, log, and the id of its MLflow run.

runs/<experiment>/<start to the microsecond>-<random>/
    run.json         the format of this folder, and the module that trains here
    config.yaml      what was composed; the checkpoints are read with it
    checkpoints/     last.ckpt to resume from, best.ckpt to use, fingerprint.json: their settings, code and data
    starts.jsonl  environment.json  data.json  uncommitted.diff    how, with what and from which code it was started
    history.csv  metrics.jsonl  train.log  error.txt  mlflow_run_id  tensorboard/  model/
    metrics.json     the best epoch, and the id in MLflow; written last: a folder that has it is finished
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, overload

from omegaconf import DictConfig, OmegaConf

from ..settings import process, project
from ..settings.config import compose, from_root
from ..settings.errors import UserError
from ..settings.files import atomic_file, atomic_write, parse_lines, read_json
from ..settings.targets import refuse_strangers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RUNS = Path("runs")
FORMAT = 1  # of a run's folder
REPORT = "RUNENGINE_REPORT"  # names a file that gets the content of metrics.json, where the folder is not seen


class File:
    """The name of a file in a run's folder: `run.config` is its path, `Run.config.name` the name itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, run: None, owner: type) -> File: ...

    @overload
    def __get__(self, run: Run, owner: type) -> Path: ...

    def __get__(self, run: Run | None, owner: type) -> File | Path:
        return self if run is None else run.folder / self.name


@dataclass(unsafe_hash=True)
class Run:
    """The folder, and the only home of the names of its files. That of a sweep has some of them, too.

    Args:
        folder: of the run; it need not exist yet.
        starts_over: why the folder holds another run, which is deleted when this one starts; empty if it is kept.
        export_format: in which `save_model` writes its model.
    """

    folder: Path
    starts_over: str = ""
    export_format: str = field(default="mlflow", compare=False)

    about = File("run.json")
    config = File("config.yaml")
    checkpoints = File("checkpoints")
    last = File("checkpoints/last.ckpt")
    best = File("checkpoints/best.ckpt")
    fingerprint = File("checkpoints/fingerprint.json")  # among them: DVC brings both or none
    log = File("train.log")
    history = File("history.csv")
    metrics = File("metrics.json")
    test_metrics = File("test_metrics.json")
    model = File("model")  # for MLflow: made when it is asked for, as all exports
    exports = File("exports.json")  # what the comparison of each exported model with the run's own has found
    look = File("look.html")  # the test split with the answers, for a browser
    model_card = File("model-card.md")
    data_sheet = File("data-sheet.md")
    starts = File("starts.jsonl")
    environment = File("environment.json")
    data = File("data.json")
    diff = File("uncommitted.diff")
    error = File("error.txt")
    seconds = File("seconds")  # which a run of a sweep took
    trial = File("trial.json")  # of a search
    pruned = File("pruned")  # there if a search has ended it early
    metric_rows = File("metrics.jsonl")
    mlflow_run_id = File("mlflow_run_id")
    mlflow_sent = File("mlflow_sent.json")  # which files MLflow has
    unsent = File("unsent.json")  # there while MLflow has not got everything: the run's status, and what was in the way
    tensorboard = File("tensorboard")
    sweep = File("sweep.yaml")  # there if this is the folder of a sweep
    sweep_table = File("sweep.csv")
    seeds_table = File("seeds.csv")
    study = File("optuna.log")
    code = File("code")  # what the jobs of Slurm import
    slurm = File("slurm")  # and what they print
    launch = File("launch")  # of a sweep: the jobs that were started somewhere else, as their engine has them
    launch_record = File("launch.json")
    job_log = File("job.log")  # what such a job has printed, if it failed
    lock = File(".lock")

    def end_of(self, phase: int) -> Path:
        """The last checkpoint of a call of `fit` after which the run has called it again; counted from 0."""
        return self.checkpoints / f"phase-{phase}.ckpt"

    def stacks(self, rank: int | str) -> Path:
        """What this process of it was doing when it hung; `*` for all."""
        return self.folder / f"hang-{rank}.txt"

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

    def own_module(self) -> str:
        """The same of this project: what a folder from elsewhere names is not imported."""
        return f"{project.current().package}.{self.module().partition('.')[2]}"

    def resume_command(self) -> str:
        """What DVC has started, it must end as well."""
        return "dvc repro" if "DVC_STAGE" in os.environ else f"python -m {self.module()} run_dir={self.folder}"

    def script(self) -> ModuleType:
        """The module that trains here, imported: with its `build_data` and `build_task`."""
        return importlib.import_module(self.own_module())

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
        """The owner's `evaluate_<script>`, for runs of this script alone, or `evaluate`; None if there is neither."""
        package, _, script = self.own_module().rpartition(".")
        names = (f"{package}.evaluate_{script}", f"{package}.evaluate")
        return next((name for name in names if importlib.util.find_spec(name)), None)

    def test_command(self) -> str:
        """What measures its best checkpoint on the test split."""
        evaluate = (self.test_module() or "evaluate").rpartition(".")[2]
        return f"python -m {self.module().rpartition('.')[0]}.{evaluate} {self.folder}"

    def export_module(self) -> str:
        """The owner's `predict`; for a script with an `evaluate_<script>` of its own only `predict_<script>`."""
        package, _, script = self.own_module().rpartition(".")
        own = (f"{package}.predict_{script}", f"{package}.evaluate_{script}")
        return own[0] if any(importlib.util.find_spec(name) for name in own) else f"{package}.predict"

    def mlflow_id(self) -> str | None:
        """None where MLflow has not answered yet, or the file is damaged."""
        text = self.mlflow_run_id.read_bytes().strip() if self.mlflow_run_id.is_file() else b""
        return text.decode() if re.fullmatch(rb"[0-9a-f]{32}", text) else None

    def finished(self) -> bool:
        return self.metrics.is_file() and self.config.is_file()

    def report(self) -> None:
        """Copy the result to where whoever started this process reads it, if the folder is not seen there."""
        if place := os.environ.get(REPORT):
            Path(place).write_text(self.metrics.read_text(encoding="utf-8"), encoding="utf-8")

    def is_sweep(self) -> bool:
        return self.sweep.is_file()

    def num_starts(self) -> int:
        return len(self.read_starts())

    def read_starts(self) -> list[dict[str, Any]]:
        """When, where and how it was started, each time."""
        return parse_lines(self.starts, self.starts.read_bytes().splitlines() if self.starts.is_file() else [])


def read_numbers(file: Path) -> dict[str, float]:
    """The metrics in `metrics.json` or `test_metrics.json`, with `epoch` and `step`; none where there is no file."""
    return {name: value for name, value in read_json(file).items() if isinstance(value, int | float)}


def load_config(run: Run, *, complete: bool = False) -> DictConfig:
    """The configuration the run was trained with.

    Args:
        run: has one.
        complete: they will be built; fill in today's defaults of settings that came later, and say so.

    Raises:
        UserError: the file is damaged, or of a newer engine, or would build what this project does not.
    """
    run.module()
    try:
        cfg = OmegaConf.load(run.config)
    except OSError:
        raise
    except Exception:  # what a damaged file raises depends on where it is damaged
        cfg = None
    if not isinstance(cfg, DictConfig) or "trainer" not in cfg:
        raise UserError(f"{run.config} is damaged: it has no `trainer`. {_how_to_have_config(run)}")
    if complete:
        defaults = compose(run.module().rpartition(".")[2])
        if added := _fill(cfg, defaults, ""):
            _say_once(f"{run.folder} was trained when there was no {', '.join(added)}: today's default is taken.")
        refuse_strangers(cfg, str(run.config))
    return from_root(cfg)


def _how_to_have_config(run: Run) -> str:
    """By what the first start typed, unless a later one typed other settings; MLflow has it of runs that ended."""
    commands = [shlex.split(str(start.get("command", ""))) for start in run.read_starts()]
    first = commands[0] if commands else []
    later = {word for command in commands[1:] for word in command[3:] if not word.startswith("run_dir=")}
    if first[:2] != ["python", "-m"] or later - set(first) or Run(run.folder.parent).is_sweep():
        return "Copy it from the run's artifacts in MLflow, or train again."
    return f"Make it again: {shlex.join(first)} --cfg job > {shlex.quote(str(run.config))}"


@cache
def _say_once(sentence: str) -> None:
    """A command may load a run several times."""
    print(sentence, file=sys.stderr)


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
