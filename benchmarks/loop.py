"""What the training loop costs compared with a bare one in plain PyTorch, layer by layer.

    make demo
    python benchmarks/loop.py                        # on the CPU, two sizes of data
    python benchmarks/loop.py --device cuda          # a ResNet-like model on a GPU
    python benchmarks/loop.py --choices              # what the engine takes of the device, one after the other left out
    python benchmarks/loop.py --waits                # how often a step waits for the device
    python benchmarks/loop.py --processes            # each row in a process of its own, from its start to its end

From Lightning on, every row does what the row above it does and one thing more; the last is what `train` does by
default. All see batches of the same sizes, validate after each epoch, and are taken in turns. Time is that of the whole
loop by its epochs, the first left out: a stall counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent / "demo/my-project"


@dataclass(frozen=True)
class Work:
    """What is trained on: as many uint8 images of noise, or the digits."""

    name: str
    num_train: int
    input_shape: tuple[int, int, int]
    model: str  # what makes it; the project's own by its name alone
    epochs: int
    batch_size: int = 64


DIGITS = Work("digits, the default: 8 x 8, 17 steps an epoch", 1078, (1, 8, 8), "CNN", 20)
WORKS = {
    "cpu": [
        Work("digits, an MLP: 8 x 8, 10 steps an epoch", 1280, (1, 8, 8), "loop.mlp", 40, batch_size=128),
        DIGITS,
        Work("as Fashion-MNIST: 28 x 28, 60 steps an epoch", 60 * 64, (1, 28, 28), "CNN", 3),
    ],
    "cuda": [DIGITS, Work("ResNet-like: 64 x 64, 200 steps an epoch", 200 * 64, (3, 64, 64), "loop.resnet", 4)],
}
ALL = "all that the engine takes by itself"
# where the program waits for the device; a CPU computes at once: counted there is each value taken out of a tensor
WAITS = {
    "cuda": {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"},
    "cpu": {"aten::_local_scalar_dense"},
}
QUICK = Work("quick: 8 x 8, 2 steps an epoch", 2 * 64, (1, 8, 8), "CNN", 3)


class Timer:
    """The mean time of an epoch, but for the first."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def __call__(self) -> None:
        self.starts.append(time.perf_counter())

    def epoch_s(self) -> float:
        return (self.starts[-1] - self.starts[1]) / (len(self.starts) - 2)


class Loops:
    """The loops of one project, on one kind of data.

    Args:
        package: the project's import name.
        work: what to train.
        folder: for prepared data and runs.
        device: `cpu` or `cuda`.
    """

    def __init__(self, package: str, work: Work, folder: Path, device: str) -> None:
        self.package, self.work, self.folder, self.device = package, work, folder, device
        self.number = 0
        prepare = self.module("prepare").prepare
        num_val = work.num_train // 4
        prepare(folder / "data", self.noise, split_seed=0, val_fraction=num_val / (work.num_train + 2 * num_val),
                test_fraction=num_val / (work.num_train + 2 * num_val))  # fmt: skip
        self.overrides = [
            f"trainer={'cpu' if device == 'cpu' else 'gpu'}",
            f"trainer.max_epochs={work.epochs}",
            f"data.folder={folder / 'data'}",
            f"data.input_shape=[{','.join(map(str, work.input_shape))}]",
            f"data.batch_size={work.batch_size}",
            f"model._target_={work.model if '.' in work.model else f'{package}.model.{work.model}'}",
        ]
        if device != "cpu":
            self.overrides.append("trainer.precision=32-true")  # as the bare loop
        self.program = self.module("train").train
        self.compose = importlib.import_module("runengine").compose
        self.cfg = self.compose("train", self.overrides)

    @property
    def num_steps(self) -> int:
        """Of training and validation together."""
        sizes = (self.work.num_train, self.work.num_train // 4)
        return self.work.epochs * sum(-(-size // self.work.batch_size) for size in sizes)

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")

    def noise(self) -> Any:
        import numpy as np

        chance = np.random.default_rng(0)
        num_images = self.work.num_train + 2 * (self.work.num_train // 4)
        images = chance.integers(0, 256, (num_images, *self.work.input_shape), dtype=np.uint8)
        return self.module("datasets").RawDataset(images, np.arange(num_images) % 10)

    def model(self) -> Any:
        return self.module("train").build_task(self.cfg).model

    def bare(self, *, indexed: bool = False, fabric: bool = False) -> float:
        """A loop that a tutorial would show, no word said: a `DataLoader`, or `indexed`, batches out of the arrays.

        Args:
            indexed: take them so.
            fabric: Lightning's Fabric stands around model, optimizer and the backward pass.
        """
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        torch.manual_seed(0)
        data = self.module("train").build_data(self.cfg)
        train, val = ([s.images_NCHW, s.labels_N] for s in (data.split("train"), data.split("val")))
        model = self.model().to(self.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.cfg.optimizer.lr)
        loss_of = torch.nn.CrossEntropyLoss()
        backward: Callable[[Any], Any] = torch.Tensor.backward
        if fabric:
            from lightning_fabric import Fabric

            around = Fabric(accelerator=self.device, devices=1)
            model, optimizer = around.setup(model, optimizer)
            backward = around.backward
        size = self.work.batch_size

        def batches(split: list[Any], *, shuffle: bool) -> Any:
            if not indexed:
                whole = TensorDataset(split[0][:].float() / 255, split[1][:])
                return DataLoader(whole, batch_size=size, shuffle=shuffle)
            order = torch.randperm if shuffle else torch.arange
            return ((split[0][rows].float() / 255, split[1][rows]) for rows in order(len(split[1])).split(size))

        timer, loaders = Timer(), {}
        if not indexed:
            loaders = {"train": batches(train, shuffle=True), "val": batches(val, shuffle=False)}
        for _ in range(self.work.epochs):
            timer()
            model.train()
            for images, labels in loaders.get("train") or batches(train, shuffle=True):
                optimizer.zero_grad()
                loss = loss_of(model(images.to(self.device)), labels.to(self.device))
                backward(loss)
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for images, labels in loaders.get("val") or batches(val, shuffle=False):
                    loss_of(model(images.to(self.device)), labels.to(self.device))
            self.wait()
        timer()
        return timer.epoch_s()

    def wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def lightning(self, layers: int) -> float:
        """Lightning's trainer with so many of the engine's layers."""
        import pytorch_lightning as pl
        import torch
        from pytorch_lightning.callbacks import TQDMProgressBar
        from runengine import Run
        from runengine.training.history import History
        from runengine.training.options import trainer_options
        from runengine.training.signals import Signals

        torch.manual_seed(0)
        timer = Timer()
        self.number += 1
        run = Run(self.folder / f"part-{self.number}")
        run.checkpoints.mkdir(parents=True)
        task = self.task(metrics=layers >= 1)
        with Signals() as signals:
            history = History(run, self.cfg.monitor.metric, self.cfg.monitor.mode)
            # what suits the device is done to another task: here it is the last row's
            options, _ = trainer_options(run, self.cfg, self.task(metrics=True), history, signals, [])
            bars = [each for each in options["callbacks"] if isinstance(each, TQDMProgressBar)]
            others = [each for each in options["callbacks"] if each not in bars]
            options |= {
                "callbacks": [*others * (layers >= 2), *bars * (layers >= 3), timed(timer)], "logger": False,
                "enable_progress_bar": layers >= 3, "enable_checkpointing": layers >= 2,
            }  # fmt: skip
            pl.Trainer(**options).fit(task, datamodule=self.module("train").build_data(self.cfg))
        return timer.epoch_s()

    def task(self, *, metrics: bool) -> Any:
        task = self.module("train").build_task(self.cfg)
        if not metrics:

            class Silent(type(task)):  # type: ignore[misc]
                def _step(self, batch: Any, *_: Any) -> Any:
                    logits = self(batch[0])
                    return self.loss(logits, batch[1]), logits

                def _log(self, *_: Any) -> None:
                    pass

            task.__class__ = Silent
        return task

    def whole(self, *overrides: str) -> float:
        """What `train` does."""
        from runengine.training import options

        timer = Timer()
        make_callbacks = options.callbacks
        self.number += 1
        typed = [*self.overrides, f"run_dir={self.folder / f'run-{self.number}'}", *overrides]
        try:
            options.callbacks = lambda *args, **more: [*make_callbacks(*args, **more), timed(timer)]
            self.program.start(self.compose("train", typed), typed)
        finally:
            options.callbacks = make_callbacks
        self.wait()
        return timer.epoch_s()


def mlp(input_shape: Any, num_classes: int, **_: Any) -> Any:
    """Three hidden layers with batch norm."""
    from torch import nn

    widths = [input_shape[-1] * input_shape[-2], 64, 128, 64]
    hidden = [
        layer
        for width_in, width in itertools.pairwise(widths)
        for layer in (nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU())
    ]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes))


def resnet(input_shape: Any, num_classes: int, **_: Any) -> Any:
    """As ResNet-18 (He et al. 2015, arXiv:1512.03385, table 1), a quarter as deep: one block of each width."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width_in: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
            )  # fmt: skip
            self.short = nn.Conv2d(width_in, width, 1, stride, bias=False)

        def forward(self, images: Any) -> Any:
            return nn.functional.relu(self.body(images) + self.short(images))

    blocks = [Block(64, 64, 1), Block(64, 128, 2), Block(128, 256, 2), Block(256, 512, 2)]
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes),
    )  # fmt: skip


def timed(timer: Timer) -> Any:
    """A callback that tells the timer when an epoch begins, and when the last one has ended."""
    import pytorch_lightning as pl
    import torch

    class Times(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            timer()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            timer()

    return Times()


class Terminal(io.StringIO):
    """Where the progress bar is drawn."""

    def isatty(self) -> bool:
        return True


def rows(loops: Loops) -> dict[str, Callable[[], float]]:
    return {
        "bare PyTorch, DataLoader": loops.bare,
        "bare PyTorch, batches by index": lambda: loops.bare(indexed=True),
        "Fabric, batches by index": lambda: loops.bare(indexed=True, fabric=True),
        "Lightning": lambda: loops.lightning(0),
        "+ metrics": lambda: loops.lightning(1),
        "+ log, checkpoints": lambda: loops.lightning(2),
        "+ progress bar": lambda: loops.lightning(3),
        "+ tracking: all that is on by default": loops.whole,
    }


def processes(loops: Loops) -> dict[str, Callable[[], float]]:
    """What is compared as a program: at a terminal it draws the progress bar."""
    table = rows(loops)
    kept = ("bare PyTorch, DataLoader", "Fabric, batches by index", "Lightning")
    return {name: table[name] for name in kept} | {
        "all that is on by default, tracking=off": lambda: loops.whole("tracking=off"),
        "all that is on by default": loops.whole,
    }


def process(work: Work, row: str, package: str, device: str) -> tuple[float, float]:
    """One row as a program: seconds from its start to its end, and the most memory that it held at once, in MB."""
    program = f"import loop; loop.alone({work.name!r}, {row!r}, {package!r}, {device!r})"
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"error: {row} failed, and says above why")
    return time.perf_counter() - started, used.ru_maxrss / 1024


def alone(name: str, row: str, package: str, device: str) -> None:
    """What such a process does."""
    work = next(each for each in [*WORKS[device], QUICK] if each.name == name)
    with in_a_folder(work, package, device) as loops, contextlib.redirect_stderr(Terminal()):
        processes(loops)[row]()


def choices(loops: Loops) -> dict[str, Callable[[], float]]:
    """All that the engine takes of the device, and each thing left out."""
    from runengine.training import device

    everything = "trainer.precision=auto"

    def without(name: str) -> float:
        taken = getattr(device, name)
        try:
            setattr(device, name, lambda *_: None)
            return loops.whole(everything)
        finally:
            setattr(device, name, taken)

    table = {ALL: lambda: loops.whole(everything), "without the fused optimizer": lambda: without("fused")}
    if loops.device != "cuda":
        return table
    return table | {
        "in float32": lambda: loops.whole("trainer.precision=32-true"),
        "without TF32": lambda: without("tensor_float"),
        "without channels_last": lambda: without("layout"),
        "and compiled": lambda: loops.whole(everything, "compile=true"),
    }


def waits(loops: Loops) -> None:
    """Print how often the program waits for a result of the device, in a step of training or validation."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (loops.device == "cuda")
    table: dict[str, Callable[[], float]] = {
        "bare PyTorch": lambda: loops.bare(indexed=True),
        "all that is on by default": loops.whole,
    }
    for row, loop in table.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), profile(activities=activities) as seen:
            loop()
        counts = {each.key: each.count for each in seen.key_averages() if each.key in WAITS[loops.device]}
        found = ", ".join(f"{name} {count / loops.num_steps:.2f}" for name, count in sorted(counts.items())) or "none"
        print(f"  {row:42}  waits a step: {found}")


@contextlib.contextmanager
def in_a_folder(work: Work, package: str, device: str) -> Iterator[Loops]:
    """Data and runs of this work in a folder that goes away."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name, "pyproject.toml")  # runs go here
        root.write_text(f'[tool.runengine]\npackage = "{package}"\ntargets = ["loop.mlp", "loop.resnet"]\n')
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        with contextlib.chdir(name):
            yield Loops(package, work, Path(name), device)


def compare_processes(package: str, device: str, works: list[Work], rounds: int) -> None:
    for work in works:
        with in_a_folder(work, package, device) as loops:
            names = list(processes(loops))
        used: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                used[name].append(process(work, name, package, device))
        print(f"\n{work.name:44}   s a process  of bare  peak MB  of bare")
        bare_s, bare_mb = (statistics.median(each[at] for each in used[names[0]]) for at in (0, 1))
        for name, values in used.items():
            seconds, megabytes = (statistics.median(each[at] for each in values) for at in (0, 1))
            times = f"{seconds:11.1f}     {seconds / bare_s:.2f}"
            print(f"  {name:42}  {times}  {megabytes:7.0f}     {megabytes / bare_mb:.2f}")


def measure(package: str, device: str, works: list[Work], rounds: int, *, what: str) -> None:
    import torch

    print(
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, device "
        f"{torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}; median of {rounds} rounds, in turns"
    )
    if what == "processes":
        compare_processes(package, device, works, rounds)
        return
    for work in works:
        with in_a_folder(work, package, device) as loops:
            if what == "waits":
                print(f"\n{work.name}")
                waits(loops)
                continue
            table = rows(loops) if what == "layers" else choices(loops)
            seconds: dict[str, list[float]] = {row: [] for row in table}
            for _ in range(rounds):
                for row, loop in table.items():
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(Terminal()):
                        seconds[row].append(loop())
        first = next(iter(seconds))
        bare = seconds[first]
        print(f"\n{work.name:44}  ms an epoch  {'of bare' if what == 'layers' else ' of all'}    share")
        before = 0.0
        for row, values in seconds.items():
            ratio = statistics.median(base / value for base, value in zip(bare, values, strict=True))
            share = (statistics.median(values) - before) / statistics.median(values) if before else 0.0
            before = statistics.median(values)
            print(f"  {row:42}  {before * 1000:11.1f}     {ratio:.2f}   {share:6.1%}")


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description="What the training loop costs, layer by layer.")
    parser.add_argument("--device", choices=WORKS, default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the kinds of work whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="does it still run? In seconds; the figures mean nothing")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--package", default="my_project")
    parser.add_argument("--choices", dest="what", action="store_const", const="choices", default="layers")
    parser.add_argument("--waits", dest="what", action="store_const", const="waits")
    parser.add_argument("--processes", dest="what", action="store_const", const="processes")
    arguments = parser.parse_args()
    python = arguments.project / ".venv/bin/python"
    if not python.exists():
        sys.exit(f"error: there is no project with a .venv in {arguments.project}. Run: make demo")
    if Path(sys.prefix) != python.parent.parent.absolute():  # the project's own Python has torch
        sys.exit(subprocess.run([python, __file__, *sys.argv[1:]], check=False).returncode)
    sys.path.insert(0, str(Path(__file__).parent))  # for loop.ResNet
    works = [work for work in WORKS[arguments.device] if arguments.only in work.name]
    works, rounds = ([QUICK], 1) if arguments.quick else (works, arguments.rounds)
    measure(arguments.package, arguments.device, works, rounds, what=arguments.what)


if __name__ == "__main__":
    main()
