"""MLflow's pages in the browser.

    python -m runengine mlflow --port 5001    # make mlflow PORT=5001

They show the runs of this project's database.
"""

from __future__ import annotations

import argparse
import os
import sys

from .mlflow_client import refuse_taken_port, run_python, take_artifacts_along

PORT = 5000
DATABASE = "sqlite:///mlflow.db"


def show(port: int) -> int:
    """Serve them on this machine until that is stopped, unless the runs are on a server; returns the exit status.

    Raises:
        UserError: the port is taken.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DATABASE
    if uri.startswith("http"):
        print("MLflow: your runs are on the server that MLFLOW_TRACKING_URI names")
        return 0
    refuse_taken_port("127.0.0.1", port)
    take_artifacts_along(uri)
    print(f'MLflow: http://127.0.0.1:{port}   (choose "Model training" at the top left; Ctrl-C ends it)', flush=True)
    arguments = ["server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--workers", "1"]  # of 250 MB, which take 4 s to start; by default it is four
    return run_python("-m", "mlflow", *arguments, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runengine mlflow", description="Show runs in the browser.")
    parser.add_argument("--port", type=int, default=PORT)
    sys.exit(show(parser.parse_args().port))
