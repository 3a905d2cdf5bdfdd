"""What the settings in `conf/` may be: checked before torch is imported.

    python -m runengine settings train settings.yaml model=mlp    # writes what decides the result, for dvc.yaml

The YAML files are the only list of settings; the type of a setting is the type of its default.
What a type cannot say of the engine's settings stands in LIMITS and ALLOWED; the owner's code checks its own.
`schema.py` makes of the same tables what an editor checks.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import project
from .config import chosen_groups, compose, deciding, fill_in_prepared, flatten, typed_key
from .errors import UserError

COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
OPTIONAL = {  # or null
    "trainer.gradient_clip_val", "patience", "checkpoint.every_n_steps", "checkpoint.every_minutes",
    "tracking.system_every_s", "data.num_workers", "watchdog.minutes", "launch.gpus",
}  # fmt: skip
LIMITS: dict[str, list[tuple[str, float]]] = {
    "seed": [(">=", 0), ("<=", 2**32 - 1)],  # what NumPy's generators take
    "data.batch_size": [(">=", 1)],
    "data.num_workers": [(">=", 0)],
    "launch.minutes": [(">=", 1)],
    "launch.cpus": [(">=", 1)],
    "launch.memory_gb": [(">=", 1)],
    "launch.parallel": [(">=", 1)],
    "launch.gpus": [(">=", 0)],
    "launch.warn_s": [(">=", 1)],
    "launch.retries": [(">=", 0)],
    "launch.keep_hours": [(">=", 1)],
    "search.parallel": [(">=", 1)],
    "search.trials": [(">=", 1)],
    "tracking.system_every_s": [(">", 0)],
    "trainer.max_epochs": [(">=", 1)],
    "trainer.devices": [(">=", 1)],
    "trainer.num_nodes": [(">=", 1)],
    "trainer.accumulate_grad_batches": [(">=", 1)],
    "trainer.gradient_clip_val": [(">", 0)],
    "patience": [(">=", 1)],
    "checkpoint.every_n_steps": [(">=", 1)],
    "checkpoint.every_minutes": [(">", 0)],
    "watchdog.minutes": [(">", 0)],
    "watchdog.times": [(">=", 1)],
}
ALLOWED = {"monitor.mode": ("min", "max"), "tracking.checkpoints": ("all", "best", "none")}
# the engine reads these by name: what is added to them nobody sees, but for what is open
READ_BY_NAME = {"checkpoint", "launch", "monitor", "search", "tracking", "watchdog"}
OPEN = ("launch.env.", "launch.extra.", "launch.secrets.", "search.space.")
# of each group, which of the engine's files has all that the engine reads; conf/runengine.yaml is in no group
NEEDED = {
    "": "runengine",
    "trainer": "trainer/auto",
    "tracking": "tracking/mlflow",
    "search": "search/optuna",
    "launch": "launch/local",
}


def check(cfg: DictConfig, config_name: str, overrides: Sequence[str] = ()) -> None:
    """Refuse a setting of the wrong type or out of its range.

    Args:
        cfg: the composed configuration.
        config_name: the program, `train` or `prepare`.
        overrides: what was typed, such as `optimizer.lr=0.01`; each is compared with the type of its default.

    Raises:
        UserError: names the setting, what it must be, and what it is.
    """
    _refuse_what_is_missing(cfg)
    settings = dict(flatten(cfg))
    for key, default in _typed_defaults(config_name, overrides):
        if key in settings and not _same_type(settings[key], default):
            raise UserError(f"{key} must be {_kind(default)} such as {default}, got {settings[key]!r}.")
    _refuse_what_nothing_reads(config_name, overrides)
    for key, limits in LIMITS.items():
        if key not in settings or (key in OPTIONAL and settings[key] is None):
            continue
        value = settings[key]
        wanted = " and ".join(f"{sign} {limit}" for sign, limit in limits)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{key} must be a number {wanted}, got {value!r}.")
        if not all(COMPARE[sign](value, limit) for sign, limit in limits):
            raise UserError(f"{key} must be {wanted}, got {value}.")
    num_devices = settings.get("trainer.devices", 1) * settings.get("trainer.num_nodes", 1)
    batch_size = settings.get("data.batch_size", num_devices)
    if batch_size % num_devices:
        nearest = max(1, round(batch_size / num_devices)) * num_devices
        raise UserError(
            f"data.batch_size must divide by the {num_devices} devices, got {batch_size}. "
            f"Try data.batch_size={nearest}."
        )
    for key, allowed in ALLOWED.items():
        if key in settings and settings[key] not in allowed:
            raise UserError(f"{key} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {settings[key]}.")
    if settings.get("register") and not settings["tracking.mlflow_uri"]:
        raise UserError("register=true needs MLflow's registry. Leave out tracking=off.")
    for key in ("experiment_name", "name"):
        name = settings.get(key)
        if isinstance(name, bool) or (key == "experiment_name" and isinstance(name, int | float)):
            kind, quoted = ("a truth value", str(name).lower()) if isinstance(name, bool) else ("a number", str(name))
            raise UserError(f"{key} must be a word, got {quoted}, which is {kind} in YAML. Take another word.")
        if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", str(name)):
            raise UserError(f"{key} names a folder: letters, digits, '.', '_' and '-' only, got {name!r}.")
    if settings.get("name") in ("last", "best"):
        raise UserError(f"name={settings['name']} would hide what @{settings['name']} means. Take another word.")


def _refuse_what_is_missing(cfg: DictConfig) -> None:
    """A file of the owner's that hides one of the engine's must have all that the engine reads there."""
    for group, name, keys in _needed_keys():
        here = cfg if not group else cfg.get(group)
        if "trainer" in cfg and here is not None and (missing := [key for key in keys if key not in here]):
            place = f"conf/{group}/" if group else "conf/"
            raise UserError(
                f"{group + '.' if group else ''}{missing[0]} is missing: a file in {place} of the project hides the "
                f"engine's. Add it there as src/{project.ENGINE}/conf/{name}.yaml has it, or give your file another "
                f"name and let it begin with: defaults: [{name.rpartition('/')[2]}]"
            )


@functools.cache
def _needed_keys() -> list[tuple[str, str, list[str]]]:
    """(group, file of the engine, settings in it)."""
    found = []
    for group, name in NEEDED.items():
        settings = OmegaConf.load(project.ENGINE_FOLDER / "conf" / f"{name}.yaml")
        found.append((group, name, [str(key) for key in settings if key not in ("defaults", "hydra")]))
    return found


def _refuse_what_nothing_reads(config_name: str, overrides: Sequence[str]) -> None:
    """`+lr=0.1` would be recorded, and train with another value: only where a class takes it may a key be added."""
    added = [typed_key(override).lstrip("+") for override in overrides if override.startswith("+")]
    for key in added:
        first, _, rest = key.partition(".")
        if first == "hydra" or (project.choices(first) and not rest):
            continue  # Hydra's own, or a group that is null by default
        known = dict(_defaults(config_name, tuple(chosen_groups(overrides))))
        if not rest or (first in READ_BY_NAME and not key.startswith(OPEN)):
            nearest = difflib.get_close_matches(key.split(".")[-1], [name.split(".")[-1] for name in known], n=1)
            meant = [name for name in known if nearest and name.split(".")[-1] == nearest[0]]
            hint = f"Did you mean {meant[0]}? " if meant else ""
            raise UserError(
                f"+{key} adds a setting that nothing reads. {hint}A setting of your own goes into "
                f"conf/{config_name}.yaml, where your code reads it."
            )


def _typed_defaults(config_name: str, overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(key, default) of each setting typed on the command line, under the groups chosen there."""
    typed = {typed_key(override) for override in overrides}
    groups = chosen_groups(overrides)
    if len(groups) < len(overrides):
        for key, default in _defaults(config_name, tuple(groups)):
            if key in typed:
                yield key, default


@functools.cache  # composing takes 50 ms, and a sweep checks many runs of the same groups
def _defaults(config_name: str, groups: tuple[str, ...]) -> list[tuple[str, Any]]:
    return list(flatten(compose(config_name, groups)))


def _same_type(value: Any, default: Any) -> bool:
    if default is None or value is None:
        return True  # None says nothing about the type
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _kind(value: Any) -> str:
    names = {bool: "true or false,", int: "an integer", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), type(value).__name__)


def main() -> None:
    """`settings <script> <file> <overrides>`: check them, and write those that decide the result."""
    script, file, *overrides = sys.argv[1:]
    project.use(dataclasses.replace(project.current(), script=script))
    cfg = compose(script, overrides)
    check(cfg, script, overrides)
    fill_in_prepared(cfg, written=True)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(OmegaConf.to_yaml(deciding(cfg)), encoding="utf-8")
