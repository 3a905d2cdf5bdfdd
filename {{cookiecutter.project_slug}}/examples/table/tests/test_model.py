"""Each model of conf/model: right shapes, every parameter learns, one batch can be memorised."""

from __future__ import annotations

import pytest
import torch

import runengine

from ml_project.data import Batch, TableData
from ml_project.task import Regressor
from ml_project.train import build_task


@pytest.fixture(params=runengine.choices("model"))
def task(request: pytest.FixtureRequest, short: list[str]) -> Regressor:
    torch.manual_seed(0)
    return build_task(runengine.compose("train", [*short, f"model={request.param}"]))


@pytest.fixture
def batch(data: TableData) -> Batch:
    features_BF, targets_B = next(iter(data.train_dataloader()))
    return features_BF, targets_B


def test_there_is_one_answer_a_row(task: Regressor, batch: Batch) -> None:
    answers_B = task(batch[0])
    assert answers_B.shape == (len(batch[0]),)
    assert answers_B.dtype == torch.float32


def test_a_gradient_reaches_every_parameter(task: Regressor, batch: Batch) -> None:
    torch.autograd.backward(task.loss(task(batch[0]), batch[1]))
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_from_one_batch(task: Regressor, batch: Batch) -> None:
    """A model that cannot do this will learn nothing, or its optimizer is set wrongly."""
    assert task.make_optimizer
    optimizer = task.make_optimizer(task.parameters())
    first = task.loss(task(batch[0]), batch[1]).detach()
    for _ in range(300):
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(task(batch[0]), batch[1]))
        optimizer.step()
    task.eval()
    assert task.loss(task(batch[0]), batch[1]) < 0.6 * first


def test_rows_do_not_influence_each_other(task: Regressor, batch: Batch) -> None:
    task.eval()
    torch.testing.assert_close(task(batch[0])[:1], task(batch[0][:1]))
