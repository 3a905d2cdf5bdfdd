"""Imports of large libraries: what they make is not looked through again, and what the process makes is."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
{before}
from runengine.compat import import_lightning

import_lightning()
first = gc.get_freeze_count()
mine = [[] for _ in range(1000)]
import_lightning()
print(gc.isenabled(), first > 100_000, gc.get_freeze_count() == first)
"""


def said(before: str = "") -> list[str]:
    program = PROGRAM.format(before=before)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_the_collector_leaves_out_what_was_imported_and_nothing_that_came_later() -> None:
    assert said() == ["True", "True", "True"]


def test_a_collector_that_somebody_switched_off_stays_off() -> None:
    assert said("gc.disable()") == ["False", "True", "True"]


def test_where_lightning_was_there_already_nothing_is_changed() -> None:
    assert said("import pytorch_lightning") == ["True", "False", "True"]


def test_where_torch_was_there_what_somebody_made_with_it_can_still_be_collected() -> None:
    cycle = "import torch, weakref\nmodel = torch.nn.Linear(1, 1)\nmodel.itself = [model]\nseen = weakref.ref(model)"
    program = PROGRAM.format(before=cycle) + "del model\ngc.collect()\nprint(seen() is None)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert out == ["True", "False", "True", "True"]
