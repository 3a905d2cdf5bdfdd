"""The models of the template: what they refuse. What every model must do is in the project's own tests."""

from __future__ import annotations

import pytest
from ml_project.model import CNN


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 4 x 4 pixels, got \[1, 2, 8\]. Try model=mlp."):
        CNN([1, 2, 8], num_classes=10, channels=4, dropout=0.0)
