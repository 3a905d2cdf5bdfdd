"""The rows of a run, one for each epoch: in the log, in `history.csv`, in the checkpoint."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ..compat import stage_metrics
from ..runs.run import Run
from ..settings.errors import UserError
from ..settings.files import atomic_write
from ..tracking.tracker import Row, Tracker

STEPS_A_ROW = 50  # as often the tracker gets a row between the epochs; on a GPU it is waited for then

STATE = ("since", "phase", "epochs_before", "steps_before")

log = logging.getLogger(__name__)


class History(Callback):
    """One row an epoch: in the log, in `history.csv`, and in the checkpoint, where it is resumed.

    The tracker gets these rows, what cannot be the same twice (speed), and rows between the epochs.

    Args:
        run: whose rows they are.
        metric, mode: what is monitored, `min` or `max`; a metric of None is not looked for.
    """

    def __init__(self, run: Run, metric: str | None, mode: str) -> None:
        self.file = run.history
        self.last = run.last
        self.metric, self.mode = metric, mode
        self.tracker: Tracker | None = None  # rank 0 gets one
        self.rows: list[Row] = []
        self.lines: list[str] = []  # the same as JSON: a checkpoint is written as quickly after a thousand epochs
        self.columns: dict[str, None] = {}  # of the file
        self.num_written = 0  # rows that this process has put into the file
        self.since = 0  # the first row that this metric could choose
        self.clock = Clock()
        self.epoch_clock = Clock()
        self.validated = False  # in this process
        self.validation: Row = {}  # of this epoch
        self.phase = -1  # of a run that calls `fit` several times, the number of this call
        self.more = False  # whether another call follows
        self.epochs_before = self.steps_before = 0  # in the calls before this one
        self.ended = False  # the last call of `fit`, without an error

    def begin(self, more: bool) -> None:
        """The next call of `fit` counts its epochs and steps from 0: in the rows they continue."""
        self.phase += 1
        self.more = more
        if self.rows:
            self.epochs_before, self.steps_before = int(self.rows[-1]["epoch"]) + 1, int(self.rows[-1]["step"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended = False

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended = not self.more
        if self.tracker:  # also where no epoch was left: the file may have been damaged since
            self.num_written = 0
            self.write()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.track_rows()
        self.clock.restart()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_clock.restart()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.tracker and self.tracker.details and trainer.is_global_zero and batch_idx == 0:
            self.tracker.draw(pl_module, self.steps_before + trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.tracker:
            return
        num_examples = num_examples_of(batch) * trainer.world_size
        self.clock.num_examples += num_examples
        self.epoch_clock.num_examples += num_examples
        if (batch_idx + 1) % (STEPS_A_ROW * trainer.accumulate_grad_batches) == 0:
            row: Row = {"speed/examples_per_s_of_steps": self.clock.examples_per_s()}
            for number, optimizer in enumerate(trainer.optimizers):
                row[f"step/lr{f'_{number}' if number else ''}"] = optimizer.param_groups[0]["lr"]
            if (loss := loss_of(outputs)) is not None:  # of this process's last batch
                row["step/train_loss"] = float(loss) * trainer.accumulate_grad_batches
            self.tracker.add(self.steps_before + trainer.global_step, row)
            self.clock.restart()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated, self.validation = True, stage_metrics(trainer)

    def add_row(self, trainer: pl.Trainer) -> None:
        """Of this epoch; `BestCheckpoint` calls it, behind all who log."""
        metrics, self.validation = dict(sorted((stage_metrics(trainer) | self.validation).items())), {}
        place = {
            "epoch": self.epochs_before + trainer.current_epoch,
            "step": self.steps_before + trainer.global_step,
        }
        self.rows.append({**place, **metrics})
        self.lines.append(json.dumps(self.rows[-1]))
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info("%s  %s", name_of_epoch(trainer), shown)
        if self.tracker:
            self.write()
            # with the validation's time, which is the user's time, too
            self._track(
                self.rows[-1]
                | {"speed/epoch_s": self.epoch_clock.s(), "speed/examples_per_s": self.epoch_clock.examples_per_s()}
            )
        if self.metric is None or self.metric in metrics:
            return
        logged = {name for row in self.rows for name in row} - place.keys()
        if self.metric not in logged and (self.validated or not validates(trainer)):
            trainer.save_checkpoint(self.last)  # to be resumed from
            names = ", ".join(sorted(logged)) or "nothing"
            raise UserError(
                f"monitor.metric is {self.metric}, but the task has logged {names}. Log it with self.log(), or resume "
                f"with another: run_dir={self.file.parent} monitor.metric=... monitor.mode=min (null for none)."
            )

    def track_rows(self) -> None:
        """All rows there are; what the tracker has it leaves alone."""
        for row in self.rows:
            self._track(row)

    def _track(self, row: Row) -> None:
        if self.tracker:
            self.tracker.add(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def track_best(self) -> None:
        """What the best checkpoint reaches: MLflow's table shows the last row of each metric."""
        if best := self.best():
            stage = (self.metric or "").partition("/")[0]
            names = [name for name in best if name.partition("/")[0] == stage and name not in ("epoch", "step")]
            log.info("best epoch %d: %s", best["epoch"] + 1, ", ".join(f"{name} {best[name]:.4f}" for name in names))
            named = {f"best/{name.replace('/', '_')}": value for name, value in best.items() if name != "step"}
            self._track({"step": best["step"], **named})

    def write(self) -> None:
        """Put what is new into the file: the last rows, or all of them where it is not there or lacks a column."""
        new = self.rows[self.num_written :]
        names = {name for row in new for name in row}
        whole = not (self.num_written and names <= self.columns.keys() and self.file.is_file())
        if whole:
            new, self.columns = self.rows, dict.fromkeys(name for row in self.rows for name in row)
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.columns), lineterminator="\n")
        if whole:
            table.writeheader()
        table.writerows(new)
        if whole:
            atomic_write(self.file, text.getvalue())
        else:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        self.num_written = len(self.rows)

    def best(self) -> Row:
        """The row of `best.ckpt`: the best monitored value, the last one if none is monitored; empty without rows."""
        rows = [row for row in self.rows[self.since :] if self.metric in row and not math.isnan(row[self.metric])]
        if self.metric is None or not rows:
            return self.rows[-1] if self.rows else {}
        metric = self.metric
        return (min if self.mode == "min" else max)(rows, key=lambda row: row[metric])

    def state_dict(self) -> dict[str, Any]:
        rows = "\n".join(self.lines)
        return {"monitor": [self.metric, self.mode], "rows": rows, **{name: getattr(self, name) for name in STATE}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])
        rows = state_dict["rows"]  # a list, in checkpoints of November 2026
        self.lines = rows.splitlines() if isinstance(rows, str) else [json.dumps(row) for row in rows]
        self.rows, self.num_written = [json.loads(line) for line in self.lines], 0
        if state_dict["monitor"] != [self.metric, self.mode]:  # resumed with another: what is best begins again
            self.since = len(self.rows)


class Clock:
    """Examples and the seconds they took."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.started_at, self.num_examples = time.perf_counter(), 0

    def s(self) -> float:
        return time.perf_counter() - self.started_at

    def examples_per_s(self) -> float:
        return self.num_examples / max(self.s(), 1e-9)


def name_of_epoch(trainer: pl.Trainer) -> str:
    """`epoch 3 of 20`; without the end of a training whose epochs nothing limits."""
    of_all = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
    return f"epoch {trainer.current_epoch + 1}{of_all}"


def validates(trainer: pl.Trainer) -> bool:
    return sum(map(float, trainer.num_val_batches)) > 0


def num_examples_of(batch: Any) -> int:
    """The length of the first tensor in a batch of any structure; 1 where there is none."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((num_examples_of(part) for part in parts), 1)


def loss_of(outputs: Any) -> torch.Tensor | None:
    """What `training_step` returned as its loss; None under manual optimization, which may return nothing."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return loss if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None
