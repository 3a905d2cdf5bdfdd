"""Checks of the doctor: is what this machine computes right?"""

from __future__ import annotations

import platform
import sys

from .checks import REBUILD, NotRead, Result, fail, ok, other_maker, skip, value
from .collect_env import Machine
from .collect_torch import TERMS, TERMS_OF_CONVOLUTION
from .products import DTYPES, rounding

# how each manager installs the project's extra for TensorFlow: INSTALL_EXTRA in environment.mk
EXTRA = {
    "poetry": 'poetry install --extras "dev tensorflow"',
    "uv": "uv sync --extra dev --extra tensorflow",
    "venv": '.venv/bin/python -m pip install --editable ".[tensorflow]"',
    "conda": '.conda/bin/python -m pip install --editable ".[tensorflow]"',
}


def arithmetic(machine: Machine) -> Result:
    return compare(machine, set(DTYPES))


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
        elif not error <= (most := largest(device, kind)):  # not `error > ...`, which is false for NaN
            return fail(
                f"{name} is wrong: relative error {error:.0e}, at most {most:.0e} is rounding",
                "what is computed there cannot be trusted",
                "# Update the driver; if that does not help, the hardware is broken",
            )
        else:
            good.append(f"{name} {error:.0e}")
    if unknown or not good:
        value(machine.torch, "build")
        raise NotRead("; ".join(unknown) or list(machine.torch.values())[-1].error or "nothing was computed")
    return ok(f"relative errors: {', '.join(good)}")


def largest(device: str, kind: str) -> float:
    """The largest relative error that rounding explains.

    A convolution may use Winograd's algorithm, which costs about three bits; cuDNN's is in TF32.
    """
    if kind != "convolution":
        return rounding(kind, TERMS, device)
    return 8 * rounding("tf32" if device.startswith("cuda") else "fp32", TERMS_OF_CONVOLUTION, device)


def compiling(machine: Machine) -> Result:
    _, error, fault = machine.compile["compile"]
    why = "only compile=true needs it"
    if "CppCompiler" in error or "C++ compiler" in error or "InvalidCxx" in error:
        return fail(
            "torch.compile finds no C++ compiler", why, "# For example on Debian and Ubuntu:\nsudo apt install g++"
        )
    if fault or "Error" in error:
        return fail(f"torch.compile fails: {error}", why, "# Leave compile=false")
    return ok(f"torch.compile compiled a function in {value(machine.compile, 'compile'):.0f} s")


def together(machine: Machine) -> Result:
    seen = value(machine.torch, "gpus")
    num = len(seen["gpus"])
    if other_maker(machine) == "Intel":
        return skip("no training uses Intel's GPUs")
    if num < 2:
        return skip("there are fewer than two GPUs")
    if error := machine.collective["collective"].error:
        return fail(
            f"NCCL over {num} GPUs: {error}",
            "trainer=ddp and trainer=fsdp need it",
            "# Try NCCL_P2P_DISABLE=1, in a container NCCL_CUMEM_HOST_ENABLE=0; NCCL_DEBUG=INFO shows more",
        )
    peers = f", without a direct path between {seen['no_peer']}, which is slower" if seen["no_peer"] else ""
    return ok(f"NCCL adds over {num} GPUs{peers}")


def pinned(machine: Machine) -> Result:
    names = [name for name in machine.torch if " pinned" in name]
    if not names:
        return skip("no training uses Intel's GPUs" if other_maker(machine) == "Intel" else "there is no GPU")
    bad = [name for name in names if machine.torch[name].error or not machine.torch[name].value]
    if bad:
        said = machine.torch[bad[0]].error or "the copy differs from the original"
        in_wsl = "  # in WSL: memory= in Windows' .wslconfig decides, too"
        return fail(f"{bad[0]}: {said}", "data cannot be copied while the GPU computes", f"ulimit -l unlimited{in_wsl}")
    return ok("pinned memory reaches each GPU")


def has_cuda_wheels() -> bool:
    """Of TensorFlow, for this machine."""
    return (sys.platform, platform.machine()) == ("linux", "x86_64")


def tensorflow(machine: Machine) -> Result:
    readings = machine.tensorflow
    if not readings:
        return skip("not installed")
    found = value(readings, "build")
    shares_cuda = machine.asked["cuda"].startswith("cu12") and machine.asked["env_manager"] != "conda"
    if machine.gpus and not found["num_gpus"] and (found["cuda"] or (shares_cuda and has_cuda_wheels())):
        return fail(
            f"TensorFlow {found['version']}: "
            + ("its build has CUDA, but it finds no GPU" if found["cuda"] else "a build without CUDA"),
            "it uses the CPU only",
            "# See `driver` and `libraries`; then take the build that fits next to this PyTorch, without another one:\n"
            f"{REBUILD}\n{EXTRA[machine.asked['env_manager']]}",
        )
    for device, reading in readings.items():
        if reading.error or not reading.value:
            said = reading.error or "multiplies wrongly"
            return fail(f"TensorFlow {found['version']} on {device}: {said}", "it cannot be used there", REBUILD)
    said = f"TensorFlow {found['version']} multiplies on {', '.join(name for name in readings if name != 'build')}"
    alone = machine.gpus and not found["num_gpus"]
    return ok(said + (", and not on the GPU: with CUDA it does not fit next to this PyTorch" if alone else ""))
