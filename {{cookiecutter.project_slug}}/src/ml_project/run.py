"""A run is its folder: configuration, checkpoints, log, and the id of its MLflow run.

    runs/<experiment>/<start to the microsecond>-<random>/
        config.yaml      what was composed; the checkpoints are read with it
        checkpoints/     last.ckpt to go on from, best.ckpt to use, made_of.json: settings, code and data they come from
        starts.jsonl  environment.json  data.json  uncommitted.diff    how, with what and from which code it was started
        history.csv  metrics.jsonl  train.log  mlflow_run_id  tensorboard/  model/
        metrics.json     the best epoch, and the id in MLflow; written last: a folder that has it is finished
        error.txt        why it failed

Training in a folder that holds `last.ckpt` continues it, in the same MLflow run. One process at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import slurm, snapshot
from .config import RECORDED_ONLY, deciding, flatten, typed_key
from .errors import UserError
from .messages import open_log

RUNS = Path("runs")
UNFINISHED = "unfinished"  # run_dir=unfinished: the newest run that can be continued
MAY_GROW = "trainer.max_epochs"  # a continued run may go on for longer
# how a run is done, not what is trained: may change whenever it is continued
FREE = RECORDED_ONLY | {"init_from"}
LEFT_BY_A_SWEEP = {"error.txt", "seconds", "trial.json"}  # these may be in a folder before its run has been started
TRACKED = ("mlflow_run_id", "mlflow_sent.json", "metrics.jsonl", "unsent.json")  # mirror.py
LOCK_WAIT_S = 15  # a killed run's loader processes hold its lock until they notice, after 5 s at most on Linux

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The folder; `anew` says why what it holds is of another run, and is deleted when this one starts."""

    folder: Path
    anew: str = ""

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
    def made_of(self) -> Path:
        return self.checkpoints / "made_of.json"  # among them: DVC brings both or none

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def error(self) -> Path:
        return self.folder / "error.txt"

    @property
    def mlflow_run_id(self) -> Path:
        return self.folder / "mlflow_run_id"

    @property
    def starts(self) -> Path:
        return self.folder / "starts.jsonl"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    def checkpoint(self) -> Path | None:
        """What to go on from."""
        return self.last if self.last.exists() and not self.anew else None

    def go_on(self) -> str:
        """The command that continues it: what DVC has started, it must end as well."""
        return "dvc repro" if "DVC_STAGE" in os.environ else f"{program('train')} run_dir={self.folder}"

    def mlflow_id(self) -> dict[str, str]:
        """For `dvc exp show`; empty where MLflow has not answered yet."""
        file = self.mlflow_run_id
        return {file.name: file.read_text(encoding="utf-8").strip()} if file.is_file() else {}

    def finished(self) -> bool:
        return self.metrics.is_file() and self.config.is_file()

    def num_starts(self) -> int:
        return len(self.starts.read_text(encoding="utf-8").splitlines()) if self.starts.is_file() else 0


def choose(cfg: DictConfig, overrides: Sequence[str] = ()) -> tuple[Run, DictConfig]:
    """A new run, or the one in `cfg.run_dir`, with the configuration it has; writes nothing.

    Args:
        cfg: the composed configuration.
        overrides: what was typed; a run is continued with its own configuration, and these may not contradict it.

    Raises:
        UserError: the folder is no run, is not complete, or was trained with other settings.
    """
    folder = _folder(cfg, overrides)
    if folder is None:
        return Run(RUNS / cfg.experiment_name / _new_name(overrides)), cfg
    run = Run(folder)
    if cfg.restart_if_changed and (run.config.exists() or run.lock.exists()) and (why := _why_anew(run, cfg)):
        return Run(folder, why), cfg
    if run.config.exists():
        _refuse_half_a_copy(run)
        return run, _continued(run, cfg, overrides)
    strange = {file.name for file in folder.iterdir()} - LEFT_BY_A_SWEEP if folder.is_dir() else set()
    if run.last.exists() or run.best.exists() or (strange and not run.lock.exists()):
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml. Leave run_dir out.")
    return run, cfg


@contextmanager
def occupied(run: Run, cfg: DictConfig) -> Iterator[None]:
    """Make the folder, keep every other start out of it, record this one, and open the log.

    Raises:
        UserError: a living process trains in this folder.
        OSError: the folder cannot be written.
    """
    # a new name is never taken twice; a folder that was named may be there
    run.folder.mkdir(parents=True, exist_ok=cfg.run_dir is not None or run.config.exists())
    with _locked(run):
        if run.anew:
            _empty(run)
        outdated = [run.metrics, run.error]
        if not run.config.exists():  # nothing of an earlier run may pass for this one's
            outdated += [run.starts, run.history, *(run.folder / name for name in TRACKED)]
        for file in outdated:
            file.unlink(missing_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
        open_log(run.log)
        with run.starts.open("a", encoding="utf-8") as starts:
            starts.write(json.dumps(snapshot.start_record()) + "\n")
        snapshot.write(run.folder, Path(cfg.data.folder))
        if run.anew:
            log.info("%s begins anew: %s", run.folder, run.anew)
        _record_made_of(run, cfg)
        cfg = cfg.copy()
        cfg.run_dir, cfg.restart_if_changed = None, False  # the folder may move
        write_whole(run.config, OmegaConf.to_yaml(cfg))
        log.info("run %s", run.folder)
        yield


def find(folder: str | None) -> Run:
    """The run in this folder, or with this MLflow id; without one, the run whose best checkpoint is newest.

    Raises:
        UserError: there is none, or it has no checkpoint yet.
    """
    if folder is None:
        checkpoints = sorted(RUNS.rglob("checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
        if not checkpoints:
            raise UserError(f"there is no trained run in {RUNS.resolve()}. Run: make train")
        return Run(checkpoints[-1].parent.parent)
    run = Run(Path(folder))
    if not run.folder.exists() and re.fullmatch("[0-9a-f]{32}", folder):
        ids = (file for file in RUNS.rglob("mlflow_run_id") if file.read_text(encoding="utf-8").strip() == folder)
        if (file := next(ids, None)) is None:
            raise UserError(f"no run in {RUNS}/ has the MLflow id {folder}. Give the folder of a run.")
        run = Run(file.parent)
    if not run.config.is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml. Look into {RUNS}/.")
    if not run.best.is_file():
        raise UserError(f"{folder} has no checkpoint yet. Run: {program('train')} run_dir={folder}")
    return run


def load_config(run: Run) -> DictConfig:
    """The configuration the run was trained with.

    Raises:
        UserError: the file is damaged.
    """
    try:
        cfg = OmegaConf.load(run.config)
    except OSError:
        raise
    except Exception:  # what a damaged file raises depends on where it is damaged
        cfg = None
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        raise UserError(f"{run.config} is damaged: it has no `model`. Copy it from the run's artifacts in MLflow.")
    return cfg


def program(name: str) -> str:
    """How a module of this package is called: `python -m <package>.train`."""
    return f"python -m {__package__}.{name}"


def write_whole(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def as_plain(value: Any) -> Any:
    """Lists and dictionaries instead of OmegaConf's own, for what is built from configuration."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _folder(cfg: DictConfig, overrides: Sequence[str]) -> Path | None:
    """The folder of an earlier start, or None for a new one."""
    if cfg.run_dir == UNFINISHED:
        return _newest_unfinished()
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    if slurm.restarts() > 0:  # the job was put back into its queue
        earlier = sorted((RUNS / cfg.experiment_name).glob(f"*-{_of_slurm_job(overrides)}"))
        return earlier[-1] if earlier else None
    return None


def _new_name(overrides: Sequence[str]) -> str:
    started_at = datetime.now().strftime("%Y%m%d-%H%M%S.%f")
    return f"{started_at}-{_of_slurm_job(overrides) or secrets.token_hex(3)}"


def _of_slurm_job(overrides: Sequence[str]) -> str | None:
    """By this end of its name a job that comes back finds its folder; one job may train several times."""
    job = slurm.job_id()
    typed = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:6]
    return f"job{job}-{typed}" if job else None


def _newest_unfinished() -> Path:
    runs = [Run(file.parent) for file in sorted(RUNS.rglob("starts.jsonl"), key=lambda file: file.stat().st_mtime)]
    for run in reversed(runs):
        if run.config.is_file() and not run.finished() and owner(run) is None:
            return run.folder
    raise UserError(f"there is no unfinished run in {RUNS.resolve()}. To start a new one, leave run_dir out.")


def _refuse_half_a_copy(run: Run) -> None:
    """`best` without `last` is all right only after the very first epoch, if the process was killed between the two."""
    if run.best.exists() and not run.last.exists():
        num_epochs = len(run.history.read_text(encoding="utf-8").splitlines()) - 1 if run.history.exists() else 0
        if num_epochs > 1:
            raise UserError(
                f"{run.folder} is not complete: it has best.ckpt and {num_epochs} epochs of history, but no last.ckpt. "
                "Copy the whole folder, or leave run_dir out to start a new run."
            )


def _continued(run: Run, cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The stored configuration, unless what was typed contradicts it."""
    stored = load_config(run)
    composed, before = dict(flatten(cfg)), dict(flatten(stored))
    typed = {typed_key(override).lstrip("+~") for override in overrides}
    everything = bool(typed & {"experiment", "debug"})  # these change settings of any group
    changed = []
    for key in sorted(composed.keys() | before.keys()):
        if not (everything or _parents(key) & typed) or composed.get(key) == before.get(key):
            continue
        grows = key == MAY_GROW and composed[key] > before[key] and not stored.get("schedule")
        free = key.split(".")[0] in FREE
        if not (grows or free or cfg.allow_changes):
            changed.append(f"{key} ({before.get(key)}, got {composed.get(key)})")
        elif key in composed and not key.startswith("run_dir"):
            OmegaConf.update(stored, key, OmegaConf.select(cfg, key), force_add=True)
    if changed:
        raise UserError(
            f"{run.folder} was trained with other settings: {', '.join(changed)}. Leave them out to continue it as it "
            "was, leave run_dir out to start a new run, or go on with the new ones by allow_changes=true."
        )
    stored.run_dir = str(run.folder)
    return stored


def _why_anew(run: Run, cfg: DictConfig) -> str:
    """Why this folder is not continued; empty if it is."""
    before, now = _read_made_of(run), _made_of(cfg)
    if not before or not run.config.exists() or (run.best.exists() and not run.last.exists()):
        return "what it holds is not complete"
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        return f"{', '.join(changed[:5])}{more} changed"
    return "it was finished" if run.finished() else ""


def _made_of(cfg: DictConfig) -> dict[str, Any]:
    made_of = snapshot.made_of(dict(flatten(OmegaConf.create(deciding(cfg)))), Path(cfg.data.folder))
    plain: dict[str, Any] = json.loads(json.dumps(made_of))
    return plain


def _read_made_of(run: Run) -> dict[str, Any]:
    try:
        before: dict[str, Any] = json.loads(run.made_of.read_text(encoding="utf-8"))
        return before
    except (OSError, ValueError):
        return {}


def _record_made_of(run: Run, cfg: DictConfig) -> None:
    """What was continued with another code, other data or other settings is made of neither."""
    now = _made_of(cfg)
    if run.last.exists() and _read_made_of(run) != now:
        run.made_of.unlink(missing_ok=True)
    else:
        write_whole(run.made_of, json.dumps(now, indent=2) + "\n")


def _empty(run: Run) -> None:
    """Delete all but the lock, which is held; first what would let the rest be continued."""
    run.made_of.unlink(missing_ok=True)
    for file in run.folder.iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file != run.lock:
            file.unlink()


def _parents(key: str) -> set[str]:
    """`a.b.c` -> a, a.b, a.b.c"""
    parts = key.split(".")
    return {".".join(parts[: end + 1]) for end in range(len(parts))}


def owner(run: Run) -> dict[str, Any] | None:
    """The start that holds the lock of this folder, if one does."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(run.lock, timeout=0):
            return None
    except Timeout:
        lines = run.starts.read_text(encoding="utf-8").splitlines() if run.starts.is_file() else []
        holder: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return holder


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    """Hold the folder's lock; the system takes it back however the process ends, so none is ever stale."""
    from filelock import FileLock, Timeout

    lock = FileLock(run.lock)
    holder = owner(run)
    try:
        lock.acquire(timeout=0 if holder and _lives(holder) else LOCK_WAIT_S)
    except Timeout:
        holder = holder or {}
        raise UserError(
            f"{run.folder} is in use: process {holder.get('pid')} on {holder.get('host')} trains there since "
            f"{holder.get('started_at')}. Wait for it, stop it, or leave run_dir out to start a new run."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _lives(owner: dict[str, Any]) -> bool:
    """True if it is known to live: a process of this machine. A lock of another machine may outlive its process."""
    try:
        os.kill(int(owner["pid"]), 0)
    except (OSError, KeyError, ValueError):
        return False
    return owner.get("host") == platform.node()
