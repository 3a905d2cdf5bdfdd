"""Ask NVIDIA's driver by its library, NVML; in a child process, because a broken driver may never answer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

from .readings import Steps


def nvml_steps() -> Steps:
    """The driver's version, then for each GPU what it is, who uses its memory, and why its clocks are low."""
    yield "driver", _driver
    import pynvml

    try:
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:  # the first step has said why
        return
    for index in range(count):
        yield f"GPU {index}", partial(_gpu, index)
        yield f"GPU {index} memory", partial(_memory, index)
        yield f"GPU {index} clocks", partial(_clocks, index)
        yield f"GPU {index} state", partial(_state, index)
    yield "kernel log", _kernel_log


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    return str(pynvml.nvmlSystemGetDriverVersion())


def _gpu(index: int) -> tuple[str, str]:
    """Name and compute capability; old drivers do not report the second."""
    import pynvml

    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        capability = "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(gpu))
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported):
        capability = ""
    return pynvml.nvmlDeviceGetName(gpu), capability


def _memory(index: int) -> tuple[int, int, list[Any]]:
    """Bytes in all, free ones, and who holds the others: program, process, bytes."""
    import psutil
    import pynvml

    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    holders = []
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu):
        try:
            name = psutil.Process(process.pid).name()
        except psutil.Error:  # the process is in another container
            name = "process"
        holders.append([name, process.pid, process.usedGpuMemory])  # None on Windows, and for other users' processes
    return memory.total, memory.free, holders


def _clocks(index: int) -> int | None:
    """The reasons for low clocks, as bits; None where the GPU does not report them."""
    import pynvml

    try:  # old drivers know this name, too
        reasons: int = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError_NotSupported:
        return None
    return reasons


def _state(index: int) -> dict[str, Any]:
    """What the driver says of memory, bus and modes: pairs of what is and what could be. What it refuses is absent."""
    import pynvml

    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    uncorrected = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC  # since the driver was loaded

    def lanes() -> tuple[int, int]:
        return pynvml.nvmlDeviceGetCurrPcieLinkWidth(gpu), pynvml.nvmlDeviceGetMaxPcieLinkWidth(gpu)

    def generation() -> tuple[int, int]:
        return pynvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu), pynvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu)

    def power_w() -> tuple[float, float]:
        limits = pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu), pynvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu)
        return limits[0] / 1000, limits[1] / 1000

    ask: dict[str, Callable[[], Any]] = {
        "remapped": lambda: pynvml.nvmlDeviceGetRemappedRows(gpu)[2:],  # pending, failed
        "uncorrected": lambda: pynvml.nvmlDeviceGetTotalEccErrors(gpu, *uncorrected),
        "lanes": lanes,
        "generation": generation,
        "performance": lambda: pynvml.nvmlDeviceGetPerformanceState(gpu),  # 0 is the fastest
        "nvlink": lambda: _nvlink(gpu),
        "mig": lambda: pynvml.nvmlDeviceGetMigMode(gpu),  # now, and after the next reset
        "compute_mode": lambda: pynvml.nvmlDeviceGetComputeMode(gpu),
        "power_w": power_w,
        "persistence": lambda: pynvml.nvmlDeviceGetPersistenceMode(gpu),
    }
    said = {}
    for name, read in ask.items():
        try:
            said[name] = read()
        except (pynvml.NVMLError, AttributeError):  # an older driver, another kind of card, a right that is missing
            continue
    return said


def _nvlink(gpu: Any) -> tuple[int, int]:
    """How many lanes are up and down; a lane that the card does not have is neither."""
    import pynvml

    states = []
    for lane in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            states.append(pynvml.nvmlDeviceGetNvLinkState(gpu, lane))
        except pynvml.NVMLError:
            continue
    return sum(states), len(states) - sum(states)


def _kernel_log() -> list[tuple[str, int]] | None:
    """Place and number of each XID since the machine was started; None where only root may read it."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.findall(r"NVRM: Xid \((?:PCI:)?([^)]+)\): (\d+)", done.stdout)
    return None if done.returncode else [(place, int(number)) for place, number in found]
