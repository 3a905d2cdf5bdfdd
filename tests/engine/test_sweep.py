"""Sweeps: every run is started, counted and recorded once, whatever happens to the others or to the sweep itself."""

from __future__ import annotations

import csv
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import optuna
import pytest
from conftest import SOURCE
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from mlflow import MlflowClient
from omegaconf import OmegaConf
from runengine import Run, compose
from runengine.compat import composing_once, hydra_defaults, open_trial
from runengine.runs import provenance
from runengine.runs.lock import locked
from runengine.settings import project
from runengine.sweeps.results import Job, print_table, write_csv
from runengine.sweeps.search import STUDY, Search, storage
from runengine.sweeps.seeds import summarize
from scipy import stats

Start = Callable[..., int]
TRAIN = "ml_project.train"
SHORT = ("trainer=cpu", "trainer.limit_train_batches=2", "trainer.max_epochs=2", "tracking=off")
ONLY_SEED = (  # a search that fits every model
    "search=default",
    *(f"search.space.{key}=null" for key in compose("train", ["search=default"]).search.space),
    "+search.space.seed={low:0,high:1000}",
)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """`python -m ml_project.train ...` in this process; returns the exit status."""

    def main(*typed: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train", *typed])
        try:
            monkeypatch.delitem(sys.modules, TRAIN, raising=False)
            runpy.run_module(TRAIN, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return main


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were started in this process, in this order."""
    names: list[str] = []
    write = provenance.write

    def record(run: Run, data: Path | None, *, diff: bool) -> None:
        names.append(run.folder.name)
        write(run, data, diff=diff)

    monkeypatch.setattr(provenance, "write", record)
    return names


def the_sweep() -> Path:
    (folder,) = Path("runs").glob("*/sweep-*")
    return folder


def table(folder: Path, name: str = "sweep.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_grid_is_one_folder_one_table_and_one_parent_in_mlflow(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("-m", *SHORT, "tracking=mlflow", "optimizer.lr=0.001,0.01", "seed=range(2)") == 0
    folder = the_sweep()
    rows = table(folder)
    assert [(row["run"], row["optimizer.lr"], row["seed"]) for row in rows] == [
        ("000", "0.001", "0"), ("001", "0.001", "1"), ("002", "0.01", "0"), ("003", "0.01", "1"),
    ]  # fmt: skip
    for row in rows:
        run = Path(row["run_dir"])
        assert run == folder / row["run"]
        assert row["state"] == "finished"
        assert float(row["val/loss"]) == json.loads((run / "metrics.json").read_text())["val/loss"]
        assert float(row["optimizer.lr"]) == OmegaConf.load(run / "config.yaml").optimizer.lr

    best = min(rows, key=lambda row: float(row["val/loss"]))
    printed = capsys.readouterr().out
    assert f"optimizer.lr={best['optimizer.lr']} seed={best['seed']}\n" in printed.split("train the best again: ")[1]

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    parent = client.get_run((folder / "mlflow_run_id").read_text().strip())
    assert parent.info.status == "FINISHED"
    assert parent.data.params["optimizer.lr"] == "0.001,0.01"
    assert parent.data.metrics["val/loss"] == pytest.approx(float(best["val/loss"]))
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["sweep.csv", "sweep.yaml"]
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_id for child in children} == {
        Path(row["run_dir"], "mlflow_run_id").read_text().strip() for row in rows
    }
    assert all("run_dir=" in child.data.tags["command"] and " -m " not in child.data.tags["command"][9:]
               for child in children)  # fmt: skip


@pytest.mark.parametrize("jobs", [
    (("seed=0", "run_dir='a b'"), ("seed=1", "run_dir='a c'")),
    (("model=mlp", "optimizer.lr=0.1"), ("model=cnn", "optimizer.lr=0.1"), ("model=mlp", "optimizer.lr=1e-3")),
    (("optimizer=sgd", "optimizer.momentum=0.5", "tags=[a]"), ("optimizer=sgd", "optimizer.momentum=0.6", "tags=[]")),
    (("experiment=smoke", "name=x", "data.num_workers=null"), ("experiment=smoke", "name='1, 2'")),
    (("+data.own=1", "seed=2"), ("+data.own=[1,{b:2}]", "seed=3"), ("~experiment_name", "seed=3")),
    (("tracking=off", "model.dropout=${oc.env:HOME}"), ("tracking=off", "hydra.verbose=true", "seed=1")),
])  # fmt: skip
def test_the_settings_of_each_run_are_those_that_hydra_composes(jobs: tuple[tuple[str, ...], ...]) -> None:
    with hydra.initialize_config_dir(str(project.current().conf), **hydra_defaults()):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", ["launch=local", "seed=7"], RunMode.MULTIRUN)
        context = composing_once(HydraContext(loader, Callbacks()), master)
        for job in (*jobs, *jobs):
            known = loader.load_sweep_config(master, list(job))
            found = context.config_loader.load_sweep_config(master, list(job))
            assert OmegaConf.to_container(found) == OmegaConf.to_container(known)
            found.seed, found.hydra.job.num = 99, 3  # a run may change its own
            assert OmegaConf.is_struct(found) == OmegaConf.is_struct(known)
        for wrong in (["optimizer.lt=1"], ["optimizer=adam"], ["seed=1", "seed.a=1"]):
            with pytest.raises(HydraException) as known_error:
                loader.load_sweep_config(master, wrong)
            with pytest.raises(type(known_error.value)) as error:
                context.config_loader.load_sweep_config(master, wrong)
            assert str(error.value) == str(known_error.value)


def test_files_of_settings_are_read_as_often_for_many_runs_as_for_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, compose_by_hydra = [], ConfigLoaderImpl.load_configuration

    def count(self: ConfigLoaderImpl, *arguments: object, **options: object) -> object:
        composed.append(arguments)
        return compose_by_hydra(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", count)
    counts = []
    for seeds in ("0", "0", "range(4)"):  # the first time the types of the defaults are looked up, too
        composed.clear()
        assert start("-m", *SHORT, "trainer.max_epochs=1", f"seed={seeds}") == 0
        counts.append(len(composed))
    assert counts[0] >= counts[1] == counts[2]


def test_a_run_that_fails_is_told_and_the_others_finish(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_in_001(run: Run, data: Path | None, *, diff: bool) -> None:
        if run.folder.name == "001":
            raise RuntimeError("no luck\nat all")

    monkeypatch.setattr(provenance, "write", fail_in_001)
    assert start("-m", *SHORT, "data.folder=data/processed,nowhere", "seed=1,2") == 1
    folder = the_sweep()
    assert [row["state"] for row in table(folder)] == ["finished", "failed", "failed", "failed"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: run")]
    assert errors[0] == f"error: run 001: RuntimeError: no luck at all See {folder}/001/train.log"
    assert [line.partition(" does not exist")[2] != "" for line in errors[1:]] == [True, True]
    assert 'raise RuntimeError("no luck' in (folder / "001/error.txt").read_text()


def test_a_sweep_that_was_stopped_goes_on_and_repeats_nothing(
    start: Start, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = provenance.write

    def stop_at_001(run: Run, data: Path | None, *, diff: bool) -> None:
        if run.folder.name == "001":
            os.kill(os.getpid(), signal.SIGTERM)
        record(run, data, diff=diff)

    with monkeypatch.context() as patch:
        patch.setattr(provenance, "write", stop_at_001)
        assert start("-m", *SHORT, "optimizer.lr=0.001,0.01,0.1") == 75
    folder = the_sweep()
    assert f"train sweep_dir={folder}\n" in capsys.readouterr().out
    assert [row["state"] for row in table(folder)] == ["finished", "unfinished", "unfinished"]

    assert start(f"sweep_dir={folder}", "optimizer.lr=0.5") == 1
    assert f"error: {folder} was started without optimizer.lr=0.5: " in capsys.readouterr().err
    assert start(f"sweep_dir={folder}") == 0
    assert trained == ["000", "001", "002"]
    assert [row["state"] for row in table(folder)] == ["finished"] * 3
    assert start(f"sweep_dir={folder}") == 0
    assert trained == ["000", "001", "002"]


def test_seeds_are_summarized(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(*SHORT, "seed=5", "seeds=3") == 0
    folder = the_sweep()
    seeds = [OmegaConf.load(file).seed for file in sorted(folder.glob("*/config.yaml"))]
    assert seeds == [5, 6, 7]
    values = np.array([json.loads(file.read_text())["test/accuracy"] for file in folder.glob("*/test_metrics.json")])
    row = next(row for row in table(folder, "seeds.csv") if row["metric"] == "test/accuracy")
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    wanted = {"mean": values.mean(), "std": values.std(ddof=1), "95 % from": low, "95 % to": high,
              "least": values.min(), "greatest": values.max(), "seeds": 3}  # fmt: skip
    assert {key: float(row[key]) for key in wanted} == pytest.approx(wanted)
    assert f"{values.mean():.4f}" in capsys.readouterr().out


def test_an_interval_of_the_mean_is_students() -> None:
    # by hand: mean 2, deviation 1, t(2 degrees of freedom) 4.3027, 4.3027 / sqrt(3) = 2.4841
    summary = summarize([1.0, 2.0, 3.0])
    assert (summary["mean"], summary["std"]) == (2, 1)
    assert summary["95 % to"] - 2 == pytest.approx(2.4841, abs=1e-4)
    assert np.isnan(summarize([1.0])["95 % to"])


def kill_in_run(name: str, *typed: str) -> Path:
    """Start a sweep in a process of its own, and kill it as soon as this run of it has begun: the sweep's folder."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with Path("said.txt").open("w") as said:
        killed = subprocess.Popen([sys.executable, "-m", TRAIN, *typed], env=environment, stdout=said, stderr=said)
    until = time.monotonic() + 300
    while not list(Path("runs").glob(f"*/sweep-*/{name}/train.log")):
        assert killed.poll() is None, Path("said.txt").read_text()
        assert time.monotonic() < until, Path("said.txt").read_text()
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    return the_sweep()


def test_a_search_that_was_killed_goes_on_as_if_nothing_had_happened(start: Start, trained: list[str]) -> None:
    typed = [*SHORT, "trainer.max_epochs=3", *ONLY_SEED, "search.trials=4"]
    folder = kill_in_run("001", *typed)
    with (folder / "optuna.log").open("ab") as file:
        file.write(b'{"half of')  # what a power cut leaves

    assert start(f"sweep_dir={folder}") == 0
    assert trained in (["001", "002", "003"], ["002", "003"])  # 001 may have been faster than the signal
    trials = optuna.load_study(study_name=STUDY, storage=storage(folder / "optuna.log")).trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    rows = table(folder)
    assert [trial.value for trial in trials] == pytest.approx([float(row["val/loss"]) for row in rows])

    folder.rename("killed")
    assert start(*typed) == 0
    assert [row["seed"] for row in table(the_sweep())] == [row["seed"] for row in rows]

    assert start(f"sweep_dir={the_sweep()}", "search=default", "search.trials=5") == 0
    assert len(table(the_sweep())) == 5


def test_a_search_by_the_mean_of_seeds_that_was_killed_trains_no_run_twice(
    start: Start, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [*SHORT, "search=default", "search.space.model=null", "search.trials=3", "seeds=2", "seed=7"]
    pruning = ["search.pruning_after_trials=1", "search.pruning_after_epochs=0"]  # none is stopped early all the same
    folder = kill_in_run("003", *typed, *pruning)  # the second run of the second trial
    assert start(f"sweep_dir={folder}") == 0
    assert trained in (["003", "004", "005"], ["004", "005"])  # 003 may have been faster than the signal

    settings = [OmegaConf.load(folder / f"{number:03d}/config.yaml") for number in range(6)]
    assert [cfg.seed for cfg in settings] == [7, 8, 7, 8, 7, 8]
    losses = [json.loads((folder / f"{number:03d}/metrics.json").read_text())["val/loss"] for number in range(6)]
    means = [np.mean(losses[first : first + 2]) for first in (0, 2, 4)]
    trials = optuna.load_study(study_name=STUDY, storage=storage(folder / "optuna.log")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert [trial.value for trial in trials] == pytest.approx(means)
    assert [trial.params["optimizer.lr"] for trial in trials] == [cfg.optimizer.lr for cfg in settings[::2]]

    rows = table(folder, "seeds.csv")
    assert [float(row["mean"]) for row in rows] == pytest.approx(sorted(means))
    assert [int(row["trial"]) for row in rows] == np.argsort(means).tolist()
    assert {(row["metric"], row["seeds"]) for row in rows} == {("val/loss", "2")}
    assert len(table(folder)) == 6
    assert not list(folder.glob("*/test_metrics.json"))  # a search must not look at the test split
    printed = capsys.readouterr().out
    best = int(np.argmin(means))
    (again,) = [line for line in printed.splitlines() if line.startswith("train the best again")]
    assert again.endswith(f" seed=7 optimizer.lr={trials[best].params['optimizer.lr']} seeds=2")
    assert f"  {means[best]:.4f}  " in printed

    folder.rename("killed")
    assert start(*typed, *pruning) == 0
    assert [row["optimizer.lr"] for row in table(the_sweep(), "seeds.csv")] == [row["optimizer.lr"] for row in rows]
    assert start(f"sweep_dir={the_sweep()}", "seeds=3") == 1
    assert start(f"sweep_dir={the_sweep()}", "search=default", "search.trials=4") == 0
    assert len(table(the_sweep())) == 8


def test_a_trial_of_seeds_that_lacks_a_run_has_no_mean(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = provenance.write

    def fail_in_001(run: Run, data: Path | None, *, diff: bool) -> None:
        if run.folder.name == "001" and not (run.folder.parent / "002").exists():
            raise RuntimeError("no luck")
        write(run, data, diff=diff)

    monkeypatch.setattr(provenance, "write", fail_in_001)
    typed = [*SHORT, "search=default", "search.space.model=null", "search.trials=2", "seeds=2"]
    assert start(*typed) == 1
    folder = the_sweep()
    assert [(row["trial"], row["seeds"], row["mean"] != "") for row in table(folder, "seeds.csv")] == [
        ("1", "2", True), ("0", "1", False),
    ]  # fmt: skip
    assert start(f"sweep_dir={folder}") == 0
    study = optuna.load_study(study_name=STUDY, storage=storage(folder / "optuna.log"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


def test_a_trial_worse_than_the_others_is_stopped(run_training: Callable[..., Run], tmp_path: Path) -> None:
    cfg = compose("train", [*ONLY_SEED, "search.pruning_after_trials=1", "search.pruning_after_epochs=1"])
    search = Search(Run(tmp_path), cfg.search, ["trainer.max_epochs=4"])
    batches = search.batches()
    (good,) = next(batches)
    trial, _ = open_trial(search.study, 0)
    for epoch in range(4):
        trial.report(0.0, epoch)
    (good.folder / "metrics.json").write_text('{"val/loss": 0.0}')

    (job,) = next(batches)
    run = run_training(*job.overrides, f"run_dir={job.folder}")
    assert len(table(run.folder, "history.csv")) == 2
    assert Job(run.folder).state == "pruned"
    next(batches)
    assert [trial.state.name for trial in search.study.trials] == ["COMPLETE", "PRUNED", "RUNNING"]


def test_two_processes_at_once(start: Start) -> None:
    assert start("-m", *SHORT, "launch=joblib", "optimizer.lr=0.001,0.01,0.1") == 0
    assert [row["state"] for row in table(the_sweep())] == ["finished"] * 3


MISTAKES = {
    "seeds=0": "seeds must be an integer >= 1, got 0. Try seeds=5.",
    "seeds=few": "seeds must be an integer >= 1, got few. Try seeds=5.",
    "seeds=0 search=default": "seeds must be an integer >= 1, got 0. Try seeds=5.",
    "seeds=2 search=default +search.space.seed={low:0,high:9}": "search.space.seed and seeds=... exclude each other.",
    "seeds=2 run_dir=x": "run_dir is not for sweeps, which make a folder for each run. Leave it out.",
    "sweep_dir=data": "data is not the folder of a sweep: it has no sweep.yaml. Look into runs/.",
    "-m optimizer.lr=0.1,fast": "optimizer.lr must be a number such as ",
    "-m seed=1,2 search=default": "search and lists of values exclude each other.",
    "search=default +search.space.model.x={low:0,high:1}": "search.space names model.x, which is not a setting here.",
    "search=default search.space.optimizer.lr.low=0": "search.space.optimizer.lr must have low and high, or choices: ",
    "search=default model=cnn +search.space.seed={low:-1,high:1}": "seed must be >= 0 and <= 4294967295, got -1.",
    "search=default model=cnn +search.space.seed={low:0,high:1} seed=3": "seed is chosen by the search. Leave it out",
    "search=default search.sampler=best": "search.sampler must be one of tpe, random, got best.",
    "search=default monitor.mode=down": "monitor.mode must be min or max, got down.",
    "search=default search.trials=0": "search.trials must be >= 1, got 0.",
}


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES.items())
def test_a_mistake_gets_one_sentence_and_nothing_is_started(
    start: Start, capsys: pytest.CaptureFixture[str], typed: str, sentence: str
) -> None:
    assert start(*typed.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sentence}")
    assert not Path("runs").exists()


def test_a_search_by_a_metric_that_is_not_there_gives_up(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(*SHORT, *ONLY_SEED, "monitor.metric=val/acc", "search.trials=10") == 1
    assert [row["state"] for row in table(the_sweep())] == ["failed"] * 3
    said = (
        "monitor.metric is val/acc, but the task has logged train/accuracy, train/loss, val/accuracy, val/loss. Log it"
    )
    assert said in capsys.readouterr().err


def test_one_process_at_a_time_hands_out_the_runs_of_a_sweep(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("-m", *SHORT, "trainer.max_epochs=1", "seed=1,2") == 0
    folder = the_sweep()
    capsys.readouterr()
    with locked(Run(folder)):
        assert start(f"sweep_dir={folder}") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder} is in use: process {os.getpid()} on ")
    assert said.endswith("Wait for it, stop it, or leave sweep_dir out to start a new sweep.\n")


def test_a_table_has_every_digit_in_the_file_and_few_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"run": "000", "loss": 0.1 + 0.2, "lr": "0.00123456789", "seeds": 3}, {"run": "001", "loss": math.nan}]
    columns = ["run", "loss", "lr", "seeds"]
    write_csv(tmp_path / "x.csv", columns, rows)
    assert (tmp_path / "x.csv").read_text().splitlines() == [
        "run,loss,lr,seeds", "000,0.30000000000000004,0.00123456789,3", "001,nan,,",
    ]  # fmt: skip
    print_table(columns, rows)
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert cells == [columns, ["000", "0.3000", "0.001235", "3"], ["001", "nan"]]
    print_table(columns, rows * 15, tmp_path / "x.csv")
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (22, f"... and 10 more in {tmp_path / 'x.csv'}")
    print_table(columns, [])
    assert capsys.readouterr().out == ""
