"""The measurements of the bench: each gives what a device reached. Limits, verdicts and files are bench.py's.

Legend: N images of a batch, C channels, H W pixels, B sequences, L positions of one, E features, D those of a head.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

WARM_UP_SHARE = 0.3  # of a measurement's time: a GPU's clock rises from idle, libraries choose their kernels
BLOCK_S = 0.01  # calls timed together: long beside the 0.5 us of a CUDA event, and the GPU's queue stays filled
LEAST_BLOCKS = 3  # a median
TIME_LIMIT_S = 60.0  # of an all-reduce: NCCL can wait for ever

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of CPUs, as PyTorch calls them: x86, Arm
# Relative error of a product, by the bits of the mantissa (23, 10, 7, 10, and bfloat16's for the result in fp8), with
# room for the order of sums. fp32 finds a TF32 that was not asked for: that is at 3e-4.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 1e-2, "fp16": 5e-3, "fp8": 2e-2}


@dataclass(frozen=True)
class Sizes:
    """What is computed. On a GPU large enough to fill it, on a CPU small enough for seconds."""

    product: int
    copy_bytes: int
    convolution: tuple[int, int, int]  # N, C, H = W
    attention: tuple[int, int, int, int]  # B, heads, L, D
    block: tuple[int, int, int]  # B, L, E
    resnet: tuple[int, int]  # N, H = W


SIZES = {
    # the copy: eight times the largest cache in chips.py, 126 MB of a B200
    "cuda": Sizes(8192, 1 << 30, (64, 256, 56), (8, 16, 2048, 64), (8, 1024, 1024), (64, 224)),
    "mps": Sizes(4096, 1 << 29, (16, 256, 56), (4, 16, 1024, 64), (4, 512, 512), (16, 224)),
    "cpu": Sizes(2048, 1 << 28, (4, 128, 56), (1, 8, 1024, 64), (2, 256, 512), (4, 64)),
}


class WrongResult(Exception):
    """The device computes something else."""


@dataclass(frozen=True)
class Reading:
    """What was reached, in the unit of its measurement.

    Args:
        value: by the median of the blocks.
        spread: half the distance of the quartiles, as a share of the median; None where there is one block.
        flop_each: floating-point operations in one of the unit (one TFLOP, one image); 0: not counted.
        steps_s: steps a second, of a training.
    """

    value: float
    spread: float | None
    flop_each: float = 0.0
    steps_s: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One row to be.

    Args:
        kind: by which limit and standard are chosen.
        what: with sizes; two rows of one name and dtype can be compared.
    """

    device: str
    kind: str
    what: str
    dtype: str
    unit: str
    measure: Callable[[], Reading]


@dataclass(frozen=True)
class Timing:
    median_s: float
    spread: float | None

    def rate(self, amount: float, **details: float) -> Reading:
        return Reading(amount / self.median_s, self.spread, **details)


def seconds(call: Callable[[], object], device: torch.device, budget_s: float) -> Timing:
    """How long a call takes: warm-up, then blocks of calls for `budget_s`, by the device's own clock on a GPU."""
    _clock(call, 1, device)  # compiles, and takes memory
    once_s = _clock(call, 1, device)
    warm_until = time.perf_counter() + WARM_UP_SHARE * budget_s
    while time.perf_counter() < warm_until:
        once_s = _clock(call, 1, device)
    num_calls = max(1, int(BLOCK_S / max(once_s, 1e-9)))
    least = LEAST_BLOCKS if once_s < budget_s else 1  # a device so slow shall not make it minutes
    blocks: list[float] = []
    until = time.perf_counter() + budget_s
    while len(blocks) < least or time.perf_counter() < until:
        blocks.append(_clock(call, num_calls, device) / num_calls)
    return summary(blocks)


def summary(times_s: list[float]) -> Timing:
    median_s = statistics.median(times_s)
    if len(times_s) == 1:
        return Timing(median_s, None)
    low, _, high = statistics.quantiles(times_s, n=4, method="inclusive")
    return Timing(median_s, (high - low) / 2 / median_s)


def product_flop(rows: int, inner: int, columns: int) -> float:
    """A product of matrices: a multiplication and an addition each (Golub and Van Loan, Matrix Computations, 1.1)."""
    return 2.0 * rows * inner * columns


def convolution_flop(images: int, channels: int, filters: int, kernel: int, pixels: int) -> float:
    """A convolution as the product of matrices that it is (Chetlur et al. 2014, cuDNN, arXiv:1410.0759)."""
    return product_flop(filters, channels * kernel * kernel, images * pixels)


def attention_flop(sequences: int, heads: int, length: int, features: int) -> float:
    """Forward, without a mask: two products, Q K^T and P V (Dao 2023, FlashAttention-2, arXiv:2307.08691, 4.1)."""
    return sequences * heads * 2 * product_flop(length, features, length)


def block_flop(sequences: int, length: int, features: int) -> float:
    """A training step of a block with 4 E hidden features: 72 B L E^2 + 12 B L^2 E.

    One third forward: 8 E^2 for Q, K, V and the output, 16 E^2 for the two layers, 4 L E for the attention, for each
    position; backward counts twice (Narayanan et al. 2021, arXiv:2104.04473, appendix, without recomputation).
    """
    return 3 * (sequences * length * 24.0 * features**2 + attention_flop(sequences, 1, length, features))


def bus_share(num_devices: int) -> float:
    """Of the bytes of an all-reduce, what crosses each link: 2 (n - 1) / n (nccl-tests, doc/PERFORMANCE.md)."""
    return 2 * (num_devices - 1) / num_devices


def devices() -> list[torch.device]:
    """Each GPU, else the GPU of a Mac, else the CPU."""
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]


def dtypes(device: torch.device) -> list[str]:
    """What this device computes in units of its own."""
    if device.type == "mps":
        return ["fp32", "fp16"]
    if device.type == "cpu":
        # not fp16: without units for it, a product took 230 times as long as in fp32 (2048^3, AMD EPYC, torch 2.13)
        has = torch.cpu.get_capabilities()
        return ["fp32", "bf16"] if any(has.get(units) for units in BF16_UNITS) else ["fp32"]
    if torch.version.hip:
        return ["fp32", "bf16", "fp16"]
    capability = torch.cuda.get_device_capability(device)
    since = {"fp32": (0, 0), "tf32": (8, 0), "bf16": (8, 0), "fp16": (7, 0), "fp8": (8, 9)}
    return [dtype for dtype, least in since.items() if capability >= least]


def plan(device: torch.device, cfg: DictConfig, budget_s: float) -> list[Measurement]:
    """The rows of one device."""
    size = SIZES[device.type]
    copy_bytes = max(size.copy_bytes, 4 * last_level_cache_bytes()) if device.type == "cpu" else size.copy_bytes
    all_dtypes = dtypes(device)
    wide = [dtype for dtype in all_dtypes if dtype != "fp8"]
    training = [dtype for dtype in wide if dtype != "fp16" or "bf16" not in wide]
    n, c, h = size.convolution
    b, heads, length, d = size.attention
    rows: list[tuple[str, str, str, str, Callable[..., Reading]]] = [
        *(
            ("product", f"matrix product {size.product}^3", dtype, "tflop_s", partial(product, size.product, dtype))
            for dtype in all_dtypes
        ),
        ("copy", f"copy in memory, {copy_bytes >> 20} MiB", "-", "gb_s", partial(copy, copy_bytes)),
        ("launch", "call of a small operation", "-", "us", launch),
    ]
    if device.type == "cuda":
        for pinned, name in ((False, "pageable"), (True, "pinned")):
            for to_device, way in ((True, "host to device"), (False, "device to host")):
                transfer_of = partial(transfer, size.copy_bytes // 4, pinned, to_device)
                rows.append((name, f"{way}, {name}", "-", "gb_s", transfer_of))
    for dtype in wide:
        rows.append(("convolution", f"convolution 3x3, {n}x{c}x{h}x{h}", dtype, "tflop_s",
                     partial(convolution, size.convolution, dtype)))  # fmt: skip
    for dtype in wide:
        rows.append(("attention", f"attention {b}x{heads}x{length}x{d}", dtype, "tflop_s",
                     partial(attention, size.attention, dtype)))  # fmt: skip
    steps = [
        ("own", f"this project's step, batch {cfg.data.batch_size}", partial(own_step, cfg)),
        ("resnet", f"ResNet-50 step, {size.resnet[0]}x3x{size.resnet[1]}x{size.resnet[1]}",
         partial(resnet_step, size.resnet)),
        ("block", f"transformer block, {'x'.join(map(str, size.block))}", partial(block_step, size.block)),
    ]  # fmt: skip
    for kind, what, step in steps:
        for dtype in training:
            rows.append((kind, what, dtype, "images_s" if kind != "block" else "sequences_s", partial(step, dtype)))
        if device.type == "cuda":  # of one dtype: compiling takes long
            dtype = training[-1]
            unit = "images_s" if kind != "block" else "sequences_s"
            rows.append((kind, f"{what}, compiled", dtype, unit, partial(step, dtype, compiled=True)))
    name = str(device)
    return [
        Measurement(name, kind, what, dtype, unit, partial(measure, device, budget_s))
        for kind, what, dtype, unit, measure in rows
    ]


def product(n: int, dtype: str, device: torch.device, budget_s: float) -> Reading:
    """n x n by n x n, in TFLOP/s; checked against float64."""
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    if dtype == "fp8":
        from torch.nn.functional import ScalingType, scaled_mm

        one, whole = torch.ones((), device=device), ScalingType.TensorWise
        b = b.t().contiguous().t()  # what cuBLAS takes in fp8
        call = partial(scaled_mm, a, b, one, whole, one, whole, output_dtype=torch.bfloat16)
    else:
        call = partial(torch.mm, a, b, out=torch.empty_like(a))
    with _as_asked(dtype), torch.inference_mode():
        timing = seconds(call, device, budget_s)
        result = call()[:8, :8].float().cpu().double()
    wanted = a[:8].float().cpu().double() @ b[:, :8].float().cpu().double()
    error = float((result - wanted).norm() / wanted.norm())
    if not error <= TOLERANCE[dtype]:
        raise WrongResult(
            f"the product is wrong: relative error {error:.0e}, by rounding {TOLERANCE[dtype]:.0e} at most"
        )
    return timing.rate(product_flop(n, n, n) / 1e12, flop_each=1e12)


def copy(num_bytes: int, device: torch.device, budget_s: float) -> Reading:
    """Within the device's memory, in GB/s: bytes read and bytes written both count, as in STREAM (McCalpin 1995)."""
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    timing = seconds(partial(target.copy_, source), device, budget_s)
    if not torch.equal(source, target):
        raise WrongResult("a copy in memory differs from its source")
    return timing.rate(2 * num_bytes / 1e9)


def transfer(num_bytes: int, pinned: bool, to_device: bool, device: torch.device, budget_s: float) -> Reading:
    """Between the computer's memory and the device's, in GB/s. Pinned memory goes by itself, pageable by the CPU."""
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
    """3 x 3, as many filters as channels, in TFLOP/s; in 16 bits channels last, as tensor cores want it."""
    n, c, h = size
    layout = torch.channels_last if DTYPES[dtype] != torch.float32 else torch.contiguous_format
    images_NCHW = torch.randn(n, c, h, h, device=device).to(DTYPES[dtype], memory_format=layout)
    filters = torch.randn(c, c, 3, 3, device=device).to(DTYPES[dtype], memory_format=layout) / (3 * c**0.5)
    call = partial(F.conv2d, images_NCHW, filters, padding=1)
    with _as_asked(dtype), torch.inference_mode():
        timing = seconds(call, device, budget_s)
        _finite(call())
    return timing.rate(convolution_flop(n, c, c, 3, h * h) / 1e12, flop_each=1e12)


def attention(size: tuple[int, int, int, int], dtype: str, device: torch.device, budget_s: float) -> Reading:
    """scaled_dot_product_attention forward, in TFLOP/s; which kernel computes it PyTorch chooses."""
    b, heads, length, d = size
    queries, keys, values = (torch.randn(b, heads, length, d, device=device).to(DTYPES[dtype]) for _ in range(3))
    call = partial(F.scaled_dot_product_attention, queries, keys, values)
    with _as_asked(dtype), torch.inference_mode():
        timing = seconds(call, device, budget_s)
        _finite(call())
    return timing.rate(attention_flop(b, heads, length, d) / 1e12, flop_each=1e12)


def own_step(cfg: DictConfig, dtype: str, device: torch.device, budget_s: float, compiled: bool = False) -> Reading:
    """A training step of the configured model, loss and optimizer on random images, without Lightning and data."""
    from .train import build_task

    task = build_task(cfg).to(device).train()
    images_NCHW = torch.randn(cfg.data.batch_size, *cfg.data.image_shape, device=device)
    labels_N = torch.randint(cfg.data.num_classes, (cfg.data.batch_size,), device=device)
    optimizer = cast("Callable[..., torch.optim.Optimizer]", task.make_optimizer)(task.model.parameters())
    return _training(
        task.model, lambda logits: task.loss(logits, labels_N), images_NCHW, optimizer, dtype, budget_s, compiled
    )


def resnet_step(
    size: tuple[int, int], dtype: str, device: torch.device, budget_s: float, compiled: bool = False
) -> Reading:
    """A training step of a ResNet-50 with 1,000 classes, SGD with momentum."""
    n, h = size
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = resnet50().to(device).to(memory_format=layout)  # type: ignore[call-overload]
    images_NCHW = torch.randn(n, 3, h, h, device=device).to(memory_format=layout)
    labels_N = torch.randint(1000, (n,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return _training(
        model, lambda logits: F.cross_entropy(logits, labels_N), images_NCHW, optimizer, dtype, budget_s, compiled
    )


def block_step(
    size: tuple[int, int, int], dtype: str, device: torch.device, budget_s: float, compiled: bool = False
) -> Reading:
    """A training step of one transformer block, heads of 64 features, AdamW; in sequences a second."""
    b, length, features = size
    model = transformer_block(features).to(device)
    sequences_BLE = torch.randn(b, length, features, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    flop = block_flop(b, length, features)
    return _training(
        model, lambda out: out.float().square().mean(), sequences_BLE, optimizer, dtype, budget_s, compiled, flop
    )


def resnet50() -> nn.Module:
    """ResNet-50 as in PyTorch's torchvision: the stride in the 3 x 3 convolution; 25,557,032 parameters."""
    layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for num_blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for number in range(num_blocks):
            layers.append(_Bottleneck(channels, width, stride if number == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def transformer_block(features: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        features, features // 64, 4 * features, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


class _Bottleneck(nn.Module):
    """He et al. 2015, arXiv:1512.03385, figure 5, right."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(channels, width, 1, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, 4 * width, 1, 1),
        )
        same = stride == 1 and channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, 4 * width, 1, stride))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return F.relu(self.residual(images_NCHW) + self.shortcut(images_NCHW))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


def _training(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    inputs: Tensor,
    optimizer: torch.optim.Optimizer,
    dtype: str,
    budget_s: float,
    compiled: bool,
    flop: float | None = None,
) -> Reading:
    """Items a second of `inputs`. In 16 bits by autocast, the weights in float32, as Lightning's `-mixed` does."""
    device = inputs.device
    mixed = DTYPES[dtype] != torch.float32
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "fp16")

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, DTYPES[dtype] if mixed else None, enabled=mixed):
            loss = loss_of(model(inputs))
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    with _as_asked(dtype):
        if flop is None:
            flop = _counted(step)
        if compiled:
            model.compile()
        timing = seconds(step, device, budget_s)
        _finite(step())
    return timing.rate(len(inputs), flop_each=flop / len(inputs), steps_s=1 / timing.median_s)


def _counted(call: Callable[[], object]) -> float:
    """Floating-point operations of a call's products, convolutions and attention, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def loading(cfg: DictConfig, budget_s: float) -> Reading:
    """The training images as the run's own loader gives them, without a model; in images a second.

    Raises:
        UserError: they are not prepared.
    """
    from .train import build_data

    loader = build_data(cfg).train_dataloader()
    images_a_batch = len(loader.dataset) / len(loader)  # type: ignore[arg-type]
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    timing = seconds(partial(next, batches), torch.device("cpu"), budget_s)
    return timing.rate(images_a_batch)


def all_reduce(num_processes: int, kind: str, num_bytes: int, budget_s: float) -> Reading:
    """The sum over processes, one for each GPU (NCCL) or on CPUs (gloo), in GB/s of each link (see `bus_share`).

    Raises:
        TimeoutError: the processes hang, and were ended.
        RuntimeError: one of them failed.
    """
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_processes, kind, num_bytes, budget_s, folder)
        started: Any = mp.spawn(_reduce, arguments, num_processes, join=False)  # type: ignore[attr-defined, no-untyped-call]
        until = time.monotonic() + TIME_LIMIT_S
        try:
            while not started.join(timeout=1.0):  # raises what a child has raised
                if time.monotonic() > until:
                    raise TimeoutError(f"no answer in {TIME_LIMIT_S:.0f} s: try NCCL_DEBUG=INFO, NCCL_P2P_DISABLE=1")
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
        return Reading(**json.loads((Path(folder) / "reading.json").read_text(encoding="utf-8")))


def _reduce(rank: int, world: int, kind: str, num_bytes: int, budget_s: float, folder: str) -> None:
    import torch.distributed as dist

    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=TIME_LIMIT_S),
        device_id=device if kind == "cuda" else None,
    )
    source = torch.full((num_bytes // 4,), rank + 1.0, device=device)
    target = source.clone()

    def once_s() -> float:
        target.copy_(source)
        _wait_for(device)
        dist.barrier()
        return _clock(partial(dist.all_reduce, target), 1, device)

    first_s = statistics.median(once_s() for _ in range(LEAST_BLOCKS))  # warm-up
    count = torch.tensor([int(budget_s / first_s)], device=device)
    dist.broadcast(count, 0)  # all ranks must call alike
    timing = summary([once_s() for _ in range(min(max(int(count), LEAST_BLOCKS), 200))])
    if not bool((target == world * (world + 1) / 2).all()):
        raise WrongResult("the all-reduce gives a wrong sum")
    if rank == 0:
        reading = timing.rate(num_bytes * bus_share(world) / 1e9)
        text = json.dumps({"value": reading.value, "spread": reading.spread})
        (Path(folder) / "reading.json").write_text(text, encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def last_level_cache_bytes() -> int:
    """Of all sockets together, as Linux tells; 0 elsewhere."""
    caches = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        try:
            size, shared = (index / name for name in ("size", "shared_cpu_list"))
            caches[shared.read_text(encoding="ascii")] = int(size.read_text(encoding="ascii").strip().rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return sum(caches.values())


def release(device: torch.device) -> None:
    """Give back what the last measurement held, or the next finds no room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes this GPU the one of new streams and events."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _float32_as(precision: str) -> Iterator[None]:
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def _as_asked(dtype: str) -> AbstractContextManager[None]:
    """fp32 without TF32, which cuDNN takes by itself, and tf32 with it."""
    precision = {"fp32": "ieee", "tf32": "tf32"}.get(dtype)
    return _float32_as(precision) if precision else nullcontext()


def _clock(call: Callable[[], object], num_calls: int, device: torch.device) -> float:
    """Seconds of so many calls."""
    if device.type == "cuda":
        start, end = (cast("Any", torch.cuda.Event)(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(num_calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    for _ in range(num_calls):
        call()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _finite(result: Tensor) -> None:
    if not bool(torch.isfinite(result).all()):
        raise WrongResult("the result holds NaN or infinity")
