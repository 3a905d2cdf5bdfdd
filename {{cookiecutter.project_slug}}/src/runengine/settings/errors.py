"""Mistakes that a user can fix, shown as one sentence instead of a traceback."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import select
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .. import manifest
from . import process
from .console import first_line

RESUME_ME = 75  # exit status of what was stopped and can be resumed: EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # what a shell reports for Ctrl-C
PIPE_CLOSED = 141  # and for a program whose reader has ended: 128 and the number of SIGPIPE

# What says that the machine is at fault rather than the program: its GPU, driver, libraries, memory, limits.
DEVICE_ERRORS = re.compile(
    "CUDA (error|driver|out of memory)|no kernel image|NVIDIA driver|cuDNN|CUDNN_|CUBLAS_|NCCL|MPS backend"
    "|shared memory|Bus error|received 0 items of ancdata|Too many open files"
)
LOOK_AT_THE_MACHINE = "This looks like the machine's fault, not the program's. Look at it with: make doctor"

# Of all OSErrors, those that the user fixes outside the program; others are bugs and keep their traceback.
OS_ERRORS = {
    errno.ENOSPC: "the disk is full. Free some space",
    errno.EDQUOT: "the disk quota is used up. Free some space",
    errno.EROFS: "the file system is read-only. Choose another folder",
    errno.EACCES: "permission denied. Choose another folder, or change its owner",
    errno.EPERM: "permission denied. Choose another folder, or change its owner",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another folder",
}


class UserError(ValueError):
    """Shown to the user unchanged: what is wrong, what was found, what was wanted, what to do."""


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and exit status 1; let every other error through.

    What a command does goes in here: it happens in the project's root, wherever the command was typed.
    """
    from .start import start

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing its own paragraphs
    try:
        start()
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if logging.getLogger().handlers:
            logging.getLogger(__name__).exception("stopped")  # the traceback goes into train.log
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            sys.exit(PIPE_CLOSED)
        sentence = explain(error)
        if sentence is None:
            if is_of_the_device(error) and LOOK_AT_THE_MACHINE not in getattr(error, "__notes__", []):
                error.add_note(LOOK_AT_THE_MACHINE)  # Python prints it below the traceback
            raise
        if process.rank() > 0:  # rank 0 says it; Lightning would kill it for a child that ends with another status
            if process.starter():
                time.sleep(10)  # torchrun ends all when the first ends, and rank 0 may not have spoken yet
            sys.exit(1 if process.starter() else 0)
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
    finally:
        _reader_has_left()  # or Python would complain at its end


def _reader_has_left() -> bool:
    """Has the program that reads standard output ended, as `head` does when it has enough? Then drop what is left."""
    try:
        sys.stdout.flush()
        output = sys.stdout.fileno()
    except BrokenPipeError:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no file of the system, as in a notebook
        return False
    else:
        if not hasattr(select, "poll"):  # Windows
            return False
        look = select.poll()
        look.register(output, select.POLLOUT)
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0)):
            return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True


def is_lost_peer(error: BaseException) -> bool:
    """Was it raised because another process of the run is gone?"""
    of_group = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return of_group or re.search("onnection (closed|reset) by peer|/gloo/transport/", str(error)) is not None


def explain(error: BaseException) -> str | None:
    """The sentence for this error, or None if it is not the user's to fix."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ImportError) and (sentence := manifest.incomplete()):
        return sentence
    if (sentence := _explain_torchvision(error)) is not None:
        return sentence
    if is_lost_peer(error):
        look = "Look at the machine with: make doctor. " if "NCCL" in str(error) else ""
        return f"another process of this run was killed or failed; what it said is above. {look}Resume: make resume"
    if type(error).__name__ == "OutOfMemoryError":  # torch's; imported it need not be
        said = first_line(error).split(". GPU")[0].rstrip(".")
        return f"{said}. Try half of data.batch_size, or see who holds the GPU's memory: make doctor"
    if (full := _explain_memory(error)) is not None:
        return full
    if "DataLoader timed out" in str(error):
        return (
            "the processes that load batches have stopped giving any. What they said is above; `make doctor` knows the "
            "usual causes (shared memory, open files), and data.num_workers=0 does without them."
        )
    if "'MLFLOW_TRACKING_URI' not found" in str(error):
        return (
            "tracking=server needs the address of the server. Set MLFLOW_TRACKING_URI=https://..., and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, where it asks who you "
            "are."
        )
    if (added := _added(error)) is not None:
        return added
    if (mark := getattr(error, "problem_mark", None)) is not None:  # PyYAML's
        problem = str(getattr(error, "problem", None) or "it ends too early").rstrip(".")
        return f"{mark.name}, line {mark.line + 1}: {problem}. This is no YAML: look at brackets, colons, indentation."
    if _is_refusal(error) and not isinstance(error, ValueError):
        return f"Lightning refuses these settings: {' '.join(str(error).split())}"
    if _raised_in(error, "torch.optim."):  # a negative learning rate, a schedule of no steps, ...
        return f"torch.optim refuses these settings: {first_line(error)}"
    return _explain_hydra(error) or _explain_disk(error)


def _explain_torchvision(error: BaseException) -> str | None:
    if "torchvision" not in str(error):
        return None
    from . import project, torch_build

    found = torch_build.mismatch(project.at_hand())
    return found and f"{found[0]}, and what imports it fails, Lightning too. Install the one that was: {found[1]}"


def _added(error: BaseException) -> str | None:
    """The sentence for a setting that was added on the command line, and that the class it is for does not take."""
    cause = error.__cause__ if type(error).__name__ == "InstantiationException" else error
    found = re.search(r"unexpected keyword argument '(\w+)'", str(cause)) if isinstance(cause, TypeError) else None
    typed = [argument.partition("=")[0] for argument in sys.argv[1:] if argument.startswith("+")]
    key = next((key for key in typed if found and key.split(".")[-1] == found[1]), None)
    return f"{key} is not taken: {first_line(cause)}. Leave it out." if key and cause else None


def _is_refusal(error: BaseException | None) -> bool:
    """Whoever was called does not take these values: ValueError, or Lightning's own kind of it."""
    return isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException"


def is_of_the_device(error: BaseException | None) -> bool:
    """Also one that a library has wrapped in its own."""
    while error is not None:
        if isinstance(error, RuntimeError | OSError) and DEVICE_ERRORS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain_hydra(error: BaseException) -> str | None:
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    if isinstance(error, MissingConfigException) and (sentence := manifest.incomplete()):
        return sentence
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = sorted(error.options)
        nearest = difflib.get_close_matches(choice, options, n=1, cutoff=0) or options
        return f"{group}={choice} is not one of the choices: {', '.join(options)}. Try {group}={nearest[0]}."
    if "group override must be a string" in str(error):
        key = next((typed.partition("=")[0] for typed in sys.argv[1:] if typed.endswith("=null")), "x")
        return f"{key}=null: a group has no null on the command line. Leave it out by '~{key}'."
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not a setting. Write key=value, for example optimizer.lr=0.01."
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _explain_unknown_key(str(cause.full_key or cause.key))
    if isinstance(error, InstantiationException):
        target = re.search(r"target '([^']+)'", str(error))
        if target and "locating target" in str(error):
            return f"{target[1]} cannot be found: a _target_ must name a class or function, such as torch.optim.AdamW."
        # any other error is a mistake in the class itself, and its traceback says more
        return f"{target[1]} cannot be built: {cause}" if target and _is_refusal(cause) else None
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    built = next((note.partition(": ")[2] for note in notes if note.startswith("full_key: ")), None)
    if built and _is_refusal(error):  # since Hydra 1.4 it is not wrapped
        return f"{built} cannot be built: {error}"
    if isinstance(error, HydraException | OmegaConfBaseException) or _raised_in(error, "hydra."):
        lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
        return ". ".join(line.rstrip(".") for line in lines if line and line != "None") + "."
    return None


def _raised_in(error: BaseException, package: str) -> bool:
    """Checks of Hydra and of torch.optim raise plain ValueErrors."""
    name = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
    return isinstance(error, ValueError) and name.startswith(package)


def _explain_unknown_key(key: str) -> str:
    from . import project
    from .config import chosen_groups, compose, flatten

    known = [name for name, _ in flatten(compose(project.current().script, chosen_groups(sys.argv[1:])))]
    nearest = difflib.get_close_matches(key, known, n=1)
    last = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]  # `lr` for `optimizer.lr`
    nearest = nearest or last or difflib.get_close_matches(key, project.groups(), n=1)
    hint = f"Did you mean {nearest[0]}?" if nearest else "See all with --cfg job."
    return f"{key} is not a setting. {hint}"


def _explain_memory(error: BaseException | None) -> str | None:
    """The machine's own memory: a library may have wrapped what Python or PyTorch raised."""
    while error is not None:
        asked = re.search(r"DefaultCPUAllocator.* allocate (\d+) bytes", str(error))
        if asked or isinstance(error, MemoryError):
            wanted = f": another {int(asked[1]) / 2**30:,.1f} GiB were asked for" if asked else ""
            return (
                f"this machine's memory is used up{wanted}. Try half of data.batch_size, a smaller model, or less data "
                "at once."
            )
        error = error.__cause__ or error.__context__
    return None


def _explain_disk(error: BaseException | None) -> str | None:
    """Look through the chain of causes: libraries wrap the error of the operating system in their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OS_ERRORS:
            return (
                f"{error.filename or 'writing (to the disk, or /dev/shm)'}: {OS_ERRORS[error.errno]}, then start again."
            )
        if "database or disk is full" in str(error):
            return f"MLflow's database: {OS_ERRORS[errno.ENOSPC]}, then start again."
        error = error.__cause__ or error.__context__
    return None
