"""A page of the project, step by step; no library is needed, as the tests of the template follow pages, too.

- a fenced block of `sh` is run, and must succeed;
- a block of `python` or `yaml` after the name of a file is put at that file's end; where there is none, it is made;
- a block of `diff` is applied to the file that was named last;
- `make test ARGS=...` is run after all of these; what else is indented by four spaces, or a block of `py`, is not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$|`((?:src|tests)/[\w./-]+)`", re.MULTILINE | re.DOTALL)
QUICK = {"trainer.max_epochs": "1", "seeds": "2", "search.trials": "2", "trainer.limit_train_batches": "2"}
ALWAYS = ("trainer.max_epochs", "trainer.limit_train_batches")
# Imports what takes long once; then each line is a program, which a copy of this process runs.
SERVER = """
import gc, importlib, json, os, runpy, sys
path = [*sys.path[1:], sys.argv[1]]
sys.path.append(sys.argv[1])
import forked
import hydra, matplotlib.pyplot, mlflow, optuna, pytest, pytorch_lightning, scipy.stats, sklearn.metrics, torch
import torchmetrics
gc.freeze()  # the children look at what they make themselves
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        out = os.open(asked["output"], os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
        importlib.invalidate_caches()
        forked.install()
        torch.set_num_threads(1)
        kind, name, *arguments = asked["words"] if asked["words"][0][0] == "-" else ["", *asked["words"]]
        here = os.path.dirname(os.path.abspath(name)) if not kind else os.getcwd()
        places = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.path[:] = [here, *map(os.path.abspath, places), *path]
        sys.argv, status = [name if kind != "-c" else kind, *arguments], 0
        try:
            if kind == "-m":
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            elif kind == "-c":
                exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
            else:
                runpy.run_path(name, run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs programs of Python in copies of one process, in which everything that takes long is imported already.

    Args:
        python: of the project's environment.
    """

    def __init__(self, python: str) -> None:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [python, "-c", SERVER, str(Path(__file__).parent)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**env, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input ends it

    def run(self, words: Sequence[str], folder: Path, env: Mapping[str, str]) -> tuple[int, str]:
        """The exit status of `python <words>`, typed in this folder, and what it printed."""
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
            asked = {"words": [*words], "folder": str(folder), "environment": {**env}, "output": output.name}
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            return int(self.process.stdout.readline()), output.read()


class Commands:
    """Types commands in a project's folder.

    Args:
        server: runs those of Python.
        folder: of the project.
        env: the environment's variables.
    """

    def __init__(self, server: Server, folder: Path, env: dict[str, str]) -> None:
        self.server, self.folder = server, folder
        self.env = {**env, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

    def run(self, command: str) -> str:
        """What it printed."""
        words = shlex.split(command, comments=True)
        if words[0] == "python":
            if words[1] == "-m":
                words[3:] = quickly(words[3:], words[2])
            status, output = self.server.run(words[1:], self.folder, self.env)
        else:
            done = subprocess.run(words, cwd=self.folder, env=self.env, capture_output=True, text=True)
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
