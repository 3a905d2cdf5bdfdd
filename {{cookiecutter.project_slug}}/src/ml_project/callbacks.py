"""What happens beside the training loop; the state of each goes into the checkpoint."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from torchmetrics import Metric

from . import ranks
from .data import progress
from .errors import UserError
from .run import Run, write_whole
from .tracking import Row, Tracker

MONITOR = "val/loss"
LOSS_CHECK_STEPS = 50  # on a GPU the loss is looked at so often: each look waits for the GPU
STEPS_A_ROW = 50  # as often the tracker gets a row between the epochs; on a GPU it is waited for then
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # those that this system has; USR2 is what submitit sends

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was told to stop; its checkpoint is written.

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

    def came(self) -> bool:
        return self.signum != 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if signum == signal.SIGINT and ranks.rank() == 0:
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n")


class WholeFileIO(TorchCheckpointIO):
    """A checkpoint is there whole or not at all, also after a power cut.

    Lightning's own way over the temporary folder copies where that is another disk, and can be killed in the copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        file = Path(path)
        new = file.with_name(f"{file.name}.new")
        with new.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)


class History(Callback):
    """One row an epoch: in the log, in `history.csv`, and in the checkpoint, where it continues.

    The tracker gets these rows, what cannot be the same twice (speed), and rows between the epochs.
    """

    def __init__(self, run: Run) -> None:
        self.file = run.history
        self.tracker: Tracker | None = None  # rank 0 gets one
        self.rows: list[Row] = []
        self.clock = Clock()
        self.epoch_clock = Clock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for row in self.rows:
            self._track(row)
        self.clock.restart()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_clock.restart()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.tracker and self.tracker.details and trainer.is_global_zero and batch_idx == 0:
            self.tracker.draw(pl_module.model, batch[0], trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.tracker:
            return
        num_images = len(batch[0]) * trainer.world_size
        self.clock.num_images += num_images
        self.epoch_clock.num_images += num_images
        if (batch_idx + 1) % (STEPS_A_ROW * trainer.accumulate_grad_batches) == 0:
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            self.tracker.add(
                trainer.global_step,
                {
                    "step/train_loss": float(loss) * trainer.accumulate_grad_batches,  # of this process's last batch
                    "step/lr": trainer.optimizers[0].param_groups[0]["lr"],
                    "speed/images_per_s_of_steps": self.clock.images_per_s(),
                },
            )
            self.clock.restart()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info("epoch %d of %s  %s", trainer.current_epoch + 1, trainer.max_epochs, shown)
        if self.tracker:
            self.write()
            # with the validation's time, which is the user's time, too
            self._track(
                self.rows[-1]
                | {"speed/epoch_s": self.epoch_clock.s(), "speed/images_per_s": self.epoch_clock.images_per_s()}
            )

    def _track(self, row: Row) -> None:
        if self.tracker:
            self.tracker.add(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def track_best(self) -> None:
        """What the best checkpoint reaches: MLflow's table shows the last row of each metric."""
        best = self.best()
        named = {f"best/{name.replace('/', '_')}": value for name, value in best.items() if name != "step"}
        self._track({"step": best["step"], **named})

    def write(self) -> None:
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows for name in row)
        table = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_whole(self.file, text.getvalue())

    def best(self) -> Row:
        """The row with the least MONITOR."""
        return min(self.rows, key=lambda row: row[MONITOR])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class Clock:
    """Images and the seconds they took."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.started_at, self.num_images = time.perf_counter(), 0

    def s(self) -> float:
        return time.perf_counter() - self.started_at

    def images_per_s(self) -> float:
        return self.num_images / max(self.s(), 1e-9)


class RankState(Callback):
    """What each process of a run has of its own: random generators and half-counted metrics.

    The checkpoint has those of all; a continued run goes on as if nothing had happened.
    """

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics = {}
        if progress(trainer)[1]:  # at the end of an epoch they are counted, and begin anew
            for name, metric in _metrics(pl_module).items():
                metrics[name] = {key: _on_cpu(value) for key, value in metric.metric_state.items()}
        checkpoint["rank_states"] = ranks.gather({"random": _random_state(), "metrics": metrics})

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.saved = checkpoint["rank_states"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        saved, self.saved = self.saved, []
        if not saved:
            return
        if len(saved) == trainer.world_size:
            _restore_random_state(saved[trainer.global_rank]["random"])
        else:
            log.warning(
                "trained by %d processes so far, now by %d: random numbers go on differently",
                len(saved),
                trainer.world_size,
            )
        for state in saved[trainer.global_rank :: trainer.world_size]:
            for name, metric in _metrics(pl_module).items():
                if name in state["metrics"]:
                    metric.merge_state({key: _to(value, metric) for key, value in state["metrics"][name].items()})


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after each epoch, every so many steps or minutes, and when the run is told to stop.

    Watches the loss as well: a checkpoint with NaN in it must not take the place of a good one.

    Args:
        file: of the checkpoint.
        signals: what tells the run to stop.
        every_n_steps, every_minutes: null for never.
    """

    def __init__(self, file: Path, signals: Signals, every_n_steps: int | None, every_minutes: float | None) -> None:
        self.file = file
        self.signals = signals
        self.every_n_steps = every_n_steps
        self.every_s = every_minutes * 60 if every_minutes else math.inf
        self.saved_at = time.monotonic()
        self.group: Any = None
        self.bad_step: torch.Tensor | None = None  # the first step whose loss is not finite; -1 for none
        self.ended = False  # before its last epoch: in the checkpoint, as Lightning would go on for one more

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ended = state_dict["ended"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = self.ended
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")  # to agree without waiting for the GPUs
        self.signals.take_back()  # Lightning has put its own handler for SIGTERM before ours

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        last = trainer.is_last_batch
        self._look_at(loss, trainer.global_step, now=last or (batch_idx + 1) % LOSS_CHECK_STEPS == 0)
        if last or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the end of the epoch saves; a half-accumulated gradient could not be saved
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        due = due or time.monotonic() - self.saved_at > self.every_s
        signum, save = self._agree(self.signals.signum, bool(due))
        if signum or save:
            self._look_at(loss, trainer.global_step, now=True)
            self._save(trainer)
        if signum:
            raise Stopped(signum)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = float(trainer.callback_metrics.get(MONITOR, 0.0))
        if not trainer.sanity_checking and not math.isfinite(value):
            self._refuse(MONITOR, value, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended = trainer.should_stop
        self._save(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signum, _ = self._agree(self.signals.signum, False)
        if signum:  # it came during the validation; the end of the epoch has saved
            raise Stopped(signum)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self.saved_at = time.monotonic()

    def _agree(self, signum: int, save: bool) -> tuple[int, bool]:
        """What any process wants, all do, after the same step."""
        if self.group is None:
            return signum, save
        wanted = torch.tensor([signum, int(save)])
        dist.all_reduce(wanted, dist.ReduceOp.MAX, group=self.group)
        return int(wanted[0]), bool(wanted[1])

    def _look_at(self, loss: torch.Tensor, step: int, *, now: bool) -> None:
        """Note the first step with a bad loss, without waiting for the GPU; tell it when it is time to look."""
        if self.bad_step is None:
            self.bad_step = torch.full((), -1, device=loss.device)
        self.bad_step = torch.where(torch.isfinite(loss) | (self.bad_step >= 0), self.bad_step, step)
        if not (now or loss.device.type == "cpu"):
            return
        bad_step = int(self.bad_step)
        bad_step, _ = self._agree(bad_step, False) if self.group is not None else (bad_step, False)
        if bad_step >= 0:
            self._refuse("train/loss", float(loss), bad_step)

    def _refuse(self, name: str, value: float, step: int) -> None:
        good = f"The last good checkpoint is {self.file}" if self.file.exists() else "There is no checkpoint yet"
        raise UserError(
            f"{name} is {value} at step {step}: training stops here. {good}. Try a smaller optim.lr or "
            "trainer.gradient_clip_val=1; debug=anomaly names the operation it comes from."
        )


class EpochBar(TQDMProgressBar):
    """Lightning's bar, without the number of the logger's version."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


def callbacks(
    run: Run,
    history: History,
    signals: Signals,
    *,
    patience: int | None = None,
    every_n_steps: int | None = None,
    every_minutes: float | None = None,
) -> list[Callback]:
    """In this order: `last` is written last, so it knows what is best, and whether training has ended early."""
    return [
        history,
        RankState(),
        *([EarlyStopping(MONITOR, patience=patience)] if patience else []),
        *([EpochBar()] if sys.stderr.isatty() and ranks.rank() == 0 else []),
        ModelCheckpoint(
            dirpath=run.checkpoints,
            filename="best",
            monitor=MONITOR,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        LastCheckpoint(run.last, signals, every_n_steps, every_minutes),
    ]


def _metrics(module: torch.nn.Module) -> dict[str, Metric]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


def _on_cpu(value: Any) -> Any:
    return [part.cpu() for part in value] if isinstance(value, list) else value.detach().cpu().clone()


def _to(value: Any, metric: Metric) -> Any:
    return [part.to(metric.device) for part in value] if isinstance(value, list) else value.to(metric.device)


def _random_state() -> dict[str, Any]:
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        # this process's GPU alone: with the others' each process would open a context on every GPU
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy(), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
