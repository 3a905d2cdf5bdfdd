"""Many runs in one sweep: a grid, several seeds, or a search.

    python -m my_project.train -m optimizer.lr=0.001,0.01 model=cnn,mlp    # every combination
    python -m my_project.train seeds=10                                # how much of a result is luck?
    python -m my_project.train search=default                          # Optuna chooses settings; with seeds=3 by a mean
    python -m my_project.train sweep_dir=runs/digits/sweep-…           # resume a sweep that was stopped

    runs/<experiment>/sweep-<start to the microsecond>-<random>/
        sweep.yaml         what was typed, and the runs that follow from it
        000/ 001/ ...      the runs, each as in run.py
        sweep.csv          one row a run; with `seeds` also seeds.csv, one row a combination
        mlflow_run_id      the parent of the runs in MLflow

How a run went is read from its folder: a launcher may die, a job may be cancelled.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..compat import composing_once
from ..launch import slurm
from ..launch.elsewhere import Elsewhere, engine_of, launched
from ..runs import provenance
from ..runs.lock import locked
from ..runs.run import Run
from ..settings import process, project
from ..settings.config import compose
from ..settings.console import first_line
from ..settings.errors import RESUME_ME, explain
from ..settings.start import quoted
from ..tracking import mlflow_client, payload
from ..tracking.sender import Access, Sender
from ..tracking.sync import send_all
from ..training import distributed
from .results import Job, Ranking, report
from .seeds import evaluate_all, report_seeds, report_trials
from .start import resume, seeds_of, start

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction


def sweep(context: HydraContext, task: TaskFunction, config: DictConfig, typed: Sequence[str]) -> None:
    """Run what was asked for, print how it went, and end the program.

    Exit status 0: every run finished; 1: some failed; 75: the sweep was stopped and can be resumed.

    Args:
        config: the composed configuration, without the lists.
        typed: what was typed, with the lists.
    """
    if config.sweep_dir is None:
        sweep = distributed.decide(lambda: start(config, typed))
    else:
        sweep = Run(Path(config.sweep_dir))
        config = resume(sweep, context, config, typed)
    stored: Any = OmegaConf.load(sweep.sweep)
    jobs = [Job(sweep.folder / f"{number:03d}", overrides=tuple(each)) for number, each in enumerate(stored.jobs)]
    if process.rank() > 0:  # where torchrun or srun started several processes: the same runs as rank 0, which reports
        unfinished = distributed.decide(lambda: list(jobs))
        _launch(_launcher(context, task, config, sweep), config, unfinished)
        return
    with locked(sweep):
        _lead(context, task, config, sweep, stored, jobs)


def _lead(
    context: HydraContext, task: TaskFunction, config: DictConfig, sweep: Run, stored: DictConfig, jobs: list[Job]
) -> None:
    """The sweep on rank 0."""
    first = compose(project.current().script, stored.first)
    Access(first.tracking.mlflow_uri).check()
    provenance.record_start(sweep)
    dry = config.launch.get("dry_run", False)
    sender = Sender(sweep, first.tracking.mlflow_uri) if first.tracking.mlflow_uri and not dry else None

    search, ranking = None, Ranking(first.monitor.metric, first.monitor.mode)
    if config.get("search"):
        from .search import Search

        search = Search(sweep, config.search, stored.first, seeds_of(stored.first, config.seeds))
        batches, jobs = search.batches(), search.jobs
    else:
        batches = iter([distributed.decide(lambda: [job for job in jobs if job.state != "finished"])])

    started_at, status, trouble = time.monotonic(), 0, ""
    try:
        with _terminated_is_stopped():
            launcher = _launcher(context, task, config, sweep)
            for batch in batches:
                _launch(launcher, config, batch)
                if dry:
                    return
        if config.seeds is not None and search is None:  # which looks at what is monitored, not at the test split
            evaluate_all([job for job in jobs if job.state == "finished"])
    except (KeyboardInterrupt, SystemExit):
        status = RESUME_ME
        if _slurm(config):
            print(f"the jobs stay in Slurm's queue. To cancel them: scancel --name={config.hydra.launcher.name}")
        elif launched(sweep):
            print(f'the jobs go on. To cancel them: make jobs ARGS="--cancel {sweep.folder}"')
    except Exception as error:  # the launcher's: what it started may have finished all the same
        sweep.error.write_text(traceback.format_exc(), encoding="utf-8")
        trouble = explain(error) or slurm.refusal(error) or ""
        trouble = trouble or f"{type(error).__name__}: {first_line(error)} The traceback: {sweep.error}"

    failed = [job for job in jobs if job.state in ("failed", "unfinished")]
    status = status or int(bool(failed or trouble))
    seconds = time.monotonic() - started_at
    print(f"\nsweep {sweep.folder}: {len(jobs) - len(failed)} of {len(jobs)} runs finished, {seconds:.0f} s")
    if config.seeds is None:
        best = report(sweep, jobs, ranking)
    elif search is None:
        best = report_seeds(sweep, jobs, ranking.metric)
    else:
        best = report_trials(sweep, search.trials, ranking)
    for job in failed if status != RESUME_ME else []:
        if trouble and not job.folder.exists():  # it was not started
            continue
        print(f"error: run {job.name}: {job.reason} See {job.log}", file=sys.stderr)
    if trouble:
        print(f"error: {trouble}", file=sys.stderr)
    if status:
        print(f"resume with: python -m {project.current().module} sweep_dir={sweep.folder}")
    _close(sender, sweep, jobs, {0: "FINISHED", 1: "FAILED", RESUME_ME: "KILLED"}[status], best)
    if status:
        sys.exit(status)


def _launcher(context: HydraContext, task: TaskFunction, config: DictConfig, sweep: Run) -> Launcher | Elsewhere:
    from hydra.core.plugins import Plugins

    OmegaConf.set_readonly(config.hydra, False)  # since 1.4 it is
    config.hydra.sweep.dir = str(sweep.folder)
    if engine_of(config):
        return Elsewhere(config, sweep)
    if _slurm(config):
        slurm.prepare(config, sweep)
    if not config.launch.queue:
        context = composing_once(context, config)
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def _launch(launcher: Launcher | Elsewhere, config: DictConfig, batch: Sequence[Job]) -> None:
    """Hand the jobs to the launcher and wait until they have ended."""
    if not batch:
        return
    for job in batch:
        job.error.unlink(missing_ok=True)
    try:
        jobs = [[*job.overrides, f"run_dir={quoted(job.folder)}"] for job in batch]
        with slurm.outside_of_a_job() if _slurm(config) else nullcontext():
            launcher.launch(jobs, initial_job_idx=int(batch[0].name))
    except Exception as error:
        if _slurm(config) and not slurm.refusal(error):  # it gives up at the first job that was cancelled
            slurm.wait(config.hydra.launcher.name)
        raise


def _slurm(config: DictConfig) -> bool:
    """Are the runs jobs of the Slurm that is here?"""
    return not engine_of(config) and str(config.hydra.launcher._target_).endswith("SlurmLauncher")


@contextmanager
def _terminated_is_stopped() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does."""

    def stop(*_: Any) -> None:
        sys.exit(RESUME_ME)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _close(sender: Sender | None, sweep: Run, jobs: Sequence[Job], status: str, best: dict[str, float]) -> None:
    """Send the sweep's results to MLflow, and what its runs could not send before."""
    if sender is None:
        return
    if best:
        payload.add_row(sweep, sweep.num_starts(), best, int(time.time() * 1000))
    sender.close(status, give_up=lambda: False)
    if sweep.unsent.exists():
        return
    for job in jobs:
        if job.state == "finished" and job.unsent.exists():
            try:
                send_all(job, sender.uri)
            except Exception as error:
                print(
                    f"warning: run {job.name} is not in MLflow ({mlflow_client.why(error)}). Send it later: make sync"
                )
                return
