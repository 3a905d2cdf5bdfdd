"""Read what PyTorch finds, and whether it computes correctly on each device; in a child process, which may crash."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, Any

from ..settings.console import first_line, size
from .products import Product, dtypes
from .readings import Steps

if TYPE_CHECKING:
    import torch

TERMS = 64  # in each sum of a product
TERMS_OF_CONVOLUTION = 8 * 3 * 3
LARGE_BYTES = 1 << 30  # of pinned memory: what several loaders of large batches hold together


def torch_steps(quick: str = "") -> Steps:
    """Build, GPUs, then `<device> <type>` for each product and convolution."""
    yield "build", _torch_build
    if "torch" not in sys.modules:
        return
    yield "gpus", _torch_gpus
    for device in _devices():
        kinds = dtypes(device, fast=False)
        for kind in kinds[:1] if quick else kinds:
            yield f"{device} {kind}", partial(_product, kind, device)
        if not quick:
            yield f"{device} convolution", partial(_convolution, device)
        if not quick and device.type == "cuda":
            yield f"{device} pinned", partial(_pinned, device)
            yield f"{device} pinned, {size(LARGE_BYTES)}", _much_pinned


def _torch_build() -> dict[str, Any]:
    import torch

    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "xpu": getattr(torch.version, "xpu", None),
        "num_threads": torch.get_num_threads() if hasattr(torch, "get_num_threads") else None,
    }


def _torch_gpus() -> dict[str, Any]:
    import torch

    if getattr(torch.version, "xpu", None):
        gpus = [[torch.xpu.get_device_name(index), ""] for index in range(torch.xpu.device_count())]
        return {"gpus": gpus, "archs": [], "no_peer": [], "reason": ""}
    count, reason = 0, ""
    has_gpus = torch.version.cuda or getattr(torch.version, "hip", None)
    if has_gpus and torch.cuda.is_available():
        count = torch.cuda.device_count()
    elif has_gpus:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as error:  # its message is the reading
            reason = first_line(error)
    return {
        "gpus": [[torch.cuda.get_device_name(index), _architecture(index)] for index in range(count)],
        "archs": torch.cuda.get_arch_list() if count else [],
        "no_peer": [pair for pair in permutations(range(count), 2) if not torch.cuda.can_device_access_peer(*pair)],
        "reason": reason,
    }


def _architecture(index: int) -> str:
    """The compute capability of a GPU; of AMD's what their compiler calls it, such as gfx1100."""
    import torch

    if torch.version.cuda:
        return "{}.{}".format(*torch.cuda.get_device_capability(index))
    name: str = torch.cuda.get_device_properties(index).gcnArchName  # gfx90a:sramecc+:xnack-
    return name.partition(":")[0]


def _devices() -> list[torch.device]:
    import torch

    names = ["cpu"]
    if torch.cuda.is_available():  # AMD's GPUs, too
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    elif getattr(torch.version, "xpu", None) and torch.xpu.is_available():
        names += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    elif torch.backends.mps.is_available():
        names.append("mps")
    return [torch.device(name) for name in names]


def _product(dtype: str, device: torch.device) -> float:
    return Product(256, TERMS, 256, dtype, device).error()


def _convolution(device: torch.device) -> float:
    """Relative error against float64 on the CPU; on NVIDIA's GPUs cuDNN's, in TF32 as PyTorch does it by default."""
    import torch

    numbers = torch.Generator().manual_seed(0)
    inputs_BCHW = torch.randn(4, 8, 32, 32, generator=numbers)
    weights = torch.randn(16, 8, 3, 3, generator=numbers)
    wanted = torch.nn.functional.conv2d(inputs_BCHW.double(), weights.double())
    got = torch.nn.functional.conv2d(inputs_BCHW.to(device), weights.to(device))
    return float((got.cpu().double() - wanted).norm() / wanted.norm())


def _pinned(device: torch.device) -> bool:
    import torch

    numbers = torch.arange(2**20, dtype=torch.int32).pin_memory()
    return numbers.is_pinned() and bool((numbers.to(device, non_blocking=True).cpu() == numbers).all())


def _much_pinned() -> bool:
    """Limits on locked memory, and WSL, refuse large amounts only. Where it would fill the memory, it is not tried."""
    import psutil
    import torch

    if psutil.virtual_memory().available < 4 * LARGE_BYTES:
        return True
    return torch.empty(LARGE_BYTES, dtype=torch.uint8, pin_memory=True).is_pinned()


def compiled() -> float:
    """Seconds that torch.compile took for a small function, in an empty cache: really compiled."""
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


def summed(kind: str, num: str) -> float:
    """The sum over `num` processes, with `cuda` one for each GPU; in GB/s."""
    from .all_reduce import all_reduce

    return all_reduce(int(num), kind, 1 << 22, budget_s=0).value
