"""A run while it is trained, as the owner's script gets it.

    run.start_from(task, cfg.init_from)                       # nothing is on the disk yet
    trainer = pl.Trainer(**run.trainer_options(task))
    with run:                                                 # its folder is made, locked, and records what happens
        trainer.fit(task, data, ckpt_path=run.resume_from, weights_only=True)

It ends FINISHED, KILLED (to be resumed) or FAILED, in the folder and in MLflow.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from .launch import slurm
from .runs.open_run import open_run
from .runs.run import Run
from .settings import process, project
from .settings.console import first_line, stay_silent
from .settings.errors import INTERRUPTED, RESUME_ME, explain, is_lost_peer
from .settings.files import atomic_file, atomic_write
from .tracking.sender import Access
from .training import distributed

if TYPE_CHECKING:  # torch and Lightning are imported where they are used: --help and errors answer at once
    import pytorch_lightning as pl

    from .tracking.tracker import Tracker
    from .training.device import Choice
    from .training.watchdog import Watchdog

HUNG = getattr(signal, "SIGUSR1", 0)  # by which Slurm asks for the same: save, and go back into the queue

log = logging.getLogger(__name__)


class TrainingRun(Run):
    """One start of a run.

    Args:
        folder, starts_over: see `Run`.
        cfg: its settings; of a resumed run those it was started with.
        access: asks the MLflow server whether it lets this user in.
    """

    def __init__(self, folder: Path, starts_over: str = "", *, cfg: DictConfig, access: Access) -> None:
        super().__init__(folder, starts_over)
        from .training.history import History
        from .training.signals import Signals

        self.cfg = cfg
        self.access = access
        self.rows = History(self, cfg.monitor.metric, cfg.monitor.mode)
        self.signals = Signals()
        self.choices: list[Choice] = []
        self.tracker: Tracker | None = None
        self.watchdog: Watchdog | None = None
        self.kept: dict[type, pl.Callback] = {}  # from one call of `fit` to the next

    @property
    def resume_from(self) -> Path | None:
        """What the next call of `fit` resumes from; None if it begins with the weights that the task has."""
        if not (last := self.checkpoint()):
            return None
        saved = 0  # in which call of `fit` the last checkpoint was written
        while (ended := self.end_of(saved)).exists():
            if _is_copy(last, ended):  # nothing was written after that call had ended
                break
            saved += 1
        phase = max(self.rows.phase, 0)
        return self.end_of(phase) if phase < saved else last if phase == saved else None

    @property
    def is_main(self) -> bool:
        """Is this the first of the processes that train together? It is the only one that writes."""
        return process.rank() == 0

    @property
    def epochs(self) -> list[dict[str, float]]:
        """What was logged in each epoch so far, with `epoch` (from 0) and `step`."""
        return self.rows.rows

    def start_from(self, task: pl.LightningModule, init_from: str | None = None) -> None:
        """Load the weights this start begins with: of the checkpoint it resumes from, else of `init_from`, if given.

        Raises:
            UserError: the file is damaged, or belongs to another model; the message names the layers. Or the best
                checkpoint of the run that is resumed is damaged or absent.
        """
        from .runs.weights import checkpoint_named, load_weights, refuse_without_best

        if self.resume_from:
            refuse_without_best(self, load_weights(task, self.resume_from))
        elif init_from:
            load_weights(task, checkpoint_named(init_from))

    def trainer_options(
        self,
        task: pl.LightningModule,
        *,
        callbacks: Sequence[pl.Callback] = (),
        loggers: Sequence[Any] = (),
        more: bool = False,
    ) -> dict[str, Any]:
        """The arguments for `pl.Trainer`, from the settings `trainer`, `checkpoint` and `patience`.

        Args:
            task: gets the memory layout that suits the device.
            callbacks: in addition to the engine's own.
            loggers: in addition to MLflow and TensorBoard.
            more: whether another call of `fit`, with a trainer of its own, follows in this run: freeze, then fine-tune.

        Raises:
            UserError: this machine has fewer devices of this kind, or the trainer has no such setting.
        """
        from .training.checkpoints import BestCheckpoint, LastCheckpoint
        from .training.options import trainer_options
        from .training.watchdog import Watchdog

        if self.kept and self.is_main:
            _copy(self.last, self.end_of(self.rows.phase))
        self.rows.begin(more)
        options, choices = trainer_options(self, self.cfg, task, self.rows, self.signals, list(callbacks))
        if self.trial.exists():
            from .sweeps.pruning import Report

            options["callbacks"].insert(0, Report(self))
        self.watchdog = Watchdog(self, self.rows, self._ask_for_resume, **self.cfg.watchdog)
        options["callbacks"].insert(0, self.watchdog)
        own = {type(each): each for each in options["callbacks"] if type(each) in (BestCheckpoint, LastCheckpoint)}
        self.kept = own | self.kept  # the best checkpoint so far is kept from one call of `fit` to the next
        options["callbacks"] = [self.kept.get(type(each), each) for each in options["callbacks"]]
        self.choices[:] = choices
        return {**options, "logger": list(loggers) or False}

    def __enter__(self) -> TrainingRun:
        self.access.check()
        with ExitStack() as stack:  # if anything fails here, what was entered before is left again
            if self.is_main:
                stack.enter_context(open_run(self, self.cfg))
            else:
                stay_silent()
            for choice in self.choices:
                log.info("%s: %s", *choice)
            # Lightning's children read the configuration from the folder
            arguments = (f"run_dir={self.folder}", "hydra.mode=RUN")
            options = self.cfg.trainer
            several = options.get("devices", 1) > 1 and options.get("num_nodes", 1) == 1
            stack.enter_context(distributed.children_run(project.current().module, *arguments, several=several))
            stack.enter_context(self.signals)
            if self.is_main:
                self._open_tracker()
            if self.resume_from:
                log.info("resuming from %s", self.resume_from)
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        from .training.signals import Stopped

        if isinstance(error, Exception) and self._may_come_back(error):
            log.warning("another process of this run is gone (%s): all of them stop, to be started again", error)
            kind, error = Stopped, Stopped(HUNG)
        mistake = error if self.rows.ended and isinstance(error, Exception) and not isinstance(error, Stopped) else None
        if mistake:  # an error in a figure, a table or an export must not fail a training that is finished
            kind, error, trace = None, None, None
            log.warning(
                "the training is finished and can be used, but an error came after it: %s",
                explain(mistake) or f"{type(mistake).__name__}: {first_line(mistake)}",
                exc_info=mistake,
            )
        try:
            if error is None:
                self._finish()
            else:
                self._end(error)
        finally:
            self.stack.__exit__(kind, error, trace)
        if isinstance(error, Stopped):
            self._leave(error.signum)
        if isinstance(error, SystemExit):  # how Lightning ends after the second Ctrl-C
            sys.exit(INTERRUPTED)
        return mistake is not None

    def _open_tracker(self) -> None:
        from .tracking.tracker import Tracker

        settings = self.cfg.tracking
        self.tracker = self.rows.tracker = Tracker(
            self,
            settings.mlflow_uri,
            tensorboard=settings.tensorboard,
            details=settings.tensorboard_details,
            system_every_s=settings.system_every_s,
        )

    def _finish(self) -> None:
        """Mark the folder as finished, and send MLflow the rest while it answers."""
        if not self.tracker:
            return
        self.rows.track_rows()  # needed where no epoch was left to train
        self.rows.track_best()
        if self.cfg.get("register"):
            from .tracking.export import export_after_training

            export_after_training(self)  # a run that is killed here is resumed
        self._write_metrics()
        self.tracker.close("FINISHED", give_up=self.signals.received)
        self._write_metrics()  # by now MLflow may have given the run its id
        if self.test_module() and "DVC_STAGE" not in os.environ and not Run(self.folder.parent).is_sweep():
            log.info("measure it:    %s\ncompare runs:  make runs, make mlflow", self.test_command())

    def _write_metrics(self) -> None:
        known = {"mlflow_run_id": run_id} if (run_id := self.mlflow_id()) else {}  # for `dvc exp show`
        atomic_write(self.metrics, json.dumps({**self.rows.best(), **known}, indent=2) + "\n")
        self.report()

    def _end(self, error: BaseException) -> None:
        """Record in the folder and in MLflow how an unfinished run has ended."""
        from .training.signals import Stopped

        killed = isinstance(error, Stopped | SystemExit | KeyboardInterrupt)
        if isinstance(error, SystemExit):
            log.info("stopped at once. Resume with: %s", self.resume_command())
        if self.is_main and isinstance(error, Exception) and not killed:
            sentence = explain(error) or f"{type(error).__name__}: {first_line(error)}"
            atomic_write(self.error, sentence + "\n")
        if self.tracker:
            self.tracker.close("KILLED" if killed else "FAILED")

    def _ask_for_resume(self, signum: int = HUNG) -> None:
        if slurm.requeue_on(signum):
            log.info("stopped: Slurm job %s goes back into the queue, and will resume this run", process.job_id())
            slurm.requeue()
        else:
            log.info("stopped. Resume with: %s", self.resume_command())

    def _may_come_back(self, error: Exception) -> bool:
        """A run on several nodes that has lost one; not if it has not trained: that would go on for ever."""
        several = self.cfg.trainer.get("num_nodes", 1) > 1
        return several and is_lost_peer(error) and self.watchdog is not None and self.watchdog.num_steps > 0

    def _leave(self, signum: int) -> None:
        """Exit with the status that asks whoever started this run to start it again."""
        if not self.is_main:
            # Lightning kills rank 0 when a child ends with another status
            sys.exit(RESUME_ME if process.node() and not process.is_child() else 0)
        self._ask_for_resume(signum)
        sys.exit(RESUME_ME)


def _copy(file: Path, copy: Path) -> None:
    """Keep the content of a file that will be replaced."""
    with atomic_file(copy) as new:
        try:
            os.link(file, new)
        except OSError:  # the file system has no links
            shutil.copy2(file, new)


def _is_copy(file: Path, copy: Path) -> bool:
    one, other = file.stat(), copy.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
