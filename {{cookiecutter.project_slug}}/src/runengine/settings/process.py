"""What this process knows from whatever started it: its rank, and the job of Slurm that it is in.

| started by                       | this process knows it by              |
|----------------------------------|---------------------------------------|
| nobody, or Lightning for devices | LOCAL_RANK, in the children alone     |
| one such process on each node    | NODE_RANK, LOCAL_WORLD_SIZE           |
| torchrun                         | TORCHELASTIC_RUN_ID, RANK, WORLD_SIZE |
| srun                             | SLURM_STEP_NUM_TASKS, SLURM_PROCID    |
"""

from __future__ import annotations

import os

SENDS_LATER = "RUNENGINE_SENDS_LATER"  # MLflow is not reached from here: whoever has the folder afterwards tells it


def starter() -> str | None:
    """What started several processes of this run: `torchrun`, `srun`, or None."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    if num_tasks() > 1 and "SLURM_PROCID" in os.environ:
        return "srun"
    return None


def rank() -> int:
    names = {"torchrun": "RANK", "srun": "SLURM_PROCID", None: "LOCAL_RANK"}
    before = node() * int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if starter() is None else 0
    return before + int(os.environ.get(names[starter()], 0))


def node() -> int:
    """The number of this node, where each one was started by itself, as a pod of Kubernetes is."""
    return int(os.environ.get("NODE_RANK", 0))


def is_child() -> bool:
    """Did Lightning start this process, from another one of the same node?"""
    return starter() is None and "LOCAL_RANK" in os.environ and int(os.environ["LOCAL_RANK"]) > 0


def world() -> int:
    """How many processes torchrun or srun started; 1 where Lightning will start them itself."""
    return int(os.environ["WORLD_SIZE"]) if starter() == "torchrun" else num_tasks()


def job_id() -> str | None:
    """The Slurm job this process is in, or None.

    A task of an array is `<array>_<task>`: the raw number of its last task is the array's own, and would mean all.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """How often this job was requeued."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def num_tasks() -> int:
    """How many processes srun started, this one included; 1 without srun, whatever the job asked for."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
