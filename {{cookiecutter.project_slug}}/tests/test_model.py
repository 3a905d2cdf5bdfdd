"""Each model of conf/model: right shapes, every parameter learns, one batch can be memorised."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ml_project.config import CONF, compose
from ml_project.data import Batch
from ml_project.errors import UserError
from ml_project.model import CNN
from ml_project.task import ImageClassifier
from ml_project.train import build_data, build_task


@pytest.fixture(params=sorted(file.stem for file in CONF.glob("model/*.yaml")))
def task(request: pytest.FixtureRequest) -> ImageClassifier:
    torch.manual_seed(0)
    try:
        return build_task(compose("train", [f"model={request.param}"]))
    except UserError as error:
        pytest.skip(str(error))  # not a model for such data


@pytest.fixture
def batch() -> Batch:
    images, labels = next(iter(build_data(compose("train", ["data.batch_size=64"])).train_dataloader()))
    return images, labels


def test_logits_have_one_row_an_image_and_one_column_a_class(task: ImageClassifier, batch: Batch) -> None:
    assert task(batch[0]).shape == (64, compose("train").data.num_classes)
    assert task(batch[0]).dtype == torch.float32


def test_a_gradient_reaches_every_parameter(task: ImageClassifier, batch: Batch) -> None:
    torch.autograd.backward(F.cross_entropy(task(batch[0]), batch[1]))
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_batch_can_be_memorised(task: ImageClassifier, batch: Batch) -> None:
    assert task.make_optimizer
    optimizer = task.make_optimizer(task.parameters())
    for _ in range(150):
        loss = F.cross_entropy(task(batch[0]), batch[1])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    task.eval()
    assert (task(batch[0]).argmax(dim=1) == batch[1]).all()


def test_images_do_not_influence_each_other(task: ImageClassifier, batch: Batch) -> None:
    task.eval()
    torch.testing.assert_close(task(batch[0])[:1], task(batch[0][:1]))


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 4 x 4 pixels, got 2 x 8. Try model=mlp."):
        CNN([1, 2, 8], num_classes=10, channels=4, dropout=0.0)
