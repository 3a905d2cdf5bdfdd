"""Slurm from a machine that is not in the cluster: its login node is reached by SSH, as launch=ssh reaches a machine.

The files are those of ssh.py; the script is one for sbatch, and .jobs/<name>.id has the number of its job.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from ..settings.errors import UserError
from .job import Job, Seen
from .slurm import last_line, refuse_partition
from .ssh import JOBS, Ssh

SCRIPT = """\
#!/bin/bash
{options}
cd {folder} || exit 1
rm -f {here}.exit
. scripts/activate.sh
export {environment}
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
{command}
echo $STATUS >{here}.exit
exit $STATUS
"""
WITH_SRUN = "srun {command}; STATUS=$?"
# the signals are the script's: it passes them on, and waits for what the run does then
WITHOUT_SRUN = """\
{command} & PID=$!
for name in TERM USR1; do trap "kill -$name $PID" $name; done
while wait $PID; STATUS=$?; kill -0 $PID 2>/dev/null; do :; done"""
SILENT = 3  # exit status of a look: the machine is there, but Slurm does not answer
# one line for each name: its state in the queue and why, or how it has ended
LOOK = """
cd {folder}/{jobs} 2>/dev/null || exit 0
QUEUE=$(squeue --me --noheader --format='%i %T|%r') || exit {silent}
for name in {names}; do
    [ -e $name.id ] || continue
    STATE=$(echo "$QUEUE" | grep "^$(cat $name.id) " | cut -d' ' -f2-)
    if [ -n "$STATE" ]; then echo "$name $STATE" 0
    elif [ -e $name.exit ]; then echo $name $(cat $name.exit) $(($(date -r $name.exit +%s) - $(date -r $name.sh +%s)))
    else echo $name lost 0
    fi
done
"""


class SlurmHost(Ssh):
    """A cluster.

    Args:
        settings: `host`, its login node, and `folder`, which may be None.
    """

    name = "slurm"
    page = "slurm.md"
    looks = LOOK.replace("{silent}", str(SILENT))

    def check(self, jobs: Sequence[Job]) -> None:
        refuse_partition(jobs[0].settings["partition"], lambda *command: self._ssh(shlex.join(command)), self.host)

    def submit(self, job: Job) -> None:
        here = f"{JOBS}/{job.name}"
        start = (
            f"cd {self._quoted()} && mkdir -p {JOBS} && rm -f {here}.id {here}.exit && cat >{here}.sh && "
            f"sbatch --parsable {here}.sh >{here}.id"
        )
        done = self._ssh(start, stdin=self._script(job))
        if done.returncode:
            raise UserError(
                f"Slurm does not take job {job.name}: {last_line(done.stderr)}. Change launch.*, see "
                "conf/launch/slurm.yaml."
            )

    def write(self, job: Job, folder: Any) -> str:
        super().write(job, folder)
        return f"for run in {folder.as_posix()}/*.sh; do ssh {self.host} sbatch <$run; done"

    def cancel(self, names: Sequence[str]) -> None:
        self._ssh(f"cd {self._quoted()}/{JOBS} && scancel $(cat {' '.join(f'{name}.id' for name in names)})")

    def why_silent(self, done: subprocess.CompletedProcess[str]) -> str:
        if done.returncode != SILENT:
            return super().why_silent(done)
        return (
            f"Slurm does not answer on {self.host}: {last_line(done.stderr)}. Try again when squeue works there: ssh "
            f"{self.host} squeue --me"
        )

    def _seen(self, state: str, seconds: float) -> Seen:
        queued, _, why = state.partition("|")
        if queued in ("RUNNING", "COMPLETING"):
            return Seen("running")
        if why:
            return Seen("waiting", why if why != "None" else "")
        if state == "lost":
            return Seen("failed", "Slurm has ended it: it was cancelled, or its node was lost")
        return super()._seen(state, seconds)

    def _script(self, job: Job) -> str:
        settings, command = job.settings, shlex.join(job.command)
        options: dict[str, Any] = {
            "job-name": job.name,
            "output": f"{JOBS}/{job.name}.log",
            "open-mode": "append",
            "partition": settings["partition"],
            "account": settings["account"],
            "time": settings["minutes"],
            "nodes": job.nodes,
            "ntasks-per-node": job.processes,
            "cpus-per-task": job.cpus,
            "mem": f"{job.memory_gb}G",
            "gpus-per-node": job.gpus or None,
            "signal": f"{'' if settings['use_srun'] else 'B:'}USR1@{settings['warn_s']}",
            **settings["extra"],
        }
        return SCRIPT.format(
            options="\n".join(
                f"#SBATCH --{name.replace('_', '-')}{'' if value is True else f'={value}'}"
                for name, value in options.items()
                if value is not None and value is not False
            ),
            folder=self._quoted(),
            here=f"{JOBS}/{job.name}",
            environment=self._environment(job),
            command=(WITH_SRUN if settings["use_srun"] else WITHOUT_SRUN).format(command=command),
        )
