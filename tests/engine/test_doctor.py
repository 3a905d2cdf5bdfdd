"""Each check of `make doctor` where it passes and where it fails: on the real thing where that can be done here, else
from what NVML and PyTorch were recorded, or are documented, to answer."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runengine import manifest
from runengine.machine import (
    check_computing,
    check_devices,
    check_gpu_state,
    check_setup,
    check_system,
    checks,
    collect_env,
    collect_services,
    collect_torch,
    doctor,
    readings,
)  # fmt: skip
from runengine.machine.checks import Check, Result
from runengine.machine.collect_env import Machine, Python
from runengine.machine.doctor import examine
from runengine.machine.readings import Answer, Reading, Steps, attempt
from runengine.settings import cpu_limits, errors, torch_build

SOURCE = Path(doctor.__file__).parents[2]
A100, H100 = ("NVIDIA A100-SXM4-40GB", "8.0"), ("NVIDIA H100 80GB HBM3", "9.0")
NO_LIBRARY = "NVMLError_LibraryNotFound: NVML Shared Library Not Found"
CU126_ARCHS = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
Make = Callable[..., Machine]
Gpus = tuple[tuple[str, str], ...]


def torch_readings(gpus: Gpus, build: str = "cu126") -> dict[str, Reading]:
    """What the child reports where these GPUs are and nothing fails."""
    cuda = f"{build[2:-1]}.{build[-1]}" if build.startswith("cu") else None
    versions = {"cuda": cuda, "hip": {"rocm7.2": "7.2.53211"}.get(build), "xpu": {"xpu": "20260000"}.get(build)}
    readings = {
        "build": Reading({"version": f"2.13.0+{build}", **versions, "num_threads": 1}),
        "gpus": Reading({"gpus": gpus, "archs": CU126_ARCHS, "no_peer": [], "reason": ""}),
        "cpu fp32": Reading(1.4e-7),
    }
    for index in range(len(gpus)):
        device = f"cuda:{index}"
        readings |= {
            f"{device} fp32": Reading(2e-7),
            f"{device} tf32": Reading(3e-4),
            f"{device} bf16": Reading(1.6e-3),
        }
        readings |= {f"{device} convolution": Reading(3e-4), f"{device} pinned": Reading(True)}
    return readings


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A project that asks for this; `readings` replace what the machine would say."""

    def machine(cuda: str = "cu126", env_manager: str = "venv", **read: Any) -> Machine:
        asked = {"python": "3.11", "env_manager": env_manager, "cuda": cuda, "driver": "525.60.13"}
        lines = [f'{key} = "{value}"' for key, value in {**asked, "capability": "5.0-9.0"}.items()]
        settings = '[project]\nrequires-python = ">=3.11,<3.14"\n[tool.ml-template]\n' + "\n".join(lines)
        (tmp_path / "pyproject.toml").write_text(settings, encoding="utf-8")
        here = Machine(tmp_path)
        here.nvml = {"driver": Reading(error=NO_LIBRARY)}
        here.python = Python("3.11.7", tmp_path / ".venv", "venv", ())
        for name, reading in read.items():
            setattr(here, name, reading)
        return here

    return machine


def gpu_machine(make: Make, *gpus: tuple[str, str], driver: str = "550.54.15", **readings: Any) -> Machine:
    gpus = gpus or (A100,)
    listed = {f"GPU {index}": Reading(gpu) for index, gpu in enumerate(gpus)}
    return make(**{"nvml": {"driver": Reading(driver), **listed}, "torch": torch_readings(gpus), **readings})


def read(steps: Steps) -> dict[str, Reading]:
    """In this process, which has imported what they need."""
    return {name: attempt(step) for name, step in steps}


def assert_fails(result: Result, found: str, fix: str = "") -> None:
    assert (result.state, found in result.found, fix in result.fix) == ("fail", True, True), result
    assert result.why
    assert result.fix


def assert_ok(result: Result, found: str = "") -> None:
    assert result.state == "ok", result
    assert found in result.found


def run_doctor(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runengine", "doctor", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **env}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=SOURCE.parent)


# The environment


@pytest.mark.parametrize(("found", "manager", "state"), [
    ("3.11.7", "uv", "ok"),
    ("3.12.1", "venv", "ok"),  # setup took what was there
    ("3.12.1", "uv", "fail"),  # uv would have fetched the right one
    ("3.10.12", "venv", "fail"),
    ("3.14.0", "poetry", "fail"),
])  # fmt: skip
def test_python_is_one_that_will_do(make: Make, found: str, manager: str, state: str) -> None:
    here = make(env_manager=manager, python=Python(found, Path(), manager, ()))
    assert check_setup.python(here).state == state
    assert f"Python {found}" in check_setup.python(here).found


def test_the_environment_is_the_one_of_this_project(make: Make, tmp_path: Path) -> None:
    maker = collect_env.python(tmp_path).made_by
    manager = {"virtualenv": "poetry"}.get(maker, maker)
    here = make(env_manager=manager, python=collect_env.python(tmp_path))
    place = tmp_path / (".conda" if manager == "conda" else ".venv")
    assert_fails(check_setup.environment(here), f"Python runs in {sys.prefix}, not in this project's", "make setup")
    place.mkdir()
    assert_fails(check_setup.environment(here), "not in this project's", ". scripts/activate.sh")
    place.rmdir()
    place.symlink_to(sys.prefix)
    for lock in ("poetry.lock", "uv.lock"):
        (tmp_path / lock).touch()
    assert_ok(check_setup.environment(here), f"made by {manager}")


@pytest.mark.parametrize(("manager", "maker"), [("poetry", "virtualenv"), ("uv", "uv")])
def test_manager_and_lock_file_are_those_of_the_project(make: Make, tmp_path: Path, manager: str, maker: str) -> None:
    here = make(env_manager=manager, python=Python("3.11.7", tmp_path / ".venv", maker, ()))
    assert_fails(check_setup.environment(here), f"{manager}.lock is missing", "make setup")
    (tmp_path / f"{manager}.lock").touch()
    assert_ok(check_setup.environment(here), f"from {manager}.lock")
    here.python = here.python._replace(made_by="venv")
    assert_fails(
        check_setup.environment(here), f"made by venv, but the project asks for {manager}", "make clean-env setup"
    )
    here.python = here.python._replace(made_by="wheelhouse")  # whatever the manager: its packages were those
    assert_ok(check_setup.environment(here), "made from a wheelhouse")


def test_packages_from_elsewhere_are_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'src'}{os.pathsep}{tmp_path / 'nowhere'}")
    assert_ok(check_setup.packages(make(python=collect_env.python(tmp_path))))
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    here = make(python=collect_env.python(tmp_path))
    assert_fails(check_setup.packages(here), f"PYTHONPATH={elsewhere}", "unset PYTHONPATH")
    # an environment that lets the system's packages in
    monkeypatch.delenv("PYTHONPATH")
    venv = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(tmp_path / ".venv")]
    subprocess.run(venv, check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\nfrom pathlib import Path\n"
        "from runengine.machine import collect_env\n"
        f"print(collect_env.python(Path({str(tmp_path)!r})))"
    )
    program = tmp_path / (".venv/Scripts/python.exe" if os.name == "nt" else ".venv/bin/python")
    environment = {**os.environ, "PYTHONUSERBASE": str(tmp_path / "nobody")}
    done = subprocess.run([str(program), "-c", code], capture_output=True, text=True, env=environment)
    assert "include-system-site-packages" in done.stdout, done.stderr
    here.python = Python(
        "3.11.7", tmp_path / ".venv", "venv", ("include-system-site-packages = true in .venv/pyvenv.cfg",)
    )
    assert_fails(check_setup.packages(here), "include-system-site-packages", "make clean-env setup")


def test_an_edited_engine_is_named_and_a_missing_file_fails(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "src/runengine"
    shutil.copytree(SOURCE / "runengine", engine, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    manifest.write(engine)
    assert_ok(check_setup.engine(make()), ", unchanged")
    (engine / "rerun.py").write_text("# ours\n", encoding="utf-8")
    assert_ok(check_setup.engine(make()), ", edited: rerun.py")
    (engine / "model_card.py").unlink()
    missing = check_setup.engine(make())
    assert_fails(missing, "model_card.py (missing)", "\ngit checkout HEAD -- src/runengine/model_card.py")
    (engine / "MANIFEST").unlink()
    assert_fails(check_setup.engine(make()), "MANIFEST is missing or damaged", "src/runengine/MANIFEST")


def test_a_system_cuda_before_pytorchs_own_is_named(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compat, cuda = tmp_path / "compat", tmp_path / "cuda-11.8/lib64"
    compat.mkdir()
    (compat / "libcuda.so.1").touch()  # a newer driver's library: wanted
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{compat}:{cuda}")
    assert_ok(check_setup.libraries(make()))
    cuda.mkdir(parents=True)
    (cuda / "libcudart.so.11.0").touch()
    assert_fails(check_setup.libraries(make()), f"{cuda}/libcudart.so.11.0", "unset LD_LIBRARY_PATH")
    assert check_setup.libraries(make(cuda="cpu")).state == "skip"


# PyTorch, driver, GPUs


def test_the_build_of_pytorch_is_the_one_asked_for(make: Make) -> None:
    assert_ok(check_devices.build(make(torch=torch_readings(()))), "PyTorch 2.13.0+cu126, build cu126, as asked for")
    other = check_devices.build(make(cuda="cu130", torch=torch_readings(())))
    assert_fails(other, "PyTorch 2.13.0+cu126 is the build cu126, but pyproject.toml asks for cu130", "make clean-env")
    conda = make(torch=torch_readings((), "cu129"), python=Python("3.11.7", Path(), "conda", ()))
    assert_ok(check_devices.build(conda))


@pytest.mark.parametrize(("asked", "fix"), [("cpu", "make switch CUDA=auto"), ("cu126", "make clean-env setup")])
def test_a_cpu_wheel_on_a_gpu_machine_is_called_so(make: Make, asked: str, fix: str) -> None:
    here = gpu_machine(make, cuda=asked, torch=torch_readings((), "cpu"))
    assert_fails(
        check_devices.build(here), f"CPU wheel on a GPU machine: PyTorch 2.13.0+cpu, but {A100[0]} is here", fix
    )
    here.quick = True  # a setup is not refused for what was chosen
    assert check_devices.build(here).state == ("ok" if asked == "cpu" else "fail")


FAKE_NVML = """
import importlib.util, sys, time
real = importlib.util.spec_from_file_location("real", {real!r})
module = sys.modules["real"] = importlib.util.module_from_spec(real)
real.loader.exec_module(module)
globals().update({{name: value for name, value in vars(module).items() if not name.startswith("__")}})
def error(code): raise NVMLError(code)
def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return "550.54.15"
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(gpu): return "NVIDIA A100-SXM4-40GB"
def nvmlDeviceGetCudaComputeCapability(gpu): return 8, 0
def nvmlDeviceGetMemoryInfo(gpu): return type("Memory", (), {{"total": 40 << 30, "free": 30 << 30}})
def nvmlDeviceGetComputeRunningProcesses(gpu): return [type("Process", (), {{"pid": 2**22, "usedGpuMemory": None}})]
def nvmlDeviceGetCurrentClocksThrottleReasons(gpu): return 0x41
"""


@pytest.fixture
def fake_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Reading]]:
    """What the child process reads where these functions of pynvml do this; its errors are the real ones."""
    import pynvml

    def use(**functions: str) -> dict[str, Reading]:
        lines = [f"def {name}(*arguments): {body}" for name, body in functions.items()]
        (tmp_path / "fake").mkdir(exist_ok=True)
        text = FAKE_NVML.format(real=str(pynvml.__file__)) + "\n".join(lines)
        (tmp_path / "fake/pynvml.py").write_text(text, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
        return collect_env.child("nvml")

    return use


@pytest.mark.parametrize(("answers", "state", "found"), [
    ({"nvmlSystemGetDriverVersion": "return '470.1'"},
     "fail", "driver too old for this build: have 470.1, need 525.60.13"),
    ({"nvmlSystemGetDriverVersion": "return '525.60.13'"}, "ok", "525.60.13"),
    # as from a driver that does not know the function
    ({"nvmlSystemGetDriverVersion": "return '470.223.02'",
      "nvmlDeviceGetCudaComputeCapability": "error(NVML_ERROR_FUNCTION_NOT_FOUND)"}, "fail", "have 470.223.02"),
    ({"nvmlInit": "error(NVML_ERROR_DRIVER_NOT_LOADED)"}, "fail", "NVMLError_DriverNotLoaded: Driver Not Loaded"),
    ({"nvmlInit": "error(NVML_ERROR_LIB_RM_VERSION_MISMATCH)", "nvmlDeviceGetCount": "error(NVML_ERROR_UNINITIALIZED)"},
     "fail", "version mismatch"),
    ({"nvmlDeviceGetHandleByIndex": "error(NVML_ERROR_GPU_IS_LOST)"}, "fail", "GPU 0: NVMLError_GpuIsLost"),
    ({"nvmlDeviceGetCount": "return 0"}, "skip", "driver 550.54.15 lists none. Fine on a login node"),
    ({"nvmlInit": "error(NVML_ERROR_LIBRARY_NOT_FOUND)"},
     "skip", "NVIDIA's driver is not installed. Fine on a login node"),
    ({"nvmlInit": "time.sleep(60)"}, "unknown", "driver: no answer within 3 s"),
    ({"nvmlInit": "import os; os.kill(os.getpid(), 11)"}, "unknown", "driver: the process was ended by SIGSEGV"),
])  # fmt: skip
def test_the_driver_is_new_enough(
    make: Make, answers: dict[str, str], state: str, found: str, fake_nvml: Callable[..., dict[str, Reading]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(collect_env.PROBES, "nvml", collect_env.PROBES["nvml"]._replace(limit_s=3))
    here = make(torch=torch_readings(()), nvml=fake_nvml(**answers))
    result = examine(Check("driver", check_devices.driver), here)
    assert (result.state, found in result.found) == (state, True), result
    assert check_devices.driver(make(cuda="cpu")).state == "skip"
    # whatever the driver answers, what does not depend on it is judged
    assert_ok(check_devices.build(here))


def test_what_nvml_answers_is_read(make: Make, fake_nvml: Callable[..., dict[str, Reading]]) -> None:
    here = gpu_machine(make, nvml=fake_nvml())
    assert here.gpus == [A100]
    assert_ok(check_devices.gpu_memory(here), "GPU 0: 30.0 GiB of 40.0 GiB free, held by process 4194304")
    assert_fails(check_devices.gpu_clocks(here), "GPU 0 is slowed down: heat (hardware)")
    # a GPU that shares the computer's memory, and one that does not report its clocks
    here.nvml = fake_nvml(
        nvmlDeviceGetMemoryInfo="error(NVML_ERROR_NOT_SUPPORTED)",
        nvmlDeviceGetCurrentClocksThrottleReasons="error(NVML_ERROR_NOT_SUPPORTED)",
    )
    assert_ok(check_devices.driver(here))
    assert examine(Check("GPU memory", check_devices.gpu_memory), here).state == "unknown"
    assert check_devices.gpu_clocks(here).state == "skip"


@pytest.mark.skipif(sys.platform != "linux", reason="WSL is a Linux")
def test_the_library_of_the_driver_is_found_where_wsl_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library under its name: it is found, and then lacks NVML's functions."""
    monkeypatch.setattr(collect_env, "WSL_DRIVER", str(tmp_path / "wsl"))
    before = collect_env.child("nvml")["driver"].error
    if not before.startswith("NVMLError_LibraryNotFound"):
        pytest.skip("NVIDIA's driver is installed here")
    import _ctypes

    (tmp_path / "wsl").mkdir()
    shutil.copy(_ctypes.__file__, tmp_path / "wsl/libnvidia-ml.so.1")
    assert collect_env.child("nvml")["driver"].error.startswith("NVMLError_FunctionNotFound")


PIP = "python -m pip install --force-reinstall --no-deps 'torchvision==0.28.*' --index-url https://x.example.com/whl"


@pytest.mark.parametrize(("torch", "found", "manager", "fix"), [
    ("2.13.0+cpu", "0.28.0+cpu", "venv", ""),
    ("2.13.0", "0.28.1", "venv", ""),  # both of the registry, or of conda-forge
    ("3.0.0", "1.0.0", "venv", ""),  # nobody knows yet
    ("2.13.0+cpu", None, "venv", ""),
    ("2.13.0+cpu", "0.28.0", "venv", PIP),
    ("2.13.0+cu126", "0.28.0", "poetry", PIP),
    ("2.13.0+cpu", "0.29.2+cpu", "venv", PIP),
    ("2.13.0+cu126", "0.28.0+cu130", "uv", PIP.replace("python -m pip install --force-", "uv pip install --")),
    ("2.13.0", "0.29.2", "conda", "conda install --yes torchvision=0.28"),
])  # fmt: skip
def test_a_torchvision_must_be_made_for_its_pytorch(
    torch: str, found: str | None, manager: str, fix: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if (known := {"torch": torch, "torchvision": found}[package]) is None:
            raise PackageNotFoundError
        return known

    monkeypatch.setattr(torch_build, "version", version)
    machine = make(env_manager=manager)
    with (machine.root / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write('\ntorch_index = "https://x.example.com/whl"\n')
    result = check_setup.packages(machine)
    assert (result.state, result.fix) == (("fail", fix) if fix else ("ok", ""))
    if fix:
        assert result.found == f"torchvision {found} was not made for PyTorch {torch}"


def test_an_old_driver_with_cudas_compat_libraries_will_do(make: Make) -> None:
    assert_ok(check_devices.driver(gpu_machine(make, driver="470.1")), "compat")


@pytest.mark.parametrize(("capability", "archs", "has"), [
    ("8.0", CU126_ARCHS, True),
    ("8.9", CU126_ARCHS, True),  # runs the code of 8.6
    ("12.0", CU126_ARCHS, False),
    ("3.7", CU126_ARCHS, False),
    ("12.0", ["sm_90", "compute_90"], True),  # PTX, translated by the driver
    ("9.0", ["sm_90a"], True),
    ("10.3", ["sm_100a"], False),
    ("10.3", ["sm_100f"], True),
    ("8.0", [], True),
    ("12.0", [], False),  # 5.0-9.0, of pyproject.toml
])  # fmt: skip
def test_the_wheel_has_code_for_the_gpu(make: Make, capability: str, archs: list[str], has: bool) -> None:
    gpu = ("NVIDIA GPU", capability)
    here = gpu_machine(make, gpu)
    here.torch["gpus"] = Reading({"gpus": [gpu], "archs": archs, "no_peer": [], "reason": ""})
    result = check_devices.gpus(here)
    if has:
        assert_ok(result, capability)
    else:
        assert_fails(result, f"wheel has no code for this GPU: NVIDIA GPU, compute capability {capability}")


def test_gpus_that_pytorch_does_not_see_are_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here = gpu_machine(make, torch=torch_readings(()))
    here.torch["gpus"] = Reading({"gpus": [], "archs": [], "no_peer": [], "reason": "No CUDA GPUs are available"})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert_fails(check_devices.gpus(here), "can use none of the 1 GPUs: No CUDA GPUs are available")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert_fails(check_devices.gpus(here), "can use none", "unset CUDA_VISIBLE_DEVICES")


RX_7900, MI250 = ("AMD Radeon RX 7900 XTX", "gfx1100"), ("AMD Instinct MI250X", "gfx90a")
ARC = ("Intel(R) Arc(TM) B580 Graphics", "")
ROCM_ARCHS = ["gfx90a", "gfx942", "gfx1030", "gfx1100"]


def other_machine(make: Make, cuda: str, *gpus: tuple[str, str]) -> Machine:
    """A project for AMD's or Intel's GPUs, where PyTorch sees these; NVIDIA's driver is not here."""
    readings = torch_readings(gpus, cuda)
    archs = ROCM_ARCHS if cuda == "rocm7.2" else []
    readings["gpus"] = Reading({"gpus": gpus, "archs": archs, "no_peer": [], "reason": ""})
    return make(cuda=cuda, torch=readings)


@pytest.mark.parametrize(("cuda", "maker", "gpu"), [("rocm7.2", "AMD", RX_7900), ("xpu", "Intel", ARC)])
def test_a_build_for_other_gpus_is_not_judged_by_nvidias_driver(
    make: Make, cuda: str, maker: str, gpu: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (tmp_path / "libcudart.so.11.0").touch()
    here = other_machine(make, cuda, gpu)
    assert_ok(check_devices.build(here), f"PyTorch 2.13.0+{cuda}, build {cuda}, as asked for")
    assert check_devices.driver(here) == Result(
        "skip", f"this build is for {maker}'s GPUs and needs no driver of NVIDIA's"
    )
    assert check_setup.libraries(here) == Result("skip", f"a build for {maker}'s GPUs loads no CUDA")
    assert check_devices.gpu_memory(here) == Result(
        "skip", f"only NVIDIA's driver is asked, and this build is for {maker}'s GPUs"
    )
    assert_ok(check_devices.gpus(here), gpu[0])
    wrong = check_devices.build(make(cuda=cuda, torch=torch_readings((), "cpu")))
    assert_fails(wrong, f"is the build cpu, but pyproject.toml asks for {cuda}", "make clean-env setup")
    here = other_machine(make, cuda)
    assert_fails(check_devices.gpus(here), f"PyTorch sees none of {maker}'s GPUs", "make switch CUDA=auto")
    here.quick = True  # a setup on a login node, or of an image
    assert check_devices.gpus(here).state == "skip"


def test_amds_gpus_are_compared_with_the_code_of_the_wheel(make: Make) -> None:
    assert check_devices.gpus(other_machine(make, "rocm7.2", RX_7900, MI250)).found == (
        "AMD Radeon RX 7900 XTX, gfx1100; AMD Instinct MI250X, gfx90a"
    )
    part_of_processor = ("AMD Radeon Graphics", "gfx1036")
    assert_fails(
        check_devices.gpus(other_machine(make, "rocm7.2", RX_7900, part_of_processor)),
        "wheel has no code for this GPU: AMD Radeon Graphics, gfx1036; it has gfx90a gfx942 gfx1030 gfx1100",
    )


def test_nobody_is_led_to_believe_that_lightning_trains_on_intels_gpus(make: Make) -> None:
    here = other_machine(make, "xpu", ARC, ARC)
    assert check_devices.gpus(here).found == (
        f"{ARC[0]}; {ARC[0]}. Lightning has no accelerator for them: a training uses the CPU"
    )
    assert check_computing.together(here) == Result("skip", "no training uses Intel's GPUs")


@pytest.mark.parametrize(("versions", "device", "gpus", "kinds"), [
    ({"cuda": None, "hip": "7.2.53211"}, "cuda", [["AMD GPU", "gfx90a"]], ["fp32", "bf16", "fp16"]),
    ({"cuda": None, "xpu": "20260000"}, "xpu", [["Intel GPU", ""]], ["fp32", "bf16", "fp16"]),
])  # fmt: skip
def test_what_other_builds_of_pytorch_say_is_read(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, Any], device: str, gpus: list[Any], kinds: list[str]
) -> None:
    """Where PyTorch's own functions answer as they are documented to for one such GPU."""
    import torch

    for name, version in versions.items():
        monkeypatch.setattr(torch.version, name, version)
    about = SimpleNamespace(gcnArchName="gfx90a:sramecc+:xnack-")
    answers = {
        "is_available": True, "device_count": 1, "get_device_name": gpus[0][0], "get_device_properties": about,
        "get_arch_list": ["gfx90a"],
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(getattr(torch, device), name, lambda *_, answer=answer: answer)
    found = {name: Reading(step()) for name, step in collect_torch.torch_steps() if name in ("build", "gpus")}
    assert {name: found["build"].value[name] for name in versions} == versions
    assert found["gpus"].value["gpus"] == gpus
    names = [name for name, _ in collect_torch.torch_steps()]
    assert {f"{device}:0 {kind}" for kind in kinds} < set(names)


def test_products_are_compared_with_float64(make: Make) -> None:
    """Real ones on the CPU; constructed errors just where rounding no longer explains them."""
    here = make(torch=read(collect_torch.torch_steps()))
    assert_ok(check_computing.arithmetic(here), "cpu fp32")
    assert_ok(check_computing.convolution(here), "cpu convolution")
    for kind, error in {"fp32": 2e-6, "tf32": 2e-2, "bf16": 0.2, "fp8": 0.2, "fp16": float("nan")}.items():
        bad = gpu_machine(make, torch=torch_readings((A100,)) | {f"cuda:0 {kind}": Reading(error)})
        assert_fails(check_computing.arithmetic(bad), f"cuda:0 {kind} is wrong: relative error {error:.0e}")
    bad = gpu_machine(make, torch=torch_readings((A100,)) | {"cuda:0 convolution": Reading(0.05)})
    assert_fails(check_computing.convolution(bad), "cuda:0 convolution is wrong")


def test_a_product_that_fails_says_why(make: Make) -> None:
    no_code = "AcceleratorError: CUDA error: no kernel image is available for execution on the device"
    cudnn = "RuntimeError: cuDNN error: CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH"
    for name, said, check, found in (
        ("cuda:0 fp32", no_code, check_computing.arithmetic, "wheel has no code for this GPU (cuda:0)"),
        ("cuda:0 convolution", cudnn, check_computing.convolution, cudnn),
    ):
        here = gpu_machine(make, torch=torch_readings((A100,)) | {name: Reading(None, said, True)})
        assert_fails(check(here), found)
    unsure = Reading(None, "TypeError: _scaled_mm() got an unexpected keyword argument", False)
    here = gpu_machine(make, torch=torch_readings((A100,)) | {"cuda:0 fp8": unsure})
    assert examine(Check("arithmetic", check_computing.arithmetic), here) == Result(
        "unknown", f"cuda:0 fp8: {unsure.error}"
    )


@pytest.mark.parametrize(("code", "found"), [
    ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12: cannot open shared object"),
    ("import os; os.kill(os.getpid(), 4)", "the process was ended by SIGILL"),
    ("import os; os._exit(3)", "it ended without a message"),
])  # fmt: skip
def test_a_pytorch_that_cannot_be_imported_ends_nothing(code: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "broken/torch").mkdir(parents=True)
    (tmp_path / "broken/torch/__init__.py").write_text(code, encoding="utf-8")
    done = run_doctor("--quick", "--json", PYTHONPATH=f"{SOURCE}{os.pathsep}{tmp_path / 'broken'}")
    results = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert results["PyTorch"]["state"] == "fail"
    assert found in results["PyTorch"]["found"]
    assert results["arithmetic"]["state"] == "unknown"
    assert f"PYTHONPATH={tmp_path / 'broken'}" in results["packages"]["found"]


def test_processes_over_gloo_add_as_they_do_over_nccl(make: Make) -> None:
    here = gpu_machine(make, A100, A100)
    here.collective = collect_env.child("collective", "cpu", "2")
    assert_ok(check_computing.together(here), "NCCL adds over 2 GPUs")
    here.torch["gpus"].value["no_peer"] = [[0, 1]]
    assert_ok(check_computing.together(here), "without a direct path between [[0, 1]]")
    here.collective = {"collective": Reading(None, "no answer within 60 s")}
    assert_fails(check_computing.together(here), "NCCL over 2 GPUs: no answer within 60 s", "NCCL_P2P_DISABLE=1")
    here.collective = {"collective": Reading(None, "WrongResult: the sum is 2.0, not 3.0")}
    assert_fails(check_computing.together(here), "the sum is 2.0, not 3.0")
    assert check_computing.together(gpu_machine(make)).state == "skip"


def test_pinned_memory_reaches_the_gpu(make: Make) -> None:
    assert_ok(check_computing.pinned(gpu_machine(make)))
    failed = Reading(None, "RuntimeError: CUDA error: OS call failed or operation not supported on this OS", True)
    here = gpu_machine(make, torch=torch_readings((A100,)) | {"cuda:0 pinned": failed})
    assert_fails(check_computing.pinned(here), "OS call failed", "ulimit -l")
    much = Reading(None, "RuntimeError: CUDA error: out of memory", True)
    here = gpu_machine(make, torch=torch_readings((A100,)) | {"cuda:0 pinned, 1.0 GiB": much})
    assert_fails(check_computing.pinned(here), "cuda:0 pinned, 1.0 GiB: RuntimeError: CUDA error: out of", ".wslconfig")
    assert check_computing.pinned(make(torch=torch_readings(()))).state == "skip"


def nvml(free: int, reasons: int | None = 1) -> dict[str, Reading]:
    holders = [["python", 4711, 30 * 2**30], ["process", 4712, None]]
    return {
        "driver": Reading("550.54.15"), "GPU 0": Reading(A100),
        "GPU 0 memory": Reading((40 * 2**30, free, holders)), "GPU 0 clocks": Reading(reasons),
    }  # fmt: skip


def test_who_holds_the_gpus_memory_is_named(make: Make) -> None:
    here = gpu_machine(make, nvml=nvml(30 * 2**30))
    assert_ok(
        check_devices.gpu_memory(here), "GPU 0: 30.0 GiB of 40.0 GiB free, held by python 4711 30.0 GiB, process 4712"
    )
    here.nvml = nvml(2**30)
    assert_fails(check_devices.gpu_memory(here), "1.0 GiB of 40.0 GiB free, held by python 4711", "kill 4711 4712")
    here.nvml |= {"GPU 0 memory": Reading(error="NVMLError_Unknown: Unknown Error")}
    assert examine(Check("GPU memory", check_devices.gpu_memory), here).state == "unknown"


@pytest.mark.parametrize(("reasons", "state"), [
    (0, "ok"), (0x1, "ok"), (0x2 | 0x4 | 0x10 | 0x100, "ok"), (None, "skip"),
    (0x8, "fail"), (0x20, "fail"), (0x40 | 0x1, "fail"), (0x80, "fail"),
])  # fmt: skip
def test_clocks_that_are_held_back_fail_idle_ones_do_not(make: Make, reasons: int | None, state: str) -> None:
    assert check_devices.gpu_clocks(gpu_machine(make, nvml=nvml(2**30, reasons))).state == state


def test_without_a_gpu_nvml_is_skipped(make: Make) -> None:
    assert check_devices.gpu_memory(make()).state == check_devices.gpu_clocks(make()).state == "skip"


def test_torch_compile_needs_a_compiler(make: Make) -> None:
    """What it said here without one; to try it takes ten seconds, with one half a minute."""
    said = "No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')"
    here = make(compile={"compile": Reading(None, f"InductorError: InvalidCxxCompiler: {said}", True)})
    assert_fails(check_computing.compiling(here), "torch.compile finds no C++ compiler", "g++")
    here.compile = {"compile": Reading(12.3)}
    assert_ok(check_computing.compiling(here), "in 12 s")
    here.compile = {"compile": Reading(None, "AssertionError: Tensor-likes are not close!", False)}
    assert_fails(check_computing.compiling(here), "not close")
    here.compile = {"compile": Reading(error="no answer within 180 s")}
    assert examine(Check("torch.compile", check_computing.compiling), here).state == "unknown"


# The machine around it

BROKEN_PLACE = """
import json, os, sys
from pathlib import Path
from runengine.machine import check_setup, check_system, collect_env
from runengine.machine.readings import Reading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
machine = collect_env.Machine(Path())
machine.torch = {"build": Reading({"num_threads": 4})}
of_system = (check_system.disk, check_system.shared_memory, check_system.descriptors, check_system.cores)
checks = (*of_system, check_setup.mlflow)
print(json.dumps([check(machine) for check in checks]))
"""


def test_a_full_disk_a_tiny_dev_shm_few_descriptors_and_one_core(workplace: Path) -> None:
    """All of them real, in one process with mounts, limits and cores of its own."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        allowed = (
            subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
        )
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("this system lets nobody mount (unshare --user --mount)")
    (workplace / "runs").mkdir()
    (workplace / "sealed").mkdir()
    script = (
        "mount -t tmpfs -o size=4m tmpfs runs && mount -t tmpfs -o size=64m tmpfs /dev/shm && "
        "cp mlflow.db sealed && mount --bind sealed sealed && mount -o remount,ro,bind sealed && "
        'ulimit -S -n 256 && exec "$@"'
    )
    command = [*unshare, "sh", "-c", script, "sh", sys.executable, "-c", BROKEN_PLACE]
    sealed = f"sqlite:///{workplace}/sealed/mlflow.db"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "MLFLOW_TRACKING_URI": sealed}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    disk, shared, files, one_core, store = (Result(*result) for result in json.loads(done.stdout))
    assert_fails(disk, "runs: OSError: [Errno 28] No space left on device", "df -h")
    assert_fails(shared, "64 MiB free in /dev/shm, 588 MiB wanted", "--shm-size=1g")
    assert_fails(files, "only 256 open files at a time, 1024 wanted", "ulimit -n 1024")
    found = f"1 of {os.cpu_count()} cores may be used (set by the CPU affinity of this process); PyTorch takes 4"
    assert_fails(one_core, found, "export OMP_NUM_THREADS=1")
    assert_fails(store, "attempt to write a readonly database")


def test_in_wsl_a_project_on_windows_disk_fails(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    here = make()
    assert_ok(check_system.system(here), platform.machine())
    assert "WSL" not in check_system.system(here).found
    monkeypatch.setattr(platform, "release", lambda: "6.6.87.2-microsoft-standard-WSL2")
    disks = {"/": "ext4", "/mnt/c": "9p"}

    def mounted(all: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in disks.items()]

    monkeypatch.setattr(psutil, "disk_partitions", mounted)
    assert_ok(check_system.system(here), ", in WSL")
    disks[str(here.root.parent)] = "9p"
    found = f"in WSL: the project is on Windows' disk, in {here.root}"
    assert_fails(check_system.system(here), found, f"mv {here.root} ~/")


def test_a_place_with_enough_room_passes(make: Make, workplace: Path) -> None:
    here = make(torch=torch_readings(()))
    assert_ok(check_system.disk(here), "8 MiB written in")
    assert not [file for file in workplace.iterdir() if file.name.startswith(".doctor")]
    assert_ok(check_system.cores(here), "PyTorch takes 1")
    for name in ("shared_memory", "descriptors", "memory"):
        limits = {
            "SHARED_BYTES": 2**20,
            "LEAST_DESCRIPTORS": 16,
            "LEAST_MEMORY_BYTES": 2**20,
        }  # whatever runs the tests
        with pytest.MonkeyPatch.context() as patch:
            for limit, value in limits.items():
                patch.setattr(check_system, limit, value)
            assert_ok(getattr(check_system, name)(here))


@pytest.mark.parametrize(("change", "found"), [
    ({"free": 2**20}, "1 MiB free"),
    ({"write_s": 9.0}, "written in 9.00 s"),
    ({"same": False}, "free"),
])  # fmt: skip
def test_a_slow_small_or_lying_disk_fails(make: Make, change: dict[str, Any], found: str) -> None:
    disk = {"folder": "/x", "free": 2**40, "device": 1, "write_s": 0.1, "read_s": 0.1, "same": True}
    assert_ok(check_system.disk(make(disk={"data": Reading(disk)})))
    assert_fails(check_system.disk(make(disk={"data": Reading(disk | change)})), found)
    hangs = {"data": Reading(error="no answer within 20 s")}
    assert_fails(check_system.disk(make(disk=hangs)), "data: no answer within 20 s")


@pytest.mark.parametrize(("files", "line", "quota", "left"), [
    # version 2, in a container: its own path is the root, the limit is in a folder above
    ({"cpu.max": "150000 100000", "memory.max": "1000", "memory.current": "900"}, "0::/", 1.5, (1000, 100)),
    ({"a/cpu.max": "max 100000", "cpu.max": "400000 100000", "a/memory.max": "max", "a/memory.current": "5"},
     "0::/a", 4.0, None),
    # version 1, with the host's path, which is not mounted
    ({"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
     "4:cpu,cpuacct:/docker/abc", 2.0, None),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", None, None),
    ({"memory/j/memory.limit_in_bytes": "1000", "memory/j/memory.usage_in_bytes": "400",
      "memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"},
     "9:memory:/j", None, (1000, 600)),
])  # fmt: skip
def test_limits_of_cgroups_are_found(
    files: dict[str, str], line: str, quota: float | None, left: tuple[int, int] | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n", encoding="utf-8")
    (tmp_path / "process").write_text(line + "\n", encoding="utf-8")
    assert cpu_limits.cpu_quota(tmp_path / "process", tmp_path / "groups") == quota
    assert cpu_limits.memory_left(tmp_path / "process", tmp_path / "groups") == left
    assert cpu_limits.cpu_quota(tmp_path / "not Linux", tmp_path) is None


def test_the_least_limit_of_cores_counts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(cpu_limits, "cpu_quota", lambda: 2.5)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert cpu_limits.allowed_cores() == (2, "the CPU quota of its cgroup")
    monkeypatch.setattr(cpu_limits, "cpu_quota", lambda: None)
    assert cpu_limits.allowed_cores() == (16, "the CPU affinity of this process")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert cpu_limits.allowed_cores() == (4, "SLURM_CPUS_PER_TASK")
    here = make(torch=torch_readings(()))
    here.torch["build"].value["num_threads"] = 8
    assert_fails(
        check_system.cores(here), "4 of 64 cores may be used (set by SLURM_CPUS_PER_TASK)", "OMP_NUM_THREADS=4"
    )


def test_too_little_memory_in_the_cgroup_fails(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_system, "memory_left", lambda: (4 * 2**30, 2**30))
    assert_fails(check_system.memory(make()), "1.0 GiB of 4.0 GiB free (the cgroup of this process)", "--mem=16G")


# MLflow, DVC, git, Hydra, TensorFlow


def with_mlflow(make: Make) -> Machine:
    """What its steps read here."""
    return make(mlflow=read(collect_services.mlflow_steps()))


def test_mlflows_database_is_read_without_changing_it(make: Make, workplace: Path) -> None:
    import sqlite3
    from contextlib import closing

    file = workplace / "mlflow.db"
    before = file.read_bytes()
    assert_ok(check_setup.mlflow(with_mlflow(make)), "can be written")
    assert file.read_bytes() == before
    for revision, found in {"0123456789ab": "of a newer MLflow", "451aebb31d03": "of an older MLflow"}.items():
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = ?", [revision])
        assert_fails(check_setup.mlflow(with_mlflow(make)), f"{found} ({revision}, wanted")
    file.write_bytes(b"no database" * 1000)
    assert_fails(check_setup.mlflow(with_mlflow(make)), "file is not a database", "make sync")
    file.unlink()
    assert_ok(check_setup.mlflow(with_mlflow(make)), "does not exist yet")


def test_an_mlflow_server_answers_or_not(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")  # pragma: allowlist secret
    result = check_setup.mlflow(with_mlflow(make))
    assert_fails(result, "MLflow at http://127.0.0.1:9 did not take it: nobody answers there", "MLFLOW_TRACKING_URI")
    assert "secret" not in str(result)
    answer = {"uri": "http://x", "trouble": "", "server": "3.17.2", "client": "3.17.2"}
    readings = {"address": Reading("http://x"), "server": Reading(answer)}
    assert_ok(check_setup.mlflow(make(mlflow=readings)), "http://x answers, version 3.17.2 (here 3.17.2)")
    assert check_setup.mlflow(make(mlflow={"address": Reading(None)})).state == "skip"


@pytest.mark.parametrize(("url", "state", "found"), [
    ("../../data", "ok", "which the first `make push` makes"),
    ("s3://CHANGE-ME/x", "fail", "the address of the remote was never set: s3://CHANGE-ME/x"),
    ("http://127.0.0.1:9/x", "fail", "the remote does not answer: ClientConnectorError"),
    ("", "skip", "no remote is set"),
])  # fmt: skip
def test_dvcs_remote_answers_or_not(make: Make, tmp_path: Path, url: str, state: str, found: str) -> None:
    assert check_setup.dvc(make()).state == "skip"
    (tmp_path / ".dvc").mkdir()
    text = f"[core]\n    remote = data\n['remote \"data\"']\n    url = {url}\n" if url else ""
    (tmp_path / ".dvc/config").write_text(text, encoding="utf-8")
    remote = attempt(partial(collect_services.dvc_remote, str(tmp_path)))
    result = check_setup.dvc(make(dvc={"dvc": remote}))
    assert (result.state, found in result.found) == (state, True), result


def test_git_knows_who_commits(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    for name in ("NAME", "EMAIL"):
        monkeypatch.delenv(f"GIT_AUTHOR_{name}", raising=False)
    assert check_setup.git(make()).state == "skip"
    subprocess.run([shutil.which("git") or "git", "init", "-q", str(tmp_path)], check=True)
    assert_fails(
        check_setup.git(make()), "git does not know who you are", 'git config --global user.email "you@example.com"'
    )
    (tmp_path / "gitconfig").write_text("[user]\nname = A\nemail = a@b.c\n", encoding="utf-8")
    assert_ok(check_setup.git(make()))


def test_hydra_finds_the_plugins_or_says_which_is_broken(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_ok(check_setup.hydra(make()))
    (tmp_path / "other/hydra_plugins/broken").mkdir(parents=True)
    (tmp_path / "other/hydra_plugins/broken/__init__.py").write_text("import nowhere\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    assert_fails(check_setup.hydra(make()), "hydra_plugins.broken")
    found = [
        "hydra_plugins.runengine.Sweep",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    ]
    assert_fails(
        check_setup.hydra(make(hydra={"hydra": Reading(found)})), "Hydra does not find hydra_submitit_launcher"
    )


STAND_IN = """
__version__ = "2.21.0"
from contextlib import nullcontext as device
class test: is_built_with_cuda = staticmethod(lambda: False)
class config: list_physical_devices = staticmethod(lambda kind: [])
ones = lambda shape: 1.0
matmul = lambda one, other: {product}
reduce_all = lambda truth: truth
"""


def test_tensorflow_multiplies_where_it_is_installed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for it; tests/test_tensorflow.py installs the real one."""
    assert check_computing.tensorflow(make(tensorflow={})).state == "skip"
    (tmp_path / "other/tensorflow").mkdir(parents=True)
    module = tmp_path / "other/tensorflow/__init__.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    monkeypatch.syspath_prepend(tmp_path / "other")
    module.write_text(STAND_IN.format(product="64.0"), encoding="utf-8")
    assert_ok(check_computing.tensorflow(make()), "TensorFlow 2.21.0 multiplies on CPU:0")
    here = gpu_machine(make, tensorflow=collect_env.child("tensorflow"))
    monkeypatch.setattr(check_computing, "has_cuda_wheels", lambda: True)
    assert_fails(check_computing.tensorflow(here), "TensorFlow 2.21.0: a build without CUDA", "tensorflow")
    module.write_text(STAND_IN.format(product="63.0"), encoding="utf-8")
    assert_fails(check_computing.tensorflow(make()), "on CPU:0: multiplies wrongly")
    module.write_text("import os; os.kill(os.getpid(), 11)", encoding="utf-8")
    assert examine(Check("TensorFlow", check_computing.tensorflow), make()).state == "unknown"


THE_ONE_THAT_FITS = (
    "# See `driver` and `libraries`; then take the build that fits next to this PyTorch, without another one:\n"
    "make clean-env setup\n"
)


@pytest.mark.parametrize(("build", "manager", "cuda", "state"), [
    ("cu126", "uv", False, "fail"),
    ("cu126", "poetry", True, "fail"),
    ("cu130", "venv", True, "fail"),
    ("cu130", "conda", True, "fail"),
    ("cu130", "uv", False, "ok"),  # the build that the extra gives there
    ("cpu", "venv", False, "ok"),
    ("cu126", "conda", False, "ok"),
])  # fmt: skip
def test_tensorflow_that_could_use_the_gpu_and_does_not_fails(
    make: Make, monkeypatch: pytest.MonkeyPatch, build: str, manager: str, cuda: bool, state: str
) -> None:
    read = {"build": Reading({"version": "2.21.0", "cuda": cuda, "num_gpus": 0}), "CPU:0": Reading(True)}
    here = gpu_machine(make, cuda=build, env_manager=manager, tensorflow=read)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    result = check_computing.tensorflow(here)
    if state == "ok":
        assert_ok(result, "on CPU:0, and not on the GPU: with CUDA it does not fit next to this PyTorch")
        return
    assert_fails(result, "its build has CUDA, but it finds no GPU" if cuda else "a build without CUDA")
    assert result.fix == THE_ONE_THAT_FITS + check_computing.EXTRA[manager]
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")  # has no wheel with CUDA
    assert check_computing.tensorflow(here).state == ("fail" if cuda else "ok")


@pytest.mark.parametrize("manager", check_computing.EXTRA)
def test_an_extra_is_installed_as_the_makefile_says(manager: str) -> None:
    text = (SOURCE.parent / "env" / manager / "environment.mk").read_text(encoding="utf-8")
    command = next(line for line in text.splitlines() if line.startswith("INSTALL_EXTRA = "))
    typed = (
        command.removeprefix("INSTALL_EXTRA = ")
        .replace("$(1)", "tensorflow")
        .replace("$(BIN)", f".{'conda' if manager == 'conda' else 'venv'}/bin")
    )
    assert check_computing.EXTRA[manager] == typed


# The doctor itself


def test_the_doctor_finds_the_project_where_nothing_else_of_it_is_there_yet(tmp_path: Path) -> None:
    """As in the image while its environment is made: no package of the owner's, and no installed package either."""
    for name in ("runengine", "hydra_plugins"):
        shutil.copytree(SOURCE / name, tmp_path / "new/src" / name)
    asked = '[tool.ml-template]\npython = "3.11"\nenv_manager = "venv"\ncuda = "cpu"\ndriver = ""\ncapability = ""\n'
    text = f'[project]\nrequires-python = ">=3.11,<3.14"\n[tool.runengine]\npackage = "not_there"\n{asked}'
    (tmp_path / "new/pyproject.toml").write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "new/src")}
    for folder in (tmp_path / "new", tmp_path / "new/src", tmp_path.parent):
        command = [sys.executable, "-S", "-m", "runengine", "doctor", "--quick", "--json"]  # -S: without site-packages
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        results = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
        assert "not in this project's .venv" in results["environment"]["found"], done.stderr
        assert results["arithmetic"]["state"] == "ok", results["arithmetic"]


def test_outside_a_project_the_doctor_says_so(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").unlink()
    for name in ("runengine", "hydra_plugins"):
        shutil.copytree(SOURCE / name, tmp_path / name)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "runengine", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} is not in a project: no pyproject.toml here or above has ")


def test_what_does_not_answer_is_ended_with_its_children() -> None:
    started = time.perf_counter()
    answer = readings.ask("sh", "-c", "sleep 60 & echo begun; wait", limit_s=0.3)
    assert (answer.status, answer.output, answer.errors) == (None, "begun\n", "no answer within 0.3 s")
    assert time.perf_counter() - started < 5


def test_the_step_in_which_a_process_died_gets_the_blame() -> None:
    lines = '{"begins": "a"}\n{"ends": "a", "reading": {"value": 1, "error": "", "fault": false}}\n{"begins": "b"}\n'
    found = readings.parse(Answer(-11, f"noise\n{lines}", ""), "x")
    assert found == {"a": Reading(1), "b": Reading(None, "the process was ended by SIGSEGV", True)}
    assert readings.parse(Answer(None, lines, "no answer within 5 s"), "x")["b"].error == "no answer within 5 s"


def broken(machine: Machine) -> Result:
    raise KeyError("something\nunexpected")


OK, UNKNOWN = Check("a", lambda _: checks.ok("fine")), Check("b", broken)
FAIL = Check("c", lambda _: checks.fail("ill", "it hurts", "# Rest, then:\nmake tea"))


@pytest.mark.parametrize(("checks", "ends", "last"), [
    ([OK, Check("s", lambda _: checks.skip("no GPU"))], 0, "No check failed."),
    ([OK, UNKNOWN], 2, "No check failed, but these got no answer: b."),
    ([UNKNOWN, FAIL], 1, "Failed: c. For the commands that fix it: make doctor ARGS=--fix"),
])  # fmt: skip
def test_the_exit_status_says_how_it_stands(
    checks: list[Check], ends: int, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", checks)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(SystemExit) as end:
        doctor.main()
    printed = capsys.readouterr().out
    assert end.value.code == ends
    assert printed.splitlines()[-1] == last
    assert ("why: it hurts" in printed and "do: Rest, then:" in printed) == (ends == 1)
    if UNKNOWN in checks:
        assert "unknown  KeyError: 'something" in printed


def test_fix_prints_commands_and_runs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    touch = Check("d", lambda _: checks.fail("no file", "why", "touch made"))
    monkeypatch.setattr(doctor, "CHECKS", [OK, FAIL, touch])
    monkeypatch.setattr(sys, "argv", ["doctor", "--fix"])
    with pytest.raises(SystemExit):
        doctor.main()
    printed = capsys.readouterr().out
    assert printed == "# c: ill\n# Rest, then:\nmake tea\n# d: no file\ntouch made\n"
    assert not (workplace / "made").exists()


# The hint of a training that fails


@pytest.mark.parametrize("said", [
    "CUDA error: no kernel image is available for execution on the device",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "Found no NVIDIA driver on your system.",
    "NCCL error in: ProcessGroupNCCL.cpp:3353, unhandled system error",
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory.",
    "[Errno 24] Too many open files",
])  # fmt: skip
def test_a_failure_of_the_device_keeps_its_traceback_and_names_the_doctor(said: str) -> None:
    def library() -> None:
        try:
            raise RuntimeError(said)
        except RuntimeError as error:
            raise RuntimeError("in a library") from error

    with pytest.raises(RuntimeError) as raised, errors.friendly_errors(), errors.friendly_errors():
        library()
    assert raised.value.__notes__ == [errors.LOOK_AT_THE_MACHINE]


def test_other_failures_get_no_hint() -> None:
    with pytest.raises(RuntimeError) as raised, errors.friendly_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x100 and 64x10)")
    assert not hasattr(raised.value, "__notes__")
    assert not errors.is_of_the_device(ValueError("CUDA error"))


def test_a_full_gpu_is_one_sentence() -> None:
    import torch

    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 39.39 GiB of which 1.00 GiB is "
        "free. Including non-PyTorch memory, this process has 2.00 GiB memory in use."
    )
    assert errors.explain(error) == (
        "CUDA out of memory. Tried to allocate 20.00 GiB. Try half of data.batch_size, or see who holds the GPU's "
        "memory: make doctor"
    )


MEMORY = {
    "PyTorch": ("torch.empty(10**15)", ": another 3,725,290.3 GiB were asked for"),
    "NumPy": ("np.empty(10**15)", ""),
    "Python": ("bytearray(10**15)", ""),
    "a model's class": ("instantiate({'_target_': 'torch.nn.Linear', 'in_features': 10**8, 'out_features': 10**8})", (
        ": another 37,252,903.0 GiB were asked for"
    )),
}  # fmt: skip


@pytest.mark.parametrize(("does", "wanted"), MEMORY.values(), ids=MEMORY)
def test_a_full_memory_is_one_sentence(does: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import torch
    from hydra.utils import instantiate

    with pytest.raises(SystemExit) as ended, errors.friendly_errors():
        eval(does, {"torch": torch, "np": np, "instantiate": instantiate})  # noqa: S307
    assert ended.value.code == 1
    remedy = "Try half of data.batch_size, a smaller model, or less data at once."
    assert capsys.readouterr().err == f"error: this machine's memory is used up{wanted}. {remedy}\n"


HEALTHY = {
    "remapped": (0, 0), "uncorrected": 0, "lanes": (16, 16), "generation": (5, 5), "performance": 0, "nvlink": (18, 0),
    "mig": (0, 0), "compute_mode": 0, "power_w": (700.0, 700.0), "persistence": 1,
}  # fmt: skip


def with_state(make: Make, *states: dict[str, Any], log: Reading | None = None) -> Machine:
    named = {f"GPU {index} state": Reading(HEALTHY | state) for index, state in enumerate(states)}
    return gpu_machine(make, nvml={"GPU 0": Reading(H100), **named, "kernel log": log or Reading([])})


FAULTS = [
    (
        check_gpu_state.gpu_errors,
        {"remapped": (0, 1)},
        "GPU 1: a row of its memory is broken and could not be replaced",
        "leave out GPU 1",
    ),
    (
        check_gpu_state.gpu_errors,
        {"remapped": (1, 0)},
        "GPU 1: a row of its memory is broken and waits to be replaced",
        "sudo nvidia-smi --gpu-reset -i 1",
    ),
    (
        check_gpu_state.gpu_errors,
        {"uncorrected": 3},
        "GPU 1: 3 uncorrectable errors of its memory",
        "sudo nvidia-smi --gpu-reset -i 1",
    ),
    (
        check_gpu_state.gpu_link,
        {"lanes": (8, 16)},
        "GPU 1: PCIe 5 x8, and card and slot can do PCIe 5 x16",
        "into its slot",
    ),
    (
        check_gpu_state.gpu_link,
        {"generation": (3, 5)},
        "GPU 1: PCIe 3 x16, and card and slot can do PCIe 5 x16",
        "BIOS",
    ),
    (
        check_gpu_state.gpu_link,
        {"nvlink": (17, 1)},
        "GPU 1: 1 NVLink lanes are down, 17 are up",
        "nvidia-smi nvlink --status -i 1",
    ),
    (
        check_gpu_state.gpu_modes,
        {"mig": (0, 1)},
        "GPU 1: MIG is to be switched on and waits for a reset",
        "sudo nvidia-smi --gpu-reset -i 1",
    ),
    (
        check_gpu_state.gpu_modes,
        {"compute_mode": 2},
        "GPU 1: its compute mode is `prohibited`",
        "sudo nvidia-smi -i 1 --compute-mode DEFAULT",
    ),
    (
        check_gpu_state.gpu_modes,
        {"power_w": (350.0, 700.0)},
        "GPU 1: its power is limited to 350 W of 700 W",
        "sudo nvidia-smi -i 1 --power-limit 700",
    ),
]


@pytest.mark.parametrize(("look", "state", "found", "fix"), FAULTS)
def test_what_breaks_gpus_in_practice_is_named_with_what_helps(
    make: Make, look: Callable[[Machine], Result], state: dict[str, Any], found: str, fix: str
) -> None:
    assert_fails(look(with_state(make, {}, state)), found, fix)
    assert_ok(look(with_state(make, {}, {})))


def test_what_an_idle_a_shared_or_a_small_card_does_is_no_fault(make: Make) -> None:
    idle = {"generation": (1, 5), "performance": 8}
    assert_ok(check_gpu_state.gpu_link(with_state(make, idle)), "GPU 0: PCIe 1 x16, 18 NVLink lanes")
    modes = check_gpu_state.gpu_modes(with_state(make, {"mig": (1, 1), "compute_mode": 3, "persistence": 0}))
    assert_ok(modes, "GPU 0: 700 W, MIG: PyTorch sees one slice of it, one process at a time, each start waits for the")
    assert_ok(check_gpu_state.gpu_modes(with_state(make, {"power_w": (690.0, 700.0)})))
    assert_ok(check_gpu_state.gpu_errors(with_state(make, {}, log=Reading([("0000:3b:00", 31)]))), "no XID is logged")


def test_xids_of_the_card_are_named_those_of_a_program_are_not(make: Make) -> None:
    broken = with_state(make, {}, log=Reading([("0000:3b:00", 13), ("0000:3b:00", 79)]))
    found = "the kernel's log has XID 79 of the GPU at 0000:3b:00: the card is not on the bus any more"
    assert_fails(check_gpu_state.gpu_errors(broken), found, "sudo dmesg | grep Xid")
    refused = check_gpu_state.gpu_errors(with_state(make, {}, log=Reading(None)))
    assert_ok(refused, "GPU 0: no errors of its memory; the kernel's log is not readable here")


def test_what_the_driver_says_of_a_card_is_read_and_what_it_refuses_is_absent(
    make: Make, fake_nvml: Callable[..., dict[str, Reading]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    said = "[1.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\\n[2.0] NVRM: loading\\n"
    program = tmp_path / "bin/dmesg"
    program.write_text(f"#!/bin/sh\nprintf '{said}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    answers = fake_nvml(
        nvmlDeviceGetRemappedRows="return 5, 0, 1, 0",
        nvmlDeviceGetTotalEccErrors="error(NVML_ERROR_NOT_SUPPORTED)",
        nvmlDeviceGetCurrPcieLinkWidth="return 8",
        nvmlDeviceGetMaxPcieLinkWidth="return 16",
        nvmlDeviceGetCurrPcieLinkGeneration="error(NVML_ERROR_NO_PERMISSION)",
        nvmlDeviceGetNvLinkState="return int(arguments[1] < 3) if arguments[1] < 4 else error(3)",  # not supported
        nvmlDeviceGetMigMode="error(NVML_ERROR_FUNCTION_NOT_FOUND)",
        nvmlDeviceGetComputeMode="return 0",
        nvmlDeviceGetEnforcedPowerLimit="return 250000",
        nvmlDeviceGetPowerManagementDefaultLimit="return 400000",
    )
    state = answers["GPU 0 state"].value
    assert {name: state[name] for name in state if name not in ("performance", "persistence")} == {
        "remapped": [1, 0], "lanes": [8, 16], "nvlink": [3, 1], "compute_mode": 0, "power_w": [250.0, 400.0],
    }  # fmt: skip
    assert answers["kernel log"].value == [["0000:3b:00", 79]]
    program.write_text("#!/bin/sh\necho 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1\n")
    answers = fake_nvml(nvmlDeviceGetRemappedRows="error(NVML_ERROR_NO_PERMISSION)")
    assert answers["kernel log"].value is None
    here = gpu_machine(make, nvml=answers)
    assert_ok(check_gpu_state.gpu_errors(here), "GPU 0: has no ECC; the kernel's log is not readable here")
    assert check_gpu_state.gpu_link(here).state == "skip"
    assert_ok(check_gpu_state.gpu_modes(here), "nothing is limited, as far as the driver says")


def test_a_library_of_two_packages_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    for name in ("nvidia-nccl-cu12", "nvidia-nccl-cu13"):
        folder = tmp_path / f"{name.replace('-', '_')}-2.28.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.28\n", encoding="utf-8")
        (folder / "RECORD").write_text("nvidia/nccl/lib/libnccl.so.2,,\n", encoding="utf-8")
    (tmp_path / "nvidia/nccl/lib").mkdir(parents=True)
    (tmp_path / "nvidia/nccl/lib/libnccl.so.2").touch()
    assert_ok(check_setup.libraries(make()))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = "both own nvidia/nccl/lib/libnccl.so.2: the one that was installed later is loaded by both"
    assert_fails(check_setup.libraries(make()), found, "tensorflow-cpu does without")
