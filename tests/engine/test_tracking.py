"""What MLflow and TensorBoard get, also when they fail: each metric once, and the training goes on."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import runengine
import torch
from conftest import HERE, SOURCE, weights
from ml_project import tables
from ml_project.evaluate import evaluate, per_class
from ml_project.predict import load, predict
from ml_project.prepare import prepare
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from omegaconf.errors import OmegaConfBaseException
from pages import Server
from PIL import Image
from runengine import Run, UserError, compose, find, load_config, save_model
from runengine.settings.check import check
from runengine.settings.errors import explain
from runengine.tracking import mlflow_client, registry, sender, sending
from runengine.tracking.local_store import local_artifacts
from runengine.tracking.mlflow_client import refuse_taken_port
from runengine.tracking.mlflow_sync import MlflowSync
from runengine.tracking.model_server import LimitedBody, Message, Receive, Send
from runengine.tracking.payload import read_rows, registered_name
from runengine.tracking.registry import champion, promote
from runengine.tracking.sync import note, sync
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

Train = Callable[..., Run]
PASSWORD = secrets.token_hex(8)  # in no file of this repository, whose changes a run keeps


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def history(run: Run, name: str) -> list[int]:
    """The steps of a metric in MLflow."""
    run_id = run.mlflow_run_id.read_text().strip()
    return [metric.step for metric in client().get_metric_history(run_id, name)]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """MLFLOW_TRACKING_URI names a port where nobody answers; called, the database is there again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        database = os.environ["MLFLOW_TRACKING_URI"]
        port = taken.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{PASSWORD}@127.0.0.1:{port}")
        yield lambda: monkeypatch.setenv("MLFLOW_TRACKING_URI", database)


@pytest.fixture
def answering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLFLOW_TRACKING_URI names a server that gives one answer to everything; its address."""
    status, body = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_training_goes_on_without_a_server_and_all_is_sent_later(
    run_training: Train, nobody: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = run_training("trainer.max_epochs=3", "tracking=server")
    said = (run.folder / "train.log").read_text()
    assert said.count("does not take this run (nobody answers there). Training continues;") == 1
    assert said.count("MLflow has not got everything of this run (nobody answers there). Send the rest: make sync") == 1
    assert PASSWORD not in "".join(file.read_text() for file in run.folder.glob("*.*") if file.suffix != ".png")
    assert run.finished()
    assert not run.mlflow_run_id.exists()
    assert json.loads((run.folder / "unsent.json").read_text())["status"] == "FINISHED"

    assert sync([run]) == 1
    evaluate(run)
    nobody()
    assert sync([run]) == 0
    assert not (run.folder / "unsent.json").exists()
    assert history(run, "val/loss") == [4, 8, 12]
    assert len(history(run, "test/loss")) == 1
    assert sync([run]) == 0
    assert history(run, "val/loss") == [4, 8, 12]
    sent = client().get_run(run.mlflow_run_id.read_text().strip())
    assert sent.info.status == "FINISHED"
    rows = read_rows(run)
    assert (sent.info.end_time, sent.info.run_name) == (rows[-1]["time_ms"], run.folder.name)


def test_a_run_that_was_not_sent_is_sent_when_it_is_continued(run_training: Train, nobody: Callable[[], None]) -> None:
    run = run_training("trainer.max_epochs=2", "tracking=server")
    nobody()
    run_training(f"run_dir={run.folder}", "trainer.max_epochs=3")
    assert history(run, "val/loss") == [4, 8, 12]
    assert not (run.folder / "unsent.json").exists()


def test_a_finished_run_that_was_not_sent_is_sent_when_it_is_started_again(
    run_training: Train, nobody: Callable[[], None]
) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=server")
    nobody()
    run_training(f"run_dir={run.folder}")
    assert history(run, "val/loss") == [4]
    assert not (run.folder / "unsent.json").exists()


def test_a_sweep_without_a_server_is_sent_later_with_its_runs(nobody: Callable[[], None], server: Server) -> None:
    def call(*words: str) -> str:
        status, printed = server.run(["-m", *words], Path.cwd(), {**os.environ, "PYTHONPATH": str(SOURCE)})
        assert status == 0, printed
        return printed

    typed = ["-m", "trainer=cpu", "trainer.limit_train_batches=2", "trainer.max_epochs=1", "seed=1,2"]
    call("ml_project.train", *typed)
    nobody()
    printed = call("runengine", "sync").splitlines()
    assert [line.rpartition(": ")[2] for line in printed] == ["sent"] * 3
    assert call("runengine", "sync") == "MLflow has everything\n"
    (parent,) = (file for file in Path("runs").rglob("mlflow_run_id") if Run(file.parent).is_sweep())
    (experiment,) = client().search_experiments(filter_string="name != 'Default'")
    children = client().search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.read_text()[:32]}'"
    )
    assert [child.info.status for child in children] == ["FINISHED"] * 2


@pytest.mark.parametrize("answering", [(401, b"no"), (403, b"no"), (404, b"no"), (200, b"<html>")], indirect=True)
def test_a_server_that_refuses_is_told_before_anything_is_written(
    run_training: Train, answering: str, request: pytest.FixtureRequest
) -> None:
    status = request.node.callspec.params["answering"][0]
    with pytest.raises(UserError) as error:
        run_training("tracking=server")
    if status in (401, 403):
        assert str(error.value) == (
            f"MLflow at {answering} refuses the user ada (status {status}). Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or train with tracking=off."
        )
    else:
        assert str(error.value) == (
            f"at {answering} something answers, but no MLflow server. Look at MLFLOW_TRACKING_URI, or train with "
            "tracking=off."
        )
    assert not Path("runs").exists()


@pytest.mark.parametrize("answering", [(500, b"broken")], indirect=True)
def test_a_server_that_is_broken_does_not_stop_a_training(run_training: Train, answering: str) -> None:
    assert run_training("trainer.max_epochs=1", "tracking=server").finished()


def test_settings_of_tracking_that_do_not_fit_get_one_sentence(
    monkeypatch: pytest.MonkeyPatch, run_training: Train
) -> None:
    with pytest.raises(UserError) as refused:
        check(compose("train", ["tracking=off", "register=true"]), "train")
    assert str(refused.value) == "register=true needs MLflow's registry. Leave out tracking=off."
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(OmegaConfBaseException) as error:
        check(compose("train", ["tracking=server"]), "train")
    assert explain(error.value) == (
        "tracking=server needs the address of the server. Set MLFLOW_TRACKING_URI=https://..., and "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, where it asks who you are."
    )


def test_a_killed_run_is_marked_by_sync(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    run.metrics.unlink()
    note(run, "RUNNING")
    with (run.folder / "metrics.jsonl").open("a") as rows:
        rows.write('{"time_ms": 1, "step"')  # killed while it wrote this
    assert sync([run]) == 0
    assert client().get_run(run.mlflow_run_id.read_text().strip()).info.status == "KILLED"
    assert sync([run]) == 0  # once more, though there is nothing to send
    assert client().get_run(run.mlflow_run_id.read_text().strip()).info.status == "KILLED"
    run_training(f"run_dir={run.folder}", "trainer.max_epochs=2")
    assert history(run, "val/loss") == [4, 8]


def test_what_a_kill_has_left_among_the_artifacts_is_removed(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    artifacts = LocalArtifactRepository(client().get_run(str(run.mlflow_id())).info.artifact_uri)
    parts = [Path(artifacts._create_staging_artifact("best.ckpt", folder)[1]) for folder in ("checkpoints", None)]
    assert all(part.exists() for part in parts)
    assert sync([run]) == 0
    assert not any(part.exists() for part in parts)


def test_a_clock_that_was_set_back_lets_no_run_end_before_its_start(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    rows = [json.loads(line) for line in run.metric_rows.read_text().splitlines()]
    day_ms = 24 * 3600 * 1000
    run.metric_rows.write_text("".join(json.dumps({**row, "time_ms": row["time_ms"] - day_ms}) + "\n" for row in rows))
    assert sync([run]) == 0
    info = client().get_run(str(run.mlflow_id())).info
    assert info.end_time == info.start_time


def test_a_run_that_was_killed_when_all_was_written_is_finished(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    client().set_terminated(run.mlflow_run_id.read_text().strip(), "RUNNING")
    note(run, "RUNNING")
    assert sync([run]) == 0
    assert client().get_run(run.mlflow_run_id.read_text().strip()).info.status == "FINISHED"


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
def test_a_project_that_was_copied_or_moved_takes_its_artifacts_along(
    run_training: Train, workplace: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    one = ["trainer.max_epochs=1", "tracking=mlflow"]
    first = run_training(*one, "register=true")
    promote(first)
    name = registered_name(load_config(first).experiment_name)
    there = workplace.with_name(f"{workplace.name} a copy's")
    shutil.copytree(workplace, there, ignore=shutil.ignore_patterns("*.lock"))
    before = sorted(workplace.rglob("*"))
    if moved:
        shutil.rmtree(workplace)
    monkeypatch.chdir(there)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{there.as_posix()}/mlflow.db")
    second = run_training(*one)
    for run in (first, second):
        recorded = client().get_run(str(Run(there / run.folder).mlflow_id()))
        assert str(recorded.info.artifact_uri).startswith((there / "mlruns").as_uri())
        names = {file.path for file in client().list_artifacts(recorded.info.run_id)}
        assert "config.yaml" in names
        assert ("model" in names) == (run is first)
    (version,) = client().search_model_versions(f"name = '{name}'")
    assert mlflow_client.mlflow_client(os.environ["MLFLOW_TRACKING_URI"]).get_model_version(name, version.version)
    assert load(f"models:/{name}@champion")
    assert sorted(workplace.rglob("*")) == ([] if moved else before)
    if not moved:
        store = f"sqlite:///{workplace.as_posix()}/mlflow.db"
        old = mlflow_client.mlflow_client(store).get_run(str(Run(there / first.folder).mlflow_id()))
        assert str(old.info.artifact_uri).startswith((workplace / "mlruns").as_uri())


class Slow(MlflowSync):
    """Has 10 answers to wait for, in all for longer than a run waits for one."""

    finished = ""

    def update(self, status: str = "RUNNING") -> None:
        for _ in range(10):
            time.sleep(0.6)
            self.answered_at = time.monotonic()

    def finish(self, status: str) -> None:
        self.finished = status


def test_the_end_of_a_run_waits_for_a_server_as_long_as_it_answers(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MlflowSync", Slow)
    monkeypatch.setattr(sending, "PATIENCE_S", {"FINISHED": (4, 60)})
    (workplace / "run").mkdir()
    run = sending.Sending(Run(workplace / "run"), "http://127.0.0.1:9")
    time.sleep(4.6)  # it has been asked for longer than 4 s when the run ends
    run.close("FINISHED")
    assert isinstance(run.sync, Slow)
    assert run.sync.finished == "FINISHED"


TRAINING = """
import sys, time
from ml_project.task import ImageClassifier
from ml_project.train import train
import runengine

def on_train_epoch_start(self):
    if self.current_epoch == 1:
        print("in the second epoch", flush=True)
        sys.stdin.readline()

ImageClassifier.on_train_epoch_start = on_train_epoch_start
typed = ["trainer=cpu", "trainer.limit_train_batches=2", "trainer.max_epochs=2", "model=mlp", *sys.argv[1:]]
run = train.start(runengine.compose("train", typed), typed)
assert "mlflow" not in sys.modules
"""


@dataclass
class Training:
    """A process that trains, and waits in its second epoch for a line; `sends` is the one that it has started."""

    process: subprocess.Popen[str]
    sends: psutil.Process
    run: Run


@pytest.fixture
def training() -> Iterator[Callable[..., Training]]:
    started: list[subprocess.Popen[str]] = []

    def start(*typed: str) -> Training:
        env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", TRAINING, HERE, *typed]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
        started.append(process)
        assert process.stdout
        while "in the second epoch" not in (line := process.stdout.readline()):
            assert line, "it ended"
        run = Run(Path("runs/x"))
        while not (run.mlflow_id() and history(run, "val/loss")):  # the first epoch is there
            assert process.poll() is None
            time.sleep(0.1)
        (sends,) = [each for each in psutil.Process(process.pid).children() if each.cmdline()[-1] == "send"]
        return Training(process, sends, run)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_training_does_not_import_mlflow(training: Callable[..., Training]) -> None:
    """It costs seconds and 200 MB; rows are sent while it trains, by another process, which ends with it."""
    one = training("tracking.system_every_s=0.05")
    output, _ = one.process.communicate("go on\n")
    assert one.process.returncode == 0, output
    assert not one.sends.is_running()
    assert history(one.run, "val/loss") == [2, 4]
    sent = client().get_run(str(one.run.mlflow_id()))
    assert sent.info.status == "FINISHED"
    assert "system/cpu_utilization_percentage" in sent.data.metrics


@pytest.mark.parametrize("workers", [0, 2])
def test_what_sends_ends_with_a_training_that_is_killed(training: Callable[..., Training], workers: int) -> None:
    one = training(f"data.num_workers={workers}")
    one.process.kill()
    one.sends.wait(timeout=30)
    assert sync([one.run]) == 0
    assert client().get_run(str(one.run.mlflow_id())).info.status == "KILLED"


def test_a_training_goes_on_without_what_sends(training: Callable[..., Training]) -> None:
    one = training()
    one.sends.kill()
    output, _ = one.process.communicate("go on\n")
    assert one.process.returncode == 0, output
    why = "MLflow has not got everything of this run (the process that sends it was ended). Send the rest: make sync"
    assert why in output
    assert one.run.finished()
    assert sync([one.run]) == 0
    assert history(one.run, "val/loss") == [2, 4]


def test_a_training_goes_on_where_nothing_more_can_be_started(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(sender, "_started", [])
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        patch.setattr("runengine.runs.provenance.git_state", dict)
        run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    assert "MLflow gets nothing while this runs: [Errno 11] Resource temporarily unavailable" in run.log.read_text()
    assert sync([run]) == 0
    assert history(run, "val/loss") == [4]


def test_a_request_whose_answer_was_lost_makes_no_second_run_and_no_second_metric(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=2", "tracking=mlflow")
    uri, run_id = os.environ["MLFLOW_TRACKING_URI"], run.mlflow_run_id.read_text()
    run.mlflow_run_id.unlink()
    MlflowSync(run, uri).finish("FINISHED")
    assert run.mlflow_run_id.read_text() == run_id
    twice = MlflowSync(run, uri)
    twice.run_id, twice._client, twice._known = run_id.strip(), client(), set()  # as if none had arrived
    twice.update()
    assert history(run, "val/loss") == [4, 8]


def test_what_mlflow_gets(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "tracking.system_every_s=0.05")
    evaluate(run)
    sent = client().get_run(run.mlflow_run_id.read_text().strip())
    assert sent.data.tags["command"].startswith("python ")
    assert sent.data.tags["run_dir"] == run.folder.as_posix()
    assert sent.inputs
    (dataset,) = sent.inputs.dataset_inputs
    version = json.loads((run.folder / "data.json").read_text())["data_split_sha256"]
    assert (dataset.dataset.name, dataset.dataset.digest) == ("data/processed", version[:36])
    assert {"best/val_loss", "speed/epoch_s", "system/cpu_utilization_percentage"} <= sent.data.metrics.keys()
    files = {file.path for file in client().list_artifacts(sent.info.run_id)}
    assert {"config.yaml", "environment.json", "per_class.csv", "worst_mistakes.png", "train.log"} <= files
    assert "model" not in files
    assert checkpoints_of(run) == {"best.ckpt"}


def checkpoints_of(run: Run) -> set[str]:
    """Those that MLflow has."""
    return {Path(file.path).name for file in client().list_artifacts(str(run.mlflow_id()), "checkpoints")}


def test_which_checkpoints_mlflow_gets_is_a_setting(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoints_of(run_training("trainer.max_epochs=1", "tracking=mlflow", "tracking.checkpoints=none")) == set()
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "tracking.checkpoints=all")
    assert checkpoints_of(run) == {"best.ckpt", "last.ckpt"}
    artifacts = local_artifacts(client(), str(run.mlflow_id()))
    assert artifacts
    sent = artifacts / "checkpoints/last.ckpt"
    assert sent.samefile(run.last)  # no second copy on this disk
    run_training(f"run_dir={run.folder}", "trainer.max_epochs=2")
    assert sent.samefile(run.last)

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)  # as on a file system that has no links
    for file in (sent, run.mlflow_sent):
        file.unlink()
    assert sync([run]) == 0
    assert not sent.samefile(run.last)
    assert sent.read_bytes() == run.last.read_bytes()
    assert sorted(file.name for file in sent.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    with pytest.raises(UserError, match=r"^tracking\.checkpoints must be all, best or none, got some\.$"):
        check(compose("train", ["tracking.checkpoints=some"]), "train")


def test_long_settings_are_whole_in_the_artifact(run_training: Train) -> None:
    long = "x" * 7000
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", f"+note={long}")
    sent = client().get_run(run.mlflow_run_id.read_text().strip())
    assert sent.data.params["note"] == long[:6000]
    assert long in run.config.read_text()


def test_tensorboard_gets_curves_and_when_asked_graph_and_histograms(run_training: Train) -> None:
    plain = run_training("trainer.max_epochs=2", "tracking.tensorboard=true")
    asked = run_training("trainer.max_epochs=2", "tracking.tensorboard=true", "tracking.tensorboard_details=true")
    for run, details in ((plain, False), (asked, True)):
        events = EventAccumulator(str(run.folder / "tensorboard"))
        events.Reload()
        tags = events.Tags()
        assert [event.step for event in events.Scalars("val/loss")] == [4, 8]
        assert (bool(tags["histograms"]), tags["graph"]) == (details, details)
    assert all(torch.equal(weights(plain)[name], weights(asked)[name]) for name in weights(plain))


def test_a_promoted_model_loads_without_this_package_and_agrees(run_training: Train, tmp_path: Path) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "register=true")
    experiment = load_config(run).experiment_name
    (version,) = client().search_model_versions(f"name = '{registered_name(experiment)}'")
    assert version.run_id == run.mlflow_run_id.read_text().strip()
    assert promote(run) == 1
    shutil.rmtree(run.model)  # it is exported again
    assert promote(find(version.run_id)) == 1
    images = Path("data/processed/val_images.npy")
    by_run, by_champion = (predict(load(name), [images]) for name in (str(run.folder), champion(experiment)))
    assert list(by_run["class"]) == list(by_champion["class"])
    assert list(by_run["probability"]) == pytest.approx(list(by_champion["probability"]), abs=1e-5)

    program = (
        "import sys, mlflow, numpy as np\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "answers = model.predict(np.load(sys.argv[2]))\n"
        "assert 'ml_project' not in sys.modules\n"
        "print(*answers.argmax(1))"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", program, str((run.folder / "model").absolute()), str(images.absolute())]
    printed = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=True).stdout
    assert [int(label) for label in printed.split()] == list(by_run["label"])


def test_a_promoted_model_is_served_by_the_command_that_is_named(
    run_training: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "experiment_name=other")
    monkeypatch.setattr(sys, "argv", ["runengine", "promote", str(run.folder)])
    registry.main()
    assert capsys.readouterr().out.endswith('serve it     make serve ARGS="--experiment other"\n')
    monkeypatch.setattr(sys, "argv", ["runengine", "serve", "--port", "0"])
    with pytest.raises(UserError) as refused:
        registry.main()
    assert str(refused.value) == (
        "no model of ml_project-digits has been promoted yet. Run: make promote, or: make serve "
        'ARGS="--experiment other"'
    )
    served: list[str] = []

    def ends_at_once(*command: str, **_: str) -> int:
        served.extend(command)
        return 0

    monkeypatch.setattr(mlflow_client, "run_python", ends_at_once)
    monkeypatch.setattr(sys, "argv", ["runengine", "serve", "--experiment", "other", "--port", "0"])
    with pytest.raises(SystemExit, match=r"^0$"):
        registry.main()
    assert "models:/ml_project-other@champion" in served


def test_a_model_of_a_table_takes_rows_as_they_are_in_the_file(run_training: Train) -> None:
    rows = [f"{number},{number % 7},{'high' if number > 25 else 'low'}" for number in range(50)]
    Path("table.csv").write_text("\n".join(["size,age,label", *rows]))
    prepare(
        Path("data/table"), partial(tables.from_csv, "table.csv", "label", []),
        split_seed=0, val_fraction=0.2, test_fraction=0.2,
    )  # fmt: skip
    fit = ("data=table", "model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    run = run_training(*fit, "tracking=mlflow", "data.batch_size=8")
    promote(run)
    evaluate(run)
    assert not (run.folder / "worst_mistakes.png").exists()
    names = (str(run.folder), champion(load_config(run).experiment_name))
    by_run, by_champion = (predict(load(name), [Path("table.csv")]) for name in names)
    assert len(by_run) == 50
    assert set(by_run["class"]) <= {"high", "low"}
    assert list(by_run["probability"]) == pytest.approx(list(by_champion["probability"]), abs=1e-5)


class Fickle(nn.Module):
    """Its path depends on the values it gets, which torch.export cannot follow."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        flat = images_BCHW.flatten(1)
        return flat if flat.sum() > 0 else -flat


def test_a_model_that_cannot_be_exported_is_pickled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import mlflow

    images = torch.rand((4, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    save_model(Run(tmp_path), Fickle(), images, {"classes": ["a", "b", "c", "d"]})
    assert "torch.export cannot take the model (" in caplog.text
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert loaded.metadata.metadata == {"classes": ["a", "b", "c", "d"]}
    for given in (images, -images):  # on both paths
        assert loaded.predict(given.numpy()) == pytest.approx(images.flatten(1).numpy())


def test_what_cannot_be_promoted_gets_one_sentence(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1")
    with pytest.raises(
        UserError, match=r"was trained with tracking=off: MLflow does not know it. Train with tracking="
    ):
        promote(run)
    run.metrics.unlink()
    with pytest.raises(UserError, match=r"is not finished. Run: python -m \S+ run_dir="):
        promote(run)
    with pytest.raises(UserError, match=r"no run in runs/ has the MLflow id 0{32}. Give the folder of a run."):
        find("0" * 32)
    with pytest.raises(UserError, match=r"has no models:/\S+@champion. Run: make promote"):
        load(champion("digits"))
    with pytest.raises(UserError, match=r"^x.ckpt does not exist. Give a checkpoint, or the folder of a run.$"):
        load("x.ckpt")


def test_a_folder_of_images_becomes_a_table(run_training: Train, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    model = load(str(run_training("trainer.max_epochs=1").folder))
    for name in ("b/2.png", "a.PNG", "b/1.jpg"):
        file = Path("photos", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 128).save(file)
    Path("photos/notes.txt").touch()
    answers = predict(model, [Path("photos")])
    assert [Path(file).as_posix() for file in answers["file"]] == ["photos/a.PNG", "photos/b/1.jpg", "photos/b/2.png"]
    for name, read in (("table.csv", pd.read_csv), ("table.parquet", pd.read_parquet)):
        runengine.write_table(answers, Path(name))
        pd.testing.assert_frame_equal(read(name).astype(answers.dtypes), answers)
    capsys.readouterr()
    runengine.write_table(answers, None)
    printed = capsys.readouterr().out.split("\n")
    first = answers.iloc[0]
    assert printed[:1] == ["file,index,label,class,probability"]
    assert printed[1] == f"{first['file']},0,{first['label']},{first['class']},{first['probability']:.6g}"
    assert printed[4:] == [""]
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no images \(.*\.png"):
        predict(model, [Path("empty")])


def test_addresses_are_shown_without_passwords() -> None:
    assert mlflow_client.without_password("postgresql://ada:p@ss@host/runs?password=x") == "postgresql://host/runs"
    assert mlflow_client.without_password("sqlite:///mlflow.db") == "sqlite:///mlflow.db"


def test_the_table_of_classes() -> None:
    rows = per_class(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["cat", "dog", "fox"])
    assert list(rows.columns) == ["class", "images", "precision", "recall", "f1"]
    assert list(rows.itertuples(index=False, name=None)) == [
        ("cat", 2, 1.0, 0.5, pytest.approx(2 / 3)),
        ("dog", 2, pytest.approx(2 / 3), 1.0, 0.8),
        ("fox", 0, 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("port", "sentence"),
    [
        (65536, "port 65536 of 127.0.0.1 cannot be taken: bind(): port must be 0-65535. Take another: PORT=5005"),
        (None, "port {port} of 127.0.0.1 cannot be taken: Address already in use. Take another: PORT={next}"),
    ],
)
def test_a_port_that_cannot_be_taken_is_refused_before_anything_is_loaded(port: int | None, sentence: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = port or other.getsockname()[1]
        with pytest.raises(UserError, match=re.escape(sentence.format(port=taken, next=taken + 1))):
            refuse_taken_port("127.0.0.1", taken)


def test_a_body_is_kept_up_to_its_limit_and_the_rest_is_read_and_refused() -> None:
    seen: list[bytes] = []
    sent: list[Any] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append((await receive())["body"])

    async def ask(*parts: bytes) -> None:
        waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        waiting.append({"type": "http.request"})

        async def receive() -> Message:
            return waiting.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        await LimitedBody(app, max_mb=1)({"type": "http"}, receive, send)
        assert not waiting

    asyncio.run(ask(bytes(400_000), b"1" * 600_000))
    assert seen == [bytes(400_000) + b"1" * 600_000]
    asyncio.run(ask(bytes(400_000), bytes(600_001), b"1"))
    assert len(seen) == 1
    assert [sent[0]["status"], sent[1]["body"][:34]] == [413, b"the request is larger than 1 MB. S"]
