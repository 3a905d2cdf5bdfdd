"""Ask NVIDIA's driver by its library, NVML; in a child process, because a broken driver may never answer."""

from __future__ import annotations

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
