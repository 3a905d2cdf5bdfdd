"""The conda variant: a real solver and installer (py-rattler) with a channel of stub packages, make, real shells."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PROJECT, Answer, Bake, Project, run
from packaging.specifiers import SpecifierSet
from rattler import (
    BuildString,
    MatchSpec,
    RepoDataRecord,
    Subdir,
    VirtualPackage,
    VirtualPackageOverrides,
    install,
    solve,
)
from rattler.exceptions import SolverError
from rattler.index import index_fs

CONDA = PROJECT / "env/conda"
ORIGINAL_PATH = os.environ["PATH"]  # the fixture bare_machine leaves little of it
PYTHONS = ("3.11", "3.12", "3.13")
OLD_CUDA, CUDA_12, CUDA_13 = "12.6", "12.9", "13.0"  # what conda-forge built PyTorch 2.7 and 2.13 with
VERSIONS = {"2.7.1": (OLD_CUDA,), "2.13.0": (CUDA_12, CUDA_13), "2.14.0": (CUDA_12, CUDA_13), "2.15.0": (CUDA_13,)}
TORCH_METADATA = "lib/python3.11/site-packages/torch-{}.dist-info/METADATA"
# the environment's programs, for `make`: each says with what it was called
STUB_PROGRAM = '#!/bin/sh\necho "${0##*/} $*" >> "$CALLS"\n'
PROGRAM_PATHS = ("bin/python", "bin/dvc")


# -- a channel of stub packages -----------------------------------------------------------------------------------


def write_package(
    channel: Path,
    name: str,
    version: str,
    build: str = "0",
    depends: tuple[str, ...] = (),
    constrains: tuple[str, ...] = (),
    files: Mapping[str, str] | None = None,
    features: str | None = None,
) -> None:
    """A package of the old kind (.tar.bz2): what `index_fs` reads, and what an installer links."""
    contents = {path: text.encode() for path, text in (files or {}).items()}
    index = {
        "name": name,
        "version": version,
        "build": str(BuildString(build)),
        "build_number": 0,
        "depends": list(depends),
        "constrains": list(constrains),
        "subdir": "linux-64",
        "arch": "x86_64",
        "platform": "linux",
    }
    if features:
        index["track_features"] = features
    paths = [
        {
            "_path": path,
            "path_type": "hardlink",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_in_bytes": len(content),
        }
        for path, content in contents.items()
    ]
    contents |= {
        "info/index.json": json.dumps(index).encode(),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}).encode(),
        "info/files": "\n".join(contents).encode(),
    }
    with tarfile.open(channel / "linux-64" / f"{name}-{version}-{build}.tar.bz2", "w:bz2", compresslevel=1) as archive:
        for path, content in contents.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            member.mode = 0o755 if path in PROGRAM_PATHS else 0o644
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def channel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What conda-forge has, as far as choosing a PyTorch goes: the same names, builds, dependencies and constraints."""
    folder = tmp_path_factory.mktemp("conda") / "conda-forge"
    (folder / "linux-64").mkdir(parents=True)
    (folder / "noarch").mkdir()
    for python in PYTHONS:
        programs = dict.fromkeys(PROGRAM_PATHS, STUB_PROGRAM)
        write_package(folder, "python", f"{python}.9", "0_cpython", files=programs)
    write_package(folder, "pip", "26.0", depends=("python >=3.10",))
    for cuda in (OLD_CUDA, CUDA_12, CUDA_13, "13.2"):
        write_package(folder, "cuda-version", cuda, constrains=(f"__cuda >={cuda.split('.')[0]}",))
    for version, cudas in VERSIONS.items():
        for python in PYTHONS:
            write_torch(folder, version, python, cuda=None)
            for cuda in cudas:
                write_torch(folder, version, python, cuda)
    asyncio.run(index_fs(folder))
    return folder.as_uri()


def write_torch(channel: Path, version: str, python: str, cuda: str | None) -> None:
    build = f"{'cuda' + cuda.replace('.', '') if cuda else 'cpu'}_mkl_py{python.replace('.', '')}_h0_300"
    depends = [f"python {python}.*"]
    if cuda:
        major = int(cuda.split(".")[0])
        depends += [f"cuda-version >={cuda},<{major + 1}", "__cuda"]
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    files = {TORCH_METADATA.format(version): metadata}
    write_package(channel, "pytorch", version, build, tuple(depends), files=files)
    name = "pytorch-gpu" if cuda else "pytorch-cpu"
    write_package(channel, name, version, build, (f"pytorch {version} {build}",), features=None if cuda else name)


def solution(channel: str, specs: list[str], driver: str | None) -> dict[str, RepoDataRecord]:
    """What the solver chooses on a machine whose driver knows this CUDA (None: no GPU)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDA_OVERRIDE_CUDA", driver or "")
        virtual = VirtualPackage.detect(VirtualPackageOverrides.from_env())
    records = asyncio.run(
        solve(
            [channel], [MatchSpec(spec) for spec in specs], platforms=["linux-64", "noarch"], virtual_packages=virtual
        )
    )
    return {record.name.normalized: record for record in records}


def conda_packages(project: Project) -> list[str]:
    listed = yaml.safe_load(project.text("environment.yml"))["dependencies"]
    return [spec for spec in listed if isinstance(spec, str)]


def torch_range(project: Project) -> SpecifierSet:
    """What pip will ask for."""
    listed = tomllib.loads(project.text("pyproject.toml"))["project"]["dependencies"]
    return SpecifierSet(next(line for line in listed if re.match(r"torch[<>=]", line)).removeprefix("torch"))


# -- environment.yml ----------------------------------------------------------------------------------------------


def test_environment_yml_is_yaml_before_it_is_rendered() -> None:
    assert yaml.safe_load((CONDA / "environment.yml").read_text(encoding="utf-8"))["channels"] == ["conda-forge"]


@pytest.mark.parametrize("cuda", ["cpu", "cu126", "cu130", "cu132"])
def test_pyproject_stays_the_only_list_of_python_packages(bake: Bake, cuda: str) -> None:
    project = bake(env_manager="conda", cuda=cuda, python_version="3.12")
    environment = yaml.safe_load(project.text("environment.yml"))
    assert environment["name"] == "my-project"
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[dev]"]}
    assert conda[0] == "python=3.12"
    names = {re.split(r"[<>= ]", spec)[0] for spec in conda}
    assert names <= {"python", "pip", "pytorch", "pytorch-cpu", "pytorch-gpu", "cuda-version"}
    assert "pytorch" not in conda  # alone it may be the CPU build


@pytest.mark.parametrize("driver", [None, "12.4", "13.1"])
@pytest.mark.parametrize(
    ("cuda", "wanted", "least"),
    [("cpu", "cpu", 0), ("cu126", "cuda129", 12), ("cu130", "cuda130", 13), ("cu132", "cuda130", 13)],
)
def test_the_solver_gives_the_build_that_was_asked_for_or_says_what_is_missing(
    bake: Bake, channel: str, cuda: str, wanted: str, least: int, driver: str | None
) -> None:
    project = bake(env_manager="conda", cuda=cuda, python_version="3.11")
    if float(driver or 0) < least:
        with pytest.raises(SolverError, match="__cuda"):
            solution(channel, conda_packages(project), driver)
        return
    found = solution(channel, conda_packages(project), driver)
    torch = found["pytorch"]
    assert str(torch.build).startswith(f"{wanted}_mkl_py311")
    assert str(torch.version) in torch_range(project)  # so pip has no reason to replace it
    assert ("pytorch-cpu" in found) == (cuda == "cpu")
    if cuda != "cpu":
        assert str(found["cuda-version"].version).split(".")[0] == str(least)


@pytest.mark.parametrize(("specs", "driver", "trap"), [
    (["pytorch-gpu", "cuda-version=12.6"], "12.9", "2.7.1 cuda126"),
    (["pytorch"], None, "2.15.0 cpu"),
    (["pytorch>=2.13"], "12.9", "2.15.0 cpu"),  # on a machine with a GPU
])  # fmt: skip
def test_the_channel_has_what_a_wrong_spec_would_fall_for(
    channel: str, specs: list[str], driver: str | None, trap: str
) -> None:
    torch = solution(channel, specs, driver)["pytorch"]
    assert f"{torch.version} {str(torch.build).split('_')[0]}" == trap


def test_pip_leaves_condas_torch_where_it_is(bake: Bake, channel: str, tmp_path: Path) -> None:
    project = bake(env_manager="conda", cuda="cu126", python_version="3.11")
    prefix = tmp_path / "prefix"
    records = list(solution(channel, conda_packages(project), "12.9").values())
    asyncio.run(
        install(records, prefix, cache_dir=tmp_path / "packages", platform=Subdir("linux-64"), show_progress=False)
    )
    installed = sorted(file.name for file in (prefix / "conda-meta").glob("*.json"))
    assert [name.rsplit("-", 2)[0] for name in installed] == ["cuda-version", "pip", "python", "pytorch", "pytorch-gpu"]
    # as conda calls pip for environment.yml, with a newer torch to be had that pyproject.toml allows
    wheels = tmp_path / "wheels"
    write_wheel(wheels, "torch", "2.14.9")
    write_wheel(wheels, "my_project", "0.1.0", requires=f"torch{torch_range(project)}")
    answer = run(
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--find-links", wheels, "-U"),
        *("--disable-pip-version-check", "my-project"),
        cwd=tmp_path,
        env={
            "PATH": ORIGINAL_PATH,
            "PYTHONPATH": str(prefix / "lib/python3.11/site-packages"),
            "PIP_CONFIG_FILE": os.devnull,
        },
    )
    assert answer.output.splitlines()[-1].replace("_", "-") == "Would install my-project-0.1.0"
    assert re.search(r"Requirement already satisfied: torch.* in .*/prefix/lib", answer.output)


def write_wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


# -- make, with programs that stand for conda, mamba and micromamba -------------------------------------------------

FAKE_CONDA = r"""#!/bin/sh
# records how it was called, and answers as the program of its name does
name=${0##*/}
case "$1 $2" in
    "--version "*) echo "$name ${FAKE_VERSION-25.1.0}"; exit ;;
    "info "*)
        echo "       virtual packages : __glibc=2.36=0${FAKE_CUDA+
                          __cuda=$FAKE_CUDA=0}"
        echo "               platform : ${FAKE_PLATFORM-linux-64}"
        exit ;;
    "config --show") echo "solver: ${FAKE_SOLVER-libmamba}"; exit ;;
esac
echo "$name $* | CUDA ${CONDA_OVERRIDE_CUDA-unset} LD ${LD_LIBRARY_PATH-unset}" \
    "VENV ${VIRTUAL_ENV-unset} NOUSERSITE ${PYTHONNOUSERSITE-unset}" >>"$CALLS"
case "$*" in
    *"--explicit"*)
        if [ "$1 $name" = "list micromamba" ]; then echo "unknown argument: --explicit" >&2; exit 109; fi
        printf '# platform: linux-64\n@EXPLICIT\nhttps://conda.anaconda.org/conda-forge/linux-64/python-3.11.9-0.conda#abc\n'
        exit ;;
esac
prefix=${*#*--prefix } prefix=${prefix%% --file*}
mkdir -p "$prefix/conda-meta" "$prefix/bin"
case ${FAKE_END-} in
    killed) touch "$prefix/half"; kill -9 $$ ;;
    refused) echo "nothing provides __cuda needed by pytorch" >&2; exit 1 ;;
esac
for program in python dvc; do
    printf '#!/bin/sh\necho "%s $*" >>"$CALLS"\nexit ${FAKE_PYTHON-0}\n' $program >"$prefix/bin/$program"
    chmod +x "$prefix/bin/$program"
done
"""
TOOLS = "cat chmod cksum cp grep make mkdir mv rm sed sh touch"


class Machine:
    """A conda project on a machine that has these programs; `make` returns what was printed, `calls` what was run."""

    def __init__(self, project: Project, folder: Path, programs: str) -> None:
        self.project = project
        self.record = folder / "calls"
        self.bin = folder / "tools"
        self.bin.mkdir()
        for tool in TOOLS.split():
            if found := shutil.which(tool, path=ORIGINAL_PATH):
                (self.bin / tool).symlink_to(found)
        for program in programs.split():
            (self.bin / program).write_text(FAKE_CONDA)
            (self.bin / program).chmod(0o755)
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "CALLS": str(self.record)}

    def make(self, *arguments: str, expect: int = 0, **settings: str) -> str:
        self.record.write_text("")
        answer: Answer = run(
            "make", "--no-print-directory", *arguments, cwd=self.project.path, env=self.env | settings, expect=expect
        )
        return answer.output

    @property
    def calls(self) -> list[str]:
        """Programs and arguments, the project's folder as a dot."""
        text = self.record.read_text().replace(str(self.project.path), ".")
        return [line.split(" | ")[0] for line in text.splitlines()]

    @property
    def environment(self) -> str:
        """What the first call of conda saw."""
        return self.record.read_text().splitlines()[0].split(" | ")[1]


NewMachine = Callable[..., Machine]
CHECKED = [
    "python -m runengine doctor --quick",
    "python -m runengine settle",
    "python -m runengine schema",
    "python -m runengine dvc-ready",
    "python -m runengine store sqlite:///mlflow.db",
    "python -m runengine offer .conda/.ready-asked",
]


@pytest.fixture
def machine(bake: Bake, tmp_path: Path) -> NewMachine:
    def start(programs: str = "conda", cuda: str = "cpu") -> Machine:
        return Machine(bake(env_manager="conda", cuda=cuda, python_version="3.11"), tmp_path, programs)

    return start


@pytest.mark.parametrize(("programs", "create", "update"), [
    ("conda micromamba mamba", "mamba env create", "mamba env update"),
    ("conda micromamba", "micromamba create", "micromamba install"),
    ("conda", "conda env create", "conda env update"),
])  # fmt: skip
def test_setup_creates_then_checks_only_then_updates_what_changed(
    machine: NewMachine, programs: str, create: str, update: str
) -> None:
    here = machine(programs)
    here.make("setup")
    arguments = "--prefix ./.conda --file environment.yml"
    assert here.calls == [f"{create} {arguments}", *CHECKED]
    assert (here.project.path / ".conda/etc/conda/activate.d/project.sh").exists()
    assert here.make("setup").startswith("The environment in .conda is up to date.\n")
    assert here.calls == CHECKED
    with (here.project.path / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    here.make("setup")
    assert here.calls == [f"{update} {arguments}", *CHECKED]
    here.make("clean-env")
    assert not (here.project.path / ".conda").exists()


def test_an_interrupted_setup_is_made_anew(machine: NewMachine) -> None:
    here = machine()
    here.make("setup", expect=2, FAKE_END="killed")
    assert (here.project.path / ".conda/half").exists()
    here.make("setup")
    assert here.calls[0].startswith("conda env create ")
    assert not (here.project.path / ".conda/half").exists()


def test_a_failed_update_leaves_the_environment_and_is_tried_again(machine: NewMachine) -> None:
    here = machine()
    here.make("setup")
    environment = here.project.path / "environment.yml"
    environment.write_text(environment.read_text() + "\n# changed\n")
    here.make("setup", expect=2, FAKE_END="refused")
    assert not (here.project.path / ".conda/.ready").exists()
    here.make("setup")
    assert here.calls[0].startswith("conda env update ")


def test_a_project_that_was_moved_gets_a_new_environment(machine: NewMachine) -> None:
    here = machine()
    here.make("setup")
    here.project = Project(here.project.path.rename(here.project.path.with_name("a new place")))
    here.make("setup")
    assert here.calls == ["conda env create --prefix ./.conda --file environment.yml", *CHECKED]


def test_a_wrong_build_is_not_ready(machine: NewMachine) -> None:
    here = machine()
    here.make("setup", expect=2, FAKE_PYTHON="1")
    here.make("setup")
    (here.project.path / ".conda/bin/python").write_text("#!/bin/sh\nexit 1\n")  # something replaced PyTorch
    here.make("setup", expect=2)
    assert "error: the environment is not there yet. Run: make setup\n" in here.make("train", expect=2)
    (here.project.path / ".conda/bin/python").write_text("#!/bin/sh\nexit 2\n")  # the doctor's `unknown`
    here.make("setup")
    assert (here.project.path / ".conda/.ready").exists()


@pytest.mark.parametrize(("programs", "settings", "sentence"), [
    (
        "", {},
        "error: the environment is made by mamba, micromamba or conda, and none that runs was found. Install Miniforge "
        "(https://conda-forge.org/download), or name the one you have: make setup CONDA=/path/to/conda.\n",
    ),
    (
        "", {"CONDA_EXE": "/nowhere/conda", "MAMBA_EXE": "/nowhere/mamba", "CONDA": "/usr/share/miniconda"},
        "error: the environment is made by mamba, micromamba or conda, and none that runs was found. Install Miniforge "
        "(https://conda-forge.org/download), or name the one you have: make setup CONDA=/path/to/conda.\n",
    ),
    (
        "conda", {"FAKE_VERSION": "23.7.4", "FAKE_SOLVER": "classic"},
        "error: conda 23.7.4 solves with its classic solver, which is too slow for PyTorch's packages; libmamba is "
        "wanted. Run 'conda update -n base conda' for 23.10 or newer, or 'conda install -n base "
        "conda-libmamba-solver'; then 'conda config --set solver libmamba' and 'make setup'.\n",
    ),
    (
        "conda", {"FAKE_END": "refused"},
        "error: conda could not make the environment (its message stands above). Fix what it names, then run "
        "'make setup' again.\n",
    ),
])  # fmt: skip
def test_what_is_missing_is_said_in_one_sentence(
    machine: NewMachine, programs: str, settings: dict[str, Any], sentence: str
) -> None:
    here = machine(programs)
    assert sentence in here.make("setup", expect=2, **settings)
    assert not (here.project.path / ".conda/.ready").exists()


def test_an_old_conda_with_libmamba_will_do(machine: NewMachine) -> None:
    machine().make("setup", FAKE_VERSION="23.7.4")


def test_the_program_can_be_named(machine: NewMachine, tmp_path: Path) -> None:
    here = machine("mamba")
    (tmp_path / "micromamba").write_text(FAKE_CONDA)
    (tmp_path / "micromamba").chmod(0o755)
    here.make("setup", f"CONDA={tmp_path}/micromamba")
    assert here.calls[0].startswith("micromamba create ")
    here.make("clean-env")
    assert "error: CONDA must name a mamba, micromamba or conda that runs, got /nowhere. Fix it" in here.make(
        "setup", "CONDA=/nowhere", expect=2
    )


def test_the_programs_of_a_shell_that_is_set_up_are_found_without_path(machine: NewMachine, tmp_path: Path) -> None:
    here = machine("")
    (tmp_path / "micromamba").write_text(FAKE_CONDA)
    (tmp_path / "micromamba").chmod(0o755)
    here.make("setup", MAMBA_EXE=f"{tmp_path}/micromamba")
    assert here.calls[0].startswith("micromamba create ")


@pytest.mark.parametrize(("cuda", "settings", "seen"), [
    ("cpu", {}, "unset"),
    ("cu126", {}, "12.9"),
    ("cu130", {}, "13.0"),
    ("cu132", {}, "13.0"),
    ("cu130", {"FAKE_CUDA": "13.1"}, "unset"),
    ("cu130", {"CONDA_OVERRIDE_CUDA": "13.2"}, "13.2"),
    ("cu130", {"CONDA_OVERRIDE_CUDA": ""}, ""),
])  # fmt: skip
def test_without_a_gpu_conda_is_told_which_cuda_to_expect(
    machine: NewMachine, cuda: str, settings: dict[str, Any], seen: str
) -> None:
    here = machine(cuda=cuda)
    printed = here.make("setup", **settings)
    assert here.environment.startswith(f"CUDA {seen} LD ")
    said = f"conda sees no GPU here: the environment is made for a machine with CUDA {seen} (CONDA_OVERRIDE_CUDA).\n"
    assert (said in printed) == (cuda != "cpu" and not settings)


def test_a_driver_that_is_too_old_gets_the_way_out(machine: NewMachine) -> None:
    assert (
        "error: conda could not make the environment (its message stands above). If that names __cuda, the driver of "
        "this machine is too old for CUDA 13: update it, or make the environment for another machine with "
        "CONDA_OVERRIDE_CUDA=13.0. Fix what it names, then run 'make setup' again.\n"
    ) in machine(cuda="cu130").make("setup", expect=2, FAKE_END="refused", FAKE_CUDA="12.4")


@pytest.mark.parametrize(("libraries", "seen"), [
    (None, "unset"),
    ("/opt/a b/lib:/opt/x", "/opt/a b/lib:/opt/x"),
    ("/usr/local/cuda-12.4/lib64:/opt/x", "/opt/x"),
    ("/usr/local/cuda/lib64", ""),
])  # fmt: skip
def test_what_make_runs_sees_no_other_environment(machine: NewMachine, libraries: str | None, seen: str) -> None:
    here = machine()
    settings: dict[str, Any] = {} if libraries is None else {"LD_LIBRARY_PATH": libraries}
    here.make("setup", VIRTUAL_ENV="/nowhere", **settings)
    assert here.environment == f"CUDA unset LD {seen} VENV unset NOUSERSITE 1"


@pytest.mark.parametrize(("program", "listed"), [
    ("conda", ["conda list --prefix ./.conda --explicit --md5"]),
    ("micromamba", [
        "micromamba list --prefix ./.conda --explicit --md5",
        "micromamba env export --prefix ./.conda --explicit",
    ]),
])  # fmt: skip
def test_a_lock_is_used_where_it_fits(machine: NewMachine, program: str, listed: list[str]) -> None:
    here = machine(program)
    assert "error: the environment is not there, or not what environment.yml" in here.make("lock", expect=2)
    here.make("setup")
    here.make("lock")
    assert here.calls == listed
    lock = here.project.path / "conda-lock.txt"
    assert lock.read_text().startswith("# environment.yml ")
    assert "\n@EXPLICIT\nhttps://conda.anaconda.org/conda-forge/linux-64/python-" in lock.read_text()
    here.make("setup", "lock-fresh")
    assert here.calls == CHECKED  # the lock says what is there already
    pip = "python -m pip install --editable .[dev]"
    here.make("clean-env", "setup")
    assert here.calls == [f"{program} create --prefix ./.conda --file conda-lock.txt", pip, *CHECKED]
    lock.write_text(lock.read_text() + "# another\n")
    here.make("setup")
    assert here.calls == [f"{program} install --prefix ./.conda --file conda-lock.txt", pip, *CHECKED]
    printed = here.make("clean-env", "setup", FAKE_PLATFORM="osx-arm64")
    assert "conda-lock.txt is not for this platform (osx-arm64) and is not used.\n" in printed
    assert here.calls[0].endswith("create --prefix ./.conda --file environment.yml")
    environment = here.project.path / "environment.yml"
    environment.write_text(environment.read_text() + "# changed\n")
    another = "error: conda-lock.txt was written for another environment.yml. Run: make clean-env setup lock\n"
    assert another in here.make("lock-fresh", expect=2)
    assert "conda-lock.txt was written for another environment.yml and is not used" in here.make("setup")
    assert here.calls[0].endswith("--file environment.yml")


RATTLER_CONDA = """#!{python}
import asyncio, os, sys
if sys.argv[1] == "--version": print("micromamba 2.0"); sys.exit()
if sys.argv[1] == "info": print("platform : linux-64"); sys.exit()
import yaml
from rattler import MatchSpec, Subdir, VirtualPackage, VirtualPackageOverrides, install, solve
prefix, file = sys.argv[sys.argv.index("--prefix") + 1], sys.argv[sys.argv.index("--file") + 1]
specs = [MatchSpec(spec) for spec in yaml.safe_load(open(file))["dependencies"] if isinstance(spec, str)]
virtual = VirtualPackage.detect(VirtualPackageOverrides.from_env())
records = asyncio.run(solve(["{channel}"], specs, platforms=["linux-64", "noarch"], virtual_packages=virtual))
asyncio.run(install(records, prefix, cache_dir="{cache}", platform=Subdir("linux-64"), show_progress=False))
os._exit(0)  # py-rattler's threads crash now and then in Python's own way out: "Runtime state: finalizing"
"""


@pytest.mark.parametrize(("cuda", "build"), [("cpu", "cpu"), ("cu126", "cuda129"), ("cu130", "cuda130")])
def test_make_setup_solves_and_installs(
    machine: NewMachine, channel: str, tmp_path: Path, cuda: str, build: str
) -> None:
    """A machine without a GPU; py-rattler behind micromamba's arguments."""
    here = machine(cuda=cuda)
    program = here.bin / "micromamba"
    program.write_text(RATTLER_CONDA.format(python=sys.executable, channel=channel, cache=tmp_path / "packages"))
    program.chmod(0o755)
    here.make("setup")
    assert here.calls == CHECKED
    metadata = next((here.project.path / ".conda/conda-meta").glob("pytorch-[0-9]*.json"))
    assert json.loads(metadata.read_text())["build"].startswith(f"{build}_mkl_py311")


# -- activation in real shells --------------------------------------------------------------------------------------

CUDA_FIRST = "/usr/local/cuda-12.4/lib64:/opt/cuda/lib:/apps/CUDA/12.1/lib:/sw/cuDNN/8.9/lib"
SHELLS = {  # how each is started without the user's files
    "bash": ["bash", "--norc", "--noprofile", "-euc"],
    "zsh": ["zsh", "-f", "-euc"],
    "fish": ["fish", "--no-config", "-c"],
}


def values(shell: str, script: str, **env: str) -> list[dict[str, str]]:
    """Run a script in which `show` prints the variables as a child process sees them: each time one dictionary."""
    if shutil.which(shell, path=ORIGINAL_PATH) is None:
        pytest.skip(f"{shell} is not installed")
    suffix = "fish" if shell == "fish" else "sh"
    source = "source" if shell == "fish" else "."
    folder = CONDA / "etc/conda"
    for name in ("activate", "deactivate"):
        script = re.sub(rf"\b{name}\b", f"{source} '{folder}/{name}.d/project.{suffix}'", script)
    script = re.sub(r"\bshow\b", "env; echo ---", script)
    done = subprocess.run(
        [*SHELLS[shell], script], env={"PATH": ORIGINAL_PATH} | env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    shown = [block.splitlines() for block in done.stdout.split("---\n")[:-1]]
    names = ("PYTHONNOUSERSITE", "LD_LIBRARY_PATH", "ISOLATE_", "_isolate")
    return [dict(line.split("=", 1) for line in block if line.startswith(names)) for block in shown]


@pytest.mark.parametrize("user_site", [None, "", "yes"])
@pytest.mark.parametrize(("libraries", "kept"), [
    (None, None),
    ("", ""),
    ("/opt/a b/lib::/opt/x:", "/opt/a b/lib::/opt/x:"),
    ("/home/me/barracuda/lib", "/home/me/barracuda/lib"),
    ("/usr/local/cuda/compat/lib:/usr/local/nvidia/lib64:/usr/lib/wsl/lib", None),
    (CUDA_FIRST, "REMOVED"),
    (f"/opt/x:{CUDA_FIRST}:/opt/y", "/opt/x:/opt/y"),
])  # fmt: skip
@pytest.mark.parametrize("shell", SHELLS)
def test_activation_shields_and_deactivation_restores(
    shell: str, libraries: str | None, kept: str | None, user_site: str | None
) -> None:
    old = {"PYTHONNOUSERSITE": user_site, "LD_LIBRARY_PATH": libraries}
    env = {name: value for name, value in old.items() if value is not None}
    active, after = values(shell, "activate; show; deactivate; show", **env)
    expected = {"REMOVED": None, None: libraries}.get(kept, kept)
    assert active["PYTHONNOUSERSITE"] == "1"
    assert active.get("LD_LIBRARY_PATH") == expected
    assert after == env


@pytest.mark.parametrize("shell", SHELLS)
def test_activating_twice_and_deactivating_in_a_child_shell_restore_too(shell: str) -> None:
    env = {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64:/opt/x", "PYTHONNOUSERSITE": ""}
    assert values(shell, "activate; activate; deactivate; show", **env) == [env]
    (active,) = values(shell, "activate; show", **env)
    assert values(shell, "deactivate; show; deactivate; show", **active) == [env, env]
