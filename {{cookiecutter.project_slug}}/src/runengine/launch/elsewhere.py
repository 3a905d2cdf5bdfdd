"""The runs of a sweep as jobs of an engine that starts them somewhere else: submitted, watched, and reported.

    launch.json            in the sweep's folder: the engine, and the names of its jobs
    launch/000.yaml ...    what was submitted

The jobs do not need this process: after Ctrl-C they go on, and the sweep finds them when it is resumed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from ..runs.run import RUNS, Run
from ..settings import project
from ..settings.check import check
from ..settings.config import as_plain, compose
from ..settings.errors import UserError
from ..settings.files import atomic_write
from . import slurm
from .azureml import AzureML
from .job import Engine, Job, Seen, describe, refuse_incomplete
from .kubernetes import Kubernetes
from .sky import Sky
from .slurm_host import SlurmHost
from .ssh import Ssh

POLL_S = (1.0, 15.0)  # from one look to the next: at the beginning, and at the most
LOG_LINES = 2000  # kept of a job that has failed
ENGINES: dict[str, Callable[[dict[str, Any]], Engine]] = {
    "azureml": AzureML, "kubernetes": Kubernetes, "sky": Sky, "slurm": SlurmHost, "ssh": Ssh
}  # fmt: skip
ACTIVE = ("waiting", "running")


def engine_of(config: DictConfig) -> str:
    """The name of the engine that starts the runs somewhere else; empty if they are started here."""
    return str(config.launch.get("engine") or ("slurm" if config.launch.get("host") else ""))


class Elsewhere:
    """Stands where Hydra's launcher does.

    Args:
        config: the settings of the sweep.
        sweep: its folder is there already.
    """

    def __init__(self, config: DictConfig, sweep: Run) -> None:
        self.config = config
        self.sweep = sweep
        self.engine: Engine = ENGINES[engine_of(config)](as_plain(config.launch))
        self.seen: dict[str, Seen] = {}
        self.silent = False  # the engine, when it was asked last
        self.follows: list[str] = []
        self.following: subprocess.Popen[bytes] | None = None

    def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        """Return when each job has ended; how it went is read from its folder.

        Raises:
            UserError: the engine does not take them. None was submitted.
        """
        folders = [self.sweep.folder / f"{initial_job_idx + number:03d}" for number in range(len(overrides))]
        jobs = {
            job.name: job
            for job in (describe(self.config, folder, each) for folder, each in zip(folders, overrides, strict=True))
        }
        if self.config.launch.dry_run:
            (command,) = {self._write(job) for job in jobs.values()}
            print(f"nothing was started. What would be is in {self.sweep.launch}; to start it: {command}")
            return
        self.engine.reach()
        there = self.engine.look(list(jobs))
        new = [job for job in jobs.values() if there[job.name].state not in ACTIVE]
        if new:
            self.engine.check(new)
            self.engine.prepare(new[0])
        for job in jobs.values():
            self._write(job)
        try:
            self._work_through(jobs, new)
        except BaseException:
            self._end_following(wait_s=0)
            raise

    def _work_through(self, jobs: dict[str, Job], new: list[Job]) -> None:
        """Submit as many as may run at a time, until none is left."""
        left, pause_s = dict(jobs), POLL_S[0]
        while left:
            for job in new[: max(0, self.config.launch.parallel - (len(left) - len(new)))]:
                self.engine.submit(job)
                new.remove(job)
            time.sleep(pause_s)
            pause_s = min(POLL_S[1], 1.2 * pause_s)
            submitted = [name for name, job in left.items() if job not in new]
            for name, seen in self._look(submitted).items():
                self._say(jobs[name], seen, alone=len(jobs) == 1)
                if seen.state not in ACTIVE:
                    self._end(left.pop(name), seen)
                    pause_s = POLL_S[0]

    def _look(self, names: Sequence[str]) -> dict[str, Seen]:
        """Nothing while there is no answer: the jobs do not need one."""
        try:
            seen = self.engine.look(names)
        except UserError as error:
            if not self.silent:
                print(f"warning: {error} The jobs go on; this asks again.", flush=True)
            self.silent = True
            return {}
        self.silent = False
        return seen

    def _say(self, job: Job, seen: Seen, *, alone: bool) -> None:
        if self.seen.get(job.name) != seen:
            because = f": {seen.why}" if seen.state == "waiting" and seen.why else ""
            print(f"job {job.folder.name} {job.name} is {seen.state}{because}", flush=True)
        self.seen[job.name] = seen
        if alone and seen.state == "running" and (command := self.engine.follow(job.name)) != self.follows:
            self._end_following()
            self.follows = command
            self.following = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def _end_following(self, wait_s: float = 10) -> None:
        """It prints to the end of what it follows."""
        if self.following:
            with suppress(subprocess.TimeoutExpired):
                self.following.wait(wait_s)
            self.following.kill()
            self.following.wait()
            self.following = None

    def _end(self, job: Job, seen: Seen) -> None:
        """Leave in the run's folder what it cannot have written itself, or has written where it is not seen."""
        self._end_following()
        if seen.state in ("failed", "finished"):
            seen = self.engine.complete(job.name, seen)
        self.engine.bring(job)
        run = Run(job.folder)
        run.folder.mkdir(exist_ok=True)
        if seen.seconds:
            run.seconds.write_text(f"{seen.seconds:.2f}\n", encoding="utf-8")
        if seen.state == "failed":
            run.job_log.write_text(self.engine.log(job.name, LOG_LINES), encoding="utf-8")
            if not run.error.exists():
                atomic_write(run.error, f"{seen.why or 'the engine does not say why'}.\n")
        elif seen.state == "finished" and not run.metrics.exists() and seen.result:
            atomic_write(run.metrics, json.dumps(seen.result, indent=2) + "\n")
            print(f"its folder is where {job.name} wrote it, and not here: docs/{self.engine.page} says how to get it")

    def _write(self, job: Job) -> str:
        """What it says, for whoever looks; returns the command that submits all."""
        self.sweep.launch.mkdir(exist_ok=True)
        file = self.sweep.launch_record
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"jobs": []}
        record |= {"settings": {"engine": self.engine.name, **self.engine.place}, "dry_run": self.config.launch.dry_run}
        record["jobs"] = list(dict.fromkeys([*record["jobs"], job.name]))
        atomic_write(file, json.dumps(record, indent=2) + "\n")
        return self.engine.write(job, self.sweep.launch)


def examine(overrides: Sequence[str]) -> str:
    """Ask the engine that these settings choose whether it would take a run; nothing is started.

    Args:
        overrides: of the training, such as launch=kubernetes.

    Raises:
        UserError: it is not reached, may not be used, or lacks what the run needs.
    """
    script = project.current().script
    config = compose(script, overrides)
    check(config, script, overrides)
    refuse_incomplete(config.launch)
    if name := engine_of(config):
        engine = ENGINES[name](as_plain(config.launch))
        job = describe(config, RUNS / config.experiment_name / "sweep-doctor/000", [])
        engine.reach()
        engine.check([job])
        return f"{name} is reached, and would take a run"
    if "partition" in config.launch:
        slurm.refuse_missing(config.launch.partition)
        return "Slurm answers, and has the partition"
    return "runs are trained on this machine"


def launched(sweep: Run) -> tuple[Engine, list[str]] | None:
    """The engine that has the jobs of this sweep, and their names; None if it was started here."""
    file = sweep.launch_record
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    return ENGINES[record["settings"]["engine"]](record["settings"]), record["jobs"]
