"""What `nvidia-smi` and the tools of a machine lead to.

python tests/test_machine.py        # prints the table of cases and what each chose
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from ml_template import answers, machine

BUILDS = json.loads((Path(__file__).resolve().parent.parent / "cookiecutter.json").read_text(encoding="utf-8"))[
    "_builds"
]
CUDA_12 = "which CUDA 12.6 needs"
CUDA_13 = "which CUDA 13.0 needs"


class Case(NamedTuple):
    """A behaviour of `nvidia-smi --query-gpu=driver_version,compute_cap,memory.total,name`, and what follows."""

    name: str
    status: int | None
    output: str
    answer: str
    reason: str  # a part of it


CASES = [
    Case("no answer", None, "no answer within 3 s", "cpu", "nvidia-smi found no GPU: no answer within 3 s"),
    Case("permission denied", None, "Permission denied", "cpu", "nvidia-smi found no GPU: Permission denied"),
    Case("silent", 0, "", "cpu", "nvidia-smi found no GPU: it printed nothing"),
    Case(
        "driver not loaded", 9,
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
        "NVIDIA driver is installed and running.\n",
        "cpu", "nvidia-smi found no GPU: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
    ),
    Case("no devices", 6, "No devices were found\n", "cpu", "nvidia-smi found no GPU: No devices were found"),
    Case(
        "driver updated, not restarted", 18,
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.65\n",
        "cpu", "Driver/library version mismatch",
    ),
    Case("WSL blocks it", 255, "Failed to initialize NVML: GPU access blocked by the operating system\n", "cpu", "blocked"),
    Case("message in another language", 9, "NVIDIA-SMI: Zugriff verweigert \u2013 Gerät fehlt\n", "cpu", "Zugriff verweigert"),
    Case("Maxwell, driver 535", 0, "535.183.01, 5.2, 12288 MiB, GeForce GTX TITAN X\n", "cu126", "no code for GeForce"),
    Case("Pascal, driver 550", 0, "550.54.14, 6.1, 8192 MiB, NVIDIA GeForce GTX 1080\n", "cu126", "driver 550.54.14 is older"),
    Case("Pascal, driver 580", 0, "580.65.06, 6.1, 8192 MiB, NVIDIA GeForce GTX 1080\n", "cu126", "compute capability 6.1"),
    Case("Volta, driver 580", 0, "580.65.06, 7.0, 16384 MiB, Tesla V100-SXM2-16GB\n", "cu126", "least 7.5"),
    Case("Turing, driver 470", 0, "470.256.02, 7.5, 15360 MiB, Tesla T4\n", "cpu", f"older than 525.60.13, {CUDA_12}. Update"),
    Case("Turing, driver 525.60", 0, "525.60.13, 7.5, 15360 MiB, Tesla T4\n", "cu126", f"older than 580, {CUDA_13}"),
    Case("Turing, driver 525.53", 0, "525.53, 7.5, 15360 MiB, Tesla T4\n", "cpu", "driver 525.53 is older than 525.60.13"),
    Case("Turing, driver 580", 0, "580.65.06, 7.5, 15360 MiB, Tesla T4\n", "cu130", "Tesla T4, driver 580.65.06, 1 GPU"),
    Case("Ampere, driver 535", 0, "535.183.01, 8.0, 40960 MiB, NVIDIA A100-SXM4-40GB\n", "cu126", f"580, {CUDA_13}"),
    Case("Ampere, driver 579", 0, "579.99, 8.6, 24576 MiB, NVIDIA GeForce RTX 3090\n", "cu126", "driver 579.99 is older than 580"),
    Case("Ampere, driver 580", 0, "580, 8.6, 24576 MiB, NVIDIA GeForce RTX 3090\n", "cu130", "RTX 3090, driver 580"),
    Case("Ada, driver 595", 0, "595.10, 8.9, 24564 MiB, NVIDIA GeForce RTX 4090\n", "cu130", "RTX 4090, driver 595.10"),
    Case("Hopper, driver 550", 0, "550.54.15, 9.0, 81559 MiB, NVIDIA H100 80GB HBM3\n", "cu126", "older than 580"),
    Case("Hopper, driver 580", 0, "580.65.06, 9.0, 143771 MiB, NVIDIA H200\n", "cu130", "NVIDIA H200"),
    Case(
        "Blackwell, driver 570", 0, "570.86.10, 12.0, 32607 MiB, NVIDIA GeForce RTX 5090\n",
        "cpu", "Update the driver, or choose conda: its CUDA 12 fits this driver",
    ),
    Case("Blackwell, driver 580", 0, "580.65.06, 10.0, 183359 MiB, NVIDIA B200\n", "cu130", "NVIDIA B200, driver 580.65.06"),
    Case(
        "eight alike", 0, "580.65.06, 9.0, 81559 MiB, NVIDIA H100 80GB HBM3\n" * 8,
        "cu130", "NVIDIA H100 80GB HBM3, driver 580.65.06, 8 GPUs",
    ),
    Case(
        "Pascal and Ampere", 0,
        "580.65.06, 6.1, 8192 MiB, NVIDIA GeForce GTX 1080\n580.65.06, 8.6, 24576 MiB, NVIDIA GeForce RTX 3090\n",
        "cu126", "no code for NVIDIA GeForce GTX 1080",
    ),
    Case(
        "Pascal and Blackwell", 0,
        "580.65.06, 6.1, 8192 MiB, NVIDIA GeForce GTX 1080\n580.65.06, 12.0, 32607 MiB, NVIDIA GeForce RTX 5090\n",
        "cu130", "for NVIDIA GeForce RTX 5090; no build serves all GPUs here, this one leaves out NVIDIA GeForce GTX 1080",
    ),
    Case("MIG, memory hidden", 0, "580.65.06, 8.0, [Insufficient Permissions], NVIDIA A100-SXM4-40GB\n", "cu130", "A100"),
    Case("capability not told", 0, "535.183.01, [N/A], 24576 MiB, NVIDIA GeForce RTX 3090\n", "cu126", "older than 580"),
    Case("nothing but the driver told", 0, "580.65.06, [N/A], [N/A], [Unknown Error]\n", "cu130", "driver 580.65.06"),
    Case("WSL, Windows line ends", 0, "580.88, 8.9, 8188 MiB, NVIDIA GeForce RTX 4070 Laptop GPU\r\n", "cu130", "RTX 4070"),
    Case("decimal comma", 0, "580.65.06, 8,6, 24576 MiB, NVIDIA GeForce RTX 3090\n", "cu130", "RTX 3090"),
    Case("comma in the name", 0, "580.65.06, 8.6, 24576 MiB, NVIDIA A10, virtual\n", "cu130", "NVIDIA A10, virtual"),
    Case("no blanks", 0, "580.65.06,8.6,24576 MiB,NVIDIA GeForce RTX 3090\n", "cu130", "NVIDIA GeForce RTX 3090, driver 580.65.06"),
    Case("a number of 5,000 digits", 0, f"{'5' * 5000}, {'8' * 5000}, {'1' * 5000} MiB, NVIDIA A10\n", "cpu", "no GPU: 5555"),
    Case("much memory", 0, f"580.65.06, 8.6, {'1' * 5000} MiB, NVIDIA A10\n", "cu130", "NVIDIA A10, driver 580.65.06"),
    Case("a warning before the table", 0, "WARNING: infoROM is corrupted\n580.65.06, 8.6, 1 MiB, NVIDIA A10\n", "cu130", "A10"),
]  # fmt: skip


ARM = [  # the wheels for aarch64 have code for fewer GPUs
    Case("T4G", 0, "580.65.06, 7.5, 15360 MiB, NVIDIA T4G\n", "cpu", "no code for NVIDIA T4G (compute capability 7.5, least 8.0)"),
    Case("T4G, old driver", 0, "525.60.13, 7.5, 15360 MiB, NVIDIA T4G\n", "cpu", "Update the driver"),
    Case("A100, driver 535", 0, "535.183.01, 8.0, 40960 MiB, NVIDIA A100\n", "cu126", "older than 580"),
    Case("GH200", 0, "580.65.06, 9.0, 97871 MiB, NVIDIA GH200 480GB\n", "cu130", "NVIDIA GH200"),
    Case("DGX Spark", 0, "580.95.05, 12.1, [N/A], NVIDIA GB10\n", "cu130", "NVIDIA GB10"),
    Case("Jetson Orin, JetPack 6", 0, "540.4.0, 8.7, [N/A], Orin (nvgpu)\n", "cpu", "is for servers, and Orin (nvgpu) is a Jetson. Update"),
    Case("Jetson Orin, JetPack 7", 0, "580.00, 8.7, [N/A], Orin (nvgpu)\n", "cu130", "Orin (nvgpu), driver 580.00"),
]  # fmt: skip


def chosen(case: Case, processor: str = "x86_64") -> machine.Answer:
    found = machine.parse_nvidia_smi(case.status, case.output)
    return machine.choose_cuda(found, BUILDS, system="Linux", processor=processor)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_build_follows_from_gpus_and_driver(case: Case) -> None:
    answer, reason = chosen(case)
    assert answer == case.answer
    assert case.reason in reason
    assert reason.isascii()


@pytest.mark.parametrize("case", ARM, ids=lambda case: case.name)
def test_the_build_follows_from_the_processor_too(case: Case) -> None:
    answer, reason = chosen(case, "aarch64")
    assert answer == case.answer
    assert case.reason in reason
    assert ("Update the driver" in reason) == ("is older than" in reason and answer == "cpu")


# one node of AMD's kernel driver, as its documentation and its code have it; most lines are left out
NODE = "cpu_cores_count {cores}\nsimd_count {simd}\ngfx_target_version {version}\nvendor_id {vendor}\ndevice_id 29772\n"
NO_SMI = "no nvidia-smi on this machine"
NOT_RUN = "the template's makers have not run this build"


def amd_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, *versions: int) -> machine.Nvidia:
    """What is found where AMD's driver lists a processor and GPUs of these versions, and no nvidia-smi is here."""
    for number, version in enumerate((0, *versions)):
        node = folder / f"kfd/nodes/{number}"
        node.mkdir(parents=True)
        text = NODE.format(cores=0 if version else 32, simd=192 if version else 0, version=version, vendor=4098)
        (node / "properties").write_text(text)
    monkeypatch.setattr(machine, "AMD", folder / "kfd")
    monkeypatch.setattr(machine, "AMD_NODES", folder / "kfd/nodes")
    return machine.nvidia()


@pytest.mark.parametrize(("versions", "processor", "answer", "reason"), [
    ([110000], "x86_64", "rocm7.2", f"AMD's gfx1100; {NOT_RUN}"),
    ([90010] * 2, "x86_64", "rocm7.2", f"AMD's gfx90a; {NOT_RUN}"),
    ([90402], "x86_64", "rocm7.2", f"AMD's gfx942; {NOT_RUN}"),
    ([100306, 120001], "x86_64", "rocm7.2", f"AMD's gfx1201; {NOT_RUN}"),  # the first is a part of the processor
    ([100306], "x86_64", "cpu", f"{NO_SMI}; rocm7.2: no code for AMD's gfx1036"),
    ([110000], "aarch64", "cpu", f"{NO_SMI}; rocm7.2: it is for Linux x86_64, and this is Linux aarch64"),
])  # fmt: skip
def test_rocm_is_taken_where_it_has_code_for_a_gpu(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    versions: list[int], processor: str, answer: str, reason: str,
) -> None:  # fmt: skip
    found = amd_machine(tmp_path, monkeypatch, *versions)
    for manager in ("venv", "uv", "poetry"):
        assert machine.choose_cuda(found, BUILDS, manager, "Linux", processor) == (answer, reason)
    assert machine.choose_cuda(found, BUILDS, "conda", "Linux", processor).answer == "cpu"


def test_a_driver_of_amds_without_a_gpu_is_named(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, reason = machine.choose_cuda(amd_machine(tmp_path, monkeypatch), BUILDS, system="Linux")
    assert (answer, reason) == ("cpu", f"{NO_SMI}; AMD's driver is here ({tmp_path / 'kfd'}), and lists no GPU")


def test_nvidias_gpus_come_before_those_of_others(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(path, "nvidia-smi", "echo '580.65.06, 9.0, 81559 MiB, NVIDIA H100'")
    found = amd_machine(tmp_path, monkeypatch, 110000)
    assert machine.choose_cuda(found, BUILDS, system="Linux", processor="x86_64").answer == "cu130"
    assert machine.unfit(found, BUILDS["rocm7.2"], "x86_64", "Linux") == [
        "it is for AMD's GPUs, and here is NVIDIA H100"
    ]
    assert machine.unfit(found, BUILDS["xpu"], "AMD64", "Windows") == [
        "it is for Intel's GPUs, and here is NVIDIA H100"
    ]


def recommended(**given: str) -> dict[str, str]:
    """What becomes of answers that are `auto`, with the reasons, on the machine as it is detected now."""
    questions = json.loads((Path(answers.__file__).parent.parent / "cookiecutter.json").read_text(encoding="utf-8"))
    content = {name: value for name, value in questions.items() if name != "__prompts__"}
    content |= {name: value[0] for name, value in content.items() if isinstance(value, list)}
    content |= {"project_slug": "my-project", "package_name": "my_project", "data_remote_url": "../my-project-data"}
    content |= {"_detected": machine.detect(BUILDS), **given}
    answers.resolve(content)
    return {name: str(content[name]) for name in ("env_manager", "cuda", "__why_env_manager", "__why_cuda")}


@pytest.mark.skipif(platform.system() + platform.machine() != "Linuxx86_64", reason="ROCm's build is for that only")
def test_conda_gets_no_build_that_conda_forge_lacks_and_the_reason_names_who_has_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amd_machine(tmp_path, monkeypatch, 110000)
    fake(path, "conda", "exit 0")
    got = recommended()
    assert (got["env_manager"], got["cuda"]) == ("conda", "cpu")
    reason = "conda-forge has no build of PyTorch for AMD's gfx1100; with env_manager=venv, uv or poetry it is rocm7.2"
    assert got["__why_cuda"] == reason
    for manager in ("venv", "uv", "poetry"):
        got = recommended(env_manager=manager)
        assert (got["cuda"], got["__why_cuda"]) == ("rocm7.2", f"AMD's gfx1100; {NOT_RUN}")
    fake(path, "uv", "exit 0")
    assert recommended(env_manager="conda")["cuda"] == "cpu"


def test_auto_is_not_conda_for_a_build_that_conda_forge_lacks(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(path, "conda", "exit 0")
    chosen = "and conda-forge does not have the build of PyTorch that you chose"
    got = recommended(cuda="xpu")
    assert (got["env_manager"], got["__why_env_manager"]) == ("venv", f"neither poetry nor uv is here, {chosen}")
    fake(path, "uv", "exit 0")
    got = recommended(cuda="rocm7.2")
    assert (got["env_manager"], got["__why_env_manager"]) == ("uv", f"{path / 'uv'} is here, {chosen}")
    assert recommended(cuda="cu130")["env_manager"] == "conda"


def test_a_mac_takes_the_one_build_it_has() -> None:
    answer, reason = machine.choose_cuda(machine.Nvidia((), "", "none"), BUILDS, system="Darwin")
    assert (answer, "MPS" in reason) == ("cpu", True)


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with a home that knows no pyenv."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return folder


def test_a_driver_that_hangs_does_not_hang_us(path: Path) -> None:
    fake(path, "nvidia-smi", "sleep 60 & sleep 60")
    started = time.monotonic()
    found = machine.nvidia(limit_s=0.2)
    assert time.monotonic() - started < 30  # far from 60
    assert found == machine.Nvidia((), "", "nvidia-smi found no GPU: no answer within 0.2 s")


def test_a_driver_that_prints_without_end_is_not_read_to_its_end(path: Path) -> None:
    child = f"echo $$ > {path}/child; exec yes 580.65.06, 9.0, 81559 MiB, NVIDIA H100"
    fake(path, "nvidia-smi", f"sh -c '{child}' & wait")
    assert machine.nvidia(limit_s=60) == machine.Nvidia((), "", "nvidia-smi found no GPU: it prints without end")
    command = Path("/proc", (path / "child").read_text().strip(), "cmdline")
    for _ in range(200):
        if not command.exists() or not command.read_bytes():
            return
        time.sleep(0.05)
    raise AssertionError("what it has started goes on")


def test_a_driver_too_old_for_the_question_is_asked_another(path: Path) -> None:
    complaint = 'echo "Field \\"compute_cap\\" is not a valid field to query."; exit 2'
    fake(path, "nvidia-smi", f'case "$1" in *compute_cap*) {complaint};; *) echo "470.57, 8192 MiB, GTX 1080";; esac')
    found = machine.nvidia()
    assert found.gpus == (machine.Gpu("GTX 1080", None, 8192),)
    assert machine.choose_cuda(found, BUILDS, system="Linux").answer == "cpu"


def test_a_program_that_may_not_be_run_is_told(path: Path) -> None:
    (path / "nvidia-smi").write_text("no interpreter")
    (path / "nvidia-smi").chmod(0o755)
    assert "nvidia-smi found no GPU: Exec format error" in machine.nvidia().reason


@pytest.mark.parametrize(("tools", "answer"), [
    ([], "venv"), (["uv"], "uv"), (["uv", "micromamba"], "conda"), (["conda", "poetry", "uv"], "poetry"),
])  # fmt: skip
def test_the_environment_is_made_by_the_first_tool_that_is_here(path: Path, tools: list[str], answer: str) -> None:
    for tool in tools:
        fake(path, tool, "exit 0")
    assert machine.choose_manager().answer == answer


def test_a_stub_of_pyenv_is_no_tool(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "shims", "poetry", "echo 'pyenv: poetry: command not found'; exit 127")
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}{os.pathsep}{path}")
    assert machine.choose_manager().answer == "venv"


@pytest.mark.parametrize(("running", "pyenv", "manager", "answer", "reason"), [
    ("3.11", [], "venv", "3.11", "it runs cookiecutter now"),
    ("3.13", [], "poetry", "3.13", "it runs cookiecutter now"),
    ("3.14", ["3.10.2", "3.11.7", "3.12.1", "3.14.0"], "poetry", "3.12", "it is here; Python 3.14, which runs"),
    ("3.14", [], "uv", "3.12", "uv brings it; Python 3.14, which runs"),
    ("3.10", [], "venv", "3.12", "none of 3.11, 3.12, 3.13 is here: install one before `make setup`"),
])  # fmt: skip
def test_the_python_follows_from_what_is_here(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    running: str, pyenv: list[str], manager: str, answer: str, reason: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(path))
    for version in pyenv:
        (tmp_path / "pyenv/versions" / version).mkdir(parents=True)
    got = machine.choose_python(manager, running)
    assert got.answer == answer
    assert got.reason.startswith(reason)


def test_amds_gpus_are_among_the_facts_for_a_bug_report(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amd_machine(tmp_path, monkeypatch, 110000)
    assert ("GPU", "AMD's gfx1100", str(tmp_path / "kfd/nodes")) in list(machine.facts())


def test_the_facts_for_a_bug_report_name_their_sources(path: Path) -> None:
    fake(path, "nvidia-smi", "echo '580.65.06, 9.0, 81559 MiB, NVIDIA H100'")
    fake(path, "conda", "echo 'conda 24.1.2'")
    fake(path, "uv", "echo broken; exit 1")
    facts = {what: (value, source) for what, value, source in machine.facts()}
    assert facts["GPU"] == ("NVIDIA H100, compute capability 9.0, 81559 MiB", "nvidia-smi")
    assert facts["conda"] == ("conda 24.1.2", str(path / "conda"))
    assert facts["uv"][0] == "does not run: broken"
    assert facts["poetry"] == ("not on PATH", "None")


if __name__ == "__main__":
    for case in CASES:
        print("{:30} {:6} {}".format(case.name, *chosen(case)))
    for case in ARM:
        print("{:30} {:6} {}".format(f"aarch64: {case.name}", *chosen(case, "aarch64")))
