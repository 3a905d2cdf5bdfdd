"""The models of the template: what they refuse. What every model must do is in the project's own tests."""

from __future__ import annotations

import re

import pytest
from ml_project.model import CNN


@pytest.mark.parametrize("shape", [[1, 2, 8], [4]])
def test_too_small_images_and_tables_are_refused(shape: list[int]) -> None:
    sentence = f"CNN needs images of at least 4 x 4 pixels, got {shape}. Try model=mlp."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        CNN(shape, num_classes=10, channels=4, dropout=0.0)
