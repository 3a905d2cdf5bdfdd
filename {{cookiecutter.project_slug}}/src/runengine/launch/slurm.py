"""Slurm: which job this is, how it goes back into the queue, and what a sweep needs before its jobs are submitted.

    python -m my_project.train launch=slurm launch.partition=gpu optimizer.lr=0.001,0.003,0.01
    sbatch scripts/train.sbatch model=mlp

What Slurm was seen to do, version 22.05, stands in the template's docs/decisions.md.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from omegaconf import DictConfig, open_dict

from ..compat import ask_for_jobs_by, submit_without_srun
from ..runs import provenance
from ..runs.run import Run
from ..settings import project
from ..settings.errors import RESUME_ME, UserError
from ..settings.process import job_id, restarts

POLL_S = 5  # once a sweep's first job has failed; often enough for a person, seldom enough for a controller
OF_A_NODE = ("PyTorch", "driver", "GPUs", "arithmetic")  # checks of the doctor
WATCH_S = 30  # at the most, between two looks at the jobs of a sweep; submitit begins with 2


_requeued: list[str] = []  # this process's job, once it was put back


def requeue_on(signum: int) -> bool:
    """Should this job, which got the signal and has saved its state, go back into the queue?

    SIGUSR1 and SIGUSR2 say that the time limit or a preemption is near (`sbatch --signal`). SIGTERM says preemption
    or scancel, which only Slurm can distinguish. A preempted job that ends by itself is not requeued by Slurm.
    """
    wanted = signum in (signal.SIGUSR1, signal.SIGUSR2)
    if job_id() is None or not (wanted or signum == signal.SIGTERM):
        return False
    job = _job_record()
    if not job:  # Slurm does not answer: `requeue` will say so
        return wanted
    can = job["JobState"] == "RUNNING" and job["BatchFlag"] == "1" and job["Requeue"] == "1"
    return can and (wanted or job.get("PreemptTime", "None") != "None")


def requeue() -> None:
    """Put this job back into the queue. Slurm then ends its processes with SIGTERM: to be called last, by one of them.

    Raises:
        UserError: Slurm refuses.
    """
    _requeued.append(str(job_id()))
    done = _ask("scontrol", "requeue", str(job_id()))
    if done.returncode > 0:  # below 0, the SIGTERM has ended scontrol, too
        raise UserError(f"Slurm does not requeue job {job_id()}: {last_line(done.stderr)}. Submit the run again.")


def requeue_while_starting() -> None:
    """Until training handles the signals: nothing is there to save, but by itself Python would end, and the job too."""

    def come_back(signum: int, frame: object) -> None:
        if _requeued:  # Slurm's signal to a process that ends by itself
            return
        if os.environ.get("SLURM_PROCID", "0") == "0" and requeue_on(signum):
            requeue()
        sys.exit(RESUME_ME)

    if job_id() is not None:
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, come_back)


def leave_bad_node() -> None:
    """In a job that was requeued: where this node does not compute as it should, take another one.

    The first start is not looked at. Only what the node itself can be at fault for is: its driver, its GPUs, and
    whether they compute; an environment that is not complete would be so on every other node.
    """
    if job_id() is None or not restarts() or os.environ.get("SLURM_LOCALID", "0") != "0":
        return
    done = _ask(sys.executable, "-m", project.ENGINE, "doctor", "--quick", "--json")
    try:
        found = json.loads(done.stdout)["checks"]
    except (ValueError, KeyError):
        return
    faults = [each for each in found if each["state"] == "fail" and each["check"] in OF_A_NODE]
    if not faults:
        return
    node, job = os.environ.get("SLURMD_NODENAME", platform.node()), str(job_id())
    said = "; ".join(f"{each['check']}: {each['found']}" for each in faults)
    print(f"warning: node {node} is left out, job {job} goes to another one: {said}", flush=True)
    excluded = _job_record().get("ExcNodeList", "(null)")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm ends a job's processes before it may be changed
    requeue()
    nodes = node if excluded == "(null)" else f"{excluded},{node}"
    if (changed := _ask("scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}")).returncode:
        print(f"warning: Slurm does not leave it out: {last_line(changed.stderr)}", flush=True)
    sys.exit(RESUME_ME)


def prepare(config: DictConfig, sweep: Run) -> None:
    """Make `config.hydra.launcher` ready for the jobs of one sweep.

    They get the name of the sweep, a folder for their logs in it, and import a copy of the code as it is now:
    what is edited while they wait is not what runs.

    Raises:
        UserError: there is no Slurm here, it does not answer, or lacks the partition.
    """
    refuse_missing(config.launch.partition)
    launcher = config.hydra.launcher
    # of each start of the sweep its own: jobs of an earlier one may still wait
    code = sweep.code.absolute() / datetime.now().strftime("%Y%m%d-%H%M%S.%f")
    provenance.copy_code(code, diff=config.tracking.diff)
    with open_dict(launcher):
        launcher.name = re.sub(r"[^\w.-]", "_", f"{project.current().package}-{sweep.folder.name}")
        launcher.submitit_folder = str(sweep.slurm.absolute())
        launcher.setup = [*launcher.setup, f"export PYTHONPATH={shlex.quote(str(code))}:$PYTHONPATH"]
        if config.trainer.accelerator == "cpu" or not launcher.gpus_per_node:
            launcher.gpus_per_node = None  # not --gpus-per-node=0, which a cluster without GPUs refuses
    if not config.launch.use_srun:
        if config.trainer.num_nodes * config.trainer.devices > 1:
            raise UserError(
                "without srun (launch.use_srun) one process is started, but trainer.devices and trainer.num_nodes want "
                f"{config.trainer.num_nodes * config.trainer.devices}. Leave launch.use_srun out: srun starts them."
            )
        submit_without_srun(config.launch.warn_s)
    ask_for_jobs_by(_list_jobs(launcher.name), at_most_every_s=WATCH_S)


@contextmanager
def outside_of_a_job() -> Iterator[None]:
    """Hide the memory and the CPUs of the job in which a sweep was typed: its jobs ask for their own."""
    names = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def wait(job_name: str) -> None:
    """Return when no job of this name is left: after the first failure the launcher does not wait for the others."""
    while (done := _ask(*_list_jobs(job_name))).returncode != 0 or done.stdout.strip():
        time.sleep(POLL_S)


def list_jobs() -> list[dict[str, str]]:
    """Those of this project, as rows of a table; none where there is no Slurm."""
    columns = ("job", "name", "state", "")
    done = _ask("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T|%r")
    rows = [dict(zip(columns, line.split("|"), strict=True)) for line in done.stdout.splitlines()]
    package = project.current().package
    return [
        {**row, "state": row["state"].lower(), "engine": "slurm", "sweep": row["name"].removeprefix(f"{package}-")}
        for row in rows
        if row["name"].startswith((package, f"{package}-"))
    ]


def refusal(error: BaseException) -> str | None:
    """The sentence for what the launcher raised, if it is that sbatch did not take the jobs."""
    cause = error.__cause__
    if isinstance(cause, subprocess.CalledProcessError) and cause.cmd[0] == "sbatch":
        return f"Slurm does not take the jobs: {last_line(cause.stderr)}. Change launch.*, see conf/launch/slurm.yaml."
    return None


def refuse_missing(partition: str | None) -> None:
    """Refuse to start where no Slurm is, or not this partition.

    Not with `sbatch --test-only`: it refuses what sbatch would queue until a node is back."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "launch=slurm needs Slurm, but there is no sbatch here. "
            "Run it on the cluster's login node, or use launch=local."
        )
    refuse_partition(partition, _ask)


def refuse_partition(
    partition: str | None, ask: Callable[..., subprocess.CompletedProcess[str]], where: str = "here"
) -> None:
    """One that the cluster does not have, or any if it does not answer.

    Args:
        partition: several are separated by commas.
        ask: runs a command there.
        where: what the user calls the machine.

    Raises:
        UserError: names those that there are.
    """
    done = ask("sinfo", "--noheader", "--format=%R")
    if done.returncode == 127:
        raise UserError(f"launch=slurm needs Slurm, but there is no sinfo on {where}. Choose the cluster's login node.")
    if done.returncode != 0:
        raise UserError(
            f"launch=slurm needs Slurm, which does not answer: {last_line(done.stderr)}. "
            "Try again when sinfo works, or use launch=local."
        )
    there = sorted(set(done.stdout.split()))
    for name in partition.split(",") if partition else []:
        if name not in there:
            raise UserError(f"launch.partition must be one of {', '.join(there)}, got {name}.")


def _job_record() -> dict[str, str]:
    """What Slurm knows of this job; empty if it does not answer."""
    return dict(re.findall(r"(\S+?)=(\S*)", _ask("scontrol", "show", "job", "--oneliner", str(job_id())).stdout))


def _list_jobs(job_name: str) -> list[str]:
    return ["squeue", "--me", "--noheader", "--array", f"--name={job_name}", "--format=%i"]


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """A command of Slurm; one that is not there (in a container) has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def last_line(text: str) -> str:
    """What a command of Slurm said last."""
    lines = text.strip().splitlines() or ["it does not say why"]
    return lines[-1].rpartition("error: ")[2].rstrip(".")
