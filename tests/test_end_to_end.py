"""What the README promises, as a new user: a clean copy, an empty home, `make demo`, then a day with the project."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT, ROOT, Answer, commit, link, link_environment, run, without
from loopback import serve, write_stub

from ml_template import answers

pytestmark = pytest.mark.slow


def train_in(project: Path, python: Path, *settings: str, expect: int = 0) -> Answer:
    return run(python, "-m", "my_project.train", *settings, cwd=project, expect=expect)


def folder_of(answer: Answer) -> str:
    found = re.search(r"^run (runs/\S+)$", answer.output, re.MULTILINE)
    assert found, answer.output
    return found[1]


def test_the_demo_ends_with_accuracy_folder_and_command(demo: tuple[Path, str]) -> None:
    project, printed = demo
    accuracy, folder = re.findall(r"^test accuracy  (\S+)\nrun folder     (\S+)$", printed, re.MULTILINE)[0]
    assert float(accuracy) >= 0.97
    assert (project / folder / "checkpoints/best.ckpt").is_file()
    assert "PyTorch 2.13.0" in printed
    assert "build cpu, as asked for\n" in printed
    assert "epoch 15 of 15" in printed
    assert printed.rstrip().endswith("make -C demo/my-project mlflow")


def test_a_second_demo_keeps_environment_and_data(project: Path, env: dict[str, str]) -> None:
    printed = run("make", "demo", cwd=project.parent.parent, env=env).output
    assert "The environment in .venv is up to date." in printed
    assert "Stage 'prepare' didn't change, skipping" in printed
    assert "Generating" not in printed


def test_a_copy_runs_its_own_code_and_a_moved_project_goes_on(
    project: Path, env: dict[str, str], tmp_path: Path
) -> None:
    one = tmp_path / "one"
    shutil.copytree(project, one, symlinks=True, ignore=without(project, ".venv", "runs", "mlruns", "mlflow.db*"))
    shutil.copytree(project / ".venv", one / ".venv", symlinks=True, copy_function=link)
    with (one / "src/my_project/model.py").open("a", encoding="utf-8") as model:
        model.write('print("the copy")\n')
    train = ("make", "train", "ARGS=experiment=smoke tracking=off")
    assert run(*train, cwd=one, env=env).output.startswith("the copy\n")
    other = one.rename(tmp_path / "other")
    assert run(*train, cwd=other, env=env).output.startswith("the copy\n")
    assert "The environment in .venv is up to date.\n" in run("make", "setup", cwd=other, env=env).output
    assert run(other / ".venv/bin/dvc", "--version", cwd=other, env=env).output.startswith("3.")
    assert f'VIRTUAL_ENV="{other}/.venv"' in (other / ".venv/bin/activate").read_text()
    assert str(other) not in (project / ".venv/bin/activate").read_text()


# whatever torchmetrics, which Lightning imports, wants of it
ANY_NAME = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
"""
TORCHVISION = {f"torchvision/{name}.py": ANY_NAME for name in ("__init__", "transforms", "models")}


def test_a_torchvision_of_another_build_is_named_with_the_command_that_helps(
    project: Path, env: dict[str, str], tmp_path: Path
) -> None:
    copy, index = tmp_path / "copy", tmp_path / "index"
    shutil.copytree(project, copy, symlinks=True, ignore=without(project, ".venv", "runs", "mlruns", "mlflow.db*"))
    link_environment(project, copy)
    broken = {"torchvision/__init__.py": 'raise RuntimeError("operator torchvision::nms does not exist")\n'}
    write_stub(tmp_path / "wheels", "torchvision", "0.28.0", broken)
    write_stub(index / "torchvision", "torchvision", "0.28.0+cpu", TORCHVISION)
    venv = {**env, "PATH": f"{copy / '.venv/bin'}:{env['PATH']}"}
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    run("python", "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=copy, env=venv)
    train = ("python", "-m", "my_project.train", "experiment=smoke", "tracking=off")
    with serve(index) as address:
        settings = (copy / "pyproject.toml").read_text()
        changed = re.sub(r'^torch_index = ".*"$', f'torch_index = "{address}"', settings, flags=re.MULTILINE)
        assert changed != settings
        (copy / "pyproject.toml").write_text(changed)
        (said,) = run(*train, cwd=copy, env=venv, expect=1).output.splitlines()
        sentence, _, command = said.partition(" Install the one that was: ")
        assert sentence == (
            "error: torchvision 0.28.0 was not made for PyTorch 2.13.0+cpu, and what imports it fails, Lightning too."
        )
        doctor = run("python", "-m", "runengine", "doctor", "--quick", cwd=copy, env=venv, expect=1).output
        assert "torchvision 0.28.0 was not made for PyTorch 2.13.0+cpu" in doctor
        assert command in doctor
        run("sh", "-c", command, cwd=copy, env=venv)
    run("python", "-m", "runengine", "doctor", "--quick", cwd=copy, env=venv)
    run(*train, cwd=copy, env=venv)


def test_the_notebook_shows_the_run(project: Path, folder: Path, jupyter: Callable[[Path], str]) -> None:
    output = jupyter(project / "notebooks/first_look.ipynb")
    assert folder.parent.name in output
    assert output.count("torch.Size") == 2
    assert '"image/png"' in output


def test_its_own_tests_pass(project: Path, env: dict[str, str]) -> None:
    printed = run("make", "test", cwd=project, env=env).output
    assert re.search(r"= \d+ passed(, \d+ skipped)? in ", printed), printed[-3000:]


def test_its_own_checks_pass(project: Path, env: dict[str, str]) -> None:
    assert "Success: no issues found" in run("make", "check", "MYPY=--strict", cwd=project, env=env).output


STUDENT = """
import pytorch_lightning as pl
import torch
from torch import nn


class Net(pl.LightningModule):
    def __init__(self, width=32):
        super().__init__()
        self.layer = nn.Linear(3, width)

    def training_step(self, batch, batch_idx):
        features, targets = batch
        loss = nn.functional.mse_loss(self.layer(features), targets)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def share_right(answers, labels) -> float:
    return (answers.argmax(1) == labels).float().mean().item()
"""


def test_code_with_few_types_passes_the_checks(project: Path, env: dict[str, str], tmp_path: Path) -> None:
    file = project / "src/my_project/net.py"
    file.write_text(STUDENT.lstrip(), encoding="utf-8")
    try:
        its_own = {**env, "MYPY_CACHE_DIR": str(tmp_path)}  # what mypy keeps of a strict look serves only another one
        assert "Success: no issues found" in run("make", "check", cwd=project, env=its_own).output
        run("make", "check", "MYPY=--strict", cwd=project, env=env, expect=2)  # as a team's `make check`
    finally:
        file.unlink()


def test_the_unrendered_project_is_typed_and_passes_its_tests(
    python: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    mypy: list[str | Path] = [python, "-m", "mypy", "--strict"]
    run(*mypy, "src", "tests", "scripts", "docs", "env/venv/scripts", cwd=PROJECT, env=env)
    engine = ROOT / "tests/engine"
    run(*mypy, "src", "docs", engine, cwd=PROJECT, env={**env, "MYPYPATH": str(engine)})
    bare = {**env, "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "tests")]
    run(python, *command, cwd=PROJECT, env=bare)


def test_a_project_that_was_edited_and_updated_passes_its_tests(
    template: Path, python: Path, tmp_path: Path, config_file: Path, env: dict[str, str]
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(template, origin)
    commit(origin)
    cruft = [sys.executable, "-m", "cruft"]
    create = ["create", str(origin), "--no-input", "--config-file", str(config_file), "--output-dir", str(tmp_path)]
    run(*cruft, *create, "--extra-context", '{"env_manager": "venv", "cuda": "cpu"}', cwd=tmp_path, env=env)
    updated = tmp_path / "my-project"
    with (updated / "src/my_project/model.py").open("a") as file:
        file.write("\n\nWIDTH = 64\n")
    commit(updated)
    task = origin / PROJECT.name / "src/ml_project/task.py"
    task.write_text(task.read_text().replace("Image classification", "Classification of images"))
    commit(origin)
    run(*cruft, "update", "--skip-apply-ask", cwd=updated, env=env)
    assert "WIDTH = 64" in (updated / "src/my_project/model.py").read_text()
    assert "Classification of images" in (updated / "src/my_project/task.py").read_text()
    printed = run(python, "-m", "pytest", cwd=updated, env=env).output
    assert re.search(r"= \d+ passed(, \d+ skipped)? in ", printed), printed[-3000:]


def test_no_package_may_hide_what_is_installed_for_the_project(python: Path, project: Path) -> None:
    ask = "import json; from importlib.metadata import packages_distributions as p; print(json.dumps(p()))"
    found: dict[str, list[str]] = json.loads(run(python, "-c", ask, cwd=project).output)
    modules = {
        module.lower()
        for module, packages in found.items()
        if module[0].isalpha() and any(each.lower().replace("-", "_") in answers.REQUIRED for each in packages)
    }
    assert {"pil", "sklearn", "torch"} <= modules
    assert [module for module in sorted(modules) if not answers._taken(module)] == []


def test_no_check_of_the_doctor_fails(project: Path, env: dict[str, str]) -> None:
    """2: on a busy machine torch.compile may take longer than is waited for."""
    answer = run("make", "--no-print-directory", "doctor", cwd=project, env=env, expect=None)
    lines = answer.output.splitlines()
    assert not [line for line in lines if re.match(r".{14} fail ", line)]
    assert [line.split()[0] for line in lines[:4]] == ["python", "environment", "packages", "engine"]
    assert answer.returncode == 0 or "No check failed, but these got no answer: torch.compile." in answer.output


def test_a_program_of_its_own_trains_too(project: Path, env: dict[str, str]) -> None:
    assert "model=cnn" in run(project / ".venv/bin/my_project-train", "--help", cwd=project, env=env).output


def test_help_lists_every_target_in_one_line(project: Path, env: dict[str, str]) -> None:
    lines = run("make", "help", cwd=project, env=env).output.splitlines()
    targets = [line.split()[1] for line in lines]
    wanted = [
        "audit",
        "bench",
        "card",
        "check",
        "clean-env",
        "data",
        "docs",
        "doctor",
        "evaluate",
        "export",
        "first-commit",
        "help",
        "hooks",
        "image",
        "jobs",
        "lock",
        "lock-fresh",
        "look",
        "mlflow",
        "promote",
        "pull",
        "push",
        "rerun",
        "resume",
        "runs",
        "schema",
        "serve",
        "setup",
        "switch",
        "sync",
        "tensorboard",
        "test",
        "train",
        "upgrade",
        "wheelhouse",
    ]
    assert targets == wanted
    assert all(len(line) < 100 for line in lines)


def test_settings_are_passed_on(project: Path, env: dict[str, str]) -> None:
    answer = run("make", "train", "ARGS=experiment=smoke optimizer.lr=0.01 tracking=off", cwd=project, env=env)
    assert "lr: 0.01" in (project / folder_of(answer) / "config.yaml").read_text()


def test_the_pipeline_does_nothing_the_second_time(project: Path, env: dict[str, str]) -> None:
    venv = {**env, "PATH": f"{project / '.venv/bin'}:{env['PATH']}"}
    pipeline = project / "pipeline.yaml"
    as_generated = pipeline.read_text()
    pipeline.write_text(as_generated.replace('train: ""', 'train: "trainer.max_epochs=2"'))
    assert pipeline.read_text() != as_generated
    assert "Running stage 'train'" in run("dvc", "repro", cwd=project, env=venv).output
    second = run("dvc", "repro", cwd=project, env=venv).output
    assert "Running stage" not in second
    assert "Data and pipelines are up to date." in second
    metrics = run("dvc", "metrics", "show", cwd=project, env=venv).output
    assert "test/accuracy" in metrics
    assert "val/accuracy" in metrics
    assert "index.html" in run("dvc", "plots", "show", cwd=project, env=venv).output
    page = (project / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "Learning curve" in page
    assert "Confusion matrix" in page

    # a changed setting reruns what depends on it, and no more
    optimizer = project / "src/my_project/conf/optimizer/adamw.yaml"
    text = optimizer.read_text()
    optimizer.write_text(text.replace("lr: 0.003", "lr: 0.002"))
    third = run("dvc", "repro", cwd=project, env=venv).output
    optimizer.write_text(text)
    pipeline.write_text(as_generated)
    assert "Stage 'prepare' didn't change, skipping" in third
    assert "Running stage 'train'" in third
    assert "Running stage 'evaluate'" in third


def test_the_pipeline_works_in_a_git_repository_too(project: Path, env: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=without(project, ".venv", "runs", "mlruns"))
    (copy / ".venv").symlink_to(project / ".venv")
    venv = {**env, "PATH": f"{project / '.venv/bin'}:{env['PATH']}"}
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    run("git", "init", "-q", cwd=copy, env=env)
    run("make", "data", cwd=copy, env=env)
    assert "no_scm" not in run("dvc", "config", "--list", cwd=copy, env=venv).output
    run("git", "add", "--all", cwd=copy, env=env)
    run("git", *identity, "commit", "-qm", "first", cwd=copy, env=env)
    tracked = run("git", "ls-files", cwd=copy, env=env).output.split()
    assert "dvc.lock" in tracked
    assert not [
        name for name in tracked if name.startswith(("data/", "runs/", "mlruns/", ".venv/")) or "mlflow.db" in name
    ]
    assert "up to date" in run("dvc", "status", "prepare", cwd=copy, env=venv).output


def wait_for(file: Path, text: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if file.is_file() and text in file.read_text():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"{text!r} never came into {file}")


def status_in_mlflow(project: Path, run_id: str) -> str:
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as database:
        ((status,),) = database.execute("select status from runs where run_uuid = ?", (run_id,)).fetchall()
    return str(status)


def test_ctrl_c_leaves_a_run_that_continues(project: Path, python: Path, tmp_path: Path) -> None:
    straight = project / folder_of(train_in(project, python, "trainer.max_epochs=15", "experiment_name=straight"))
    command = [str(python), "-m", "my_project.train", "trainer.max_epochs=15", f"run_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        command,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit "ignore"
    )
    wait_for(tmp_path / "run/train.log", "epoch 3 of 15", process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    go_on = f"stopped. Resume with: python -m my_project.train run_dir={tmp_path / 'run'}"
    assert printed.splitlines()[-1] == go_on
    assert "Traceback" not in printed
    run_id = (tmp_path / "run/mlflow_run_id").read_text().strip()
    assert status_in_mlflow(project, run_id) == "KILLED"

    train_in(project, python, f"run_dir={tmp_path / 'run'}")
    assert (tmp_path / "run/history.csv").read_text() == (straight / "history.csv").read_text()
    assert (tmp_path / "run/mlflow_run_id").read_text().strip() == run_id
    assert status_in_mlflow(project, run_id) == "FINISHED"


def test_a_full_disk_gets_one_sentence_and_loses_nothing(project: Path, python: Path, tmp_path: Path) -> None:
    unshare = ["unshare", "-rm", "sh", "-ec"]
    if subprocess.run([*unshare, "mount -t tmpfs x /mnt"], capture_output=True).returncode != 0:
        pytest.skip("this system cannot give a process a small disk of its own (unshare -rm, mount -t tmpfs)")
    small = tmp_path / "small"
    small.mkdir()
    script = f"""
        mount -t tmpfs -o size=1m none {small}
        {python} -m my_project.train tracking=off trainer.max_epochs=2 run_dir={small}/run
        head -c 2m /dev/zero > {small}/filler 2>/dev/null || true
        before=$(sha256sum < {small}/run/checkpoints/last.ckpt)
        set +e
        {python} -m my_project.train run_dir={small}/run trainer.max_epochs=4
        echo "exit $?"
        rm {small}/filler
        test "$before" = "$(sha256sum < {small}/run/checkpoints/last.ckpt)" && echo unchanged
        {python} -m my_project.train run_dir={small}/run trainer.max_epochs=4 && echo continued
    """
    printed = run(*unshare, script, cwd=project).output
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed
    assert errors[0].endswith("the disk is full. Free some space, then start again.")
    assert "exit 1\nunchanged\n" in printed
    assert "Logging error" not in printed
    assert printed.endswith("continued\n")


def test_a_folder_that_cannot_be_written_gets_one_sentence(project: Path, python: Path, tmp_path: Path) -> None:
    unshare = ["unshare", "-rm", "sh", "-ec"]
    if subprocess.run([*unshare, "mount -t tmpfs -o ro x /mnt"], capture_output=True).returncode != 0:
        pytest.skip("this system cannot give a process a read-only disk of its own (unshare -rm, mount -t tmpfs)")
    script = f"mount -t tmpfs -o ro none {tmp_path}; {python} -m my_project.train run_dir={tmp_path}/run"
    printed = run(*unshare, script, cwd=project, expect=1).output
    sentence = "the file system is read-only. Choose another folder, then start again."
    assert printed.splitlines() == [f"error: {tmp_path}/run: {sentence}"]


def test_make_says_what_has_to_come_first(project: Path, python: Path, tmp_path: Path, env: dict[str, str]) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=without(project, ".venv", "data", "runs", "mlruns"))
    for target in ("train", "data", "evaluate", "test"):
        printed = run("make", target, cwd=copy, env=env, expect=2).output
        assert printed.startswith("error: the environment is not there yet. Run: make setup\n")
    its_own = {**env, "PYTHONPATH": str(copy / "src")}
    printed = run(python, "-m", "my_project.train", "tracking=off", cwd=copy, env=its_own, expect=1).output
    assert "error: data/processed/train_images.npy does not exist. Run: make data\n" in printed
    assert "Traceback" not in printed


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def listens_only_on_loopback(port: int) -> bool:
    """As the kernel lists it: local address and port in hexadecimal, state 0A is listening."""
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    addresses = {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")}
    return addresses == {"0100007F"}


@pytest.mark.parametrize("served", ["mlflow"], indirect=True)
def test_mlflow_serves_the_run_on_loopback(folder: Path, served: int) -> None:
    run_id = (folder / "mlflow_run_id").read_text().strip()
    record = get(served, f"/api/2.0/mlflow/runs/get?run_id={run_id}")
    assert '"test/accuracy"' in record
    assert '"FINISHED"' in record
    assert "MLflow" in get(served, "/")
    if sys.platform == "linux":
        assert listens_only_on_loopback(served)


@pytest.mark.parametrize("served", ["tensorboard"], indirect=True)
def test_tensorboard_serves_the_curves_on_loopback(served: int) -> None:
    for _ in range(60):  # it reads the files after it has started
        if "val/accuracy" in (tags := get(served, "/data/plugin/scalars/tags")):
            break
        time.sleep(0.5)
    assert "val/accuracy" in tags
    if sys.platform == "linux":
        assert listens_only_on_loopback(served)
