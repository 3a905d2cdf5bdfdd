"""What was measured on the test split, into the run's folder and to MLflow."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping

from ..runs.run import Run, load_config
from ..settings import process
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
    uri = load_config(run).tracking.mlflow_uri
    if not (uri and run.finished()):
        return
    note(run, "FINISHED")
    try:
        send_all(run, uri)
    except Exception as error:
        why = mlflow_client.why(error)
        print(f"warning: MLflow did not get this ({why}). Send it later: make sync", file=sys.stderr)
