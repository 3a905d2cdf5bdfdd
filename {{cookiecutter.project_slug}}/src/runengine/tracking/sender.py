"""A thread that keeps MLflow equal to the folder of a run, or of a sweep, while there is one.

The training never waits for MLflow, and does not end because of it. What could not be sent stays in the folder, where
`make sync`, or the next start, finds it: mlflow_sync.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ..runs.run import Run
from .mlflow_client import why, without_password
from .mlflow_sync import MlflowSync
from .payload import NotYet
from .sync import note

FIRST_AFTER_S = 3.0  # the training's first steps come before the import of MLflow, which takes seconds
SEND_EVERY_S = 1.0  # rows that come within this time go together
TRY_AGAIN_S = (1.0, 60.0)  # after a failure, then twice as long each time, at most
# how long the end of a run waits for an answer, and for all of them; Slurm gives a preempted job 30 s or so
PATIENCE_S = {"FINISHED": (10.0, 60.0), "FAILED": (5.0, 30.0), "KILLED": (5.0, 15.0)}

log = logging.getLogger(__name__)


class Sender:
    """Sends as soon as `wake` is set, and the rest when it is closed.

    Args:
        run: or a sweep.
        uri: of MLflow's store.
        new: MLflow cannot know this folder yet.
    """

    def __init__(self, run: Run, uri: str, *, new: bool = False) -> None:
        self.run = run
        self.uri = uri
        self.wake = threading.Event()
        self.closing = threading.Event()
        self.status = "RUNNING"
        self.failing = ""
        self.asked_at: float | None = None  # while MLflow is asked
        self.sync = MlflowSync(run, uri, new=new)
        note(run, self.status)
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self.thread.start()

    def close(self, status: str, give_up: Callable[[], bool]) -> None:
        self.status = status
        note(self.run, status, self.failing)
        self.closing.set()
        self.wake.set()
        answer_s, all_s = PATIENCE_S[status]
        if not self.uri.startswith("http"):  # a database is slow only while its tables are made, the first time
            answer_s = all_s
        started_at = time.monotonic()
        asked_at, said = self.asked_at or started_at, False
        while self.thread.is_alive() and not give_up():
            self.thread.join(0.1)
            now = time.monotonic()
            if now - max(asked_at, self.sync.answered_at) > answer_s or now - started_at > all_s:
                break
            if not said and now - started_at > 3:
                said = True
                log.info("sending the rest to MLflow")
        if self.run.unsent.exists():
            reason = self.failing or "it answers too slowly"
            note(self.run, status, reason)
            log.warning("MLflow has not got everything of this run (%s). Send the rest: make sync", reason)

    def _work(self) -> None:
        wait_s = TRY_AGAIN_S[0]
        self.wake.wait(FIRST_AFTER_S)
        while True:
            closing = self.closing.is_set()
            self.wake.clear()
            self.asked_at = time.monotonic()
            try:
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
            self.wake.wait()
            self.closing.wait(SEND_EVERY_S)

    def _report(self, error: Exception) -> None:
        """Once, until it answers again."""
        if not self.failing and not self.closing.is_set() and not isinstance(error, NotYet):
            log.warning(
                "MLflow at %s does not take this run (%s). Training continues; everything is kept in the run's folder",
                without_password(self.uri),
                why(error),
            )
        log.debug("MLflow", exc_info=error)
        self.failing = why(error)
