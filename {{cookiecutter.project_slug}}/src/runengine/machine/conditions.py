"""The conditions of a measurement: the chips, the versions, how busy the machine is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .check_devices import SLOWED
from .collect_env import child
from .gpu_specs import published
from .readings import Reading
from .verdicts import Machine

if TYPE_CHECKING:
    import torch

# GB/s of one lane in one direction, after line coding: PCI-SIG, 2.5, 5, 8, 16, 32 GT/s
PCIE_LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938}


LOOK_EVERY_S = 0.02
POWER_LIMIT = 0x4  # NVML's reason for a clock that a busy card's own power limit holds back


def machine_of(device: torch.device) -> Machine:
    import torch

    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else cpu_name()
    chip, pcie = (published(name), pcie_gb_s(device)) if on_gpu else (None, None)
    if device.type == "cpu":
        name += f", {torch.get_num_threads()} threads"
    return Machine(str(device), name, f"{name}, torch {torch.__version__}", chip, pcie)


def pcie_gb_s(device: torch.device) -> float | None:
    """In one direction, by the newest generation and the most lanes that card and slot support; None if unknown."""
    import pynvml

    try:
        card = _card(device)
        lanes = pynvml.nvmlDeviceGetMaxPcieLinkWidth(card)
        return PCIE_LANE_GB_S[pynvml.nvmlDeviceGetMaxPcieLinkGeneration(card)] * int(lanes)
    except (pynvml.NVMLError, AttributeError, KeyError):  # no NVIDIA card, a slice of one, a newer bus
        return None


def _card(device: torch.device) -> Any:
    """What NVML calls it; raises its errors."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


@contextmanager
def clock_reasons(device: torch.device) -> Iterator[set[str]]:
    """What held the clock of this GPU back meanwhile; stays empty where the driver does not say it."""
    import pynvml

    names = {POWER_LIMIT: "its power limit", **SLOWED}
    found: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        try:
            card = _card(device)
            while not over.wait(LOOK_EVERY_S):
                reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
                found.update(name for bit, name in names.items() if reasons & bit)
        except (pynvml.NVMLError, AttributeError):
            return

    watcher = threading.Thread(target=watch, name="clocks")
    if device.type == "cuda":
        watcher.start()
    try:
        yield found
    finally:
        over.set()
        if device.type == "cuda":
            watcher.join()


def cpu_name() -> str:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()


def conditions(machines: list[Machine], load_average_1min: float | None) -> dict[str, Any]:
    import psutil
    import torch

    battery = psutil.sensors_battery()
    return {
        "at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "chips": [machine.name for machine in machines],
        "torch": torch.__version__,
        "driver": child("nvml").get("driver", Reading()).value,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "load_average_1min": load_average_1min,
        "on_battery": battery is not None and not battery.power_plugged,
    }


def load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
