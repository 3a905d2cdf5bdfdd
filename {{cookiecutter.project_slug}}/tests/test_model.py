"""Each model of conf/model: right shapes, every parameter learns, one batch can be memorised."""

from __future__ import annotations

import pytest
import torch
from hydra.errors import InstantiationException

import runengine

from ml_project.data import Batch, ImageData
from ml_project.task import ImageClassifier
from ml_project.train import build_task


@pytest.fixture(params=runengine.choices("model"))
def task(request: pytest.FixtureRequest, short: list[str]) -> ImageClassifier:
    torch.manual_seed(0)
    try:
        return build_task(runengine.compose("train", [*short, f"model={request.param}"]))
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        pytest.skip(str(error.__cause__))  # the model refuses such data


@pytest.fixture
def batch(data: ImageData) -> Batch:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def test_logits_have_one_row_an_image_and_one_column_a_class(
    task: ImageClassifier, batch: Batch, data: ImageData
) -> None:
    logits_BK = task(batch[0])
    assert logits_BK.shape == (len(batch[0]), data.num_classes)
    assert logits_BK.dtype == torch.float32


def test_a_gradient_reaches_every_parameter(task: ImageClassifier, batch: Batch) -> None:
    torch.autograd.backward(task.loss(task(batch[0]), batch[1]))
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_batch_can_be_memorised(task: ImageClassifier, batch: Batch) -> None:
    """A model that cannot do this will learn nothing, or its optimizer is set wrongly."""
    assert task.make_optimizer
    optimizer = task.make_optimizer(task.parameters())
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(task(batch[0]), batch[1]))
        optimizer.step()
    task.eval()
    assert (task(batch[0]).argmax(dim=1) == batch[1]).all()


def test_images_do_not_influence_each_other(task: ImageClassifier, batch: Batch) -> None:
    task.eval()
    torch.testing.assert_close(task(batch[0])[:1], task(batch[0][:1]))
