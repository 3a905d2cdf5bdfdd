"""The models: plain PyTorch, features in, one scaled number a row out.

Legend: B batch, F features.
"""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Module):
    """A weighted sum of the features: the baseline that every other model must beat.

    Args:
        num_features: F.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.sum = nn.Linear(num_features, 1)

    def forward(self, features_BF: Tensor) -> Tensor:
        """Float32, B."""
        answers_B: Tensor = self.sum(features_BF).squeeze(1)
        return answers_B


class MLP(nn.Module):
    """Two hidden layers.

    Args:
        num_features: F.
        hidden: width of each hidden layer.
        dropout: share of each hidden layer that is dropped in training.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(self, num_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be >= 1, got {hidden}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {dropout}.")
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    def forward(self, features_BF: Tensor) -> Tensor:
        """Float32, B."""
        answers_B: Tensor = self.layers(features_BF).squeeze(1)
        return answers_B
