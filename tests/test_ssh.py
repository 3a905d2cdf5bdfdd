"""Runs on another machine by SSH: a real sshd on loopback, a user with a home of its own, no folder in common."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SSHD, free_port, link_environment, run, serve_ssh
from test_kubernetes import TRACKED, WEIGHTS, interruptible
from test_slurm import cluster, until

__all__ = ["cluster"]  # the fixture
pytestmark = pytest.mark.slow

USER = "gpu-box"
LONG = ("trainer=cpu", "trainer.max_epochs=40", "checkpoint.every_n_steps=3")
QUICK = ("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2")


@dataclass
class Place:
    """A project here, and one on the other machine, which knows nothing of this one."""

    here: Path
    there: Path
    env: dict[str, str]

    def command(self, *settings: str) -> list[str]:
        return ["python", "-m", "my_project.train", "launch=ssh", "launch.host=box", *settings]

    def train(self, *settings: str, expect: int = 0) -> str:
        return run(*self.command(*settings), cwd=self.here, env=self.env, expect=expect).output

    def start(self, *settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*settings), cwd=self.here, env=self.env, text=True, preexec_fn=interruptible,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def make(self, *words: str) -> str:
        return run("make", *words, cwd=self.here, env=self.env).output

    def log(self) -> str:
        """Of the run there, the newest."""
        found = sorted((self.there / "runs").glob("*/sweep-*/000/train.log"))
        return found[-1].read_text() if found else ""

    def sweep(self) -> Path:
        return max((self.here / "runs").glob("*/sweep-*")).relative_to(self.here)

    def outcome(self, folder: Path) -> tuple[str, str]:
        weights = run("python", "-c", WEIGHTS, folder, cwd=self.here, env=self.env).output
        return (self.here / folder / "history.csv").read_text(), weights


@pytest.fixture(scope="module")
def box() -> Iterator[tuple[Path, Path]]:
    """The home of the user of another machine, and the program that reaches it as `box`."""
    if os.geteuid() != 0 or not (SSHD.exists() and shutil.which("rsync")):
        pytest.skip("another user needs root, and: apt-get install openssh-server rsync")
    folder = Path(tempfile.mkdtemp(prefix="box-"))
    # the interpreter may lie in a folder that is root's: another name and home, but the same rights; and the same
    # group, without which Slurm takes a job's credential for a forged one
    account = ("--home-dir", folder / "home", "--shell", "/bin/bash", "--password", "*")  # without one it is locked
    run("useradd", "--non-unique", "--uid", "0", "--gid", "0", *account, USER, cwd=folder)
    (folder / "home").mkdir()
    try:
        # as here: sums would be rounded otherwise
        with serve_ssh(folder, "PermitRootLogin yes", "SetEnv OMP_NUM_THREADS=1") as port:
            known, same = folder / "known_hosts", f"Port {port}\nHostname 127.0.0.1\nUser {USER}\nIdentitiesOnly yes\n"
            known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}", encoding="utf-8")
            (folder / "config").write_text(
                f"Host off\nPort {free_port()}\n"  # the first that ssh reads is the one that holds
                f"Host box off\nIdentityFile {folder}/key\nUserKnownHostsFile {known}\n{same}"
                f"Host locked\nIdentityFile {folder}/other\nUserKnownHostsFile {known}\n{same}"
                f"Host stranger\nIdentityFile {folder}/key\nUserKnownHostsFile /dev/null\n{same}",
                encoding="utf-8",
            )
            tools = folder / "tools"
            tools.mkdir()
            (tools / "ssh").write_text(
                f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n', encoding="utf-8"
            )
            (tools / "ssh").chmod(0o755)
            yield folder / "home", tools
    finally:
        run("userdel", "--force", USER, cwd=Path("/"), expect=None)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(box: tuple[Path, Path], project: Path, python: Path, env: dict[str, str], tmp_path: Path) -> Iterator[Place]:
    home, tools = box
    here, there = tmp_path / "project", home / "project"
    here.mkdir()
    for part in project.iterdir():
        if part.name in ("src", "scripts", "data", ".dvc"):
            shutil.copytree(part, here / part.name)
        elif part.name == ".venv":
            (here / part.name).symlink_to(part)
        elif part.is_file() and part.name != "mlflow.db":
            shutil.copy(part, here)
    there.mkdir()
    shutil.copy(project / "pyproject.toml", there)
    link_environment(project, there)  # as `make setup` has made it
    path = f"{tools}:{python.parent}:{env['PATH']}"
    place = Place(here, there, {**env, "PATH": path, "PYTHONPATH": str(here / "src")})
    try:
        yield place
    finally:
        subprocess.run(["pkill", "-9", "-f", str(there)], check=False)
        subprocess.run(["pkill", "-9", "-f", f"{home}/"], check=False)
        shutil.rmtree(there, ignore_errors=True)


OUTCOMES: dict[str, tuple[str, str]] = {}  # trained once for all tests


def straight(place: Place) -> tuple[str, str]:
    """The outcome of a training here, that nothing disturbed."""
    if "straight" not in OUTCOMES:
        command = ("python", "-m", "my_project.train", *LONG, "tracking=off", "run_dir=runs/straight")
        run(*command, cwd=place.here, env=place.env)
        OUTCOMES["straight"] = place.outcome(Path("runs/straight"))
    return OUTCOMES["straight"]


def test_a_run_there_goes_on_without_this_machine_and_is_brought_back(place: Place) -> None:
    process = place.start(*LONG)
    until(lambda: "epoch 5 of 40" in place.log(), "the fifth epoch there")
    os.killpg(process.pid, signal.SIGKILL)  # the laptop is closed
    process.communicate()
    known = len(place.log())
    until(lambda: len(place.log()) > known, "another epoch there")
    assert re.search(rf"my-project-\S+-000 +ssh +running +{place.sweep()}", place.make("jobs"))
    trains = subprocess.run(["pgrep", "-f", f"my_project.train .*{place.sweep()}"], capture_output=True, text=True)
    for pid in trains.stdout.split():  # killed there as well, by whatever it may be
        os.kill(int(pid), signal.SIGKILL)
    printed = place.make("resume")
    print(printed)
    assert f"resuming sweep {place.sweep()}, whose runs were started somewhere else\n" in printed
    assert "resuming from" in place.log()
    assert "1 of 1 runs finished" in printed
    assert place.outcome(place.sweep() / "000") == straight(place)
    runs = run("python", "-c", TRACKED, cwd=place.here, env={**place.env, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})
    assert sorted(runs.output.splitlines()[-2:]) == ["FINISHED False", "FINISHED True"]
    assert not (place.there / "mlflow.db").exists()
    assert "no jobs" not in place.make("jobs")


def test_a_sweep_of_six_there(place: Place) -> None:
    settings = ("optimizer.lr=0.001,0.01,1e38", "seed=0,1", "tracking=off", "launch.parallel=3")
    printed = place.train(*QUICK, *settings, expect=1)
    print(printed)
    assert "4 of 6 runs finished" in printed
    assert re.search(r"error: run 004: train/loss is (nan|inf) at step \d: training stops here\.", printed)
    assert len((place.here / place.sweep() / "sweep.csv").read_text().splitlines()) == 7
    assert (place.here / place.sweep() / "000/checkpoints/best.ckpt").exists()
    scripts = sorted((place.here / place.sweep() / "launch").iterdir())
    assert [file.name for file in scripts] == [f"00{number}.sh" for number in range(6)]
    for script in scripts:
        run("bash", "-n", script, cwd=place.here)


def test_ctrl_c_leaves_it_and_it_can_be_cancelled(place: Place) -> None:
    process = place.start("trainer=cpu", "trainer.max_epochs=4000", "tracking=off")
    until(lambda: "epoch 2 of 4000" in place.log(), "the second epoch there")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f'the jobs go on. To cancel them: make jobs ARGS="--cancel {place.sweep()}"' in printed
    assert "cancelled 1 of 1 jobs" in place.make("jobs", f"ARGS=--cancel {place.sweep()}")
    until(lambda: "stopped. Resume with" in place.log(), "the last checkpoint there")
    until(lambda: "running" not in place.make("jobs"), "the end of the job")


# each a regular expression
SENTENCES = {
    "locked": r"locked does not let you in without a password\. Give it your key: ssh-copy-id locked \(before that, if "
    r"you have none: ssh-keygen\)\.",
    "stranger": r"the key of stranger is not known, or not the one that was known\. Look at it once: ssh stranger",
    "off": r"off cannot be reached: ssh: connect to host 127\.0\.0\.1 port \d+: Connection refused\. Try: ssh off",
    "none.invalid": r"none\.invalid cannot be reached: ssh: Could not resolve hostname none\.invalid: .*\. "
    r"Try: ssh none\.invalid",
}


def test_a_machine_that_lets_nobody_in_is_one_sentence(place: Place) -> None:
    for host, sentence in SENTENCES.items():
        printed = place.train(*QUICK, "tracking=off", f"launch.host={host}", expect=1)
        (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert re.fullmatch(f"error: {sentence}", error), error


def test_what_would_be_started_is_shown_and_nothing_is(place: Place) -> None:
    printed = place.train(*QUICK, "launch.dry_run=true", "launch.folder=work/x")
    folder = f"{place.sweep()}/launch"
    assert printed.splitlines()[-1] == (
        f"nothing was started. What would be is in {folder}; to start it: for run in {folder}/*.sh; "
        "do ssh box bash -s <$run; done"
    )
    assert "cd $HOME/work/x" in (place.here / folder / "000.sh").read_text()
    assert json.loads((place.here / place.sweep() / "launch.json").read_text())["settings"]["host"] == "box"


def test_a_cluster_is_reached_from_outside(place: Place, box: tuple[Path, Path], cluster: dict[str, str]) -> None:
    """A run that is requeued while nobody looks, and a sweep of which one fails; both by sbatch on the login node."""
    home, _ = box
    profile = home / ".bashrc"
    profile.write_text("".join(f"export {name}={cluster[name]}\n" for name in ("SLURM_CONF", "MASTER_ADDR")))
    slurm = ("launch=slurm", "launch.host=box", "launch.cpus=1", "launch.memory_gb=2", "tracking=off")
    try:
        process = place.start(*LONG, *slurm)
        until(lambda: "epoch 5 of 40" in place.log(), "the fifth epoch there")
        os.killpg(process.pid, signal.SIGKILL)  # the laptop is closed
        process.communicate()
        (job,) = run("squeue", "--noheader", "--format=%i", cwd=place.here, env=cluster).output.split()
        run("scancel", "--signal=USR1", job, cwd=place.here, env=cluster)
        until(lambda: "resuming from" in place.log(), "the job's return")
        assert re.search(rf"my-project-\S+-000 +slurm +running +{place.sweep()}", place.make("jobs"))
        printed = place.train(f"sweep_dir={place.sweep()}")
        print(printed)
        assert "1 of 1 runs finished" in printed
        assert "Traceback" not in printed  # Slurm signals what it puts back, until that has ended
        assert place.outcome(place.sweep() / "000") == straight(place)

        printed = place.train(*QUICK, *slurm, "optimizer.lr=0.001,1e38", expect=1)
        print(printed)
        assert "1 of 2 runs finished" in printed
        assert re.search(r"error: run 001: train/loss is (nan|inf) at step \d: training stops here\.", printed)

        printed = place.train(*QUICK, *slurm, "launch.partition=none", expect=1)
        assert "error: launch.partition must be one of high, low, got none.\n" in printed
        printed = place.train(*QUICK, *slurm, "+launch.extra.constraint=a100", expect=1)
        assert re.search(r"error: Slurm does not take job \S+: Batch job submission failed: Invalid feature ", printed)
    finally:
        profile.unlink()
    printed = place.train(*QUICK, *slurm, expect=1)
    assert "error: Slurm does not answer on box: " in printed
    assert "Traceback" not in printed
