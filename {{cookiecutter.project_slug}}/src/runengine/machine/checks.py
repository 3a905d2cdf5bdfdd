"""What a check of the doctor is, and what it may find."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .collect_env import Machine
from .readings import Reading

GIB = 2**30
REBUILD = "make clean-env setup"


class Result(NamedTuple):
    """`fix`: lines for a shell; advice that is no command is a comment."""

    state: str
    found: str
    why: str = ""
    fix: str = ""


class Check(NamedTuple):
    name: str
    look: Callable[[Machine], Result]
    quick: bool = False  # `make setup` ends with these


class NotRead(Exception):
    """The machine did not say: neither well nor wrong."""


def well(found: str) -> Result:
    return Result("well", found)


def skipped(found: str) -> Result:
    return Result("skipped", found)


def wrong(found: str, why: str, fix: str) -> Result:
    return Result("wrong", found, why, fix)


def value(readings: dict[str, Reading], name: str) -> Any:
    if name not in readings:
        last = list(readings.values())[-1].error if readings else ""
        raise NotRead(last or "it was not reached")
    if readings[name].error:
        raise NotRead(readings[name].error)
    return readings[name].value


def version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.0f} MiB"
