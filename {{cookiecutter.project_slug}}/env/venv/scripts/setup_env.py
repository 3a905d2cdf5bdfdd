"""Make `.venv` and install this project into it, PyTorch first and in the build that pyproject.toml names.

    make setup        # or: python scripts/setup_env.py

Safe to call again at any time: what is there already is kept, what an interruption left out is added.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
# an image is made with EXTRAS= LOCKED=1: no tools, and compiled, as its user cannot do it later
EXTRAS = os.environ.get("EXTRAS", "dev")
COMPILE = [] if os.environ.get("LOCKED") else ["--no-compile"]  # else what is imported is compiled then, and only that
PIP = "pip>=25.1,<27"
READY = VENV / ".ready"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    config = pyproject["tool"]["ml-template"]
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not runs(PYTHON):
        make_venv(config["python"])
    elif READY.exists():  # the project may have been moved, or copied, since
        subprocess.run([str(PYTHON), "-m", "runengine", "settle"], cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"})
    if READY.exists() and READY.read_text(encoding="utf-8") == wanted:
        print("The environment in .venv is up to date.")
    else:
        READY.unlink(missing_ok=True)
        install_torch(config, next(name for name in pyproject["project"]["dependencies"] if re.match(r"torch\W", name)))
        step("Installing the project and its dependencies")
        if pip_install("--editable", f".[{EXTRAS}]" if EXTRAS else ".") != 0:
            fail("pip could not install the project (its message stands above). Fix that, then run `make setup` again")
    if subprocess.run([str(PYTHON), "-m", "runengine", "doctor", "--quick"]).returncode not in (0, 2):
        sys.exit(1)  # it has said why; 2 means that something is unknown
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


def install_torch(config: dict[str, str], any_build: str) -> None:
    """From where pip looks first (a mirror, a cluster's wheelhouse), else from PyTorch's own index.

    Args:
        config: `[tool.ml-template]` of pyproject.toml.
        any_build: the requirement that leaves the build open, such as `torch>=2.13,<2.16`.
    """
    build = config["cuda"]
    # PyTorch's wheels for the Mac have one build, without a mark
    requirement = f"torch=={config['torch']}" + ("" if sys.platform == "darwin" else f"+{build}")
    pip_install("--quiet", "--upgrade", PIP, quiet_errors=True)  # an older one does, without its progress bar
    step(f"Installing {requirement}")
    if pip_install(requirement, quiet_errors=True) == 0:
        return
    if b"no-index=" in subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], stdout=subprocess.PIPE).stdout:
        step(f"pip is configured to use no index: taking the cluster's own build of {any_build}")
        if pip_install(any_build) == 0:
            return
        fail(
            f"pip is configured to use no index, and its wheelhouse has no {any_build}. Ask for it, or unset PIP_NO_INDEX"
        )
    index = config["torch_index"]
    step(f"pip's own indexes do not have it, trying {index}")
    if pip_install(requirement, "--index-url", index) != 0:
        fail(
            f"{requirement} is neither in pip's own indexes nor to be had from {index}. "
            "Check the network (or set torch_index in pyproject.toml to a mirror), then run `make setup` again"
        )


def pip_install(*arguments: str, quiet_errors: bool = False) -> int:
    errors = subprocess.DEVNULL if quiet_errors else None
    command = [str(PYTHON), "-m", "pip", "install", *arguments, *COMPILE, "--disable-pip-version-check"]
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
