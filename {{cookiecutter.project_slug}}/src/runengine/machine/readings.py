"""Ask a process of its own about the machine, step by step: what is asked can hang, or crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..settings.console import first_line


class Reading(NamedTuple):
    """One value, or the error instead of it; `fault`: the device or its libraries failed, not this program."""

    value: Any = None
    error: str = ""
    fault: bool = False


Readings = dict[str, Reading]
Steps = Iterator[tuple[str, Callable[[], Any]]]


class Answer(NamedTuple):
    """What a command printed. Status None: it could not be started, or did not end in time; `errors` says which."""

    status: int | None
    output: str
    errors: str


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


def parse(answer: Answer, probe: str) -> Readings:
    """What `report` has printed. If the process failed, the step that had begun says how it ended."""
    readings: Readings = {}
    begun = probe
    for line in answer.output.splitlines():
        if line.startswith('{"begins": '):
            begun = json.loads(line)["begins"]
        elif line.startswith('{"ends": '):
            ended = json.loads(line)
            readings[ended["ends"]] = Reading(**ended["reading"])
    if answer.status is None:
        readings[begun] = Reading(error=answer.errors)
    elif answer.status < 0:  # illegal instruction, segmentation fault, killed for its memory
        readings[begun] = Reading(error=f"the process was ended by {signal.Signals(-answer.status).name}", fault=True)
    elif answer.status > 0:
        readings[begun] = Reading(error=(answer.errors.strip().splitlines() or ["it ended without a message"])[-1])
    return readings


def ask(*command: str, limit_s: float = 20, env: dict[str, str] | None = None) -> Answer:
    """Run a command until it ends or the limit is reached; then kill it with the processes it has started."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", env=env,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Answer(None, "", error.strerror or str(error))
    try:
        output, errors = process.communicate(timeout=limit_s)
        return Answer(process.returncode, output, errors)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        if isinstance(stopped, KeyboardInterrupt):
            raise
    try:
        output, _ = process.communicate(timeout=2)
    except subprocess.TimeoutExpired:  # it waits for a disk that does not answer: even SIGKILL has to wait
        output, process.returncode = "", -signal.SIGKILL
    return Answer(None, output, f"no answer within {limit_s:g} s")
