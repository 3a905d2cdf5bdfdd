"""Kill trainings at random moments, resume them, and compare with one that was left alone.

    make demo
    python benchmarks/survival.py --kills 50
    python benchmarks/survival.py --kills 50 --move --damage    # and move or damage what the killed one left

Of every three, one is killed while a checkpoint is being written. Each is resumed to its end; then the weights of the
last and of the best checkpoint and the history must be those of the straight run bit for bit, and MLflow must have one
run with each step once. The best epoch lies before the last: a run that forgets it would show. A damaged file may also
be refused, in one sentence; what must not happen is another result without a word.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "demo/my-project"
# checkpoints of 7 MB after every second step: much of the time one is being written. The learning rate is least after
# the fourth epoch and then grows again: the best epoch is the sixth of eight
SETTINGS = (
    "model=mlp", "model.hidden=512", "trainer=cpu", "trainer.max_epochs=8", "trainer.limit_train_batches=9",
    "checkpoint.every_n_steps=2", "patience=5",
    "optimizer.lr=0.02", "lr_scheduler=cosine", "lr_scheduler.scheduler.T_max=4",
)  # fmt: skip
CHECKPOINT = "checkpoints/last.ckpt"
QUICK = ("trainer.max_epochs=3",)
MOST_ATTEMPTS = 9  # to kill a training before it ends by itself
MOVES = ("the run", "the project", "both")
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "garbage": lambda content: b"\xff{]" + content[3:],
}
FILES = (  # of a run's folder
    "config.yaml", CHECKPOINT, "metrics.jsonl", "starts.jsonl", "mlflow_run_id", "checkpoints/best.ckpt", "run.json",
    "environment.json", "data.json", "train.log", "mlflow_sent.json", "history.csv", "checkpoints/fingerprint.json",
)  # fmt: skip
# what is the same each time: not the time it took, nor the load of the machine
METRICS = """select key, step, value from metrics
    where key not like 'speed/%' and key not like 'system/%' order by key, step"""
TWICE = "select count(*) from (select 1 from metrics group by key, step having count(*) > 1)"
DIGESTS = """
import hashlib, sys, torch
for name in sys.argv[1:]:
    digest = hashlib.sha256()
    try:
        for file in ("last", "best"):
            state = torch.load(f"{name}/checkpoints/{file}.ckpt", weights_only=True)["state_dict"]
            digest.update(b"".join(tensor.numpy().tobytes() for tensor in state.values()))
        print(digest.hexdigest())
    except Exception:
        print("unreadable")
"""


@dataclass
class Kill:
    """What became of one killed training."""

    place: Place
    moment: str
    left: bool  # a checkpoint, at the moment of the kill
    change: str = ""  # what was moved or damaged before it was resumed
    resumed: bool = False
    refused: str = ""  # the sentence
    equal: bool = False
    num_mlflow_runs: int = -1
    steps_once: bool = False
    said: list[str] = field(default_factory=list)  # about what is damaged

    def survived(self) -> bool:
        if self.refused:
            return self.change.endswith(tuple(DAMAGES))
        # rows that were damaged before MLflow had them are lost, and the run says so
        rows = self.steps_once or any("metrics.jsonl" in line for line in self.said)
        return self.resumed and self.equal and self.num_mlflow_runs == 1 and rows


@dataclass
class Place:
    """A project of one training: its own code, run and MLflow store."""

    root: Path
    run: str = "runs/run"

    @property
    def folder(self) -> Path:
        return self.root / self.run

    @property
    def output(self) -> str:
        return (self.root / "output").read_text(encoding="utf-8", errors="replace")

    def move(self, what: str) -> None:
        if what in ("the run", "both"):
            self.run = self.folder.rename(self.root / "runs/moved").relative_to(self.root).as_posix()
        if what in ("the project", "both"):
            self.root = self.root.rename(self.root.with_name(f"{self.root.name}-moved"))

    def damage(self, wanted: str, how: str) -> str:
        """Damage this file, or one that is there; returns its name."""
        name = wanted if (self.folder / wanted).exists() else "config.yaml"
        file = self.folder / name
        file.write_bytes(DAMAGES[how](file.read_bytes()))
        return name

    def database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.root / "mlflow.db")


class Trainings:
    """Trainings with one project's code, data and environment, each in a project of its own under `folder`.

    Args:
        project: was generated and set up.
        package: its import name.
        more: settings.
    """

    def __init__(self, project: Path, package: str, folder: Path, more: tuple[str, ...] = ()) -> None:
        self.project, self.package, self.folder = project, package, folder
        self.settings = (*SETTINGS, *more)
        started = time.monotonic()
        self.straight = self.place("straight")
        process = self.start(self.straight)
        self.wait_for(self.straight, process, CHECKPOINT)
        first_checkpoint = time.monotonic()
        self.wait_for(self.straight, process, "metrics.json")
        self.training_s = time.monotonic() - first_checkpoint
        if process.wait() != 0:
            raise RuntimeError(self.straight.output)
        self.duration_s = time.monotonic() - started
        self.to_end_s = time.monotonic() - first_checkpoint  # with what MLflow gets after the last step

    def place(self, name: str) -> Place:
        root = self.folder / name
        shutil.copytree(self.project / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy2(self.project / "pyproject.toml", root)
        (root / "data").symlink_to(self.project / "data")
        return Place(root)

    def wait_for(self, place: Place, process: subprocess.Popen[bytes], file: str) -> None:
        while not (place.folder / file).exists():
            if process.poll() is not None:
                raise RuntimeError(place.output[-3000:])
            time.sleep(0.002)

    def start(self, place: Place) -> subprocess.Popen[bytes]:
        python = self.project / ".venv/bin/python"
        command = [str(python), "-m", f"{self.package}.train", *self.settings, f"run_dir={place.run}"]
        environment = {**os.environ, "PYTHONPATH": str(place.root / "src"), "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (place.root / "output").open("ab") as output:
            return subprocess.Popen(
                command, cwd=place.root, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self, number: int, seed: int, change: Sequence[str] = (), attempt: int = 0) -> Kill:
        """Kill a training, move or damage what it left, and resume it."""
        chance = random.Random(f"{seed}-{number}-{attempt}")  # noqa: S311
        place = self.place(f"killed-{number}-{attempt}")
        process = self.start(place)
        early = number % 4 == 0  # from the folder's first file on; else from the first checkpoint on
        self.wait_for(place, process, "starts.jsonl" if early else CHECKPOINT)
        writing = number % 3 == 0
        delay_s = chance.random() * (self.training_s * 0.5 if writing else self.to_end_s * 0.95)  # some are quicker
        moment = f"{delay_s:.2f} s after the {'start' if early else 'first checkpoint'}"
        time.sleep(delay_s)
        if writing:
            moment += ", writing"
            while process.poll() is None and not (place.folder / f"{CHECKPOINT}.new").exists():
                pass
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.killpg(process.pid, signal.SIGKILL)
        late = process.wait() == 0
        if len(change) == 2 and (place.folder / "metrics.json").exists():  # finished: there is nothing to be resumed
            late = True
        if late and attempt < MOST_ATTEMPTS:  # this one counts for nothing
            return self.kill(number, seed, change, attempt + 1)
        kill = Kill(place, moment, (place.folder / CHECKPOINT).exists())
        if len(change) == 1:
            place.move(*change)
            kill.change = f"moved: {change[0]}"
        elif change:
            kill.change = f"damaged: {place.damage(*change)}, {change[1]}"
        before = len(place.output)
        kill.resumed = self.start(place).wait() == 0
        printed = place.output[before:]
        kill.said = [line for line in printed.splitlines() if "damaged" in line]
        sentences = re.findall("^error: (.*)", printed, re.MULTILINE)
        if not kill.resumed and len(sentences) == 1 and "Traceback" not in printed:
            kill.refused = sentences[0]
        return kill

    def judge(self, kill: Kill, equal: bool) -> None:
        """What the folder and MLflow have in the end."""
        with kill.place.database() as database:
            (finished,) = database.execute("select count(*) from runs where status = 'FINISHED'").fetchone()
            (num_runs,) = database.execute("select count(*) from runs").fetchone()
            rows = database.execute(METRICS).fetchall()
            (twice,) = database.execute(TWICE).fetchone()
        with self.straight.database() as database:
            wanted = database.execute(METRICS).fetchall()
        one, other = ((place.folder / "history.csv").read_bytes() for place in (kill.place, self.straight))
        kill.equal = equal and one == other
        kill.num_mlflow_runs = num_runs if finished == 1 else -1
        kill.steps_once = rows == wanted and not twice

    def digests(self, folders: list[Path]) -> list[str]:
        command = [str(self.project / ".venv/bin/python"), "-c", DIGESTS, *map(str, folders)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def changes(move: bool, damage: bool) -> list[tuple[str, ...]]:
    """What is done to killed runs in turn: moved (what), damaged (file, how), or nothing at all."""
    moves = [(what,) for what in MOVES] if move else []
    damages = []
    if damage:  # all files once before the second kind of damage of any
        kinds, num_files = list(DAMAGES), len(FILES)
        damages = [(FILES[i % num_files], kinds[(i + i // num_files) % len(kinds)]) for i in range(4 * num_files)]
    if not (moves and damages):
        return [*moves, *damages] or [()]
    return [each for i, one in enumerate(damages) for each in (moves[i % len(moves)], one)]


def survive(
    project: Path,
    package: str,
    num_kills: int,
    seed: int,
    folder: Path,
    more: tuple[str, ...] = (),
    *,
    move: bool = False,
    damage: bool = False,
) -> list[Kill]:
    """Kill and resume so many trainings, two at a time."""
    trainings = Trainings(project, package, folder, more)
    print(f"straight run: {trainings.duration_s:.1f} s, of it training {trainings.training_s:.1f} s", flush=True)
    turn = changes(move, damage)
    kills = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(trainings.kill, number, seed, turn[number % len(turn)]) for number in range(num_kills)]
        for number, task in enumerate(concurrent.futures.as_completed(tasks), 1):
            kills.append(task.result())
            print(f"\r{number} of {num_kills} killed and resumed", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    resumed = [kill for kill in kills if kill.resumed]
    straight, *digests = trainings.digests([trainings.straight.folder, *(kill.place.folder for kill in resumed)])
    for kill, digest in zip(resumed, digests, strict=True):
        trainings.judge(kill, digest == straight)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill trainings at random moments and resume them.")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--move", action="store_true", help="move the run, the project or both before it is resumed")
    parser.add_argument("--damage", action="store_true", help="damage a file of the run's folder before it is resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="does it still run? In seconds; the figures mean nothing")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--package", default="my_project")
    arguments = parser.parse_args()
    if not (arguments.project / ".venv/bin/python").exists():
        sys.exit(f"error: there is no project with a .venv in {arguments.project}. Run: make demo")
    num_kills, more = (1, QUICK) if arguments.quick else (arguments.kills, ())
    project, seed, change = arguments.project.absolute(), arguments.seed, (arguments.move, arguments.damage)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kills = survive(
            project, arguments.package, num_kills, seed, Path(folder), more, move=change[0], damage=change[1]
        )
        for kill in kills:
            if not kill.survived():
                print(f"LOST: {kill}\n{kill.place.output[-3000:]}")
    for refused, number in Counter((kill.change, re.sub(r"\S+/", "", kill.refused)) for kill in kills).items():
        if refused[1]:
            print(f"{number} refused, {refused[0]}: {refused[1]}")
    print(f"kills                {len(kills)}, while writing {sum('writing' in kill.moment for kill in kills)}")
    print(f"  with a checkpoint  {sum(kill.left for kill in kills)}")
    print(f"moved                {sum(kill.change.startswith('moved') for kill in kills)}")
    print(f"damaged              {sum(kill.change.startswith('damaged') for kill in kills)}")
    print(f"refused              {sum(bool(kill.refused) for kill in kills)}, each with one sentence")
    print(f"resumed              {sum(kill.resumed for kill in kills)}")
    print(f"equal, bit for bit   {sum(kill.equal for kill in kills)}")
    print(f"one MLflow run       {sum(kill.num_mlflow_runs == 1 for kill in kills)}")
    print(f"each step once       {sum(kill.steps_once for kill in kills)}")
    print(f"silently different   {sum(not kill.survived() for kill in kills)}")
    print(f"{time.monotonic() - started:.0f} s on {os.cpu_count()} cores, two at a time, seed {seed}")
    sys.exit(not all(kill.survived() for kill in kills))


if __name__ == "__main__":
    main()
