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


def all_reduce(num_processes: int, kind: str, num_bytes: int, budget_s: float) -> Reading:
    """The sum over processes, one for each GPU (NCCL) or on CPUs (gloo), in GB/s of each link.

    2 (n - 1) / n of the bytes cross each link (nccl-tests, doc/PERFORMANCE.md).

    Raises:
        TimeoutError: the processes hung, and were killed.
        RuntimeError: one of them failed.
        WrongResult: the sum is wrong.
    """
    from torch.multiprocessing.spawn import ProcessRaisedException, spawn

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = (num_processes, kind, num_bytes, budget_s, folder)
        started: Any = spawn(_reduce, arguments, num_processes, join=False)  # type: ignore[no-untyped-call]
        until = time.monotonic() + TIME_LIMIT_S
        try:
            while not started.join(timeout=1.0):
                if time.monotonic() > until:
                    raise TimeoutError(f"no answer in {TIME_LIMIT_S:.0f} s: try NCCL_DEBUG=INFO, NCCL_P2P_DISABLE=1")
        except ProcessRaisedException as error:  # its first line says that a process failed, its last line why
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
        reading, sums = json.loads((folder / "reading.json").read_text(encoding="utf-8"))
    wanted = num_processes * (num_processes + 1) / 2
    for found in sums:
        if found != wanted:
            raise WrongResult(f"the sum is {found}, not {wanted}")
    return Reading(**reading)


def _reduce(rank: int, world: int, kind: str, num_bytes: int, budget_s: float, folder: Path) -> None:
    import torch.distributed as dist

    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=(folder / "meeting").as_uri(),
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
    if rank == 0:
        reading = timing.rate(num_bytes * 2 * (world - 1) / world / 1e9)
        answer = {"value": reading.value, "spread": reading.spread}, [float(each) for each in target.aminmax()]
        (folder / "reading.json").write_text(json.dumps(answer), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
