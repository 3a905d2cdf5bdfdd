"""SkyPilot: each run is a managed job, on whichever cloud or cluster SkyPilot finds a machine.

SkyPilot is installed outside of this environment, with which it does not agree: `uv tool install skypilot`. It copies
the project there and makes its environment; it finds another machine when one is taken away, and when a run ends with
exit status 75. What it was seen to do stands in the template's docs/decisions.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..settings.errors import RESUME_ME, UserError
from ..settings.files import atomic_write
from .job import Job, Seen, State, as_yaml, copy_project, read, shell

MOUNTED = "/mnt/project"  # where the volume or the bucket is
PROJECT = "project"  # next to the jobs' forms: the project as it was when the sweep was typed
LOG_LINES = 200  # enough for the last sentence, or the result
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
STATES: dict[str, State] = {
    "PENDING": "waiting", "SUBMITTED": "waiting", "STARTING": "waiting", "RECOVERING": "waiting",
    "RUNNING": "running", "WINDING_DOWN": "running", "CANCELLING": "running",
    "SUCCEEDED": "finished", "CANCELLED": "gone",
}  # fmt: skip  # all others begin with FAILED
NO_SLURM = "unset ${!SLURM_@}"  # where SkyPilot's machine is a job of Slurm, it is SkyPilot that starts runs again
WHY = {"STARTING": "a machine is being made", "RECOVERING": "another machine is being made"}


class Sky:
    """What `sky` reaches.

    Args:
        settings: nothing that says where: SkyPilot has one list of jobs.
    """

    name = "sky"
    page = "clouds.md"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.place: dict[str, Any] = {}
        self.forms: dict[str, Path] = {}
        self.ids: dict[str, str] = {}  # of the newest job of each name: by a name only those are found that run

    def reach(self) -> None:
        if shutil.which("sky") is None:
            raise UserError(
                "launch=sky needs SkyPilot, which is not here. Install it outside of this environment: uv tool install "
                "skypilot, with the clouds that you use in brackets (https://docs.skypilot.co), or use launch=local."
            )
        done = self._sky("check", "--output", "json")
        if done.returncode:
            raise UserError(f"SkyPilot does not answer: {_last_line(done)}. Try: sky api info")
        if not any(_answer(done).values()):
            raise UserError("SkyPilot may use no cloud and no cluster from here. What each of them lacks: sky check")

    def check(self, jobs: Sequence[Job]) -> None:
        settings = jobs[0].settings
        if unset := [name for name in settings["secrets"] if name not in os.environ]:
            raise UserError(f"launch.secrets names {unset[0]}, which is not set here. Set it: export {unset[0]}=...")
        if jobs[0].gpus and not settings["gpu_type"]:
            raise UserError(
                "launch=sky needs launch.gpu_type with trainer.devices, such as A100. To see all: sky gpus list"
            )
        with tempfile.TemporaryDirectory() as folder:
            form = Path(folder) / "task.yaml"
            form.write_text(as_yaml(task(jobs[0], Path.cwd())), encoding="utf-8")
            done = self._sky("launch", "--dryrun", "--yes", *self._secrets(jobs[0]), str(form))
        if done.returncode:
            raise UserError(
                f"SkyPilot does not take the job: {_last_line(done)}. Change launch.*, see conf/launch/sky.yaml."
            )

    def prepare(self, job: Job) -> None:
        """`sky` brings it, with each job."""

    def write(self, job: Job, folder: Path) -> str:
        """Also the project, once for each sweep: what is edited while jobs wait is not what they run."""
        if not (folder / PROJECT).exists():
            copy_project(folder / PROJECT)
        self.forms[job.name] = folder / f"{job.folder.name}.yaml"
        atomic_write(self.forms[job.name], as_yaml(task(job, folder / PROJECT)))
        return f"for task in {folder.as_posix()}/*.yaml; do {shlex.join(['sky', *self._launch(job)])} $task; done"

    def submit(self, job: Job) -> None:
        done = self._sky(*self._launch(job), str(self.forms[job.name]))
        if done.returncode:
            raise UserError(f"SkyPilot does not take job {job.name}: {_last_line(done)}. See: sky jobs queue")

    def look(self, names: Sequence[str]) -> dict[str, Seen]:
        """The newest of each name: a job that is submitted again is another one to SkyPilot."""
        known = {record["job_name"]: record for record in sorted(self._jobs(), key=lambda each: each["job_id"])}
        self.ids = {name: str(record["job_id"]) for name, record in known.items()}
        return {name: _seen(known[name]) if name in known else Seen("gone") for name in names}

    def complete(self, name: str, seen: Seen) -> Seen:
        return read(seen, self.log(name, LOG_LINES))

    def log(self, name: str, num_lines: int) -> str:
        done = self._sky("jobs", "logs", "--no-follow", f"--tail={num_lines}", self.ids[name])
        return COLOURS.sub("", done.stdout)

    def follow(self, name: str) -> list[str]:
        return ["sky", "jobs", "logs", self.ids[name]]

    def bring(self, job: Job) -> None:
        """A volume is read by a machine that mounts it: docs/clouds.md."""

    def cancel(self, names: Sequence[str]) -> None:
        self._sky("jobs", "cancel", "--yes", *(self.ids[name] for name in names))

    def _jobs(self) -> list[dict[str, Any]]:
        done = self._sky("jobs", "queue", "--all", "--output", "json")
        if done.returncode and "No in-progress managed jobs" in done.stderr:  # none was ever submitted
            return []
        if done.returncode:
            raise UserError(f"SkyPilot does not answer: {_last_line(done)}. Try: sky jobs queue")
        found: list[dict[str, Any]] = _answer(done)
        return found

    def _launch(self, job: Job) -> list[str]:
        return ["jobs", "launch", "--yes", "--detach-run", *self._secrets(job)]

    def _secrets(self, job: Job) -> list[str]:
        """By name: `sky` reads their values from this process's variables."""
        return [word for name in job.settings["secrets"] for word in ("--secret", name)]

    def _sky(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sky", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def task(job: Job, project: Path) -> dict[str, Any]:
    """The task of SkyPilot.

    Args:
        job: its settings are those of conf/launch/sky.yaml.
        project: the folder that is copied there.
    """
    settings, volume = job.settings, str(job.settings["volume"])
    shared = volume.startswith("/")  # a folder that all machines there have, as on a cluster
    mounted: dict[str, Any] = {"volumes": {MOUNTED: volume}}
    if "://" in volume:
        mounted = {"file_mounts": {MOUNTED: {"source": volume, "mode": "MOUNT_CACHED"}}}
    rank = (
        'export NODE_RANK=$SKYPILOT_NODE_RANK MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        if job.nodes > 1
        else ""
    )
    return {
        "name": job.name,
        "workdir": project.as_posix(),
        "num_nodes": job.nodes,
        "resources": {
            **({"infra": settings["infra"]} if settings["infra"] else {}),
            **({"accelerators": {settings["gpu_type"]: job.gpus}} if job.gpus else {}),
            "cpus": f"{job.cpus * job.processes}+",
            "memory": f"{job.memory_gb}+",
            **({"use_spot": True} if settings["spot"] else {}),
            "job_recovery": {"max_restarts_on_errors": settings["retries"], "recover_on_exit_codes": [RESUME_ME]},
        },
        **({} if shared else mounted),
        **({"secrets": dict.fromkeys(settings["secrets"])} if settings["secrets"] else {}),
        "setup": "CI=true make setup\n",
        "run": f"{NO_SLURM}\n. scripts/activate.sh\n{rank}{shell(job, volume if shared else MOUNTED, again=False)}",
    }


def _seen(record: dict[str, Any]) -> Seen:
    status, seconds = record["status"], float(record["job_duration"] or 0)
    state = STATES.get(status, "failed")
    if state == "failed":
        return Seen(state, _one_line(record["failure_reason"] or status), seconds)
    return Seen(state, WHY.get(status, ""), seconds if state == "finished" else 0.0)


def _answer(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that it printed; a server that had to be started first says so before it."""
    text = COLOURS.sub("", done.stdout)
    begin = re.search(r"^[\[{]", text, re.MULTILINE)
    try:
        return json.loads(text[begin.start() if begin else 0 :])
    except ValueError:
        raise UserError(f"SkyPilot does not answer: {_one_line(text)[:200]}. Try: sky api info") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it does not say why"]
    return re.sub(r"^(sky\.exceptions\.\w+|\w*Error): ", "", _one_line(lines[-1])).rstrip(".")


def _one_line(text: str) -> str:
    return " ".join(COLOURS.sub("", text).split())
