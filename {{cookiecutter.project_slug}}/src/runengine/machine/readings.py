"""What a child process reports about the machine, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..settings.console import first_line


class Reading(NamedTuple):
    """One value, or the error instead of it; `fault`: the device or its libraries failed, not this program."""

    value: Any = None
    error: str = ""
    fault: bool = False


Steps = Iterator[tuple[str, Callable[[], Any]]]


def report(steps: Steps) -> None:
    """One line before and one after each step: the parent then knows in which step the process died."""
    for name, read in steps:
        print(json.dumps({"begins": name}), flush=True)
        print(json.dumps({"ends": name, "reading": attempt(read)._asdict()}), flush=True)


def attempt(read: Callable[[], Any]) -> Reading:
    try:
        return Reading(read())
    except Exception as error:
        fault = isinstance(error, RuntimeError | OSError) and not isinstance(error, NotImplementedError)
        return Reading(None, f"{type(error).__name__}: {first_line(error)}", fault)
