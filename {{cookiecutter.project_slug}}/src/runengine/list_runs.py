"""The runs and sweeps of this project, each in a line; old ones are deleted here and in MLflow.

    python -m runengine runs                      # make runs
    python -m runengine runs --prune --keep 5     # make runs ARGS="--prune --keep 5"

`--prune` shows what it would delete, and asks. Of each experiment it keeps the newest, the best, what has a name
(`name=...`), what is running, and what MLflow's registry has a model of. The folder of DVC's pipeline is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from .runs.find import best, experiment_of, having, name_of, value_of
from .runs.lock import owner
from .runs.run import RUNS, Run, load_config, read_numbers
from .settings.console import size
from .settings.errors import UserError
from .sweeps.results import print_table
from .tracking import mlflow_client
from .tracking.payload import read_record

OF_DVC = "dvc"  # the folder in runs/ of the stages in dvc.yaml
DELETED = ".deleted-"  # how the name of a folder begins whose deletion was interrupted
KEEP = 10


@dataclass
class Entry:
    """A folder in `runs/<experiment>/`: a run, or a sweep with its runs."""

    run: Run

    @cached_property
    def runs(self) -> list[Run]:
        """Those inside, itself among them if it is none of a sweep's."""
        return having(Run.starts, self.run.folder)

    @property
    def of_dvc(self) -> bool:
        """Is it what a stage of `dvc.yaml` has made?"""
        return RUNS / OF_DVC in self.run.folder.parents

    @cached_property
    def state(self) -> str:
        if any(each.lock.exists() and owner(each) is not None for each in {self.run, *self.runs}):
            return "running"
        if self.run.is_sweep():
            trained = [each for each in self.runs if not each.is_sweep()]
            return f"{sum(each.finished() for each in trained)} of {len(trained)} finished"
        if self.run.finished():
            return "finished"
        return "failed" if self.run.error.exists() else "unfinished"

    @cached_property
    def num_bytes(self) -> int:
        return sum(file.lstat().st_size for file in self.run.folder.rglob("*") if not file.is_dir())

    @cached_property
    def mlflow_ids(self) -> list[str]:
        return [found for each in dict.fromkeys([self.run, *self.runs]) if (found := each.mlflow_id())]


def entries() -> dict[str, list[Entry]]:
    """Those of each experiment, the oldest first."""
    found: dict[str, list[Entry]] = {}
    for run in sorted({*having(Run.starts), *having(Run.sweep)}, key=_started_at):
        being_deleted = any(part.startswith(DELETED) for part in run.folder.parts)
        if not being_deleted and not Run(run.folder.parent).is_sweep():
            found.setdefault(experiment_of(run), []).append(Entry(run))
    return dict(sorted(found.items()))


def _started_at(run: Run) -> float:
    """In seconds since 1970; when its folder was changed, where that is not known."""
    with suppress(KeyError, IndexError, ValueError):
        return datetime.fromisoformat(run.read_starts()[0]["started_at"]).timestamp()
    return next(file.stat().st_mtime for file in (run.starts, run.sweep) if file.is_file())


def show(found: Sequence[Entry]) -> None:
    """A table of the runs of an experiment; the best is marked."""
    chosen = _best(found)
    metric = load_config(chosen).monitor.metric if chosen else None
    rows: list[dict[str, Any]] = []
    for entry in found:
        row: dict[str, Any] = {"run": entry.run.folder.as_posix(), "state": entry.state, "size": size(entry.num_bytes)}
        if chosen in entry.runs:
            row[""] = "best"
        if top := _best([entry]):
            row |= {"epoch": _epoch(top), str(metric): value_of(top, metric)}
        rows.append(row)
    print_table(["run", "state", "epoch", *([str(metric)] if metric else []), "size", ""], rows)


def _epoch(run: Run) -> str:
    """The best one, counted from 1 as while it was trained."""
    return f"{read_numbers(run.metrics).get('epoch', 0) + 1:.0f}"


def _best(found: Sequence[Entry]) -> Run | None:
    try:
        return best([run for entry in found for run in entry.runs if run.finished()])
    except UserError:
        return None


def old(found: Sequence[Entry], keep: int) -> list[Entry]:
    """What `--prune` deletes of an experiment, but for what MLflow's registry has a model of."""
    chosen = _best(found)
    return [
        entry
        for entry in found[: max(0, len(found) - keep)]
        if not (entry.of_dvc or name_of(entry.run) or entry.state == "running" or chosen in entry.runs)
    ]


def served(entry: Entry) -> bool:
    """True if a version of a registered model is of one of these runs.

    Raises:
        UserError: MLflow does not answer.
    """
    uri = _store(entry)
    try:
        return any(
            mlflow_client.mlflow_client(uri).search_model_versions(f"run_id = '{run_id}'")
            for run_id in entry.mlflow_ids
        )
    except Exception as error:
        raise UserError(mlflow_client.trouble(uri, error)) from error


def _store(entry: Entry) -> str:
    """The address of the MLflow that knows these runs; empty where none does."""
    return (read_record(entry.run).uri or "") if entry.mlflow_ids else ""


def delete(entry: Entry) -> None:
    """Here and in MLflow. There first: what is still here can be deleted again.

    Raises:
        UserError: MLflow did not take it, and nothing was deleted here.
    """
    uri = _store(entry)
    known = [run_id for run_id in entry.mlflow_ids if _delete_in_mlflow(uri, run_id)]
    if known and uri.startswith("sqlite:"):  # MLflow only marks them; a server's owner has `mlflow gc` as well
        command = ["-m", "mlflow", "gc", "--backend-store-uri", uri, "--run-ids", ",".join(known)]
        if mlflow_client.run_python(*command, MLFLOW_TRACKING_URI=uri) != 0:
            raise UserError(f"MLflow could not delete the files of {entry.run.folder} (its message stands above).")
    gone = entry.run.folder.with_name(DELETED + entry.run.folder.name)
    entry.run.folder.rename(gone)
    shutil.rmtree(gone)


def _delete_in_mlflow(uri: str, run_id: str) -> bool:
    """False if it does not know this run."""
    try:
        client = mlflow_client.mlflow_client(uri)
        if client.get_run(run_id).info.lifecycle_stage == "active":
            client.delete_run(run_id)
    except Exception as error:
        if mlflow_client.is_absent(error):
            return False
        raise UserError(mlflow_client.trouble(uri, error)) from error
    return True


def prune(found: Sequence[Entry], *, sure: bool) -> None:
    """Show these, ask, delete.

    Raises:
        UserError: nobody is there to answer.
    """
    for left in RUNS.rglob(f"{DELETED}*"):
        shutil.rmtree(left)
    found = [entry for entry in found if not served(entry)]
    if not found:
        print("nothing to delete")
        return
    for entry in found:
        print(f"{entry.run.folder}  {entry.state}, {size(entry.num_bytes)}")
    what = f"these {len(found)} runs" if len(found) > 1 else "this run"
    total = size(sum(entry.num_bytes for entry in found))
    if not sure:
        if not sys.stdin.isatty():
            raise UserError(f"nobody is here to say whether {what} ({total}) may be deleted. Add --yes.")
        answer = ""
        with suppress(EOFError):
            answer = input(f"Delete {what}, {total}, here and in MLflow? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return
    for entry in found:
        delete(entry)
        print(f"deleted {entry.run.folder}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runengine runs", description="List runs, and delete old ones.")
    parser.add_argument("--prune", action="store_true", help="delete old ones, here and in MLflow, after a question")
    parser.add_argument("--keep", type=int, default=KEEP, help=f"so many of each experiment stay; without it {KEEP}")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    if arguments.keep < 1:
        parser.error("--keep must be 1 or more")
    there = entries()
    if not there:
        raise UserError(f"there is no run in {RUNS.resolve()}. Run: make train")
    if arguments.prune:
        prune([entry for found in there.values() for entry in old(found, arguments.keep)], sure=arguments.yes)
        return
    for number, (experiment, found) in enumerate(there.items()):
        print(("\n" if number else "") + experiment)
        show(found)
