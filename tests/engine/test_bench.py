"""The bench: it measures, what it counts is right, and its verdicts fit what is known of some chips."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from runengine.machine import (
    all_reduce,
    bench,
    bench_files,
    bench_table,
    conditions,
    kernels,
    memory,
    own_step,
    plan,
    products,
    readings,
    steps,
    timing,
    verdicts,
)  # fmt: skip
from runengine.machine.gpu_specs import CHIPS, published
from runengine.machine.plan import Measurement
from runengine.machine.timing import Reading
from runengine.machine.verdicts import Machine, Row
from runengine.settings import project
from runengine.settings.config import compose
from runengine.settings.errors import UserError
from runengine.tracking.mlflow_client import mlflow_client
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, scaled_dot_product_attention
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics import MeanSquaredError

CPU = torch.device("cpu")
SMALL = plan.Sizes(128, 1 << 20, (1, 8, 8), (1, 2, 32, 16), (1, 16, 64), (2, 32))
NOW = {
    "at": "2026-11-21T12:00:00+00:00", "chips": ["NVIDIA H200"], "torch": "2.13.0+cu130", "driver": "580.65",
    "python": "3.11.7", "system": "Linux", "cpus": 16, "threads": 16, "load_average_1min": 0.1, "on_battery": False,
}  # fmt: skip


def machine(name: str, pcie_gb_s: float | None = None) -> Machine:
    return Machine("cuda:0", name, f"{name}, torch 2.13.0+cu130", published(name), pcie_gb_s)


def product(dtype: str, tflop_s: float) -> Row:
    what = "matrix product 8192^3"
    return Row("cuda:0", "product", what, dtype, "tflop_s", reached=tflop_s, spread=0.01, flop_each=1e12)


def copied(gb_s: float) -> Row:
    return Row("cuda:0", "copy", "copy in memory, 1024 MiB", "-", "gb_s", reached=gb_s, spread=0.01)


def written(name: str, rows: list[Row], **conditions: Any) -> Path:
    file = Path(name)
    file.write_text(json.dumps(bench_files.result(rows, {**NOW, **conditions})), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def measured(processed: Path) -> Iterator[tuple[list[Row], list[Machine]]]:
    """A complete bench on the CPU, of small sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.SIZES, "cpu", SMALL)
        patch.setattr(plan, "devices", lambda: [CPU])
        patch.setattr(plan, "last_level_cache_bytes", lambda: 0)
        patch.setattr(timing, "LEAST_BLOCKS", 1)
        yield bench.bench(budget_s=0.02, overrides=(f"data.folder={processed}",))


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """`python -m runengine bench` with these arguments, on a machine that measures two figures of an H200."""

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        monkeypatch.setattr(bench, "bench", lambda: ([product("bf16", 788), copied(4300)], [machine("NVIDIA H200")]))
        bench.main()
        printed = capsys.readouterr()
        return printed.out, printed.err

    return run


def test_every_row_is_measured_here(measured: tuple[list[Row], list[Machine]]) -> None:
    rows, machines = measured
    assert {row.kind for row in rows} >= {
        "product", "copy", "launch", "convolution", "attention", "own", "resnet", "block", "loader"
    }  # fmt: skip
    for row in verdicts.judge(rows, machines, {}):
        assert row.reached is not None, (row.what, row.note)
        assert math.isfinite(row.reached), row.what
        assert row.reached > 0, row.what
        assert row.verdict in ("-", "fine", "slow", "broken"), row.what
        if row.kind in ("own", "resnet", "block"):
            assert row.steps_s is not None
            assert row.limit is not None
            assert row.flop_each > 0


def test_the_table_fits_a_terminal_and_the_json_names_its_units(measured: tuple[list[Row], list[Machine]]) -> None:
    rows, machines = measured
    rows = verdicts.judge(rows, machines, {})
    shown = bench_table.table(rows, machines, conditions.conditions(machines, conditions.load_average()))
    assert max(map(len, shown.splitlines())) <= bench_table.COLUMNS
    assert "no limits of CPUs are published" in shown
    as_json = json.loads(json.dumps(bench_files.result(rows, NOW)))["rows"]
    assert as_json[0]["reached_tflop_s"] == rows[0].reached
    assert all(len([name for name in row if name.startswith("reached_")]) == 1 for row in as_json)


@pytest.mark.parametrize(("value", "shown"), [
    (0.0123, "0.0123"), (0.5, "0.50"), (12.34, "12.3"), (1234, "1,230"), (99_949, "99,900"), (160_400, "160 k"),
    (999_940, "1000 k"), (1_170_000, "1.17 M"), (23_456_000, "23.5 M"), (None, "-"),
])  # fmt: skip
def test_a_figure_has_three_digits(value: float | None, shown: str) -> None:
    assert bench_table.figure(value) == shown


@pytest.mark.parametrize(("capability", "wanted"), [
    ((6, 1), ["fp32"]),
    ((7, 0), ["fp32", "fp16"]),
    ((7, 5), ["fp32", "fp16"]),
    ((8, 6), ["fp32", "tf32", "bf16", "fp16"]),
    ((9, 0), ["fp32", "tf32", "bf16", "fp16", "fp8"]),
])  # fmt: skip
def test_a_gpu_is_measured_in_what_it_computes(
    capability: tuple[int, int], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    rows = [wanted.row for wanted in plan.plan(torch.device("cuda", 0), compose("train"), 0.1)]
    assert [row.dtype for row in rows if row.kind == "product"] == wanted
    assert len({(row.what, row.dtype) for row in rows}) == len(rows)
    assert max(len(row.what) for row in rows) <= 41  # the table's column
    assert {row.unit for row in rows} <= verdicts.UNITS.keys()
    assert sum(row.what.endswith("compiled") for row in rows) == 3


def test_the_clock_measures_a_call_and_keeps_to_its_time() -> None:
    began = time.perf_counter()
    measured = timing.seconds(lambda: time.sleep(0.004), CPU, budget_s=0.1)
    assert 0.004 <= measured.median_s < 0.1
    assert time.perf_counter() - began < 5


def test_a_step_in_fp16_and_a_compiled_one_train_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only GPUs are measured in, computed on a CPU; the compiler itself would take a minute."""
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compiled.append(model))
    monkeypatch.setattr(timing, "LEAST_BLOCKS", 1)
    for dtype in ("tf32", "fp16"):
        reading = steps.block_step((1, 16, 64), dtype, CPU, 0.01, compiled=True)
        assert reading.value > 0
        assert reading.flop_each == kernels.block_flop(1, 16, 64)
    assert len(compiled) == 2


class Prices(pl.LightningModule):
    """A regression as Lightning's documentation writes one: it names its loss, logs, and asks its trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 1)])
        self.error = MeanSquaredError()
        self.takes: list[int] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        self.takes.append(len(batch["y"]))
        hidden = self.layers[0](batch["x"]).relu()
        loss = nn.functional.mse_loss(self.layers[1](hidden), batch["y"])
        self.error(hidden[:, :1], batch["y"])
        self.log("loss", loss, prog_bar=self.trainer.is_last_batch)
        return {"loss": loss, "hidden": hidden.detach()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, self.trainer.estimated_stepping_batches)  # type: ignore[arg-type]
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Houses(pl.LightningDataModule):
    """Dictionaries of tensors; `setup` makes them, as it does where they are read from files."""

    def setup(self, stage: str) -> None:
        self.rows = [{"x": torch.randn(4), "y": torch.randn(1)} for _ in range(20)]

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return DataLoader(self.rows, batch_size=8)  # type: ignore[arg-type]


class TwoLoaders(Houses):
    def train_dataloader(self) -> Any:
        return {"a": super().train_dataloader(), "b": super().train_dataloader()}


class Stepping(Prices):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Silent(Prices):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return None


Use = Callable[[type[pl.LightningModule], type[pl.LightningDataModule]], None]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Another project, whose training script builds these."""

    def use(task: type[pl.LightningModule], data: type[pl.LightningDataModule]) -> None:
        script = ModuleType("shop.train")
        script.build_task = lambda cfg: task()  # type: ignore[attr-defined]
        script.build_data = lambda cfg: data()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, script.__name__, script)
        monkeypatch.setattr(project, "_used", [project.Project("shop", Path())])
        monkeypatch.setattr(timing, "LEAST_BLOCKS", 1)

    return use


NO_SETTINGS = OmegaConf.create({})


def test_the_step_of_any_task_is_measured(shop: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compiled.append(model))
    shop(Prices, Houses)
    plain = own_step.own_step(NO_SETTINGS, "fp32", CPU, 0.01)
    assert compiled == []
    assert own_step.own_step(NO_SETTINGS, "bf16", CPU, 0.01, compiled=True).value > 0
    assert [type(module).__name__ for module in compiled] == ["Linear", "Linear"]  # not the metric
    assert plain.steps_s is not None
    assert plain.value / plain.steps_s == pytest.approx(8)  # examples of a batch
    # forward and the gradient of the weights; the second layer's also of its input
    assert plain.flop_each == 2 * 2 * 4 * 8 + 3 * 2 * 8 * 1
    assert list(Path().glob("*logs*")) == []


class Wide(pl.LightningModule):
    """64 MiB of its hidden layer are kept for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 1, bias=False))

    def training_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.layers(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class Many(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(torch.randn(4096, 64), batch_size=4096)  # type: ignore[arg-type]


def test_the_memory_of_a_step_is_what_it_is_by_hand(shop: Use) -> None:
    shop(Wide, Many)
    found = own_step.at_first_batch(NO_SETTINGS, CPU, lambda first: memory.count(first, "fp32", CPU))
    parameters = 4 * (64 * 4096 + 4096 + 4096)
    hidden, output, batch = 4 * 4096 * 4096, 4 * 4096, 4 * 4096 * 64
    assert (found.parameters, found.gradients, found.num_examples) == (parameters, parameters, 4096)
    assert found.optimizer == 2 * parameters + 3 * 4  # two means for each, and a count of steps for each tensor
    # what ReLU gives, the output for its square, the loss
    assert hidden + output <= found.kept <= hidden + 3 * output
    # in the backward pass of ReLU: what it gave, the gradient of that, and the one that it makes of both
    held = batch + 3 * parameters + 3 * hidden
    assert held <= found.peak <= held + 2 * parameters
    assert "  for the backward      64 MiB   16 KiB for each example\n" in memory.text(found, "fp32", "cpu", None)


def test_the_memory_of_a_step_is_what_the_process_takes(shop: Use) -> None:
    """On Linux the peak of a process is known: one that makes this step takes as much more as was counted."""
    shop(Wide, Many)
    found = own_step.at_first_batch(NO_SETTINGS, CPU, lambda first: memory.count(first, "fp32", CPU))
    program = (
        "import torch; from torch import nn; from runengine.machine.memory import most_of_process as peak\n"
        "def step(batch):\n"
        "    layers(batch).square().mean().backward(); optimizer.step(); optimizer.zero_grad()\n"
        "layers = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 1, bias=False))\n"
        "optimizer = torch.optim.AdamW(layers.parameters())\n"
        "step(torch.randn(1, 64)); before = peak(); step(torch.randn(4096, 64)); print(peak() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    of_batch = found.peak - 4 * found.parameters  # what was there before the large batch: with gradients and two means
    assert grown == pytest.approx(of_batch, rel=0.1)


def test_the_memory_of_this_project_is_counted_by_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept(*settings: str) -> int:
        monkeypatch.setattr(sys, "argv", ["memory", *settings])
        memory.main()
        out = capsys.readouterr().out
        assert out.startswith("a training step of this project on cpu, in fp32, ")
        assert re.search(r"\n  this process +[\d.]+ [MG]iB   of the computer's memory at most", out)
        found = re.search(r"for the backward +(\d+) MiB", out)
        assert found
        return int(found[1])

    assert 4 * kept("data.batch_size=32") == pytest.approx(kept("data.batch_size=128"), abs=4)
    assert not list(Path("runs").glob("**/*"))


@pytest.mark.parametrize("data", [Houses, TwoLoaders])
def test_the_loader_of_any_data_is_measured(data: type[pl.LightningDataModule], shop: Use) -> None:
    shop(Stepping, data)  # whatever the task
    reading = own_step.loading(NO_SETTINGS, 0.01)
    assert math.isfinite(reading.value)
    assert reading.value > 0


@pytest.mark.parametrize(("task", "note"), [
    (Stepping, "not measured: the task steps its optimizers itself (automatic_optimization is False)"),
    (Silent, "not measured: training_step gives no loss for the first batch"),
])  # fmt: skip
def test_a_step_that_cannot_be_measured_says_why(task: type[pl.LightningModule], note: str, shop: Use) -> None:
    shop(task, Houses)
    own = next(wanted for wanted in plan.plan(CPU, NO_SETTINGS, 0.01) if wanted.row.kind == "own")
    assert (own.row.what, own.row.dtype) == ("this project's step", "fp32")
    row = bench.attempt(own)
    assert (row.reached, row.verdict, row.note) == (None, "-", note)
    del sys.modules["shop.train"].build_data
    assert bench.attempt(own._replace(measure=lambda: own_step.loading(NO_SETTINGS, 0.01))).note == (
        "not measured: shop.train has no function build_data(cfg)"
    )


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.copy_(right(a, b)).mul_(1.0003))  # as wrong as TF32 is
    with pytest.raises(
        timing.WrongResult, match=r"^the product is wrong: relative error 3e-04, rounding explains 1e-06 at most$"
    ):
        kernels.product(64, "fp32", CPU, 0.01)


@pytest.mark.parametrize("depth", [64, 1024, 16384])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_limit_of_rounding_is_above_the_error_of_a_right_product_and_not_far(dtype: str, depth: int) -> None:
    """However a library orders its sums: the one after the other, in float32, is the worst that is right."""
    torch.manual_seed(0)
    product = products.Product(32, depth, 32, dtype, CPU)
    result, limit = product.multiply(), products.rounding(dtype, depth)
    assert product.error() <= limit
    sums = torch.zeros(32, 32)
    for column, row in zip(product.left.float().T, product.right.float(), strict=True):
        sums.add_(torch.outer(column, row))
    product.multiply = partial(torch.clone, sums.to(result.dtype))
    assert product.error() <= limit <= 8 * product.error()


@pytest.mark.parametrize("depth", [64, 8192])
@pytest.mark.parametrize("truncated", [False, True])
def test_tf32_is_within_its_own_limit_and_outside_that_of_fp32(depth: int, truncated: bool) -> None:
    """Factors with 13 bits less, as tensor cores round or cut them."""
    torch.manual_seed(0)
    product = products.Product(64, depth, 64, "fp32", CPU)
    half = 0 if truncated else 1 << 12
    cut = [(each.view(torch.int32) + half >> 13 << 13).view(torch.float32) for each in (product.left, product.right)]
    product.multiply = partial(torch.mm, *cut)
    error = product.error()
    assert products.rounding("fp32", depth) < error <= products.rounding("tf32", depth)


@pytest.mark.parametrize(("capability", "has", "fast"), [
    ((5, 0), ["fp32"], ["fp32"]),
    ((6, 1), ["fp32", "fp16"], ["fp32"]),
    ((7, 0), ["fp32", "fp16"], ["fp32", "fp16"]),
    ((8, 9), ["fp32", "tf32", "bf16", "fp16", "fp8"], ["fp32", "tf32", "bf16", "fp16", "fp8"]),
])  # fmt: skip
def test_what_a_gpu_has_the_doctor_checks_and_what_is_fast_there_the_bench_measures(
    capability: tuple[int, int], has: list[str], fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert (products.dtypes(gpu, fast=False), products.dtypes(gpu, fast=True)) == (has, fast)


def test_fp8_is_computed_right() -> None:
    try:
        assert kernels.product(64, "fp8", CPU, 0.01).value > 0
    except NotImplementedError as error:
        pytest.skip(str(error))  # PyTorch has it for some CPUs only


@pytest.mark.parametrize(("error", "verdict", "note"), [
    (timing.WrongResult("the result holds NaN or infinity"), "broken", "the result holds NaN or infinity"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "-", "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "-", "out of memory"),
    (UserError("data/x does not exist. Run: make data"), "-", "data/x does not exist. Run: make data"),
    (RuntimeError("no kernel for this\nat line 7"), "failed", "no kernel for this"),
])  # fmt: skip
def test_what_goes_wrong_stands_in_its_row(error: Exception, verdict: str, note: str) -> None:
    def fails() -> Reading:
        raise error

    row = bench.attempt(Measurement(Row("cuda:0", "copy", "x", "-", "gb_s"), fails))
    assert (row.reached, row.verdict, row.note) == (None, verdict, note)


def test_tf32_is_as_asked_and_afterwards_as_before() -> None:
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = torch.backends.cuda.matmul.fp32_precision, conv.fp32_precision
    for dtype, precision in (("fp32", "ieee"), ("tf32", "tf32")):
        with products.as_asked(dtype):
            assert (torch.backends.cuda.matmul.fp32_precision, conv.fp32_precision) == (precision, precision)
        assert (torch.backends.cuda.matmul.fp32_precision, conv.fp32_precision) == before
    assert torch.get_float32_matmul_precision() == "highest"


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def test_the_formulas_count_as_pytorch_does() -> None:
    meta = torch.device("meta")
    assert counted(lambda: torch.ones(4, 8, device=meta) @ torch.ones(8, 16, device=meta)) == kernels.product_flop(
        4, 8, 16
    )
    images, filters = torch.ones(2, 8, 14, 14, device=meta), torch.ones(16, 8, 3, 3, device=meta)
    assert counted(lambda: conv2d(images, filters, padding=1)) == kernels.convolution_flop(2, 8, 16, 3, 14 * 14)
    queries = torch.ones(2, 4, 32, 16)
    block, sequences = steps.transformer_block(128), torch.ones(2, 32, 128, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):  # the products one by one
        attention = counted(lambda: scaled_dot_product_attention(queries, queries, queries))
        step = counted(lambda: torch.autograd.backward(block(sequences).sum()))
    assert attention == kernels.attention_flop(2, 4, 32, 16)
    assert step == kernels.block_flop(2, 32, 128)


def test_the_resnet_is_the_known_one() -> None:
    """torchvision's ResNet50_Weights: 25,557,032 parameters, 4.09 billion multiply-adds an image."""
    with torch.device("meta"):
        model, images = steps.resnet50(), torch.ones(1, 3, 224, 224)
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert counted(lambda: model(images)) / 2e9 == pytest.approx(4.089, abs=0.001)


def test_an_all_reduce_over_two_processes_is_right_and_measured() -> None:
    reading = all_reduce.all_reduce(2, "cpu", 1 << 16, budget_s=0.05)
    assert math.isfinite(reading.value)
    assert reading.value > 0


def test_an_all_reduce_that_fails_says_why_in_one_line_and_a_wrong_sum_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RuntimeError, match=r"^\w+: .*negative dimension.*$"):
        all_reduce.all_reduce(2, "cpu", -4, budget_s=0.05)
    monkeypatch.setattr(json, "loads", lambda text: [{"value": 1.0, "spread": 0.0}, [3.0, 5.0]])
    with pytest.raises(timing.WrongResult, match=r"^the sum is 5.0, not 3.0$"):
        all_reduce.all_reduce(2, "cpu", 1 << 16, budget_s=0.05)


def test_an_all_reduce_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "TIME_LIMIT_S", 0.0)
    with pytest.raises(TimeoutError, match=r"^no answer in 0 s: try NCCL_DEBUG=INFO, NCCL_P2P_DISABLE=1$"):
        all_reduce.all_reduce(2, "cpu", 1 << 16, budget_s=0.05)


def test_each_chip_has_its_source_and_is_plausible() -> None:
    for chip in CHIPS:
        maker = chip.source.partition("://")[2].partition("/")[0]
        assert chip.source.startswith("https://"), chip
        assert maker.endswith((".nvidia.com", "nvdam.widen.net")), chip
        rates = [chip.tflop_s(dtype) for dtype in ("fp32", "tf32", "bf16", "fp16", "fp8")]
        known = [rate for rate in rates if rate is not None]
        assert known == sorted(known), chip
        assert chip.bf16 in (None, chip.fp16), chip
        assert 300 <= chip.memory_gb_s <= 8000, chip
        assert known[-1] < 4 * chip.fp16, chip  # the rate with sparsity would be twice as high


@pytest.mark.parametrize(("name", "fp16", "memory_gb_s"), [
    ("Tesla V100-SXM2-32GB", 125, 900),
    ("Tesla V100-PCIE-16GB", 112, 900),
    ("Tesla T4", 65, 320),
    ("NVIDIA A10", 125, 600),
    ("NVIDIA A100-SXM4-40GB", 312, 1555),
    ("A100-PCIE-40GB", 312, 1555),
    ("NVIDIA A100-SXM4-80GB", 312, 2039),
    ("NVIDIA A100 80GB PCIe", 312, 1935),
    ("NVIDIA L4", 121, 300),
    ("NVIDIA L40S", 362, 864),
    ("NVIDIA RTX A6000", 154.8, 768),
    ("NVIDIA GeForce RTX 3090", 71, 936),
    ("NVIDIA GeForce RTX 4090", 165.2, 1008),
    ("NVIDIA H100 80GB HBM3", 989.5, 3350),
    ("NVIDIA H100 PCIe", 756, 2000),
    ("NVIDIA H100 NVL", 835.5, 3900),
    ("NVIDIA H200", 989.5, 4800),
    ("NVIDIA GH200 480GB", 989.5, 4000),
    ("NVIDIA B200", 2250, 7700),
])  # fmt: skip
def test_a_chip_is_known_by_its_name(name: str, fp16: float, memory_gb_s: float) -> None:
    chip = published(name)
    assert chip is not None
    assert (chip.fp16, chip.memory_gb_s) == (fp16, memory_gb_s)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A10G", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L40", "Apple M2"],
)
def test_a_similar_name_is_another_chip(name: str) -> None:
    assert published(name) is None


@pytest.mark.parametrize(("name", "row", "verdict", "causes"), [
    # seen on an H200 with torch 2.11.0+cu130, on random data
    ("NVIDIA H200", product("bf16", 788), "fine", ""),
    ("NVIDIA H200", copied(4300), "fine", ""),
    # made up: half of what a T4 can, and far too little
    ("Tesla T4", product("fp16", 65 / 2), "slow", "a power cap"),
    ("Tesla T4", copied(320 / 2), "slow", "ECC"),
    ("Tesla T4", product("fp16", 8), "broken", "a power cap"),
    ("NVIDIA GeForce RTX 4090", replace(copied(6), kind="pinned"), "broken", "PCIe lanes"),
    ("NVIDIA GeForce RTX 4090", replace(copied(26), kind="pinned"), "fine", ""),
    # nothing is published
    ("NVIDIA GeForce RTX 4090 Laptop GPU", product("fp16", 60), "-", ""),
])  # fmt: skip
def test_the_verdict_is_by_the_chips_limit(name: str, row: Row, verdict: str, causes: str) -> None:
    (judged,) = verdicts.judge([row], [machine(name, pcie_gb_s=31.5)], {})
    assert judged.verdict == verdict
    assert causes in judged.note
    assert bool(judged.note) == bool(causes)


@pytest.mark.parametrize(("now", "verdict"), [(120, "fine"), (90, "fine"), (60, "slow"), (20, "broken")])
def test_the_verdict_is_also_by_what_the_chip_reached_before(now: float, verdict: str) -> None:
    laptop = machine("NVIDIA GeForce RTX 4090 Laptop GPU")
    best = {laptop.known_as: {"matrix product 8192^3, fp16": {"reached_tflop_s": 100.0}}}
    (judged,) = verdicts.judge([product("fp16", now)], [laptop], best)
    assert (judged.before, judged.verdict) == (100, verdict)
    (slower_call,) = verdicts.judge(
        [Row("cuda:0", "launch", "call", "-", "us", reached=10.0, spread=0.0)],
        [laptop],
        {laptop.known_as: {"call": {"reached_us": 5.0}}},
    )
    assert slower_call.verdict == "slow"  # of times, less is better


def test_a_cpu_that_others_use_is_slow_not_broken() -> None:
    cpu = Machine("cpu", "CPU", "CPU", None, None)
    row = replace(product("fp32", 1), device="cpu")
    (judged,) = verdicts.judge([row], [cpu], {"CPU": {"matrix product 8192^3, fp32": {"reached_tflop_s": 10.0}}})
    assert (judged.verdict, judged.note) == ("slow", verdicts.BUSY)


def test_a_noisy_figure_says_so_and_is_not_kept() -> None:
    h200 = machine("NVIDIA H200")
    rows = verdicts.judge([replace(product("bf16", 788), spread=0.4)], [h200], {})
    assert (rows[0].verdict, rows[0].note) == ("fine", "unreliable: something else was running")
    assert bench_files.keep_best(Path("bench.json"), {}, rows, [h200], NOW) == 0
    assert not Path("bench.json").exists()


def test_of_two_like_gpus_the_better_figure_is_kept() -> None:
    gpus = [machine("NVIDIA H200"), replace(machine("NVIDIA H200"), device="cuda:1")]
    rows = [product("bf16", 788), replace(product("bf16", 700), device="cuda:1")]
    bench_files.keep_best(Path("bench.json"), {}, rows, gpus, NOW)
    kept = bench_files.read_best(Path("bench.json"))[gpus[0].known_as]
    assert kept["matrix product 8192^3, bf16"]["reached_tflop_s"] == 788


@pytest.mark.parametrize(("second", "verdict", "note"), [
    (788, "fine", ""),
    (720, "fine", ""),  # within a tenth
    (700, "slow", "a card of the same name reaches 13% more"),
])  # fmt: skip
def test_of_two_like_gpus_the_slower_one_is_named(second: float, verdict: str, note: str) -> None:
    gpus = [machine("NVIDIA H200"), replace(machine("NVIDIA H200"), device="cuda:1")]
    rows = [product("bf16", 788), replace(product("bf16", second), device="cuda:1")]
    one, other = verdicts.judge(rows, gpus, {})
    assert (one.verdict, one.note) == ("fine", "")
    assert (other.verdict, other.note[: len(note)]) == (verdict, note)
    gpus[1] = replace(machine("NVIDIA H100 80GB HBM3"), device="cuda:1")  # another card may be slower
    assert verdicts.judge(rows, gpus, {})[1].note == ""


def test_what_holds_a_clock_back_during_the_product_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    said = {"GPU-1-2": iter([0x1, 0x44])}  # idle; then its power limit, and heat
    asked = threading.Event()

    def reasons(card: str) -> int:
        bits = next(said[card], 0)
        if not bits:
            asked.set()
        return bits

    def measure() -> Reading:
        asked.wait(60)
        return Reading(788.0, 0.01)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", reasons)
    wanted = plan.Measurement(product("bf16", 0), measure)
    row = bench.watched(wanted, torch.device("cuda", 0))
    assert row.note == "its clock was held back meanwhile: heat (hardware), its power limit"
    assert verdicts.judge([row], [machine("NVIDIA H200")], {})[0].note == row.note

    def refuses(card: str) -> int:
        asked.set()
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    asked.clear()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", refuses)
    assert bench.watched(wanted, torch.device("cuda", 0)).note == ""
    assert bench.watched(wanted._replace(measure=lambda: Reading(1.0, 0.01)), torch.device("cpu")).note == ""


def test_what_is_known_of_tensor_cores_is_no_standard_for_a_cpu() -> None:
    cpu = Machine("cpu", "CPU", "CPU", None, None)
    rows = [replace(product("fp32", 1), device="cpu"), replace(product("fp32", 0.01), device="cpu", kind="resnet")]
    assert [row.verdict for row in verdicts.judge(rows, [cpu], {})] == ["-", "-"]


def test_a_loader_slower_than_the_training_is_reported() -> None:
    step = Row("cpu", "own", "step", "fp32", "examples_s", reached=1000.0, spread=0.0)
    loader = Row("host", "loader", "data loader", "-", "examples_s", reached=400.0, spread=0.0)
    *_, judged = verdicts.judge([step, loader], [Machine("cpu", "CPU", "CPU", None, None)], {})
    assert (judged.limit, judged.verdict) == (1000, "slow")
    assert judged.note.startswith("training waits for the data: raise data.num_workers")


def test_where_nothing_is_published_the_own_product_is_the_limit() -> None:
    laptop = machine("NVIDIA GeForce RTX 4090 Laptop GPU")
    step = Row("cuda:0", "resnet", "step", "fp16", "examples_s", reached=100.0, spread=0.0, flop_each=2e10)
    _, judged = verdicts.judge([product("fp16", 50), step], [laptop], {})
    assert judged.limit == 2500
    assert judged.verdict == "slow"


def test_the_best_figures_are_kept() -> None:
    file, h200 = Path("bench.json"), machine("NVIDIA H200")
    kept: list[float] = []
    for tflop_s in (700, 788, 600):
        best = bench_files.read_best(file)
        rows = verdicts.judge([product("bf16", tflop_s)], [h200], best)
        bench_files.keep_best(file, best, rows, [h200], NOW)
        entry = bench_files.read_best(file)[h200.known_as]["matrix product 8192^3, bf16"]
        kept.append(entry["reached_tflop_s"])
    assert kept == [700, 788, 788]
    assert entry == {"reached_tflop_s": 788, "at": "2026-11-21", "driver": "580.65", "python": "3.11.7"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "x", "best": {}}', '{"format": "ml-bench best 1"}',
                                  '{"format": "ml-bench best 1", "best": {"NVIDIA H200": 7}}'])  # fmt: skip
def test_damaged_figures_are_left_alone_and_the_bench_runs(text: str, start: Callable[..., tuple[str, str]]) -> None:
    Path("bench.json").write_text(text, encoding="utf-8")
    out, err = start()
    assert "788 TFLOP/s" in out
    assert err == (
        "warning: bench.json is damaged: it does not hold the best figures of a bench, and is not changed. "
        "Restore it from Git (git checkout -- bench.json), or delete it to start over.\n"
    )
    assert Path("bench.json").read_text(encoding="utf-8") == text


def test_what_is_written_can_be_compared(start: Callable[..., tuple[str, str]]) -> None:
    out, _ = start("--json", "a.json")
    assert "wrote a.json\nwrote bench.json: 2 of 2 figures are the best of this chip so far\n" in out
    written("b.json", [product("bf16", 394), product("fp32", 50)], torch="0.0.1")
    lines = start("--compare", "a.json", "b.json")[0].splitlines()
    assert lines[2] == f"warning: torch is {torch.__version__} in A, but 0.0.1 in B"
    assert [line.split()[-3:] for line in lines if "bf16" in line] == [["788", "394", "0.50"]]
    assert [line.split()[-3:] for line in lines if "fp32" in line] == [["-", "50.0", "-"]]
    assert lines[-1] == "only in A: cuda:0 copy in memory, 1024 MiB -"
    assert max(map(len, lines)) <= bench_table.COLUMNS


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"format": "ml-bench best 1", "best": {}}',
                                  '{"format": "ml-bench result 1", "conditions": {}, "rows": []}'])  # fmt: skip
def test_another_file_is_not_compared(text: str) -> None:
    Path("other.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"^other.json is not a result of this bench. Make one with: python -m runengine bench"
    ):
        bench_files.compare(written("a.json", []), Path("other.json"))
    with pytest.raises(
        UserError, match=r"^none.json does not exist. Make one with: python -m runengine bench --json none"
    ):
        bench_files.compare(Path("none.json"), Path("a.json"))


def test_a_folder_that_does_not_exist_is_refused_before_measuring(start: Callable[..., tuple[str, str]]) -> None:
    with pytest.raises(UserError, match=r"^--json: the folder none does not exist. Create it, or name another.$"):
        start("--json", "none/a.json")


def test_mlflow_gets_figures_and_file(start: Callable[..., tuple[str, str]]) -> None:
    out, err = start("--mlflow")
    assert "recorded in MLflow: experiment bench, run " in out
    assert not err
    client = mlflow_client(compose("train").tracking.mlflow_uri)
    run = client.get_run(out.split()[-1])
    assert run.data.metrics["cuda0/matrix product 8192_3_ bf16/tflop_s"] == 788
    assert run.data.params["chips"] == "NVIDIA H200"
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["bench_result.json"]


def test_a_store_that_fails_does_not_lose_the_bench(
    start: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    out, err = start("--mlflow", "--json", "a.json")
    assert "788 TFLOP/s" in out
    assert Path("a.json").exists()
    assert err == (
        "warning: MLflow at http://127.0.0.1:1 did not take it: nobody answers there. Try again when it is there.\n"
    )


def test_a_cards_bus_is_asked_for_its_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    answers = {"GetHandleByUUID": "card", "GetMaxPcieLinkWidth": 16, "GetMaxPcieLinkGeneration": 4}
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvmlDevice{name}", lambda _, answer=answer: answer)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    assert conditions.pcie_gb_s(torch.device("cuda", 0)) == pytest.approx(31.5, abs=0.01)
    answers["GetMaxPcieLinkGeneration"] = 9
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxPcieLinkGeneration", lambda _: 9)
    assert conditions.pcie_gb_s(torch.device("cuda", 0)) is None


def test_the_driver_is_a_condition_of_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"driver": readings.Reading("580.65.06")}
    monkeypatch.setattr(conditions, "child", lambda probe: answers if probe == "nvml" else {})
    assert conditions.conditions([], None)["driver"] == "580.65.06"
    answers["driver"] = readings.Reading(error="no answer within 20 s")
    assert conditions.conditions([], None)["driver"] is None
