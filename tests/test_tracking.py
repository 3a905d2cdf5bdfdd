"""MLflow for real: servers that fail in the middle of a training, a model that is served, a run that is repeated."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, commit, run, without

sys.path.append(str(ROOT / "benchmarks"))
from tracking import FAULTS, free_port, suffer

pytestmark = pytest.mark.slow

TOO_LARGE = (
    "the request is larger than 1 MB. Send fewer examples at once, or start the server with another limit: --max-mb 2\n"
)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_metric_is_in_mlflow_once_whatever_happened_to_the_server(
    project: Path, tmp_path: Path, fault: str
) -> None:
    outcome = suffer(project, "my_project", fault, tmp_path)
    assert outcome.well(), outcome
    assert outcome.said <= 2, outcome  # once in the middle, once at the end


def test_a_full_disk_under_the_database_does_not_stop_a_training(project: Path, python: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "-rm", "sh", "-ec"]
    if subprocess.run([*unshare, "mount -t tmpfs none /mnt"], capture_output=True).returncode != 0:
        pytest.skip("this system cannot give a process a disk of its own (unshare -rm, mount -t tmpfs)")
    script = (
        f"mount -t tmpfs -o size=3m none {disk}\n"
        f"{python} -c 'from runengine.tracking.mlflow_client import mlflow_client as m; m(\"sqlite:///{disk}/mlflow.db\")'\n"
        f"cat /dev/zero > {disk}/fill 2>/dev/null || true\n"
        f"{python} -m my_project.train trainer.max_epochs=3 run_dir={tmp_path}/run\n"
        f"rm {disk}/fill\n"
        f"{python} -m runengine sync {tmp_path}/run\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{disk}/mlflow.db"}
    printed = run(*unshare, script, cwd=project, env=environment).output
    assert printed.count("(its disk is full). Send the rest: make sync") == 1
    assert printed.count("(its disk is full)") <= 2  # once while it trains, where that takes long enough
    assert "Traceback" not in printed
    assert printed.endswith(f"{tmp_path}/run: sent\n")


@pytest.fixture
def served(project: Path, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """The address of `make serve` after `make promote`."""
    trained = folder.relative_to(project)
    promoted = run("make", "--no-print-directory", "promote", f"RUN={trained}", cwd=project, env=env).output
    assert re.search(rf"^models:/my_project-digits@champion is now version \d+, of {trained}$", promoted, re.MULTILINE)
    port = free_port()
    command = ["make", "serve", f"PORT={port}", "ARGS=--max-mb 1"]
    process = subprocess.Popen(command, cwd=project, env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        assert f"http://127.0.0.1:{port}   (Ctrl-C ends it)" in process.communicate(timeout=60)[0]


def test_the_promoted_model_answers_requests(project: Path, python: Path, env: dict[str, str], served: str) -> None:
    images = "import json, numpy; print(json.dumps(numpy.load('data/processed/test_images.npy')[:20].tolist()))"
    body = json.dumps({"inputs": json.loads(run(python, "-c", images, cwd=project).output)}).encode()
    request = urllib.request.Request(f"{served}/invocations", body, {"Content-Type": "application/json"})
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                probabilities = json.loads(answer.read())["predictions"]
            break
        except urllib.error.URLError:
            time.sleep(0.25)
    answers = [row.index(max(row)) for row in probabilities]
    assert [round(sum(row), 3) for row in probabilities] == [1.0] * 20
    champion = ("data/processed/test_images.npy", "--model", "models:/my_project-digits@champion")
    table = run(python, "-m", "my_project.predict", *champion, cwd=project, env=env).output.splitlines()[1:21]
    assert [int(line.split(",")[2]) for line in table] == answers

    for content in (bytes(1_000_001), iter([bytes(600_000)] * 2)):  # its size is announced, or not
        request = urllib.request.Request(f"{served}/invocations", content, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert (refused.value.code, refused.value.read().decode()) == (413, TOO_LARGE)


def test_a_port_that_is_taken_is_one_sentence(project: Path, env: dict[str, str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for target in ("serve", "mlflow"):
            printed = run("make", target, f"PORT={port}", cwd=project, env=env, expect=2).output
            sentence = f"error: port {port} of 127.0.0.1 cannot be taken: Address already in use. Take another: "
            assert printed.splitlines()[0] == f"{sentence}PORT={port + 1}"


@pytest.fixture(scope="module")
def repository(demo: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in Git, with one run of that commit; its environment is the one of `make demo`."""
    copy = tmp_path_factory.mktemp("rerun") / "my-project"
    shutil.copytree(demo[0], copy, ignore=without(demo[0], ".venv", "runs", "mlruns", "mlflow.db*", "cache"))
    commit(copy)
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    python = demo[0] / ".venv/bin/python"
    run(python, "-m", "my_project.train", "trainer.max_epochs=3", "model=mlp", cwd=copy, env=environment)
    return copy


def rerun(repository: Path, python: Path, *more: str, expect: int) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    (record,) = repository.glob("runs/digits/*/mlflow_run_id")
    command = ("runengine", "rerun", record.read_text().strip(), *more)
    return run(python, "-m", *command, cwd=repository, env=environment, expect=expect).output


def test_a_finished_run_is_repeated_to_the_last_digit(repository: Path, python: Path) -> None:
    printed = rerun(repository, python, expect=0)
    assert "packages  the " in printed
    assert "data      data/processed, unchanged" in printed
    assert "equal to the last digit, in every epoch" in printed


def test_it_is_repeated_with_the_code_the_packages_and_the_data_it_had(repository: Path, python: Path) -> None:
    with (repository / "src/my_project/model.py").open("a") as model:
        model.write("\nraise RuntimeError('the code of today')\n")
    shutil.rmtree(repository / "data")
    (environment,) = repository.glob("runs/digits/*/environment.json")
    recorded = json.loads(environment.read_text())
    now = recorded["packages"]["tqdm"]
    recorded["packages"]["tqdm"] = "4.67.0"
    assert now != "4.67.0"
    environment.write_text(json.dumps(recorded))
    printed = rerun(repository, python, expect=0)
    assert "packages  tqdm==4.67.0\n" in printed
    assert "data      data/processed, from prepare\n" in printed
    assert "equal to the last digit, in every epoch" in printed
    used = "import tqdm; print(tqdm.__version__)"
    packages = next(repository.glob(".rerun/*/packages"))
    assert run(python, "-c", used, cwd=repository, env={**os.environ, "PYTHONPATH": str(packages)}).output == "4.67.0\n"


def test_a_result_that_is_not_equal_is_told(repository: Path, python: Path) -> None:
    (metrics,) = repository.glob("runs/digits/*/metrics.json")
    recorded = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**recorded, "val/loss": recorded["val/loss"] * 1.01}))
    (history,) = repository.glob("runs/digits/*/history.csv")
    history.write_text(history.read_text() + "\n")
    run("git", "checkout", "src", cwd=repository)
    printed = rerun(repository, python, expect=1)
    assert "not equal: the largest relative difference is 0.0099, 0 is allowed (--tolerance)" in printed
    assert "0.0099, 0.02 is allowed" in rerun(repository, python, "--tolerance", "0.02", expect=0)


def test_a_run_whose_code_is_not_known_is_not_repeated(repository: Path, python: Path) -> None:
    (starts,) = repository.glob("runs/digits/*/starts.jsonl")
    before = starts.read_text()
    start = json.loads(before)
    for commits, sentence in (
        ([{**start, "git_commit": "0" * 40}], r"this repository has no commit 0{40}, by which runs/\S+ was trained."),
        (
            [start, {**start, "git_commit": "1" * 40}],
            r"was trained by several commits \(\w{10}, \w{10}\): none of them",
        ),
        ([{"command": "x"}], r"was trained outside of a Git repository: its code is not known\."),
    ):
        starts.write_text("".join(json.dumps(each) + "\n" for each in commits))
        printed = rerun(repository, python, expect=1)
        assert re.fullmatch(rf"error: .*{sentence}.*\n", printed), printed
    starts.write_text(before)
