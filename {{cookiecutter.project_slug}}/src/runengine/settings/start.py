"""How every command begins: in the project's root, and with what the file `.env` there adds to the environment.

A command may be typed in any folder. Data, runs and MLflow's database hang on the root, the folder of `pyproject.toml`;
a path that is typed means what the shell means by it, if something is there, and else it is one from the root on.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from . import project
from .errors import UserError

COMPLETION = {"-sc", "--shell-completion"}  # Tab completes paths from the folder where the user stands
NAME = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*)")
QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:#.*)?""")

_typed_in: list[Path] = []  # the folder in which the command was typed, if it is not the root
_resolved: set[str] = set()  # arguments that have been replaced by paths from the root on


def start() -> None:
    """Go to the root, if there is one, and read its `.env`; the second call changes nothing.

    Raises:
        UserError: a line of `.env` is no setting.
    """
    root = project.at_hand()
    if root is None or COMPLETION & set(sys.argv):
        return
    here = Path.cwd()
    if here != root:
        _go(here, root)
    _read_env(root / ".env")


def typed_path(text: str) -> Path:
    """The path of a file to be written, in the folder where the command was typed; for argparse, as `type=`."""
    return Path(text) if text in _resolved or not _typed_in else _short(_typed_in[0] / text, Path.cwd())


def quoted(path: str | Path) -> str:
    """In Hydra's quotes: a path may hold blanks, commas and signs that mean something to Hydra."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _go(here: Path, root: Path) -> None:
    _typed_in[:] = [here]
    sys.argv[1:] = [
        _resolve(argument, before, here, root) for before, argument in zip(sys.argv, sys.argv[1:], strict=False)
    ]
    if places := os.environ.get("PYTHONPATH"):  # processes that are started from here on start in the root
        os.environ["PYTHONPATH"] = os.pathsep.join(str(here / place) for place in places.split(os.pathsep))
    if (here / "__init__.py").is_file() and str(here) in sys.path:  # `python -m` would import `data` from a package
        sys.path.remove(str(here))
    os.chdir(root)


def _resolve(argument: str, before: str, here: Path, root: Path) -> str:
    """A path that is typed from here on, from the root on; everything else as it was typed."""
    if not argument.startswith("-") and (here / argument).exists():
        after_an_option = before.startswith("-") and "=" not in before
        return _from_root(argument, here, root) if not after_an_option or _is_path(argument) else argument
    key, equals, text = argument.partition("=")
    plain = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if not equals:
        return _from_root(argument, here, root) if _is_relative(argument) else argument
    if not (_is_relative(plain) or (_is_path(plain) and (here / plain).exists())):
        return argument
    path = _from_root(plain, here, root)
    needs_quotes = not key.startswith("-") and not re.fullmatch(r"[\w./-]+", path)
    return f"{key}={quoted(path) if needs_quotes else path}"


def _from_root(text: str, here: Path, root: Path) -> str:
    path = text if Path(text).is_absolute() else str(_short(here / text, root))
    _resolved.add(path)
    return path


def _short(file: Path, root: Path) -> Path:
    """From the root on, if it is in there."""
    file = Path(os.path.normpath(file))
    return file.relative_to(root) if file.is_relative_to(root) else file


def _is_relative(text: str) -> bool:
    """Nobody but the shell can mean this: `.`, `..`, `../new`."""
    return text in (".", "..") or text.startswith(("./", "../"))


def _is_path(text: str) -> bool:
    """Rather a path than a word such as `mlp`, which a folder may be called, too: as Tab completes it."""
    return "/" in text or os.sep in text or bool(re.search(r"\.[A-Za-z]\w*$", text))


def _read_env(file: Path) -> None:
    """Set what the environment does not have; a name without a value is not filled in yet."""
    if not file.is_file():  # a folder of this name is somebody's environment
        return
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found = NAME.fullmatch(line)
        value = _value(found[2]) if found else None
        if found is None or value is None:  # the line may hold a password: it is not shown
            raise UserError(
                f"{file.name}, line {number} is not NAME=value, with quotes at both ends of the value or none. Correct "
                f"it in {file}, or put # in front of it."
            )
        if value:
            os.environ.setdefault(found[1], value)


def _value(text: str) -> str | None:
    """Without its quotes, and without a comment behind it; None if a quote is not closed."""
    if text[:1] not in ("'", '"'):
        return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()
    found = QUOTED.fullmatch(text)
    if found is None:
        return None
    return found[1] if found[1] is not None else re.sub(r"\\(.)", r"\1", found[2])
