"""A run that was stopped ends as if it had never been: whatever stopped it, and wherever it was."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HERE, SOURCE, STEPS, Killed, same, stopped, weights
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf
from pages import Server
from runengine import Run, UserError, compose, load_config
from runengine.runs.find import UNFINISHED
from runengine.runs.resolve import resolve_run
from runengine.settings import files
from runengine.settings.config import fill_in_prepared
from runengine.training import checkpoints, history
from runengine.training.checkpoints import AtomicCheckpointIO

Train = Callable[..., Run]
AtStep = Callable[..., None]
EPOCHS = "trainer.max_epochs=3"


def mlflow_record(run: Run) -> tuple[str, dict[str, list[int]]]:
    """Status, and the steps of each metric."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(load_config(run).experiment_name)
    assert experiment
    (record,) = client.search_runs([experiment.experiment_id])
    histories = {name: client.get_metric_history(record.info.run_id, name) for name in record.data.metrics}
    return record.info.status, {name: sorted(metric.step for metric in history) for name, history in histories.items()}


@pytest.mark.parametrize(("settings", "step"), [
    (["lr_scheduler=cosine"], 0),
    (["lr_scheduler=cosine"], STEPS - 2),
    (["lr_scheduler=cosine"], STEPS - 1),
    (["lr_scheduler=one_cycle"], STEPS + 1),  # it asks for the number of steps, for which loaders are made early
    (["lr_scheduler=plateau", "lr_scheduler.scheduler.patience=0", "+lr_scheduler.scheduler.threshold=0.9"], STEPS),
    (["data.num_workers=1", "optimizer=sgd"], STEPS + 1),
    (["trainer.accumulate_grad_batches=2"], STEPS // 2),
])  # fmt: skip
def test_a_run_stopped_at_any_step_equals_a_straight_run(
    run_training: Train, at_step: AtStep, settings: list[str], step: int
) -> None:
    straight = run_training(EPOCHS, *settings)
    at_step(step, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped(run_training, EPOCHS, *settings) == 75
    assert same(run_training(HERE), straight)


@pytest.fixture
def hangups() -> Iterator[None]:
    """As in a terminal: tests that were started by nohup inherit that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_marks_the_mlflow_run_and_continuing_ends_it(
    run_training: Train, at_step: AtStep, name: str, hangups: None, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGINT)
    at_step(STEPS + 1, lambda: signal.raise_signal(getattr(signal, name)))
    assert stopped(run_training, EPOCHS, "tracking=mlflow") == 75
    run = Run(Path("runs/x"))
    assert mlflow_record(run)[0] == "KILLED"
    assert not run.finished()
    assert "run_dir=runs/x" in run.log.read_text().splitlines()[-1]
    run_training(HERE)
    status, steps = mlflow_record(run)
    assert status == "FINISHED"
    assert steps["val/loss"] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_started_by_nohup_goes_on(run_training: Train, at_step: AtStep, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(STEPS + 1, lambda: signal.raise_signal(signal.SIGHUP))
        assert run_training(EPOCHS).finished()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_leaves_a_run_that_is_resumed(run_training: Train, hangups: None) -> None:
    straight = run_training("trainer.max_epochs=60")
    (batch_size,) = re.findall(r"^  batch_size: (\d+)", straight.config.read_text(), re.MULTILINE)
    typed = ["trainer=cpu", "tracking=off", f"trainer.limit_train_batches={STEPS}", f"data.batch_size={batch_size}"]
    command = [sys.executable, "-m", "ml_project.train", *typed, "trainer.max_epochs=60", HERE]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, command, environment)  # noqa: S606
    log = Run(Path("runs/x")).log
    while not (log.exists() and "epoch 3 of 60" in log.read_text()):
        os.read(terminal, 10000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    assert log.read_text().splitlines()[-1].endswith("stopped. Resume with: python -m ml_project.train run_dir=runs/x")
    assert len(Run(Path("runs/x")).history.read_text().splitlines()) < 50
    assert same(run_training(HERE), straight)


def test_a_signal_in_validation_stops_after_the_epoch(run_training: Train, at_step: AtStep) -> None:
    straight = run_training(EPOCHS)
    at_step(STEPS, lambda: signal.raise_signal(signal.SIGTERM), "validation_step")
    assert stopped(run_training, EPOCHS) == 75
    assert torch.load("runs/x/checkpoints/last.ckpt", weights_only=True)["global_step"] == STEPS
    assert same(run_training(HERE), straight)


def test_a_second_ctrl_c_stops_at_once(run_training: Train, at_step: AtStep) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(STEPS + 1, twice)
    assert stopped(run_training, EPOCHS, "tracking=mlflow") == 130
    assert mlflow_record(Run(Path("runs/x")))[0] == "KILLED"
    assert same(run_training(HERE), run_training(EPOCHS))


def test_a_row_that_was_sent_before_a_kill_is_not_sent_again(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = AtomicCheckpointIO.save_checkpoint

    def die_at_the_second_epoch(self: Any, checkpoint: dict[str, Any], path: Path, **options: Any) -> None:
        if checkpoint["epoch"] == 1 and Path(path).name == "last.ckpt":
            raise Killed
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(checkpoints, "EPOCHS_S", 0.0)
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", die_at_the_second_epoch)
    with pytest.raises(Killed):
        run_training(EPOCHS, HERE, "tracking=mlflow")
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    run = run_training(HERE)
    assert mlflow_record(run)[1]["val/loss"] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_checkpoints_by_steps(run_training: Train, at_step: AtStep) -> None:
    straight = run_training(EPOCHS)

    def crash() -> None:
        raise RuntimeError("as if killed")

    at_step(2 * STEPS - 1, crash)
    with pytest.raises(RuntimeError, match="as if killed"):
        run_training(EPOCHS, HERE, "checkpoint.every_n_steps=3")
    assert torch.load("runs/x/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert Path("runs/x/error.txt").read_text() == "RuntimeError: as if killed\n"
    assert same(run_training(HERE), straight)
    assert not Path("runs/x/error.txt").exists()


def test_early_stopping_keeps_its_patience_and_its_end(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("patience=2", "optimizer.lr=1e-12", "trainer.max_epochs=9", "model.dropout=0")
    straight = run_training(*settings)
    assert len(straight.history.read_text().splitlines()) < 9

    def die(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("ml_project.plots.learning_curve", die)  # training is over, the run is not yet finished
        with pytest.raises(Killed):
            run_training(HERE, *settings)
    assert not Run(Path("runs/x")).finished()
    assert same(run_training(HERE), straight)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(
    run_training: Train, at_step: AtStep
) -> None:
    at_step(STEPS + 1, lambda: torch.tensor(float("nan")))
    with pytest.raises(UserError) as error:
        run_training(EPOCHS, HERE, "checkpoint.every_n_steps=1")
    assert str(error.value) == (
        f"train/loss is nan at step {STEPS + 2}: training stops here. The last good checkpoint is "
        "runs/x/checkpoints/last.ckpt. Try a smaller optimizer.lr or trainer.gradient_clip_val=1; "
        "debug=anomaly names the operation it comes from."
    )
    assert Path("runs/x/error.txt").read_text() == f"{error.value}\n"
    assert torch.load("runs/x/checkpoints/last.ckpt", weights_only=True)["global_step"] == STEPS + 1
    assert all(value.isfinite().all() for value in weights(Run(Path("runs/x"))).values())


def test_a_folder_in_use_is_refused(run_training: Train, at_step: AtStep) -> None:
    run = run_training("trainer.max_epochs=1", HERE)
    script = (
        "import sys\nfrom runengine import compose\nfrom runengine.runs.open_run import open_run\n"
        "from runengine.runs.resolve import resolve_run\n"
        f"cfg = compose('train', ['{HERE}'])\n"
        "with open_run(*resolve_run(cfg)):\n    print('mine', flush=True)\n    sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as other:
        assert other.stdout
        while "mine" not in other.stdout.readline():
            assert other.poll() is None
        before = run.config.read_text()
        with pytest.raises(UserError) as error:
            run_training(HERE, "trainer.max_epochs=2")
        pattern = rf"runs/x is in use: process {other.pid} on \S+ trains there since \S+. Wait for it, stop it, or "
        assert re.match(pattern, str(error.value))
        assert run.config.read_text() == before
        with pytest.raises(UserError, match=r"^there is no unfinished run in "):
            run_training(f"run_dir={UNFINISHED}")
        other.kill()  # a lock dies with its process
    assert run_training(HERE, "trainer.max_epochs=2").finished()


def test_the_newest_unfinished_run_is_continued(run_training: Train, at_step: AtStep) -> None:
    run_training("trainer.max_epochs=1")
    at_step(1, lambda: signal.raise_signal(signal.SIGTERM))
    stopped(run_training, "trainer.max_epochs=1")
    run_training("trainer.max_epochs=1")
    assert run_training(f"run_dir={UNFINISHED}").folder == Path("runs/x")


def test_a_finished_run_is_left_as_it_is(run_training: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_training("trainer.max_epochs=1")
    before = run.last.read_bytes()
    run_training(f"run_dir={run.folder}")
    assert f"{run.folder} is finished. To train for longer: trainer.max_epochs=2" in capsys.readouterr().out
    assert run.last.read_bytes() == before


def test_a_schedule_that_has_ended_is_not_made_longer(run_training: Train) -> None:
    run_training("trainer.max_epochs=1", "lr_scheduler=cosine", HERE)
    with pytest.raises(UserError, match=r"was trained with other settings: trainer.max_epochs \(1, got 2\)"):
        run_training("trainer.max_epochs=2", HERE)


def test_a_half_copied_folder_is_refused(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=2", HERE)
    run.metrics.unlink()
    run.last.unlink()
    with pytest.raises(UserError, match=r"^runs/x is not complete: it has best.ckpt and 2 epochs of history, but no"):
        run_training(HERE)
    run.config.write_text("model: {")
    run.best.unlink()
    with pytest.raises(UserError, match=r"^runs/x/config.yaml is damaged"):
        run_training(HERE)
    run.config.unlink()
    run.best.touch()
    with pytest.raises(UserError, match=r"^runs/x is not the folder of a run: it has no config.yaml."):
        resolve_run(compose("train", [HERE]))


def test_a_damaged_configuration_is_made_again_by_the_command_that_is_named(workplace: Path, server: Server) -> None:
    def train(*settings: str) -> tuple[int, str]:
        return server.run(["-m", "ml_project.train", *settings, HERE], workplace, environment)

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PATH": path}
    short = ("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "tracking=off")
    assert train(*short, "optimizer.lr=0.004")[0] == 0
    run, history = Run(Path("runs/x")), Path("runs/x/history.csv").read_text()
    run.metrics.unlink()  # as if it had been killed
    before = run.config.read_text()
    run.config.write_text("")
    status, refused = train()
    assert status == 1
    sentence, command = refused.strip().split(" Make it again: ")
    assert sentence == "error: runs/x/config.yaml is damaged: it has no `trainer`."
    subprocess.run(command, shell=True, check=True, env=environment)  # noqa: S602
    made = OmegaConf.load(run.config)
    assert isinstance(made, DictConfig)
    fill_in_prepared(made)  # `--cfg` prints where a setting is read; the next start writes what is read
    assert OmegaConf.to_yaml(made) == before.replace("run_dir: null", "run_dir: runs/x")
    assert train()[0] == 0
    assert run.config.read_text() == before
    assert (run.history.read_text(), load_config(run).optimizer.lr) == (history, 0.004)

    assert train("trainer.max_epochs=2")[0] == 0
    run.config.write_text("")  # the first command would make that of one epoch
    assert train()[1].endswith("Copy it from the run's artifacts in MLflow, or train again.\n")


def test_settings_of_a_run_that_somebody_edited_are_checked_like_typed_ones(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", HERE)
    before = run.config.read_text()
    for key, value, sentence in [
        ("trainer.max_epochs", "six", "trainer.max_epochs must be a number >= 1, got 'six'."),
        ("trainer.max_epochs", None, "trainer.max_epochs must be a number >= 1, got None."),
        ("seed", -1, "seed must be >= 0 and <= 4294967295, got -1."),
        ("data.batch_size", [8], "data.batch_size must be a number >= 1, got [8]."),
        ("monitor.mode", "best", "monitor.mode must be min or max, got best."),
    ]:
        cfg = OmegaConf.create(before)
        OmegaConf.update(cfg, key, value)
        OmegaConf.save(cfg, run.config)
        with pytest.raises(UserError, match=rf"^runs/x/config.yaml: {re.escape(sentence)}$"):
            run_training("trainer.max_epochs=2", HERE)
    run.config.write_text(before)
    assert run_training("trainer.max_epochs=2", HERE).num_starts() == 2


def test_a_run_starts_from_the_weights_of_another(run_training: Train) -> None:
    first = run_training("trainer.max_epochs=2", "trainer.limit_train_batches=1.0")
    second = run_training("trainer.max_epochs=1", f"init_from={first.folder}", "optimizer.lr=1e-12", "model.dropout=0")
    one, other = torch.load(first.best, weights_only=True), weights(second)
    parameters = [name for name in other if "running" not in name and "num_batches" not in name]
    for name in parameters:
        torch.testing.assert_close(one["state_dict"][name], other[name])
    assert load_config(second).init_from == str(first.folder)
    with pytest.raises(UserError, match=r"^init_from=nothing is not a checkpoint. Give a file such as runs/"):
        run_training("init_from=nothing")
    with pytest.raises(UserError, match=r"best.ckpt is of another model: \d+ layers differ: model"):
        run_training(f"init_from={first.folder}", "model=mlp", "model.hidden=3")


def test_what_a_run_was_made_with_is_in_its_folder(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", HERE)
    run_training("trainer.max_epochs=2", HERE)
    assert run.num_starts() == 2
    assert '"torch"' in (run.folder / "environment.json").read_text()
    (run.folder / "environment.json").write_text('{"python": "3.1", "packages": {"torch": "0.1"}}')
    run_training("trainer.max_epochs=3", HERE)
    assert "this run was started with other versions: Python 3.1 -> 3." in run.log.read_text()


SMALL_FILES = """environment.json data.json starts.jsonl metrics.jsonl mlflow_run_id mlflow_sent.json unsent.json
    run.json history.csv metrics.json checkpoints/fingerprint.json uncommitted.diff error.txt""".split()  # noqa: SIM905
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "garbage": lambda content: b"\xff{]" + content[3:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_small_files_are_damaged_is_resumed(
    run_training: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """As a power cut leaves them. What is known in spite of it is in MLflow."""
    monkeypatch.setattr(files, "_said", set())
    run = run_training("trainer.max_epochs=1", HERE, "tracking=mlflow")
    run.error.write_text("as if it had failed\n")
    found = [run.folder / name for name in SMALL_FILES if (run.folder / name).exists()]
    assert len(found) > 8
    for file in found:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    run_training("trainer.max_epochs=2", HERE, "tracking=mlflow")
    assert run.finished()
    assert same(run, run_training("trainer.max_epochs=2"))
    printed = "".join(capsys.readouterr())
    for name in ("environment.json", "data.json"):
        assert printed.count(f"{name} is damaged: what it said is not known") == 1
    assert "other data" not in printed
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert client.get_run(str(run.mlflow_id())).info.status == "FINISHED"
    assert 2 * STEPS in [metric.step for metric in client.get_metric_history(str(run.mlflow_id()), "val/loss")]


def test_a_damaged_history_is_written_again_where_no_epoch_is_left(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=2", HERE)
    history = run.history.read_text()
    run.metrics.unlink()  # as if it had been killed after its last checkpoint
    run.history.write_bytes(DAMAGES["garbage"](run.history.read_bytes()))
    run_training(HERE)
    assert run.finished()
    assert run.history.read_text() == history


def test_rows_are_added_to_the_file_and_not_all_written_again(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write(file: Path, text: str) -> None:
        written.append(text)
        files.atomic_write(file, text)

    monkeypatch.setattr(history, "atomic_write", write)
    run = run_training("trainer.max_epochs=6", "+trainer.check_val_every_n_epoch=2", "monitor.metric=train/loss")
    text = run.history.read_text()
    assert [len(each.splitlines()) for each in written] == [2, 3, 7]  # the first; the first with `val`; at the end
    assert written[-1] == text
    rows = torch.load(run.last, weights_only=True)["callbacks"]["History"]["rows"]
    kept = [json.loads(line) for line in rows.splitlines()]
    assert [{name: str(value) for name, value in row.items()} for row in kept] == [
        {name: value for name, value in row.items() if value} for row in csv.DictReader(text.splitlines())
    ]


def test_rows_of_an_earlier_checkpoint_are_read(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=2")
    made = history.History(run, "val/loss", "min")
    state = torch.load(run.last, weights_only=True)["callbacks"]["History"]
    made.load_state_dict(state)
    rows = made.rows
    assert len(rows) == 2
    made.load_state_dict({**state, "rows": rows})
    assert (made.rows, made.state_dict()) == (rows, state)


def test_an_id_that_is_damaged_is_found_again(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", HERE, "tracking=mlflow")
    run_id = run.mlflow_id()
    run.mlflow_run_id.write_bytes(b"\0" * 33)
    run_training("trainer.max_epochs=2", HERE)
    assert run.mlflow_id() == run_id
    assert mlflow_record(run)[1]["val/loss"] == [STEPS, 2 * STEPS]


def test_a_run_is_not_resumed_on_other_data(run_training: Train, workplace: Path) -> None:
    """What it was trained on may be in the validation split by now."""
    run = run_training("trainer.max_epochs=1", HERE)
    split = workplace / "data/processed/split.json"
    before, known = split.read_text(), run.data.read_text()
    split.write_text(json.dumps({**json.loads(before), "split_seed": 99}))
    refused = (
        r"^runs/x was trained on other data: data/processed has changed since\. Bring back the data it was trained on, "
        r"leave run_dir out to start a new run, or resume with the new ones by allow_changes=true\.$"
    )
    with pytest.raises(UserError, match=refused):
        run_training("trainer.max_epochs=2", HERE)
    assert (run.num_starts(), run.data.read_text()) == (1, known)
    assert run.metrics.is_file()
    run_training("trainer.max_epochs=2", HERE, "allow_changes=true")
    assert "this run was started with other data: data/processed has changed since" in run.log.read_text()
    run_training("trainer.max_epochs=3", HERE)  # the new ones are its data now
    split.write_text(before)
    with pytest.raises(UserError, match=refused):
        run_training("trainer.max_epochs=4", HERE)


def test_a_pipeline_continues_its_run_and_starts_over_if_something_changed(
    run_training: Train, at_step: AtStep, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*settings: str) -> str:
        """Why it started over, if it did."""
        capsys.readouterr()
        run_training(HERE, "restart_if_changed=true", EPOCHS, *settings)
        found = re.search(r"^runs/x starts over: (.+)$", capsys.readouterr().out, re.MULTILINE)
        return found[1] if found else ""

    straight, run = run_training(EPOCHS), Run(Path("runs/x"))
    at_step(STEPS + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped(run_training, EPOCHS, "restart_if_changed=true") == 75
    assert trained() == ""
    assert same(run, straight)
    assert run.num_starts() == 2

    (run.folder / "test_metrics.json").touch()
    assert trained() == "it was finished"
    assert same(run, straight)
    assert run.num_starts() == 1
    assert not (run.folder / "test_metrics.json").exists()

    at_step(STEPS + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped(run_training, EPOCHS, "restart_if_changed=true") == 75
    assert trained("optimizer.lr=0.5") == "optimizer.lr changed"
    assert not same(run, straight)

    at_step(STEPS + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped(run_training, EPOCHS, "restart_if_changed=true", "seed=1") == 75
    split = Path("data/processed/split.json")
    split.write_text(split.read_text() + " ")
    assert trained("seed=1") == "the data changed"

    at_step(STEPS + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped(run_training, EPOCHS, "restart_if_changed=true") == 75
    run_training(HERE, "allow_changes=true", "optimizer.lr=0.5")  # by hand: made of both
    run.metrics.unlink()
    assert trained() == "what it holds is not complete"
    assert same(run, straight)
