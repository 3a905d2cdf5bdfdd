"""How long it takes until a program of the project answers, and until a training makes its first step.

    make demo
    python benchmarks/startup.py

What needs no torch is compared with `import hydra`; a complete start with `import torch, pytorch_lightning`. Each is a
process of its own, taken in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "demo/my-project"
HYDRA = "import hydra"
TORCH = "import torch, pytorch_lightning"
FIRST_STEP = """
import os, sys
from runengine.compat import import_lightning
import_lightning()  # as the program does it, before anything of the project is imported
from {package}.task import ImageClassifier
from {package}.train import train
ImageClassifier.training_step = lambda *_: os._exit(0)
sys.argv = ["train", *sys.argv[1:]]
train()
"""


def rows(package: str) -> dict[str, list[str]]:
    """What follows `python`; the first and TORCH are floors."""
    train = ["-m", f"{package}.train"]
    first_step = ["-c", FIRST_STEP.format(package=package), "trainer=cpu"]
    return {
        HYDRA: ["-c", HYDRA],
        "--help": [*train, "--help"],
        "--cfg job": [*train, "--cfg", "job"],
        "Tab": [*train, "-sc", "query=bash"],
        "a wrong name": [*train, "optimizer.lrr=1"],
        "a wrong choice": [*train, "model=resnet"],
        "a wrong type": [*train, "optimizer.lr=fast"],
        "a wrong value": [*train, "data.batch_size=0"],
        "evaluate --help": ["-m", f"{package}.evaluate", "--help"],
        TORCH: ["-c", TORCH],
        "first step, tracking=off": [*first_step, "tracking=off"],
        "first step, all on": first_step,
    }


def measure(project: Path, package: str, repetitions: int, folder: Path, *, quick: bool) -> dict[str, list[float]]:
    environment = {
        **os.environ,
        "COMP_LINE": f"{package}-train model=",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    table = rows(package)
    if quick:
        del table["first step, all on"]
    python, data = str(project / ".venv/bin/python"), f"data.folder={project / 'data/processed'}"
    Path(folder, "pyproject.toml").write_text(f'[tool.runengine]\npackage = "{package}"\n')  # the root: runs go here
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for number in range(1 if quick else 0, repetitions + 1):
        for name, arguments in table.items():
            started = time.perf_counter()
            command = [python, *arguments, *([data] if "step" in name else [])]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            took_s = time.perf_counter() - started
            if done.returncode != (1 if "wrong" in name else 0):
                raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            if number:  # the first makes MLflow's tables, and fills the caches of the disk
                seconds[name].append(took_s)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="How long it takes until a program answers, and trains.")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="does it still run? In seconds; the figures mean nothing")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--package", default="my_project")
    arguments = parser.parse_args()
    if not (arguments.project / ".venv/bin/python").exists():
        sys.exit(f"error: there is no project with a .venv in {arguments.project}. Run: make demo")
    quick, project = arguments.quick, arguments.project.absolute()
    repetitions = 1 if quick else arguments.repetitions
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"median of {repetitions}, in turns{'' if quick else ', warm'}"
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(project, arguments.package, repetitions, Path(folder), quick=quick)
    floor_s: list[float] = []
    print(f"{'':32}       s   least  x floor  s above it")
    for name, values in seconds.items():
        if name in (HYDRA, TORCH):
            floor_s = values
        ratio = statistics.median(value / base for value, base in zip(values, floor_s, strict=True))
        above_s = statistics.median(value - base for value, base in zip(values, floor_s, strict=True))
        print(f"{name:32}  {statistics.median(values):6.2f}  {min(values):6.2f}  {ratio:7.2f}  {above_s:10.2f}")
    print(f"floors: {HYDRA} (aim: under 3 x), {TORCH} (aim: under 1 s above)")


if __name__ == "__main__":
    main()
