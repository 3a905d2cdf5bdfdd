"""Checks of the doctor: PyTorch, the driver, and each GPU."""

from __future__ import annotations

import math
import os
import re

from .checks import REBUILD, NotRead, Result, fail, ok, size, skip, value, version
from .collect_env import Machine
from .collect_torch import SIGNIFICAND_BITS, TERMS
from .readings import Reading

LEAST_GPU_FREE = 0.1  # share of the GPU's memory
# NVML's reasons for low clocks that are faults; idle, the power cap of a busy GPU, chosen clocks and a display are not
SLOWED = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power supply's brake"}


def build(machine: Machine) -> Result:
    asked, gpus, reading = machine.asked["cuda"], machine.smi.gpus, machine.torch.get("build", Reading())
    if reading.error:
        return fail(f"PyTorch cannot be loaded: {reading.error}", "nothing can be trained", REBUILD)
    torch = value(machine.torch, "build")
    found = "cu" + torch["cuda"].replace(".", "") if torch["cuda"] else "cpu"
    if found == "cpu" and gpus and not (machine.quick and asked == "cpu"):  # a setup allows it
        return fail(
            f"CPU wheel on a GPU machine: PyTorch {torch['version']}, but {gpus[0][0]} is here",
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


def same_build(found: str, asked: str, *, conda: bool) -> bool:
    """Conda's builds have another minor version of CUDA (12.9 for cu126): there the major one counts."""
    return found == asked or (conda and found[:-1] == asked[:-1] != "cp")


def driver(machine: Machine) -> Result:
    smi, least = machine.smi, machine.asked["driver"]
    if machine.asked["cuda"] == "cpu":
        return skip("a CPU build needs no driver")
    if not smi.gpus and re.search("driver|NVML", smi.reason):
        return fail(
            smi.reason, "no GPU can be used", "# Restart the machine; if that does not help, install the driver"
        )
    if not smi.gpus:
        return skip(f"no GPU: {smi.reason}. Fine on a login node: this build finds one where the project runs")
    if version(smi.driver) >= version(least):
        return ok(f"driver {smi.driver}; this build needs {least}")
    if machine.torch.get("gpus", Reading({})).value.get("gpus"):
        return ok(f"driver {smi.driver} is older than {least}, but PyTorch can use it (CUDA's compat libraries)")
    return fail(
        f"driver too old for this build: have {smi.driver}, need {least}",
        "PyTorch finds no GPU",
        f"# Update NVIDIA's driver to {least} or newer, or take a build for the one you have:\nmake switch CUDA=auto",
    )


def gpus(machine: Machine) -> Result:
    if machine.asked["cuda"] == "cpu" or not machine.smi.gpus:
        return skip("a CPU build uses no GPU" if machine.asked["cuda"] == "cpu" else "there is no GPU")
    seen = value(machine.torch, "gpus")
    for name, capability in seen["gpus"] or machine.smi.gpus:
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
            f"PyTorch can use none of the {len(machine.smi.gpus)} GPUs"
            + (f": {seen['reason']}" if seen["reason"] else ""),
            "training uses the CPU only",
            "# See `driver`" if hidden is None else f"unset CUDA_VISIBLE_DEVICES  # it is {hidden!r}",
        )
    return ok("; ".join(f"{name}, compute capability {capability}" for name, capability in seen["gpus"]))


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


def arithmetic(machine: Machine) -> Result:
    return compare(machine, set(SIGNIFICAND_BITS))


def convolution(machine: Machine) -> Result:
    return compare(machine, {"convolution"})


def compare(machine: Machine, kinds: set[str]) -> Result:
    """Relative errors against float64, and the largest that rounding explains."""
    good, unknown = [], []
    for name, (error, said, fault) in machine.torch.items():
        device, _, kind = name.partition(" ")
        if kind not in kinds:
            continue
        if "no kernel image" in said:
            return fail(f"wheel has no code for this GPU ({device})", "nothing runs there", "make switch CUDA=auto")
        if said and fault:
            return fail(
                f"{name} fails: {said}", "training would fail, too", "# See `driver`, `libraries`; then:\n" + REBUILD
            )
        if said:
            unknown.append(f"{name}: {said}")
        elif not error <= tolerance(device, kind):  # not `error > ...`, which is false for NaN
            return fail(
                f"{name} is wrong: relative error {error:.0e}, at most {tolerance(device, kind):.0e} is rounding",
                "what is computed there cannot be trusted",
                "# Update the driver; if that does not help, the hardware is broken",
            )
        else:
            good.append(f"{name} {error:.0e}")
    if unknown or not good:
        value(machine.torch, "build")
        raise NotRead("; ".join(unknown) or list(machine.torch.values())[-1].error or "nothing was computed")
    return ok(f"relative errors: {', '.join(good)}")


def tolerance(device: str, kind: str) -> float:
    """Twice sqrt(TERMS) u, the error of a sum of TERMS terms under random rounding (Higham and Mary 2019).

    cuDNN computes in TF32; other convolutions may use Winograd's algorithm, which costs about three bits.
    """
    bits = SIGNIFICAND_BITS.get(kind) or (SIGNIFICAND_BITS["tf32"] if device.startswith("cuda") else 21)
    return 2 * math.sqrt(TERMS) * 2.0**-bits


def compiling(machine: Machine) -> Result:
    reading = machine.compile.get("compile", Reading())
    why = "only compile=true needs it"
    if "CppCompiler" in reading.error or "C++ compiler" in reading.error or "InvalidCxx" in reading.error:
        return fail(
            "torch.compile finds no C++ compiler", why, "# For example on Debian and Ubuntu:\nsudo apt install g++"
        )
    if reading.fault or "Error" in reading.error:
        return fail(f"torch.compile fails: {reading.error}", why, "# Leave compile=false")
    return ok(f"torch.compile compiled a function in {value({'compile': reading}, 'compile'):.0f} s")


def together(machine: Machine) -> Result:
    seen = value(machine.torch, "gpus")
    num = len(seen["gpus"])
    if num < 2:
        return skip("there are fewer than two GPUs")
    reading = machine.collective.get("collective", Reading())
    if reading.error or reading.value != num * (num + 1) / 2:
        return fail(
            f"NCCL over {num} GPUs: {reading.error or f'the sum is {reading.value}, not {num * (num + 1) / 2}'}",
            "trainer=ddp and trainer=fsdp need it",
            "# Try NCCL_P2P_DISABLE=1; NCCL_DEBUG=INFO shows more",
        )
    peers = f", without a direct path between {seen['no_peer']}, which is slower" if seen["no_peer"] else ""
    return ok(f"NCCL adds over {num} GPUs{peers}")


def pinned(machine: Machine) -> Result:
    names = [name for name in machine.torch if name.endswith(" pinned")]
    if not names:
        return skip("there is no GPU")
    bad = [name for name in names if machine.torch[name].error or not machine.torch[name].value]
    if bad:
        said = machine.torch[bad[0]].error or "the copy differs from the original"
        return fail(f"{bad[0]}: {said}", "data cannot be copied while the GPU computes", "ulimit -l unlimited")
    return ok("pinned memory reaches each GPU")


def gpu_memory(machine: Machine) -> Result:
    if not machine.smi.gpus:
        return skip("there is no GPU")
    said = []
    for index, reading in machine.nvml.items():
        gpu = value({index: reading}, index)
        held = ", ".join(f"{name} {pid}" + (f" {size(used)}" if used else "") for name, pid, used in gpu["holders"])
        said.append(
            f"GPU {index}: {size(gpu['free'])} of {size(gpu['total'])} free" + (f", held by {held}" if held else "")
        )
        if gpu["free"] < LEAST_GPU_FREE * gpu["total"]:
            pids = " ".join(str(pid) for _, pid, _ in gpu["holders"])
            return fail(
                said[-1],
                "a training would end with: out of memory",
                "# Choose another GPU with CUDA_VISIBLE_DEVICES, or end the processes on this one, if they are yours:"
                + (f"\nkill {pids}" if pids else ""),
            )
    return ok("; ".join(said))


def gpu_clocks(machine: Machine) -> Result:
    if not machine.smi.gpus:
        return skip("there is no GPU")
    for index, reading in machine.nvml.items():
        reasons = value({index: reading}, index)["reasons"]
        if reasons is None:
            return skip(f"GPU {index} does not report why its clocks are low")
        if slowed := [name for bit, name in SLOWED.items() if reasons & bit]:
            return fail(
                f"GPU {index} is slowed down: {', '.join(slowed)}",
                "training takes longer than it should",
                "# Check its cooling and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
            )
    return ok("not slowed down")


def tensorflow(machine: Machine) -> Result:
    readings = machine.tensorflow
    if not readings:
        return skip("not installed")
    found = value(readings, "build")
    if machine.smi.gpus and not found["num_gpus"]:
        built = "its build has CUDA, but it finds no GPU" if found["cuda"] else "a build without CUDA"
        return fail(
            f"TensorFlow {found['version']}: {built}", "it uses the CPU only", "pip install 'tensorflow[and-cuda]'"
        )
    for device, reading in readings.items():
        if reading.error or not reading.value:
            said = reading.error or "multiplies wrongly"
            return fail(f"TensorFlow {found['version']} on {device}: {said}", "it cannot be used there", REBUILD)
    return ok(f"TensorFlow {found['version']} multiplies on {', '.join(name for name in readings if name != 'build')}")
