"""Measure what this machine reaches, and compare it with the limits of its chips and with earlier results.

    python -m runengine bench                           # 20 s on two idle CPU cores
    python -m runengine bench --json today.json         # the figures as a file
    python -m runengine bench --compare A.json B.json   # two such files, row by row
    python -m runengine bench --mlflow                  # also as a run of the experiment `bench`

How to read the table: docs/bench.md. The best figures of each chip are kept in bench.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import project
from ..settings.config import compose
from ..settings.console import first_line
from ..settings.errors import UserError
from ..settings.files import atomic_write
from ..settings.start import typed_path
from .bench_files import COMMAND, HISTORY, compare, keep_best, plain, read_best, result
from .bench_table import table
from .conditions import clock_reasons, conditions, load_average, machine_of
from .verdicts import Machine, Row, judge

if TYPE_CHECKING:
    import torch

    from .plan import Measurement
    from .timing import Reading

BUDGET_S = 0.5  # for each measurement, after a warm-up of 0.15 s
EXPERIMENT = "bench"


def bench(budget_s: float = BUDGET_S, overrides: tuple[str, ...] = ()) -> tuple[list[Row], list[Machine]]:
    """Measure everything, device by device, without limits and verdicts.

    Args:
        budget_s: seconds of each measurement.
        overrides: settings of conf/, for the model and the data that are measured.
    """
    import torch
    from tqdm import tqdm

    from . import all_reduce, own_step, plan, timing

    torch.manual_seed(0)
    cfg = compose(project.current().script, list(overrides))
    found, cpu = plan.devices(), torch.device("cpu")
    todo = [(device, wanted) for device in found for wanted in plan.plan(device, cfg, budget_s)]
    row = Row("host", "loader", f"data loader{own_step.batch_of(cfg)}", "-", "examples_s")
    todo.append((cpu, plan.Measurement(row, lambda: own_step.loading(cfg, budget_s))))
    if len(found) > 1:
        row = Row("all", "all_reduce", f"all-reduce over {len(found)} GPUs, 256 MiB", "fp32", "gb_s")
        over_all = partial(all_reduce.all_reduce, len(found), "cuda", 1 << 28, budget_s)
        todo.append((cpu, plan.Measurement(row, over_all)))
    rows = []
    with tqdm(total=len(todo), leave=False, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for device, wanted in todo:
            bar.set_description(f"{wanted.row.what} {wanted.row.dtype}")
            with timing.using(device):
                rows.append(watched(wanted, device) if wanted.row.kind == "product" else attempt(wanted))
            bar.update()
    return rows, [machine_of(device) for device in found]


def watched(wanted: Measurement, device: torch.device) -> Row:
    """Measure a row that keeps the whole device busy; a clock that was held back meanwhile is noted in it."""
    with clock_reasons(device) as reasons:
        row = attempt(wanted)
    held_back = f"its clock was held back meanwhile: {', '.join(sorted(reasons))}" if reasons else ""
    return replace(row, note="; ".join(filter(None, [row.note, held_back])))


def attempt(wanted: Measurement) -> Row:
    """Measure one row. An error is noted in the row, and the other rows are still measured."""
    from .timing import WrongResult

    row = wanted.row
    try:
        reading: Reading = wanted.measure()
    except UserError as error:
        return replace(row, note=str(error))
    except WrongResult as error:
        return replace(row, verdict="broken", note=str(error))
    except Exception as error:  # libraries, compilers and drivers raise errors of any kind
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in ("out of memory", "allocate memory")):
            return replace(row, note="out of memory")
        return replace(row, verdict="failed", note=first_line(error)[:200])
    if not (math.isfinite(reading.value) and reading.value > 0):
        return replace(row, verdict="broken", note=f"measured {reading.value}")
    row = replace(row, reached=reading.value, spread=reading.spread)
    return replace(row, steps_s=reading.steps_s, flop_each=reading.flop_each)


def track(rows: list[Row], now: dict[str, Any]) -> str:
    """Record the result as a run of the experiment `bench` in MLflow; returns the message for the user.

    Raises:
        UserError: tracking is off, or MLflow did not accept the run.
    """
    from ..tracking import mlflow_client

    script = project.current().script
    uri: str | None = compose(script).tracking.mlflow_uri
    if uri is None:
        raise UserError(f"conf/{script}.yaml has tracking: off, so nothing was sent to MLflow. Set tracking: mlflow.")
    try:
        client = mlflow_client.mlflow_client(uri)
        from mlflow.entities import Metric, Param

        experiment_id = mlflow_client.experiment_id(client, uri, EXPERIMENT)
        run_id = client.create_run(experiment_id, run_name=", ".join(now["chips"])[:200]).info.run_id
        now_ms = int(time.time() * 1000)
        metrics = [Metric(_metric(row), row.reached, now_ms, 0) for row in rows if row.reached is not None]
        client.log_batch(run_id, metrics, [Param(name, plain(value)) for name, value in now.items()])
        client.log_dict(run_id, result(rows, now), "bench_result.json")
        client.set_terminated(run_id)
    except Exception as error:
        raise UserError(mlflow_client.trouble(uri, error)) from error
    return f"recorded in MLflow: experiment {EXPERIMENT}, run {run_id}"


def _metric(row: Row) -> str:
    """MLflow takes letters, digits and `_ - . space : /` in a name."""
    letters = "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in row.key)
    return f"{row.device.replace(':', '')}/{letters}/{row.unit}"


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Measure what this machine reaches.")
    parser.add_argument("--json", type=typed_path, metavar="FILE", help="write the figures into this file as well")
    parser.add_argument("--mlflow", action="store_true", help=f"record them in MLflow, experiment {EXPERIMENT}")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two such files")
    arguments = parser.parse_args()
    if arguments.compare:
        print(compare(*arguments.compare))
        return
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(f"--json: the folder {arguments.json.parent} does not exist. Create it, or name another.")
    load_average_1min = load_average()  # read before the bench itself loads the machine
    warnings: list[str] = []
    try:
        best: dict[str, Any] | None = read_best(HISTORY)
    except UserError as error:
        best = None
        warnings.append(str(error))
    rows, machines = bench()
    now = conditions(machines, load_average_1min)
    rows = judge(rows, machines, best or {})
    print(table(rows, machines, now))
    print()
    if arguments.json:
        atomic_write(arguments.json, json.dumps(result(rows, now), indent=1) + "\n")
        print(f"wrote {arguments.json}")
    if best is not None and (num_better := keep_best(HISTORY, best, rows, machines, now)):
        print(f"wrote {HISTORY}: {num_better} of {len(rows)} figures are the best of this chip so far")
    if arguments.mlflow:
        try:
            print(track(rows, now))
        except UserError as error:
            warnings.append(str(error))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
