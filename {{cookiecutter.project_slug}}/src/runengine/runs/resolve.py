"""Which run a start belongs to: a new one, or an earlier one, which is resumed with the settings it has."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..settings import code, process, project
from ..settings.check import check
from ..settings.config import RECORDED_ONLY, deciding, flatten, typed_key
from ..settings.console import listed
from ..settings.errors import UserError
from ..settings.targets import refuse_strangers
from . import provenance
from .find import UNFINISHED, having
from .lock import owner
from .run import RUNS, Run, load_config

MAY_INCREASE = "trainer.max_epochs"  # a resumed run may train for longer
# how a run is done, not what is trained: may change whenever it is resumed
MUTABLE_ON_RESUME = RECORDED_ONLY | {"init_from", "monitor"}
# these may be in a folder before its run has been started
LEFT_BY_A_SWEEP = {Run.error.name, Run.job_log.name, Run.seconds.name, Run.trial.name}


def resolve_run(cfg: DictConfig, overrides: Sequence[str] = ()) -> tuple[Run, DictConfig]:
    """A new run, or the one in `cfg.run_dir`, with the configuration it has; writes nothing.

    Args:
        cfg: the composed configuration.
        overrides: what was typed; a run is resumed with its own configuration, which these may not contradict.

    Raises:
        UserError: the folder is no run, is not complete, or was trained with other settings or data; or these would
            build what the project does not.
    """
    refuse_strangers(cfg, "what was typed")
    folder = _folder(cfg, overrides)
    if folder is None:
        return Run(RUNS / cfg.experiment_name / new_name(cfg.name, _of_slurm_job(overrides))), cfg
    run = Run(folder)
    if cfg.restart_if_changed and (run.config.exists() or run.lock.exists()) and (why := _why_start_over(run, cfg)):
        return Run(folder, why), cfg
    if run.config.exists():
        _refuse_another_script(run)
        _refuse_half_a_copy(run)
        stored = _continued(run, cfg, overrides)
        _refuse_other_data(run, stored, allow_changes=cfg.allow_changes)
        return run, stored
    strange = {file.name for file in folder.iterdir()} - LEFT_BY_A_SWEEP if folder.is_dir() else set()
    if run.last.exists() or run.best.exists() or (strange and not run.lock.exists()):
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml. Leave run_dir out.")
    return run, cfg


def _folder(cfg: DictConfig, overrides: Sequence[str]) -> Path | None:
    """The folder of an earlier start, or None for a new one."""
    if cfg.run_dir == UNFINISHED:
        return _newest_unfinished()
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    if process.restarts() > 0:  # the job was put back into its queue
        earlier = sorted((RUNS / cfg.experiment_name).glob(f"*-{_of_slurm_job(overrides)}"))
        return earlier[-1] if earlier else None
    return None


def new_name(name: object, end: str | None = None) -> str:
    """Of a new folder: when it was started, what `name=...` says, and what no other has."""
    started_at = datetime.now().strftime("%Y%m%d-%H%M%S.%f")
    return "-".join([started_at, *([str(name)] if name is not None else []), end or secrets.token_hex(3)])


def _of_slurm_job(overrides: Sequence[str]) -> str | None:
    """By this end of its name a requeued job finds its folder; one job may train several times."""
    job = process.job_id()
    typed = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:6]
    return f"job{job}-{typed}" if job else None


def _newest_unfinished() -> Path:
    for run in reversed(having(Run.starts)):
        if run.config.is_file() and not run.finished() and owner(run) is None:
            return run.folder
    raise UserError(f"there is no unfinished run in {RUNS.resolve()}. To start a new one, leave run_dir out.")


def _refuse_another_script(run: Run) -> None:
    """By its name alone: the package may have another one by now."""
    if run.module().rpartition(".")[2] != project.current().script:
        raise UserError(f"{run.folder} is a run of another script. Run: {run.resume_command()}")


def _refuse_half_a_copy(run: Run) -> None:
    """`best` without `last` is all right only after the very first epoch, if the process was killed between the two."""
    if run.best.exists() and not run.last.exists():
        num_epochs = len(run.history.read_text(encoding="utf-8").splitlines()) - 1 if run.history.exists() else 0
        if num_epochs > 1:
            raise UserError(
                f"{run.folder} is not complete: it has best.ckpt and {num_epochs} epochs of history, but no last.ckpt. "
                "Copy the complete folder, or leave run_dir out to start a new run."
            )


def _refuse_other_data(run: Run, cfg: DictConfig, *, allow_changes: bool) -> None:
    """What was trained on may be in the validation split by now, and every result would be too good."""
    folder = provenance.data_folder(cfg)
    if run.last.exists() and not allow_changes and provenance.split_changed(run, folder):
        raise UserError(
            f"{run.folder} was trained on other data: {folder} has changed since. Bring back the data it was trained "
            "on, leave run_dir out to start a new run, or resume with the new ones by allow_changes=true."
        )


def _continued(run: Run, cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The stored configuration, unless what was typed contradicts it."""
    stored = load_config(run, complete=True)
    try:
        check(stored, project.current().script)
    except UserError as mistake:  # somebody has edited the file
        raise UserError(f"{run.config}: {mistake}") from None
    composed, before = dict(flatten(cfg)), dict(flatten(stored))
    typed = {typed_key(override).lstrip("+~") for override in overrides}
    everything = bool(typed & {"experiment", "debug"})  # these change settings of any group
    changed = []
    for key in sorted(composed.keys() | before.keys()):
        if not (everything or _parents(key) & typed) or composed.get(key) == before.get(key):
            continue
        grows = key == MAY_INCREASE and composed[key] > before[key] and not stored.get("lr_scheduler")
        free = key.split(".")[0] in MUTABLE_ON_RESUME
        if not (grows or free or cfg.allow_changes):
            changed.append(f"{key} ({before.get(key)}, got {composed.get(key)})")
        elif key in composed and not key.startswith("run_dir"):
            OmegaConf.update(stored, key, OmegaConf.select(cfg, key), force_add=True)
    if changed:
        raise UserError(
            f"{run.folder} was trained with other settings: {', '.join(changed)}. Leave them out to resume it as it "
            "was, leave run_dir out to start a new run, or resume with the new ones by allow_changes=true."
        )
    stored.run_dir = str(run.folder)
    return stored


def _why_start_over(run: Run, cfg: DictConfig) -> str:
    """Why this folder is not resumed; empty if it is."""
    before, now = read_fingerprint(run), fingerprint_of(cfg)
    if not before or not run.config.exists() or (run.best.exists() and not run.last.exists()):
        return "what it holds is not complete"
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        return f"{listed(changed)} changed"
    return "it was finished" if run.finished() else ""


def fingerprint_of(cfg: DictConfig) -> dict[str, Any]:
    fingerprint = provenance.fingerprint(dict(flatten(OmegaConf.create(deciding(cfg)))), provenance.data_folder(cfg))
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return plain


def read_fingerprint(run: Run) -> dict[str, Any]:
    try:
        before: dict[str, Any] = json.loads(run.fingerprint.read_text(encoding="utf-8"))
        return before
    except (OSError, ValueError):
        return {}


def code_changed_since(run: Run) -> list[str]:
    """Files of the owner's code that decide a result, and differ from those that the run was trained with.

    None where that is not known: no single version has trained a run that was resumed with other code.
    """
    owner = code.hashes()
    now = {f"{name}.py": sha256 for name, sha256 in owner["programs"].items()} | owner["modules"]
    before = {name: sha256 for name, sha256 in read_fingerprint(run).items() if name.endswith(".py")}
    return sorted(name for name, sha256 in before.items() if now.get(name) != sha256)


def _parents(key: str) -> set[str]:
    """`a.b.c` -> a, a.b, a.b.c"""
    parts = key.split(".")
    return {".".join(parts[: end + 1]) for end in range(len(parts))}
