"""The conditions of a measurement: the chips, the versions, how busy the machine is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .collect_env import child
from .gpu_specs import published
from .readings import Reading
from .verdicts import Machine

if TYPE_CHECKING:
    import torch

# GB/s of one lane in one direction, after line coding: PCI-SIG, 2.5, 5, 8, 16, 32 GT/s
PCIE_LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938}


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
    import torch

    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        lanes = pynvml.nvmlDeviceGetMaxPcieLinkWidth(card)
        return PCIE_LANE_GB_S[pynvml.nvmlDeviceGetMaxPcieLinkGeneration(card)] * int(lanes)
    except (pynvml.NVMLError, AttributeError, KeyError):  # no NVIDIA card, a slice of one, a newer bus
        return None


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
