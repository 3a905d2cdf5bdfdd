"""What a sweep consists of: its settings and its runs, of a new one or of one that is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..compat import Composer, grid
from ..launch.job import refuse_incomplete
from ..runs.resolve import new_name
from ..runs.run import RUNS, Run
from ..settings import process, project
from ..settings.check import check
from ..settings.config import HOW_STARTED, compose, flatten, typed_key
from ..settings.errors import UserError

if TYPE_CHECKING:
    from hydra.types import HydraContext

MAY_CHANGE = {"launch", "search.parallel", "search.trials"}  # when a sweep is resumed: its runs stay the same


def start(config: DictConfig, typed: Sequence[str]) -> Run:
    """A new sweep; a mistake in any of its runs is reported before its folder is made."""
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
    composer = Composer(lambda overrides: compose(script, overrides))
    for job in jobs:
        check(composer(job), script, job)
    elsewhere = [*first, *(override for override in typed if _group(override) == "launch")]
    check(compose(script, elsewhere), script, elsewhere)
    refuse_incomplete(config.launch)
    if searched:
        from .search import check_space

        check(compose(script, typed), script, typed)
        check_space(config.search, first, seeds_of(first, seeds))

    cfg = compose(script, first)
    sweep = Run(RUNS / cfg.experiment_name / f"sweep-{new_name(cfg.name)}")
    sweep.folder.mkdir(parents=True)
    params = {typed_key(override).lstrip("+~"): override.partition("=")[2] for override in kept}
    if searched:
        params |= {f"search.{key}": str(value) for key, value in flatten(config.search)}
        params |= {"seeds": str(seeds)} if seeds is not None else {}
    stored = {
        "script": script,
        "arguments": list(typed),
        "hydra": list(config.hydra.overrides.hydra),
        "first": first,
        "params": {key: value for key, value in params.items() if key.split(".")[0] != "tracking"},
        "jobs": [] if searched else jobs,
    }
    sweep.sweep.write_text(OmegaConf.to_yaml(OmegaConf.create(stored)), encoding="utf-8")
    runs = f"{config.search.trials if searched else len(jobs)} runs"
    if searched and seeds is not None:
        runs = f"{config.search.trials} trials of {seeds} runs, of which none is stopped early"
    print(f"sweep {sweep.folder}: {runs}", flush=True)
    return sweep


def _typed_seeds(job: Sequence[str], count: Any) -> list[list[str]]:
    """What is added for each run of these settings: nothing, if it is one."""
    return [[]] if count is None else [[f"seed={seed}"] for seed in seeds_of(job, count) or ()]


def seeds_of(job: Sequence[str], count: Any) -> range | None:
    """`count` seeds from the job's own; None if no number of seeds was typed."""
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"seeds must be an integer >= 1, got {count}. Try seeds=5.")
    seed = compose(project.current().script, job).seed
    return range(seed, seed + count)


def resume(sweep: Run, context: HydraContext, config: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The configuration of this sweep, with what may change."""
    from hydra.types import RunMode

    if not sweep.is_sweep():
        raise UserError(f"{sweep.folder} is not the folder of a sweep: it has no sweep.yaml. Look into {RUNS}/.")
    stored: Any = OmegaConf.load(sweep.sweep)
    if (script := stored.get("script", project.current().script)) != project.current().script:
        module = f"{project.current().package}.{script}"
        raise UserError(
            f"{sweep.folder} is a sweep of another script. Run: python -m {module} sweep_dir={sweep.folder}"
        )
    new = [override for override in typed if typed_key(override) != "sweep_dir" and override not in stored.arguments]
    contradicting = [override for override in new if not {_group(override), typed_key(override)} & MAY_CHANGE]
    if contradicting:
        raise UserError(
            f"{sweep.folder} was started without {' '.join(contradicting)}: a sweep is resumed with its own settings. "
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
