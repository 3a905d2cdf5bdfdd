"""The only module that touches what other libraries keep private, or will call otherwise.

| what | seen in | what breaks without it |
|---|---|---|
| `fit_loop.epoch_progress`, `.epoch_loop.batch_progress`, `.restarting` | Lightning 2.6.6 | resuming within an epoch |
| `fit_loop.epoch_loop._results` | Lightning 2.6.6 | means of `self.log` over an epoch that was interrupted |
| `fit_loop._combined_loader`, `.on_load_checkpoint` | Lightning 2.6.6 | data after `estimated_stepping_batches` |
| `trainer._results`, `._get_cache`, `._forked_name` | Lightning 2.6.6 | epochs without validation get earlier values |
| `hydra._internal.core_plugins.basic_sweeper` | Hydra 1.3.8 | the combinations of a sweep |
| `ConfigLoaderImpl._apply_overrides_to_config`, `.repository` | Hydra 1.3.8 | 0.2 s for each run of a sweep |
| `trial._trial_id` | Optuna 5.0 | reports of a trial that is resumed |
| `_basic_subprocess_cmd`, `_hydra_subprocess_cmd` | Lightning 2.6.6 | several devices in a sweep or a notebook |
| `scipy.signal`, a stand-in for it | torchmetrics 1.9.0 | a second and 65 MB at each start |
| `tensor._typed_storage()._new_shared` | torch 2.13 | a loader process copies each batch once more |
| `version_base`, deprecated in 1.4 | Hydra 1.4.0rc3 | a warning at each start |
| `Hydra.get_mode` | Hydra 1.4.0rc3 | `seeds=5` and `search=default` as sweeps |
| `ConfigLoaderImpl._ensure_sweep_config_controller_unchanged` | Hydra 1.4.0rc3 | `launch=joblib`, `launch=slurm` |
| `execution_whitelist`, asked for in 1.5 | Hydra 1.4.0rc3 | a warning at each `instantiate` |
| `register_new_resolver`, now `register_resolver` | OmegaConf 2.4.1rc1, for Hydra 1.4 | a warning at each start |
| `SlurmInfoWatcher._make_command`, `._registered`, `._finished` | submitit 1.5.4 | sweeps on clusters without sacct |
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    import pytorch_lightning as pl
    from hydra.types import HydraContext
    from omegaconf import DictConfig
    from torch import Tensor


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """What `${name:...}` in settings stands for; it replaces an earlier one."""
    from omegaconf import OmegaConf

    # up to OmegaConf 2.3 the shorter name is that of an older function, which is deprecated
    register: Any = OmegaConf.register_resolver
    if "replace" not in inspect.signature(register).parameters:
        register = OmegaConf.register_new_resolver
    register(name, resolver, replace=True)


def hydra_defaults() -> dict[str, str]:
    """Arguments by which Hydra behaves as its present version does."""
    from hydra import __version__

    return {"version_base": "1.3"} if __version__.startswith("1.3.") else {}  # since 1.4 a warning comes with it


def keep_ways_of_hydra_1_3() -> None:
    """Let any setting choose between a run and a sweep, and the jobs of a sweep be runs of their own.

    Since 1.4 Hydra reads its mode in the first file alone, and refuses a job whose launcher differs from the sweep's.
    """
    if hydra_defaults():
        return
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra
    from hydra.types import RunMode

    def get_mode(hydra: Any, config_name: str | None, overrides: list[str], *_: object, **__: object) -> Any:
        try:
            cfg = hydra.compose_config(
                config_name=config_name, overrides=overrides, with_log_configuration=False, run_mode=RunMode.MULTIRUN,
                validate_sweep_overrides=False,
            )  # fmt: skip
        except Exception:  # Hydra says it when it composes the settings themselves
            return None
        return cfg.hydra.mode

    internal: Any = Hydra
    internal.get_mode = get_mode
    loader: Any = ConfigLoaderImpl
    loader._ensure_sweep_config_controller_unchanged = staticmethod(lambda **_: None)


def asks_for_targets() -> bool:
    """Does this Hydra want to be told what `instantiate` may build?"""
    import hydra.utils

    return hasattr(hydra.utils, "execution_whitelist")


def allow_targets(names: Collection[str]) -> None:
    """From now on `instantiate` may build these in this thread, next to what it might before."""
    import hydra.utils

    if asks_for_targets():
        utils: Any = hydra.utils
        utils.execution_whitelist(sorted(names)).__enter__()


@contextmanager
def importing(library: str) -> Iterator[None]:
    """Import a large library in half the time.

    Its half a million objects are there to stay, and Python's collector would look through them again and again: while
    they are imported, in the training, and once more at the end of the process. Where torch is there already, what
    somebody has made with it could be kept for good by that: then the collector is only off meanwhile.
    """
    if library in sys.modules:
        yield
        return
    collected, at_the_start = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if at_the_start:
            gc.freeze()
        if collected:
            gc.enable()


def import_lightning() -> None:
    """Import torch and Lightning, and torchmetrics without scipy.signal: it gives that an alias for one package."""
    with importing("pytorch_lightning"):
        if not (sys.modules.keys() & {"torchmetrics", "scipy.signal"} or importlib.util.find_spec("gammatone")):
            stand_in = ModuleType("scipy.signal")
            vars(stand_in)["hamming"] = None  # the alias: that it is there is all that is asked
            sys.modules["scipy.signal"] = stand_in
            try:
                import torchmetrics  # noqa: F401
            finally:
                del sys.modules["scipy.signal"]
        import pytorch_lightning  # noqa: F401


def progress(trainer: pl.Trainer) -> tuple[int, int]:
    """Epochs that are finished, and batches that are done of the next one."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return epochs.processed, batches.processed if epochs.started > epochs.processed else 0


def in_a_resumed_epoch(trainer: pl.Trainer) -> bool:
    """Has this epoch begun in an earlier process?"""
    return bool(trainer.fit_loop.restarting)


def before_data_are_set_up(trainer: pl.Trainer, restore: Callable[[], None]) -> None:
    """Call `restore` once the position in the epoch has been loaded, and build the loaders after it.

    `trainer.estimated_stepping_batches`, as OneCycleLR needs it in `configure_optimizers`, builds them too early. By
    default Lightning keeps those: the rest of the epoch would be trained on its first batches again.
    """
    loop: Any = trainer.fit_loop

    def on_load_checkpoint(state: dict[str, Any]) -> None:
        type(loop).on_load_checkpoint(loop, state)
        loop._combined_loader = None
        restore()

    loop.on_load_checkpoint = on_load_checkpoint


def stage_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """What has been logged for callbacks in the present stage, training or validation, and in no earlier one.

    A validation's metrics are those of all its loaders, not only of the last one. A metric that a training logs in each
    step, as `self.log` does by default there, has the value of the last step.
    """
    results: Any = trainer._results
    metrics: dict[str, float] = {}
    for result in results.values():
        if result.has_reset or not (result.meta.on_epoch or results.training):
            continue
        value = results._get_cache(result, on_step=not result.meta.on_epoch)
        if value is not None:
            metrics |= dict.fromkeys(results._forked_name(result, on_step=not result.meta.on_epoch), float(value))
    return dict(sorted(metrics.items()))


def logged_sums(trainer: pl.Trainer) -> dict[str, dict[str, Any]]:
    """What `self.log(..., on_epoch=True)` has summed up so far in this epoch, on this process; plain tensors."""
    results: Any = trainer.fit_loop.epoch_loop._results
    return {
        key: {name: value.detach().cpu() for name, value in result.metric_state.items()}
        for key, result in results.items()
        if result.is_tensor and result.meta.on_epoch
    }


def add_logged_sums(trainer: pl.Trainer, sums: dict[str, dict[str, Any]]) -> None:
    """Add sums of an earlier process to those of this one, and drop from `sums` what has been added.

    Call it after a batch: Lightning creates a sum when its name is logged for the first time. The additions then have
    the order of a training that was never interrupted, so the mean has the same bits.
    """
    results: Any = trainer.fit_loop.epoch_loop._results
    for key in [key for key in sums if key in results]:
        result, saved = results[key], sums.pop(key)
        value = saved["value"].to(result.value.device)
        if result.meta.is_max_reduction or result.meta.is_min_reduction:
            result.value = result.meta.reduce_fx(value, result.value)
        else:
            result.value = value + result.value
        if result.meta.is_mean_reduction:
            result.cumulated_batch_size = saved["cumulated_batch_size"].to(value.device) + result.cumulated_batch_size


def grid(typed: Sequence[str]) -> list[list[str]]:
    """Every combination of the lists in what was typed, as Hydra's own sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return [list(job) for job in BasicSweeper.split_arguments(parser.parse_overrides(list(typed)), None)[0]]


def shared_empty(like: Tensor, num_rows: int) -> Tensor:
    """A tensor of so many such rows in memory that processes share: a loader process sends it without a copy.

    PyTorch's own `default_collate` makes its batches so.
    """
    row_shape = like.shape[1:]
    typed_storage: Any = like._typed_storage()  # type: ignore[no-untyped-call]
    return like.new(typed_storage._new_shared(num_rows * row_shape.numel())).resize_(num_rows, *row_shape)


class Composer:
    """Composes settings that differ in their values alone without reading and merging the files each time.

    Args:
        compose: does so for any overrides, as Hydra does; whatever else than a value is typed is left to it.
    """

    def __init__(self, compose: Callable[[list[str]], DictConfig]) -> None:
        self.compose = compose
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # by what chooses files

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        from hydra._internal import config_loader_impl
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser

        loader: Any = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        files = [each for each in parsed if loader.repository.group_exists(each.key_or_group)]
        values = [each for each in parsed if each not in files]
        if any(each.type.name != "CHANGE" or each.package or each.is_hydra_override() for each in values):
            return self.compose(list(overrides))
        chosen = tuple(str(each.input_line) for each in files)
        if chosen not in self.composed:
            self.composed[chosen] = self.compose(list(chosen))
        cfg = copy.deepcopy(self.composed[chosen])
        try:
            config_loader_impl.ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        except Exception:  # Hydra's own message is the better one
            return self.compose(list(overrides))
        if "hydra" in cfg:
            cfg.hydra.overrides.task = list(overrides)
            form = cfg.hydra.job.config.override_dirname
            if joined := getattr(config_loader_impl, "get_overrides_dirname", None):  # since 1.4 a resolver does it
                cfg.hydra.job.override_dirname = joined(
                    parsed, kv_sep=form.kv_sep, item_sep=form.item_sep, exclude_keys=form.exclude_keys
                )
        return cfg


def composing_once(context: HydraContext, config: DictConfig) -> HydraContext:
    """For a launcher that runs the jobs of a sweep in this process.

    Args:
        context: Hydra's own.
        config: of the sweep.
    """
    from hydra.types import HydraContext

    loader: Any = copy.copy(context.config_loader)
    composer = Composer(lambda overrides: context.config_loader.load_sweep_config(config, overrides))
    loader.load_sweep_config = lambda _, overrides: composer(overrides)
    return HydraContext(config_loader=loader, callbacks=context.callbacks)


def open_trial(study: optuna.Study, number: int) -> tuple[optuna.trial.Trial, optuna.trial.FrozenTrial]:
    """A trial of the study to report to, and its record in the storage."""
    import optuna

    known = study.get_trials(deepcopy=False)[number]
    return optuna.trial.Trial(study, known._trial_id), known


@contextmanager
def children_run(module: str, *arguments: str) -> Iterator[None]:
    """Lightning starts the other processes of a run as `python -m <module> <arguments>`.

    By default it repeats the command of this process, which can be a complete sweep or a notebook.
    """
    from pytorch_lightning.strategies.launchers import subprocess_script as launcher

    command = [sys.executable, "-m", module, *arguments]
    replaced = {"_basic_subprocess_cmd": lambda: command, "_hydra_subprocess_cmd": lambda local_rank: (command, None)}
    before = {name: getattr(launcher, name) for name in replaced}
    vars(launcher).update(replaced)
    try:
        yield
    finally:
        vars(launcher).update(before)


def submit_without_srun(warn_s: int) -> None:
    """Let submitit's jobs be the batch script's own process: its launcher for Hydra has no setting for that.

    A signal reaches that process where the shell is replaced by it, and Slurm is asked to signal it (`B:`).
    """
    from submitit.slurm import slurm

    def text(executor: Any, command: str, uid: str) -> str:
        parameters = {**executor.parameters, "use_srun": False}
        added = {"signal": f"B:{slurm.SlurmJobEnvironment.USR_SIG}@{warn_s}"}
        parameters["additional_parameters"] = {**(parameters.get("additional_parameters") or {}), **added}
        return str(slurm._make_sbatch_string(command=f"exec {command}", folder=executor.folder, **parameters))

    executors: Any = slurm.SlurmExecutor
    executors._make_submission_file_text = text


def ask_for_jobs_by(command: Sequence[str], *, at_most_every_s: int) -> None:
    """Let submitit ask for its jobs by this command, which prints the numbers of those that are not over.

    By default it asks sacct. Many clusters lack it, and submitit then never notices that a job was cancelled.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            return list(command) if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            """A job in the queue is not over, whatever its state: one that is requeued waits there again."""
            listed = (string if isinstance(string, str) else string.decode()).split()
            return {job: {"State": "PENDING" if job in listed else "gone"} for job in self._registered}

    SlurmJob.watcher = Queue(delay_s=at_most_every_s)
