"""`@runengine.main("train")` makes a function a program, with settings, runs and sweeps, and errors in one sentence.

    @runengine.main("train")                                    # conf/train.yaml next to this module
    def train(cfg: DictConfig, run: runengine.TrainingRun) -> None: ...

    if __name__ == "__main__":
        train()

A function with one parameter gets its settings and nothing else: no run, no sweep.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from .compat import hydra_defaults, import_lightning, keep_ways_of_hydra_1_3
from .launch import slurm
from .runs.find import with_folder
from .runs.resolve import resolve_run
from .runs.run import Run, load_config
from .settings import process, project
from .settings.check import check
from .settings.config import in_root
from .settings.console import quiet_lightning
from .settings.errors import UserError, friendly_errors
from .settings.targets import allow
from .sweeps.one_run import one_run
from .tracking.sender import Access
from .tracking.sync import sync
from .training import distributed
from .training_run import TrainingRun

Function = Callable[..., None]
keep_ways_of_hydra_1_3()  # here: a process that joblib or Slurm starts imports this before it composes its settings


def main(config_name: str) -> Callable[[Function], Program]:
    """Make the function a program whose settings are `conf/<config_name>.yaml` next to its module."""
    return functools.partial(Program, config_name)


class Program:
    """Called without arguments it does what `python -m <package>.<module>` does.

    Args:
        config_name: the name of its settings, as in conf/<config_name>.yaml.
        function: takes the settings and, if it trains, the run.
    """

    def __init__(self, config_name: str, function: Function) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.trains = len(inspect.signature(function).parameters) > 1
        self.about = sys.modules[function.__module__].__doc__
        self.package: str = function.__globals__["__package__"]
        self.config_name = config_name

    @property
    def home(self) -> project.Project:
        """Looked for each time: a job of Slurm unpickles this object where another copy of the code is imported."""
        return project.find(self.package, self.config_name)

    def __call__(self) -> None:
        project.use(self.home)
        _answer_help(self.about, self.home.script)
        with friendly_errors():
            self._refuse_subpackage()
            project.check_imports()
            project.check_plugin()
            sys.argv[1:] = [with_folder(argument) for argument in sys.argv[1:]]

        @functools.wraps(self.function)
        def task(cfg: DictConfig) -> None:
            self._task(cfg)

        run_hydra = hydra.main(
            **hydra_defaults(), config_path=f"pkg://{self.home.package}.conf", config_name=self.home.script
        )
        with friendly_errors():  # for the errors that Hydra finds before it calls the task
            run_hydra(task)()

    def start(self, cfg: DictConfig, overrides: Sequence[str] = ()) -> Run:
        """Train as configured, in this process: a new run, or the one in `cfg.run_dir`, which is resumed.

        Args:
            cfg: the composed configuration.
            overrides: what was typed on the command line.

        Raises:
            UserError: data, checkpoint or settings do not fit; the message says what to do.
            SystemExit: 75 if the run was stopped by a signal, 130 if at once by a second Ctrl-C.
        """
        project.use(self.home)
        self._refuse_subpackage()
        here, root = Path.cwd(), project.at_hand()
        if root and root != here:  # a notebook's folder stays its own
            with contextlib.chdir(root):
                run = self.start(in_root(cfg), overrides)
            return Run(root / run.folder)
        distributed.check(cfg.trainer.devices, cfg.trainer.num_nodes)
        run, cfg, finished = distributed.decide(lambda: _resolve(cfg, overrides))
        asks = process.rank() == 0 and process.SENDS_LATER not in os.environ
        if finished:
            print(f"{run.folder} is finished. To train for longer: trainer.max_epochs={cfg.trainer.max_epochs * 2}")
            if process.rank() == 0:  # it was killed after its last epoch, or its machine was lost
                run.report()
            if asks and run.unsent.exists():
                sync([run])
            return run
        access = Access(cfg.tracking.mlflow_uri if asks else None)  # asked while torch is imported
        import_lightning()
        import pytorch_lightning as pl

        quiet_lightning()
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        self.function(cfg, TrainingRun(run.folder, run.starts_over, cfg=cfg, access=access))
        return run

    def _refuse_subpackage(self) -> None:
        """A run's folder names its script in the project's package, where settings and `evaluate` are found again."""
        above, _, below = self.package.partition(".")
        if below and self.trains:
            name = f"{below.replace('.', '_')}_{self.config_name}"
            raise UserError(
                f"{self.package}.{self.config_name} is below the project's package, where its runs are not found again."
                f' Make it a script next to the others: src/{above}/{name}.py with @runengine.main("{name}"), and '
                f"src/{above}/conf/{name}.yaml."
            )

    def _task(self, cfg: DictConfig) -> None:
        project.use(self.home)  # also in a job, which is another process
        overrides = list(HydraConfig.get().overrides.task)
        if not self.trains:
            with friendly_errors():
                check(cfg, self.home.script, overrides)
                allow(cfg)
                self.function(cfg)
            return
        in_a_sweep = not OmegaConf.is_missing(HydraConfig.get().job, "num")
        slurm.requeue_while_starting()
        slurm.leave_bad_node()
        with one_run(cfg.run_dir, overrides) if in_a_sweep else friendly_errors():
            check(cfg, self.home.script, overrides)
            self.start(cfg, overrides)


def _answer_help(doc: str | None, config_name: str) -> None:
    """End with what the program is for and what can be chosen, if --help was typed; Hydra's own takes twice as long."""
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    chosen: dict[str, Any] = {}
    for each in OmegaConf.load(project.current().conf / f"{config_name}.yaml").defaults:
        chosen |= dict(each) if OmegaConf.is_dict(each) else {}
    print(f"{doc}\nWhat can be chosen, and the default:\n")
    for group, default in chosen.items():
        if found := project.choices(group):
            print(f"    {group + '=' + (default or 'null'):20} {', '.join(found)}")
    print("\nEvery setting:  --cfg job      What it means:  the files in conf/      Hydra's own options:  --hydra-help")
    sys.exit()


def _resolve(cfg: DictConfig, overrides: Sequence[str]) -> tuple[Run, DictConfig, bool]:
    """The run, its configuration, and whether nothing is left to do."""
    run, cfg = resolve_run(cfg, overrides)
    if run.starts_over or not run.finished():
        return run, cfg, False
    return run, cfg, load_config(run).trainer.max_epochs >= cfg.trainer.max_epochs


def build_all(nodes: DictConfig | dict[str, Any]) -> list[Any]:
    """What the `_target_` of each node names, built with its settings: `callbacks` and `loggers`."""
    return [hydra.utils.instantiate(node, _convert_="all") for node in nodes.values() if node]
