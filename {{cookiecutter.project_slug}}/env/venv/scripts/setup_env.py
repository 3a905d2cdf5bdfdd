"""Make `.venv` and install this project into it (setup), write down its exact packages (lock), look at that list (fresh).

    make setup        # or: python scripts/setup_env.py setup

What `pylock.toml` says is installed if it is for this machine; else PyTorch first, in the build that pyproject.toml
names, then the rest. Safe to call again at any time: what is there already is kept, what an interruption left out is added.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
# an image is made with EXTRAS= LOCKED=1: no tools, and compiled, as its user cannot do it later
EXTRAS = os.environ.get("EXTRAS", "dev")
COMPILE = [] if os.environ.get("LOCKED") else ["--no-compile"]  # else what is imported is compiled then, and only that
PIP = "pip>=26.3,<27"  # writes and reads pylock.toml (PEP 751), with extras
LOCK = ROOT / "pylock.toml"
READY = VENV / ".ready"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def setup() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    config = pyproject["tool"]["ml-template"]
    if not runs(PYTHON):
        make_venv(config["python"])
    elif READY.exists():  # the project may have been moved, or copied, since
        subprocess.run([str(PYTHON), "-m", "runengine", "settle"], cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"})
    if is_up_to_date():
        print("The environment in .venv is up to date.")
    else:
        READY.unlink(missing_ok=True)
        if lock_fits(pyproject):
            install_locked()
        else:
            install(config, pyproject["project"]["dependencies"])
    if subprocess.run([str(PYTHON), "-m", "runengine", "doctor", "--quick"]).returncode not in (0, 2):
        sys.exit(1)  # it has said why; 2 means that something is unknown
    READY.write_text(fingerprint(), encoding="utf-8")


def fingerprint() -> str:
    """Of all that says what the environment holds."""
    content = [file.read_bytes() for file in (ROOT / "pyproject.toml", LOCK) if file.exists()]
    return hashlib.sha256(b"".join(content)).hexdigest()


def is_up_to_date() -> bool:
    return READY.exists() and READY.read_text(encoding="utf-8") == fingerprint()


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


def install(config: dict[str, str], dependencies: list[str]) -> None:
    """What pyproject.toml allows, in the newest versions."""
    upgrade_pip()
    install_torch(config, next(name for name in dependencies if re.match(r"torch\W", name)))
    step("Installing the project and its dependencies")
    if pip("install", "--editable", f".[{EXTRAS}]" if EXTRAS else ".", *COMPILE) != 0:
        fail("pip could not install the project (its message stands above). Fix that, then run `make setup` again")


def install_locked() -> None:
    """What pylock.toml says, no other version."""
    upgrade_pip()
    step("Installing what pylock.toml says")
    locked = f"{LOCK.name}[{EXTRAS}]" if EXTRAS else LOCK.name
    if pip("install", "--requirement", locked, *COMPILE) != 0:
        fail(
            "pip could not install what pylock.toml says (its message stands above). "
            "If a file is gone for good: rm pylock.toml, then make setup lock"
        )
    if pip("install", "--no-deps", "--editable", ".", *COMPILE) != 0:
        fail("pip could not install the project (its message stands above). Fix that, then run `make setup` again")


def upgrade_pip() -> None:
    pip("install", "--quiet", "--upgrade", PIP, quiet_errors=True)  # an older one does, without locks


def install_torch(config: dict[str, str], any_build: str) -> None:
    """From where pip looks first (a mirror, a cluster's wheelhouse), else from PyTorch's own index.

    Args:
        config: `[tool.ml-template]` of pyproject.toml.
        any_build: the requirement that leaves the build open, such as `torch>=2.13,<2.16`.
    """
    build = config["cuda"]
    # PyTorch's wheels for the Mac have one build, without a mark
    requirement = f"torch=={config['torch']}" + ("" if sys.platform == "darwin" else f"+{build}")
    step(f"Installing {requirement}")
    if pip("install", requirement, *COMPILE, quiet_errors=True) == 0:
        return
    if b"no-index=" in subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], stdout=subprocess.PIPE).stdout:
        step(f"pip is configured to use no index: taking the cluster's own build of {any_build}")
        if pip("install", any_build, *COMPILE) == 0:
            return
        fail(
            f"pip is configured to use no index, and its wheelhouse has no {any_build}. Ask for it, or unset PIP_NO_INDEX"
        )
    index = config["torch_index"]
    step(f"pip's own indexes do not have it, trying {index}")
    if pip("install", requirement, "--index-url", index, *COMPILE) != 0:
        fail(
            f"{requirement} is neither in pip's own indexes nor to be had from {index}. "
            "Check the network (or set torch_index in pyproject.toml to a mirror), then run `make setup` again"
        )


def lock() -> None:
    """Write the versions of this environment, with the hashes of their files, to pylock.toml.

    Without the packages of the documentation. pip locks for one platform, one Python and one build of PyTorch: `for_what`.
    """
    if not is_up_to_date():
        fail("the environment is not there, or not what pyproject.toml says. Run: make setup lock")
    if pip("lock", "--help", quiet=True) != 0:
        fail(f"the pip in .venv is too old to write locks. Run: {PYTHON.relative_to(ROOT)} -m pip install '{PIP}'")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = pyproject["project"]["dependencies"]
    index = pyproject["tool"]["ml-template"]["torch_index"]
    with tempfile.TemporaryDirectory() as folder:
        installed = output("freeze", "--exclude-editable").splitlines()
        step(f"Looking up the files of {len(installed)} packages")
        run_only = resolve(Path(folder), needed, installed, index)
        everything = resolve(
            Path(folder), needed + pyproject["project"]["optional-dependencies"]["dev"], installed, index
        )
    head, *packages = everything.split("[[packages]]\n")
    always = {package["name"] for package in tomllib.loads(run_only)["packages"]}
    for place, package in enumerate(packages):
        if tomllib.loads(package.partition("[[")[0])["name"] not in always:
            packages[place] = f"marker = \"'dev' in extras\"\n{package}"
    made_for = "".join(f"{name} = {json.dumps(value)}\n" for name, value in for_what(pyproject).items())
    text = head.replace("\n", '\nextras = ["dev"]\n', 1) + "".join("[[packages]]\n" + package for package in packages)
    LOCK.write_text(f"{text}\n[tool.ml-template]\n{made_for}", encoding="utf-8")
    READY.write_text(fingerprint(), encoding="utf-8")
    here = sorted(set(re.findall(r'"file://(/[^"]*)/', text)))
    if here:
        print(f"Some files are in folders of this machine ({', '.join(here)}): others need them at the same place.")
    print(f"pylock.toml holds {len(packages)} exact packages: commit it, and `make setup` installs these.")


def resolve(folder: Path, needed: list[str], installed: list[str], torch_index: str) -> str:
    """What pip would install for these requirements, in the installed versions, as the text of a pylock.toml."""
    file, wanted, versions = folder / "pylock.toml", folder / "wanted.txt", folder / "versions.txt"
    wanted.write_text("\n".join(needed), encoding="utf-8")
    versions.write_text("\n".join(line for line in installed if " @ " not in line), encoding="utf-8")
    command = ["lock", "-qq", "--requirement", str(wanted), "--constraint", str(versions), "--output", str(file)]
    file.unlink(missing_ok=True)
    if pip(*command, quiet_errors=True) != 0 and pip(*command, "--extra-index-url", torch_index) != 0:
        fail("pip could not look the packages up (its message stands above). Fix that, then run `make lock` again")
    return file.read_text(encoding="utf-8")


def lock_fits(pyproject: dict[str, Any]) -> bool:
    if not LOCK.exists():
        return False
    made = locked_for()
    other = {name: value for name, value in for_what(pyproject).items() if made.get(name) != value}
    if "dependencies" in other:
        said = "pylock.toml was written for another pyproject.toml"
    elif other:
        differs = ", ".join(f"{name} {made.get(name)}, not {value}" for name, value in other.items())
        said = f"pylock.toml is not for this environment ({differs})"
    else:
        return True
    if os.environ.get("LOCKED"):
        fail(f"{said}, and an image holds what a lock says. Run: rm pylock.toml, or make clean-env setup lock")
    print(f"{said} and is not used; `make lock` writes it again.")
    return False


def locked_for() -> dict[str, str]:
    """What pylock.toml says it was written for."""
    try:
        made: dict[str, str] = tomllib.loads(LOCK.read_text(encoding="utf-8"))["tool"]["ml-template"]
        return made
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError):
        fail("pylock.toml is damaged, or not written by make lock. Run: rm pylock.toml, then make setup lock")


def for_what(pyproject: dict[str, Any]) -> dict[str, str]:
    settings = VENV / "pyvenv.cfg"
    found = re.search(r"^version\S* = (\d+\.\d+)", settings.read_text(), re.MULTILINE) if settings.exists() else None
    python = found[1] if found else "{}.{}".format(*sys.version_info)
    config, project = pyproject["tool"]["ml-template"], pyproject["project"]
    requirements = json.dumps([project["dependencies"], project["optional-dependencies"]["dev"]])
    return {
        "platform": f"{sys.platform}-{platform.machine()}",
        "python": python,
        "build": config["cuda"],
        "dependencies": hashlib.sha256(requirements.encode()).hexdigest(),
    }


def fresh() -> None:
    """Is pylock.toml what pyproject.toml asks for? Where there is none, nothing is locked."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if LOCK.exists():
        made, wanted = locked_for(), for_what(pyproject)
        if any(made.get(name) != wanted[name] for name in ("build", "dependencies")):
            fail("pylock.toml was written for another pyproject.toml. Run: make setup lock")


def pip(*arguments: str, quiet_errors: bool = False, quiet: bool = False) -> int:
    command = [str(PYTHON), "-m", "pip", *arguments, "--disable-pip-version-check"]
    nothing = subprocess.DEVNULL
    return subprocess.run(
        command, cwd=ROOT, stdout=nothing if quiet else None, stderr=nothing if quiet or quiet_errors else None
    ).returncode


def output(*arguments: str) -> str:
    return subprocess.run([str(PYTHON), "-m", "pip", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def runs(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def fail(sentence: str) -> NoReturn:
    sys.exit(f"error: {sentence}.")


if __name__ == "__main__":
    {"setup": setup, "lock": lock, "fresh": fresh}[sys.argv[1]]()
