"""What the settings in a run's folder may build: the folder may be somebody else's, and a `_target_` runs code.

Hydra refuses some functions by their names. This lets pass what the project's own settings name, what the project's own
package defines, and what Lightning's users build; `targets` in pyproject.toml adds to them:

    [tool.runengine]
    targets = ["timm.create_model"]
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..compat import allow_targets, asks_for_targets
from . import project
from .console import listed
from .errors import UserError

# each by its usual name, and with a capital: a longer one reaches what its module imports
LIBRARIES = re.compile(
    r"(torch\.nn|torch\.optim|torch\.optim\.lr_scheduler|torchmetrics(\.[a-z]+)?"
    r"|(pytorch_lightning|lightning\.pytorch)\.(callbacks|loggers|profilers|strategies))\.[A-Z]\w*"
)
TARGET = re.compile(r"""\b_target_["']?: *["']?([\w.]+)""")


def refuse_strangers(cfg: DictConfig, source: str) -> None:
    """Settings may build what this project builds, and nothing else.

    What is typed is refused as well, or the run could be trained, but not be resumed and evaluated.

    Args:
        cfg: the settings.
        source: where they come from, for the sentence.

    Raises:
        UserError: a `_target_` names something else.
    """
    named = set(_targets(cfg, OmegaConf.to_container(cfg)))
    if strange := sorted(named - _trusted(named)):
        raise UserError(
            f"{source} would run {listed(strange)}, which no settings file of this project names. If you trust that, "
            f'write into pyproject.toml, under [tool.runengine]: targets = ["{strange[0]}"]'
        )
    allow_targets(named)


def allow(cfg: DictConfig) -> None:
    """Let Hydra build what these settings name, as far as it is trusted; since 1.4 it asks for a list."""
    if asks_for_targets():
        allow_targets(_trusted(set(_targets(cfg, OmegaConf.to_container(cfg)))))


def _trusted(named: set[str]) -> set[str]:
    known = {name for folder in project.conf_folders() for name in _in_files(folder)} | _listed()
    return {name for name in named if name in known or LIBRARIES.fullmatch(name) or _is_own(name)}


def _targets(cfg: DictConfig, node: Any, place: str = "") -> Iterator[str]:
    """Each `_target_` in this node, which is at `place` of the settings; what refers to another setting is resolved."""
    if isinstance(node, dict):
        if "_target_" in node:
            try:
                yield str(OmegaConf.select(cfg, f"{place}._target_".lstrip(".")))
            except OmegaConfBaseException:
                yield str(node["_target_"])
        node = {f"{place}.{key}".lstrip("."): each for key, each in node.items()}
    elif isinstance(node, list):
        node = {f"{place}[{index}]": each for index, each in enumerate(node)}
    else:
        return
    for inner, each in node.items():
        yield from _targets(cfg, each, inner)


def _in_files(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.yaml"):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield from TARGET.findall(line.partition("#")[0])


def _listed() -> set[str]:
    root = project.at_hand()
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")) if root else {}
    return set(settings.get("tool", {}).get("runengine", {}).get("targets", []))


def _is_own(name: str) -> bool:
    """Does one of the owner's modules define this, or import it from another of them?"""
    owner = project.current()
    package, _, rest = name.partition(".")
    *modules, last = rest.split(".")
    if package != owner.package:
        return False
    place = owner.folder.joinpath(*modules)
    file = place / "__init__.py" if place.is_dir() else place.with_name(f"{place.name}.py")
    try:
        lines = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    defined = {line.name for line in lines if isinstance(line, ast.ClassDef | ast.FunctionDef)}
    imports = [line for line in lines if isinstance(line, ast.ImportFrom)]
    own = [line for line in imports if line.level or (line.module or "").split(".")[0] == owner.package]
    return last in defined | {alias.asname or alias.name for line in own for alias in line.names}
