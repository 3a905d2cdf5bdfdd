"""A page of the project, step by step; no library is needed, as the tests of the template follow pages, too.

- a fenced block of `sh` is run, and must succeed;
- a block of `python` or `yaml` after the name of a file is put at that file's end; where there is none, it is made;
- a block of `diff` is applied to the file that was named last;
- `make test ARGS=...` is run after all of these; what else is indented by four spaces, or a block of `py`, is not.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$|`((?:src|tests)/[\w./-]+)`", re.MULTILINE | re.DOTALL)
QUICK = {"trainer.max_epochs": "1", "seeds": "2", "search.trials": "2", "trainer.limit_train_batches": "2"}
ALWAYS = ("trainer.max_epochs", "trainer.limit_train_batches")
# Imports what takes long once; then each line is a command of the package, run in a copy of this process.
SERVER = """
import importlib, json, os, runpy, sys
sys.path.append(os.environ["HERE"])
import forked
import hydra, matplotlib.pyplot, mlflow, optuna, pytorch_lightning, scipy.stats, sklearn.metrics, torch, torchmetrics
for line in sys.stdin:
    module, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        importlib.invalidate_caches()
        forked.install()
        out = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        torch.set_num_threads(1)
        sys.argv, status = [module, *arguments], 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Types commands in a project's folder; those of Python are run in forks of one process.

    Args:
        python: of the project's environment.
        folder: of the project.
        env: the environment's variables.
    """

    def __init__(self, python: str, folder: Path, env: dict[str, str]) -> None:
        self.python, self.folder = python, folder
        self.env = {**env, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self.env["HERE"] = str(Path(__file__).parent)
        self.server = subprocess.Popen(
            [python, "-c", SERVER], cwd=folder, env=self.env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()  # the end of its input ends it

    def run(self, command: str) -> str:
        """What it printed."""
        words = shlex.split(command, comments=True)
        if words[:2] == ["python", "-m"]:
            assert self.server.stdin
            assert self.server.stdout
            print(json.dumps([words[2], *quickly(words[3:], words[2])]), file=self.server.stdin, flush=True)
            status, output = int(self.server.stdout.readline()), (self.folder / "output.txt").read_text()
        else:
            program = [self.python, *words[1:]] if words[0] == "python" else words
            done = subprocess.run(program, cwd=self.folder, env=self.env, capture_output=True, text=True)
            status, output = done.returncode, done.stdout + done.stderr
        assert status == 0, f"{command}\n{output[-4000:]}"
        return output


def follow(page: Path, folder: Path, run: Callable[[str], object], known: Collection[str] = ()) -> list[str]:
    """Do in this folder what the page says, commands but for known ones by `run`; returns the tests that it names."""
    text, file, num_commands = page.read_text(encoding="utf-8"), folder, 0
    for kind, content, name in FENCE.findall(text):
        if name:
            file = folder / name
        elif kind == "sh":
            for command in content.splitlines():
                if command not in known:
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
