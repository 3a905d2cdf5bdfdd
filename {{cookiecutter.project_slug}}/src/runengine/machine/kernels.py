"""Single operations: each function returns what a device reached. Limits and verdicts are in verdicts.py.

Legend: N examples of a batch, C channels, H W height and width, B sequences, L positions of one, E features, D those
of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from .products import Product, as_asked, rounding, torch_dtype
from .timing import Reading, WrongResult, check_finite, seconds


def product_flop(rows: int, inner: int, columns: int) -> float:
    """A product of matrices: a multiplication and an addition each (Golub and Van Loan, Matrix Computations, 1.1)."""
    return 2.0 * rows * inner * columns


def convolution_flop(examples: int, channels: int, filters: int, kernel: int, positions: int) -> float:
    """A convolution as the product of matrices that it is (Chetlur et al. 2014, cuDNN, arXiv:1410.0759)."""
    return product_flop(filters, channels * kernel * kernel, examples * positions)


def attention_flop(sequences: int, heads: int, length: int, features: int) -> float:
    """Forward, without a mask: two products, Q K^T and P V (Dao 2023, FlashAttention-2, arXiv:2307.08691, 4.1)."""
    return sequences * heads * 2 * product_flop(length, features, length)


def block_flop(sequences: int, length: int, features: int) -> float:
    """A training step of a block with 4 E hidden features: 72 B L E^2 + 12 B L^2 E.

    One third forward: 8 E^2 for Q, K, V and the output, 16 E^2 for the two layers, 4 L E for the attention, for each
    position; backward counts twice (Narayanan et al. 2021, arXiv:2104.04473, appendix, without recomputation).
    """
    return 3 * (sequences * length * 24.0 * features**2 + attention_flop(sequences, 1, length, features))


def product(n: int, dtype: str, device: torch.device, budget_s: float) -> Reading:
    """n x n by n x n, in TFLOP/s; checked against float64."""
    matrices = Product(n, n, n, dtype, device)
    reading = _tflop_s(matrices.multiply, product_flop(n, n, n), dtype, device, budget_s)
    error, most = matrices.error(), rounding(dtype, n, device.type)
    if not error <= most:
        raise WrongResult(f"the product is wrong: relative error {error:.0e}, rounding explains {most:.0e} at most")
    return reading


def copy(num_bytes: int, device: torch.device, budget_s: float) -> Reading:
    """Within the device's memory, in GB/s: bytes read and bytes written both count, as in STREAM (McCalpin 1995)."""
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    timing = seconds(partial(target.copy_, source), device, budget_s)
    if not torch.equal(source, target):
        raise WrongResult("a copy in memory differs from its source")
    return timing.rate(2 * num_bytes / 1e9)


def transfer(num_bytes: int, pinned: bool, to_device: bool, device: torch.device, budget_s: float) -> Reading:
    """Between the computer's memory and the device's, in GB/s. The CPU copies pageable memory, not pinned memory."""
    here = torch.randn(num_bytes // 4).pin_memory() if pinned else torch.randn(num_bytes // 4)
    there = here.to(device)
    target, source = (there, here) if to_device else (here, there)
    timing = seconds(partial(target.copy_, source, non_blocking=pinned), device, budget_s)
    if not torch.equal(here, there.cpu()):
        raise WrongResult("a transfer differs from its source")
    return timing.rate(num_bytes / 1e9)


def launch(device: torch.device, budget_s: float) -> Reading:
    """From one call of a one-element operation to the next, in microseconds: Python, PyTorch, and a GPU's launch."""
    one = torch.ones(1, device=device)
    with torch.inference_mode():
        timing = seconds(partial(one.mul_, 1.0), device, budget_s)
    return Reading(timing.median_s * 1e6, timing.spread)


def convolution(size: tuple[int, int, int], dtype: str, device: torch.device, budget_s: float) -> Reading:
    """3 x 3, as many filters as channels, in TFLOP/s; in 16 bits channels last, as tensor cores need it."""
    n, c, h = size
    layout = torch.channels_last if torch_dtype(dtype) != torch.float32 else torch.contiguous_format
    inputs_NCHW = torch.randn(n, c, h, h, device=device).to(torch_dtype(dtype), memory_format=layout)
    filters = torch.randn(c, c, 3, 3, device=device).to(torch_dtype(dtype), memory_format=layout) / (3 * c**0.5)
    call = partial(F.conv2d, inputs_NCHW, filters, padding=1)
    return _tflop_s(call, convolution_flop(n, c, c, 3, h * h), dtype, device, budget_s)


def attention(size: tuple[int, int, int, int], dtype: str, device: torch.device, budget_s: float) -> Reading:
    """scaled_dot_product_attention forward, in TFLOP/s; PyTorch chooses the kernel."""
    b, heads, length, d = size
    queries, keys, values = (torch.randn(b, heads, length, d, device=device).to(torch_dtype(dtype)) for _ in range(3))
    call = partial(F.scaled_dot_product_attention, queries, keys, values)
    return _tflop_s(call, attention_flop(b, heads, length, d), dtype, device, budget_s)


def _tflop_s(
    call: Callable[[], torch.Tensor], flop: float, dtype: str, device: torch.device, budget_s: float
) -> Reading:
    with as_asked(dtype), torch.inference_mode():
        timing = seconds(call, device, budget_s)
        check_finite(call())
    return timing.rate(flop / 1e12, flop_each=1e12)
