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

    state: str  # ok, fail, skip (does not apply here), unknown (no answer)
    found: str
    why: str = ""
    fix: str = ""


class Check(NamedTuple):
    name: str
    look: Callable[[Machine], Result]
    quick: bool = False  # `make setup` runs the quick checks at its end


class NotRead(Exception):
    """The machine gave no answer, so the check can neither pass nor fail: it is `unknown`."""


def ok(found: str) -> Result:
    return Result("ok", found)


def skip(found: str) -> Result:
    return Result("skip", found)


def fail(found: str, why: str, fix: str) -> Result:
    return Result("fail", found, why, fix)


def other_maker(machine: Machine) -> str:
    """Who makes the GPUs that the project's build is for, if not NVIDIA: their drivers are not asked."""
    asked = machine.asked["cuda"]
    return "AMD" if asked.startswith("rocm") else "Intel" if asked == "xpu" else ""


def no_gpu(machine: Machine) -> Result:
    """NVIDIA's driver lists none."""
    maker = other_maker(machine)
    return skip(f"only NVIDIA's driver is asked, and this build is for {maker}'s GPUs" if maker else "there is no GPU")


def value(readings: dict[str, Reading], name: str) -> Any:
    if name not in readings:
        last = list(readings.values())[-1].error if readings else ""
        raise NotRead(last or "the check ended before this was read")
    if readings[name].error:
        raise NotRead(readings[name].error)
    return readings[name].value


def version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
