"""The folder of a run is made, locked and filled with what the run is made of."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

from ..settings.config import fill_in_prepared
from ..settings.console import open_log
from ..settings.files import atomic_write
from . import provenance
from .lock import locked
from .resolve import fingerprint_of, read_fingerprint
from .run import Run

log = logging.getLogger(__name__)


@contextmanager
def open_run(run: Run, cfg: DictConfig) -> Iterator[None]:
    """Make the folder, keep every other start out of it, record this one, and open the log.

    Raises:
        UserError: a living process trains in this folder.
        OSError: the folder cannot be written.
    """
    # a new name is never taken twice; a folder that was named may be there
    run.folder.mkdir(parents=True, exist_ok=cfg.run_dir is not None or run.config.exists())
    with locked(run):
        if run.starts_over:
            _empty(run)
        outdated = [run.metrics, run.error, run.exports]
        if not run.config.exists():  # nothing of an earlier run may pass for this one's
            outdated += [run.starts, run.history, run.metric_rows, run.mlflow_run_id, run.mlflow_sent, run.unsent]
        for file in outdated:
            file.unlink(missing_ok=True)
        for exported in run.model, run.exports.with_suffix(""):  # of weights that this start may replace
            shutil.rmtree(exported, ignore_errors=True)
        run.checkpoints.mkdir(exist_ok=True)
        open_log(run.log)
        provenance.record_start(run)
        run.write_about()
        provenance.write(run, provenance.data_folder(cfg), diff=cfg.tracking.diff)
        if run.starts_over:
            log.info("%s starts over: %s", run.folder, run.starts_over)
        _record_fingerprint(run, cfg)
        cfg = cfg.copy()
        cfg.run_dir, cfg.restart_if_changed = None, False  # the folder may move
        fill_in_prepared(cfg)
        atomic_write(run.config, OmegaConf.to_yaml(cfg))
        log.info("run %s", run.folder)
        yield


def _record_fingerprint(run: Run, cfg: DictConfig) -> None:
    """A run resumed with other code, data or settings has no fingerprint: no single version made it."""
    now = fingerprint_of(cfg)
    if run.last.exists() and read_fingerprint(run) != now:
        run.fingerprint.unlink(missing_ok=True)
    else:
        atomic_write(run.fingerprint, json.dumps(now, indent=2) + "\n")


def _empty(run: Run) -> None:
    """Delete all but the lock, which is held; first what would let the rest be resumed."""
    run.fingerprint.unlink(missing_ok=True)
    for file in run.folder.iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file != run.lock:
            file.unlink()
