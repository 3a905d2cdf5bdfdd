"""Each model of conf/model: right shapes, and every parameter learns."""

from __future__ import annotations

import pytest
import torch

import runengine

from ml_project.data import Data
from ml_project.task import Task
from ml_project.train import build_task


@pytest.fixture(params=runengine.choices("model"))
def task(request: pytest.FixtureRequest, short: list[str]) -> Task:
    torch.manual_seed(0)
    return build_task(runengine.compose("train", [*short, f"model={request.param}"]))


def test_there_is_one_answer_a_row_and_a_gradient_for_every_parameter(task: Task, data: Data) -> None:
    features_BF, targets_B = next(iter(data.train_dataloader()))
    answers_B = task(features_BF)
    assert answers_B.shape == targets_B.shape
    torch.autograd.backward(task.loss(answers_B, targets_B))
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
