"""Read what PyTorch finds, and whether it computes correctly on each device; in a child process, which may crash."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from ..settings.console import first_line
from .readings import Steps

TERMS = 64  # in each sum of a product
# bits of the significand, the leading one included; the product of two fp8 matrices is in bf16
SIGNIFICAND_BITS = {"fp32": 24, "tf32": 11, "fp16": 11, "bf16": 8, "fp8": 8}
# the compute capability from which NVIDIA's hardware has the type
LEAST_CAPABILITY = {"fp32": 0.0, "fp16": 5.3, "tf32": 8.0, "bf16": 8.0, "fp8": 8.9}


def torch_steps(quick: str = "") -> Steps:
    """Build, GPUs, then `<device> <type>` for each product and convolution."""
    yield "build", _torch_build
    if "torch" not in sys.modules:
        return
    yield "gpus", _torch_gpus
    for device, kinds in _devices().items():
        for kind in kinds[:1] if quick else kinds:
            yield f"{device} {kind}", partial(_product, device, kind)
        if not quick:
            yield f"{device} convolution", partial(_convolution, device)
        if not quick and device.startswith("cuda"):
            yield f"{device} pinned", partial(_pinned, device)


def _torch_build() -> dict[str, Any]:
    import torch

    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "num_threads": torch.get_num_threads() if hasattr(torch, "get_num_threads") else None,
    }


def _torch_gpus() -> dict[str, Any]:
    import torch

    if not torch.version.cuda:
        return {"gpus": [], "archs": [], "no_peer": [], "reason": ""}
    reason = ""
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as error:  # its message is the reading
            reason = first_line(error)
        return {"gpus": [], "archs": [], "no_peer": [], "reason": reason}
    count = torch.cuda.device_count()
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    return {
        "gpus": [
            [torch.cuda.get_device_name(index), "{}.{}".format(*torch.cuda.get_device_capability(index))]
            for index in range(count)
        ],
        "archs": torch.cuda.get_arch_list(),
        "no_peer": [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)],
        "reason": "",
    }


def _devices() -> dict[str, list[str]]:
    """The types that each device can multiply."""
    import torch

    devices = {"cpu": ["fp32", "bf16"]}
    if torch.version.cuda and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            capability = float("{}.{}".format(*torch.cuda.get_device_capability(index)))
            devices[f"cuda:{index}"] = [kind for kind, least in LEAST_CAPABILITY.items() if capability >= least]
    elif hasattr(torch, "backends") and torch.backends.mps.is_available():
        devices["mps"] = ["fp32", "fp16", "bf16"]
    return devices


def _product(device: str, kind: str) -> float:
    """Relative error against float64 on the CPU, of the same rounded numbers: only the product itself is measured."""
    import torch

    type_ = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}.get(kind, torch.float32)
    numbers = torch.Generator().manual_seed(0)
    left_MK = torch.randn(256, TERMS, generator=numbers).to(type_)
    right_NK = torch.randn(256, TERMS, generator=numbers).to(type_)
    wanted_MN = left_MK.double() @ right_NK.double().T
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    left_MK, right_NK = left_MK.to(device), right_NK.to(device)
    if kind == "fp8":
        one = torch.ones((), device=device)
        got_MN = torch._scaled_mm(left_MK, right_NK.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    else:
        got_MN = left_MK @ right_NK.T
    return float((got_MN.cpu().double() - wanted_MN).norm() / wanted_MN.norm())


def _convolution(device: str) -> float:
    """Relative error against float64 on the CPU; on NVIDIA's GPUs cuDNN's, in TF32 as PyTorch does it by default."""
    import torch

    numbers = torch.Generator().manual_seed(0)
    inputs_BCHW = torch.randn(4, 8, 32, 32, generator=numbers)
    weights = torch.randn(16, 8, 3, 3, generator=numbers)
    wanted = torch.nn.functional.conv2d(inputs_BCHW.double(), weights.double())
    got = torch.nn.functional.conv2d(inputs_BCHW.to(device), weights.to(device))
    return float((got.cpu().double() - wanted).norm() / wanted.norm())


def _pinned(device: str) -> bool:
    import torch

    numbers = torch.arange(2**20, dtype=torch.int32).pin_memory()
    return numbers.is_pinned() and bool((numbers.to(device, non_blocking=True).cpu() == numbers).all())


def compile_steps() -> Steps:
    """Seconds that torch.compile took for a small function, in an empty cache: really compiled."""
    yield "compile", _compile


def _compile() -> float:
    with tempfile.TemporaryDirectory(prefix="doctor-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        import torch

        def norm(x: torch.Tensor) -> torch.Tensor:
            return (x.sin() ** 2 + x.cos() ** 2).sum(dim=1)

        device = "cuda" if torch.cuda.is_available() else "cpu"
        x = torch.linspace(0, 1, 4096, device=device).reshape(64, 64)
        started = time.perf_counter()
        torch.testing.assert_close(torch.compile(norm)(x), norm(x))
        return time.perf_counter() - started


def collective_steps(backend: str, num: str) -> Steps:
    """The sum over `num` processes, with NCCL one for each GPU: each adds its rank + 1."""
    yield "collective", partial(_collective, backend, int(num))


def _collective(backend: str, num: int) -> float:
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        spawn(_rank, (backend, num, folder), nprocs=num)  # type: ignore[no-untyped-call]
        return float((Path(folder) / "sum").read_text(encoding="utf-8"))


def _rank(rank: int, backend: str, num: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    meeting = (Path(folder) / "meeting").as_uri()
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=num)
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    total = torch.full((2**20,), rank + 1.0, device=device)
    dist.all_reduce(total)
    if rank == 0:
        (Path(folder) / "sum").write_text(str(float(total.mean())), encoding="utf-8")
    dist.destroy_process_group()
