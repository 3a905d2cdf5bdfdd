"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from ..settings import process

# those that this system has; HUP comes when the terminal is closed, USR2 is what submitit sends
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
HANGUP = getattr(signal, "SIGHUP", 0)  # Windows has none


class Stopped(Exception):
    """The run got a signal to stop; its checkpoint is written.

    Args:
        signum: by which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Signals:
    """Notes the first signal that asks the run to stop, from the making of its MLflow run to its last file.

    Another Ctrl-C raises KeyboardInterrupt. At the end a signal that came too late for the training is passed on to who
    waits for it: the sweep that this run belongs to.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            numbers = (getattr(signal, name, None) for name in SIGNALS)
            self.before = {number: signal.getsignal(number) for number in numbers if number}
            if self.before.get(HANGUP) == signal.SIG_IGN:  # started by nohup: it is to go on
                del self.before[HANGUP]
        self.take_back()
        return self

    def take_back(self) -> None:
        for number in self.before:
            signal.signal(number, self._note)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is None and self.signum and callable(self.before.get(self.signum)):
            signal.raise_signal(self.signum)

    def received(self) -> bool:
        return self.signum != 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if signum == signal.SIGINT and process.rank() == 0:
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n")
