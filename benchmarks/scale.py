"""What grows: the jobs of a sweep, and the data.

    make demo
    python benchmarks/scale.py sweep                # seconds a thousand jobs, outside of training
    python benchmarks/scale.py data --gigabytes 3   # images on the disk, in the shuffled order of an epoch

Each job of `sweep` trains one step, so nearly all of its time is what the project adds; the floor is that step in plain
PyTorch. `data` drops the page cache before each row (Linux, as root; else it says that it did not), so the disk is read
as if the data were larger than memory; the floor is to read the same file from its beginning to its end.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent / "demo/my-project"
NUM_JOBS = (10, 40)  # the difference leaves out what is done once
QUICK_JOBS = (1, 2)
QUICK_GIGABYTES = 0.2  # fewer images could not be split
ONE_STEP = ("trainer=cpu", "model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
IMAGE_SHAPE = (3, 224, 224)
BATCH_SIZE = 64
PART_BYTES = 1 << 26


def sweep(package: str, project: Path, sizes: tuple[int, int], stores: tuple[str, ...]) -> None:
    bare_s = bare_step_s()
    print(f"one step in plain PyTorch, model and optimizer made each time: {bare_s * 1000:.1f} ms")
    print(f"{'':16}  s a sweep of {sizes[0]}  of {sizes[1]}   s a 1,000 jobs outside of training")
    for tracking in stores:
        seconds = []
        for num_jobs in sizes:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder, "pyproject.toml")  # runs go here
                root.write_text(f'[tool.runengine]\npackage = "{package}"\n')
                typed = [*ONE_STEP, f"tracking={tracking}", f"data.folder={project / 'data/processed'}"]
                command = [sys.executable, "-m", f"{package}.train", "-m", f"seed=range({num_jobs})", *typed]
                environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
                started = time.perf_counter()
                subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
                seconds.append(time.perf_counter() - started)
        job_s = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
        outside_s = 1000 * (job_s - bare_s)
        print(f"tracking={tracking:7}  {seconds[0]:15.1f}  {seconds[1]:5.1f}  {outside_s:34.0f}")


def bare_step_s() -> float:
    import torch

    seconds = []
    for _ in range(50):
        started = time.perf_counter()
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        optimizer = torch.optim.AdamW(model.parameters())
        torch.nn.functional.cross_entropy(model(torch.randn(64, 64)), torch.randint(10, (64,))).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def data(package: str, gigabytes: float, rounds: int) -> None:
    import numpy as np

    datasets, prepare = importlib.import_module(f"{package}.datasets"), importlib.import_module(f"{package}.prepare")
    num_images = int(gigabytes * 1e9 / np.prod(IMAGE_SHAPE))
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)

        def noise() -> Any:
            images = np.memmap(folder / "raw", np.uint8, "w+", shape=(num_images, *IMAGE_SHAPE))
            chance = np.random.default_rng(0)
            for start in range(0, num_images, 100):
                part = images[start : start + 100]
                part[:] = chance.integers(0, 256, part.shape, dtype=np.uint8)
            return datasets.RawDataset(images, np.arange(num_images) % 10)

        prepare.prepare(folder / "data", noise, split_seed=0, val_fraction=0.01, test_fraction=0.01)
        (folder / "raw").unlink()
        file = folder / "data/train_images.npy"
        print(f"{file.stat().st_size / 1e9:.1f} GB, images of {IMAGE_SHAPE}; page cache dropped: {forget()}")
        speeds: dict[str, list[float]] = {}
        for _ in range(rounds):
            speeds.setdefault("from beginning to end", []).append(straight(file))
            for num_workers in (0, 1, 2):
                row = f"shuffled batches, {num_workers} workers"
                speeds.setdefault(row, []).append(shuffled(package, folder / "data", num_workers))
    floor = statistics.median(speeds["from beginning to end"])
    print(f"{'':32}  MB/s  images/s  of the floor")
    for row, values in speeds.items():
        speed = statistics.median(values)
        print(f"{row:32} {speed / 1e6:5.0f}  {speed / np.prod(IMAGE_SHAPE):8.0f}  {speed / floor:12.2f}")


def straight(file: Path) -> float:
    """Bytes a second."""
    forget()
    started = time.perf_counter()
    with file.open("rb", buffering=0) as content:
        while content.read(PART_BYTES):
            pass
    return file.stat().st_size / (time.perf_counter() - started)


def shuffled(package: str, folder: Path, num_workers: int) -> float:
    """Bytes a second."""
    module = importlib.import_module(f"{package}.data")
    loader = module.ImageData(str(folder), IMAGE_SHAPE, 10, BATCH_SIZE, num_workers, 0).train_dataloader()
    forget()
    num_bytes = 0
    started = time.perf_counter()
    for images, _ in loader:
        num_bytes += images.numel()
    return num_bytes / (time.perf_counter() - started)


def forget() -> bool:
    """Let the system forget what it has read."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="What grows with the jobs of a sweep, and with the data.")
    parser.add_argument("what", choices=["sweep", "data"])
    parser.add_argument("--gigabytes", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="does it still run? In seconds; the figures mean nothing")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--package", default="my_project")
    arguments = parser.parse_args()
    python = arguments.project.absolute() / ".venv/bin/python"
    if not python.exists():
        sys.exit(f"error: there is no project with a .venv in {arguments.project}. Run: make demo")
    if Path(sys.prefix) != python.parent.parent:  # the project's own Python has torch
        sys.exit(subprocess.run([python, __file__, *sys.argv[1:]], check=False).returncode)
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    quick = arguments.quick
    if arguments.what == "sweep":
        stores = ("off",) if quick else ("off", "mlflow")
        sweep(arguments.package, arguments.project.absolute(), QUICK_JOBS if quick else NUM_JOBS, stores)
    elif quick:
        data(arguments.package, QUICK_GIGABYTES, 1)
    else:
        data(arguments.package, arguments.gigabytes, arguments.rounds)


if __name__ == "__main__":
    main()
