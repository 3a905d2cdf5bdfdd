"""Changes an augmentation the batches of the training and no others, and does a stopped run resume exactly?

python augmented.py my_project data.shift=1          # in a project's folder, which has followed docs/augmentation.md
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytorch_lightning as pl
import torch
from runengine import compose
from runengine.testing import assert_resumes_exactly

RELOAD = "reload_dataloaders_every_n_epochs"
SHORT: dict[str, Any] = {
    **{"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 4, "limit_test_batches": 4},
    **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
}


class See(pl.Callback):
    """Keeps the batches, as the task gets them."""

    def __init__(self) -> None:
        self.train: list[Any] = []
        self.val: list[Any] = []
        self.test: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(batch)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.val.append(batch)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        self.test.append(batch)


def train(module: Any, *typed: str) -> tuple[See, float]:
    """What was seen, and the loss of the training."""
    cfg, see = compose("train", ["optimizer=sgd", *typed]), See()
    pl.seed_everything(0, verbose=False)
    data, task = module.build_data(cfg), module.build_task(cfg)
    trainer = pl.Trainer(accelerator="cpu", callbacks=[see], **SHORT, **{RELOAD: cfg.trainer.get(RELOAD, 0)})
    trainer.fit(task, data)
    loss = float(trainer.callback_metrics["train/loss"])
    trainer.test(task, data, verbose=False)
    return see, loss


def equal(batches: list[Any], others: list[Any]) -> list[bool]:
    assert [inputs.shape for inputs, _ in batches] == [inputs.shape for inputs, _ in others]
    return [torch.equal(inputs, other) for (inputs, _), (other, _) in zip(batches, others, strict=True)]


def main(package: str, setting: str) -> None:
    module = importlib.import_module(f"{package}.train")
    (plain, loss), (changed, other) = train(module), train(module, setting)
    assert len(plain.train) == 8
    assert plain.val
    assert plain.test
    assert not any(equal(plain.train, changed.train))
    assert all(equal(plain.val + plain.test, changed.val + changed.test))
    assert loss != other
    assert_resumes_exactly(module.train, [setting, "trainer.limit_val_batches=4"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
