"""Azure Machine Learning: each run is a command job, submitted and watched by `az`.

A job that Azure takes the machine from is started again by Azure; exit status 75 is not known there, so the job itself
starts the run again. None was submitted to Azure so far: the template's docs/decisions.md says what is proven.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..settings import project
from ..settings.errors import UserError
from ..settings.files import atomic_write
from .job import ROOT, Job, Seen, State, as_yaml, read, shell

SCHEMA = "https://azuremlschemas.azureedge.net/latest/commandJob.schema.json"
TAG = "runengine"  # a job's name is used once in a workspace: the run's stands in this tag
STORE = "$" + 2 * "{" + "outputs.project" + 2 * "}"  # Azure puts the folder in its place
LOG_LINES = 200  # enough for the last sentence, or the result
MOST = 1000  # jobs of a workspace that are looked through, the newest first
STATES: dict[str, State] = {
    "NotStarted": "waiting", "Queued": "waiting", "Starting": "waiting", "Preparing": "waiting",
    "Provisioning": "waiting", "Paused": "waiting", "NotResponding": "running", "Running": "running",
    "Finalizing": "running", "CancelRequested": "running", "Completed": "finished", "Canceled": "gone",
    "Failed": "failed",
}  # fmt: skip


class AzureML:
    """A workspace.

    Args:
        settings: `workspace` and `resource_group`, each may be None: then az's own defaults.
    """

    name = "azureml"
    page = "clouds.md"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.place = {name: settings.get(name) for name in ("workspace", "resource_group")}
        self.forms: dict[str, Path] = {}
        self.jobs: dict[str, str] = {}  # by run, the newest job of it
        places = {"--workspace-name": self.place["workspace"], "--resource-group": self.place["resource_group"]}
        self.options = [word for option, value in places.items() if value for word in (option, value)]

    def reach(self) -> None:
        if shutil.which("az") is None:
            raise UserError(
                "launch=azureml needs az, which is not here. Install it outside of this environment: uv tool install "
                "azure-cli, or use launch=local."
            )
        if (done := self._az("account", "get-access-token", "--output=none")).returncode:
            why = "nobody is logged in" if "az login" in done.stderr else _last_line(done)
            raise UserError(f"Azure does not let you in: {why}. Log in: az login")
        if self._az("extension", "show", "--name=ml", "--output=none").returncode:
            raise UserError(
                "launch=azureml needs az's extension ml, which is not here. Add it: az extension add --name ml"
            )
        if (done := self._az("ml", "workspace", "show", *self._named_workspace(), "--output=none")).returncode:
            raise UserError(
                f"the workspace does not answer: {_last_line(done)}. Choose yours by launch.workspace=... and "
                "launch.resource_group=...; to see all: az ml workspace list"
            )

    def check(self, jobs: Sequence[Job]) -> None:
        settings = jobs[0].settings
        if bool(settings["compute"]) == bool(settings["instance_type"]):
            raise UserError(
                "launch=azureml needs either launch.compute, a cluster of the workspace (az ml compute list), or "
                "launch.instance_type, a kind of machine that Azure finds for each job."
            )
        if settings["spot"] and settings["compute"]:
            raise UserError("launch.spot is for launch.instance_type: a cluster has its own tier. Leave it out.")
        name = settings["compute"]
        if (
            name
            and (done := self._az("ml", "compute", "show", f"--name={name}", *self.options, "--output=none")).returncode
        ):
            raise UserError(f"launch.compute is {name}, which the workspace does not have: {_last_line(done)}.")

    def prepare(self, job: Job) -> None:
        """The image has all of it."""

    def write(self, job: Job, folder: Path) -> str:
        self.forms[job.name] = folder / f"{job.folder.name}.yaml"
        atomic_write(self.forms[job.name], as_yaml(command_job(job)))
        create = " ".join(["az", "ml", "job", "create", *self.options])
        return f"for job in {folder.as_posix()}/*.yaml; do {create} --file $job; done"

    def submit(self, job: Job) -> None:
        done = self._az("ml", "job", "create", f"--file={self.forms[job.name]}", *self.options, "--output=none")
        if done.returncode:
            raise UserError(
                f"Azure does not take job {job.name}: {_last_line(done)}. Change launch.*, see "
                "conf/launch/azureml.yaml."
            )

    def look(self, names: Sequence[str]) -> dict[str, Seen]:
        done = self._az("ml", "job", "list", f"--max-results={MOST}", *self.options, "--output=json")
        if done.returncode:
            raise UserError(f"Azure does not answer: {_last_line(done)}. Try: az ml job list")
        newest: dict[str, dict[str, Any]] = {}
        for each in sorted(json.loads(done.stdout), key=lambda job: str(job["creation_context"]["created_at"])):
            newest[each.get("tags", {}).get(TAG, "")] = each
        self.jobs |= {name: job["name"] for name, job in newest.items()}
        return {name: _seen(newest[name]["status"]) if name in newest else Seen("gone") for name in names}

    def complete(self, name: str, seen: Seen) -> Seen:
        return read(seen, self.log(name, LOG_LINES))

    def log(self, name: str, num_lines: int) -> str:
        with tempfile.TemporaryDirectory() as folder:
            self._az(
                "ml",
                "job",
                "download",
                f"--name={self.jobs.get(name, name)}",
                f"--download-path={folder}",
                *self.options,
            )
            files = sorted(Path(folder).rglob("std_log*.txt"))  # of several processes, that of the first
            lines = files[0].read_text(encoding="utf-8", errors="replace").splitlines() if files else []
        return "".join(f"{line}\n" for line in lines[-num_lines:])

    def follow(self, name: str) -> list[str]:
        return ["az", "ml", "job", "stream", f"--name={self.jobs.get(name, name)}", *self.options]

    def bring(self, job: Job) -> None:
        """The folder lies in the workspace's storage, with all others: docs/clouds.md."""

    def cancel(self, names: Sequence[str]) -> None:
        for name in names:
            self._az("ml", "job", "cancel", f"--name={self.jobs.get(name, name)}", *self.options, "--output=none")

    def _named_workspace(self) -> list[str]:
        """`az ml workspace` calls it by another name than `az ml job`."""
        return ["--name" if word == "--workspace-name" else word for word in self.options]

    def _az(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["az", *arguments, "--only-show-errors"], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )


def command_job(job: Job) -> dict[str, Any]:
    """The command job of Azure.

    Args:
        job: its settings are those of conf/launch/azureml.yaml.
    """
    settings = job.settings
    # Azure numbers what it starts, one process on each node; this one starts the others of its node
    alone = "unset LOCAL_RANK RANK WORLD_SIZE\n" if job.nodes > 1 else ""
    store = settings["store"] or f"azureml://datastores/workspaceblobstore/paths/{project.current().package}"
    where = {"instance_type": settings["instance_type"]} if settings["instance_type"] else {}
    return {
        "$schema": SCHEMA,
        "type": "command",
        "display_name": job.name,
        "experiment_name": project.current().package,
        "tags": {TAG: job.name},
        "environment": {"image": settings["image"]},
        **({"compute": f"azureml:{settings['compute']}"} if settings["compute"] else {}),
        "resources": {"instance_count": job.nodes, "shm_size": f"{max(1, job.memory_gb // 4)}g", **where},
        **({"queue_settings": {"job_tier": "spot"}} if settings["spot"] else {}),
        **({"distribution": {"type": "pytorch", "process_count_per_instance": 1}} if job.nodes > 1 else {}),
        "outputs": {"project": {"type": "uri_folder", "mode": "rw_mount", "path": store}},
        "command": f"cd {ROOT} || exit 1\n{alone}{shell(job, STORE, again=True)}",
    }


def _seen(status: str) -> Seen:
    state = STATES.get(status, "running")
    why = {"waiting": status.lower(), "failed": "Azure says: Failed. Its page says more"}
    return Seen(state, why.get(state, ""))


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines() or ["it does not say why"]
    return lines[-1].removeprefix("ERROR: ").rstrip(".")
