"""The project that uses the engine: its package, its settings, and the training script that runs.

A script tells it by `@runengine.main`. The engine's own commands read it from `pyproject.toml`:

    [tool.runengine]
    package = "my_project"
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError

ENGINE = str(__package__).partition(".")[0]
ENGINE_FOLDER = Path(__file__).parents[1]


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


def conf_folders() -> list[Path]:
    """Where settings are looked for: the owner's files come before the engine's of the same name."""
    return [current().conf, ENGINE_FOLDER / "conf"]


def choices(group: str) -> dict[str, Path]:
    """The files of a group of settings, by their names; empty if there is no such group."""
    found: dict[str, Path] = {}
    for folder in reversed(conf_folders()):
        found |= {file.stem: file for file in (folder / group).glob("*.yaml")}
    return dict(sorted(found.items()))


def _find() -> Project:
    for file in _candidates():
        if file.is_file():
            settings = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get(ENGINE, {})
            if package := settings.get("package"):
                spec = importlib.util.find_spec(package)
                if spec is None or spec.origin is None:
                    raise UserError(f"{file} names the package {package}, which cannot be imported. Run: make setup")
                return Project(package, Path(spec.origin).parent)
    raise UserError(
        f"{Path.cwd()} is not in a project: no pyproject.toml here or above has [tool.{ENGINE}] with the name of its "
        "package. Type this in the project's folder."
    )


def _candidates() -> Iterator[Path]:
    for start in (Path.cwd(), ENGINE_FOLDER):
        yield from (folder / "pyproject.toml" for folder in (start, *start.parents))
