"""The processes of one run: how all of them learn the same, and how Lightning starts more.

Rank 0 decides and writes; the others follow. Torch is imported where there are others only.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from .. import compat
from ..settings.errors import UserError
from ..settings.process import rank, starter, world

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

MEETING = "RUNENGINE_MEETING"  # the file by which processes of one machine find each other
LISTENS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
LOOPBACK = {"linux": "lo", "darwin": "lo0"}

T = TypeVar("T")


def check(devices: int, num_nodes: int) -> None:
    """Refuse what would train twice, each process for itself.

    Raises:
        UserError: torchrun or srun started another number of processes than the trainer has devices, or srun was not
            told how many of them on each node.
    """
    if world() > 1 and world() != devices * num_nodes:
        raise UserError(
            f"trainer.devices x trainer.num_nodes is {devices} x {num_nodes}, but {starter()} started {world()} "
            f"processes. Make them equal, for example trainer=ddp trainer.devices={world()}, or start one process."
        )
    if starter() == "srun" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"Lightning does not take srun's --ntasks={world()}. Write --ntasks-per-node={devices} instead."
        )


def decide(choose: Callable[[], T]) -> T:
    """What `choose` returns on rank 0, on every rank; its UserError likewise.

    Needs torch.distributed only where torchrun or srun started several processes.
    """
    if world() == 1:
        return choose()
    import torch.distributed as dist

    _join()
    answer: list[Any] = [None]
    if rank() == 0:
        try:
            answer = [choose()]
        except UserError as error:
            answer = [error]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], UserError):
        raise answer[0]
    decided: T = answer[0]
    return decided


def gather(value: Any) -> list[Any]:
    """The value of every rank, in their order, on every rank; tensors and plain types."""
    import io

    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    buffer = io.BytesIO()
    torch.save(value, buffer)  # all_gather_object by itself fails on tensors of bytes (torch 2.13)
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, buffer.getvalue())
    return [torch.load(io.BytesIO(each), weights_only=True) for each in values]


def environment() -> ClusterEnvironment:
    """Says to Lightning which process this is: Lightning itself takes any Slurm job for one started by srun."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if starter() == "torchrun":
        return TorchElasticEnvironment()
    if starter() == "srun":
        return SLURMEnvironment(auto_requeue=False)  # launch/slurm.py does it
    return LightningEnvironment()


@contextmanager
def children_run(module: str, *arguments: str, several: bool = False) -> Iterator[None]:
    """Lightning starts its children as `python -m <module> <arguments>`, whatever started this process.

    What it leaves in the environment is taken away again: the next training of a sweep would take itself for a child.

    Args:
        module, arguments: of the command.
        several: there will be children, and all on this machine: nothing of theirs can then be reached from another.
    """
    import torch.distributed as dist

    before = dict(os.environ)
    try:
        with ExitStack() as stack:
            if several and starter() is None and dist.is_available():
                stack.enter_context(_alone_on_this_machine())
            stack.enter_context(compat.children_run(module, *arguments))
            yield
    finally:
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", MEETING, *LISTENS):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
        if starter() is None and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _alone_on_this_machine() -> Iterator[None]:
    """Let Lightning's processes meet by a file: by default rank 0 listens on every interface of the machine."""
    import torch.distributed as dist

    def meet(*arguments: Any, **options: Any) -> None:
        store = dist.FileStore(os.environ[MEETING], options["world_size"])  # type: ignore[attr-defined]
        init_process_group(*arguments, **{"store": store, **options})

    init_process_group = dist.init_process_group
    with tempfile.TemporaryDirectory(prefix="runengine-") as folder:
        os.environ.setdefault(MEETING, f"{folder}/store")  # the children have it from rank 0
        if interface := LOOPBACK.get(sys.platform):
            for name in LISTENS:
                os.environ.setdefault(name, interface)
        dist.init_process_group = meet
        try:
            yield
        finally:
            dist.init_process_group = init_process_group


def _join() -> None:
    """Meet the other processes; Lightning finds the group and uses it."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    cluster = environment()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=None if starter() == "torchrun" else f"tcp://{cluster.main_address}:{cluster.main_port}",
        rank=rank(),
        world_size=world(),
    )
