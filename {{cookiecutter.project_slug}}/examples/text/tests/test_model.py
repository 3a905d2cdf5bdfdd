"""Each model of conf/model: right shapes, every parameter learns, the future is not seen."""

from __future__ import annotations

import pytest
import torch

import runengine

from ml_project.data import Batch, TextData
from ml_project.task import LanguageModel
from ml_project.train import build_task


@pytest.fixture(params=runengine.choices("model"))
def task(request: pytest.FixtureRequest, short: list[str]) -> LanguageModel:
    torch.manual_seed(0)
    return build_task(runengine.compose("train", [*short, f"model={request.param}"]))


@pytest.fixture
def batch(data: TextData) -> Batch:
    tokens_BT, targets_BT = next(iter(data.train_dataloader()))
    return tokens_BT, targets_BT


def test_each_place_has_a_score_for_each_token(task: LanguageModel, batch: Batch, data: TextData) -> None:
    logits_BTK = task(batch[0])
    assert logits_BTK.shape == (*batch[0].shape, data.num_tokens)
    assert logits_BTK.dtype == torch.float32


def test_a_gradient_reaches_every_parameter(task: LanguageModel, batch: Batch) -> None:
    torch.autograd.backward(task.mean_loss(batch)[0])
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_from_one_batch(task: LanguageModel, batch: Batch) -> None:
    """A model that cannot do this will learn nothing, or its optimizer is set wrongly."""
    assert task.make_optimizer
    optimizer = task.make_optimizer(task.parameters())
    first = task.mean_loss(batch)[0].detach()
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(task.mean_loss(batch)[0])
        optimizer.step()
    task.eval()
    assert task.mean_loss(batch)[0] < 0.6 * first


def test_no_place_sees_what_comes_after_it(task: LanguageModel, batch: Batch) -> None:
    task.eval()
    tokens_BT = batch[0]
    other_BT = tokens_BT.clone()
    middle = tokens_BT.shape[1] // 2
    other_BT[:, middle:] = tokens_BT.flip(0)[:, middle:]
    torch.testing.assert_close(task(other_BT)[:, :middle], task(tokens_BT)[:, :middle])
    assert not torch.allclose(task(other_BT)[:, middle:], task(tokens_BT)[:, middle:])


def test_windows_do_not_influence_each_other(task: LanguageModel, batch: Batch) -> None:
    task.eval()
    torch.testing.assert_close(task(batch[0])[:1], task(batch[0][:1]))
