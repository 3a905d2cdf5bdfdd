"""How many CPU cores and how much memory this process may really use: in a container or a job less than there is.

cores, reason = allowed_cores()  # 4, "SLURM_CPUS_PER_TASK"
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

GROUP_OF_PROCESS = Path("/proc/self/cgroup")  # lines of id:controllers:path; version 2 has no controllers there
GROUPS = Path("/sys/fs/cgroup")


def allowed_cores() -> tuple[int, str]:
    """The number, and what sets it: the least of what machine, affinity, cgroup and Slurm give."""
    limits = {"this machine": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):  # Linux only
        limits["the CPU affinity of this process"] = len(os.sched_getaffinity(0))
    if quota := cpu_quota():
        limits["the CPU quota of its cgroup"] = max(1, int(quota))  # of 1.5 cores, two threads would be throttled
    if (asked := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdecimal():
        limits["SLURM_CPUS_PER_TASK"] = max(1, int(asked))
    reason = min(limits, key=lambda name: limits[name])
    return limits[reason], reason


def cpu_quota(process: Path = GROUP_OF_PROCESS, groups: Path = GROUPS) -> float | None:
    """Cores, such as 1.5; None without a limit."""
    quotas = []
    for text in _settings("cpu", "cpu.max", process, groups):  # version 2: "150000 100000", or "max 100000"
        quota, period = text.split()
        if quota != "max":
            quotas.append(int(quota) / int(period))
    periods = list(_settings("cpu", "cpu.cfs_period_us", process, groups))
    for quota, period in zip(_settings("cpu", "cpu.cfs_quota_us", process, groups), periods, strict=False):
        if int(quota) > 0:  # version 1: -1 is no limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_left(process: Path = GROUP_OF_PROCESS, groups: Path = GROUPS) -> tuple[int, int] | None:
    """Limit of the cgroup and what is left of it, in bytes; None without a limit."""
    left = []
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limits = _settings("memory", limit_name, process, groups)
        used = _settings("memory", used_name, process, groups)
        for limit_bytes, used_bytes in zip(limits, used, strict=False):
            if limit_bytes != "max" and int(limit_bytes) < 2**60:  # version 1 writes 2**63 less a page for no limit
                left.append((int(limit_bytes), int(limit_bytes) - int(used_bytes)))
    return min(left, key=lambda pair: pair[1], default=None)


def _settings(controller: str, name: str, process: Path, groups: Path) -> Iterator[str]:
    """What this file says in the cgroup of the process and in each one above it: the tightest counts."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [groups / controllers, groups / controller] if controllers else [groups, groups / "unified"]
        mount = next((mount for mount in mounts if mount.is_dir()), None)
        if mount is None:
            continue
        # in a container the path is often the host's, which is not mounted: what is mounted then is the container's
        inner = mount / re.sub(r"^(/\.\.)*/", "", path)
        for folder in [inner, *inner.parents]:
            if (folder / name).is_file():
                yield (folder / name).read_text(encoding="utf-8").strip()
            if folder == mount:
                break
