"""The models: plain PyTorch, images in, logits out.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class CNN(nn.Module):
    """Three convolutions for small images; the pooled 2 x 2 map keeps roughly where a stroke is.

    Args:
        input_shape: C, H, W; H and W at least 4.
        num_classes: K.
        channels: of the first convolution; the others have twice as many.
        dropout: share of the last features that is dropped in training.

    Raises:
        ValueError: the images are too small, or a setting is out of its range.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        _check(dropout, channels=channels)
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise ValueError(f"CNN needs images of at least 4 x 4 pixels, got {list(input_shape)}. Try model=mlp.")
        in_channels = input_shape[0]
        self.features = nn.Sequential(
            *_convolution(in_channels, channels),
            *_convolution(channels, 2 * channels),
            nn.MaxPool2d(2),
            *_convolution(2 * channels, 2 * channels),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classify = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * 2 * 2 * channels, num_classes),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, float32, B K."""
        logits_BK: Tensor = self.classify(self.features(images_BCHW))
        return logits_BK


class MLP(nn.Module):
    """Two hidden layers that know nothing of neighbouring pixels: the baseline a CNN must beat.

    Args:
        input_shape: C, H, W; or F, the columns of a table.
        num_classes: K.
        hidden: width of each hidden layer.
        dropout: share of each hidden layer that is dropped in training.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        _check(dropout, hidden=hidden)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, float32, B K."""
        logits_BK: Tensor = self.layers(images_BCHW)
        return logits_BK


def _check(dropout: float, **widths: int) -> None:
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"{name} must be >= 1, got {width}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be >= 0 and < 1, got {dropout}.")


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),  # the norm has a bias
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
