"""How long a call takes on a device, by the device's own clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

WARM_UP_SHARE = 0.3  # share of a measurement's time: a GPU's clock rises from idle, libraries choose their kernels
BLOCK_S = 0.01  # calls timed together: long compared with the 0.5 us of a CUDA event, and the GPU's queue stays filled
LEAST_BLOCKS = 3  # the fewest that have a median


class WrongResult(Exception):
    """The device computed a wrong result."""


@dataclass(frozen=True)
class Reading:
    """What was reached, in the unit of its measurement.

    Args:
        value: by the median of the blocks.
        spread: half the distance of the quartiles, as a share of the median; None where there is one block.
        flop_each: floating-point operations in one of the unit (one TFLOP, one example); 0: not counted.
        steps_s: steps a second, of a training.
    """

    value: float
    spread: float | None
    flop_each: float = 0.0
    steps_s: float | None = None


@dataclass(frozen=True)
class Timing:
    median_s: float
    spread: float | None

    def rate(self, amount: float, **details: float) -> Reading:
        return Reading(amount / self.median_s, self.spread, **details)


def seconds(call: Callable[[], object], device: torch.device, budget_s: float) -> Timing:
    """How long a call takes: warm-up, then blocks of calls for `budget_s`, by the device's own clock on a GPU."""
    clock(call, 1, device)  # the first call compiles and allocates memory
    once_s = clock(call, 1, device)
    warm_until = time.perf_counter() + WARM_UP_SHARE * budget_s
    while time.perf_counter() < warm_until:
        once_s = clock(call, 1, device)
    num_calls = max(1, int(BLOCK_S / max(once_s, 1e-9)))
    least = LEAST_BLOCKS if once_s < budget_s else 1  # on a slow device, more would take minutes
    blocks: list[float] = []
    until = time.perf_counter() + budget_s
    while len(blocks) < least or time.perf_counter() < until:
        blocks.append(clock(call, num_calls, device) / num_calls)
    return summary(blocks)


def summary(times_s: list[float]) -> Timing:
    median_s = statistics.median(times_s)
    if len(times_s) == 1:
        return Timing(median_s, None)
    low, _, high = statistics.quantiles(times_s, n=4, method="inclusive")
    return Timing(median_s, (high - low) / 2 / median_s)


@contextmanager
def using(device: torch.device) -> Iterator[None]:
    """Use this GPU for new streams and events; then free its memory, so that the next measurement finds enough."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()


def clock(call: Callable[[], object], num_calls: int, device: torch.device) -> float:
    """Seconds that `num_calls` calls take together."""
    if device.type == "cuda":
        start, end = (cast("Any", torch.cuda.Event)(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(num_calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    for _ in range(num_calls):
        call()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def check_finite(result: Tensor) -> None:
    if not bool(torch.isfinite(result).all()):
        raise WrongResult("the result holds NaN or infinity")
