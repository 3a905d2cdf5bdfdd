"""The model: plain PyTorch.

Legend: B batch, F features.
"""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Module):
    """One layer.

    Args:
        num_features: F.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_features, 1)

    def forward(self, features_BF: Tensor) -> Tensor:
        """Float32, B."""
        answers_B: Tensor = self.layer(features_BF).squeeze(1)
        return answers_B
