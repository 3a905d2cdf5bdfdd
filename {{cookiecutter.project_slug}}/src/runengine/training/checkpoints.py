"""Checkpoints: `last.ckpt` to resume from, `best.ckpt` to use; each is there complete or not at all."""

from __future__ import annotations

import copy
import math
import os
import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from ..compat import in_a_resumed_epoch
from ..runs.run import Run
from ..runs.weights import refuse_damaged
from ..settings.errors import UserError
from .history import History, loss_of
from .signals import Signals, Stopped

LOSS_CHECK_STEPS = 50  # on a GPU the loss is looked at so often: each look waits for the GPU
BEST = PurePosixPath(Run.best.name).name
EPOCHS_S = 1.0  # of epochs that take milliseconds, one has its checkpoint written in so many seconds

CheckpointContent = dict[str, Any]


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is there complete or not at all, also after a power cut.

    Lightning's own way over the temporary folder copies where that is another disk, and can be killed in the copy.

    The best checkpoint of short epochs, on the CPU, is kept in memory, and written when the next `last.ckpt` is, which
    names it: after a kill both are of earlier epochs, and those that follow are trained again.
    """

    def __init__(self) -> None:
        self.best: dict[Path, CheckpointContent] = {}  # to be written
        self.best_at = -math.inf  # when one was written

    def save_checkpoint(self, checkpoint: CheckpointContent, path: Any, storage_options: Any = None) -> None:
        file = Path(path)
        if file.name == BEST and time.monotonic() - self.best_at < EPOCHS_S and _is_in_memory(checkpoint):
            self.best[file] = copy.deepcopy(checkpoint)
            return
        self.best.pop(file, None)
        self.write_best()
        self._write(checkpoint, file)
        if file.name == BEST:
            self.best_at = time.monotonic()

    def write_best(self) -> None:
        while self.best:
            file, checkpoint = self.best.popitem()
            self._write(checkpoint, file)
            self.best_at = time.monotonic()

    def teardown(self) -> None:
        """Lightning calls it at the end of `fit`, also after an error."""
        self.write_best()

    def _write(self, checkpoint: CheckpointContent, file: Path) -> None:
        new = file.with_name(f"{file.name}.new")
        with new.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> CheckpointContent:
        refuse_damaged(Path(path))
        content: CheckpointContent = super().load_checkpoint(path, *args, **kwargs)
        return content


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets its best value where the folder has another name than before: runs are moved.

    Before it looks at an epoch, it adds the epoch's row: `Checkpoint`s come behind the task and the other callbacks.
    """

    def __init__(self, history: History, **settings: Any) -> None:
        super().__init__(**settings)
        self.history = history

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.history.add_row(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))
        moved = {"dirpath": self.dirpath}
        if state_dict["best_model_path"]:
            moved["best_model_path"] = str(folder / Path(state_dict["best_model_path"]).name)
        kept = {str(folder / Path(name).name): value for name, value in state_dict["best_k_models"].items()}
        kth = state_dict["kth_best_model_path"]
        moved["kth_best_model_path"] = str(folder / Path(kth).name) if kth else kth
        super().load_state_dict({**state_dict, **moved, "best_k_models": kept})


def _is_in_memory(checkpoint: CheckpointContent) -> bool:
    """A copy of what is on a GPU could be more than it has."""
    return all(
        value.device.type == "cpu" for value in checkpoint["state_dict"].values() if isinstance(value, torch.Tensor)
    )


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after each epoch, every so many steps or minutes, and when the run gets a signal to stop.

    Of epochs shorter than EPOCHS_S, those between are left out: never the first of a process, nor the last one.

    Watches the loss as well: a checkpoint with NaN in it must not take the place of a good one.

    Args:
        file: of the checkpoint.
        signals: those that stop the run.
        metric: is watched for NaN, too.
        every_n_steps, every_minutes: None for never.
    """

    def __init__(
        self,
        file: Path,
        signals: Signals,
        metric: str | None,
        every_n_steps: int | None,
        every_minutes: float | None,
    ) -> None:
        self.file = file
        self.signals = signals
        self.metric = metric
        self.every_n_steps = every_n_steps
        self.every_s = every_minutes * 60 if every_minutes else math.inf
        self.saved_at = time.monotonic()
        self.saved_step = -1  # the step of the last save in this process
        self.group: Any = None
        self.bad_step: torch.Tensor | None = None  # the first step whose loss is not finite; -1 for none
        self.ended = False  # before its last epoch: in the checkpoint, as Lightning would train one more
        self.due: list[tuple[int, float]] = []  # schedulers that step after this checkpoint, and what each waits for
        self.step = 0  # of the last look at `every_n_steps`

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended, "due": self.due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ended, self.due = state_dict["ended"], state_dict.get("due", [])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.ended, self.due = False, []  # not those of an earlier call of `fit`; a checkpoint is loaded after this
        self.bad_step, self.saved_step = None, -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = self.ended
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")  # to agree without waiting for the GPUs
        self.signals.take_back()  # Lightning has put its own handler for SIGTERM before ours
        self._step_what_is_due(trainer, pl_module)
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = loss_of(outputs)
        last, step, self.step = trainer.is_last_batch, self.step, trainer.global_step
        self._look_at(loss, trainer.global_step, now=last or (batch_idx + 1) % LOSS_CHECK_STEPS == 0)
        if last or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the end of the epoch saves; a half-accumulated gradient could not be saved
        # several optimizers make several steps of a batch: the number is crossed, and not always met
        due = self.every_n_steps and step // self.every_n_steps < trainer.global_step // self.every_n_steps
        due = due or time.monotonic() - self.saved_at > self.every_s
        signum, save = self._agree(self.signals.signum, bool(due))
        if signum or save:
            self._look_at(loss, trainer.global_step, now=True)
            self._save(trainer)
        if signum:
            raise Stopped(signum)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = float(trainer.callback_metrics.get(self.metric, 0.0)) if self.metric else 0.0
        if not trainer.sanity_checking and not math.isfinite(value):
            self._refuse(str(self.metric), value, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended, self.due = trainer.should_stop, _due_schedulers(trainer, pl_module)
        due = self.saved_step < 0 or _is_last_epoch(trainer) or time.monotonic() - self.saved_at > EPOCHS_S
        signum, save = self._agree(self.signals.signum, due)
        if signum or save:
            self._save(trainer)
        if in_a_resumed_epoch(trainer):  # Lightning leaves them out in an epoch that was resumed
            self._step_what_is_due(trainer, pl_module)
        self.due = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signum, _ = self._agree(self.signals.signum, False)
        if signum and self.saved_step == trainer.global_step:  # if it came later, the first step of this epoch saves
            raise Stopped(signum)

    def _step_what_is_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for index, value in self.due:
            pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, value)
        self.due = []

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step

    def _agree(self, signum: int, save: bool) -> tuple[int, bool]:
        """What any process wants, all do, after the same step."""
        if self.group is None:
            return signum, save
        wanted = torch.tensor([signum, int(save)])
        dist.all_reduce(wanted, dist.ReduceOp.MAX, group=self.group)
        return int(wanted[0]), bool(wanted[1])

    def _look_at(self, loss: torch.Tensor | None, step: int, *, now: bool) -> None:
        """Note the first step with a bad loss, without waiting for the GPU; report it when it is time to look."""
        if loss is None:
            return
        if loss.device.type == "cpu":
            bad_step = -1 if math.isfinite(loss.item()) else step
        else:
            if self.bad_step is None:
                self.bad_step = torch.full((), -1, device=loss.device)
            self.bad_step = torch.where(torch.isfinite(loss) | (self.bad_step >= 0), self.bad_step, step)
            if not now:
                return
            bad_step = int(self.bad_step)
        bad_step, _ = self._agree(bad_step, False)
        if bad_step >= 0:
            self._refuse("train/loss", float(loss), bad_step)

    def _refuse(self, name: str, value: float, step: int) -> None:
        good = f"The last good checkpoint is {self.file}" if self.file.exists() else "There is no checkpoint yet"
        raise UserError(
            f"{name} is {value} at step {step}: training stops here. {good}. Try a smaller optimizer.lr or "
            "trainer.gradient_clip_val=1; debug=anomaly names the operation it comes from."
        )


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    """Does the training end after this one, or may it?"""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    return trainer.should_stop or trainer.current_epoch + 1 == epochs or 0 <= steps <= trainer.global_step


def _due_schedulers(trainer: pl.Trainer, task: pl.LightningModule) -> list[tuple[int, float]]:
    """Those that wait for a metric, such as ReduceLROnPlateau: Lightning steps them after the epoch's checkpoint."""
    if not task.automatic_optimization:
        return []
    return [
        (index, float(trainer.callback_metrics[str(config.monitor)]))
        for index, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and (trainer.current_epoch + 1) % config.frequency == 0
        and config.monitor in trainer.callback_metrics
    ]
