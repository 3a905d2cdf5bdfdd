"""A page of the project, step by step; no library is needed, as the tests of the template follow pages, too.

- a fenced block of `sh` is run, and must succeed;
- a block of `python` or `yaml` after the name of a file is put at that file's end; where there is none, it is made;
- a block of `diff` is applied to the file that was named last;
- `make test ARGS=...` is run after all of these; what else is indented by four spaces, or a block of `py`, is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$|`(src/[\w./-]+)`", re.MULTILINE | re.DOTALL)
QUICK = {"trainer.max_epochs": "1", "seeds": "2", "search.trials": "2", "trainer.limit_train_batches": "2"}
ALWAYS = ("trainer.max_epochs", "trainer.limit_train_batches")


def follow(page: Path, folder: Path, run: Callable[[str], None]) -> list[str]:
    """Do in this project's folder what the page says, commands by `run`; returns the tests that it names."""
    text, file, num_commands = page.read_text(encoding="utf-8"), folder, 0
    for kind, content, name in FENCE.findall(text):
        if name:
            file = folder / name
        elif kind == "sh":
            for command in content.splitlines():
                run(command)
                num_commands += 1
        elif kind == "diff":
            change(file, content)
        elif kind in ("python", "yaml"):
            write(file, content)
    assert num_commands > 1
    return re.findall(r"^    make test ARGS=(\S+)$", text, re.MULTILINE)


def write(file: Path, content: str) -> None:
    """At the end of the file, or as a new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = f"{file.read_text(encoding='utf-8')}\n\n" if file.is_file() else ""
    file.write_text(before + content, encoding="utf-8")


def change(file: Path, diff: str) -> None:
    old = "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in ("-", " "))
    new = "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in ("+", " "))
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    assert text.count(old) == 1, f"{file} does not have this once:\n{old}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def quickly(overrides: list[str], module: str) -> list[str]:
    """One epoch in place of many, and no tracking."""
    if not module.endswith("train") or "--cfg" in overrides:
        return overrides
    typed = {override.partition("=")[0] for override in overrides}
    added = {key for key in ALWAYS if key not in typed} | ({"search.trials"} if "search" in typed else set())
    kept = [one for one in overrides if one.partition("=")[0] not in added]
    if "run_dir" not in typed:  # that one is to go on for longer than before
        kept = [f"{key}={QUICK[key]}" if (key := one.partition("=")[0]) in QUICK else one for one in kept]
    return [*kept, *(f"{key}={QUICK[key]}" for key in sorted(added)), "trainer=cpu", "tracking=off"]
