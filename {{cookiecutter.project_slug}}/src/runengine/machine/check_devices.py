"""Checks of the doctor: the build of PyTorch, the driver, and each GPU."""

from __future__ import annotations

import os
import re
from typing import Any

from ..settings.console import size
from .checks import REBUILD, NotRead, Result, fail, no_gpu, ok, other_maker, skip, value, version
from .collect_env import Machine
from .readings import Reading

LEAST_GPU_FREE = 0.1  # share of the GPU's memory
# NVML's reasons for low clocks that are faults; idle, the power cap of a busy GPU, chosen clocks and a display are not
SLOWED = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power supply's brake"}


def build(machine: Machine) -> Result:
    asked, reading = machine.asked["cuda"], machine.torch.get("build", Reading())
    if reading.error:
        return fail(f"PyTorch cannot be loaded: {reading.error}", "nothing can be trained", REBUILD)
    torch = value(machine.torch, "build")
    found = build_of(torch)
    if found == "cpu" and not (machine.quick and asked == "cpu") and machine.gpus:  # a setup allows it
        return fail(
            f"CPU wheel on a GPU machine: PyTorch {torch['version']}, but {machine.gpus[0][0]} is here",
            "training uses the CPU only",
            "make switch CUDA=auto" if asked == "cpu" else REBUILD,
        )
    if not same_build(found, asked, conda=machine.python.made_by == "conda"):
        return fail(
            f"PyTorch {torch['version']} is the build {found}, but pyproject.toml asks for {asked}",
            "it may not run on the GPUs that the project is for",
            REBUILD,
        )
    return ok(f"PyTorch {torch['version']}, build {found}, as asked for")


def build_of(torch: dict[str, Any]) -> str:
    """What PyTorch's index calls the build with these versions."""
    if torch["hip"]:
        return "rocm" + ".".join(torch["hip"].split(".")[:2])
    if torch["xpu"]:
        return "xpu"
    return "cu" + torch["cuda"].replace(".", "") if torch["cuda"] else "cpu"


def same_build(found: str, asked: str, *, conda: bool) -> bool:
    """Conda's builds have another minor version of CUDA (12.9 for cu126): there the major one counts."""
    return found == asked or (conda and found[:-1] == asked[:-1] != "cp")


def driver(machine: Machine) -> Result:
    least = machine.asked["driver"]
    if machine.asked["cuda"] == "cpu":
        return skip("a CPU build needs no driver")
    if maker := other_maker(machine):
        return skip(f"this build is for {maker}'s GPUs and needs no driver of NVIDIA's")
    own = {name: reading for name, reading in machine.nvml.items() if re.fullmatch(r"driver|GPU \d+", name)}
    broken = next((f"{name}: {reading.error}" for name, reading in own.items() if reading.error), "")
    elsewhere = "Fine on a login node: this build finds one where the project runs"
    if "NVMLError_LibraryNotFound" in broken:
        return skip(f"no GPU: NVIDIA's driver is not installed. {elsewhere}")
    if "NVMLError" in broken:
        fix = "# Restart the machine; if that does not help, install the driver"
        return fail(broken, "no training can use it", fix)
    if broken:
        raise NotRead(broken)
    found = value(machine.nvml, "driver")
    if not machine.gpus:
        return skip(f"no GPU: driver {found} lists none. {elsewhere}")
    if version(found) >= version(least):
        return ok(f"driver {found}; this build needs {least}")
    if machine.torch.get("gpus", Reading({})).value.get("gpus"):
        return ok(f"driver {found} is older than {least}, but PyTorch can use it (CUDA's compat libraries)")
    return fail(
        f"driver too old for this build: have {found}, need {least}",
        "PyTorch finds no GPU",
        f"# Update NVIDIA's driver to {least} or newer, or take a build for the one you have:\nmake switch CUDA=auto",
    )


def gpus(machine: Machine) -> Result:
    if maker := other_maker(machine):
        return gpus_of(maker, machine)
    if machine.asked["cuda"] == "cpu" or not machine.gpus:
        return skip("a CPU build uses no GPU" if machine.asked["cuda"] == "cpu" else "there is no GPU")
    seen = value(machine.torch, "gpus")
    for name, capability in seen["gpus"] or machine.gpus:
        if capability and not has_code(capability, seen["archs"], machine.asked["capability"]):
            return fail(
                f"wheel has no code for this GPU: {name}, compute capability {capability}; "
                f"it has {' '.join(seen['archs']) or machine.asked['capability']}",
                "every computation there fails",
                "make switch CUDA=auto",
            )
    if not seen["gpus"]:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return fail(
            f"PyTorch can use none of the {len(machine.gpus)} GPUs" + (f": {seen['reason']}" if seen["reason"] else ""),
            "training uses the CPU only",
            "# See `driver`" if hidden is None else f"unset CUDA_VISIBLE_DEVICES  # it is {hidden!r}",
        )
    return ok("; ".join(f"{name}, compute capability {capability}" for name, capability in seen["gpus"]))


def gpus_of(maker: str, machine: Machine) -> Result:
    """What PyTorch sees of AMD's or Intel's GPUs; nobody else is asked."""
    seen = value(machine.torch, "gpus")
    reason = f": {seen['reason']}" if seen["reason"] else ""
    if not seen["gpus"] and machine.quick:  # a setup may run elsewhere
        return skip(f"PyTorch sees none of {maker}'s GPUs{reason}. Fine where none is, as on a login node")
    if not seen["gpus"]:
        return fail(
            f"PyTorch sees none of {maker}'s GPUs, and the project asks for their build{reason}",
            "training uses the CPU only",
            "# Is the driver loaded, and are you in the groups `render` and `video` (Linux)? On a machine without such "
            "a GPU:\nmake switch CUDA=auto",
        )
    for name, architecture in seen["gpus"]:
        if seen["archs"] and architecture not in seen["archs"]:
            return fail(
                f"wheel has no code for this GPU: {name}, {architecture}; it has {' '.join(seen['archs'])}",
                "every computation there fails",
                "make switch CUDA=auto",
            )
    said = "; ".join(", ".join(filter(None, gpu)) for gpu in seen["gpus"])
    return ok(said + (". Lightning has no accelerator for them: a training uses the CPU" if maker == "Intel" else ""))


def has_code(capability: str, archs: list[str], limits: str) -> bool:
    """By the list of the wheel (`sm_90`: for 9.0 and later minors; `compute_90`: and for all later ones), else by the
    limits of the build, such as `5.0-9.0` or `7.5-`."""
    major, minor = version(capability)
    if not archs:
        least, greatest = (version(limit) for limit in limits.split("-"))
        return least <= (major, minor) and (not greatest or (major, minor) <= greatest)
    for arch in archs:
        kind, digits, only = re.fullmatch(r"([a-z]+)_(\d+)([af]?)", arch).groups()  # type: ignore[union-attr]
        of = int(digits[:-1]), int(digits[-1])
        if of == (major, minor) or (only != "a" and of <= (major, minor) and (kind == "compute" or of[0] == major)):
            return True
    return False


def gpu_memory(machine: Machine) -> Result:
    if not machine.gpus:
        return no_gpu(machine)
    said = []
    for name in machine.nvml:
        gpu, about, _ = name.partition(" memory")
        if not about:
            continue
        total, free, holders = value(machine.nvml, name)
        held = ", ".join(f"{program} {pid}" + (f" {size(used)}" if used else "") for program, pid, used in holders)
        said.append(f"{gpu}: {size(free)} of {size(total)} free" + (f", held by {held}" if held else ""))
        if free < LEAST_GPU_FREE * total:
            pids = " ".join(str(pid) for _, pid, _ in holders)
            return fail(
                said[-1],
                "a training would end with: out of memory",
                "# Choose another GPU with CUDA_VISIBLE_DEVICES, or end the processes on this one, if they are yours:"
                + (f"\nkill {pids}" if pids else ""),
            )
    return ok("; ".join(said))


def gpu_clocks(machine: Machine) -> Result:
    if not machine.gpus:
        return no_gpu(machine)
    for name in machine.nvml:
        gpu, about, _ = name.partition(" clocks")
        if not about:
            continue
        reasons = value(machine.nvml, name)
        if reasons is None:
            return skip(f"{gpu} does not report why its clocks are low")
        if slowed := [said for bit, said in SLOWED.items() if reasons & bit]:
            return fail(
                f"{gpu} is slowed down: {', '.join(slowed)}",
                "training takes longer than it should",
                "# Check its cooling and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
            )
    return ok("not slowed down")
