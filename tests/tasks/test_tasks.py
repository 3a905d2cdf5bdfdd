"""Eight tasks, written as Lightning's documentation would: the engine takes each of them, and knows none."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LONGEST_S, Make, Project


@dataclass(frozen=True)
class Task:
    """A package in packages/.

    Args:
        monitor, mode: of its conf/train.yaml.
        num_steps: of an epoch, as Lightning counts them: of all optimizers.
        tested: what its evaluate.py measures.
        predicts: by its predict.py, and what that must be.
        knows_position: of its training data, in the middle of an epoch.
    """

    name: str
    monitor: str
    num_steps: int
    tested: set[str]
    predicts: tuple[str, Any]
    mode: str = "min"
    knows_position: bool = False


TASKS = [
    Task("regression", "val/mse", 10, {"test/mse", "test/mae"},
         ("len(predict(run, torch.zeros(5, 10)))", 5), knows_position=True),
    Task("language", "val_loss", 8, {"test_loss"},
         ("len(predict(run, 'The data', 10))", 18), knows_position=True),
    Task("segmentation", "val/dice", 8, {"test/dice"},
         ("list(predict(run, torch.zeros(3, 1, 16, 16)).shape)", [3, 16, 16]), mode="max", knows_position=True),
    Task("autoencoder", "loss", 8, {"test_loss"}, ("list(predict(run).shape)", [797, 4])),
    Task("gan", "val_distance", 16, {"test_distance"}, ("list(predict(run, 7).shape)", [7, 2]), knows_position=True),
    Task("onecycle", "val_loss", 8, {"test_loss"}, ("list(predict(run, torch.zeros(4, 13)).shape)", [4])),
    Task("several_loaders", "val_loss/dataloader_idx_1", 8, {"test_near", "test_middle"},
         ("list(predict(run, torch.zeros(4, 1)).shape)", [4, 1])),
    Task("stream", "val_loss", 10, {"test_loss"}, ("list(predict(run, torch.zeros(4, 8)).shape)", [4, 1])),
]  # fmt: skip
EPOCHS = 6
LONG = f"trainer.max_epochs={EPOCHS}"
MOST_ATTEMPTS = 8  # to kill a training before it ends by itself
NO_MEASUREMENT = ("speed/", "system/")

every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
chance = random.Random()


@pytest.fixture
def project(projects: Make, task: Task) -> Project:
    """The project of the task, with a run `runs/straight` that nobody has disturbed."""
    found = projects(task.name)
    if not (found.folder / "runs/straight").exists():
        found.train("run_dir=runs/straight", *settings(task))
    return found


def settings(task: Task) -> list[str]:
    """Checkpoints in the middle of an epoch, if the position in the data is known; else at the end of each."""
    return [LONG, "checkpoint.every_minutes=null", f"checkpoint.every_n_steps={2 if task.knows_position else 'null'}"]


def checkpoint(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return content


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, in any structure."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def assert_same(one: Path, other: Path) -> None:
    """Weights, what the optimizers and the owner's callbacks remember, and each row of the history."""
    assert (one / "history.csv").read_text() == (other / "history.csv").read_text()
    a, b = checkpoint(one), checkpoint(other)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(a[part], b[part]), part
    assert equal(a["callbacks"].get("EMA"), b["callbacks"].get("EMA"))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def mlflow_runs(project: Project, name: str | None = None) -> list[dict[str, Any]]:
    """Of this name, or all: status, parent, and the values of each metric by its step, in order."""
    code = """
import json, mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
found = []
for run in client.search_runs([each.experiment_id for each in client.search_experiments()]):
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    values = {name: sorted((metric.step, metric.value) for metric in history) for name, history in histories.items()}
    parent = run.data.tags.get("mlflow.parentRunId")
    found.append({"id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "parent": parent,
                  "source": run.data.tags.get("mlflow.source.name"), "metrics": values})
open("mlflow.json", "w").write(json.dumps(found))
"""
    project.run("-c", code)
    found: list[dict[str, Any]] = json.loads((project.folder / "mlflow.json").read_text())
    return [run for run in found if name in (None, run["name"])]


def assert_recorded(project: Project, run: Path) -> None:
    """MLflow has one run of it, FINISHED, with each step of each metric once."""
    (record,) = mlflow_runs(project, run.name)
    assert record["status"] == "FINISHED"
    assert (run / "mlflow_run_id").read_text().strip() == record["id"]
    for name, values in record["metrics"].items():
        steps = [step for step, _ in values]
        assert len(steps) == len(set(steps)), name
    history = rows(run / "history.csv")
    for name in history[0].keys() - {"step"}:
        measured = [[int(row["step"]), float(row[name])] for row in history]
        assert record["metrics"][name] == measured, name


@every_task
def test_a_run_that_is_killed_twice_ends_like_one_that_was_left_alone(project: Project, task: Task) -> None:
    straight = project.folder / "runs/straight"
    history = rows(straight / "history.csv")
    assert [int(row["step"]) for row in history] == [task.num_steps * (epoch + 1) for epoch in range(EPOCHS)]
    assert all(math.isfinite(float(row[task.monitor])) for row in history)
    started_at = (straight / "checkpoints/fingerprint.json").stat().st_mtime
    takes_s = (straight / "checkpoints/last.ckpt").stat().st_mtime - started_at

    run, kills = project.folder / "runs/killed-0", 0
    for attempt in range(MOST_ATTEMPTS):
        command = [f"{task.name}.train", f"run_dir=runs/{run.name}", *settings(task)]
        kills += project.kill_at(f"runs/{run.name}", chance.uniform(0, takes_s) / 2 ** (attempt + 1), *command)
        if (run / "metrics.json").exists():  # too late: it had ended. This one counts for nothing
            run, kills = project.folder / f"runs/killed-{attempt + 1}", 0
        elif kills == 2:
            break
    else:
        pytest.fail(f"it could not be killed twice before it ended: a straight run takes {takes_s:.2f} s")
    output = project.run(*command)
    assert "does not know its position" not in output
    assert len((run / "starts.jsonl").read_text().splitlines()) == 3
    assert_same(straight, run)
    assert_recorded(project, run)
    assert_recorded(project, straight)


@pytest.mark.parametrize("task", [task for task in TASKS if not task.knows_position], ids=lambda task: task.name)
def test_what_is_repeated_in_the_middle_of_an_epoch_is_said(project: Project, task: Task) -> None:
    for attempt in range(MOST_ATTEMPTS):
        run = project.folder / f"runs/middle{attempt}"
        command = [f"{task.name}.train", f"run_dir=runs/{run.name}", LONG, "checkpoint.every_n_steps=1", "tracking=off"]
        if project.kill_at(f"runs/{run.name}", chance.uniform(0, 0.05), *command):
            done = checkpoint(run)["global_step"]
            if done % task.num_steps:
                break
    else:
        pytest.fail("it could not be killed in the middle of an epoch")
    output = project.run(*command)
    said = re.search(r"epoch (\d+) is resumed after (\d+) batches, but its data loader does not know its pos", output)
    assert said, output
    epoch, num_batches = int(said[1]), int(said[2])
    assert (epoch - 1) * task.num_steps + num_batches == done
    # a stream begins again; of data with a length, an epoch has as many steps as it has
    more = num_batches if task.name == "stream" else 0
    history = rows(run / "history.csv")
    assert len(history) == EPOCHS
    assert int(history[-1]["step"]) == EPOCHS * task.num_steps + more
    if task.name == "stream":
        project.run("-c", AS_SAID.format(epoch=epoch, num_batches=num_batches, epochs=EPOCHS))
        repeated = torch.load(project.folder / "as_said.pt", weights_only=True)
        assert equal(repeated, checkpoint(run)["state_dict"])


# the same in plain PyTorch: the epoch in which it was killed has these batches twice
AS_SAID = """
import pytorch_lightning as pl, runengine, torch
from stream.train import build_data, build_task
cfg = runengine.compose("train")
pl.seed_everything(cfg.seed, workers=True, verbose=False)
data, task = build_data(cfg), build_task(cfg)
batches = list(data.train_dataloader())
optimizer = task.configure_optimizers()
optimizer.param_groups[0]["fused"] = True  # as the engine lets it step
for epoch in range(1, {epochs} + 1):
    for rows, targets in [*(batches[:{num_batches}] if epoch == {epoch} else []), *batches]:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(task(rows), targets).backward()
        optimizer.step()
torch.save(task.state_dict(), "as_said.pt")
"""


@every_task
def test_sweep_seeds_and_search(project: Project, task: Task) -> None:
    sweeps = project.folder / "runs" / experiment(project)

    project.train("-m", "seed=1,2", "trainer.max_epochs=1")
    sweep = newest(sweeps)
    assert [row["state"] for row in rows(sweep / "sweep.csv")] == ["finished"] * 2
    (parent,) = mlflow_runs(project, sweep.name)
    children = [run for run in mlflow_runs(project) if run["parent"] == parent["id"]]
    assert [run["status"] for run in (parent, *children)] == ["FINISHED"] * 3
    assert all(task.monitor in run["metrics"] for run in children)

    project.train("seeds=2", "trainer.max_epochs=1", "tracking=off")
    table = {row["metric"]: row for row in rows(newest(sweeps) / "seeds.csv")}
    assert task.tested | {task.monitor} <= table.keys()
    assert all(row["seeds"] == "2" and math.isfinite(float(row["mean"])) for row in table.values())

    output = project.train("search=default", "search.trials=3", "trainer.max_epochs=2", "tracking=off")
    trials = rows(newest(sweeps) / "sweep.csv")
    assert [row["state"] for row in trials] == ["finished"] * 3
    assert len({row["task.lr"] for row in trials}) == 3
    best = (min if task.mode == "min" else max)(trials, key=lambda row: float(row[task.monitor]))
    (shown,) = [line for line in output.splitlines() if line.rstrip().endswith("best")]
    assert shown.split()[0] == best["run"]
    (study,) = [line for line in output.splitlines() if line.startswith("train the best again")]
    assert f"task.lr={best['task.lr']}" in study


def experiment(project: Project) -> str:
    return re.findall(r"^experiment_name: (\w+)$", (conf(project) / "train.yaml").read_text(), re.MULTILINE)[0]


def conf(project: Project) -> Path:
    return project.folder / "src" / project.package / "conf"


def newest(sweeps: Path) -> Path:
    return max(sweeps.glob("sweep-*"))


@every_task
def test_evaluated_and_predicted(project: Project, task: Task) -> None:
    project.run(f"{task.name}.evaluate", "runs/straight")
    measured = json.loads((project.folder / "runs/straight/test_metrics.json").read_text())
    assert measured.keys() == task.tested
    (record,) = mlflow_runs(project, "straight")
    assert {name: record["metrics"][name][0][1] for name in task.tested} == measured
    expression, wanted = task.predicts
    assert project.ask(expression) == wanted


@pytest.mark.parametrize(
    "task", [task for task in TASKS if task.name in ("regression", "language")], ids=lambda t: t.name
)
def test_the_answers_over_http_are_its_own(project: Project, task: Task) -> None:
    inputs, own = {
        "regression": ("torch.rand(5, 10)", "predict(run, inputs)"),
        "language": ("torch.randint(128, (5, 32))", "runengine.load(run).task(inputs)"),
    }[task.name]
    answers = project.ask(f"(lambda inputs: [inputs.tolist(), {own}.tolist()])({inputs})")
    with serving(project, "runs/straight") as port:
        body = json.dumps({"inputs": answers[0]}).encode()
        address, kind = f"http://127.0.0.1:{port}/invocations", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, body, kind), timeout=60) as reply:
            served = torch.tensor(json.loads(reply.read())["predictions"])
    torch.testing.assert_close(served, torch.tensor(answers[1]), rtol=1e-4, atol=1e-4)


@contextmanager
def serving(project: Project, run: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(project.folder / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "runengine", "serve", run, "--port", str(port)]
    log = (project.folder / "serve.txt").open("w")
    process = subprocess.Popen(command, cwd=project.folder, env=env, start_new_session=True, stdout=log, stderr=log)
    try:
        give_up_at = time.monotonic() + LONGEST_S
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, (project.folder / "serve.txt").read_text()
            assert time.monotonic() < give_up_at, (project.folder / "serve.txt").read_text()
            time.sleep(0.25)
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.parametrize("task", [TASKS[2]], ids=["segmentation"])
def test_the_exported_model_answers_like_its_own(project: Project, task: Task) -> None:
    answers = project.ask(
        "(lambda images, served: [(torch.from_numpy(served.predict(images.numpy())) > 0.5).tolist(),"
        " predict(run, images).tolist()])(torch.rand(7, 1, 16, 16),"
        " export(run) or __import__('mlflow').pyfunc.load_model(str(run.model)))"
    )
    assert answers[0] == answers[1]


def test_only_the_loader_of_the_engine_is_imported_by_a_task_or_its_data() -> None:
    for package in (Path(__file__).parent / "packages").iterdir():
        for name in ("task.py", "data.py", "ema.py"):
            if (package / name).exists():
                used = set(re.findall(r"runengine\.(\w+)", (package / name).read_text()))
                assert used <= {"loader"}, package / name
