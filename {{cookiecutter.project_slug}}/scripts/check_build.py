"""Is the PyTorch of this environment the one that pyproject.toml asks for, and does it run on the GPU?

    python scripts/check_build.py

`make setup` ends with it.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> None:
    asked = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["ml-template"]["cuda"]
    try:
        import torch
    except (ImportError, OSError) as error:
        fail(f"PyTorch cannot be loaded ({error}). Run: make clean-env setup")
    cuda = torch.version.cuda
    found = "cu" + cuda.replace(".", "") if cuda else "cpu"
    if not same_build(found, asked):
        fail(
            f"PyTorch {torch.__version__} is the build {found}, but pyproject.toml asks for {asked}. "
            "Run: make clean-env setup"
        )
    print(f"PyTorch {torch.__version__}, build {found}, as asked for.")
    if cuda and torch.cuda.is_available():
        check_kernel()
    elif cuda:
        print("No GPU that PyTorch can use is here: this build will find one where the project runs.")


def same_build(found: str, asked: str) -> bool:
    """Conda's builds have another minor version of CUDA (12.9 for cu126): there the major one counts."""
    conda = (Path(sys.prefix) / "conda-meta").is_dir()
    return found == asked or (conda and found[:-1] == asked[:-1] != "cp")


def check_kernel() -> None:
    """A product on each GPU: `is_available()` alone is true on GPUs that this build has no code for."""
    import torch

    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            right = bool((ones @ ones == 64).all())
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            fail(f"this build of PyTorch does not run on {name} ({first}). Generate the project for its build")
        if not right:
            fail(f"{name} multiplies wrongly: its driver or its hardware is broken. Update the driver")
        print(f"{name} computes.")


def fail(sentence: str) -> None:
    sys.exit(f"error: {sentence}.")


if __name__ == "__main__":
    main()
