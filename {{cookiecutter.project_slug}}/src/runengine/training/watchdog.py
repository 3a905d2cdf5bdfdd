"""Ends a training that hangs: its stacks stay in the run's folder, and the exit status asks for it to be resumed.

It hangs where it waits for ever: for a process that is gone, a loader that does not answer, a file system that does
not return. How long each part of the training's loop takes is measured, so that a slow one does not pass for that.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ..runs.run import Run
from ..settings import process
from ..settings.errors import RESUME_ME
from ..settings.files import atomic_write
from ..tracking.sender import LONGEST_S
from .history import History

if TYPE_CHECKING:
    import psutil

FIRST = 6  # times as long may take what was hardly measured yet: compiling, the first validation; a batch may not
ENOUGH = 3  # durations make a median
BATCH = "waiting for a batch"
MEASURED = 100  # the last durations of each part, whose median is "usual"
OTHERS_S = 5.0  # for the other processes to write their stacks, before rank 0 ends them
ALONE_S = 60.0  # after that they end by themselves: rank 0 may be the one that does not answer
DEBUGGERS = {"_pydevd_bundle", "bdb", "code", "debugpy", "ipdb", "pdb", "pudb", "pydevd"}
STACKS_ON = signal.SIGRTMIN + 7 if sys.platform == "linux" else None  # nobody else's, and no core is dumped

log = logging.getLogger(__name__)


class Watchdog(Callback):
    """Watches from a thread when the training last went on to another part of its loop.

    Args:
        run: in whose folder the stacks are written, one file for each process.
        history: knows the tracker, which records how the run has ended.
        ask_for_resume: tells whoever started this run, and says how.
        minutes: so long at least nothing has to happen; None for never.
        times: and so many times as long as this part of the loop usually takes, by the median.
    """

    def __init__(
        self, run: Run, history: History, ask_for_resume: Callable[[], None], *, minutes: float | None, times: int
    ) -> None:
        self.run = run
        self.history = history
        self.ask_for_resume = ask_for_resume
        self.least_s = minutes * 60 if minutes else None
        self.times = times
        self.part, self.since = "", 0.0  # in which part of the loop the training is, and since when
        self.durations: dict[str, deque[float]] = {}
        self.step = 0
        self.num_steps = 0  # of this process
        self.waited_s = 0.0  # in this part, while this process was running
        self.over = threading.Event()
        self.thread: threading.Thread | None = None
        self.stacks: IO[bytes] | None = None  # without a name: a run that does not hang leaves no file

    def limit_s(self, part: str) -> float:
        """How long this part of the loop may take."""
        assert self.least_s
        measured = self.durations.get(part, ())
        if len(measured) < ENOUGH:
            return self.least_s * (1 if part == BATCH else FIRST)
        return max(self.least_s, self.times * statistics.median(list(measured)))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or self.least_s is None:
            return
        self.stacks = tempfile.TemporaryFile()  # noqa: SIM115
        if STACKS_ON and threading.current_thread() is threading.main_thread():
            # forked loader processes inherit it, and end; their stacks come behind this process's
            faulthandler.register(STACKS_ON, self.stacks, all_threads=True, chain=True)
        self._enter("the start of the training")
        self.over.clear()
        main = threading.get_ident()
        self.thread = threading.Thread(target=self._watch, args=(main,), name="watchdog", daemon=True)
        self.thread.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def on_train_epoch_start(self, *_: Any) -> None:
        self._enter(BATCH)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.step = trainer.global_step
        self._enter("a training step")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.num_steps += 1
        self._enter("the end of an epoch" if trainer.is_last_batch else BATCH)

    def on_validation_start(self, *_: Any) -> None:
        self._enter(BATCH)

    def on_validation_batch_start(self, *_: Any) -> None:
        self._enter("a validation step")

    def on_validation_batch_end(self, *_: Any) -> None:
        self._enter(BATCH)

    def on_validation_epoch_end(self, *_: Any) -> None:
        self._enter("the end of a validation")

    def on_validation_end(self, *_: Any) -> None:
        self._enter("the end of an epoch")

    def on_train_epoch_end(self, *_: Any) -> None:
        self._enter("the end of an epoch")

    def on_save_checkpoint(self, *_: Any) -> None:
        self._enter("writing a checkpoint")

    def _enter(self, part: str) -> None:
        now = time.monotonic()
        if self.part:
            self.durations.setdefault(self.part, deque(maxlen=MEASURED)).append(now - self.since)
        self.part, self.since = part, now

    def _stop(self) -> None:
        self.over.set()
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.stacks:
            if STACKS_ON and threading.current_thread() is threading.main_thread():
                faulthandler.unregister(STACKS_ON)
            self.stacks.close()
            self.stacks = None
        self.part, self.durations = "", {}

    def _watch(self, main: int) -> None:
        assert self.least_s
        pause_s = min(1.0, self.least_s / 10)
        last, since, waited_s = time.monotonic(), self.since, 0.0
        while not self.over.wait(pause_s):
            now = time.monotonic()
            # not the time in which this process itself did not run: Ctrl-Z, or the lid of a laptop
            waited_s = waited_s + min(now - last, 2 * pause_s) if since == self.since else 0.0
            last, since = now, self.since
            part = self.part
            if waited_s > self.limit_s(part):
                if is_in_debugger(main):
                    waited_s = 0.0
                else:
                    self._end(part, waited_s)

    def _end(self, part: str, waited_s: float) -> None:
        """Write the stacks, end the processes that this one has started, and this one."""
        sentence = (
            f"this training hangs: {waited_s:.0f} s in {part}, after step {self.step}, where at most "
            f"{self.limit_s(part):.0f} s are allowed (watchdog.minutes, watchdog.times)"
        )
        if part == BATCH:
            sentence += "; `make doctor` knows the usual causes (shared memory, open files)"
        again = False
        with suppress(Exception):
            again = self._write_stacks(sentence)
        if process.rank() > 0:
            time.sleep(OTHERS_S + ALONE_S)
            os._exit(RESUME_ME)
        with suppress(Exception):
            log.error("%s. What each process was doing: %s", sentence, self.run.stacks("*"))
            time.sleep(OTHERS_S if os.environ.get("WORLD_SIZE", "1") != "1" else 0)
            _kill_children()
            self._tell_tracker("FAILED" if again else "KILLED")
            if again:
                why = f"it hung at step {self.step} before: it is not started once more by itself"
                log.error("%s. When the cause is gone, resume with: %s", why, self.run.resume_command())
                atomic_write(self.run.error, f"{sentence}; {why}. See {self.run.stacks('*')}\n")
                os._exit(1)
            self.ask_for_resume()
        os._exit(1 if again else RESUME_ME)  # the main thread does not answer

    def _write_stacks(self, sentence: str) -> bool:
        """Returns whether this process has hung at this step before."""
        import psutil

        assert self.stacks
        faulthandler.dump_traceback(self.stacks, all_threads=True)
        if STACKS_ON and (forked := _forked()):  # those that load batches write theirs behind it, and end
            for child in forked:
                child.send_signal(STACKS_ON)
            psutil.wait_procs(forked, timeout=OTHERS_S)
        self.stacks.seek(0)
        file = self.run.stacks(process.rank())
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        head = f"{datetime.now():%Y-%m-%d %H:%M:%S}, {platform.node()}, process {os.getpid()}: {sentence}\n\n"
        with file.open("ab") as written:
            written.write(head.encode() + self.stacks.read() + b"\n")
        return f", after step {self.step}, " in before

    def _tell_tracker(self, status: str) -> None:
        """In a thread of its own: it may wait for what hangs."""
        if tracker := self.history.tracker:
            closing = threading.Thread(target=tracker.close, args=(status,), daemon=True)
            closing.start()
            closing.join(LONGEST_S[status])


def is_in_debugger(thread: int) -> bool:
    """Is this thread held by a debugger, or by a prompt?"""
    frame = sys._current_frames().get(thread)
    while frame:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def _forked() -> list[psutil.Process]:
    """The children that run the program of this process: they handle the same signals."""
    import psutil

    this = psutil.Process()
    program = this.cmdline(), this.environ()
    return [child for child in this.children() if (child.cmdline(), child.environ()) == program]


def _kill_children() -> None:
    """All but the one that sends to MLflow, which ends by itself."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.cmdline()[-1:] != ["send"]:
                child.kill()
