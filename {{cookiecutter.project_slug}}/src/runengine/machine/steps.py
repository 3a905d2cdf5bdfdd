"""Training steps of well-known networks, by which devices are compared.

Legend: N examples of a batch, H height and width, B sequences, L positions of one, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import block_flop
from .products import as_asked, torch_dtype
from .timing import Reading, check_finite, seconds


def resnet_step(
    size: tuple[int, int], dtype: str, device: torch.device, budget_s: float, compiled: bool = False
) -> Reading:
    """A training step of a ResNet-50 with 1,000 outputs, SGD with momentum."""
    n, h = size
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = resnet50().to(device).to(memory_format=layout)  # type: ignore[call-overload]
    inputs_NCHW = torch.randn(n, 3, h, h, device=device).to(memory_format=layout)
    targets_N = torch.randint(1000, (n,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return training(
        lambda: F.cross_entropy(model(inputs_NCHW), targets_N),
        optimizer, n, dtype, device, budget_s, [model] if compiled else [],
    )  # fmt: skip


def block_step(
    size: tuple[int, int, int], dtype: str, device: torch.device, budget_s: float, compiled: bool = False
) -> Reading:
    """A training step of one transformer block, heads of 64 features, AdamW; in sequences a second."""
    b, length, features = size
    model = transformer_block(features).to(device)
    sequences_BLE = torch.randn(b, length, features, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return training(
        lambda: model(sequences_BLE).float().square().mean(),
        optimizer, b, dtype, device, budget_s, [model] if compiled else [], block_flop(b, length, features),
    )  # fmt: skip


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

    def forward(self, inputs_NCHW: Tensor) -> Tensor:
        return F.relu(self.residual(inputs_NCHW) + self.shortcut(inputs_NCHW))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


def step_of(
    loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, dtype: str, device: torch.device
) -> Callable[[], Tensor]:
    """A training step. In 16 bits by autocast, the weights in float32, as Lightning's `-mixed` does."""
    mixed = torch_dtype(dtype) != torch.float32
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "fp16")

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch_dtype(dtype) if mixed else None, enabled=mixed):
            loss = loss_of()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def training(
    loss_of: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    num_examples: int,
    dtype: str,
    device: torch.device,
    budget_s: float,
    compiled: Sequence[nn.Module],
    flop: float | None = None,
) -> Reading:
    """Examples a second.

    Args:
        loss_of: a forward pass.
        num_examples: of the batch it takes.
        compiled: modules that are compiled first.
        flop: of a step; None: they are counted.
    """
    step = step_of(loss_of, optimizer, dtype, device)
    with as_asked(dtype):
        if flop is None:
            flop = _counted(step)
        for module in compiled:
            module.compile()
        timing = seconds(step, device, budget_s)
        check_finite(step())
    return timing.rate(num_examples, flop_each=flop / num_examples, steps_s=1 / timing.median_s)


def _counted(call: Callable[[], object]) -> float:
    """Floating-point operations of a call's products, convolutions and attention, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
