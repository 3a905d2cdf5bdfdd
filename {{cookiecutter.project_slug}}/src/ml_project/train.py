"""Train one model and record the run.

    python -m ml_project.train experiment=smoke       # one epoch: does everything work?
    python -m ml_project.train optimizer.lr=0.01      # any setting of conf/, see --cfg job
    python -m ml_project.train run_dir=runs/digits/…  # resume a run that was stopped

What is typed is checked before anything starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

import runengine

if TYPE_CHECKING:  # torch and Lightning are imported where they are used: --help and errors answer at once
    from .data import ImageData
    from .task import ImageClassifier


@runengine.main("train")
def train(cfg: DictConfig, run: runengine.TrainingRun) -> None:
    import pytorch_lightning as pl

    from .plots import learning_curve

    data = build_data(cfg)
    data.setup("fit")  # a missing or damaged file ends it here, before anything is written
    task = build_task(cfg)
    run.start_from(task, cfg.init_from)
    callbacks, loggers = runengine.build_all(cfg.callbacks), runengine.build_all(cfg.loggers)
    trainer = pl.Trainer(**run.trainer_options(task, callbacks=callbacks, loggers=loggers))
    if cfg.compile:
        task.model.compile()
    with run:  # its folder is made, locked, and records what happens from here on
        trainer.fit(task, data, ckpt_path=run.resume_from, weights_only=True)
        run.save_figure("learning_curve.png", learning_curve(run.epochs))


def build_data(cfg: DictConfig) -> ImageData:
    data: ImageData = instantiate(cfg.data, _convert_="all")
    return data


def build_task(cfg: DictConfig) -> ImageClassifier:
    """The task with a new model; its weights are random."""
    from .task import ImageClassifier

    if cfg.optimizer.get("lr", 1) <= 0:  # torch takes 0, and then nothing is learned
        raise runengine.UserError(f"optimizer.lr must be > 0, got {cfg.optimizer.lr}.")
    if cfg.optimizer.get("momentum", 0) >= 1:  # torch takes it, and then the steps grow without end
        raise runengine.UserError(f"optimizer.momentum must be < 1, got {cfg.optimizer.momentum}.")
    model = instantiate(cfg.model, _convert_="all")
    make_optimizer = instantiate(cfg.optimizer, _convert_="all")
    lr_scheduler = instantiate(cfg.lr_scheduler, _convert_="all") if cfg.get("lr_scheduler") else None
    task = ImageClassifier(model, cfg.data.input_shape, cfg.data.num_classes, make_optimizer, lr_scheduler)
    make_optimizer(task.parameters())  # settings that it refuses end it here, before anything is written
    return task


if __name__ == "__main__":
    train()
