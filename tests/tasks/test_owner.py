"""Mistakes, and what else an owner does: each in one sentence, or it works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from conftest import Make
from test_tasks import assert_same, rows

OFF = "tracking=off"


def test_a_monitor_that_nobody_logs_is_said_after_the_first_epoch_and_can_be_replaced(fresh: Make) -> None:
    project = fresh("regression")
    sentence = project.refused("run_dir=runs/x", "monitor.metric=val/loss", OFF)
    assert "monitor.metric is val/loss, but the task has logged train/mae, train/mse, val/mae, val/mse." in sentence
    assert "run_dir=runs/x monitor.metric=... monitor.mode=min" in sentence
    assert len(rows(project.folder / "runs/x/history.csv")) == 1
    project.train("run_dir=runs/x", "monitor.metric=val/mae", OFF)
    project.train("run_dir=runs/straight", "monitor.metric=val/mae", OFF)
    assert_same(project.folder / "runs/x", project.folder / "runs/straight")
    best = [json.loads((project.folder / run / "metrics.json").read_text()) for run in ("runs/x", "runs/straight")]
    assert best[0] == best[1]
    assert best[0]["val/mae"] == min(float(row["val/mae"]) for row in rows(project.folder / "runs/x/history.csv"))


def test_a_task_that_logs_nothing(fresh: Make) -> None:
    project = fresh("autoencoder")
    project.change("task.py", '        self.log("loss", loss)\n', "")
    assert "the task has logged nothing" in project.refused("run_dir=runs/x", OFF)
    project.train("run_dir=runs/x", "monitor.metric=null")  # nothing decides: the last epoch counts as the best
    assert len(rows(project.folder / "runs/x/history.csv")) == 4
    assert (project.folder / "runs/x/checkpoints/best.ckpt").is_file()
    project.run("autoencoder.evaluate", "runs/x")
    project.train("seeds=2", "monitor.metric=null", "trainer.max_epochs=1", OFF)
    project.train("-m", "task.lr=0.1,0.01", "monitor.metric=null", "trainer.max_epochs=1", OFF)
    assert "monitor.metric is null" in project.refused("search=default", "monitor.metric=null", OFF)


def test_a_checkpoint_of_another_task(fresh: Make) -> None:
    project, other = fresh("gan"), fresh("regression")
    other.train("run_dir=runs/x", "trainer.max_epochs=1", OFF)
    project.train("run_dir=runs/x", "trainer.max_epochs=1", OFF)
    best = other.folder / "runs/x/checkpoints/best.ckpt"
    sentence = project.refused(f"init_from={best}", OFF)
    assert "is of another model" in sentence
    assert "discriminator.0.bias" in sentence
    shutil.copy(best, project.folder / "runs/x/checkpoints/last.ckpt")
    assert "is of another model" in project.refused("run_dir=runs/x", "trainer.max_epochs=2", OFF)


def test_settings_that_hide_those_of_the_engine_and_miss_one(fresh: Make) -> None:
    project = fresh("regression")
    project.write("conf/tracking/mine.yaml", "mlflow_uri: null\n")
    sentence = project.refused("tracking=mine")
    assert "tracking.checkpoints is missing: a file in conf/tracking/ of the project hides the engine's" in sentence
    project.write("conf/tracking/off.yaml", "mlflow_uri: null\ntensorboard: false\n")
    assert "tracking.checkpoints is missing" in project.refused(OFF)
    project.write("conf/trainer/cpu.yaml", "accelerator: cpu\nmax_epochs: 1\n")
    assert "trainer.devices is missing" in project.refused("tracking=mlflow")
    shutil.rmtree(project.folder / "src/regression/conf/trainer")
    lines = (project.folder / "src/runengine/conf/runengine.yaml").read_text().splitlines(keepends=True)
    project.write("conf/runengine.yaml", "".join(line for line in lines if not line.startswith("patience:")))
    assert "patience is missing: a file in conf/ of the project hides the engine's" in project.refused(
        "tracking=mlflow"
    )
    project.write("conf/runengine.yaml", "monitor: {metric: [}\n")
    sentence = project.refused("tracking=mlflow")
    assert "conf/runengine.yaml, line 1: " in sentence
    assert "This is no YAML" in sentence
    assert not (project.folder / "runs").exists()


def test_a_second_script_has_settings_of_its_own(fresh: Make) -> None:
    """Pretrained by pretrain.py, killed and resumed there; then train.py starts from its weights."""
    project = fresh("autoencoder")
    package = project.folder / "src/autoencoder"
    script = (package / "train.py").read_text().replace('runengine.main("train")', 'runengine.main("pretrain")')
    script = script.replace("def train(", "def pretrain(").replace("    train()\n", "    pretrain()\n")
    script = script.replace("autoencoder.train", "autoencoder.pretrain")
    project.write("pretrain.py", script)
    conf = (package / "conf/train.yaml").read_text().replace("experiment_name: codes", "experiment_name: before")
    project.write("conf/pretrain.yaml", conf.replace("max_epochs: 4", "max_epochs: 40"))

    command = ["autoencoder.pretrain", "run_dir=runs/before", "checkpoint.every_minutes=null"]
    assert project.kill_at("runs/before", 0.05, *command)
    env = {**os.environ, "PYTHONPATH": str(project.folder / "src"), "OMP_NUM_THREADS": "1"}
    typed = [sys.executable, "-m", *command]  # as its owner types it
    done = subprocess.run(typed, cwd=project.folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    project.run("autoencoder.pretrain", "run_dir=runs/straight", "checkpoint.every_minutes=null", OFF)
    assert_same(project.folder / "runs/before", project.folder / "runs/straight")
    assert json.loads((project.folder / "runs/before/run.json").read_text())["module"] == "autoencoder.pretrain"
    assert "experiment_name: before" in (project.folder / "runs/before/config.yaml").read_text()

    project.train("run_dir=runs/after", "init_from=runs/before", OFF)
    first = float(rows(project.folder / "runs/after/history.csv")[0]["loss"])
    assert first < float(rows(project.folder / "runs/before/history.csv")[0]["loss"]) / 1.5
    sentence = project.refused("run_dir=runs/before", "trainer.max_epochs=50", OFF)
    assert "autoencoder.pretrain" in sentence
    measure = (package / "evaluate.py").read_text().replace("    return metrics", '    return {"test/its_own": 1.0}')
    project.write("evaluate_pretrain.py", measure)
    printed = project.run("autoencoder.pretrain", "seeds=2", "trainer.max_epochs=1", OFF)
    assert printed.count("test/its_own 1.0000") == 2
    assert "test/its_own" not in project.train("seeds=2", "trainer.max_epochs=1", OFF)
    assert "python -m autoencoder.evaluate_pretrain runs/before/" in project.run(
        "autoencoder.pretrain", "trainer.max_epochs=1", OFF
    )
    assert list((project.folder / "runs/before").glob("sweep-*"))


def test_a_script_in_a_subpackage_is_refused_and_works_where_the_sentence_says(fresh: Make) -> None:
    project = fresh("regression")
    package = project.folder / "src/regression"
    below, script = package / "second/part", (package / "train.py").read_text()
    shutil.copytree(package / "conf", below / "conf")
    (below.parent / "__init__.py").touch()
    (below / "__init__.py").touch()
    (below / "train.py").write_text(script.replace("from .", "from ..."))
    sentence = project.refused(OFF, script="second.part.train")
    assert (
        "regression.second.part.train is below the project's package, where its runs are not found again. Make "
        "it a script next to the others: src/regression/second_part_train.py with "
        '@runengine.main("second_part_train"), and src/regression/conf/second_part_train.yaml.'
    ) in sentence
    started = (
        "from runengine import compose; from regression.second.part.train import train; train.start(compose('train'))"
    )
    assert "regression.second.part.train is below the project's package" in project.run("-c", started, expect=1)
    assert not (project.folder / "runs").exists()
    project.write(
        "second_part_train.py", script.replace('runengine.main("train")', 'runengine.main("second_part_train")')
    )
    shutil.copy(package / "conf/train.yaml", package / "conf/second_part_train.yaml")
    project.run("regression.second_part_train", "run_dir=runs/x", "trainer.max_epochs=1", OFF)
    project.run("regression.evaluate", "runs/x")


def test_callbacks_and_loggers_from_the_command_line(fresh: Make) -> None:
    project = fresh("several_loaders")
    project.train(
        "run_dir=runs/x",
        OFF,
        "+callbacks.lr._target_=pytorch_lightning.callbacks.LearningRateMonitor",
        "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping",
        "+callbacks.stop.monitor=train_loss",
        "+callbacks.stop.stopping_threshold=1000",  # reached after the first epoch
        "+loggers.csv._target_=pytorch_lightning.loggers.CSVLogger",
        "+loggers.csv.save_dir=logs",
        "+loggers.again._target_=pytorch_lightning.loggers.CSVLogger",
        "+loggers.again.save_dir=again",
    )
    assert len(rows(project.folder / "runs/x/history.csv")) == 1
    for place in ("logs", "again"):
        (table,) = (project.folder / place).rglob("metrics.csv")
        assert {"train_loss", "val_loss/dataloader_idx_0", "lr-Adam"} <= rows(table)[0].keys()


def test_a_schedule_that_waits_for_a_metric_is_resumed_exactly(fresh: Make) -> None:
    project = fresh("regression")
    project.change(
        "task.py",
        "        return torch.optim.AdamW(self.parameters(), lr=self.lr)\n",
        "        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)\n"
        "        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau\n"
        "        scheduler = plateau(optimizer, factor=0.1, patience=0, threshold=0.5)\n"
        '        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/mse"}}\n',
    )
    settings = ["checkpoint.every_n_steps=1", "trainer.max_epochs=6", OFF]
    project.train("run_dir=runs/straight", *settings)
    killed = project.kill_at("runs/killed", 0.05, "regression.train", "run_dir=runs/killed", *settings)
    assert killed
    project.train("run_dir=runs/killed", *settings)
    assert_same(project.folder / "runs/straight", project.folder / "runs/killed")
    code = "import torch; print(torch.load('runs/killed/checkpoints/last.ckpt')['lr_schedulers'][0]['_last_lr'])"
    assert float(project.run("-c", code).strip("[]\n")) < 0.005
