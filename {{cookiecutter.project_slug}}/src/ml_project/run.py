"""A run is its folder: configuration, checkpoints, log, and the id of its MLflow run.

    runs/<experiment>/<start to the microsecond>-<random>/
        config.yaml      what was composed; the checkpoints are read with it
        checkpoints/     last.ckpt to go on from, best.ckpt to use
        metrics.json  history.csv  learning_curve.png  train.log  mlflow_run_id  tensorboard/

Training in a folder that holds `last.ckpt` continues it, in the same MLflow run.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from .config import flatten, typed_key
from .errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS = Path("runs")
MAY_GROW = "trainer.max_epochs"  # the one setting that may change when a run is continued: it may go on for longer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def mlflow_run_id(self) -> Path:
        return self.folder / "mlflow_run_id"


def choose(cfg: DictConfig, overrides: Sequence[str] = ()) -> tuple[Run, DictConfig]:
    """A new run, or the one in `cfg.run_dir`, with the configuration it has; writes nothing.

    Args:
        cfg: the composed configuration.
        overrides: what was typed; a run is continued with its own configuration, and these may not contradict it.

    Raises:
        UserError: the folder is no run, or was trained with other settings.
    """
    if cfg.run_dir is None:
        started_at = datetime.now().strftime("%Y%m%d-%H%M%S.%f")
        return Run(RUNS / cfg.experiment_name / f"{started_at}-{secrets.token_hex(3)}"), cfg
    run = Run(Path(cfg.run_dir))
    if run.config.exists():
        return run, _continued(run, cfg, overrides)
    if run.folder.is_dir() and any(run.folder.iterdir()) and not run.log.exists():
        raise UserError(f"{run.folder} is not the folder of a run: it has no config.yaml. Leave run_dir out.")
    return run, cfg


def start(run: Run, cfg: DictConfig) -> None:
    """Make the run's folder if it is not there yet, write its configuration, and open its log.

    Raises:
        OSError: the folder cannot be written.
    """
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    _open_log(run.log)
    cfg = cfg.copy()
    cfg.run_dir = None  # the folder may move
    new = run.config.with_suffix(".new")
    new.write_text(OmegaConf.to_yaml(cfg), encoding="utf-8")
    new.replace(run.config)
    log.info("run %s", run.folder)


def find(folder: str | None) -> Run:
    """The run in this folder; without one, the run whose best checkpoint is newest.

    Raises:
        UserError: there is none, or it has no checkpoint yet.
    """
    if folder is None:
        checkpoints = sorted(RUNS.glob("*/*/checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
        if not checkpoints:
            raise UserError(f"there is no trained run in {RUNS.resolve()}. Run: make train")
        return Run(checkpoints[-1].parent.parent)
    run = Run(Path(folder))
    if not run.config.is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml. Look into {RUNS}/.")
    if not run.best.is_file():
        raise UserError(f"{folder} has no checkpoint yet. Run: {program('train')} run_dir={folder}")
    return run


def load_config(run: Run) -> DictConfig:
    """The configuration the run was trained with."""
    cfg = OmegaConf.load(run.config)
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        raise UserError(f"{run.config} is damaged: it has no `model`. Copy it from the run's artifacts in MLflow.")
    return cfg


def mlflow_client(uri: str) -> MlflowClient:
    """A client of this store; MLflow is quiet and sends nothing to its makers."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import mlflow

    for noisy in ("alembic", "mlflow", "pytorch_lightning.loggers.mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return mlflow.MlflowClient(tracking_uri=uri)


def open_mlflow_run(run: Run, cfg: DictConfig) -> str:
    """The id of the run's MLflow run, made at the first call.

    Records the parameters, and as tags the command, the folder and the git commit.
    """
    client = mlflow_client(cfg.tracking.mlflow_uri)
    command = " ".join([program("train"), *sys.argv[1:]])
    if run.mlflow_run_id.exists():
        run_id = run.mlflow_run_id.read_text(encoding="utf-8").strip()
        try:
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, "command", command)
            return run_id
        except Exception as error:  # MLflow raises its own kinds for each store
            log.warning("MLflow run %s cannot be continued (%s): a new one is started", run_id, _first_line(error))

    from mlflow.entities import Param

    experiment = client.get_experiment_by_name(cfg.experiment_name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(cfg.experiment_name)
    tags = {"command": command, "run_dir": run.folder.as_posix(), **git_state()}
    run_id = str(client.create_run(experiment_id, run_name=run.folder.name, tags=tags).info.run_id)
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in _parameters(cfg)])
    run.mlflow_run_id.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def _parameters(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """What decides the result; not where it is recorded, which may hold a password."""
    return ((key, value) for key, value in flatten(cfg) if not key.startswith("tracking."))


def git_state() -> dict[str, str]:
    """Commit of this project and whether files differ from it; empty where the project is in no repository."""

    def git(*arguments: str) -> str:
        here = Path(__file__)
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a repository around the project is not its own
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.dirty": str(bool(git("status", "--short")))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _continued(run: Run, cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The stored configuration, unless what was typed contradicts it."""
    stored = load_config(run)
    composed, before = dict(flatten(cfg)), dict(flatten(stored))
    typed = {typed_key(override).lstrip("+~") for override in overrides} - {"run_dir"}
    everything = bool(typed & {"experiment", "debug"})  # these change settings of any group
    for key in sorted(composed.keys() | before.keys()):
        if key == MAY_GROW or not (everything or typed & {key, key.split(".")[0]}):
            continue
        if composed.get(key) != before.get(key):
            raise UserError(
                f"{key} is {before.get(key)} in the run {run.folder}, got {composed.get(key)}: "
                "a run is continued as it was. Leave this setting out, or leave run_dir out to start a new run."
            )
    if MAY_GROW in typed:
        OmegaConf.update(stored, MAY_GROW, cfg.trainer.max_epochs)
    return stored


def _open_log(file: Path) -> None:
    """Messages to the terminal; the same with the time, and every warning, to `train.log`."""
    in_file = logging.FileHandler(file, encoding="utf-8")
    in_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    on_screen = logging.StreamHandler(sys.stdout)
    on_screen.setFormatter(_ScreenFormatter())
    on_screen.addFilter(_for_the_screen)
    logging.basicConfig(level=logging.INFO, handlers=[in_file, on_screen], force=True)
    logging.captureWarnings(True)


def quiet_lightning() -> None:
    """Keep Lightning's warnings, drop its advertisements; to be called after its import, which sets the level."""
    for chatty in ("pytorch_lightning", "lightning_fabric"):
        logger = logging.getLogger(chatty)
        logger.handlers.clear()  # its own handler would show everything twice
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    for expected in (
        ".*does not have many workers.*",  # conf/data says why there are none
        ".*Checkpoint directory .* exists and is not empty.*",  # a continued run's does
        ".*LeafSpec.*",  # Lightning 2.6.6 with torch 2.13
    ):
        warnings.filterwarnings("ignore", message=expected)


def _for_the_screen(record: logging.LogRecord) -> bool:
    """Not the lines of each epoch, where the progress bar shows the same; no traceback, which Python prints itself."""
    return not record.exc_info and not (record.name.endswith(".callbacks") and sys.stderr.isatty())


class _ScreenFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The message alone; of a Python warning its sentence, without file and line."""
        text = record.getMessage().strip()
        if record.name != "py.warnings":
            return text
        return re.sub(r"^\S+:\d+: (\w+: )?", "warning: ", text.splitlines()[0])


def program(name: str) -> str:
    """How a module of this package is called: `python -m <package>.train`."""
    return f"python -m {__package__}.{name}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def as_plain(value: Any) -> Any:
    """Lists and dictionaries instead of OmegaConf's own, for what is built from configuration."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
