"""The sum over several devices, which every step of a distributed training waits for."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .timing import LEAST_BLOCKS, Reading, WrongResult, clock, summary, wait_for

TIME_LIMIT_S = 60.0  # for one all-reduce: NCCL can hang


def bus_share(num_devices: int) -> float:
    """The share of an all-reduce's bytes that crosses each link: 2 (n - 1) / n (nccl-tests, doc/PERFORMANCE.md)."""
    return 2 * (num_devices - 1) / num_devices


def all_reduce(num_processes: int, kind: str, num_bytes: int, budget_s: float) -> Reading:
    """The sum over processes, one for each GPU (NCCL) or on CPUs (gloo), in GB/s of each link (see `bus_share`).

    Raises:
        TimeoutError: the processes hung, and were killed.
        RuntimeError: one of them failed.
    """
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_processes, kind, num_bytes, budget_s, folder)
        started: Any = mp.spawn(_reduce, arguments, num_processes, join=False)  # type: ignore[attr-defined, no-untyped-call]
        until = time.monotonic() + TIME_LIMIT_S
        try:
            while not started.join(timeout=1.0):  # raises what a child has raised
                if time.monotonic() > until:
                    raise TimeoutError(f"no answer in {TIME_LIMIT_S:.0f} s: try NCCL_DEBUG=INFO, NCCL_P2P_DISABLE=1")
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
        return Reading(**json.loads((Path(folder) / "reading.json").read_text(encoding="utf-8")))


def _reduce(rank: int, world: int, kind: str, num_bytes: int, budget_s: float, folder: str) -> None:
    import torch.distributed as dist

    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=TIME_LIMIT_S),
        device_id=device if kind == "cuda" else None,
    )
    source = torch.full((num_bytes // 4,), rank + 1.0, device=device)
    target = source.clone()

    def once_s() -> float:
        target.copy_(source)
        wait_for(device)
        dist.barrier()
        return clock(partial(dist.all_reduce, target), 1, device)

    first_s = statistics.median(once_s() for _ in range(LEAST_BLOCKS))  # warm-up
    count = torch.tensor([int(budget_s / first_s)], device=device)
    dist.broadcast(count, 0)  # all ranks must make the same number of calls
    timing = summary([once_s() for _ in range(min(max(int(count), LEAST_BLOCKS), 200))])
    if not bool((target == world * (world + 1) / 2).all()):
        raise WrongResult("the all-reduce gives a wrong sum")
    if rank == 0:
        reading = timing.rate(num_bytes * bus_share(world) / 1e9)
        text = json.dumps({"value": reading.value, "spread": reading.spread})
        (Path(folder) / "reading.json").write_text(text, encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
