"""Slurm as a program that answers what Slurm 22.05 was seen to answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from runengine import UserError
from runengine.launch import slurm
from runengine.settings import process

RUNNING = "JobId=7 JobName=x JobState=RUNNING Requeue=1 BatchFlag=1 PreemptTime=None"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-21T13:53:06")
CANCELLED = PREEMPTED.replace("RUNNING", "COMPLETING")


def answers(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, status: int = 0) -> None:
    monkeypatch.setenv("PATH", str(folder))
    (folder / program).write_text(f"#!/bin/sh\necho '{text}' >&{2 if status else 1}\nexit {status}\n", encoding="utf-8")
    (folder / program).chmod(0o755)


@pytest.mark.parametrize(("signum", "job", "wanted"), [
    (signal.SIGUSR1, RUNNING, True),
    (signal.SIGUSR2, RUNNING, True),
    (signal.SIGUSR1, RUNNING.replace("BatchFlag=1", "BatchFlag=0"), False),
    (signal.SIGUSR1, RUNNING.replace("Requeue=1", "Requeue=0"), False),
    (signal.SIGUSR1, CANCELLED, False),
    (signal.SIGTERM, RUNNING, False),
    (signal.SIGTERM, PREEMPTED, True),
    (signal.SIGTERM, CANCELLED, False),
    (signal.SIGINT, PREEMPTED, False),
])  # fmt: skip
def test_a_job_is_requeued_when_time_or_place_ran_out_not_when_somebody_stopped_it(
    signum: int, job: str, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers("scontrol", tmp_path, monkeypatch, job)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert slurm.requeue_on(signum) is wanted
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm.requeue_on(signum) is False


def test_the_task_of_an_array_is_requeued_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "22", "ARRAY_JOB_ID": "22", "ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert process.job_id() == "22_2"


def test_a_refused_requeue_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    answers("scontrol", tmp_path, monkeypatch, "Requested operation is presently disabled for job 7", status=1)
    with pytest.raises(
        UserError, match=r"^Slurm does not requeue job 7: Requested operation .* Submit the run again\.$"
    ):
        slurm.requeue()
    (tmp_path / "scontrol").unlink()
    with pytest.raises(UserError, match="No such file"):
        slurm.requeue()


def test_a_sweep_typed_in_a_job_hides_what_slurm_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1024")
    monkeypatch.setenv("SLURM_CONF", "slurm.conf")
    with slurm.outside_of_a_job():
        assert {name for name in os.environ if name.startswith("SLURM_")} == {"SLURM_CONF"}
    assert os.environ["SLURM_MEM_PER_NODE"] == "1024"
