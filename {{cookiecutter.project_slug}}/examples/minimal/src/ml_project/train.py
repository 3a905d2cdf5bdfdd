"""Train one model and record the run.

python -m ml_project.train experiment=smoke       # one epoch: does everything work?
python -m ml_project.train optimizer.lr=0.01      # any setting of conf/, see --cfg job
python -m ml_project.train run_dir=runs/points/…  # resume a run that was stopped
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

import runengine

if TYPE_CHECKING:  # torch and Lightning are imported where they are used: --help and errors answer at once
    from .data import Data
    from .task import Task


@runengine.main("train")
def train(cfg: DictConfig, run: runengine.TrainingRun) -> None:
    import pytorch_lightning as pl

    data = build_data(cfg)
    data.setup("fit")  # a missing or damaged file ends it here, before anything is written
    task = build_task(cfg)
    run.start_from(task, cfg.init_from)
    callbacks, loggers = runengine.build_all(cfg.callbacks), runengine.build_all(cfg.loggers)
    trainer = pl.Trainer(**run.trainer_options(task, callbacks=callbacks, loggers=loggers))
    with run:  # its folder is made, locked, and records what happens from here on
        trainer.fit(task, data, ckpt_path=run.resume_from, weights_only=True)


def build_data(cfg: DictConfig) -> Data:
    data: Data = instantiate(cfg.data, _convert_="all")
    return data


def build_task(cfg: DictConfig) -> Task:
    """The task with a new model; its weights are random."""
    from .task import Task

    model = instantiate(cfg.model, _convert_="all")
    return Task(model, cfg.data.num_features, instantiate(cfg.optimizer, _convert_="all"))


if __name__ == "__main__":
    train()
