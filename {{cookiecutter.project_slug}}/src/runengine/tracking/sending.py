"""The process that sends to MLflow while a training runs: `python -m runengine send`, started by sender.py.

MLflow's import takes seconds and 200 MB: here it costs the training neither its interpreter nor its memory. One such
process is for all runs of a sweep, and it ends with the process that has started it. What could not be sent stays in
the run's folder, where `make sync`, or the next start, finds it: mlflow_sync.py.

It reads a line of JSON for each message, and answers in the same way:

    {"ask": uri}                                    -> {"answer": uri, "sentence": "refused", or null}
    {"open": "1", "folder": ..., "uri": uri, ...}   nothing; rows are sent as they come
    {"close": "1", "status": "FINISHED"}            -> {"closed": "1"}, when all is sent or MLflow does not answer
                                                    -> {"ready": true}, when MLflow is imported
                                                    -> {"log": name, "level": 20, "text": "..."}
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..compat import importing
from ..runs.run import Run
from ..settings import project
from .mlflow_client import is_new, mlflow_client, quiet_mlflow, refusal, why, without_password
from .mlflow_sync import MlflowSync
from .payload import NotYet
from .sync import note
from .system_load import SystemLoad

SEND_EVERY_S = 1.0  # rows that come within this time go together
TRY_AGAIN_S = (1.0, 60.0)  # after a failure, then twice as long each time, at most
# how long the end of a run waits for an answer, and for all of them; Slurm gives a preempted job 30 s or so
PATIENCE_S = {"FINISHED": (10.0, 60.0), "FAILED": (5.0, 30.0), "KILLED": (5.0, 15.0)}
NICENESS = 10  # the training comes first

log = logging.getLogger(__name__)


class Sending(threading.Thread):
    """Keeps MLflow equal to the folder of a run, or of a sweep.

    Args:
        run: or a sweep.
        uri: of MLflow's store.
        new: MLflow cannot know this folder yet.
        system_every_s: how often the machine's load becomes a row; None for never.
    """

    def __init__(self, run: Run, uri: str, *, new: bool = False, system_every_s: float | None = None) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.folder = run
        self.uri = uri
        self.closing = threading.Event()
        self.status = "RUNNING"
        self.failing = ""
        self.asked_at: float | None = None  # while MLflow is asked
        self.sync = MlflowSync(run, uri, new=new)
        self.system = SystemLoad(run, system_every_s) if system_every_s else None
        self.start()

    def close(self, status: str) -> None:
        """Send the rest, as long as MLflow answers."""
        if self.system:
            self.system.stop()
        self.status = status
        self.closing.set()
        answer_s, all_s = PATIENCE_S[status]
        if not self.uri.startswith("http"):  # a database is slow only while its tables are made, the first time
            answer_s = all_s
        started_at = time.monotonic()
        asked_at = self.asked_at or started_at
        while self.is_alive():
            self.join(0.1)
            now = time.monotonic()
            if now - max(asked_at, self.sync.answered_at) > answer_s or now - started_at > all_s:
                break
        if self.folder.unsent.exists():
            note(self.folder, status, self.failing or "it answers too slowly")

    def run(self) -> None:
        wait_s = TRY_AGAIN_S[0]
        while True:
            closing = self.closing.is_set()
            try:
                import mlflow  # noqa: F401  # before anything is asked: nobody is slow to answer meanwhile

                self.asked_at = time.monotonic()
                if closing:
                    self.sync.finish(self.status)
                    return
                self.sync.update()
            except Exception as error:  # of any kind: the training continues
                self.sync.ask_again()
                self._report(error)
                self.asked_at = None
                if closing:
                    return
                self.closing.wait(wait_s)
                wait_s = min(2 * wait_s, TRY_AGAIN_S[1])
                continue
            self.asked_at = None
            if self.failing:
                log.info("MLflow at %s answers again", without_password(self.uri))
                self.failing, wait_s = "", TRY_AGAIN_S[0]
            self.closing.wait(SEND_EVERY_S)

    def _report(self, error: Exception) -> None:
        """Once, until it answers again."""
        if not self.failing and not self.closing.is_set() and not isinstance(error, NotYet):
            log.warning(
                "MLflow at %s does not take this run (%s). Training continues; everything is kept in the run's folder",
                without_password(self.uri),
                why(error),
            )
        self.failing = why(error)
        if not self.closing.is_set():  # for the end of the run, should it not wait
            note(self.folder, self.status, self.failing)


class Forward(logging.Handler):
    """What is logged here, the training logs."""

    def __init__(self, answer: Callable[..., None]) -> None:
        super().__init__()
        self.answer = answer

    def emit(self, record: logging.LogRecord) -> None:
        self.answer(log=record.name, level=record.levelno, text=record.getMessage())


def serve(answer: Callable[..., None]) -> None:
    """Do what the lines of standard input say, until there are no more."""
    sendings: dict[str, Sending] = {}
    imported = threading.Event()

    def ready() -> None:
        try:
            with importing("mlflow"):
                import mlflow  # noqa: F401
        finally:  # what fails here fails again where it is needed, and is reported there
            imported.set()
            answer(ready=True)

    def ask(uri: str) -> None:
        sentence = None
        try:
            try:
                if not is_new(uri):
                    mlflow_client(uri).search_experiments(max_results=1)
            except Exception as error:
                sentence = refusal(uri, error)
        finally:
            answer(answer=uri, sentence=sentence)

    def close(number: str, sending: Sending, status: str) -> None:
        if status != "KILLED":  # which has no time
            imported.wait(PATIENCE_S[status][1])  # no fault of the server's
        sending.close(status)
        answer(closed=number)

    def start(function: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()

    quiet_mlflow()
    start(ready)
    for line in sys.stdin:
        message: dict[str, Any] = json.loads(line)
        if "close" in message:
            start(close, message["close"], sendings.pop(message["close"]), message["status"])
            continue
        _stand_where(**message["place"])
        if "ask" in message:
            start(ask, message["ask"])
        else:
            run = Run(Path(message["folder"]))
            sendings[message["open"]] = Sending(run, message["uri"], **message["options"])


def _stand_where(folder: str, environment: dict[str, str], package: str, package_folder: str, script: str) -> None:
    """As the training does: a notebook, or a test, may have gone elsewhere since this process began."""
    with suppress(OSError):
        os.chdir(folder)
    os.environ.update(environment)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    quiet_mlflow()
    project.use(project.Project(package, Path(package_folder), script))


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # Slurm may signal every process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)  # the training ends this one, when all is sent
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    answering = threading.Lock()

    def answer(**message: object) -> None:
        with answering, suppress(OSError):  # nobody reads any more
            print(json.dumps(message), file=answers, flush=True)

    logging.basicConfig(level=logging.INFO, handlers=[Forward(answer)], force=True)
    logging.captureWarnings(True)
    serve(answer)
    os._exit(0)  # a thread may wait for a server that never answers
