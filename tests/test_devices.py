"""Several processes for one run, however they were started: one folder, one MLflow run, the result of one process.

Two processes over gloo on the CPU; test_slurm.py does the same with srun.
What was seen is printed: pytest tests/test_devices.py -rP
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from conftest import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores"),
]

# full batches and no dropout: then the devices' number changes the rounding and nothing else
SETTINGS = (
    "model=mlp", "model.dropout=0", "trainer.max_epochs=3", "trainer.limit_train_batches=8"
)  # fmt: skip
ONE = (*SETTINGS, "trainer=cpu")
DDP = (*SETTINGS, "trainer=ddp", "trainer.accelerator=cpu")
FSDP = (*SETTINGS, "trainer=fsdp", "trainer.accelerator=cpu")
COMPARE = """
import sys, torch
one, other = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in sys.argv[1:])
equal = all(torch.equal(one[name], other[name]) for name in one)
near = all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in one)
print("equal" if equal else "near" if near else "different", end="")
"""
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1
STARTERS = ["lightning", "torchrun"]


class Workplace:
    """A folder with prepared data and a tracking store of its own."""

    def __init__(self, folder: Path, project: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        (folder / "data").symlink_to(project / "data")
        (folder / "pyproject.toml").write_text('[tool.runengine]\npackage = "my_project"\n', encoding="utf-8")
        self.env = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{python.parent}:{os.environ['PATH']}",
        }

    def command(self, starter: str, *settings: str) -> list[str]:
        train = ["-m", "my_project.train", *settings]
        if starter == "torchrun":
            return ["torchrun", "--standalone", "--nproc-per-node=2", *train]
        if starter == "srun":  # test_slurm.py
            tasks = ["--nodes=1", "--ntasks-per-node=2", "--mem=6G", "--kill-on-bad-exit=1"]
            return ["srun", *tasks, str(self.python), *train]
        return [str(self.python), *train]

    def train(self, starter: str, *settings: str, expect: int = 0) -> str:
        return run(*self.command(starter, *settings), cwd=self.folder, env=self.env, expect=expect).output

    def runs(self) -> list[Path]:
        return sorted(file.parent for file in (self.folder / "runs").rglob("config.yaml"))

    def mlflow_runs(self) -> list[tuple[str, int]]:
        """Status and number of metric rows of each that is not the parent of others."""
        query = """
            select status, (select count(*) from metrics where metrics.run_uuid = runs.run_uuid and key = 'epoch')
            from runs where run_uuid not in (select value from tags where key = 'mlflow.parentRunId')
        """
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            return database.execute(query).fetchall()

    def ranks(self) -> dict[int, int]:
        """Rank of each process that trains here, by its id; torchrun and srun themselves have none."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            here = f"MLFLOW_TRACKING_URI={self.env['MLFLOW_TRACKING_URI']}".encode() in environment
            starts = any(part.endswith((b"torchrun", b"srun")) for part in command)
            if here and b"my_project.train" in command and not starts:
                variables = dict(part.split(b"=", 1) for part in environment if b"=" in part)
                rank = variables.get(b"LOCAL_RANK", variables.get(b"SLURM_PROCID", b"0"))
                found[int(folder.name)] = int(rank)
        return found

    def listening(self) -> set[str]:
        """Addresses at which these processes can be reached, in hexadecimal, as the kernel lists them."""
        found = set()
        for pid in self.ranks():
            with contextlib.suppress(OSError):  # it has ended
                tables = [Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
                fields = [line.split() for table in tables for line in table.splitlines()]
                places = {field[9]: field[1].partition(":")[0] for field in fields if field[3] == "0A"}
                sockets = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
                found |= {place for inode, place in places.items() if f"socket:[{inode}]" in sockets}
        return found

    def compare(self, one: Path, other: Path) -> str:
        return run(self.python, "-c", COMPARE, one, other, cwd=self.folder).output


@pytest.fixture
def work(tmp_path: Path, project: Path, python: Path) -> Workplace:
    return Workplace(tmp_path, project, python)


@pytest.mark.parametrize("starter", STARTERS)
def test_one_run_of_two_processes_is_the_run_of_one(work: Workplace, starter: str) -> None:
    assert "not registered" not in work.train(starter, *DDP, "register=true")
    (ddp,) = work.runs()
    assert (ddp / "model/MLmodel").is_file()
    assert work.mlflow_runs() == [("FINISHED", 3)]
    work.train("lightning", *ONE, "run_dir=runs/one")
    result = work.compare(ddp, work.folder / "runs/one")
    print(f"{starter}, single run: folders 1, MLflow runs 1, {result} to one process")
    assert result in ("equal", "near")


@pytest.mark.parametrize("starter", STARTERS)
def test_a_sweep_of_runs_of_two_processes(work: Workplace, starter: str) -> None:
    work.train(starter, "-m", *DDP, "seed=0,1")
    first, second = work.runs()
    assert first.parent == second.parent
    assert sorted(work.mlflow_runs()) == [("FINISHED", 3), ("FINISHED", 3)]
    work.train("lightning", *ONE, "run_dir=runs/one", "seed=1")
    result = work.compare(second, work.folder / "runs/one")
    print(f"{starter}, multirun of 2: folders 2, MLflow runs 2 and their parent, {result} to one process")
    assert result in ("equal", "near")


@pytest.mark.parametrize("starter", STARTERS)
def test_a_run_that_lost_one_process_is_continued(work: Workplace, starter: str) -> None:
    """Whether the process is gone, or there and does not answer any more."""
    long = (*DDP, "model.dropout=0.1", "trainer.max_epochs=20", "checkpoint.every_n_steps=3")
    work.train(starter, *long, "run_dir=runs/straight")
    # torchrun ends the one that does not answer by itself, once another has ended
    for signum in (signal.SIGKILL, signal.SIGSTOP) if starter == "lightning" else (signal.SIGKILL,):
        folder = work.folder / "runs" / signum.name
        record, listening = folder / "train.log", set()
        settings = (*long, f"run_dir=runs/{signum.name}", "watchdog.minutes=0.1")
        with (work.folder / "output").open("w") as output:
            process = subprocess.Popen(
                work.command(starter, *settings), cwd=work.folder, env=work.env, stdout=output, stderr=output
            )
            while not (record.exists() and "epoch 5 of 20" in record.read_text()):
                assert process.poll() is None, (work.folder / "output").read_text()
                listening |= work.listening()
                time.sleep(0.02)
            if starter == "lightning":  # torchrun and srun are for several machines, too
                assert listening
                assert listening <= LOOPBACK
            (other,) = [pid for pid, rank in work.ranks().items() if rank == 1]
            os.kill(other, signum)
            status, started_at = process.wait(timeout=120), time.monotonic()
        print(f"{starter}, rank 1 got {signum.name}: exit status {status}")
        assert status != 0
        assert not (folder / "metrics.json").exists()
        if signum == signal.SIGSTOP:
            assert status == 75
            assert "this training hangs: " in record.read_text()
            assert "Thread 0x" in (folder / "hang-0.txt").read_text()
            while work.ranks():  # none is left over
                assert time.monotonic() - started_at < 60, work.ranks()
                time.sleep(0.1)
        work.train(starter, *long, f"run_dir=runs/{signum.name}")
        result = work.compare(folder, work.folder / "runs/straight")
        print(f"{starter}, resumed: folders 1, MLflow runs 1, {result} to a straight run")
        assert result == "equal"
        assert (folder / "history.csv").read_text() == (work.folder / "runs/straight/history.csv").read_text()
    assert set(work.mlflow_runs()) == {("FINISHED", 20)}
    assert len(work.mlflow_runs()) == len(work.runs())


def test_shared_parameters_are_continued_by_any_number_of_processes(work: Workplace) -> None:
    work.train("lightning", *FSDP, "run_dir=runs/fsdp")
    work.train("lightning", *ONE, "run_dir=runs/one")
    assert work.compare(work.folder / "runs/fsdp", work.folder / "runs/one") in ("equal", "near")
    work.train("lightning", *FSDP, "run_dir=runs/fsdp", "trainer.max_epochs=4")
    work.train("lightning", *ONE, "run_dir=runs/fsdp", "trainer.max_epochs=5", "allow_changes=true")
    work.train("lightning", *ONE, "run_dir=runs/one", "trainer.max_epochs=5")
    result = work.compare(work.folder / "runs/fsdp", work.folder / "runs/one")
    print(f"fsdp over gloo, resumed by two processes and then by one: {result} to one process")
    assert result in ("equal", "near")


def test_sigterm_to_one_process_stops_all(work: Workplace) -> None:
    settings = (*DDP, "trainer.max_epochs=400", "run_dir=runs/x")
    process = subprocess.Popen(work.command("lightning", *settings), cwd=work.folder, env=work.env)
    record = work.folder / "runs/x/train.log"
    while not (record.exists() and "epoch 2 of 400" in record.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert "Resume with: python -m my_project.train run_dir=runs/x" in record.read_text().splitlines()[-1]
    assert not work.ranks()


def test_processes_that_would_train_twice_are_refused(work: Workplace) -> None:
    printed = work.train("torchrun", *ONE, expect=1)
    sentence = (
        "error: trainer.devices x trainer.num_nodes is 1 x 1, but torchrun started 2 processes. Make them equal, "
        "for example trainer=ddp trainer.devices=2, or start one process."
    )
    assert printed.count("error: trainer.devices") == 1
    assert sentence in printed
    assert not work.runs()
