"""Train and evaluate with several seeds: what a configuration reaches, and how much of that is luck.

    python scripts/seeds.py 10 model=mlp optim.lr=0.01

The runs stay in `runs/seeds/`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

from ml_project.config import check, compose
from ml_project.errors import one_sentence
from ml_project.evaluate import evaluate
from ml_project.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and evaluate with several seeds.")
    parser.add_argument("seeds", type=int, help="how many: the seeds are 0, 1, 2, ...")
    parser.add_argument("settings", nargs="*", help="as for training, such as model=mlp")
    arguments = parser.parse_args()

    accuracies, seconds = [], []
    for seed in range(arguments.seeds):
        typed = ["experiment_name=seeds", "tracking=off", *arguments.settings, f"seed={seed}"]
        cfg = compose("train", typed)
        check(cfg, "train", typed)
        started = time.perf_counter()
        run = train(cfg, typed)
        seconds.append(time.perf_counter() - started)
        accuracies.append(evaluate(run)["test/accuracy"])
        print(f"seed {seed}: test/accuracy {accuracies[-1]:.4f}, {seconds[-1]:.1f} s", flush=True)

    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    print(
        f"\ntest/accuracy {statistics.mean(accuracies):.4f} +- {spread:.4f} (mean, standard deviation of "
        f"{len(accuracies)} seeds), least {min(accuracies):.4f}; {statistics.median(seconds):.1f} s a training "
        f"(median) on {os.cpu_count()} cores of {platform.machine()}, {platform.system()}"
    )


if __name__ == "__main__":
    with one_sentence():
        main()
