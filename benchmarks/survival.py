"""Kill trainings at random moments, continue them, and compare with one that was left alone.

    make demo
    python benchmarks/survival.py --kills 50

Of every three, one is killed while a checkpoint is being written. Each is continued to its end; then weights and
history must be those of the straight run bit for bit, and MLflow must have one run with each step once.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "demo/my-project"
# checkpoints of 7 MB after every second step: much of the time one is being written
SETTINGS = (
    "model=mlp",
    "model.hidden=512",
    "trainer=cpu",
    "trainer.max_epochs=8",
    "trainer.limit_train_batches=9",
    "checkpoint.every_n_steps=2",
    "patience=5",
    "lr_scheduler=cosine",
)
CHECKPOINT = "checkpoints/last.ckpt"
QUICK = ("trainer.max_epochs=3", "tracking.log_model=false")
MOST_ATTEMPTS = 9  # to kill a training before it ends by itself
# what is the same each time: not the time it took, nor the load of the machine
METRICS = """select key, step, value from metrics
    where key not like 'speed/%' and key not like 'system/%' order by key, step"""
TWICE = "select count(*) from (select 1 from metrics group by key, step having count(*) > 1)"
DIGESTS = """
import hashlib, sys, torch
for name in sys.argv[1:]:
    state = torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    print(hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest())
"""


@dataclass(frozen=True)
class Kill:
    """What became of one killed training."""

    moment: str
    left: bool  # a checkpoint, at the moment of the kill
    continued: bool
    equal: bool
    num_mlflow_runs: int
    steps_once: bool

    def survived(self) -> bool:
        return self.continued and self.equal and self.num_mlflow_runs == 1 and self.steps_once


class Trainings:
    """Trainings of one project, each in a folder of its own under `folder`.

    Args:
        project: was generated and set up.
        package: its import name.
        more: settings.
    """

    def __init__(self, project: Path, package: str, folder: Path, more: tuple[str, ...] = ()) -> None:
        self.project, self.package, self.folder = project, package, folder
        self.settings = (*SETTINGS, *more)
        self.python = project / ".venv/bin/python"
        started = time.monotonic()
        process = self.start("straight")
        self.wait_for("straight", process, CHECKPOINT)
        first_checkpoint = time.monotonic()
        self.wait_for("straight", process, "metrics.json")
        self.training_s = time.monotonic() - first_checkpoint
        if process.wait() != 0:
            raise RuntimeError(self.log("straight"))
        self.duration_s = time.monotonic() - started
        self.to_end_s = time.monotonic() - first_checkpoint  # with what MLflow gets after the last step

    def wait_for(self, name: str, process: subprocess.Popen[bytes], file: str) -> None:
        while not (self.folder / name / file).exists():
            if process.poll() is not None:
                raise RuntimeError(self.log(name))
            time.sleep(0.002)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / name}.db",
            "OMP_NUM_THREADS": "1",
        }
        command = [str(self.python), "-m", f"{self.package}.train", *self.settings, f"run_dir={self.folder / name}"]
        with (self.folder / f"{name}.out").open("ab") as output:
            return subprocess.Popen(
                command, cwd=self.project, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(encoding="utf-8", errors="replace")[-3000:]

    def kill(self, number: int, seed: int, attempt: int = 0) -> tuple[str, str, bool, bool]:
        """Name, moment, whether it left a checkpoint, and whether it could be continued."""
        chance = random.Random(f"{seed}-{number}-{attempt}")  # noqa: S311
        name = f"killed-{number}-{attempt}"
        process = self.start(name)
        run = self.folder / name
        early = number % 4 == 0  # from the folder's first file on; else from the first checkpoint on
        self.wait_for(name, process, "starts.jsonl" if early else CHECKPOINT)
        writing = number % 3 == 0
        delay_s = chance.random() * (self.training_s * 0.5 if writing else self.to_end_s * 0.95)  # some are quicker
        moment = f"{delay_s:.2f} s after the {'start' if early else 'first checkpoint'}"
        time.sleep(delay_s)
        if writing:
            moment += ", writing"
            while process.poll() is None and not (run / f"{CHECKPOINT}.new").exists():
                pass
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == 0 and attempt < MOST_ATTEMPTS:  # too late: this one counts for nothing
            return self.kill(number, seed, attempt + 1)
        left = (run / CHECKPOINT).exists()
        return name, moment, left, self.start(name).wait() == 0

    def judge(self, name: str, moment: str, left: bool, continued: bool, equal: bool) -> Kill:
        if not continued:
            return Kill(moment, left, False, False, -1, False)
        with sqlite3.connect(self.folder / f"{name}.db") as database:
            (num_runs,) = database.execute("select count(*) from runs where status = 'FINISHED'").fetchone()
            (all_runs,) = database.execute("select count(*) from runs").fetchone()
            rows = database.execute(METRICS).fetchall()
            (twice,) = database.execute(TWICE).fetchone()
        with sqlite3.connect(self.folder / "straight.db") as database:
            wanted = database.execute(METRICS).fetchall()
        histories = [(self.folder / run / "history.csv").read_bytes() for run in (name, "straight")]
        same = equal and histories[0] == histories[1]
        return Kill(moment, left, continued, same, all_runs if num_runs == 1 else -1, rows == wanted and not twice)

    def digests(self, names: list[str]) -> list[str]:
        folders = [str(self.folder / name) for name in names]
        done = subprocess.run([self.python, "-c", DIGESTS, *folders], capture_output=True, text=True, check=True)
        return done.stdout.split()


def survive(
    project: Path, package: str, num_kills: int, seed: int, folder: Path, more: tuple[str, ...] = ()
) -> list[Kill]:
    """Kill and continue so many trainings, two at a time."""
    trainings = Trainings(project, package, folder, more)
    print(f"straight run: {trainings.duration_s:.1f} s, of it training {trainings.training_s:.1f} s", flush=True)
    kills = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(trainings.kill, number, seed) for number in range(num_kills)]
        for number, task in enumerate(concurrent.futures.as_completed(tasks), 1):
            kills.append(task.result())
            print(f"\r{number} of {num_kills} killed and continued", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    names = [name for name, _, _, continued in kills if continued]
    for name, moment, _, continued in kills:
        if not continued:
            print(f"LOST: {name}, killed {moment}:\n{trainings.log(name)}")
    straight, *digests = trainings.digests(["straight", *names])
    equal = {name for name, digest in zip(names, digests, strict=True) if digest == straight}
    return [trainings.judge(*kill, equal=kill[0] in equal) for kill in kills]


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill trainings at random moments and continue them.")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="does it still run? In seconds; the figures mean nothing")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--package", default="my_project")
    arguments = parser.parse_args()
    if not (arguments.project / ".venv/bin/python").exists():
        sys.exit(f"error: there is no project with a .venv in {arguments.project}. Run: make demo")
    num_kills, more = (1, QUICK) if arguments.quick else (arguments.kills, ())
    project, seed = arguments.project.absolute(), arguments.seed
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kills = survive(project, arguments.package, num_kills, seed, Path(folder), more)
    for kill in kills:
        if kill.continued and not kill.survived():
            print(f"LOST: {kill}")
    print(f"kills                {len(kills)}, while writing {sum('writing' in kill.moment for kill in kills)}")
    print(f"  with a checkpoint  {sum(kill.left for kill in kills)}")
    print(f"continued            {sum(kill.continued for kill in kills)}")
    print(f"equal, bit for bit   {sum(kill.equal for kill in kills)}")
    print(f"one MLflow run       {sum(kill.num_mlflow_runs == 1 for kill in kills)}")
    print(f"each step once       {sum(kill.steps_once for kill in kills)}")
    print(f"{time.monotonic() - started:.0f} s on {os.cpu_count()} cores, two at a time, seed {seed}")
    sys.exit(not all(kill.survived() for kill in kills))


if __name__ == "__main__":
    main()
