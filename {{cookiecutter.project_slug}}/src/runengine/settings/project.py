"""The project that uses the engine: its package, its settings, and the training script that runs.

A script names it by `@runengine.main`. The engine's own commands read it from `pyproject.toml`:

    [tool.runengine]
    package = "my_project"
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..manifest import PLUGIN, incomplete
from .errors import UserError

ENGINE = str(__package__).partition(".")[0]
ENGINE_FOLDER = Path(__file__).parents[1]
COPY_OF = ENGINE_FOLDER.parent / "copy_of.json"  # in the copy of the code that a Slurm job imports: its Git state


@dataclass(frozen=True)
class Project:
    """The owner's package.

    Args:
        package: its import name.
        folder: of its modules; its settings are in `conf/` there.
        script: the module that runs, and the name of its settings: `train` for train.py and conf/train.yaml.
    """

    package: str
    folder: Path
    script: str = "train"

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    @property
    def module(self) -> str:
        """Of the script: `my_project.train`."""
        return f"{self.package}.{self.script}"


_used: list[Project] = []


def use(project: Project) -> None:
    """From now on this process works for this project and script."""
    _used[:] = [project]


def current() -> Project:
    """The project this process works for.

    Raises:
        UserError: no `pyproject.toml` here or above names a package.
    """
    if not _used:
        use(_find())
    return _used[0]


def check_imports() -> None:
    """The engine must be the project's own: one environment may hold two projects, or be another project's.

    Raises:
        UserError: another engine was imported.
    """
    places = [_used[0].folder.parent] if _used else []
    if here := next(_settings_files([Path.cwd()]), None):
        file, package = here
        if not _used or _used[0].package == package:
            places.append(file.parent / "src")
    for own in (place / ENGINE for place in places):
        if own.is_dir() and own.resolve() != ENGINE_FOLDER.resolve() and not COPY_OF.is_file():
            raise UserError(
                f"this environment imports the engine of another project: {ENGINE_FOLDER} in place of {own}. Give each "
                "project an environment of its own: make clean-env setup"
            )


def check_plugin() -> None:
    """What the engine adds to Hydra must come with it: without, Hydra would take that of another project.

    Raises:
        UserError: it is missing.
    """
    if not (ENGINE_FOLDER / PLUGIN).is_file() and (sentence := incomplete()):
        raise UserError(sentence)


def conf_folders() -> list[Path]:
    """Where settings are looked for: the owner's files come before the engine's of the same name."""
    return [current().conf, ENGINE_FOLDER / "conf"]


def choices(group: str) -> dict[str, Path]:
    """The files of a group of settings, by their names; empty if there is no such group."""
    found: dict[str, Path] = {}
    for folder in reversed(conf_folders()):
        found |= {file.stem: file for file in (folder / group).glob("*.yaml")}
    return dict(sorted(found.items()))


def root() -> Path:
    """The folder of the project's `pyproject.toml`; its package need not be importable.

    Raises:
        UserError: no `pyproject.toml` here or above names a package.
    """
    return _settings_file()[0].parent


def at_hand() -> Path | None:
    """The root of the project this process works for; None where its `pyproject.toml` is not at hand.

    It is looked for here and above, then where the code lies: a command may be typed outside of the project.
    """
    program = getattr(sys.modules["__main__"], "__file__", None)
    places = [Path.cwd(), *(used.folder for used in _used), ENGINE_FOLDER, *([Path(program).parent] if program else [])]
    for file, package in _settings_files(places):
        if not _used or _used[0].package == package:
            return file.parent
    return None


def from_root(path: Path) -> Path:
    """The same for a process that stands elsewhere, as a notebook does: commands go to the root when they begin."""
    root = at_hand()
    return path if root in (None, Path.cwd()) else Path(str(root)) / path


def groups() -> list[str]:
    """The names of all groups of settings."""
    return sorted({file.parent.name for folder in conf_folders() for file in folder.glob("*/*.yaml")})


def find(package: str, script: str) -> Project:
    """The package where this process would import it from.

    Raises:
        UserError: it cannot be imported.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {package} cannot be imported. Run: make setup")
    return Project(package, Path(spec.origin).parent, script)


def _find() -> Project:
    return find(_settings_file()[1], "train")


def _settings_file() -> tuple[Path, str]:
    """The `pyproject.toml` that names a package, and the package."""
    if found := next(_settings_files([Path.cwd(), ENGINE_FOLDER]), None):
        return found
    raise UserError(
        f"{Path.cwd()} is not in a project: no pyproject.toml here or above has [tool.{ENGINE}] with the name of its "
        "package. Type this in the project's folder."
    )


def _settings_files(starts: list[Path]) -> Iterator[tuple[Path, str]]:
    """Those in these folders and above."""
    for start in starts:
        for file in (folder / "pyproject.toml" for folder in (start, *start.parents)):
            if file.is_file() and (package := _package_of(file.read_text(encoding="utf-8"))):
                yield file, package


@functools.cache  # it is asked for each setting that reads what `prepare` wrote
def _package_of(text: str) -> str:
    """What a `pyproject.toml` names as the project's package, if anything."""
    return str(tomllib.loads(text).get("tool", {}).get(ENGINE, {}).get("package", ""))
