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

import json
import logging
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..compat import grid
from ..launch import slurm
from ..runs import provenance
from ..runs.run import RUNS, Run
from ..settings import process, project
from ..settings.config import HOW_STARTED, check, compose, flatten, typed_key
from ..settings.errors import RESUME_ME, UserError, explain
from ..settings.start import quoted
from ..tracking import mlflow_client, mlflow_sync, payload
from ..tracking.mlflow_client import Access
from ..tracking.tracker import Sender
from ..training import distributed
from .results import Job, Ranking, report
from .seeds import evaluate_all, report_seeds, report_trials

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction

MAY_CHANGE = {"launch", "search.parallel", "search.trials"}  # when a sweep is resumed: its runs stay the same

log = logging.getLogger(__name__)


def sweep(context: HydraContext, task: TaskFunction, config: DictConfig, typed: Sequence[str]) -> None:
    """Run what was asked for, print how it went, and end the program.

    Exit status 0: every run finished; 1: some failed; 75: the sweep was stopped and can be resumed.

    Args:
        config: the composed configuration, without the lists.
        typed: what was typed, with the lists.
    """
    if config.sweep_dir is None:
        folder = distributed.decide(lambda: _start(config, typed))
    else:
        folder = Path(config.sweep_dir)
        config = _continue(folder, context, config, typed)
    stored = OmegaConf.load(folder / "sweep.yaml")
    jobs = [Job(folder / f"{number:03d}", tuple(overrides)) for number, overrides in enumerate(stored.jobs)]
    if process.rank() > 0:  # the same runs as rank 0, which says how they went
        _follow(context, task, config, folder, jobs)
        return
    with _locked(folder):
        _lead(context, task, config, folder, jobs)


def _lead(context: HydraContext, task: TaskFunction, config: DictConfig, folder: Path, jobs: list[Job]) -> None:
    """The sweep on rank 0."""
    stored = OmegaConf.load(folder / "sweep.yaml")
    first = compose(project.current().script, stored.first)
    Access(first.tracking.mlflow_uri).check()
    with (folder / "starts.jsonl").open("a", encoding="utf-8") as starts:
        starts.write(json.dumps(provenance.start_record()) + "\n")
    sender = Sender(folder, first.tracking.mlflow_uri) if first.tracking.mlflow_uri else None

    search = None
    if config.get("search"):
        from .search import Search

        search = Search(folder, config.search, stored.first, _seeds(stored.first, config.seeds))
        batches, jobs, ranking = search.batches(), search.jobs, Ranking(first.monitor.metric, first.monitor.mode)
    else:
        unfinished = distributed.decide(lambda: [job for job in jobs if job.state != "finished"])
        batches, ranking = iter([unfinished]), Ranking(first.monitor.metric, first.monitor.mode)

    started, status, trouble = time.monotonic(), 0, ""
    try:
        with _terminated_is_stopped():
            launcher = _launcher(context, task, config, folder)
            for batch in batches:
                _launch(launcher, config, batch)
        if config.seeds is not None and search is None:  # which looks at what is monitored, not at the test split
            evaluate_all([job.folder for job in jobs if job.state == "finished"])
    except (KeyboardInterrupt, SystemExit):
        status = RESUME_ME
        if _slurm(config):
            print(f"the jobs stay in Slurm's queue. To cancel them: scancel --name={config.hydra.launcher.name}")
    except Exception as error:  # the launcher's: what it started may have finished all the same
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        first_line = (str(error).strip() or "no reason given").splitlines()[0]
        trouble = explain(error) or slurm.refusal(error) or ""
        trouble = trouble or f"{type(error).__name__}: {first_line} The traceback: {folder / 'error.txt'}"

    failed = [job for job in jobs if job.state in ("failed", "unfinished")]
    status = status or int(bool(failed or trouble))
    seconds = time.monotonic() - started
    print(f"\nsweep {folder}: {len(jobs) - len(failed)} of {len(jobs)} runs finished, {seconds:.0f} s")
    if config.seeds is None:
        best = report(folder, jobs, ranking)
    elif search is None:
        best = report_seeds(folder, jobs, ranking.metric)
    else:
        best = report_trials(folder, search.trials, ranking)
    for job in failed if status != RESUME_ME else []:
        print(f"error: run {job.name}: {job.error} See {Run(job.folder).log}", file=sys.stderr)
    if trouble:
        print(f"error: {trouble}", file=sys.stderr)
    if status:
        print(f"resume with: python -m {project.current().module} sweep_dir={folder}")
    _close(sender, folder, jobs, {0: "FINISHED", 1: "FAILED", RESUME_ME: "KILLED"}[status], best)
    if status:
        sys.exit(status)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time hands out the runs of a sweep."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is in use: another process runs this sweep. Wait for it, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


def _follow(context: HydraContext, task: TaskFunction, config: DictConfig, folder: Path, jobs: Sequence[Job]) -> None:
    """A sweep on another rank than 0, where torchrun or srun started several processes for each run."""
    unfinished = distributed.decide(lambda: list(jobs))
    _launch(_launcher(context, task, config, folder), config, unfinished)


@contextmanager
def one_run(folder: str, overrides: Sequence[str]) -> Iterator[None]:
    """One run of a sweep: if it fails, `error.txt` says why, and the other runs continue.

    Its `sys.argv` are those of a single run: so MLflow shows them.
    """
    typed = [override for override in overrides if typed_key(override) != "run_dir"]
    if process.rank() == 0:
        print(f"\nrun {Path(folder).name}: {' '.join(typed)}", flush=True)
    argv, started = sys.argv, time.monotonic()
    sys.argv = [argv[0], *overrides]
    try:
        yield
    except Exception as error:
        if logging.getLogger().handlers:
            log.exception("stopped")
        sentence = explain(error)
        story = "" if sentence else "\n\n" + traceback.format_exc()
        sentence = sentence or f"{type(error).__name__}: {' '.join(str(error).split())}"
        if process.rank() == 0:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Run(Path(folder)).error.write_text(sentence + story + "\n", encoding="utf-8")
            print(f"error: {sentence}", file=sys.stderr, flush=True)
    finally:
        sys.argv = argv
        for handler in logging.getLogger().handlers[:]:  # the next run has its own train.log
            logging.getLogger().removeHandler(handler)
            handler.close()
        if process.rank() == 0:
            _add_seconds(Path(folder), time.monotonic() - started)


def _start(config: DictConfig, typed: Sequence[str]) -> Path:
    """The folder of a new sweep; a mistake in any of its runs is reported before it is made."""
    kept = [override for override in typed if _group(override) not in HOW_STARTED]
    if any(typed_key(override) == "run_dir" for override in typed):
        raise UserError("run_dir is not for sweeps, which make a folder for each run. Leave it out.")
    searched, seeds = config.get("search") is not None, config.seeds
    jobs = grid(kept)
    if searched and process.world() > 1:
        raise UserError(
            f"search cannot be started by {process.starter()}. Start one process; trainer=ddp makes the others itself."
        )
    if searched and len(jobs) > 1:
        raise UserError("search and lists of values exclude each other. Give the list to the search, as its choices.")
    if not searched:
        jobs = [[*job, *seed] for job in jobs for seed in _typed_seeds(job, seeds)]
    first = jobs[0]
    script = project.current().script
    for job in jobs:
        check(compose(script, job), script, job)
    if searched:
        from .search import check_space

        check(compose(script, typed), script, typed)
        check_space(config.search, first, _seeds(first, seeds))

    started_at = datetime.now().strftime("%Y%m%d-%H%M%S.%f")
    name = f"sweep-{started_at}-{secrets.token_hex(3)}"
    folder: Path = RUNS / compose(script, first).experiment_name / name
    folder.mkdir(parents=True)
    params = {typed_key(override).lstrip("+~"): override.partition("=")[2] for override in kept}
    if searched:
        params |= {f"search.{key}": str(value) for key, value in flatten(config.search)}
        params |= {"seeds": str(seeds)} if seeds is not None else {}
    story = {
        "script": script,
        "arguments": list(typed),
        "hydra": list(config.hydra.overrides.hydra),
        "first": first,
        "params": {key: value for key, value in params.items() if key.split(".")[0] != "tracking"},
        "jobs": [] if searched else jobs,
    }
    (folder / "sweep.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(story)), encoding="utf-8")
    runs = f"{config.search.trials if searched else len(jobs)} runs"
    if searched and seeds is not None:
        runs = f"{config.search.trials} trials of {seeds} runs, of which none is stopped early"
    print(f"sweep {folder}: {runs}", flush=True)
    return folder


def _typed_seeds(job: Sequence[str], count: Any) -> list[list[str]]:
    """What is added for each run of these settings: nothing, if it is one."""
    return [[]] if count is None else [[f"seed={seed}"] for seed in _seeds(job, count) or ()]


def _seeds(job: Sequence[str], count: Any) -> range | None:
    """`count` seeds from the job's own; None if no number of seeds was typed."""
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"seeds must be an integer >= 1, got {count}. Try seeds=5.")
    seed = compose(project.current().script, job).seed
    return range(seed, seed + count)


def _continue(folder: Path, context: HydraContext, config: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The configuration of the sweep in this folder."""
    from hydra.types import RunMode

    if not (folder / "sweep.yaml").is_file():
        raise UserError(f"{folder} is not the folder of a sweep: it has no sweep.yaml. Look into {RUNS}/.")
    stored: Any = OmegaConf.load(folder / "sweep.yaml")
    if (script := stored.get("script", project.current().script)) != project.current().script:
        module = f"{project.current().package}.{script}"
        raise UserError(f"{folder} is a sweep of another script. Run: python -m {module} sweep_dir={folder}")
    new = [override for override in typed if typed_key(override) != "sweep_dir" and override not in stored.arguments]
    contradicting = [override for override in new if not {_group(override), typed_key(override)} & MAY_CHANGE]
    if contradicting:
        raise UserError(
            f"{folder} was started without {' '.join(contradicting)}: a sweep is resumed with its own settings. "
            "Leave this out, or leave sweep_dir out to start a new sweep."
        )
    replaced = {typed_key(override) for override in new}
    kept = [
        override
        for override in stored.arguments
        if typed_key(override) not in replaced and not (_group(override) == "launch" and "launch" in replaced)
    ]
    hydra = dict.fromkeys([*stored.hydra, *config.hydra.overrides.hydra])
    return context.config_loader.load_configuration(
        config.hydra.job.config_name, [*hydra, *kept, *new], RunMode.MULTIRUN
    )


def _group(override: str) -> str:
    """`search.trials=5` -> `search`."""
    return typed_key(override).lstrip("+~").split(".")[0]


def _launcher(context: HydraContext, task: TaskFunction, config: DictConfig, folder: Path) -> Launcher:
    from hydra.core.plugins import Plugins

    config.hydra.sweep.dir = str(folder)
    if _slurm(config):
        slurm.prepare(config, folder)
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def _launch(launcher: Launcher, config: DictConfig, batch: Sequence[Job]) -> None:
    """Hand the jobs to the launcher and wait until they have ended."""
    if not batch:
        return
    for job in batch:
        Run(job.folder).error.unlink(missing_ok=True)
    try:
        jobs = [[*job.overrides, f"run_dir={quoted(job.folder)}"] for job in batch]
        with slurm.outside_of_a_job() if _slurm(config) else nullcontext():
            launcher.launch(jobs, initial_job_idx=int(batch[0].name))
    except Exception as error:
        if _slurm(config) and not slurm.refusal(error):  # it gives up at the first job that was cancelled
            slurm.wait(config.hydra.launcher.name)
        raise


def _slurm(config: DictConfig) -> bool:
    return str(config.hydra.launcher._target_).endswith("SlurmLauncher")


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


def _add_seconds(folder: Path, seconds: float) -> None:
    """The time of a resumed run adds up; what a killed attempt took is not known."""
    if folder.is_dir():
        file = folder / "seconds"
        before = float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
        file.write_text(f"{before + seconds:.2f}\n", encoding="utf-8")


def _close(sender: Sender | None, folder: Path, jobs: Sequence[Job], status: str, best: dict[str, float]) -> None:
    """Send the sweep's outcome to MLflow, and what its runs could not send before."""
    if sender is None:
        return
    if best:
        num_starts = len((folder / "starts.jsonl").read_text(encoding="utf-8").splitlines())
        payload.add_row(folder, num_starts, best, int(time.time() * 1000))
    sender.close(status, give_up=lambda: False)
    if mlflow_sync.unsent(folder).exists():
        return
    for job in jobs:
        if job.state == "finished" and mlflow_sync.unsent(job.folder).exists():
            try:
                mlflow_sync.send_all(job.folder, sender.uri)
            except Exception as error:
                print(
                    f"warning: run {job.name} is not in MLflow ({mlflow_client.why(error)}). Send it later: make sync"
                )
                return
