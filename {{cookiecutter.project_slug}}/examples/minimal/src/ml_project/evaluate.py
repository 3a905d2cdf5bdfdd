"""Measure a run's best checkpoint on the test split: the only place that looks at it.

python -m ml_project.evaluate                     # the newest run
python -m ml_project.evaluate runs/points/...     # this one
"""

from __future__ import annotations

import argparse
import os

import runengine


def evaluate(run: runengine.Run) -> dict[str, float]:
    """`test/loss` of the run's best checkpoint; writes `test_metrics.json`."""
    from .predict import export

    _, task, data = runengine.load(run)
    metrics = dict(runengine.evaluation_trainer().test(task, data, verbose=False)[0])
    if not run.model.is_dir():  # it failed after the training
        export(run)
    runengine.save_test_metrics(run, metrics)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.evaluate", description="Measure a run.")
    parser.add_argument("run", nargs="?", help="the folder of a run; without it the newest")
    run = runengine.find(parser.parse_args().run)
    print(f"test loss      {evaluate(run)['test/loss']:.4f}")
    print(f"run folder     {os.path.relpath(run.folder)}")
    print("see it         make mlflow")


if __name__ == "__main__":
    with runengine.friendly_errors():
        main()
