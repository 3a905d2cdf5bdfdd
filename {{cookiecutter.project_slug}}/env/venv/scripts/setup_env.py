"""Make `.venv` and install this project into it, PyTorch first and in the build that pyproject.toml names.

    make setup        # or: python scripts/setup_env.py

Safe to call again at any time: what is there already is kept, what an interruption left out is added.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PIP = "pip>=25.1,<27"
READY = VENV / ".ready"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ml-template"]
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not runs(PYTHON):
        make_venv(config["python"])
    if READY.exists() and READY.read_text(encoding="utf-8") == wanted:
        print("The environment in .venv is up to date.")
    else:
        READY.unlink(missing_ok=True)
        install_torch(config)
        step("Installing the project and its dependencies")
        if pip("install", "--editable", ".[dev]") != 0:
            fail("pip could not install the project (its message stands above). Mend that, then run `make setup` again")
    check_torch(config)
    READY.write_text(wanted, encoding="utf-8")


def make_venv(wanted: str) -> None:
    found = "{}.{}".format(*sys.version_info)
    if found != wanted:
        print(f"Python {wanted} was not found, Python {found} is used instead.")
    step(f"Making .venv with Python {found} ({sys.executable})")
    shutil.rmtree(VENV, ignore_errors=True)
    if subprocess.run([sys.executable, "-m", "venv", str(VENV)]).returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        fail(
            f"{sys.executable} cannot make virtual environments. "
            f"On Debian and Ubuntu: sudo apt install python{found}-venv, then run `make setup` again"
        )


def install_torch(config: dict[str, str]) -> None:
    """First as pip is configured (a mirror, a cluster's wheelhouse), else from PyTorch's own index."""
    build = config["cuda"]
    # PyTorch's wheels for the Mac have one build, without a mark
    requirement = f"torch=={config['torch']}" + ("" if sys.platform == "darwin" else f"+{build}")
    pip("install", "--quiet", "--upgrade", PIP, quiet_errors=True)  # an older one does, without its progress bar
    step(f"Installing {requirement}")
    if pip("install", requirement, quiet_errors=True) == 0:
        return
    index = config["torch_index"]
    step(f"pip's own indexes do not have it, trying {index}")
    if pip("install", requirement, "--index-url", index) != 0:
        fail(
            f"{requirement} is neither in pip's own indexes nor to be had from {index}. "
            "Check the network (or set torch_index in pyproject.toml to a mirror), then run `make setup` again"
        )


def check_torch(config: dict[str, str]) -> None:
    """Compare the PyTorch that came with the one that was asked for."""
    asked = config["cuda"]
    code = "import torch; print(torch.__version__, torch.version.cuda or '')"
    answer = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True)
    if answer.returncode != 0:
        sys.stderr.write(answer.stderr)
        fail("PyTorch does not start (its message stands above). Remove .venv, then run `make setup` again")
    version, *cuda = answer.stdout.split()
    found = "cu" + cuda[0].replace(".", "") if cuda else "cpu"
    if found != asked:
        fail(
            f"PyTorch {version} is the build {found}, but pyproject.toml asks for {asked}. "
            "Remove .venv, then run `make setup` again"
        )
    print(f"PyTorch {version}, build {found}, as asked for.")


def pip(*arguments: str, quiet_errors: bool = False) -> int:
    errors = subprocess.DEVNULL if quiet_errors else None
    command = [str(PYTHON), "-m", "pip", *arguments, "--disable-pip-version-check"]
    return subprocess.run(command, cwd=ROOT, stderr=errors).returncode


def runs(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def fail(sentence: str) -> None:
    sys.exit(f"error: {sentence}.")


if __name__ == "__main__":
    main()
