"""What a user of a cluster lives through, on a real Slurm of two pretended nodes (tests/slurm/start.sh)."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_devices
from conftest import ROOT, Answer, run

pytestmark = pytest.mark.slow

SMALL = ("trainer=cpu", "launch.cpus=1", "launch.memory_gb=2")  # 4 CPUs and 8 GB a node
LONG = ("trainer=cpu", "trainer.max_epochs=15")  # some seconds: time to be interrupted
ONE_TASK = ("--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--mem=2G", "--nodelist=n1")


@pytest.fixture(scope="module")
def cluster(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find the cluster."""
    if os.geteuid() != 0 or not (shutil.which("slurmctld") and shutil.which("munged")):
        pytest.skip("a private Slurm needs root, and: apt-get install --no-install-recommends slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # munge enters no folder of pytest's
    folder.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        run(ROOT / "tests/slurm/start.sh", folder / "s", str(port), cwd=folder)
        # pretended nodes have no addresses: MASTER_ADDR tells DDP where they are
        yield {**env, "SLURM_CONF": str(folder / "s/slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    finally:
        run(ROOT / "tests/slurm/stop.sh", folder / "s", cwd=folder, expect=None)
        shutil.rmtree(folder, ignore_errors=True)  # the daemons still write their last lines


@pytest.fixture(scope="module")
def straight(demo: tuple[Path, str], python: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The history of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(python, "-m", "my_project.train", *LONG, "tracking=off", f"run_dir={folder}", cwd=demo[0])
    return (folder / "history.csv").read_text()


def until(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait for what Slurm or a job will do."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen in {seconds} s")


def queue(cluster: dict[str, str], *options: str) -> list[str]:
    """The jobs that are waiting or running, each task of an array by itself."""
    return run("squeue", "--noheader", "--array", "--format=%i", *options, cwd=ROOT, env=cluster).output.split()


def sbatch(project: Path, cluster: dict[str, str], *arguments: str) -> str:
    return run("sbatch", "--parsable", *arguments, cwd=project, env=cluster).output.strip()


def submit(project: Path, cluster: dict[str, str], *settings: str, options: tuple[str, ...] = ()) -> tuple[str, Path]:
    """A job of scripts/train.sbatch, and its run's folder."""
    job = sbatch(project, cluster, *ONE_TASK, *options, "scripts/train.sbatch", *settings)
    return job, project / "runs/slurm" / job


def finish(job: str, cluster: dict[str, str]) -> None:
    until(lambda: job not in queue(cluster), f"the end of job {job}")


def trained(folder: Path, epoch: int = 3) -> Callable[[], bool]:
    file = folder / "train.log"
    return lambda: file.is_file() and f"epoch {epoch} of" in file.read_text()


def preempt(project: Path, cluster: dict[str, str], node: str = "n1") -> None:
    """A job of the partition `high` wants the whole node for a moment."""
    finish(sbatch(project, cluster, "--partition=high", f"--nodelist={node}", "--exclusive", "--wrap=true"), cluster)


def num_starts(folder: Path) -> int:
    return len((folder / "starts.jsonl").read_text().splitlines())


def statuses(project: Path, python: Path, folder: Path) -> list[str]:
    """The status of each MLflow run that was made for this folder."""
    program = (
        "import mlflow, sys; from pathlib import Path; c = mlflow.MlflowClient('sqlite:///mlflow.db')\n"
        "runs = c.search_runs([e.experiment_id for e in c.search_experiments()])\n"
        "print([r.info.status for r in runs if Path(r.data.tags.get('run_dir', '')).name == sys.argv[1]])"
    )
    found: list[str] = eval(run(python, "-c", program, folder.name, cwd=project).output.splitlines()[-1])  # noqa: S307
    return found


def start_sweep(
    project: Path, python: Path, cluster: dict[str, str], *settings: str
) -> tuple[subprocess.Popen[str], Path]:
    """A sweep in the background, once its folder is named."""
    process = subprocess.Popen(
        [str(python), "-u", "-m", "my_project.train", "launch=slurm", *SMALL, *settings],
        cwd=project,
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("sweep "):
            return process, project / line.split()[1].rstrip(":")
    raise AssertionError(f"the sweep ended with {process.wait()} before it had a folder")


def test_a_sweep_returns_when_its_jobs_are_done(project: Path, python: Path, cluster: dict[str, str]) -> None:
    process, folder = start_sweep(
        project, python, cluster, "model=mlp,cnn", "optimizer.lr=0.01,0.003", "experiment=smoke"
    )
    printed = process.communicate(timeout=180)[0]
    assert process.returncode == 0, printed
    assert "4 of 4 runs finished" in printed
    assert len(list(folder.glob("*/metrics.json"))) == 4
    assert len(list(folder.glob("slurm/*_log.out"))) == 4


def test_a_job_that_fails_is_told_with_its_log(project: Path, python: Path, cluster: dict[str, str]) -> None:
    process, folder = start_sweep(
        project, python, cluster, "optimizer.lr=0.003,1e30", "experiment=smoke", "tracking=off"
    )
    printed = process.communicate(timeout=180)[0]
    assert process.returncode == 1, printed
    assert "1 of 2 runs finished" in printed
    assert "error: run 001: train/loss is nan at step " in printed
    assert f"See {folder.relative_to(project) / '001/train.log'}" in printed
    assert "train/loss is nan" in (folder / "001/train.log").read_text()


@pytest.mark.parametrize("told", ["USR1", "TERM"])
def test_a_preempted_job_goes_on_as_if_nothing_had_happened(
    project: Path, python: Path, cluster: dict[str, str], straight: str, told: str, tmp_path: Path
) -> None:
    if told == "USR1":
        job, folder = submit(project, cluster, *LONG)
    else:  # without --signal, and on clusters without preempt_send_user_signal
        folder = project / "runs/slurm/terminated"
        command = f"srun {python} -m my_project.train run_dir={folder} {' '.join(LONG)}"
        job = sbatch(project, cluster, *ONE_TASK, "--requeue", f"--output={tmp_path / 'log'}", f"--wrap={command}")
    until(trained(folder), "the third epoch")
    preempt(project, cluster)
    finish(job, cluster)
    assert num_starts(folder) == 2
    assert (folder / "history.csv").read_text() == straight
    assert statuses(project, python, folder) == ["FINISHED"]


def test_a_preempted_job_of_a_sweep_goes_on_and_the_launcher_waits_for_it(
    project: Path, python: Path, cluster: dict[str, str], straight: str
) -> None:
    process, folder = start_sweep(project, python, cluster, *LONG, "tracking=off", "+launch.extra.nodelist=n1")
    until(trained(folder / "000"), "the third epoch")
    preempt(project, cluster)
    printed = process.communicate(timeout=180)[0]
    assert process.returncode == 0, printed
    assert num_starts(folder / "000") == 2
    assert (folder / "000/history.csv").read_text() == straight


def test_a_job_whose_time_is_over_goes_on(project: Path, python: Path, cluster: dict[str, str], straight: str) -> None:
    """Slurm tells it with the signal of --signal, here sent by hand: the least time limit is a minute."""
    job, folder = submit(project, cluster, *LONG)
    until(trained(folder), "the third epoch")
    run("scancel", "--signal=USR1", job, cwd=project, env=cluster)
    finish(job, cluster)
    assert num_starts(folder) == 2
    assert (folder / "history.csv").read_text() == straight
    assert statuses(project, python, folder) == ["FINISHED"]


def test_a_cancelled_job_is_saved_and_does_not_come_back(project: Path, python: Path, cluster: dict[str, str]) -> None:
    job, folder = submit(project, cluster, "trainer=cpu", "trainer.max_epochs=4000")
    until(trained(folder), "the third epoch")
    until((folder / "mlflow_run_id").is_file, "its run in MLflow")  # the third epoch comes before MLflow is imported
    run("scancel", job, cwd=project, env=cluster)
    finish(job, cluster)
    time.sleep(8)  # a requeued job would be back after 6
    assert queue(cluster) == []
    assert num_starts(folder) == 1
    assert (folder / "checkpoints/last.ckpt").is_file()
    assert statuses(project, python, folder) == ["KILLED"]


def test_a_task_of_an_array_is_requeued_without_the_others(project: Path, cluster: dict[str, str]) -> None:
    array, _ = submit(project, cluster, *LONG, "tracking=off", options=("--array=0-1",))
    until(lambda: len(queue(cluster, "--states=running")) == 2, "the start of both")  # before, they have one raw id
    raw = run("squeue", "--noheader", "--array", "--format=%K %A", cwd=project, env=cluster).output.split()
    first, last = (project / "runs/slurm" / job for _, job in sorted(zip(raw[::2], raw[1::2], strict=True)))
    until(trained(last), "the third epoch of the last task")
    run("scancel", "--signal=USR1", f"{array}_1", cwd=project, env=cluster)
    until(lambda: not queue(cluster), "the end of the array")
    assert (num_starts(first), num_starts(last)) == (1, 2)


def test_a_cancelled_job_is_told_and_the_others_finish(project: Path, python: Path, cluster: dict[str, str]) -> None:
    settings = ("tracking=off", "experiment_name=trouble", "trainer.max_epochs=4000,40,1", "launch.parallel=3")
    process, folder = start_sweep(project, python, cluster, *settings)
    until(trained(folder / "000"), "the third epoch")
    until(trained(folder / "002", 1), "the end of the short run")
    until(lambda: len(queue(cluster)) <= 3, "all to run")
    job = next(job for job in queue(cluster) if job.endswith("_0"))
    run("scancel", job, cwd=project, env=cluster)
    printed = process.communicate(timeout=180)[0]
    assert process.returncode == 1, printed
    assert "2 of 3 runs finished" in printed
    assert "error: run 000: " in printed
    assert str(folder.relative_to(project) / "000/train.log") in printed
    assert queue(cluster) == []


def test_two_processes_train_one_model(project: Path, python: Path, cluster: dict[str, str]) -> None:
    two = ("--nodes=2", "--nodelist=n1,n2")
    job, folder = submit(project, cluster, "trainer=ddp", "trainer.accelerator=cpu", "experiment=smoke", options=two)
    finish(job, cluster)
    assert (folder / "metrics.json").is_file(), (project / f"slurm-{job}.log").read_text()
    assert num_starts(folder) == 1
    assert statuses(project, python, folder) == ["FINISHED"]


@pytest.mark.parametrize(
    "promise",
    [
        test_devices.test_one_run_of_two_processes_is_the_run_of_one,
        test_devices.test_a_sweep_of_runs_of_two_processes,
        test_devices.test_a_run_that_lost_one_process_is_continued,
    ],
)
def test_two_processes_started_by_srun(
    promise: Callable[..., None], tmp_path: Path, project: Path, python: Path, cluster: dict[str, str]
) -> None:
    work = test_devices.Workplace(tmp_path, project, python)
    work.env |= {name: cluster[name] for name in ("SLURM_CONF", "MASTER_ADDR")}
    promise(work, "srun")


def test_processes_that_would_train_twice_are_refused(
    project: Path, python: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    srun = ("srun", "--ntasks=2", "--mem=4G", python, "-m", "my_project.train", f"run_dir={tmp_path / 'run'}")
    printed = run(*srun, "trainer=cpu", cwd=project, env=cluster, expect=1).output
    assert printed.count("error: trainer.devices x trainer.num_nodes is 1 x 1, but srun started 2 processes.") == 1
    printed = run(*srun, "trainer=ddp", "trainer.accelerator=cpu", cwd=project, env=cluster, expect=1).output
    sentence = "error: Lightning does not take srun's --ntasks=2. Write --ntasks-per-node=2 instead.\n"
    assert printed.count(sentence) == 1
    assert not (tmp_path / "run").exists()


def train(project: Path, python: Path, env: dict[str, str], *settings: str) -> Answer:
    return run(python, "-m", "my_project.train", "launch=slurm", *SMALL, *settings, cwd=project, env=env, expect=1)


def test_what_slurm_lacks_is_one_sentence(project: Path, python: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    lines = train(project, python, cluster, "launch.partition=gpu").output.splitlines()
    assert "error: launch.partition must be one of high, low, got gpu." in lines

    lines = train(project, python, cluster, "+launch.extra.constraint=a100").output.splitlines()
    refused = "Slurm does not take the jobs: Batch job submission failed: Invalid feature specification."
    assert f"error: {refused} Change launch.*, see conf/launch/slurm.yaml." in lines

    dead = tmp_path / "slurm.conf"
    text = Path(cluster["SLURM_CONF"]).read_text()
    dead.write_text("\n".join("SlurmctldPort=1" if "SlurmctldPort" in line else line for line in text.splitlines()))
    printed = train(project, python, {**cluster, "SLURM_CONF": str(dead)}).output
    assert "error: launch=slurm needs Slurm, which does not answer: " in printed
    assert "Traceback" not in printed


def test_without_slurm_there_is_one_sentence(project: Path, python: Path, env: dict[str, str], tmp_path: Path) -> None:
    lines = train(project, python, {**env, "PATH": str(tmp_path)}).output.splitlines()
    sentence = "launch=slurm needs Slurm, but there is no sbatch here."
    assert f"error: {sentence} Run it on the cluster's login node, or use launch=local." in lines


def test_what_is_edited_while_jobs_wait_is_not_what_runs(project: Path, python: Path, cluster: dict[str, str]) -> None:
    package = project / "src/my_project"
    files = {package / "model.py": "raise RuntimeError('edited')\n", package / "conf/optimizer/adamw.yaml": "lr: 9.0\n"}
    before = {file: file.read_text() for file in files}
    process, folder = start_sweep(project, python, cluster, "experiment=smoke", "seed=0,1", "+launch.extra.begin=now+6")
    until(lambda: queue(cluster), "the submission")
    try:
        for file, line in files.items():
            file.write_text(before[file].replace("lr: 0.003\n", "") + line)
        printed = process.communicate(timeout=180)[0]
    finally:
        for file, text in before.items():
            file.write_text(text)
    assert process.returncode == 0, printed
    assert "lr: 0.003" in (folder / "001/config.yaml").read_text()


def test_a_run_without_srun_is_preempted_and_goes_on(
    project: Path, python: Path, cluster: dict[str, str], straight: str
) -> None:
    alone = ("launch.use_srun=false", "tracking=off", "+launch.extra.nodelist=n1")
    process, folder = start_sweep(project, python, cluster, *LONG, *alone)
    until(trained(folder / "000"), "the third epoch")
    preempt(project, cluster)
    printed = process.communicate(timeout=180)[0]
    assert process.returncode == 0, printed
    assert "srun" not in next(folder.glob("slurm/*.sh")).read_text().partition("# command")[2]
    assert num_starts(folder / "000") == 2
    assert (folder / "000/history.csv").read_text() == straight


# the products of a node that has gone bad: what the doctor multiplies there is wrong
BAD_NODE = """
import sys
if "runengine.machine.collect_env" in sys.orig_argv:
    import torch
    product = torch.mm
    torch.mm = lambda left, right, out: product(left, right, out=out).mul_(2)
"""


def test_a_bad_node_is_left_out(
    project: Path, python: Path, cluster: dict[str, str], straight: str, tmp_path: Path
) -> None:
    """By the job that was requeued there: it trains to its end on another one."""
    (tmp_path / "sitecustomize.py").write_text(BAD_NODE)
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n"
        f'[ "$SLURMD_NODENAME" != n1 ] || export PYTHONPATH={tmp_path}\n'
        f"srun {python} -m my_project.train run_dir={tmp_path / 'run'} tracking=off {' '.join(LONG)}\n"
    )
    anywhere = [option for option in ONE_TASK if "nodelist" not in option]
    job = sbatch(
        project, cluster, *anywhere, "--requeue", "--open-mode=append", f"--output={tmp_path / 'log'}", str(script)
    )
    until(trained(tmp_path / "run"), "the third epoch")
    run("scontrol", "requeue", job, cwd=project, env=cluster)
    finish(job, cluster)
    log = (tmp_path / "log").read_text()
    said = rf"^warning: node n1 is left out, job {job} goes to another one: arithmetic: cpu fp32 is wrong: "
    assert re.search(said, log, re.MULTILINE), log
    assert " ExcNodeList=n1 " in run("scontrol", "show", "job", "-o", job, cwd=project, env=cluster).output
    assert (tmp_path / "run/history.csv").read_text() == straight
