"""Keep the exact packages of this environment as wheels in a folder (fill); make the environment from them (setup).

    make wheelhouse                     # or, in the environment: python scripts/wheelhouse.py fill wheelhouse
    make setup WHEELHOUSE=wheelhouse    # or: python3 scripts/wheelhouse.py setup wheelhouse

Indexes lose files. With this folder the environment can be made again without any of them, and without a network: on a
machine of the same kind, with the same Python.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV, UNFINISHED = ROOT / ".venv", ROOT / ".venv-unfinished"
NEW = ROOT / ".wheelhouse-new"
PACKAGES, SUMS = "requirements.txt", "SHA256SUMS"
EDITABLE = "editables"  # what hatchling needs to install a project as a link to its folder
ASK = "import sys; print('{}.{}'.format(*sys.version_info), getattr(sys, '_base_executable', sys.executable))"
PLATFORM = f"{sys.platform}-{platform.machine()}"


def fill(folder: Path) -> None:
    """All that is installed here, and what builds this project; the folder is replaced when all of it is there."""
    import tomllib

    refuse_conda()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = dict(sorted(installed(pyproject["project"]["name"]), key=lambda pair: pair[0].lower()))
    shutil.rmtree(NEW, ignore_errors=True)
    NEW.mkdir()
    with tempfile.TemporaryDirectory() as place:
        wanted = Path(place) / "wanted.txt"
        wanted.write_text("\n".join(packages.values()), encoding="utf-8")
        index = ["--extra-index-url", pyproject["tool"]["ml-template"]["torch_index"]]
        command = ["wheel", "--wheel-dir", str(NEW), "--no-deps", "--requirement", str(wanted)]
        python = python_with_pip(Path(place) / "pip")
        step(f"Getting the wheels of {len(packages)} packages")
        if pip(python, *command, quiet_errors=True) != 0 and pip(python, *command, *index) != 0:
            fail("pip could not get all of them (its message stands above). Fix that, then run `make wheelhouse` again")
        step("Getting what builds this project")
        if pip(python, "wheel", "--wheel-dir", str(NEW), *pyproject["build-system"]["requires"], EDITABLE) != 0:
            fail("pip could not get it (its message stands above). Fix that, then run `make wheelhouse` again")
    made_for = f"# python {sys.version_info[0]}.{sys.version_info[1]}\n# platform {PLATFORM}\n"
    versions = "".join(f"{name}=={importlib.metadata.version(name)}\n" for name in packages)
    (NEW / PACKAGES).write_text(made_for + versions, encoding="utf-8")
    sums = "".join(f"{sha256(file)}  {file.name}\n" for file in sorted(NEW.iterdir()))
    (NEW / SUMS).write_text(sums, encoding="utf-8")
    size = sum(file.stat().st_size for file in NEW.iterdir())
    shutil.rmtree(folder, ignore_errors=True)
    NEW.rename(folder)
    print(f"{folder.name} holds {len(packages)} packages, {size / 2**20:.0f} MiB")


def installed(project: str) -> Iterator[tuple[str, str]]:
    """Name and requirement of each package in this environment, but for this project."""
    for package in importlib.metadata.distributions():
        name, version = package.metadata["Name"], package.version
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        if not origin:
            yield name, f"{name}=={version}"
        elif "dir_info" not in origin:
            vcs = origin.get("vcs_info")
            url = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
            yield name, f"{name} @ {url}"
        elif normal(name) != normal(project):
            fail(f"{name} comes from a folder, {origin['url']}: it has no wheel. Install it from Git or an index")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def setup(folder: Path) -> None:
    """`.venv`, from this folder alone."""
    refuse_conda()
    step(f"Checking the wheels in {folder}")
    check(folder)
    text = (folder / PACKAGES).read_text(encoding="utf-8")
    made_for = dict(re.findall(r"^# (\w+) (\S+)$", text, re.MULTILINE))
    if made_for["platform"] != PLATFORM:
        fail(f"these wheels are for {made_for['platform']}, and this machine is {PLATFORM}. With a network: make setup")
    base = find_python(made_for["python"])
    step(f"Making .venv with Python {made_for['python']} ({base})")
    UNFINISHED.touch()  # whatever makes the environment next begins at the start, if this is killed
    shutil.rmtree(VENV, ignore_errors=True)
    python = make_venv(base, VENV)
    with (VENV / "pyvenv.cfg").open("a", encoding="utf-8") as settings:
        settings.write(f"wheelhouse = {folder.name}\n")  # for the doctor; Python ignores it
    no_index = ["install", "--no-index", "--find-links", str(folder)]
    step(f"Installing {len(text.splitlines()) - len(made_for)} packages")
    if pip(python, *no_index, "--quiet", "--no-deps", "--no-compile", "--requirement", str(folder / PACKAGES)) != 0:
        fail("pip could not install the wheels (its message stands above). Fix that, then run this command again")
    if pip(python, *no_index, "--quiet", "--no-compile", "--editable", str(ROOT)) != 0:
        fail(
            "pip could not install the project (its message stands above). If pyproject.toml wants what the wheelhouse "
            "has not, make it again with a network: make setup wheelhouse"
        )
    if subprocess.run([str(python), "-m", "runengine", "doctor", "--quick"]).returncode not in (0, 2):
        sys.exit(1)  # it has said why; 2 means that something is unknown
    (VENV / ".ready").touch()
    UNFINISHED.unlink()


def check(folder: Path) -> None:
    """Is every wheel there, and as it was?"""
    again = "Get it again (dvc pull --force wheelhouse), or make it again with a network: make setup wheelhouse"
    if not (folder / SUMS).is_file():
        fail(f"{folder} is no wheelhouse: it has no {SUMS}. {again}")
    sums = dict(line.split("  ")[::-1] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    for said, names in (
        ("is missing", [name for name in sums if not (folder / name).is_file()]),
        ("has changed", [name for name in sums if (folder / name).is_file() and sha256(folder / name) != sums[name]]),
    ):
        if names:
            more = f", with {len(names) - 1} more" if len(names) > 1 else ""
            fail(f"{folder / names[0]} {said}{more}. {again}")


def find_python(version: str) -> str:
    """A Python of this version: the one that was named, this one, one on the PATH, or one of uv's."""
    uv = [["uv", "python", "find", version]] if shutil.which("uv") else []
    found = [subprocess.run(command, capture_output=True, text=True).stdout.strip() for command in uv]
    for python in (os.environ.get("BASE_PYTHON"), sys.executable, f"python{version}", "python3", "python", *found):
        command = [python or "", "-c", ASK]  # of one in .venv, which is about to go: the Python it was made with
        try:
            answer = subprocess.run(command, capture_output=True, text=True).stdout.split(maxsplit=1)
        except OSError:
            continue
        if answer[:1] == [version]:
            return answer[1].strip()
    fail(f"these wheels are for Python {version}, which was not found. Install it, or add BASE_PYTHON=/path/to/python")


def python_with_pip(folder: Path) -> Path:
    """This one, if it has pip; uv's and Poetry's environments have none."""
    here = Path(sys.executable)
    known = subprocess.run([str(here), "-m", "pip", "--version"], capture_output=True).returncode == 0
    return here if known else make_venv(str(here), folder)


def make_venv(base: str, folder: Path) -> Path:
    if subprocess.run([base, "-m", "venv", str(folder)]).returncode != 0:
        fail(f"{base} cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def refuse_conda() -> None:
    if (ROOT / "environment.yml").exists():
        fail("conda's packages are no wheels, so a wheelhouse cannot hold them. An image holds them, too: make image")


def pip(python: Path, *arguments: str, quiet_errors: bool = False) -> int:
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check"]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL if quiet_errors else None).returncode


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def fail(sentence: str) -> NoReturn:
    shutil.rmtree(NEW, ignore_errors=True)
    sys.exit(f"error: {sentence}.")


if __name__ == "__main__":
    {"fill": fill, "setup": setup}[sys.argv[1]](Path(sys.argv[2]).resolve())
