"""Checks of the doctor: what breaks GPUs, or makes them slow, where many use them for years."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .checks import NotRead, Result, fail, no_gpu, ok, skip, value
from .collect_env import Machine

# NVIDIA's "XID Errors": those that speak of the card, not of the program that ran
XIDS = {
    48: "an uncorrectable error of its memory", 64: "a row of its memory that could not be replaced",
    74: "an error of NVLink", 79: "the card is not on the bus any more", 95: "an uncontained error of its memory",
    119: "its own processor does not answer", 120: "its own processor has failed",
}  # fmt: skip
RESET = """# When nothing runs on it, reset the GPU; if that does not help, restart the machine:
sudo nvidia-smi --gpu-reset"""
LEAST_POWER = 0.95  # of the card's own limit: a notebook's changes by a little
PROHIBITED, ONE_PROCESS = 2, 3  # NVML's compute modes
BUSY = 2  # performance states up to it: above, an idle card has slowed down its bus to save power


def gpu_errors(machine: Machine) -> Result:
    """Rows of memory, uncorrectable errors, and what the kernel's log has of the driver's XIDs."""
    if not machine.gpus:
        return no_gpu(machine)
    said = []
    for index, state in _states(machine):
        pending, failed = state.get("remapped", (0, 0))
        if failed:
            return fail(
                f"GPU {index}: a row of its memory is broken and could not be replaced",
                "results can be wrong, and trainings crash",
                f"# Let the card be replaced; until then leave out GPU {index}, by CUDA_VISIBLE_DEVICES",
            )
        if pending:
            return fail(
                f"GPU {index}: a row of its memory is broken and waits to be replaced",
                "trainings crash there",
                f"{RESET} -i {index}",
            )
        if errors := state.get("uncorrected", 0):
            return fail(
                f"GPU {index}: {errors} uncorrectable errors of its memory since its driver was loaded",
                "trainings crash there",
                f"{RESET} -i {index}",
            )
        said.append(f"GPU {index}: " + ("no errors of its memory" if "uncorrected" in state else "has no ECC"))
    reading = machine.nvml.get("kernel log")
    logged = None if reading is None or reading.error else reading.value
    for place, number in logged or []:
        if number in XIDS:
            return fail(
                f"the kernel's log has XID {number} of the GPU at {place}: {XIDS[number]}",
                "trainings crash there",
                "# Restart the machine; if it comes back, let the card be looked at:\nsudo dmesg | grep Xid",
            )
    return ok("; ".join(said) + ("; the kernel's log is not readable here" if logged is None else "; no XID is logged"))


def gpu_link(machine: Machine) -> Result:
    """Is each card connected as fast as it can be?"""
    if not machine.gpus:
        return no_gpu(machine)
    said = []
    for index, state in _states(machine):
        lanes, most = state.get("lanes", (0, 0))
        generation, newest = state.get("generation", (0, 0))
        up, down = state.get("nvlink", (0, 0))
        found = f"GPU {index}: PCIe {generation} x{lanes}" if lanes else ""
        slow = lanes < most or (generation < newest and state.get("performance", BUSY + 1) <= BUSY)
        if lanes and slow:
            return fail(
                f"{found}, and card and slot can do PCIe {newest} x{most}",
                "batches reach the card slower than they could",
                "# Put the card firmly into its slot, or into another one; look at the riser and the BIOS",
            )
        if up and down:
            return fail(
                f"GPU {index}: {down} NVLink lanes are down, {up} are up",
                "several GPUs exchange gradients slower than they could",
                f"# See which, then look at the bridge:\nnvidia-smi nvlink --status -i {index}",
            )
        said.append(found + (f", {up} NVLink lanes" if up else ""))
    return ok("; ".join(said)) if any(said) else skip("the driver does not say how the GPUs are connected")


def gpu_modes(machine: Machine) -> Result:
    """Is anything switched on that keeps a training out, or slows it down?"""
    if not machine.gpus:
        return no_gpu(machine)
    said = []
    for index, state in _states(machine):
        mig, wanted = state.get("mig", (0, 0))
        if mig != wanted:
            return fail(
                f"GPU {index}: MIG is to be switched {'on' if wanted else 'off'} and waits for a reset",
                "PyTorch may find no GPU",
                f"{RESET} -i {index}",
            )
        mode = state.get("compute_mode", 0)
        if mode == PROHIBITED:
            return fail(
                f"GPU {index}: its compute mode is `prohibited`",
                "no program may compute there",
                f"sudo nvidia-smi -i {index} --compute-mode DEFAULT",
            )
        limit, own = state.get("power_w", (0, 0))
        if limit < LEAST_POWER * own:
            return fail(
                f"GPU {index}: its power is limited to {limit:.0f} W of {own:.0f} W",
                "it computes slower than it could",
                f"# If nobody has chosen that:\nsudo nvidia-smi -i {index} --power-limit {own:.0f}",
            )
        notes = [f"{own:.0f} W"] * bool(own) + ["MIG: PyTorch sees one slice of it"] * bool(mig)
        notes += ["one process at a time"] * (mode == ONE_PROCESS)
        notes += ["each start waits for the driver (persistence mode is off)"] * (state.get("persistence") == 0)
        said += [f"GPU {index}: {', '.join(notes)}"] * bool(notes)
    return ok("; ".join(said) or "nothing is limited, as far as the driver says")


def _states(machine: Machine) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each GPU's number and what its driver says; raises NotRead where nothing was said at all."""
    names = [name for name in machine.nvml if name.startswith("GPU ") and name.endswith(" state")]
    if not names:
        raise NotRead("the driver was not asked")
    for name in names:
        yield int(name.split()[1]), value(machine.nvml, name)
