"""torchvision must be made for the PyTorch that is installed: else its import fails, as that of the registry's does.

Lightning imports it where it is there, so every training fails then.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# the minor version of torchvision for that of PyTorch 2: https://github.com/pytorch/vision#installation
AHEAD_OF_TORCH = 15
INSTALL = {
    "conda": "conda install --yes {package}",
    "uv": "uv pip install --reinstall --no-deps {package} --index-url {index}",
}
BY_PIP = "python -m pip install --force-reinstall --no-deps {package} --index-url {index}"


def mismatch(root: Path | None) -> tuple[str, str] | None:
    """What does not fit, and the command that installs what does; None where it fits, or is not there.

    Args:
        root: of the project, whose `pyproject.toml` names the index of PyTorch's builds.
    """
    try:
        torch, found = version("torch"), version("torchvision")
    except PackageNotFoundError:
        return None
    release, _, build = torch.partition("+")
    numbers = re.match(r"2\.(\d+)", release)
    if numbers is None:  # a PyTorch that this table does not know
        return None
    wanted = f"0.{int(numbers[1]) + AHEAD_OF_TORCH}"
    if found.startswith(f"{wanted}.") and found.partition("+")[2] == build:
        return None
    asked = _asked(root)
    index = asked.get("torch_index") or f"https://download.pytorch.org/whl/{build or 'cpu'}"
    manager = asked.get("env_manager", "")
    package = f"torchvision={wanted}" if manager == "conda" else f"'torchvision=={wanted}.*'"
    command = INSTALL.get(manager, BY_PIP).format(package=package, index=index)
    return f"torchvision {found} was not made for PyTorch {torch}", command


def _asked(root: Path | None) -> dict[str, Any]:
    file = root / "pyproject.toml" if root else None
    if file is None or not file.is_file():
        return {}
    asked: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("ml-template", {})
    return asked
