"""Projects with the engine in them, one for each task, and a process that runs their commands.

These tests run in the environment of a project (torch, Lightning, MLflow): tests/test_tasks.py of the template does it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ENGINE = HERE.parents[1] / "{{cookiecutter.project_slug}}/src"
FORKED = str(HERE.parent / "engine")  # where forked.py is
LONGEST_S = 240  # for a command: a training takes 2 s, on a machine with much other work 20 s

# Imports what takes long once. Then each line is a command that a copy of this process runs, as `python -m` would.
SERVER = """
import json, logging, os, runpy, sys
sys.path.append(os.environ["FORKED"])
import forked
import hydra, mlflow, numpy, optuna, pandas, pytorch_lightning, scipy.stats, sklearn.datasets, torch, torchmetrics
import joblib, mlflow.pyfunc, mlflow.pytorch, submitit, torch.export._trace
import hydra.core.plugins, torch.utils.tensorboard, torchmetrics.segmentation
torch.set_num_threads(1)
logging.getLogger().handlers.clear()  # one of these libraries leaves a handler
for line in sys.stdin:
    folder, words = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        forked.install()
        os.chdir(folder)
        sys.path[:0] = [f"{folder}/src"]
        out = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out, 1), os.dup2(out, 2)
        status = 0
        try:
            if words[0] == "-c":
                sys.argv = ["-c"]
                exec(compile(words[1], "<typed>", "exec"), {"__name__": "typed"})
            else:
                sys.argv = words[:]
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Starts one command at a time."""

    def __init__(self) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DVC", "SLURM"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env={**env, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1", "FORKED": FORKED},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, folder: Path, *words: str) -> Started:
        assert self.process.stdin
        print(json.dumps([str(folder), words]), file=self.process.stdin, flush=True)
        return Started(self, folder, int(self.read()))

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@dataclass
class Started:
    """A command that runs."""

    server: Server
    folder: Path
    pid: int

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def wait(self) -> int:
        return int(self.server.read())

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(encoding="utf-8")


@dataclass
class Project:
    """The project of one task."""

    server: Server
    folder: Path
    package: str

    def start(self, *words: str) -> Started:
        return self.server.start(self.folder, *words)

    def run(self, *words: str, expect: int = 0) -> str:
        """Run a command to its end; what it printed."""
        started = self.start(*words)
        status = started.wait()
        assert status == expect, f"{words} ended with {status}:\n{started.output[-6000:]}"
        return started.output

    def train(self, *overrides: str, expect: int = 0, script: str = "train") -> str:
        return self.run(f"{self.package}.{script}", *overrides, expect=expect)

    def refused(self, *overrides: str, script: str = "train") -> str:
        """The sentence of a training that is refused: one line, and no traceback."""
        output = self.train(*overrides, expect=1, script=script)
        assert "Traceback" not in output, output
        (sentence,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert output.rstrip().endswith(sentence), output
        return sentence

    def ask(self, expression: str, run: str = "runs/straight") -> Any:
        """What this is, of the run, with the names of the package's predict.py."""
        code = f"import json, runengine, torch\nfrom {self.package}.predict import *\nrun = runengine.find({run!r})\n"
        code += f"open('answer.json', 'w').write(json.dumps({expression}))"
        self.run("-c", code)
        return json.loads((self.folder / "answer.json").read_text())

    def change(self, name: str, old: str, new: str) -> None:
        """In a file of the package."""
        file = self.folder / "src" / self.package / name
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} does not have this once: {old}"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        file = self.folder / "src" / self.package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def kill_at(self, run: str, after_s: float, *words: str) -> bool:
        """Kill a training so long after its next checkpoint; False if it ended before."""
        last = self.folder / run / "checkpoints/last.ckpt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        started = self.start(*words)
        give_up_at = time.monotonic() + LONGEST_S
        while started.alive() and (not last.exists() or last.stat().st_mtime_ns == before):
            assert time.monotonic() < give_up_at, started.output
            time.sleep(0.001)
        time.sleep(after_s)
        status = started.kill()
        assert status in (0, -signal.SIGKILL), started.output[-6000:]
        return status != 0


Make = Callable[[str], Project]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    started = Server()
    with started.process:  # its end closes the pipes, which ends it
        yield started


@pytest.fixture(scope="session")
def database(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables: to make them takes seconds."""
    project = _make(server, tmp_path_factory.mktemp("mlflow"), "regression")
    project.run("runengine", "store", "sqlite:///mlflow.db")
    return project.folder / "mlflow.db"


@pytest.fixture(scope="session")
def projects(server: Server, database: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The project of a task: all tests that leave its files alone share it."""
    made: dict[str, Project] = {}

    def get(name: str) -> Project:
        if name not in made:
            made[name] = _make(server, tmp_path_factory.mktemp(name), name)
            shutil.copy(database, made[name].folder)
        return made[name]

    return get


@pytest.fixture
def fresh(server: Server, tmp_path: Path) -> Make:
    """A project whose files a test may change."""

    def make(name: str) -> Project:
        (tmp_path / name).mkdir()
        return _make(server, tmp_path / name, name)

    return make


def _make(server: Server, folder: Path, name: str) -> Project:
    for source in (ENGINE / "runengine", ENGINE / "hydra_plugins", HERE / "packages" / name):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / "src" / source.name, ignore=ignored)
    text = f'[project]\nname = "{name}"\n\n[tool.runengine]\npackage = "{name}"\n'
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return Project(server, folder, name)
