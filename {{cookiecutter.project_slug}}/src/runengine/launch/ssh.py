"""A machine that SSH reaches: OpenSSH and rsync on both sides, bash there, and nothing of ours that stays.

<project>/.jobs/<name>.sh       starts the run, again where it asks for that (exit status 75)
<project>/.jobs/<name>.log      what it prints; .pid, .exit, .stop: where it is
<project>/.jobs/<sweep>/        the code as it was when the sweep was typed
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..runs import provenance
from ..settings import project
from ..settings.errors import RESUME_ME, UserError
from ..settings.files import atomic_write
from .job import NOT_SENT, Job, Seen, error_in, later_or_server

JOBS = ".jobs"
WAIT_S = 15  # for a machine that does not answer
OPTIONS = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={WAIT_S}", "-o", "ServerAliveInterval=15"]
SCRIPT = """\
#!/bin/bash
# Starts a run, and starts it again for as long as it asks for that: exit status {again}
cd {folder} || exit 1
. scripts/activate.sh
export {environment}
while
    {command} &
    echo $! >{here}.pid
    wait $!
    STATUS=$?
    [ $STATUS = {again} ] && [ ! -e {here}.stop ]
do sleep 1; done
echo $STATUS >{here}.exit
"""
# one line for each name: waiting, running, or the exit status
LOOK = """
for name in {names}; do
    cd {folder}/{jobs} 2>/dev/null || exit 0
    if [ -e $name.exit ]; then echo $name $(cat $name.exit) $(($(date -r $name.exit +%s) - $(date -r $name.sh +%s)))
    elif [ -e $name.pid ] && kill -0 $(cat $name.pid) 2>/dev/null; then echo $name running 0
    elif [ -e $name.pid ]; then echo $name lost 0
    fi
done
"""


class Ssh:
    """One machine.

    Args:
        settings: `host`, and `folder`, which may be None.
    """

    name = "ssh"
    page = "remote.md"
    looks = LOOK

    def __init__(self, settings: dict[str, Any]) -> None:
        self.place = {name: settings.get(name) for name in ("host", "folder")}
        self.host = str(settings["host"])
        self.folder = PurePosixPath(settings.get("folder") or project.root().name)

    def reach(self) -> None:
        for program in ("ssh", "rsync"):
            if shutil.which(program) is None:
                raise UserError(f"launch=ssh needs {program}, which is not here. Install it, or use launch=local.")
        there = self._ssh("command -v bash rsync setsid make")
        if there.returncode > 1:
            raise UserError(self._explain(there.stderr))
        found = {PurePosixPath(line).name for line in there.stdout.split()}
        if missing := sorted({"bash", "make", "rsync", "setsid"} - found):
            raise UserError(f"{self.host} has no {', '.join(missing)}. Install that there.")

    def check(self, jobs: Sequence[Job]) -> None:
        if jobs[0].nodes > 1:
            raise UserError("launch=ssh trains on one machine: trainer.num_nodes must be 1.")

    def prepare(self, job: Job) -> None:
        """Code and data; and make the environment, if there is none."""
        self._rsync([f"--exclude={each}" for each in NOT_SENT], "./", f"{self.folder}/")
        with tempfile.TemporaryDirectory() as folder:
            code = Path(folder) / "code"
            provenance.copy_code(code, diff=True)
            self._rsync([], f"{code}/", f"{self._code(job)}/")
        if job.settings["data"] and Path("data").exists():
            self._rsync(["--delete"], "data/", f"{self.folder}/data/")
        ready = self._ssh(f"cd {self._quoted()} && make --no-print-directory ready")
        if ready.returncode:
            print(f"making the environment on {self.host}: make setup", flush=True)
            made = subprocess.run(["ssh", *OPTIONS, self.host, f"cd {self._quoted()} && CI=true make setup"])
            if made.returncode:
                raise UserError(
                    f"make setup failed on {self.host}; its message is above. Mend it there: ssh {self.host}"
                )

    def write(self, job: Job, folder: Path) -> str:
        atomic_write(folder / f"{job.folder.name}.sh", self._script(job))
        return f"for run in {folder.as_posix()}/*.sh; do ssh {self.host} bash -s <$run; done"

    def submit(self, job: Job) -> None:
        here = f"{JOBS}/{job.name}"
        start = (
            f"cd {self._quoted()} && mkdir -p {JOBS} && rm -f {here}.pid {here}.exit {here}.stop && cat >{here}.sh && "
            f"touch {here}.sh && (setsid nohup bash {here}.sh >>{here}.log 2>&1 </dev/null & echo $! >{here}.pid)"
        )
        done = self._ssh(start, stdin=self._script(job))
        if done.returncode:
            raise UserError(self._explain(done.stderr))

    def look(self, names: Sequence[str]) -> dict[str, Seen]:
        done = self._ssh(self.looks.format(names=" ".join(names), folder=self._quoted(), jobs=JOBS))
        if done.returncode:
            raise UserError(self.why_silent(done))
        found = {name: (state, float(seconds)) for name, state, seconds in map(str.split, done.stdout.splitlines())}
        return {name: self._seen(*found[name]) if name in found else Seen("gone") for name in names}

    def _seen(self, state: str, seconds: float) -> Seen:
        if state == "running":
            return Seen("running")
        if state == "0":
            return Seen("finished", seconds=seconds)
        if state == str(RESUME_ME):
            return Seen("gone", seconds=seconds)  # cancelled: it has saved
        if state == "lost":
            return Seen("failed", f"{self.host} was switched off, or has killed it")
        return Seen("failed", f"it ended with exit status {state}", seconds)

    def complete(self, name: str, seen: Seen) -> Seen:
        return replace(seen, why=error_in(self.log(name, 50)) or seen.why) if seen.state == "failed" else seen

    def log(self, name: str, num_lines: int) -> str:
        return self._ssh(f"tail -n {num_lines} {self._quoted()}/{JOBS}/{name}.log").stdout

    def follow(self, name: str) -> list[str]:
        log = f"{self._quoted()}/{JOBS}/{name}"
        wait = f"while [ ! -e {log}.exit ] && kill -0 $(cat {log}.pid); do sleep 1; done 2>/dev/null"
        command = f"tail -n +1 -f {log}.log & {wait}; sleep 1; kill $!"
        return ["ssh", *OPTIONS, self.host, command]

    def bring(self, job: Job) -> None:
        """The run's folder as it is there."""
        job.folder.mkdir(parents=True, exist_ok=True)
        command = ["rsync", "-a", "-e", shlex.join(["ssh", *OPTIONS])]
        subprocess.run([*command, f"{self.host}:{self.folder}/{job.folder.as_posix()}/", f"{job.folder}/"], check=False)

    def cancel(self, names: Sequence[str]) -> None:
        jobs = f"{self._quoted()}/{JOBS}"
        for name in names:
            self._ssh(f"cd {jobs} && touch {name}.stop && kill $(cat {name}.pid)")

    def _environment(self, job: Job) -> str:
        environment = {
            **later_or_server(job),
            "PYTHONPATH": f"$HOME/{shlex.quote(str(self._code(job)))}:$PYTHONPATH",
            "PYTHONUNBUFFERED": "1",
        }
        return " ".join(f"{name}={value}" for name, value in environment.items())

    def _script(self, job: Job) -> str:
        return SCRIPT.format(
            again=RESUME_ME,
            folder=self._quoted(),
            environment=self._environment(job),
            command=shlex.join(job.command),
            here=f"{JOBS}/{job.name}",
        )

    def _code(self, job: Job) -> PurePosixPath:
        return self.folder / JOBS / job.folder.parent.name

    def _quoted(self) -> str:
        """The project's folder there, for its shell."""
        return shlex.quote(str(self.folder)) if self.folder.is_absolute() else f"$HOME/{shlex.quote(str(self.folder))}"

    def _ssh(self, command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(["ssh", *OPTIONS, self.host, command], capture_output=True, text=True, **source)

    def _rsync(self, options: Sequence[str], source: str, target: str) -> None:
        made = self._ssh(f"mkdir -p {self._quoted()}/{JOBS}")
        command = ["rsync", "-a", "-e", shlex.join(["ssh", *OPTIONS]), *options, source, f"{self.host}:{target}"]
        done = subprocess.run(command, capture_output=True, text=True) if not made.returncode else made
        if done.returncode:
            raise UserError(self._explain(done.stderr))

    def why_silent(self, done: subprocess.CompletedProcess[str]) -> str:
        """Why a look at the jobs had no answer."""
        return self._explain(done.stderr)

    def _explain(self, said: str) -> str:
        if "Permission denied (" in said:
            return (
                f"{self.host} does not let you in without a password. Give it your key: ssh-copy-id {self.host} "
                "(before that, if you have none: ssh-keygen)."
            )
        if "Host key verification failed" in said:
            return (
                f"the key of {self.host} is not known, or not the one that was known. Look at it once: ssh {self.host}"
            )
        if "No space left on device" in said or "Disk quota exceeded" in said:
            return f"the disk of {self.host} is full. Free some space there: ssh {self.host}"
        lines = said.strip().splitlines() or ["it does not say why"]
        return f"{self.host} cannot be reached: {lines[-1].rstrip('.')}. Try: ssh {self.host}"
