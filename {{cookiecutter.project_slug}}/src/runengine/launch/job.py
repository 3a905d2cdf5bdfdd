"""What one run needs, whatever starts it somewhere else; each engine writes its own form of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml
from omegaconf import DictConfig, OmegaConf

from ..runs import provenance
from ..runs.run import REPORT
from ..settings import project
from ..settings.config import as_plain
from ..settings.errors import RESUME_ME, UserError
from ..settings.files import atomic_write
from ..settings.process import SENDS_LATER

State = Literal["waiting", "running", "finished", "failed", "gone"]
DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")
ROOT = "/app"  # of the project, in the image that `make image` builds
RESULT = "result: "  # before the content of metrics.json, in what a job prints
# what belongs to this machine, or is no part of the project
NOT_SENT = (
    "/.conda", "/.dvc/cache", "/.dvc/tmp", "/.env", "/.git", "/.jobs", "/.rerun", "/.venv", "/data", "/mlflow.db*",
    "/mlruns", "/runs", "__pycache__", ".*_cache",
)  # fmt: skip
MASTER_PORT = 29500  # PyTorch's own default; the first node listens there


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        name: lower-case letters, digits and `-`, at most 52; no other job of this project has it.
        folder: of the run, from the project's root on.
        command: what trains it, in that root.
        nodes, processes: of a run; `processes` on each node, one for each GPU.
        gpus, memory_gb: on each node.
        cpus: for each process.
        settings: the others of `launch`.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    nodes: int
    processes: int
    gpus: int
    cpus: int
    memory_gb: int
    settings: dict[str, Any]

    @property
    def ranks(self) -> dict[str, str]:
        """What each process has to know of the others, but for the node's number and the first one's address."""
        return {"LOCAL_WORLD_SIZE": str(self.processes), "MASTER_PORT": str(MASTER_PORT)} if self.nodes > 1 else {}


@dataclass(frozen=True)
class Seen:
    """How a job is.

    Args:
        state: `gone`: the engine does not know it.
        why: it waits or has failed; empty if the engine does not say.
        seconds: that it took; 0 if it has not ended.
        result: of one that has finished, the content of its metrics.json; empty if it is not known here.
    """

    state: State
    why: str = ""
    seconds: float = 0.0
    result: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Starts jobs somewhere else."""

    name: str
    page: str  # of docs/: how to get a run's folder, and what else there is to know
    place: dict[str, Any]  # of its settings those that say where

    def reach(self) -> None:
        """Ask whether it is there, and whether this user may start jobs.

        Raises:
            UserError: it is not, or may not.
        """

    def check(self, jobs: Sequence[Job]) -> None:
        """Refuse what it would not start; nothing is changed there.

        Raises:
            UserError: it lacks what the jobs need.
        """

    def prepare(self, job: Job) -> None:
        """Once for all jobs of a sweep, before the first is started: bring there what they need."""

    def write(self, job: Job, folder: Path) -> str:
        """Write the form of this job into the folder; returns the command that submits all that are in it."""

    def submit(self, job: Job) -> None: ...

    def look(self, names: Sequence[str]) -> dict[str, Seen]:
        """How these jobs are."""

    def complete(self, name: str, seen: Seen) -> Seen:
        """Of a job that has ended, what `look` does not ask for: it takes a connection for each job."""

    def log(self, name: str, num_lines: int) -> str:
        """The last lines of what it has printed; empty if nothing is known."""

    def follow(self, name: str) -> list[str]:
        """The command that prints what it prints."""

    def bring(self, job: Job) -> None:
        """Copy the run's folder to where it would be here, if the engine can."""

    def cancel(self, names: Sequence[str]) -> None: ...


def describe(config: DictConfig, folder: Path, overrides: Sequence[str]) -> Job:
    """The job of one run of a sweep.

    Args:
        config: the settings of the sweep.
        folder: of the run; it is in that of the sweep.
        overrides: of this run, its folder among them.
    """
    launch, trainer = config.launch, config.trainer
    if config.register and not str(config.tracking.mlflow_uri).startswith("http"):
        raise UserError(
            "register=true needs a server of MLflow, which the job reaches. Choose one by tracking=server, or leave it "
            "out and register the model afterwards: make promote RUN=..."
        )
    words = f"{project.current().package}-{folder.parent.name.removeprefix('sweep-')}-{folder.name}"
    return Job(
        name=_short(re.sub(r"[^a-z0-9]+", "-", words.lower())),
        folder=folder,
        command=("python", "-m", project.current().module, *overrides),
        nodes=trainer.num_nodes,
        processes=trainer.devices,
        gpus=0 if trainer.accelerator == "cpu" else launch.get("gpus") or 0,
        cpus=launch.get("cpus", 1),
        memory_gb=launch.get("memory_gb", 1),
        settings={**as_plain(launch), "tracking_uri": config.tracking.mlflow_uri},
    )


def later_or_server(job: Job) -> dict[str, str]:
    """Variables: the server of MLflow; where none is reached from there, that the run is sent from here."""
    uri = str(job.settings["tracking_uri"] or "")
    return {"MLFLOW_TRACKING_URI": uri} if uri.startswith("http") else {SENDS_LATER: "1"}


def shell(job: Job, store: str, *, again: bool) -> str:
    """What trains it, typed in the project's root on a machine whose disk is lost with it.

    Args:
        job: its result is printed, see `result_in`.
        store: a folder that stays, with `runs` and `data`.
        again: whether it is started again where it asks for that; otherwise the engine does so.
    """
    variables = {
        **job.ranks, **later_or_server(job), "PYTHONUNBUFFERED": "1", REPORT: "report.json", **job.settings["env"]
    }  # fmt: skip
    train = f"{shlex.join(job.command)}; STATUS=$?"
    lines = [
        f"mkdir -p {store}/runs {store}/data && rm -rf runs data report.json || exit 1",
        f"ln -s {store}/runs runs && ln -s {store}/data data || exit 1",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        f"while {train}; [ $STATUS = {RESUME_ME} ]; do sleep 1; done" if again else train,
        f"test ! -s report.json || echo \"{RESULT}$(tr -d '\\n' <report.json)\"",
        "exit $STATUS",
    ]
    return "\n".join(lines) + "\n"


def as_yaml(*forms: Mapping[str, Any]) -> str:
    """Documents of one file; text of several lines as such, so that a person can read a command."""

    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})

    def text(to: Any, value: str) -> Any:
        return to.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    dumper.add_representer(str, text)
    written: str = yaml.dump_all(forms, Dumper=dumper, sort_keys=False, width=1000)
    return written


def result_in(log: str) -> dict[str, float]:
    """What `shell` has printed of the run's result; empty if that is not there."""
    with suppress(ValueError, IndexError):
        return dict(json.loads(log.rpartition(RESULT)[2].splitlines()[0]))
    return {}


def error_in(log: str) -> str:
    """The last sentence that says what is wrong; engines put names in front of a line."""
    said: list[str] = re.findall(r"(?:^|\) )error: (.*)$", log, re.MULTILINE)
    return said[-1] if said else ""


def read(seen: Seen, log: str) -> Seen:
    """With what a job that has ended printed: its result, or its last sentence."""
    if seen.state == "failed":
        return replace(seen, why=error_in(log) or seen.why)
    return replace(seen, result=result_in(log))


def copy_project(folder: Path) -> None:
    """What another machine needs to make the environment and to train, as it is now; data are not in it."""
    top = {pattern.removeprefix("/") for pattern in NOT_SENT if pattern.startswith("/")}
    nested = [pattern for pattern in NOT_SENT if not pattern.startswith("/")]

    def leave_out(place: str, names: list[str]) -> set[str]:
        here = [*nested, *(Path(each).name for each in top if Path(each).parent == Path(place))]
        return shutil.ignore_patterns(*here)(place, names)

    shutil.copytree(".", folder, ignore=leave_out)
    sources = folder / project.current().folder.parent.relative_to(Path.cwd())
    provenance.write_diff(sources)
    atomic_write(sources / project.COPY_OF.name, json.dumps(provenance.git_state()) + "\n")


def refuse_incomplete(launch: DictConfig) -> None:
    """What has no default, or a value that no engine takes; before anything is written.

    Args:
        launch: of the settings.
    """
    if missing := sorted(OmegaConf.missing_keys(launch)):
        raise UserError(
            f"launch={launch.engine} needs {' and '.join(missing)}: what they are stands in "
            f"src/{project.ENGINE}/conf/launch/{launch.engine}.yaml."
        )
    if launch.get("dry_run") and launch.get("host", "") is None:
        raise UserError(
            "launch.dry_run needs launch.host with launch=slurm: jobs of the Slurm here are made by submitit."
        )
    if "image" in launch:
        _refuse_without_digest(launch.image)


def _refuse_without_digest(image: str) -> None:
    if not DIGEST.fullmatch(image):
        raise UserError(
            f"launch.image must end with the digest of an image, as registry.example.com/me/project@sha256:..., got "
            f"{image}. To build one, and see its digest: make image PUSH=registry.example.com/me/project"
        )


def _short(name: str, most: int = 52) -> str:
    """With its end, which distinguishes it: a pod's name adds up to eleven letters, and may have 63."""
    return name[-most:].lstrip("-0123456789") if len(name) > most else name
