"""What is taken of a GPU, from the compute capability it tells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import weights
from pytorch_lightning.strategies import ModelParallelStrategy
from runengine import Run, UserError
from runengine.training import device, options
from torchmetrics import MeanMetric

ADAM = partial(torch.optim.AdamW, lr=0.1)


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [(None, "32-true"), ((6, 1), "32-true"), ((7, 0), "16-mixed"), ((7, 5), "16-mixed"), ((8, 0), "bf16-mixed"),
     ((9, 0), "bf16-mixed"), ((12, 0), "bf16-mixed")],
)  # fmt: skip
def test_the_precision_follows_from_the_compute_capability(capability: device.Version | None, chosen: str) -> None:
    assert device.precision("GPU", capability).value == chosen


def test_tf32_needs_ampere() -> None:
    assert [device.tensor_float(version) is not None for version in (None, (7, 5), (8, 0))] == [False, False, True]


def test_channels_last_is_for_what_convolves() -> None:
    convolution, linear = torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(1, 1)
    assert device.layout(convolution, (8, 0))
    assert not device.layout(linear, (8, 0))
    assert not device.layout(convolution, None)


def test_an_optimizer_is_fused_where_it_can_be() -> None:
    assert device.fused("cuda", (8, 0), "bf16-mixed", clips=True)
    assert not device.fused("cuda", (7, 5), "16-mixed", clips=True)
    assert device.fused("cuda", (7, 5), "16-mixed", clips=False)
    assert device.fused("cpu", None, "32-true", clips=True)
    assert not device.fused("mps", None, "32-true", clips=False)


@pytest.mark.parametrize(("make", "can"), [
    (ADAM, True),
    (partial(torch.optim.SGD, lr=0.1), True),
    (partial(ADAM, foreach=True), False),
    (partial(ADAM, foreach=False), False),
    (partial(ADAM, fused=False), False),
    (torch.optim.LBFGS, False),
    (partial(torch.optim.Adadelta, lr=0.1), False),
])  # fmt: skip
def test_an_optimizer_that_cannot_or_whose_owner_has_chosen_is_left_alone(
    make: Callable[..., torch.optim.Optimizer], can: bool
) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make([parameter])
    before = [{name: value for name, value in group.items() if name != "fused"} for group in optimizer.param_groups]
    asked = [group.get("fused", "nothing") for group in optimizer.param_groups]
    assert device.fuse(optimizer) is can
    after = [{name: value for name, value in group.items() if name != "fused"} for group in optimizer.param_groups]
    assert after == before
    fused = [group.get("fused", "nothing") for group in optimizer.param_groups]
    assert fused == ([True] if can else asked)
    parameter.grad = torch.ones(2)
    optimizer.step(lambda: float(parameter.detach().sum()))
    assert bool((parameter < 1).all())


def test_each_choice_is_told_with_its_reason(run_training: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # all but TF32 is there on CPUs, too
        patch.setattr(device, "capability_of", lambda kind: ("an H100", (9, 0)))
        run = run_training("trainer.precision=auto", "trainer.max_epochs=1")
    said = (run.folder / "train.log").read_text()
    for words in ("bf16-mixed: an H100 ", "TF32: ", "channels_last: ", "fused optimizer: "):
        assert said.count(words) == 1
    assert torch.get_float32_matmul_precision() == "high"
    convolutions = [tensor for tensor in weights(run).values() if tensor.ndim == 4 and tensor.shape[1] > 1]
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in convolutions)
    run = run_training("trainer.max_epochs=1")
    assert "channels_last" not in (run.folder / "train.log").read_text()
    assert torch.get_float32_matmul_precision() == "highest"


class Two(pl.LightningModule):
    """Two models, as a GAN has, and metrics without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.mean = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), MeanMetric()


class Several(pl.LightningModule):
    """A list of models, which cannot be called itself, and one that another one has, too."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.models = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})])
        if tied:
            self.head = torch.nn.Linear(2, 2)
            self.head.weight = next(self.models.parameters())


class HasItsOwn(Two):
    def configure_model(self) -> None:
        pass


def test_each_module_of_any_task_is_shared_out() -> None:
    strategy, task = ModelParallelStrategy(), Two()
    shared: list[tuple[torch.nn.Module, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.fsdp.fully_shard", lambda module, mesh: shared.append((module, mesh)))
        patch.setattr(Two, "device_mesh", {"data_parallel": "those two"})
        options._share_out(task, strategy)
        task.configure_model()
    assert shared == [(task.one, "those two"), (task.other, "those two")]
    for other in (HasItsOwn(), Two()):  # one that says how, and any with another strategy
        options._share_out(other, strategy if isinstance(other, HasItsOwn) else "auto")
        assert "configure_model" not in vars(other)


def test_a_list_of_modules_is_shared_out_one_by_one() -> None:
    task = Several()
    assert list(options._outermost(task)) == [
        module for module in task.modules() if isinstance(module, torch.nn.Linear)
    ]


def test_what_cannot_be_shared_out_is_refused() -> None:
    task = Two()
    task.scale = torch.nn.Parameter(torch.ones(1))
    for each, problem in (
        (task, "has parameters outside of its modules"),
        (Several(tied=True), "has modules with the same parameters, as where weights are tied"),
    ):
        with pytest.raises(UserError) as error:
            options._share_out(each, ModelParallelStrategy())
        assert str(error.value) == (
            f"this task {problem}: trainer=fsdp cannot share them out by itself. Put them into one module, or write "
            "configure_model as in Lightning's documentation on ModelParallelStrategy."
        )
