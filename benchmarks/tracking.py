"""What a failing MLflow server does to a training, and what tracking costs.

    make demo
    python benchmarks/tracking.py faults            # every fault: seconds lost, metrics missing and doubled
    python benchmarks/tracking.py faults stopped    # this one
    python benchmarks/tracking.py cost              # steps a second, as ratios

The server is MLflow's own, on loopback, with a database of its own; a proxy makes it slow or lets it refuse. After the
training the fault is ended and `sync` is called once; then each metric of the run's folder must be in MLflow once.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import json
import math
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

PROJECT = Path(__file__).resolve().parent.parent / "demo/my-project"
EPOCHS = 40
SETTINGS = ("trainer=cpu", "data.batch_size=32", "tracking.system_every_s=1")
QUICK_EPOCHS = 4
FILES = frozenset(
    {"best.ckpt", "config.yaml", "data.json", "environment.json", "history.csv", "learning_curve.png", "train.log"}
)
MIDDLE = 0.25  # of the epochs: then something happens
SLOW_S = 2.0
ROUNDS = 3


@dataclass
class Outcome:
    """What became of one training."""

    fault: str
    returncode: int
    training_s: float  # of the whole process
    said: int  # how often it spoke of MLflow before its end
    missing: int
    doubled: int
    num_runs: int
    status: str
    absent: frozenset[str]  # of FILES

    def well(self) -> bool:
        finished = self.returncode == 0 and self.status == "FINISHED" and self.num_runs == 1
        return finished and self.missing == self.doubled == 0 and not self.absent


class Server:
    """MLflow's server in a process group of its own, its data in `folder`.

    Args:
        python: of a project.
        folder: gets `mlflow.db` and the artifacts.
        disk: put them on a disk of this size, which `fill` fills, for example `16m`.
    """

    def __init__(self, python: Path, folder: Path, disk: str | None = None) -> None:
        self.python, self.folder, self.disk = python, folder, disk
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        store = self.folder / "disk" if self.disk else self.folder
        store.mkdir(exist_ok=True)
        command = [
            str(self.python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{store}/mlflow.db",
            "--artifacts-destination", str(store / "artifacts"),
        ]  # fmt: skip
        if self.disk:  # a disk of its own, which nobody else sees; a line on standard input fills it, another frees it
            script = (
                f'mount -t tmpfs -o size={self.disk} none {store}; "$@" & '
                f"read line; cat /dev/zero > {store}/fill 2>/dev/null; echo full; "
                f"read line; rm {store}/fill; read line; cp {store}/mlflow.db {self.folder}; echo copied; wait"
            )
            command = ["unshare", "-rm", "sh", "-c", script, "sh", *command]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            stderr=log,
        )  # fmt: skip
        log.close()
        self.wait()

    def wait(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError((self.folder / "server.log").read_text()[-3000:])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, signum: int) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signum)

    def next(self, wanted: str = "") -> None:
        """The next thing that happens to its disk; waits for this answer."""
        if self.process is None or self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the server is not there")
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while wanted and self.process.stdout.readline().strip() != wanted:
            pass

    def end(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGCONT)
                self.send(signal.SIGKILL)
            self.process.communicate()
            self.process = None


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to the server at `port`, after `wait_s`, unless it answers with `status` itself."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.target = port
        self.wait_s = 0.0
        self.status = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A training that has ended breaks its connections off."""


class Forward(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy = cast(Proxy, self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(proxy.wait_s)
        status, content = proxy.status, b"refused"
        if not status:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.target)) as connection:
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class Training:
    """One training of the project, in `folder`, which also holds its prepared data."""

    def __init__(self, project: Path, package: str, folder: Path, uri: str | None, epochs: int = EPOCHS) -> None:
        self.folder, self.epochs = folder, epochs
        self.python = project / ".venv/bin/python"
        self.run = folder / "run"
        tracking = "tracking=server" if uri else "tracking=off"
        data = f"data.folder={project / 'data/processed'}"
        command = [*SETTINGS, data, tracking, f"trainer.max_epochs={epochs}", f"run_dir={self.run}"]
        if not uri:
            command.remove("tracking.system_every_s=1")
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if uri:
            self.environment["MLFLOW_TRACKING_URI"] = uri
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [str(self.python), "-m", f"{package}.train", *command], cwd=folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def middle(self) -> None:
        """Wait until a part of the epochs is done."""
        history = self.run / "history.csv"
        while not history.exists() or history.read_text().count("\n") <= MIDDLE * self.epochs:
            if self.process.poll() is not None:
                raise RuntimeError(self.process.communicate()[0][-3000:])
            time.sleep(0.01)

    def end(self) -> tuple[str, float]:
        """What it printed, and the seconds it took."""
        printed = self.process.communicate()[0]
        return printed, time.monotonic() - self.started_at

    def sync(self) -> str:
        command = [str(self.python), "-m", "runengine", "sync", str(self.run)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, capture_output=True, check=False
        )
        return done.stdout + done.stderr

    def epoch_s(self) -> float:
        """The median time of an epoch, as the training has measured it."""
        rows = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return float(
            statistics.median(row["metrics"]["speed/epoch_s"] for row in rows if "speed/epoch_s" in row["metrics"])
        )


@dataclass
class Scene:
    """What a fault has to do with."""

    server: Server
    proxy: Proxy
    training: Training


Fault = Callable[[Scene], None]


def absent(scene: Scene) -> None:
    """Nobody answers from the start to the end."""


def killed(scene: Scene) -> None:
    scene.server.send(signal.SIGKILL)


def killed_and_back(scene: Scene) -> None:
    scene.server.end()
    scene.server.start()


def stopped(scene: Scene) -> None:
    scene.server.send(signal.SIGSTOP)


def stopped_and_back(scene: Scene) -> None:
    scene.server.send(signal.SIGSTOP)
    time.sleep(2)
    scene.server.send(signal.SIGCONT)


def slow(scene: Scene) -> None:
    scene.proxy.wait_s = SLOW_S


def refusing(scene: Scene) -> None:
    scene.proxy.status = 401


def broken(scene: Scene) -> None:
    scene.proxy.status = 500


def full(scene: Scene) -> None:
    scene.server.next("full")


FAULTS: dict[str, tuple[str, Fault | None]] = {
    "none": ("healthy", None),
    "absent": ("absent from start to end", absent),
    "killed": ("killed in the middle", killed),
    "killed-and-back": ("killed and started again", killed_and_back),
    "stopped": ("frozen (SIGSTOP) in the middle", stopped),
    "stopped-and-back": ("frozen for 2 s", stopped_and_back),
    "slow": (f"{SLOW_S:.0f} s an answer, from the start", slow),
    "refusing": ("401 from the middle on", refusing),
    "broken": ("500 from the middle on", broken),
    "full": ("its disk full in the middle", full),
}
AT_START = {"absent", "slow"}


def suffer(project: Path, package: str, fault: str, folder: Path, epochs: int = EPOCHS) -> Outcome:
    """Train under this fault, end it, send the rest, and look at what MLflow has."""
    _, happen = FAULTS[fault]
    server = Server(project / ".venv/bin/python", folder / "server", disk="24m" if fault == "full" else None)
    if fault != "absent":
        server.start()
    proxy = Proxy(server.port)
    try:
        if fault == "slow":
            proxy.wait_s = SLOW_S
        direct = fault not in ("slow", "refusing", "broken")
        address = server.address if direct else f"http://127.0.0.1:{proxy.server_port}"
        training = Training(project, package, folder, address, epochs)
        if happen and fault not in AT_START:
            training.middle()
            happen(Scene(server, proxy, training))
        printed, training_s = training.end()
        end_fault(server, proxy, fault)
        if (training.run / "unsent.json").exists():
            printed += training.sync()
        if fault == "full":
            server.next("copied")
        return look(fault, training, server, printed, training_s)
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.end()


def end_fault(server: Server, proxy: Proxy, fault: str) -> None:
    proxy.wait_s, proxy.status = 0, 0
    if fault == "full":
        server.next()
    elif fault in ("absent", "killed"):
        server.end()
        server.start()
    elif fault == "stopped":
        server.send(signal.SIGCONT)
        server.wait()


def look(fault: str, training: Training, server: Server, printed: str, training_s: float) -> Outcome:
    """Compare MLflow's database with the folder of the run."""
    lines = (training.run / "metrics.jsonl").read_text().splitlines()
    wanted = [(name, row["step"]) for row in map(json.loads, lines) for name in row["metrics"]]
    with contextlib.closing(sqlite3.connect(server.folder / "mlflow.db")) as database:
        runs = database.execute("select run_uuid, status from runs where lifecycle_stage = 'active'").fetchall()
        found = database.execute("select key, step from metrics").fetchall()
    artifacts = {file.name for file in server.folder.rglob("artifacts/**/*") if file.is_file()}
    return Outcome(
        fault=fault,
        returncode=training.process.returncode,
        training_s=training_s,
        said=printed.count("does not take this run") + printed.count("has not got everything"),
        missing=len(set(wanted) - set(found)),
        doubled=len(found) - len(set(found)),
        num_runs=len(runs),
        status=runs[0][1] if runs else "none",
        absent=frozenset() if fault == "full" else FILES - artifacts,  # its disk is seen by the server alone
    )


def faults(project: Path, package: str, names: list[str], folder: Path, epochs: int, rounds: int) -> None:
    healthy = [suffer(project, package, "none", folder / f"none-{number}", epochs) for number in range(rounds)]
    well = [outcome.training_s for outcome in healthy]
    typical_s = statistics.median(well) if well else math.nan
    print(f"{epochs} epochs, healthy server: {', '.join(f'{s:.1f}' for s in well)} s; lost is what is over the median")
    print(f"{'server':32} finished  seconds lost  metrics missing  doubled  MLflow runs  sentences")
    for name in names:
        outcome = suffer(project, package, name, folder / name, epochs)
        finished = "yes" if outcome.returncode == 0 else f"no ({outcome.returncode})"
        lost_s = outcome.training_s - typical_s
        print(
            f"{FAULTS[name][0]:32} {finished:8}  {lost_s:12.1f}  {outcome.missing:15}  {outcome.doubled:7}  "
            f"{outcome.num_runs:11}  {outcome.said:9}{'' if outcome.well() else '   NOT WELL'}",
            flush=True,
        )


def cost(project: Path, package: str, folder: Path, epochs: int, rounds: int, *, quick: bool) -> None:
    """Steps a second with each kind of tracking, taken in turns; in a hurry without a server."""
    server = Server(project / ".venv/bin/python", folder / "server")
    proxy = Proxy(server.port)
    proxy.wait_s = SLOW_S
    stores: dict[str, str | None] = {"off": None, "sqlite": f"sqlite:///{folder}/mlflow.db"}
    if not quick:
        server.start()
        stores["server"] = server.address
        stores[f"server, {SLOW_S:.0f} s an answer"] = f"http://127.0.0.1:{proxy.server_port}"
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    try:
        for number in range(rounds):
            for place, (name, uri) in enumerate(stores.items()):
                training = Training(project, package, folder / f"{number}-{place}", uri, epochs)
                training.end()
                seconds[name].append(training.epoch_s())
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.end()
    off = statistics.median(seconds["off"])
    print(f"median epoch of {epochs}, {rounds} trainings each, in turns; a row an epoch, the load each second")
    for name, values in seconds.items():
        print(f"{name:24} {off / statistics.median(values):.2f} of the steps a second of tracking=off")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tracking-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a failing MLflow server does, and what tracking costs.")
    parser.add_argument("what", choices=("faults", "cost"))
    parser.add_argument("names", nargs="*", choices=[*FAULTS, []], help="of faults; without them all")
    parser.add_argument("--quick", action="store_true", help="does it still run? In seconds; the figures mean nothing")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--package", default="my_project")
    arguments = parser.parse_args()
    if not (arguments.project / ".venv/bin/python").exists():
        sys.exit(f"error: there is no project in {arguments.project}. Run: make demo")
    project, size = arguments.project.absolute(), (QUICK_EPOCHS, 1) if arguments.quick else (EPOCHS, ROUNDS)
    with scratch() as folder:
        if arguments.what == "cost":
            cost(project, arguments.package, folder, *size, quick=arguments.quick)
        else:
            epochs, rounds = size
            names = arguments.names or list(FAULTS)
            faults(project, arguments.package, names, folder, epochs, 0 if arguments.quick else rounds)


if __name__ == "__main__":
    main()
