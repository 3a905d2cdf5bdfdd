"""One run of a sweep, in the process that its launcher chose."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..runs.run import Run
from ..settings import process
from ..settings.config import typed_key
from ..settings.errors import explain

log = logging.getLogger(__name__)


@contextmanager
def one_run(folder: str, overrides: Sequence[str]) -> Iterator[None]:
    """If it fails, `error.txt` says why, and the other runs continue.

    Its `sys.argv` are those of a single run: so MLflow shows them.
    """
    run = Run(Path(folder))
    typed = [override for override in overrides if typed_key(override) != "run_dir"]
    if process.rank() == 0:
        print(f"\nrun {run.folder.name}: {' '.join(typed)}", flush=True)
    argv, started = sys.argv, time.monotonic()
    sys.argv = [argv[0], *overrides]
    try:
        yield
    except Exception as error:
        if logging.getLogger().handlers:
            log.exception("stopped")
        sentence = explain(error)
        trace = "" if sentence else "\n\n" + traceback.format_exc()
        sentence = sentence or f"{type(error).__name__}: {' '.join(str(error).split())}"
        if process.rank() == 0:
            run.folder.mkdir(parents=True, exist_ok=True)
            run.error.write_text(sentence + trace + "\n", encoding="utf-8")
            print(f"error: {sentence}", file=sys.stderr, flush=True)
    finally:
        sys.argv = argv
        for handler in logging.getLogger().handlers[:]:  # the next run has its own train.log
            logging.getLogger().removeHandler(handler)
            handler.close()
        if process.rank() == 0:
            _add_seconds(run, time.monotonic() - started)


def _add_seconds(run: Run, seconds: float) -> None:
    """The time of a resumed run adds up; what a killed attempt took is not known."""
    if run.folder.is_dir():
        before = float(run.seconds.read_text(encoding="utf-8")) if run.seconds.exists() else 0.0
        run.seconds.write_text(f"{before + seconds:.2f}\n", encoding="utf-8")
