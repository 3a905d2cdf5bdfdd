"""Checks of the doctor: cores, memory, disk, and the limits of this system."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ..settings.console import size
from ..settings.cpu_limits import allowed_cores, memory_left
from .checks import GIB, Result, fail, ok, skip, value
from .collect_env import Machine
from .collect_services import SPEED_BYTES

# loader processes pass batches through shared memory: 8 processes, 2 batches each, 64 float32 examples of 3 x 224 x 224
SHARED_BYTES = 8 * 2 * 64 * 4 * 3 * 224 * 224
LEAST_MEMORY_BYTES = 2 * GIB  # a training of the default model took 0.64 GiB, nearly all of it libraries
LEAST_DISK_BYTES = 1 * GIB  # a few checkpoints; when it is full a run stops in the middle
SLOWEST_S = 2.0  # for SPEED_BYTES: at such a speed a checkpoint of 1 GB takes four minutes
WINDOWS_DISKS = {"9p", "drvfs", "virtiofs"}  # how WSL mounts them
LEAST_DESCRIPTORS = 1024  # Linux's own default; each tensor that waits in a loader's queue holds one


def system(machine: Machine) -> Result:
    """Which one it is; in WSL, whether the project is on Linux's own disk."""
    import psutil

    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # Windows, macOS
        name = platform.platform(terse=True)
    in_wsl = "microsoft" in platform.release().lower()
    found = f"{name}, {platform.machine()}" + (", in WSL" if in_wsl else "")
    disks = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)} if in_wsl else {}
    here = next((folder for folder in (machine.root, *machine.root.parents) if folder in disks), Path("/"))
    if disks.get(here) in WINDOWS_DISKS:
        return fail(
            f"{found}: the project is on Windows' disk, in {machine.root}",
            "each access to a file goes through Windows there: Git, setup and data are slow",
            f"mv {machine.root} ~/  # Linux's own disk; Windows shows it as \\\\wsl$",
        )
    return ok(found)


def shared_memory(machine: Machine, folder: str = "/dev/shm") -> Result:  # noqa: S108
    if not Path(folder).is_dir():
        return skip(f"there is no {folder}")
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    if free >= SHARED_BYTES:
        return ok(f"{size(free)} free in {folder}")
    return fail(
        f"{size(free)} free in {folder}, {size(SHARED_BYTES)} wanted",
        "8 loader processes keep 2 batches each there (64 examples of 3 x 224 x 224), or die of a bus error",
        "# docker run --shm-size=1g (its default is 64 MB), or leave data.num_workers=0, or:\n"
        f"sudo mount -o remount,size=1G {folder}",
    )


def cores(machine: Machine) -> Result:
    allowed, reason = allowed_cores()
    threads = value(machine.torch, "build")["num_threads"]
    found = f"{allowed} of {os.cpu_count()} cores may be used (set by {reason}); PyTorch takes {threads}"
    if threads and threads > allowed:
        return fail(found, "more threads than cores slow each other down", f"export OMP_NUM_THREADS={allowed}")
    return ok(found)


def memory(machine: Machine) -> Result:
    import psutil

    here = psutil.virtual_memory()
    total, left, whose = here.total, here.available, "this machine"
    if (group := memory_left()) and group[1] < left:
        (total, left), whose = group, "the cgroup of this process"
    found = f"{size(left)} of {size(total)} free ({whose})"
    if left < LEAST_MEMORY_BYTES:
        return fail(
            found, f"below {size(LEAST_MEMORY_BYTES)} the system may kill the training",
            "# Ask for more (sbatch --mem=16G, docker run --memory=16g), or end other programs",
        )  # fmt: skip
    return ok(found)


def disk(machine: Machine) -> Result:
    said: dict[int, str] = {}
    for place, (here, error, _) in machine.disk.items():
        if error:
            return fail(f"{place}: {error}", "data and runs are written there", f"df -h {place} .; ls -ld {place} .")
        found = (
            f"{here['folder']}: {size(here['free'])} free, {size(SPEED_BYTES)} written in {here['write_s']:.2f} s, "
            f"read in {here['read_s']:.2f} s"
        )
        if here["free"] < LEAST_DISK_BYTES or not here["same"]:
            why = (
                f"below {size(LEAST_DISK_BYTES)} a run may stop in the middle"
                if here["same"]
                else "what was read is not what was written"
            )
            return fail(found, why, "du -sh data runs .venv ~/.cache/pip | sort -h")
        if max(here["write_s"], here["read_s"]) > SLOWEST_S:
            return fail(
                found, "each checkpoint waits for the disk", "# Keep data/ and runs/ on a local disk, linked here"
            )
        said.setdefault(here["device"], found)
    return ok("; ".join(said.values()).replace(f"{Path.cwd()}", "."))


def descriptors(machine: Machine) -> Result:
    try:
        from resource import RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows
        return skip("this system has no limit on open files")
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if soft == -1 or soft >= LEAST_DESCRIPTORS:
        return ok("no limit" if soft == -1 else f"up to {soft} at a time")
    can = hard == -1 or hard >= LEAST_DESCRIPTORS
    return fail(
        f"only {soft} open files at a time, {LEAST_DESCRIPTORS} wanted",
        "each tensor that waits in a loader's queue holds one, and each connection between processes",
        f"ulimit -n {LEAST_DESCRIPTORS}" if can else "# Ask the administrator for a higher `ulimit -Hn`",
    )
