"""What was not committed when a run was started: `uncommitted.diff`, without the files in which a secret was found."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path

from ..settings.console import listed
from ..settings.files import atomic_file

# as in .pre-commit-config.yaml: by the look of hexadecimal digits, which are mostly hashes, nothing is found
NOT_LOOKED_FOR = "HexHighEntropyString"
NOT_LOOKED_INTO = re.compile(r"\.lock$|-lock\.txt$|\.ipynb$")

log = logging.getLogger(__name__)


def write_without_secrets(file: Path, diff: str) -> None:
    """Write Git's `diff`, for its owner alone to read; MLflow gets it, too.

    Of a file in which detect-secrets finds something nothing is recorded: neither is it committed.
    """
    parts = re.split(r"^(?=diff --git )", diff, flags=re.MULTILINE)
    try:
        hidden = [part for part in parts if _has_secret(part)]
    except ModuleNotFoundError:
        log.warning(
            "what is not committed is not recorded: detect-secrets, which looks for passwords in it, is not installed"
        )
        return
    if hidden:
        log.warning(
            "what is not committed in %s is not recorded: a password, a token or a key may be in it. "
            "Where: detect-secrets scan %s; a false alarm: # pragma: allowlist secret at the end of its line",
            listed([_name(part) for part in hidden]),
            _name(hidden[0]),
        )
    with atomic_file(file) as new:
        new.touch(mode=0o600)
        new.write_text("".join(part for part in parts if part not in hidden), encoding="utf-8")


def _name(part: str) -> str:
    return part.splitlines()[0].rpartition(" b/")[2]


def _has_secret(part: str) -> bool:
    """Among the lines that were added: the others are in the commit."""
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import default_settings

    added = [line[1:] for line in part.splitlines() if line.startswith("+") and not line.startswith("+++ ")]
    if not added or NOT_LOOKED_INTO.search(_name(part)):
        return False
    with tempfile.TemporaryDirectory() as folder, default_settings() as settings:
        file = Path(folder, Path(_name(part)).name)  # how it is read depends on the kind of file
        file.write_text("\n".join(added) + "\n", encoding="utf-8")
        settings.disable_plugins(NOT_LOOKED_FOR)
        return next(iter(scan_file(str(file))), None) is not None
