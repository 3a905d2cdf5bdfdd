"""Runs by what they are called: a folder, the id in MLflow, `@last`, `@best`, or `@wider` after `name=wider`."""

from __future__ import annotations

import math
import re
from pathlib import Path

from ..settings import project
from ..settings.console import listed
from ..settings.errors import UserError
from ..settings.files import read_json
from .run import RUNS, File, Run, load_config, read_numbers

NEW_NAME = re.compile(r"(?:sweep-)?\d{8}-\d{6}\.\d{6}-(?:(?P<name>.+?)-)??(?:[0-9a-f]{6}|job\S+-[0-9a-f]{6})")
UNFINISHED = "unfinished"  # run_dir=unfinished: the newest run that can be resumed
TYPED = re.compile(r"(init_from|run_dir|sweep_dir)=(@\S+)")


def having(file: File, root: Path = RUNS) -> list[Run]:
    """The runs that have this file, such as `Run.best`; the one whose file is newest comes last."""
    found = sorted(root.rglob(file.name), key=lambda each: each.stat().st_mtime)
    return [Run(each.parents[file.name.count("/")]) for each in found]


def find(folder: str | None) -> Run:
    """The run in this folder, with this MLflow id, or of this name; without one, that with the newest best checkpoint.

    Args:
        folder: also `@last`, `@best` (see `best`), or `@wider`: the newest run with `name=wider`.

    Raises:
        UserError: there is none, or it has no checkpoint yet.
    """
    runs = project.from_root(RUNS)
    if folder is None:
        folder = "@last"
    if folder.startswith("@"):
        return named(folder, having(Run.best, runs))
    run = Run(Path(folder) if Path(folder).exists() else project.from_root(Path(folder)))
    if not run.folder.exists() and re.fullmatch("[0-9a-f]{32}", folder):
        known = [each for each in having(Run.mlflow_run_id, runs) if each.mlflow_id() == folder]
        if not known:
            raise UserError(f"no run in {RUNS}/ has the MLflow id {folder}. Give the folder of a run.")
        run = known[0]
    _refuse_strange(run, folder)
    if not run.best.is_file():
        raise UserError(f"{folder} has no checkpoint yet. Run: {run.resume_command()}")
    return run


def find_checkpoint(name: Run | Path | str | None) -> tuple[Run, Path]:
    """The run of this name, and its best checkpoint; or the run of a checkpoint, and this one.

    What `@last` means may be another run a second later: ask once, and load both by what is returned.

    Raises:
        UserError: as `find`; or there is no such checkpoint.
    """
    if isinstance(name, Run):
        return name, name.best
    if name is None or not str(name).endswith(".ckpt"):
        run = find(str(name) if name else None)
        return run, run.best
    file = Path(name) if Path(name).exists() else project.from_root(Path(name))
    if not file.is_file():
        raise UserError(f"{name} does not exist. Give a checkpoint, or the folder of a run.")
    run = Run(file.parent.parent)
    _refuse_strange(run, str(run.folder))
    return run, file


def _refuse_strange(run: Run, name: str) -> None:
    if not run.config.is_file():
        raise UserError(f"{name} is not the folder of a run: it has no config.yaml. Look into {RUNS}/.")


def named(name: str, runs: list[Run]) -> Run:
    """The run that `@...` means among these, of which the newest stands last.

    Raises:
        UserError: there is none.
    """
    if not runs:
        raise UserError(f"there is no trained run in {_where()}. Run: make train")
    return best(runs) if name == "@best" else _by_name(name, runs, "run", ["@best", "@last"])


def _by_name(name: str, runs: list[Run], kind: str, others: list[str]) -> Run:
    if name == "@last":
        return runs[-1]
    names = {f"@{each}": run for run in runs if (each := name_of(run))}  # the newest of several
    if name not in names:
        raise UserError(f"no {kind} in {_where()} is called {name}. There are: {listed([*others, *sorted(names)])}.")
    return names[name]


def _where() -> Path:
    return project.from_root(RUNS).resolve()


def with_folder(argument: str) -> str:
    """`init_from=@best` with the folder in place of the name: every run of a sweep, and its record, means the same one.

    Raises:
        UserError: no run, or sweep, is called so.
    """
    if argument == f"run_dir={UNFINISHED}" and (sweep := _unfinished_elsewhere()):
        print(f"resuming sweep {sweep.folder}, whose runs were started somewhere else", flush=True)
        return f"sweep_dir={sweep.folder.as_posix()}"
    found = TYPED.fullmatch(argument)
    if not found:
        return argument
    key, name = found.groups()
    if key != "sweep_dir":
        run = named(name, having(Run.best if key == "init_from" else Run.starts))
    elif sweeps := having(Run.sweep):
        run = _by_name(name, sweeps, "sweep", ["@last"])  # a sweep has a best run, and is none
    else:
        raise UserError(f"there is no sweep in {_where()}. To start one, leave sweep_dir out.")
    return f"{key}={run.folder.as_posix()}"


def _unfinished_elsewhere() -> Run | None:
    """The sweep whose runs an engine has, if no other run that is not finished was started after it."""
    for run in reversed(having(Run.starts)):
        sweep = run if run.is_sweep() else Run(run.folder.parent)
        if sweep.launch_record.is_file():
            record, finished = read_json(sweep.launch_record), list(sweep.folder.glob(f"*/{Run.metrics.name}"))
            if len(finished) < len(record["jobs"]) and not record.get("dry_run"):
                return sweep
        elif run.config.is_file() and not run.finished():
            return None
    return None


def name_of(run: Run) -> str | None:
    """What `name=...` was typed for it, or for its sweep."""
    found = NEW_NAME.fullmatch(run.folder.name) or NEW_NAME.fullmatch(run.folder.parent.name)
    return found["name"] if found else None


def best(runs: list[Run]) -> Run:
    """The finished run with the best value of `monitor.metric`, of the experiment of the newest finished one.

    Raises:
        UserError: none is finished, or none has that metric.
    """
    finished = [run for run in runs if run.finished()]
    if not finished:
        raise UserError(f"there is no finished run in {_where()}. Run: make train")
    cfg = load_config(finished[-1])
    metric, sign = cfg.monitor.metric, 1 if cfg.monitor.mode == "min" else -1
    values = [(sign * value_of(run, metric), run) for run in finished if experiment_of(run) == cfg.experiment_name]
    found = [(value, run) for value, run in values if not math.isnan(value)]
    if not found:
        raise UserError(f"no run of {cfg.experiment_name} has a value of {metric}. Give the folder of a run.")
    return min(found, key=lambda each: each[0])[1]


def experiment_of(run: Run) -> str:
    """By its settings, of which there may be hundreds to look at; by its folder where it has none."""
    text = run.config.read_text(encoding="utf-8", errors="replace") if run.config.is_file() else ""
    found = re.search(r"^experiment_name: (\S+)$", text, re.MULTILINE)
    return found[1].strip("'\"") if found else run.folder.parent.name


def value_of(run: Run, metric: str | None) -> float:
    """Of this metric in its best epoch; NaN if it has none."""
    return float(read_numbers(run.metrics).get(str(metric), math.nan))
