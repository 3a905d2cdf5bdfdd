"""Train one model and record the run.

    python -m ml_project.train experiment=smoke       # one epoch: does everything work?
    python -m ml_project.train optim.lr=0.01          # any setting of conf/, see --cfg job
    python -m ml_project.train run_dir=runs/digits/…  # continue a run that was stopped

The only module that builds objects from configuration.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from .config import check
from .errors import UserError, one_sentence
from .run import Run, as_plain, choose, mlflow_client, open_mlflow_run, program, quiet_lightning, start

if TYPE_CHECKING:  # torch and Lightning are imported where they are used: --help and errors answer at once
    import pytorch_lightning as pl

    from .data import ImageData
    from .task import ImageClassifier

MONITOR = "val/loss"

log = logging.getLogger(__name__)


def train(cfg: DictConfig, overrides: Sequence[str] = ()) -> Run:
    """Train as configured; starts a new run, or continues the one in `cfg.run_dir`.

    Args:
        cfg: the composed configuration.
        overrides: what was typed on the command line.

    Raises:
        UserError: data, checkpoint or settings do not fit; the sentence says what to do.
    """
    run, cfg = choose(cfg, overrides)

    import pytorch_lightning as pl

    from .callbacks import History, callbacks

    quiet_lightning()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    for split in ("train", "val"):
        data.split(split)  # a missing or damaged file is told before anything is written
    task = build_task(cfg)
    if run.last.exists():
        load_weights(task, run.last)

    start(run, cfg)
    if run.last.exists():
        log.info("continuing from %s", run.last)
    history = History(run.folder / "history.csv")
    run_id = open_mlflow_run(run, cfg) if cfg.tracking.mlflow_uri else None
    trainer = build_trainer(
        cfg,
        logger=_loggers(run, cfg, run_id),
        callbacks=callbacks(run, history),
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
    )
    try:
        trainer.fit(task, datamodule=data, ckpt_path=run.last if run.last.exists() else None, weights_only=True)
    except SystemExit:  # how Lightning ends after Ctrl-C
        if run_id:
            mlflow_client(cfg.tracking.mlflow_uri).set_terminated(run_id, "KILLED")
        log.info("stopped. Go on with: %s run_dir=%s", program("train"), run.folder)
        sys.exit(130)

    best = history.best(MONITOR)
    (run.folder / "metrics.json").write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")
    from .plots import learning_curve

    learning_curve(history.rows, run.folder / "learning_curve.png")
    if run_id:
        client = mlflow_client(cfg.tracking.mlflow_uri)
        for file in (run.config, run.best, run.folder / "metrics.json", run.folder / "learning_curve.png"):
            client.log_artifact(run_id, str(file))
    log.info("best epoch %d: val/accuracy %.4f, val/loss %.4f", best["epoch"] + 1, best["val/accuracy"], best[MONITOR])
    return run


def build_data(cfg: DictConfig) -> ImageData:
    data: ImageData = _build(cfg.data)
    return data


def build_task(cfg: DictConfig) -> ImageClassifier:
    from .task import ImageClassifier

    return ImageClassifier(_build(cfg.model), cfg.data.num_classes, _build(cfg.optim))


def build_trainer(cfg: DictConfig, **options: Any) -> pl.Trainer:
    """The trainer of the configuration; `options` are objects that no YAML file can hold."""
    trainer: pl.Trainer = _build(cfg.trainer, **options)
    return trainer


def load_weights(task: ImageClassifier, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the task.

    Raises:
        UserError: the file is damaged, or of another model; then it names the layers.
    """
    import torch

    try:
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except OSError:
        raise
    except Exception as error:  # what torch raises for a damaged file depends on where it is damaged
        raise UserError(
            f"{checkpoint} is damaged: it cannot be read as a checkpoint. Delete it, then train again."
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    different = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{checkpoint} is of another model: {len(different)} layers differ, first {name}: "
            f"{shapes.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} in the model. "
            "Use the run's own config.yaml and code, or start a new run."
        )
    task.load_state_dict(weights)


def _build(node: DictConfig, **options: Any) -> Any:
    """Call the `_target_` of a node with its settings.

    Raises:
        UserError: it does not take these values (this machine lacks the accelerator, the images are too small, ...).
    """
    from hydra.errors import InstantiationException
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        return hydra.utils.instantiate(as_plain(node), **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | MisconfigurationException):
            raise UserError(f"{node._target_} cannot be built: {error.__cause__}") from error
        raise


def _loggers(run: Run, cfg: DictConfig, run_id: str | None) -> list[Any]:
    from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger

    loggers: list[Any] = []
    if run_id:
        loggers.append(MLFlowLogger(tracking_uri=cfg.tracking.mlflow_uri, run_id=run_id))
    if cfg.tracking.tensorboard:
        loggers.append(TensorBoardLogger(run.folder, name="", version="tensorboard", default_hp_metric=False))
    return loggers


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def _train(cfg: DictConfig) -> None:
    with one_sentence():
        overrides = HydraConfig.get().overrides.task
        check(cfg, "train", overrides)
        train(cfg, overrides)


if __name__ == "__main__":
    with one_sentence():  # once more, for what Hydra finds before it calls _train
        _train()
