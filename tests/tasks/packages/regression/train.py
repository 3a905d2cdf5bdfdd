"""Regression on a table: the progress of diabetes after a year.

python -m regression.train
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import runengine
from hydra.utils import instantiate
from omegaconf import DictConfig

if TYPE_CHECKING:
    import pytorch_lightning as pl


@runengine.main("train")
def train(cfg: DictConfig, run: runengine.TrainingRun) -> None:
    import pytorch_lightning as pl

    data, task = build_data(cfg), build_task(cfg)
    run.start_from(task, cfg.init_from)
    callbacks, loggers = runengine.build_all(cfg.callbacks), runengine.build_all(cfg.loggers)
    trainer = pl.Trainer(**run.trainer_options(task, callbacks=callbacks, loggers=loggers))
    with run:
        trainer.fit(task, data, ckpt_path=run.resume_from, weights_only=True)


def build_data(cfg: DictConfig) -> pl.LightningDataModule:
    return instantiate(cfg.data, _convert_="all")


def build_task(cfg: DictConfig) -> pl.LightningModule:
    return instantiate(cfg.task, _convert_="all")


if __name__ == "__main__":
    train()
