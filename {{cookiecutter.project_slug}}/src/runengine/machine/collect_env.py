"""What doctor.py judges: this machine as it is, read without an opinion.

    python -m ml_project.probe torch       # one of PROBES, in a process of its own: some of it can hang, or crash

Standard library only, but for what a probe looks at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..settings.console import first_line

SOURCE = Path(__file__).parents[1]
LIMITS_S = {"torch": 120, "compile": 180, "collective": 60, "mlflow": 60, "dvc": 30, "tensorflow": 120}
LIMIT_S = 20  # of the others: a child that only looks takes a second, but a network file system may never answer
WSL_DRIVER = "/usr/lib/wsl/lib"  # where WSL keeps nvidia-smi, not always on PATH

TERMS = 64  # of each sum in a product
# bits of the significand, the leading one included; fp8 is multiplied in fp8 and given out in bf16
SIGNIFICAND_BITS = {"fp32": 24, "tf32": 11, "fp16": 11, "bf16": 8, "fp8": 8}
# the compute capability from which NVIDIA's hardware has the type
LEAST_CAPABILITY = {"fp32": 0.0, "fp16": 5.3, "tf32": 8.0, "bf16": 8.0, "fp8": 8.9}
SPEED_BYTES = 8 * 2**20


class Answer(NamedTuple):
    """What a command said; status None: it could not be started, or gave no answer in time, as `errors` tells."""

    status: int | None
    output: str
    errors: str


class Reading(NamedTuple):
    """One value, or the error instead of it; `fault`: the device or its libraries failed, not this program."""

    value: Any = None
    error: str = ""
    fault: bool = False


class Smi(NamedTuple):
    """What nvidia-smi lists: GPUs as (name, compute capability), the driver; or why there are none."""

    gpus: tuple[tuple[str, str], ...]
    driver: str
    reason: str


class Python(NamedTuple):
    version: str
    prefix: Path
    made_by: str  # the program that made the environment
    foreign: tuple[str, ...]  # why packages from elsewhere are found


class Machine:
    """Each thing is read once, when it is first asked for; a test puts recorded readings in their place."""

    def __init__(self, root: Path, *, quick: bool = False) -> None:
        self.root, self.quick = root, quick

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def asked(self) -> dict[str, str]:
        """What the project was generated for."""
        asked: dict[str, str] = self.pyproject["tool"]["ml-template"]
        return asked

    @cached_property
    def python(self) -> Python:
        return python(self.root)

    @cached_property
    def smi(self) -> Smi:
        program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL_DRIVER)
        if program is None:
            return Smi((), "", "there is no nvidia-smi")
        query = "driver_version,compute_cap,name"
        answer = ask(program, f"--query-gpu={query}", "--format=csv,noheader")
        if "not a valid field" in answer.output:  # drivers before 510 do not tell the compute capability
            answer = ask(program, f"--query-gpu={query.replace('compute_cap,', '')}", "--format=csv,noheader")
        return parse_smi(answer)

    @cached_property
    def torch(self) -> dict[str, Reading]:
        return child("torch", *(["quick"] if self.quick else []))

    @cached_property
    def collective(self) -> dict[str, Reading]:
        return child("collective", "nccl", str(len(self.torch["gpus"].value["gpus"])))

    @cached_property
    def compile(self) -> dict[str, Reading]:
        return child("compile")

    @cached_property
    def nvml(self) -> dict[str, Reading]:
        return child("nvml")

    @cached_property
    def disk(self) -> dict[str, Reading]:
        return child("disk", "data", "runs")

    @cached_property
    def mlflow(self) -> dict[str, Reading]:
        return child("mlflow")

    @cached_property
    def dvc(self) -> dict[str, Reading]:
        return child("dvc", str(self.root))

    @cached_property
    def hydra(self) -> dict[str, Reading]:
        return child("hydra")

    @cached_property
    def tensorflow(self) -> dict[str, Reading]:
        return child("tensorflow") if find_spec("tensorflow") else {}


def ask(*command: str, limit_s: float = LIMIT_S, env: dict[str, str] | None = None) -> Answer:
    """Run a command to its end or to the limit, and end what it started with it."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", error.strerror or str(error))
    try:
        output, errors = process.communicate(timeout=limit_s)
        return Answer(process.returncode, output, errors)
    except subprocess.TimeoutExpired:
        _end(process)
        try:
            output, _ = process.communicate(timeout=2)
        except subprocess.TimeoutExpired:  # it waits for a disk that does not answer: even SIGKILL has to wait
            output, process.returncode = "", -signal.SIGKILL
        return Answer(None, output, f"no answer within {limit_s:g} s")
    except KeyboardInterrupt:
        _end(process)
        raise


def _end(process: subprocess.Popen[str]) -> None:
    """With its own children."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def child(probe: str, *arguments: str) -> dict[str, Reading]:
    """The readings of one of PROBES, by name. The last one says how the process ended, if not well."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
    }
    command = [sys.executable, "-m", f"{__package__}.probe", probe, *arguments]
    return parse_child(ask(*command, limit_s=LIMITS_S.get(probe, LIMIT_S), env=env), probe)


def parse_child(answer: Answer, probe: str) -> dict[str, Reading]:
    readings: dict[str, Reading] = {}
    begun = probe
    for line in answer.output.splitlines():
        if line.startswith('{"begins": '):
            begun = json.loads(line)["begins"]
        elif line.startswith('{"ends": '):
            readings[json.loads(line).pop("ends")] = Reading(**json.loads(line)["reading"])
    if answer.status is None:
        readings[begun] = Reading(error=answer.errors)
    elif answer.status < 0:  # illegal instruction, segmentation fault, killed for its memory
        readings[begun] = Reading(error=f"the process was ended by {signal.Signals(-answer.status).name}", fault=True)
    elif answer.status > 0:
        readings[begun] = Reading(error=(answer.errors.strip().splitlines() or ["it ended without a word"])[-1])
    return readings


def parse_smi(answer: Answer) -> Smi:
    """The answer of `nvidia-smi --query-gpu=driver_version,compute_cap,name --format=csv,noheader`."""
    gpus, driver = [], ""
    for line in answer.output.splitlines():
        if fields := re.fullmatch(r"([\d.]+), (?:(\d+\.\d+|\[?N/A\]?), )?(.+)", line.strip()):
            driver, capability, name = fields.groups()
            gpus.append((name, capability if capability and "N" not in capability else ""))
    if gpus:
        return Smi(tuple(gpus), driver, "")
    said = (answer.output + answer.errors).strip().splitlines() or ["it said nothing"]
    return Smi((), "", f"nvidia-smi: {said[0][:150]}")


def python(root: Path) -> Python:
    """The interpreter that runs this."""
    prefix = Path(sys.prefix)
    config = prefix / "pyvenv.cfg"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())}
    made_by = next((name for name in ("uv", "virtualenv") if name in settings), "venv" if settings else "no manager")
    if (prefix / "conda-meta").is_dir():
        made_by = "conda"
    foreign = [
        f"PYTHONPATH={folder}"
        for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if folder and Path(folder).is_dir() and not Path(folder).resolve().is_relative_to(root.resolve())
    ]
    if site.ENABLE_USER_SITE and Path(site.getusersitepackages()).is_dir():
        foreign.append(site.getusersitepackages())
    if settings.get("include-system-site-packages") == "true":
        foreign.append("include-system-site-packages = true in .venv/pyvenv.cfg")
    return Python("{}.{}.{}".format(*sys.version_info), prefix, made_by, tuple(foreign))


# What follows runs in a child.

Steps = Iterator[tuple[str, Callable[[], Any]]]


def report(steps: Steps) -> None:
    """One line before and one after each step: the parent then knows in which step the process died."""
    for name, read in steps:
        print(json.dumps({"begins": name}), flush=True)
        print(json.dumps({"ends": name, "reading": attempt(read)._asdict()}), flush=True)


def attempt(read: Callable[[], Any]) -> Reading:
    try:
        return Reading(read())
    except Exception as error:
        fault = isinstance(error, RuntimeError | OSError) and not isinstance(error, NotImplementedError)
        return Reading(None, f"{type(error).__name__}: {first_line(error)}", fault)


def torch_steps(quick: str = "") -> Steps:
    """Build, GPUs, then `<device> <type>` for each product and convolution."""
    yield "build", _torch_build
    if "torch" not in sys.modules:
        return
    yield "gpus", _torch_gpus
    for device, kinds in _devices().items():
        for kind in kinds[:1] if quick else kinds:
            yield f"{device} {kind}", partial(_product, device, kind)
        if not quick:
            yield f"{device} convolution", partial(_convolution, device)
        if not quick and device.startswith("cuda"):
            yield f"{device} pinned", partial(_pinned, device)


def _torch_build() -> dict[str, Any]:
    import torch

    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "num_threads": torch.get_num_threads() if hasattr(torch, "get_num_threads") else None,
    }


def _torch_gpus() -> dict[str, Any]:
    import torch

    if not torch.version.cuda:
        return {"gpus": [], "archs": [], "no_peer": [], "reason": ""}
    reason = ""
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as error:  # what it says is the reading
            reason = first_line(error)
        return {"gpus": [], "archs": [], "no_peer": [], "reason": reason}
    count = torch.cuda.device_count()
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    return {
        "gpus": [
            [torch.cuda.get_device_name(index), "{}.{}".format(*torch.cuda.get_device_capability(index))]
            for index in range(count)
        ],
        "archs": torch.cuda.get_arch_list(),
        "no_peer": [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)],
        "reason": "",
    }


def _devices() -> dict[str, list[str]]:
    """What each device can multiply."""
    import torch

    devices = {"cpu": ["fp32", "bf16"]}
    if torch.version.cuda and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            capability = float("{}.{}".format(*torch.cuda.get_device_capability(index)))
            devices[f"cuda:{index}"] = [kind for kind, least in LEAST_CAPABILITY.items() if capability >= least]
    elif hasattr(torch, "backends") and torch.backends.mps.is_available():
        devices["mps"] = ["fp32", "fp16", "bf16"]
    return devices


def _product(device: str, kind: str) -> float:
    """Relative error against float64 on the CPU, of the same rounded numbers: only the product itself is measured."""
    import torch

    type_ = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}.get(kind, torch.float32)
    numbers = torch.Generator().manual_seed(0)
    left_MK = torch.randn(256, TERMS, generator=numbers).to(type_)
    right_NK = torch.randn(256, TERMS, generator=numbers).to(type_)
    wanted_MN = left_MK.double() @ right_NK.double().T
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    left_MK, right_NK = left_MK.to(device), right_NK.to(device)
    if kind == "fp8":
        one = torch.ones((), device=device)
        got_MN = torch._scaled_mm(left_MK, right_NK.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    else:
        got_MN = left_MK @ right_NK.T
    return float((got_MN.cpu().double() - wanted_MN).norm() / wanted_MN.norm())


def _convolution(device: str) -> float:
    """Relative error against float64 on the CPU; on NVIDIA's GPUs cuDNN's, in TF32 as PyTorch does it by default."""
    import torch

    numbers = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(4, 8, 32, 32, generator=numbers)
    weights = torch.randn(16, 8, 3, 3, generator=numbers)
    wanted = torch.nn.functional.conv2d(images_BCHW.double(), weights.double())
    got = torch.nn.functional.conv2d(images_BCHW.to(device), weights.to(device))
    return float((got.cpu().double() - wanted).norm() / wanted.norm())


def _pinned(device: str) -> bool:
    import torch

    numbers = torch.arange(2**20, dtype=torch.int32).pin_memory()
    return numbers.is_pinned() and bool((numbers.to(device, non_blocking=True).cpu() == numbers).all())


def compile_steps() -> Steps:
    """Seconds that torch.compile took for a small function, in an empty cache: really compiled."""
    yield "compile", _compile


def _compile() -> float:
    with tempfile.TemporaryDirectory(prefix="doctor-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        import torch

        def norm(x: torch.Tensor) -> torch.Tensor:
            return (x.sin() ** 2 + x.cos() ** 2).sum(dim=1)

        device = "cuda" if torch.cuda.is_available() else "cpu"
        x = torch.linspace(0, 1, 4096, device=device).reshape(64, 64)
        started = time.perf_counter()
        torch.testing.assert_close(torch.compile(norm)(x), norm(x))
        return time.perf_counter() - started


def collective_steps(backend: str, num: str) -> Steps:
    """The sum over so many processes, one a GPU with NCCL: each adds its rank + 1."""
    yield "collective", partial(_collective, backend, int(num))


def _collective(backend: str, num: int) -> float:
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        spawn(_rank, (backend, num, folder), nprocs=num)  # type: ignore[no-untyped-call]
        return float((Path(folder) / "sum").read_text(encoding="utf-8"))


def _rank(rank: int, backend: str, num: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    meeting = (Path(folder) / "meeting").as_uri()
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=num)
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    total = torch.full((2**20,), rank + 1.0, device=device)
    dist.all_reduce(total)
    if rank == 0:
        (Path(folder) / "sum").write_text(str(float(total.mean())), encoding="utf-8")
    dist.destroy_process_group()


def nvml_steps() -> Steps:
    """For each GPU its memory, who holds it, and what holds its clocks back."""
    import pynvml

    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        yield str(index), partial(_nvml, index)


def _nvml(index: int) -> dict[str, Any]:
    import psutil
    import pynvml

    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    holders = []
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu):
        try:
            name = psutil.Process(process.pid).name()
        except psutil.Error:  # of another container
            name = "process"
        holders.append([name, process.pid, process.usedGpuMemory])  # None on Windows, and for others' processes
    try:
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)  # the name that old drivers know, too
    except pynvml.NVMLError_NotSupported:
        reasons = None
    name = pynvml.nvmlDeviceGetName(gpu)
    return {"name": name, "total": memory.total, "free": memory.free, "holders": holders, "reasons": reasons}


def disk_steps(*folders: str) -> Steps:
    """Of each folder, or what is there above it: free bytes, seconds to write and to read a small file."""
    for folder in folders:
        yield folder, partial(_disk, Path(folder))


def _disk(folder: Path) -> dict[str, Any]:
    folder = next(place for place in [folder, *folder.parents] if place.is_dir())
    free = shutil.disk_usage(folder).free
    content = os.urandom(SPEED_BYTES)  # nothing that a file system could compress
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):  # else it would be read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        same = file.read() == content
        read = time.perf_counter()
    return {
        "folder": str(folder), "free": free, "device": folder.stat().st_dev,
        "write_s": written - started, "read_s": read - written, "same": same,
    }  # fmt: skip


def mlflow_steps() -> Steps:
    """The address of the store, then what is there."""
    yield "address", _mlflow_address
    uri = _mlflow_address()
    if uri and uri.startswith("sqlite:///"):
        yield "database", partial(_mlflow_database, Path(uri.removeprefix("sqlite:///")))
    elif uri:
        yield "server", partial(_mlflow_server, uri)


def _mlflow_address() -> str | None:
    from ..settings.config import compose

    uri: str | None = compose("train").tracking.mlflow_uri
    return uri


def _mlflow_database(file: Path) -> dict[str, Any]:
    """Revision of its tables and that of the MLflow which is installed; nothing is migrated."""
    import sqlite3
    from contextlib import closing

    from ..tracking.mlflow_client import quiet_mlflow

    if not file.exists():
        return {"file": str(file), "exists": False, "writable": os.access(file.absolute().parent, os.W_OK)}
    quiet_mlflow()
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=5)) as database:
        database.isolation_level = None
        found = [row[0] for row in database.execute("SELECT version_num FROM alembic_version")]
        known = {script.revision for script in scripts.walk_revisions()}
        database.execute("BEGIN IMMEDIATE")  # takes the lock that a write needs
        database.execute("CREATE TABLE doctor (x INTEGER)")
        database.execute("ROLLBACK")
    head = scripts.get_current_head()
    return {"file": str(file), "exists": True, "found": found, "head": head, "known": set(found) <= known}


def _mlflow_server(uri: str) -> dict[str, Any]:
    import urllib.request

    from ..tracking.mlflow_client import mlflow_client, trouble, without_password

    client = mlflow_client(uri)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        return {"uri": without_password(uri), "trouble": trouble(uri, error)}
    import mlflow

    try:
        with urllib.request.urlopen(f"{without_password(uri).rstrip('/')}/version", timeout=10) as page:
            version = page.read(100).decode()
    except OSError:
        version = ""
    return {"uri": without_password(uri), "trouble": "", "server": version, "client": mlflow.__version__}


def dvc_steps(root: str) -> Steps:
    """The default remote, without a repository object: that would want Git, or be told that there is none."""
    yield "remote", partial(_dvc_remote, Path(root))


def _dvc_remote(root: Path) -> dict[str, Any]:
    from dvc.config import Config
    from dvc.fs import get_cloud_fs

    config = Config(str(root / ".dvc"))
    name = config["core"].get("remote")
    if not name:
        return {"name": None}
    url = str(config["remote"][name]["url"])
    if "CHANGE-ME" in url:  # what the template suggests where it cannot know
        return {"name": name, "url": url, "never_set": True}
    kind, settings, path = get_cloud_fs(config, name=name)
    try:
        exists = bool(kind(**settings).info(path))
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # http says it also where nobody answers
            raise error.__cause__ from None
        exists = False
    if kind.protocol == "local" and exists and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
    local = kind.protocol == "local"
    url = os.path.normpath(url) if local else url
    return {"name": name, "url": url, "never_set": False, "exists": exists, "local": local}


def hydra_steps() -> Steps:
    yield "plugins", _hydra_plugins


def _hydra_plugins() -> list[str]:
    import warnings

    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Hydra only warns of a plugin that cannot be imported
        plugins = Plugins.instance()
        found = [*plugins.discover(Sweeper), *plugins.discover(Launcher)]
    return [f"{plugin.__module__}.{plugin.__qualname__}" for plugin in found]


def tensorflow_steps() -> Steps:
    """Build and GPUs, then a product on each device."""
    yield "build", _tensorflow_build
    import tensorflow as tf

    for device in ["CPU:0", *(f"GPU:{index}" for index in range(len(tf.config.list_physical_devices("GPU"))))]:
        yield device, partial(_tensorflow_product, device)


def _tensorflow_build() -> dict[str, Any]:
    import tensorflow as tf

    return {
        "version": tf.__version__,
        "cuda": bool(tf.test.is_built_with_cuda()),
        "num_gpus": len(tf.config.list_physical_devices("GPU")),
    }


def _tensorflow_product(device: str) -> bool:
    import tensorflow as tf

    with tf.device(device):
        ones = tf.ones((TERMS, TERMS))
        return bool(tf.reduce_all(tf.matmul(ones, ones) == float(TERMS)))


PROBES: dict[str, Callable[..., Steps]] = {
    "torch": torch_steps,
    "compile": compile_steps,
    "collective": collective_steps,
    "nvml": nvml_steps,
    "disk": disk_steps,
    "mlflow": mlflow_steps,
    "dvc": dvc_steps,
    "hydra": hydra_steps,
    "tensorflow": tensorflow_steps,
}

if __name__ == "__main__":
    report(PROBES[sys.argv[1]](*sys.argv[2:]))
