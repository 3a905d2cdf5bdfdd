"""What was measured on the test split, into the run's folder and to MLflow."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping

from ..compat import import_lightning
from ..runs.find import find
from ..runs.run import Run, load_config
from ..settings import process
from ..settings.errors import friendly_errors
from ..settings.files import atomic_write
from . import mlflow_client, payload
from .sync import note, send_all


def save_test_metrics(run: Run, metrics: Mapping[str, float]) -> None:
    """Write `test_metrics.json`, and send them to the run in MLflow; if that fails, `make sync` does later.

    Of several processes of one run the first does it.

    Args:
        run: whose best checkpoint was measured.
        metrics: by their names, such as `test/loss`.
    """
    from ..runs.weights import read_checkpoint

    if process.rank() != 0:
        return
    atomic_write(run.test_metrics, json.dumps(dict(metrics), indent=2) + "\n")
    step = int(read_checkpoint(run.best)["global_step"])
    rows = payload.read_rows(run)
    known = {(name, row["step"], value) for row in rows for name, value in row["metrics"].items()}
    new = {name: value for name, value in metrics.items() if (name, step, value) not in known}
    if new:
        payload.add_row(run, step, new, int(time.time() * 1000))
    send_again(run)


def send_again(run: Run) -> None:
    """Send what came into the folder after the run was finished; if that fails, `make sync` does later."""
    uri = load_config(run).tracking.mlflow_uri
    if not (uri and run.finished()):
        return
    note(run, "FINISHED")
    try:
        send_all(run, uri)
    except Exception as error:
        why = mlflow_client.why(error)
        print(f"warning: MLflow did not get this ({why}). Send it later: make sync", file=sys.stderr)


def measure(evaluate: Callable[[Run], Mapping[str, float]], say: Callable[[Mapping[str, float]], str]) -> None:
    """What `python -m my_project.evaluate [run]` does: find the run, measure it, print the result and where to look.

    Args:
        evaluate: measures a run; returns its metrics.
        say: the result in words, from the metrics.
    """
    with friendly_errors():
        module = sys.modules["__main__"].__spec__
        parser = argparse.ArgumentParser(
            prog=f"python -m {module.name if module else evaluate.__module__}",
            description="Measure a run's best checkpoint on the test split.",
        )
        parser.add_argument("run", nargs="?", help="the folder of a run, @last or @best; without it the newest")
        run = find(parser.parse_args().run)
        import_lightning()
        print(say(evaluate(run)))
        print(f"run folder     {os.path.relpath(run.folder)}")
        print("see it         make mlflow")
