"""What a run has to say to MLflow, handed to a process that says it: sending.py.

The training waits for MLflow at its end alone, and for a server's refusal at its start; it never ends because of it.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..runs.run import Run
from ..settings import project
from ..settings.errors import UserError
from ..settings.files import read_json
from .sync import note

IMPORT_S = 60.0  # the longest that the process may take to import MLflow, and to say that it gives up
# that the end of a run waits after that: some seconds more than the process, which says why; Slurm gives 30 s or so
LONGEST_S = {"FINISHED": 65.0, "FAILED": 35.0, "KILLED": 20.0}

log = logging.getLogger(__name__)


class Process:
    """Sends to MLflow; ends with this process, however this one ends."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.gone = threading.Event()
        self.answered: dict[str, threading.Event] = {}  # by the number of what is closed, or the store that is asked
        self.sentences: dict[str, str | None] = {}
        places = [str(project.ENGINE_FOLDER.parent), str(project.current().folder.parent), os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(filter(None, places))
        # neither Ctrl-C nor what ends a group of processes reaches it
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        reading, self.writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", project.ENGINE, "send"], stdin=reading, stdout=subprocess.PIPE, text=True,
                encoding="utf-8", env={**os.environ, "PYTHONPATH": path}, **options,
            )  # fmt: skip
        except OSError as error:  # no memory, or no more processes: the training needs neither
            log.warning("MLflow gets nothing while this runs: %s", error)
            self.gone.set()
            self.ready.set()
        else:
            threading.Thread(target=self._read, name="mlflow", daemon=True).start()
        finally:
            os.close(reading)

    def ask(self, uri: str) -> threading.Event:
        """Whether the store lets this user in; see `sentences`."""
        return self._begin(uri, ask=uri, place=_place())

    def open(self, run: Run, uri: str, **options: object) -> tuple[str, threading.Event]:
        """A number, as a folder may be opened again before it is closed, and what is set when it is closed."""
        number, folder = str(len(self.answered)), str(run.folder.absolute())
        return number, self._begin(number, open=number, folder=folder, uri=uri, options=options, place=_place())

    def close(self, number: str, status: str) -> None:
        self._tell(close=number, status=status)

    def end(self) -> None:
        with suppress(OSError):
            os.close(self.writing)
        self.gone.wait(5)

    def _begin(self, name: str, **message: object) -> threading.Event:
        self.answered[name] = event = threading.Event()
        self._tell(**message)
        return event

    def _tell(self, **message: object) -> None:
        line = (json.dumps(message) + "\n").encode()
        with suppress(OSError):  # it was killed
            while line:
                line = line[os.write(self.writing, line) :]

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                try:
                    self._take(json.loads(line))
                except ValueError:  # Python's own start has printed something
                    log.warning("%s", line.rstrip())
        self.process.wait()
        self.gone.set()
        self.ready.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "log" in message:
            logging.getLogger(message["log"]).log(message["level"], "%s", message["text"])
        elif "ready" in message:
            self.ready.set()
        else:
            name = message.get("closed") or message["answer"]
            self.sentences[name] = message.get("sentence")
            self.answered[name].set()


class Sender:
    """Keeps MLflow equal to a run's folder until it is closed; the arguments are those of `Sending`."""

    def __init__(self, run: Run, uri: str, **options: bool | float | None) -> None:
        self.run = run
        self.uri = uri
        note(run, "RUNNING")
        self.process = process()
        self.number, self.closed = self.process.open(run, uri, **options)

    def close(self, status: str, give_up: Callable[[], bool]) -> None:
        note(self.run, status, _why_unsent(self.run))
        self.process.close(self.number, status)
        started_at, said = time.monotonic(), False
        longest_s = LONGEST_S[status]
        if status != "KILLED" and not self.process.ready.is_set():
            longest_s += IMPORT_S
        while not self.closed.wait(0.1) and not give_up() and not self.process.gone.is_set():
            seconds = time.monotonic() - started_at
            if seconds > longest_s:
                break
            if not said and seconds > 3:
                said = True
                log.info("sending the rest to MLflow")
        if self.run.unsent.exists():
            ended = "the process that sends it was ended" if self.process.gone.is_set() else "it answers too slowly"
            reason = _why_unsent(self.run) or ended
            note(self.run, status, reason)
            log.warning("MLflow has not got everything of this run (%s). Send the rest: make sync", reason)


class Later:
    """For a run whose MLflow is somewhere else: its folder says that all is to be sent, by whoever has it then."""

    def __init__(self, run: Run) -> None:
        self.run = run
        note(run, "RUNNING")

    def close(self, status: str, give_up: Callable[[], bool]) -> None:
        note(self.run, status, "it was trained where MLflow is not reached")


@functools.cache  # the runs of a sweep ask once
class Access:
    """Asks a server whether it lets this user in, while torch is imported here, and MLflow there.

    A store in a file is asked, too, so that it is open when the first row comes; nobody waits for its answer.
    """

    def __init__(self, uri: str | None) -> None:
        self.uri = uri or ""
        self.process = process() if uri else None
        self.answered = self.process.ask(self.uri) if self.process else None

    def check(self, patience_s: float = 5.0) -> None:
        """Wait for the answer.

        Raises:
            UserError: the server refuses, or is none of MLflow's. That it is absent or slow is no error.
        """
        if not self.process or not self.answered or not self.uri.startswith("http"):
            return
        self.process.ready.wait(IMPORT_S)
        if not self.process.gone.is_set():
            self.answered.wait(patience_s)
        if sentence := self.process.sentences.get(self.uri):
            raise UserError(sentence)


_started: list[Process] = []


def process() -> Process:
    """The one that this process has started; a new one where that has ended."""
    if not _started or _started[0].gone.is_set():
        _started[:] = [Process()]
        atexit.register(_started[0].end)
    return _started[0]


def _forget() -> None:
    """In a child that was forked, as those are that load batches: only the training keeps the other one alive."""
    for each in _started:
        with suppress(OSError):
            os.close(each.writing)
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _place() -> dict[str, Any]:
    here = project.current()
    return {
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "package": here.package,
        "package_folder": str(here.folder),
        "script": here.script,
    }


def _why_unsent(run: Run) -> str:
    return str(read_json(run.unsent).get("why", "")) if run.unsent.exists() else ""
