"""A run from start to end: reproducible, continuable, recorded, and clear about what is wrong."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SOURCE, weights
from ml_project.evaluate import evaluate
from ml_project.predict import Model, load, predict, read_images
from ml_project.predict import main as predict_main
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from runengine import Run, UserError, find, load_config, typed_path, write_table
from runengine.runs import provenance
from runengine.runs.weights import read_checkpoint
from runengine.settings import project, targets
from runengine.settings.errors import explain
from runengine.tracking.registry import promote
from runengine.training.checkpoints import AtomicCheckpointIO

Train = Callable[..., Run]


def test_same_seed_same_weights(run_training: Train) -> None:
    first, second = (weights(run_training("trainer.max_epochs=2", "seed=3")) for _ in range(2))
    other = weights(run_training("trainer.max_epochs=2", "seed=4"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_continued_run_equals_a_straight_run(run_training: Train) -> None:
    straight = run_training("trainer.max_epochs=4")
    stopped = run_training("trainer.max_epochs=2")
    continued = run_training(f"run_dir={stopped.folder}", "trainer.max_epochs=4")
    assert continued == stopped
    one, other = weights(straight), weights(continued)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("history.csv", "metrics.json"):
        assert (straight.folder / name).read_text() == (continued.folder / name).read_text()


def test_a_run_is_continued_with_its_own_settings(run_training: Train) -> None:
    stopped = run_training("trainer.max_epochs=1", "model=mlp", "optimizer.lr=0.01")
    continued = run_training(f"run_dir={stopped.folder}", "trainer.max_epochs=2")
    cfg = load_config(continued)
    assert (cfg.model._target_.split(".")[-1], cfg.optimizer.lr, cfg.trainer.max_epochs) == ("MLP", 0.01, 2)


def test_a_continued_run_refuses_other_settings(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=2")
    before = run.config.read_text()
    with pytest.raises(UserError) as error:
        run_training(f"run_dir={run.folder}", "optimizer.lr=0.5", "seed=7")
    cfg = load_config(run)
    changed = f"optimizer.lr ({cfg.optimizer.lr}, got 0.5), seed ({cfg.seed}, got 7)"
    assert str(error.value) == (
        f"{run.folder} was trained with other settings: {changed}. Leave them out to resume it as it was, leave "
        "run_dir out to start a new run, or resume with the new ones by allow_changes=true."
    )
    with pytest.raises(UserError, match=r"was trained with other settings: model\.\w+ \("):
        run_training(f"run_dir={run.folder}", "model=mlp" if "CNN" in cfg.model._target_ else "model=cnn")
    with pytest.raises(UserError, match=r"was trained with other settings: trainer.max_epochs \(2, got 1\)"):
        run_training(f"run_dir={run.folder}", "trainer.max_epochs=1")
    assert run.config.read_text() == before


def test_a_continued_run_takes_other_settings_when_told_so(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1")
    run_training(f"run_dir={run.folder}", "optimizer.lr=0.5", "trainer.max_epochs=2", "allow_changes=true")
    assert load_config(run).optimizer.lr == 0.5
    assert torch.load(run.last, weights_only=True)["epoch"] == 1


def test_a_run_folder_holds_what_it_promises(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=2", "tracking=mlflow")
    assert re.fullmatch(r"runs/[\w.-]+/\d{8}-\d{6}\.\d{6}-[0-9a-f]{6}", run.folder.as_posix())
    names = {file.relative_to(run.folder).as_posix() for file in run.folder.rglob("*") if file.is_file()}
    assert {re.sub(r"events.*", "events", name) for name in names} - {"uncommitted.diff"} == {
        ".lock", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/fingerprint.json", "config.yaml",
        "data.json", "environment.json", "history.csv", "learning_curve.png", "metrics.json", "metrics.jsonl",
        "mlflow_run_id", "mlflow_sent.json", "run.json", "starts.jsonl", "tensorboard/events", "train.log",
    }  # fmt: skip
    assert "epoch 2 of 2" in (run.folder / "train.log").read_text()


def test_mlflow_has_settings_metrics_and_files_and_one_run_after_continuing(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    run_training(f"run_dir={run.folder}", "trainer.max_epochs=2")
    evaluate(run)
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(load_config(run).experiment_name)
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert record.info.run_id == run.mlflow_run_id.read_text().strip()
    assert record.data.params["optimizer.lr"] == str(load_config(run).optimizer.lr)
    assert {"train/loss", "val/loss", "val/accuracy", "test/accuracy"} <= record.data.metrics.keys()
    assert len(client.get_metric_history(record.info.run_id, "val/loss")) == 2
    artifacts = {file.path for file in client.list_artifacts(record.info.run_id)}
    assert {
        "checkpoints",
        "config.yaml",
        "learning_curve.png",
        "confusion_matrix.png",
        "worst_mistakes.png",
    } <= artifacts


def test_evaluate_and_predict_agree(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=2", "trainer.limit_train_batches=1.0")
    metrics = evaluate(run)
    answers = list(predict(load(str(run.folder)), [Path("data/processed/test_images.npy")])["label"])
    table = (run.folder / "test_predictions.csv").read_text().split()[1:]
    assert answers == [int(line.split(",")[1]) for line in table]
    right = sum(line.split(",")[0] == line.split(",")[1] for line in table) / len(table)
    assert metrics["test/accuracy"] == pytest.approx(right)
    assert json.loads((run.folder / "test_metrics.json").read_text()) == metrics


def test_predict_takes_pictures(run_training: Train, tmp_path: Path) -> None:
    run = run_training("trainer.max_epochs=1")
    Image.new("RGB", (30, 40), "white").save(tmp_path / "picture.png")
    (answer,) = predict(load(str(run.best)), [tmp_path / "picture.png"]).to_dict("records")
    assert answer["index"] == 0
    assert 0 <= answer["label"] < load_config(run).data.num_classes
    assert 0 < answer["probability"] <= 1


@pytest.mark.parametrize(("content", "sentence"), [
    (None, "x.png does not exist. Give image files, folders of them, .csv, .npy or .npz."),
    ("text", "x.png is neither an image nor an array `images`. Give image files, .npy or .npz."),
])  # fmt: skip
def test_predict_refuses_what_is_no_picture(run_training: Train, content: str | None, sentence: str) -> None:
    run = run_training("trainer.max_epochs=1")
    if content is not None:
        Path("x.png").write_text(content)
    with pytest.raises(UserError) as error:
        predict(load(str(run.folder)), [Path("x.png")])
    assert str(error.value) == sentence


def npz_of(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images)
    return buffer.getvalue()


def npy_claiming(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(100)


ZEROS_NCHW = np.zeros((2, 1, 8, 8))
NPZ = npz_of(np.random.default_rng(0).random((2, 1, 8, 8)))
DAMAGED_ARRAYS = {
    "no zip.npz": b"PK\x03\x04 and no more",
    "cut.npz": npz_of(ZEROS_NCHW)[:-40],
    "flipped.npz": NPZ[:300] + b"\0\0" + NPZ[302:],
    "empty.npy": b"",
    "cut.npy": npy_claiming((3, 1, 8, 8)),
    "25 TB.npy": npy_claiming((10**11, 1, 8, 8)),
    "more than a number holds.npy": npy_claiming((10**30, 1, 8, 8)),
    "empty.npz": b"",
    "no array.npy": pickle.dumps({"images": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED_ARRAYS)
def test_predict_refuses_files_that_are_damaged_or_claim_too_much(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(DAMAGED_ARRAYS[name])
    with pytest.raises(UserError) as error:
        read_images(file, (1, 8, 8), {})
    assert str(error.value) == f"{file} is neither an image nor an array `images`. Give image files, .npy or .npz."


@pytest.mark.parametrize("dtype", ["int64", "int8", "complex64", "bool"])
def test_predict_refuses_numbers_of_which_nobody_knows_the_scale(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "x.npy"
    np.save(file, ZEROS_NCHW.astype(dtype))
    with pytest.raises(UserError) as error:
        read_images(file, (1, 8, 8), {})
    wanted = "must hold uint8, or floats as the model saw them in the training"
    assert str(error.value) == f"{file} {wanted}, got {dtype}."


def test_predict_refuses_names_of_too_few_classes_and_takes_strange_names_of_files(tmp_path: Path) -> None:
    def probabilities(images_NCHW: np.ndarray) -> np.ndarray:
        return np.full((len(images_NCHW), 3), 1 / 3, dtype=np.float32)

    file = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.npy"))
    np.save(file, ZEROS_NCHW)
    model = Model(probabilities, (1, 8, 8), {"classes": ["a", "b", "c"]})
    for output in (tmp_path / "answers.csv", tmp_path / "answers.parquet"):
        write_table(predict(model, [file]), output)
    assert "/\\xff.npy,0,0,a,0.33" in (tmp_path / "answers.csv").read_text()
    with pytest.raises(UserError) as error:
        predict(model._replace(data={"classes": ["a", "b"]}), [file])
    sentence = "the model answers for 3 classes, but its data.json names 2."
    assert str(error.value) == f"{sentence} Bring back that file, from the run's artifacts in MLflow."


def test_predict_with_a_model_of_a_table_refuses_pictures(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    sentence = "x.png is no table, but the model was trained on one. Give .csv files, .npy or .npz."
    with pytest.raises(UserError) as error:
        read_images(Path("x.png"), (4,), {})
    assert str(error.value) == sentence


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39])
def test_predict_refuses_what_is_no_number(run_training: Train, value: float) -> None:
    model = load(str(run_training("trainer.max_epochs=1").folder))
    images = np.zeros((3, *model.input_shape))
    images[1:, 0, 0, 0] = value
    np.save("x.npy", images)
    with pytest.raises(UserError) as error:
        predict(model, [Path("x.npy")])
    problem = "it holds NaN, or more than float32 can hold. Fix it or leave it out."
    assert str(error.value) == f"x.npy, example 1, and 1 more: {problem}"


def test_predict_refuses_a_model_that_computes_nan(run_training: Train) -> None:
    model = load(str(run_training("trainer.max_epochs=1").folder))
    broken = model._replace(probabilities=lambda images: np.full((len(images), 10), math.nan))
    np.save("x.npy", np.zeros((3, *model.input_shape)))
    with pytest.raises(UserError) as error:
        predict(broken, [Path("x.npy")])
    assert str(error.value) == "x.npy, example 0, and 2 more: the model answers with NaN. Give another --model."


def test_a_wrong_output_is_refused_before_anything_is_predicted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = {
        "answers.txt": f"it must end with .csv or .parquet, got {typed_path('answers.txt')}.",
        "no/x.csv": f"the folder {typed_path('no')} does not exist. Make it, or name another.",
    }
    for output, sentence in sentences.items():
        monkeypatch.setattr(sys, "argv", ["predict", "x.png", "--output", output])
        with pytest.raises(SystemExit, match=r"^2$"):
            predict_main()
        assert capsys.readouterr().err.endswith(f" error: argument --output: {sentence}\n")


def test_the_newest_run_is_found(run_training: Train) -> None:
    with pytest.raises(UserError, match=r"there is no trained run in .*runs. Run: make train"):
        find(None)
    run_training("trainer.max_epochs=1")
    newest = run_training("trainer.max_epochs=1", "experiment_name=other")
    assert find(None) == newest


def test_a_checkpoint_of_another_model_is_refused(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "model=mlp", "model.hidden=16")
    run.config.write_text(run.config.read_text().replace("hidden: 16", "hidden: 8"))
    with pytest.raises(UserError, match=r"best.ckpt is of another model: \d+ layers differ: model\.\S+ \(\("):
        evaluate(run)
    with pytest.raises(UserError, match=r"last.ckpt is of another model: \d+ layers differ: model\.\S+ \(\("):
        run_training(f"run_dir={run.folder}", "trainer.max_epochs=2")


def test_a_damaged_checkpoint_is_refused(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1")
    run.best.write_bytes(run.best.read_bytes()[:1000])
    refused = r"best.ckpt is damaged: it cannot be read as a checkpoint. Bring back a copy of it, or train again\.$"
    with pytest.raises(UserError, match=refused):
        evaluate(run)


@pytest.mark.parametrize("problem", ["is not there", "is damaged"])
def test_a_run_whose_best_weights_are_lost_is_not_resumed(run_training: Train, problem: str) -> None:
    """It would end without them, as none of the epochs that are left may be better."""
    run = run_training("trainer.max_epochs=2", "run_dir=runs/x")
    best, known = run.best.read_bytes(), run.starts.read_text()
    if problem == "is damaged":
        run.best.write_bytes(best[: len(best) // 2])
    else:
        run.best.unlink()
    sentence = (
        f"{run.best} {problem}, so the weights of the best epoch are lost. Bring back a copy of it, or start a new run "
        f"from the last weights of this one: init_from={run.last}"
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        run_training("run_dir=runs/x", "trainer.max_epochs=3")
    assert (run.starts.read_text(), run.error.exists()) == (known, False)
    assert run_training("trainer.max_epochs=1", f"init_from={run.last}").finished()
    run.best.write_bytes(best)
    assert run_training("run_dir=runs/x", "trainer.max_epochs=3").num_starts() == 2


def test_a_flipped_bit_in_a_checkpoint_is_found(run_training: Train) -> None:
    """Anywhere, but where nothing is read: between the parts of the file."""
    run = run_training("trainer.max_epochs=1", "run_dir=runs/x", "model=mlp", "model.hidden=16")
    content, wanted = run.last.read_bytes(), weights(run)
    found, bits = 0, range(len(content) // 50, len(content), len(content) // 50)
    for place in bits:
        run.last.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            read = read_checkpoint(run.last)["state_dict"]
            assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())
        except UserError:
            found += 1
    assert found > len(bits) // 2

    best = run.best
    remedy = f"Bring back a copy of it, or start a new run from the best weights of this one: init_from={best}"
    where = content.index(next(iter(wanted.values())).numpy().tobytes()[:64])
    run.last.write_bytes(content[:where] + bytes([content[where] ^ 16]) + content[where + 1 :])
    sentence = f"{run.last} is damaged: it cannot be read as a checkpoint. {remedy}."
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        run_training("run_dir=runs/x", "trainer.max_epochs=2")
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):  # also where Lightning itself loads it
        AtomicCheckpointIO().load_checkpoint(run.last)
    assert run_training("model=mlp", "model.hidden=16", "trainer.max_epochs=1", f"init_from={best}").finished()


HOSTILE = """psutil.Popen subprocess.Popen subprocess.run os.system os.popen builtins.eval builtins.exec runpy.run_path
    importlib.import_module ctypes.CDLL webbrowser.open shutil.rmtree pathlib.Path.write_text hydra.utils.instantiate
    torch.hub.load torch.load torch.utils.cpp_extension.load_inline torch.nn.modules.module.torch.hub.load
    torch.nn.functional pytorch_lightning.LightningModule.load_from_checkpoint webbrowser.get
    pytorch_lightning.callbacks.timer.os.system
    ml_project.prepare.runengine.atomic_write ml_project.evaluate.os.remove ml_project.train.instantiate ml_project
    ml_project_evil.run torchmetrics.utilities.os.system runengine.download joblib.load""".split()  # noqa: SIM905


def test_a_run_of_somebody_else_runs_nothing_that_the_project_does_not(run_training: Train, workplace: Path) -> None:
    run = run_training("trainer.max_epochs=1", "run_dir=runs/x", "model=mlp")
    recorded = run.config.read_text()
    for target in HOSTILE:
        run.config.write_text(recorded.replace("_target_: ml_project.model.MLP", f"_target_: {target}"))
        sentence = (
            f"runs/x/config.yaml would run {target}, which no settings file of this project names. If you trust that, "
            f'write into pyproject.toml, under [tool.runengine]: targets = ["{target}"]'
        )
        with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
            evaluate(run)
        with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
            run_training("run_dir=runs/x", "trainer.max_epochs=2")
    run.config.write_text(recorded)

    elsewhere = recorded.replace("_target_: ml_project.model.MLP", "_target_: ${what}") + "what: psutil.Popen\n"
    run.config.write_text(elsewhere)
    with pytest.raises(UserError, match=r"^runs/x/config.yaml would run psutil.Popen, which no settings file"):
        evaluate(run)
    run.config.write_text(recorded)

    timer = "pytorch_lightning.callbacks.timer.Timer"
    typed = ("trainer.max_epochs=1", f"+callbacks.timer._target_={timer}")
    with pytest.raises(UserError, match=f"^what was typed would run {timer}, which no settings file"):
        run_training(*typed)
    settings = (workplace / "pyproject.toml").read_text()
    (workplace / "pyproject.toml").write_text(f'{settings}targets = ["{timer}"]\n')
    timed = run_training(*typed)
    assert evaluate(timed)

    run.about.write_text('{"format": 1, "module": "antigravity.train"}')
    assert run.script() is sys.modules["ml_project.train"]
    assert run.test_module() == "ml_project.evaluate"


def test_settings_files_may_name_a_target_in_every_way_that_yaml_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any").mkdir()
    (tmp_path / "any/any.yaml").write_text(
        'a: {x: {_target_: one.A}, y: {_target_: two.B}}\n"b":\n  \'_target_\': "three.C"\nc: {"_target_": four.D}\n'
        "# _target_: five.E\nd: [{_target_: six.F}]\n"
    )
    monkeypatch.setattr(project, "conf_folders", lambda: [tmp_path])
    cfg = OmegaConf.load(tmp_path / "any/any.yaml")
    assert isinstance(cfg, DictConfig)
    targets.refuse_strangers(cfg, "this")
    cfg.d.append({"_target_": "five.E"})
    cfg.e = {"f": {"_target_": "${d[0]._target_}"}}
    with pytest.raises(UserError, match=r"^this would run five.E, which no settings file"):
        targets.refuse_strangers(cfg, "this")


def test_a_run_of_a_newer_engine_is_refused_in_one_sentence(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1")
    assert json.loads(run.about.read_text()) == {"format": 1, "module": "ml_project.train"}
    run.about.write_text('{"format": 2, "module": "ml_project.train", "more": []}\n')
    before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    resumes = partial(run_training, f"run_dir={run.folder}", "trainer.max_epochs=2")
    for refused in (resumes, partial(load_config, run), partial(evaluate, run), partial(promote, run)):
        with pytest.raises(UserError) as error:
            refused()
        assert str(error.value) == (
            f"{run.folder} was written by a newer engine: its format is 2, and this engine reads up to 1. Update the "
            "engine (src/runengine), or use the project that trained it."
        )
    assert {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()} == before


def test_a_folder_that_is_no_run_is_left_alone(run_training: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data is not the folder of a run: it has no config.yaml."):
        run_training("run_dir=data")
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["processed"]


def test_a_run_that_cannot_start_leaves_no_folder(run_training: Train) -> None:
    Path("data/processed/train_images.npy").unlink()
    with pytest.raises(UserError, match=r"Run: make data"):
        run_training()
    assert not Path("runs").exists()


def test_more_devices_than_there_are_get_one_sentence(run_training: Train) -> None:
    cores = os.cpu_count() or 1
    with pytest.raises(UserError) as error:
        run_training("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=4096", "data.batch_size=4096")
    assert str(error.value) == f"trainer.devices is 4096, but CPU cores here: {cores}. Try trainer.devices={cores}."
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        with pytest.raises(UserError, match=r"^trainer.devices is 1, but GPUs that PyTorch can use here: 0. Try trai"):
            run_training("trainer=gpu")
    assert not Path("runs").exists()


def test_passwords_of_the_tracking_server_are_written_nowhere(
    run_training: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path.as_posix()}/secret.db")
    run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    texts = [file.read_text() for name in ("*.yaml", "*.log", "*.json") for file in run.folder.rglob(name)]
    assert len(texts) >= 4
    assert not [text for text in texts if "secret.db" in text]
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert "secret.db" not in str(client.get_run(run.mlflow_run_id.read_text().strip()).data.params)


def test_a_folder_that_cannot_be_written_gets_one_sentence(run_training: Train) -> None:
    Path("file").touch()
    with pytest.raises(OSError, match="Not a directory") as error:
        run_training("run_dir=file/run")
    sentence = explain(error.value)
    assert sentence is not None
    assert "a part of this path is a file, not a folder. Choose another folder, then start again." in sentence


def test_the_version_of_the_data_is_that_of_dvc_if_its_lock_describes_them() -> None:
    folder = Path("two")
    folder.mkdir()
    assert provenance.data_version(folder) == {}
    (folder / "split.json").write_text("{}")
    (folder / "a").write_text("a")
    of_split = {"data_split_sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}
    assert provenance.data_version(folder) == of_split
    md5 = "b8fcfc43abfe401466304caaa97c795c.dir"  # DVC's own
    Path("dvc.lock").write_text("stages: {prepare: {outs: [{path: two, md5: " + md5 + "}]} }")
    assert provenance.data_version(folder) == {**of_split, "data_dvc_md5": md5}
    (folder / "a").write_text("changed")
    assert provenance.data_version(folder) == of_split
    Path("dvc.lock").write_text("<<<<<<< HEAD")
    assert provenance.data_version(folder) == of_split


def test_a_copy_of_the_code_knows_the_commit_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "git_state", lambda: {"git_commit": "abc", "git_dirty": True})
    monkeypatch.setattr(provenance, "_git", lambda *arguments: "what was edited")
    provenance.copy_code(tmp_path / "code", diff=True)
    program = (
        "from pathlib import Path\nfrom runengine.runs import provenance\n"
        "provenance.write_diff(Path('.'))\nprint(provenance.__file__, provenance.git_state())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith(str(tmp_path / "code"))
    assert "'git_commit': 'abc'" in done.stdout
    assert Path("uncommitted.diff").read_text() == "what was edited"


def test_a_secret_that_is_not_committed_is_not_recorded(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"AKIA{'Q7' * 8}"  # as Amazon's look
    part = "diff --git a/{0} b/{0}\n--- a/{0}\n+++ b/{0}\n@@ -1 +1,2 @@\n import os\n+{1}\n"
    harmless, bad = part.format("src/model.py", "WIDTH = 3"), part.format("src/store.py", f'KEY = "{key}"')
    committed = part.format("src/old.py", "x = 1").replace(" import os", f'-KEY = "{key}"')
    monkeypatch.setattr(provenance, "git_state", lambda: {"git_commit": "abc", "git_dirty": True})
    monkeypatch.setattr(provenance, "_git", lambda *arguments: harmless + bad + committed)
    run = run_training("trainer.max_epochs=1")
    assert run.diff.read_text() == harmless + committed
    assert os.name == "nt" or run.diff.stat().st_mode & 0o777 == 0o600
    sentence = (
        "what is not committed in src/store.py is not recorded: a password, a token or a key may be in it. Where: "
        "detect-secrets scan src/store.py; a false alarm: # pragma: allowlist secret at the end of its line\n"
    )
    assert sentence in run.log.read_text()
    assert not run_training("trainer.max_epochs=1", "tracking.diff=false").diff.exists()

    monkeypatch.setitem(sys.modules, "detect_secrets.core.scan", None)
    without = run_training("trainer.max_epochs=1")
    assert not without.diff.exists()
    assert "what is not committed is not recorded: detect-secrets, which looks for" in without.log.read_text()


def test_the_driver_of_the_gpus_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.65.06")
    recorded = provenance.environment()
    assert (recorded["gpus"], recorded["driver"]) == (["NVIDIA H100"], "580.65.06")

    def refused() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    monkeypatch.setattr(pynvml, "nvmlInit", refused)
    assert provenance.environment()["driver"] is None


def test_a_training_imports_nothing_large_that_it_does_not_use(workplace: Path) -> None:
    """scipy.signal, of which torchmetrics wants one name, and pandas: two seconds and 160 MB of a start."""
    program = (
        "import sys\n"
        "from ml_project.train import train\n"
        "sys.argv = 'train trainer=cpu trainer.max_epochs=1 trainer.limit_train_batches=2 tracking=off'.split()\n"
        "train()\n"
        "print(sorted({'pandas', 'scipy.signal'} & sys.modules.keys()))\n"
        "import scipy.signal\n"
        "print(scipy.signal.welch.__module__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\nscipy.signal._spectral_py\n")
