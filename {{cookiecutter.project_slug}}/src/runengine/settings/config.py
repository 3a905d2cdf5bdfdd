"""Settings: composed by Hydra from the YAML files in `conf/`, and which of them decide a run's result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..compat import hydra_defaults, register_resolver
from . import project
from .files import read_json
from .targets import allow

SQLITE = "sqlite:///"  # before the path of MLflow's database
# they do not change what a run computes; the first only how it is started, the others also what is recorded
HOW_STARTED = frozenset({"launch", "restart_if_changed", "run_dir", "search", "seeds", "sweep_dir"})
RECORDED_ONLY = HOW_STARTED | {
    "allow_changes", "checkpoint", "loggers", "name", "register", "tags", "tracking", "watchdog"
}  # fmt: skip

# conf/runengine.yaml: what was chosen makes a sweep, also without -m
register_resolver(
    "run_or_sweep",
    lambda *choices: None if all(choice is None or choice is False for choice in choices) else "MULTIRUN",
)


def _prepared(key: str, *, _parent_: DictConfig) -> Any:
    """What `prepare` has written into `split.json` of the folder next to this setting; None if it is not there."""
    return read_json(project.from_root(Path(_parent_.folder)) / "split.json").get(key)


# in a file of settings: size: ${prepared:size}
register_resolver("prepared", _prepared)


def fill_in_prepared(cfg: DictConfig, *, written: bool = False) -> None:
    """Put what `prepare` found in place of the settings that read it: a run's settings depend on no folder.

    Args:
        cfg: is changed.
        written: put only what is written there, such as `{prepared:size}`: the same before and after `prepare`.
    """
    for key, text in _texts(cfg):
        if text.startswith("${prepared:"):
            OmegaConf.update(cfg, key, text.removeprefix("$") if written else OmegaConf.select(cfg, key))


def flatten(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted key, value), interpolations resolved."""
    yield from _walk(OmegaConf.to_container(cfg, resolve=True), "")


def _walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _walk(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def deciding(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide a run's result, interpolations resolved."""
    kept = {str(key): cfg[key] for key in cfg if key not in RECORDED_ONLY}  # the others may hold a password
    return {key: as_plain(value) for key, value in kept.items()}


def as_plain(value: Any) -> Any:
    """Lists and dictionaries instead of OmegaConf's own."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def compose(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration as `python -m <package>.<config_name>` composes it; for tests and notebooks too."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():  # inside the program
        return hydra.compose(config_name, overrides=list(overrides))
    with hydra.initialize_config_dir(str(project.current().conf), **hydra_defaults()):
        cfg = from_root(hydra.compose(config_name, overrides=list(overrides)))
    allow(cfg)
    return cfg


def from_root(cfg: DictConfig) -> DictConfig:
    """With absolute paths, if this process stands outside of the project's root, as a notebook does."""
    root = project.at_hand()
    if root is None or root == Path.cwd():
        return cfg
    for key, value in _texts(cfg):
        if "${" not in value and (key == "data.folder" or ("/" in value and (root / value).exists())):
            OmegaConf.update(cfg, key, str(root / value))
        elif SQLITE in value:
            file = Path(OmegaConf.select(cfg, key).removeprefix(SQLITE))
            OmegaConf.update(cfg, key, f"{SQLITE}{(root / file).as_posix()}")
    return cfg


def in_root(cfg: DictConfig) -> DictConfig:
    """A copy for a process that stands in the project's root, with paths from there on: the project may move."""
    cfg, root = cfg.copy(), Path.cwd()
    for key, value in _texts(cfg):
        for before, short in ((f"{root}/", ""), (f"{SQLITE}{root.as_posix()}/", f"{SQLITE}./")):
            if value.startswith(before):
                OmegaConf.update(cfg, key, short + value.removeprefix(before))
    return cfg


def _texts(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Every setting that is a text, interpolations as they are written."""
    for key, value in list(_walk(OmegaConf.to_container(cfg), "")):
        if isinstance(value, str):
            yield key, value


def typed_key(override: str) -> str:
    """`optimizer.lr=0.1` -> `optimizer.lr`."""
    return re.split(r"[=@]", override, maxsplit=1)[0]


def chosen_groups(overrides: Sequence[str]) -> list[str]:
    """Of what was typed, what chooses a file of conf/, such as `model=mlp`."""
    return [override for override in overrides if project.choices(typed_key(override).lstrip("+~"))]
