"""Runs by name, the list of runs, and the deletion of old ones, here and in MLflow."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import ViewType
from omegaconf import OmegaConf
from runengine import Run, UserError, find
from runengine.list_runs import DELETED, entries, main
from runengine.runs.find import find_checkpoint, name_of, with_folder
from runengine.runs.resolve import new_name
from runengine.settings.check import check
from runengine.settings.config import compose
from runengine.tracking.mlflow_client import mlflow_client
from runengine.tracking.registry import promote

Train = Callable[..., Run]


def pretend(name: str, loss: float | None, *, minutes: int, sweep: bool = False, mode: str = "min") -> Run:
    """A run that was started so many minutes after the first one; finished if it has a loss."""
    run = Run(Path("runs/digits") / name)
    run.checkpoints.mkdir(parents=True)
    monitor, off = {"metric": "val/loss", "mode": mode}, {"mlflow_uri": None}
    settings = {"experiment_name": "digits", "trainer": {}, "monitor": monitor, "tracking": off}
    OmegaConf.save(OmegaConf.create(settings), run.config)
    run.best.write_bytes(b"0" * 1000)
    run.starts.write_text("{}\n")
    if loss is not None:
        run.metrics.write_text(json.dumps({"val/loss": loss, "epoch": 2, "step": 30}))
    if sweep:
        run.folder.parent.joinpath(Run.sweep.name).write_text("")
    for file in (run.folder.parent if sweep else run.folder).rglob("*"):
        os.utime(file, (1e9 + 60 * minutes, 1e9 + 60 * minutes))
    return run


def stamp(day: int) -> str:
    return f"202611{day:02}-101112.131415"


@pytest.fixture
def three() -> tuple[Run, Run, Run]:
    return (
        pretend(f"{stamp(1)}-wide-0a1b2c", 0.1, minutes=1),
        pretend(f"{stamp(2)}-0a1b2c", 0.3, minutes=2),
        pretend(f"{stamp(3)}-0a1b2c", None, minutes=3),
    )


def test_a_checkpoint_is_that_of_its_run(three: tuple[Run, Run, Run]) -> None:
    wide, *_ = three
    wide.last.write_bytes(b"0")
    assert find_checkpoint(wide) == (wide, wide.best)
    for name, file in ((str(wide.last), wide.last), (wide.best, wide.best), (str(wide.folder), wide.best)):
        run, checkpoint = find_checkpoint(name)
        assert (run.folder, checkpoint) == (wide.folder, file)
    assert find_checkpoint(None)[0].folder.resolve() == three[2].folder.resolve()
    wide.best.unlink()  # stopped in its first epoch
    assert find_checkpoint(wide.last)[1] == wide.last
    Path("x.ckpt").touch()
    with pytest.raises(UserError, match=r"is not the folder of a run: it has no config.yaml. Look into runs/.$"):
        find_checkpoint("x.ckpt")
    with pytest.raises(UserError, match=r"^y.ckpt does not exist. Give a checkpoint, or the folder of a run.$"):
        find_checkpoint("y.ckpt")


def test_a_run_is_found_by_what_it_is_called(three: tuple[Run, Run, Run]) -> None:
    wide, _, newest = three
    assert find("@last").folder.resolve() == find(None).folder.resolve() == newest.folder.resolve()
    assert find("@best").folder.resolve() == find("@wide").folder.resolve() == wide.folder.resolve()
    again = pretend(f"{stamp(4)}-wide-job12_3-0a1b2c", 0.5, minutes=4)
    assert find("@wide").folder.resolve() == again.folder.resolve()
    with pytest.raises(UserError, match=r"^no run in \S+/runs is called @wid\. There are: @best, @last, @wide\.$"):
        find("@wid")


def test_the_best_is_what_the_settings_of_the_newest_call_best(three: tuple[Run, Run, Run]) -> None:
    other = pretend(f"{stamp(5)}-0a1b2c", 0.2, minutes=5, mode="max")
    assert find("@best").folder.resolve() == three[1].folder.resolve()
    other.metrics.write_text(json.dumps({"val/loss": float("nan")}))
    assert find("@best").folder.resolve() == three[1].folder.resolve()
    for run in (*three, other):
        run.metrics.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"^there is no finished run in \S+/runs\. Run: make train$"):
        find("@best")


@pytest.mark.parametrize(("folder", "name"), [
    (f"{stamp(1)}-0a1b2c", None), (f"{stamp(1)}-a-b-0a1b2c", "a-b"), (f"{stamp(1)}-job7-0a1b2c", None),
    (f"{stamp(1)}-wide-job7_2-0a1b2c", "wide"), (f"sweep-{stamp(1)}-lr-0a1b2c/003", "lr"), ("first", None),
])  # fmt: skip
def test_a_folder_says_its_name(folder: str, name: str | None) -> None:
    assert name_of(Run(Path("runs/digits") / folder)) == name


def test_what_is_typed_becomes_the_folder(three: tuple[Run, Run, Run]) -> None:
    assert with_folder("init_from=@best") == f"init_from={three[0].folder.as_posix()}"
    assert with_folder("run_dir=@last") == f"run_dir={three[2].folder.as_posix()}"
    with pytest.raises(UserError, match=r"^there is no sweep in \S+/runs\. To start one, leave sweep_dir out\.$"):
        with_folder("sweep_dir=@last")
    sweep = pretend(f"sweep-{stamp(4)}-lr-0a1b2c/000", 0.25, minutes=4, sweep=True).folder.parent
    assert with_folder("sweep_dir=@last") == with_folder("sweep_dir=@lr") == f"sweep_dir={sweep.as_posix()}"
    with pytest.raises(UserError, match=r"^no sweep in \S+/runs is called @best\. There are: @last, @lr\.$"):
        with_folder("sweep_dir=@best")  # a sweep has a best run, and is none
    for unchanged in ("name=@last", "run_dir=runs/x", "optimizer.lr=0.1"):
        assert with_folder(unchanged) == unchanged


@pytest.mark.parametrize(("typed", "sentence"), [
    ("name=a/b", "name names a folder: letters, digits, '.', '_' and '-' only, got 'a/b'."),
    ("name=best", "name=best would hide what @best means. Take another word."),
    ("name=true", "name must be a word, got true, which is a truth value in YAML. Take another word."),
])  # fmt: skip
def test_a_name_that_cannot_be_one_is_refused(typed: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        check(compose("train", [typed]), "train", [typed])
    assert str(refused.value) == sentence


def test_a_run_that_is_trained_has_its_name_and_says_what_to_do_next(run_training: Train) -> None:
    run = run_training("name=wide", "trainer.max_epochs=1")
    assert name_of(run) == "wide"
    assert f"measure it:    python -m ml_project.evaluate {run.folder}\n" in run.log.read_text()
    assert find("@wide").folder.resolve() == run.folder.resolve()
    assert new_name(2, "0a1b2c").endswith("-2-0a1b2c")  # Hydra reads name=2 as a number
    assert "name" not in json.loads(run.fingerprint.read_text())


def runs(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["runs", *arguments])
    main()


def test_runs_are_listed(
    three: tuple[Run, Run, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(f"sweep-{stamp(4)}-0a1b2c/000", 0.25, minutes=4, sweep=True)
    pretend(f"sweep-{stamp(4)}-0a1b2c/001", None, minutes=4)
    three[2].error.write_text("RuntimeError: x\n")
    runs(monkeypatch)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["digits"], ["run", "state", "epoch", "val/loss", "size"]]
    first, second, third, sweep = lines[2:]
    assert first[1:] == ["finished", "3", "0.1000", "1", "KiB", "best"]
    assert second[:2] == [three[1].folder.as_posix(), "finished"]
    assert third[1:] == ["failed", "1", "KiB"]
    assert sweep[1:6] == ["1", "of", "2", "finished", "3"]


def test_a_run_in_a_folder_of_ones_own_is_of_its_experiment(
    three: tuple[Run, Run, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretend("../first", 0.05, minutes=7)  # run_dir=runs/first
    assert find("@best").folder.resolve() == run.folder.resolve()
    runs(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["digits", "run", *(r.folder.as_posix() for r in three), "runs/first"]


def test_without_runs_it_says_how_to_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^there is no run in \S+/runs\. Run: make train$"):
        runs(monkeypatch)


def test_old_runs_are_deleted_after_a_question(
    three: tuple[Run, Run, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, second, third = three
    newest = pretend(f"{stamp(6)}-0a1b2c", 0.4, minutes=6)
    with pytest.raises(UserError, match=r"^nobody is here to say whether these 2 runs \(2 KiB\) may be deleted\. "):
        runs(monkeypatch, "--prune", "--keep", "1")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []

    def answer(word: str) -> None:
        def say(question: str) -> str:
            asked.append(question)
            return word

        monkeypatch.setattr("builtins.input", say)
        runs(monkeypatch, "--prune", "--keep", "1")

    answer("")
    assert asked == ["Delete these 2 runs, 2 KiB, here and in MLflow? [y/N] "]
    assert capsys.readouterr().out.endswith("nothing was deleted\n")
    assert all(run.folder.is_dir() for run in (*three, newest))
    left = wide.folder.with_name(f"{DELETED}{stamp(0)}")  # an earlier deletion was killed
    left.mkdir()
    answer("y")
    assert [run.folder.is_dir() for run in (wide, second, third, newest)] == [True, False, False, True]
    assert not left.exists()
    answer("y")
    assert capsys.readouterr().out.endswith("nothing to delete\n")


def test_a_sweep_that_mlflow_does_not_know_is_deleted_as_a_whole(
    three: tuple[Run, Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = pretend(f"sweep-{stamp(4)}-0a1b2c/000", 0.25, minutes=4, sweep=True)
    pretend(f"{stamp(5)}-0a1b2c", 0.4, minutes=5)
    runs(monkeypatch, "--prune", "--keep", "1", "--yes")
    assert not job.folder.parent.exists()
    assert three[0].folder.is_dir()


def test_the_end_of_the_input_is_no(
    three: tuple[Run, Run, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", end)
    runs(monkeypatch, "--prune", "--keep", "1")
    assert capsys.readouterr().out.endswith("nothing was deleted\n")
    assert three[1].folder.is_dir()


def test_what_is_deleted_is_deleted_in_mlflow_and_what_is_served_stays(
    run_training: Train, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("tracking=mlflow", "trainer.max_epochs=1", "tracking.tensorboard=false")
    best, served, old = (run_training(*settings) for _ in range(3))  # of equals the first is the best
    promote(served)
    newest = run_training(*settings)
    folders = [best.folder, served.folder, old.folder, newest.folder]
    assert [entry.run.folder for entry in entries()["digits"]] == folders
    ids = [run.mlflow_id() for run in (best, served, old, newest)]
    runs(monkeypatch, "--prune", "--keep", "1", "--yes")
    assert [folder.is_dir() for folder in folders] == [True, True, False, True]
    client = mlflow_client(f"sqlite:///{workplace.as_posix()}/mlflow.db")
    known = {run.info.run_id for run in client.search_runs(["1"], run_view_type=ViewType.ALL)}
    assert known == {ids[0], ids[1], ids[3]}
    assert not [file for file in (workplace / "mlruns").rglob(f"{ids[2]}/*") if file.is_file()]
    assert [file for file in (workplace / "mlruns").rglob("best.ckpt") if str(ids[1]) in file.parts]


def test_what_an_engine_has_is_resumed_as_the_sweep_that_it_is() -> None:
    """`make resume`: the folder of a run that is trained somewhere else is not here, or has another owner."""
    pretend(f"{stamp(1)}-0a1b2c", None, minutes=1)
    assert with_folder("run_dir=unfinished") == "run_dir=unfinished"
    done, open_ = (pretend(f"sweep-{stamp(2)}-0a1b2c/{name}", loss, minutes=2, sweep=True)
                   for name, loss in (("000", 0.1), ("001", None)))  # fmt: skip
    sweep = Run(done.folder.parent)
    sweep.launch_record.write_text(json.dumps({"jobs": ["a", "b"]}))
    assert with_folder("run_dir=unfinished") == f"sweep_dir={sweep.folder}"
    sweep.launch_record.write_text(json.dumps({"jobs": ["a", "b"], "dry_run": True}))
    assert with_folder("run_dir=unfinished") == "run_dir=unfinished"  # nothing was started there
    sweep.launch_record.write_text(json.dumps({"jobs": ["a", "b"], "dry_run": False}))
    open_.metrics.write_text("{}")
    assert with_folder("run_dir=unfinished") == "run_dir=unfinished"  # the older run
    open_.metrics.unlink()
    pretend(f"{stamp(3)}-0a1b2c", None, minutes=3)
    assert with_folder("run_dir=unfinished") == "run_dir=unfinished"  # the newest is one of this machine
