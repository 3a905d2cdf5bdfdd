"""Products of matrices: the types of numbers, which devices have them, and how exact a product must be.

PyTorch is imported where a product is made: the doctor also judges where PyTorch cannot be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tracking import parity

if TYPE_CHECKING:
    import torch

BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of x86 and Arm CPUs, as PyTorch names them


class Dtype(NamedTuple):
    """One type of numbers.

    Args:
        torch: PyTorch's name. TF32 is a way to multiply float32.
        since: the compute capability from which NVIDIA's GPUs have it (CUDA C++ Programming Guide, feature support).
        fast_since: from which they multiply matrices of it faster than those of fp32, on tensor cores.
        bits: of the significand, the leading one included, to which factors or result are rounded.
        sum_bits: to which sums are rounded.
    """

    torch: str
    since: tuple[int, int]
    fast_since: tuple[int, int]
    bits: int
    sum_bits: int = 24


DTYPES = {
    "fp32": Dtype("float32", (0, 0), (0, 0), 24),
    "tf32": Dtype("float32", (8, 0), (8, 0), 11),
    "bf16": Dtype("bfloat16", (8, 0), (8, 0), 8),
    "fp16": Dtype("float16", (5, 3), (7, 0), 11),
    # the result is in bf16; Hopper keeps 14 bits of a sum (DeepSeek-V3, arXiv:2412.19437, 3.5.2)
    "fp8": Dtype("float8_e4m3fn", (8, 9), (8, 9), 8, sum_bits=14),
}


def dtypes(device: torch.device, *, fast: bool) -> list[str]:
    """The types that a device has; with `fast`, only those for which it has units of its own."""
    import torch

    if device.type == "mps":
        return ["fp32", "fp16"] if fast else ["fp32", "fp16", "bf16"]
    if device.type == "cpu":
        # not fp16: without units for it, a product took 230 times as long as in fp32 (2048^3, AMD EPYC, torch 2.13)
        has = torch.cpu.get_capabilities() if fast else {}
        return ["fp32", "bf16"] if not fast or any(has.get(units) for units in BF16_UNITS) else ["fp32"]
    if torch.version.hip or device.type == "xpu":
        return ["fp32", "bf16", "fp16"]
    capability = torch.cuda.get_device_capability(device)
    return [name for name, dtype in DTYPES.items() if capability >= (dtype.fast_since if fast else dtype.since)]


def torch_dtype(dtype: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, DTYPES[dtype].torch)
    return found


def rounding(dtype: str, depth: int, device: str = "cpu") -> float:
    """The largest relative error that rounding explains, for sums of `depth` terms of this type."""
    bits, sum_bits = DTYPES[dtype].bits, DTYPES[dtype].sum_bits
    if device.startswith("mps"):  # it is not known to us in which type Macs sum
        sum_bits = bits
    return parity.rounding(2.0**-bits, depth, 2.0**-sum_bits)


class Product:
    """A product of random matrices, to be repeated with `multiply`."""

    def __init__(self, rows: int, depth: int, columns: int, dtype: str, device: torch.device) -> None:
        import torch

        number = torch_dtype(dtype)
        self.dtype = dtype
        self.left = torch.randn(rows, depth, device=device).to(number)
        self.right = torch.randn(depth, columns, device=device).to(number)
        if dtype == "fp8":
            from torch.nn.functional import ScalingType, scaled_mm

            one, scaling = torch.ones((), device=device), ScalingType.TensorWise
            self.right = self.right.t().contiguous().t()  # the layout that cuBLAS accepts in fp8
            self.multiply = partial(
                scaled_mm, self.left, self.right, one, scaling, one, scaling, output_dtype=torch.bfloat16
            )
        else:
            result = torch.empty(rows, columns, dtype=number, device=device)
            self.multiply = partial(torch.mm, self.left, self.right, out=result)

    def error(self) -> float:
        """Relative error of at most 256 x 256 results against float64 on the CPU, of the same rounded factors."""
        with as_asked(self.dtype):
            result = self.multiply()[:256, :256].float().cpu().double()
        wanted = self.left[:256].float().cpu().double() @ self.right[:, :256].float().cpu().double()
        return float((result - wanted).norm() / wanted.norm())


@contextmanager
def as_asked(dtype: str) -> Iterator[None]:
    """Switch TF32 off for fp32 (cuDNN uses it by default), and on for tf32."""
    import torch

    switches: Any = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = {"fp32": "ieee", "tf32": "tf32"}.get(dtype, precision)
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
