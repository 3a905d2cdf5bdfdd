"""Train one model and record the run.

    python -m ml_project.train experiment=smoke       # one epoch: does everything work?
    python -m ml_project.train optim.lr=0.01          # any setting of conf/, see --cfg job
    python -m ml_project.train run_dir=runs/digits/…  # continue a run that was stopped

What is typed is checked before anything starts.
"""

# The only module that builds objects from configuration.

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from . import ranks, slurm
from .config import answer_help, check
from .errors import CONTINUE_ME, INTERRUPTED, UserError, explain, one_sentence
from .messages import first_line, quiet_lightning, stay_silent
from .mirror import unsent
from .run import Run, as_plain, choose, load_config, occupied, write_whole
from .snapshot import read_data
from .store import Access
from .sweep import one_run
from .sync import sync

if TYPE_CHECKING:  # torch and Lightning are imported where they are used: --help and errors answer at once
    import pytorch_lightning as pl

    from .callbacks import History, Signals
    from .data import ImageData
    from .device import Choice
    from .task import ImageClassifier
    from .tracking import Tracker

log = logging.getLogger(__name__)


def train(cfg: DictConfig, overrides: Sequence[str] = ()) -> Run:
    """Train as configured; starts a new run, or continues the one in `cfg.run_dir`.

    Args:
        cfg: the composed configuration.
        overrides: what was typed on the command line.

    Raises:
        UserError: data, checkpoint or settings do not fit; the sentence says what to do.
        SystemExit: 75 if the run was stopped by a signal, 130 if at once by a second Ctrl-C.
    """
    ranks.check(cfg.trainer.devices, cfg.trainer.num_nodes)
    run, cfg, finished = ranks.decide(lambda: _choose(cfg, overrides))
    if finished:
        print(f"{run.folder} is finished. To train for longer: trainer.max_epochs={cfg.trainer.max_epochs * 2}")
        if ranks.rank() == 0 and unsent(run.folder).exists():  # it was killed after its last epoch
            sync([run.folder])
        return run

    access = Access(cfg.tracking.mlflow_uri if ranks.rank() == 0 else None)  # asked while torch is imported
    import pytorch_lightning as pl

    from .callbacks import History, Signals, WholeFileIO, callbacks

    quiet_lightning()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    for split in ("train", "val"):
        data.split(split)  # a missing or damaged file is told before anything is written
    task = build_task(cfg)
    if checkpoint := run.checkpoint():
        load_weights(task, checkpoint)
    elif cfg.init_from:
        load_weights(task, _checkpoint(cfg.init_from))
    precision, choices = take_of_device(cfg, task)
    if cfg.compile:
        task.model.compile()
    history, signals = History(run), Signals()
    trainer = build_trainer(
        cfg,
        precision=precision,
        logger=False,  # tracking.py does it
        callbacks=[*callbacks(run, history, signals, patience=cfg.patience, **cfg.checkpoint), *_report_to_search(run)],
        plugins=[WholeFileIO(), ranks.environment()],
        enable_progress_bar=sys.stderr.isatty() and ranks.rank() == 0,
        enable_model_summary=False,
        use_distributed_sampler=False,  # data.py shares the images out
    )

    access.check()
    with ExitStack() as stack:
        if ranks.rank() == 0:
            stack.enter_context(occupied(run, cfg))
        else:
            stay_silent()
        for choice in choices:
            log.info("%s: %s", *choice)
        # Lightning's children read the configuration from the folder
        stack.enter_context(ranks.children_run(f"{__package__}.train", f"run_dir={run.folder}", "hydra.mode=RUN"))
        stack.enter_context(signals)
        try:
            _fit(run, cfg, trainer, task, data, history, signals, checkpoint)
        except Exception as error:
            if ranks.rank() == 0:
                write_whole(run.error, (explain(error) or f"{type(error).__name__}: {first_line(error)}") + "\n")
            raise
    return run


def export(run: Run) -> None:
    """Write the best checkpoint in MLflow's format into the run's folder."""
    from .data import as_float
    from .registry import save_model

    cfg = load_config(run)
    task = build_task(cfg)
    load_weights(task, run.best)
    images_NCHW = as_float(build_data(cfg).split("val").__getitems__([0, 0])[0])
    save_model(run.folder, task.model, images_NCHW.numpy(), read_data(run.folder))


def build_data(cfg: DictConfig) -> ImageData:
    data: ImageData = _build(cfg.data)
    return data


def build_task(cfg: DictConfig) -> ImageClassifier:
    from .task import ImageClassifier

    schedule = _build(cfg.schedule) if cfg.get("schedule") else None
    return ImageClassifier(_build(cfg.model), cfg.data.num_classes, _build(cfg.optim), schedule)


def build_trainer(cfg: DictConfig, **options: Any) -> pl.Trainer:
    """The trainer of the configuration; `options` are objects that no YAML file can hold.

    Raises:
        UserError: this machine has not so many devices of this kind.
    """
    import torch

    from .device import kind_of

    kind, wanted = kind_of(cfg.trainer.accelerator), cfg.trainer.devices
    here = {
        "gpu": 0,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": os.cpu_count() or 1,
    }
    if kind in here and wanted > here[kind]:
        name = {"cpu": "CPU cores", "mps": "GPUs of a Mac"}.get(kind, "GPUs that PyTorch can use")
        other = f"trainer.devices={here[kind]}" if here[kind] else "trainer=cpu"
        why = " `make doctor` says why." if kind in ("gpu", "cuda") else ""
        raise UserError(f"trainer.devices is {wanted}, but {name} here: {here[kind]}. Try {other}.{why}")
    trainer: pl.Trainer = _build(cfg.trainer, **options)
    return trainer


def take_of_device(cfg: DictConfig, task: ImageClassifier) -> tuple[str, list[Choice]]:
    """Let the task use what the GPU has; the precision, and every choice that was made."""
    import torch

    from . import device

    name, capability = device.capability_of(device.kind_of(cfg.trainer.accelerator))
    precision, choices = cfg.trainer.precision, []
    if precision == "auto":
        choices.append(device.precision(name, capability))
        precision = choices[0].value
    tensor_float = device.tensor_float(capability) if cfg.trainer.precision == "auto" else None
    torch.set_float32_matmul_precision("high" if tensor_float else "highest")
    layout = device.layout(task.model, capability)
    if layout:
        task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    clips = cfg.trainer.gradient_clip_val is not None
    fused = device.fused(task.make_optimizer, capability, precision, clips) if task.make_optimizer else None
    if fused and task.make_optimizer:
        task.make_optimizer = functools.partial(task.make_optimizer, fused=True)  # type: ignore[call-arg]
    compiled = device.Choice("compiled", "compile=true was asked for") if cfg.compile else None
    return precision, [choice for choice in (*choices, tensor_float, layout, fused, compiled) if choice]


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
        named = [
            f"{name} ({shapes.get(name, 'absent')}, the model has {wanted.get(name, 'nothing')})"
            for name in different[:5]
        ]
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise UserError(
            f"{checkpoint} is of another model: {len(different)} layers differ: {', '.join(named)}{more}. "
            "Use the configuration and code it was trained with, or start a new run."
        )
    task.load_state_dict(weights)


def _choose(cfg: DictConfig, overrides: Sequence[str]) -> tuple[Run, DictConfig, bool]:
    """The run, its configuration, and whether nothing is left to do."""
    run, cfg = choose(cfg, overrides)
    if run.anew or not run.finished():
        return run, cfg, False
    return run, cfg, load_config(run).trainer.max_epochs >= cfg.trainer.max_epochs


def _fit(
    run: Run,
    cfg: DictConfig,
    trainer: pl.Trainer,
    task: ImageClassifier,
    data: ImageData,
    history: History,
    signals: Signals,
    checkpoint: Path | None,
) -> None:
    """Train to the end, or to where it is stopped, and say so in the folder and in MLflow."""
    from .callbacks import Stopped

    tracker = history.tracker = _tracker(run, cfg) if ranks.rank() == 0 else None
    if checkpoint:
        log.info("continuing from %s", checkpoint)
    status, stop = "FAILED", None
    try:
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if tracker:
            history.on_train_start(trainer, task)  # where nothing was left to train
            _report(run, history)
            history.track_best()
            if cfg.tracking.log_model:
                export(run)
            _finish(run, history)
            tracker.close("FINISHED", give_up=signals.came)
            _finish(run, history)  # MLflow's id may have come meanwhile
        status = "FINISHED"
    except Stopped as error:
        status, stop = "KILLED", error
    except SystemExit:  # how Lightning ends after the second Ctrl-C
        status = "KILLED"
        log.info("stopped at once. Go on with: %s", run.go_on())
        sys.exit(INTERRUPTED)
    finally:
        if tracker and status != "FINISHED":
            tracker.close(status)
    if stop:
        _leave(run, stop.signum)


def _finish(run: Run, history: History) -> None:
    write_whole(run.metrics, json.dumps({**history.best(), **run.mlflow_id()}, indent=2) + "\n")


def _tracker(run: Run, cfg: DictConfig) -> Tracker:
    from .tracking import Tracker

    return Tracker(
        run.folder,
        cfg.tracking.mlflow_uri,
        tensorboard=cfg.tracking.tensorboard,
        details=cfg.tracking.tensorboard_details,
        system_every_s=cfg.tracking.system_every_s,
        new=run.num_starts() == 1,
    )


def _leave(run: Run, signum: int) -> None:
    """End so that whoever started this run starts it again."""
    if ranks.rank() > 0:
        sys.exit(0)  # Lightning kills rank 0 when a child ends with another status
    if slurm.requeue_on(signum):
        log.info("stopped: Slurm's job %s goes back into the queue, and continues here", slurm.job_id())
        slurm.requeue()
    else:
        log.info("stopped. Go on with: %s", run.go_on())
    sys.exit(CONTINUE_ME)


def _report_to_search(run: Run) -> list[Any]:
    """What tells Optuna how a trial is doing; nothing where the run is no trial."""
    if not (run.folder / "trial.json").exists():
        return []
    from .pruning import Report

    return [Report(run.folder)]


def learning_curve_of(run: Run) -> Path:
    return run.folder / "learning_curve.png"


def _report(run: Run, history: History) -> None:
    from .callbacks import MONITOR
    from .plots import learning_curve

    best = history.best()
    learning_curve(history.rows, learning_curve_of(run))
    log.info("best epoch %d: val/accuracy %.4f, val/loss %.4f", best["epoch"] + 1, best["val/accuracy"], best[MONITOR])


def _checkpoint(name: str) -> Path:
    """A checkpoint's file, or the best one of a run's folder."""
    file = Path(name)
    file = Run(file).best if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"init_from={name} is no checkpoint. Give a file such as runs/.../checkpoints/best.ckpt.")
    return file


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


@hydra.main(version_base="1.3", config_path=f"pkg://{__package__}.conf", config_name="train")
def _train(cfg: DictConfig) -> None:
    overrides = list(HydraConfig.get().overrides.task)
    in_a_sweep = not OmegaConf.is_missing(HydraConfig.get().job, "num")
    slurm.requeue_while_starting()
    with one_run(cfg.run_dir, overrides) if in_a_sweep else one_sentence():
        check(cfg, "train", overrides)
        train(cfg, overrides)


def main() -> None:
    answer_help(__doc__, "train")
    with one_sentence():  # once more, for what Hydra finds before it calls _train
        _train()


if __name__ == "__main__":
    main()
