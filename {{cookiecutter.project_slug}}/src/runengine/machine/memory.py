"""How much memory a training step of this project needs: counted before a long run.

    python -m runengine memory                        # with the settings of conf/train.yaml
    python -m runengine memory data.batch_size=512    # any settings of a training

Two steps are made with the project's first batch, and nothing is kept. Where there is a GPU they run there, and what
PyTorch has really taken stands next to the count.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..settings import project
from ..settings.config import compose
from ..settings.console import size

if TYPE_CHECKING:
    import torch

    from .own_step import FirstStep


class Memory(NamedTuple):
    """Bytes.

    Args:
        kept: from the forward pass for the backward pass.
        peak: the most at one time, everything together.
        taken: by PyTorch from the GPU's driver; None on a CPU.
    """

    parameters: int
    gradients: int
    optimizer: int
    kept: int
    peak: int
    num_examples: int
    taken: int | None = None


def count(first: FirstStep, dtype: str, device: torch.device) -> Memory:
    """Of a step of this task, when the optimizer has its state."""
    import torch
    from pytorch_lightning.utilities.data import extract_batch_size
    from torch.utils._pytree import tree_leaves

    from .products import as_asked
    from .steps import step_of
    from .storages import Storages, num_bytes

    parameters = list(first.task.parameters())
    storages = Storages()
    kept = 0

    def loss_of() -> torch.Tensor:
        nonlocal kept
        before = storages.now
        loss = first.loss_of()
        kept = storages.now - before
        return loss

    there = num_bytes([*parameters, *first.task.buffers(), *tree_leaves(first.batch)])
    step = step_of(loss_of, first.optimizer, dtype, device)
    with as_asked(dtype), storages:
        step()
        step()
    taken = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        with as_asked(dtype):
            step_of(first.loss_of, first.optimizer, dtype, device)()
        taken = torch.cuda.max_memory_allocated(device)
    return Memory(
        parameters=num_bytes(parameters),
        gradients=num_bytes(parameter.grad for parameter in parameters),
        optimizer=num_bytes(tree_leaves(list(first.optimizer.state.values()))),
        kept=kept,
        peak=there + storages.peak,
        num_examples=extract_batch_size(first.batch),
        taken=taken,
    )


def text(memory: Memory, dtype: str, device: str, total: int | None) -> str:
    """A table; `total`: bytes that the device has."""
    each = memory.kept / memory.num_examples
    lines = [
        f"a training step of this project on {device}, in {dtype}, {memory.num_examples} examples",
        f"  parameters        {size(memory.parameters):>10}",
        f"  gradients         {size(memory.gradients):>10}",
        f"  optimizer         {size(memory.optimizer):>10}",
        f"  for the backward  {size(memory.kept):>10}   {size(each)} for each example",
        f"  at its peak       {size(memory.peak):>10}   all of these and what is needed in between",
    ]
    if memory.taken is not None:
        lines.append(f"  PyTorch has taken {size(memory.taken):>10}   of {size(total or 0)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {project.ENGINE} memory", description="Count what a training step keeps in memory."
    )
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of a training, such as data.batch_size=512")
    cfg = compose(project.current().script, parser.parse_args().settings)
    import torch

    from .own_step import at_first_batch
    from .plan import devices

    device = devices()[0]
    precision = str(cfg.trainer.get("precision"))
    dtype = "bf16" if precision.startswith("bf16") else "fp16" if precision.startswith("16") else "fp32"
    memory = at_first_batch(cfg, device, lambda first: count(first, dtype, device))
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    print(text(memory, dtype, str(device), total))
    if most := most_of_process():
        print(f"  this process      {size(most):>10}   of the computer's memory at most, with all libraries")


def most_of_process() -> int | None:
    """Bytes of the computer's memory that this process has held at its peak; None where only Linux would say it."""
    status = Path("/proc/self/status")  # not getrusage: its figure is that of the process which started this one, too
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else None
