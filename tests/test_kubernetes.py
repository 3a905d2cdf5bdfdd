"""Runs as jobs of Kubernetes: what is submitted, and what becomes of it on a real API server with a pretended node.

The server is of version 1.20 (tests/kubernetes/build.sh): what newer ones say of a job, their schemas say.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import NO_CLUSTER, ROOT, Answer, free_port, run
from test_slurm import until

pytestmark = pytest.mark.slow

BUILT = Path(os.environ.get("KUBERNETES", Path.home() / ".cache/ml-template/kubernetes")) / "bin"
IMAGE = f"registry.example.com/me/project@sha256:{'0' * 64}"
LAUNCH = ("launch=kubernetes", f"launch.image={IMAGE}", "launch.volume=runs")
SMALL = ("trainer=cpu", "launch.cpus=1", "launch.memory_gb=1", "launch.warn_s=60")
LONG = ("trainer=cpu", "trainer.max_epochs=40", "checkpoint.every_n_steps=3")
TWO = (
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.num_nodes=2",
    "checkpoint.every_n_steps=3",
)
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "runs"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
WEIGHTS = """
import sys, torch
state = torch.load(f"{sys.argv[1]}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
print({name: value.double().sum().item() for name, value in state.items()})
"""


# status of each run, and whether it has a parent
TRACKED = """
import mlflow
for run in mlflow.search_runs(search_all_experiments=True, output_format="list"):
    print(run.info.status, "mlflow.parentRunId" in run.data.tags)
"""


@dataclass
class Place:
    """A project whose folder `runs` is the volume of the cluster; kubectl finds the cluster."""

    project: Path
    volume: Path
    env: dict[str, str]

    def kubectl(self, *words: str) -> str:
        return run("kubectl", *words, cwd=self.project, env=self.env).output

    def train(self, *settings: str, expect: int = 0) -> str:
        return run(*self.command(*settings), cwd=self.project, env=self.env, expect=expect).output

    def command(self, *settings: str) -> list[str]:
        return ["python", "-m", "my_project.train", *LAUNCH, *settings]

    def start(self, *settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*settings), cwd=self.project, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=interruptible,
        )  # fmt: skip

    def sweep(self) -> Path:
        """The newest."""
        return max((self.project / "runs").glob("*/sweep-*"))

    def outcome(self, folder: Path) -> tuple[str, str]:
        return (folder / "history.csv").read_text(), run(
            "python", "-c", WEIGHTS, folder, cwd=folder, env=self.env
        ).output


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is started in the background inherits "ignore"


def kubectl(config: Path, *words: str) -> str:
    return run("kubectl", f"--kubeconfig={config}", *words, cwd=config.parent, expect=None).output


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """The kubeconfig of an API server with the controllers for jobs; its user may do everything, `nobody` nothing."""
    programs = {name: BUILT / name for name in ("kube-apiserver", "kube-controller-manager")}
    if not (all(file.is_file() for file in programs.values()) and shutil.which("etcd") and shutil.which("kubectl")):
        pytest.skip(NO_CLUSTER)
    folder = Path(tempfile.mkdtemp(prefix="kubernetes-"))
    store, peer, port = free_port(), free_port(), free_port()
    config, key = folder / "kubeconfig", folder / "key.pem"
    run("openssl", "genrsa", "-out", key, "2048", cwd=folder)
    (folder / "tokens.csv").write_text('admin,admin,1,"system:masters"\nnobody,nobody,2\n', encoding="utf-8")
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    config.write_text(
        yaml.safe_dump({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": name}} for name in ("admin", "nobody")],
            "contexts": [{"name": name, "context": {"cluster": "here", "user": name}} for name in ("admin", "nobody")],
            "current-context": "admin",
        }),
        encoding="utf-8",
    )  # fmt: skip
    commands: list[list[str | Path]] = [
        ["etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls=http://127.0.0.1:{store}",
         f"--advertise-client-urls=http://127.0.0.1:{store}", f"--listen-peer-urls=http://127.0.0.1:{peer}"],
        [programs["kube-apiserver"], f"--etcd-servers=http://127.0.0.1:{store}", "--bind-address=127.0.0.1",
         "--advertise-address=127.0.0.1", f"--secure-port={port}", "--insecure-port=0", f"--cert-dir={folder}",
         "--service-account-issuer=https://127.0.0.1", f"--service-account-key-file={key}",
         f"--service-account-signing-key-file={key}", f"--token-auth-file={folder}/tokens.csv",
         "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
         "--disable-admission-plugins=ServiceAccount"],
        [programs["kube-controller-manager"], f"--kubeconfig={config}", "--controllers=job,garbagecollector",
         "--leader-elect=false", "--port=0", "--secure-port=0"],
    ]  # fmt: skip
    processes = []
    try:
        for command in commands:
            with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            if "kube-apiserver" in str(command[0]):
                until(lambda: kubectl(config, "get", "--raw=/readyz") == "ok", "the API server's start")
        yield config
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(server: Path, project: Path, python: Path, env: dict[str, str], tmp_path: Path) -> Iterator[Place]:
    """A copy of the demo, and a node that runs it."""
    copy, volume = tmp_path / "project", tmp_path / "node/volume"
    (volume / "runs").mkdir(parents=True)
    (volume / "data").symlink_to(project / "data")
    copy.mkdir()
    for part in project.iterdir():
        if part.name not in ("runs", "mlflow.db"):
            (copy / part.name).symlink_to(part)
    (copy / "runs").symlink_to(volume / "runs")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "kubectl").symlink_to(ROOT / "tests/kubernetes/kubectl")
    env = {
        **env,
        "KUBECONFIG": str(server),
        "REAL_KUBECTL": str(shutil.which("kubectl")),
        "PATH": f"{tools}:{python.parent}:{env['PATH']}",
        "PYTHONPATH": str(copy / "src"),
    }
    program = ROOT / "tests/kubernetes/kubelet.py"
    node: list[str | Path] = [sys.executable, program, tmp_path / "node", server, copy, IMAGE]
    with (tmp_path / "node.log").open("wb") as log:
        kubelet = subprocess.Popen(node, stdout=log, stderr=log, env=env)
    place = Place(copy, volume, env)
    run("kubectl", "apply", "-f", write(tmp_path / "claim.json", CLAIM), cwd=copy, env=env)
    try:
        yield place
        assert kubelet.poll() is None, (tmp_path / "node.log").read_text()
    finally:
        run("kubectl", "delete", "job", "--all", "--wait=false", cwd=copy, env=env, expect=None)
        until(lambda: not place.kubectl("get", "pods", "--output=name"), "the end of all pods")
        kubelet.kill()
        kubelet.wait()
        place.kubectl("delete", "node", "node")


def write(file: Path, content: object) -> Path:
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


@pytest.mark.parametrize("settings", [
    ("trainer=cpu",),
    ("trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2", "launch.gpu_type=NVIDIA-A100-SXM4-80GB"),
    ("launch.queue_name=lab", "+launch.env.A=1", "+launch.secrets.MLFLOW_TRACKING_PASSWORD=mlflow/password"),
])  # fmt: skip
def test_what_would_be_submitted_is_valid_and_nothing_is(
    project: Path, python: Path, env: dict[str, str], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """By the schemas of all versions that are maintained, and by what schemas do not see."""
    (tmp_path / "pyproject.toml").write_text('[tool.runengine]\npackage = "my_project"\n', encoding="utf-8")
    train = (str(python), "-m", "my_project.train", *LAUNCH, *settings, "launch.dry_run=true", "seed=0,1")
    printed = run(*train, cwd=tmp_path, env={**env, "PATH": str(python.parent)}).output
    (sweep,) = (tmp_path / "runs").glob("*/*")
    place = sweep.relative_to(tmp_path)
    assert printed.splitlines()[-1] == (
        f"nothing was started. What would be is in {place}/launch; to start it: kubectl apply -f {place}/launch"
    )
    files = sorted((sweep / "launch").iterdir())
    assert [file.name for file in files] == ["000.yaml", "001.yaml"]
    validate = Path(sys.executable).with_name("kubernetes-validate")
    for version in VERSIONS:
        run(validate, "--strict", "--kubernetes-version", version, *files, cwd=tmp_path)
    *services, job = yaml.safe_load_all(files[1].read_text(encoding="utf-8"))
    assert bool(services) == ("trainer.num_nodes=2" in settings)
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    (codes,) = [rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes == {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [75]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert len(job["metadata"]["name"]) <= 52
    assert "seed=1" in pod["containers"][0]["command"]
    assert ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) == ("trainer=cpu" not in settings)


def test_a_drained_pod_is_replaced_and_its_run_goes_on(place: Place, python: Path) -> None:
    straight = ("python", "-m", "my_project.train", *LONG, "tracking=off", "run_dir=runs/straight")
    run(*straight, cwd=place.project, env=place.env)
    port, store = free_port(), f"sqlite:///{place.project}/store.db"
    mlflow = [str(python), "-m", "mlflow", "server", "--workers=1", f"--port={port}", f"--backend-store-uri={store}"]
    with (place.project / "server.log").open("wb") as log:
        tracking = subprocess.Popen([*mlflow, "--host=127.0.0.1"], cwd=place.project, stdout=log, stderr=log)
    try:
        until(lambda: "startup complete" in (place.project / "server.log").read_text(), "MLflow's start")
        place.env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        process = place.start(*SMALL, *LONG)
        until(lambda: "epoch 5 of 40" in log_of(place), "the fifth epoch")
        (pod,) = place.kubectl("get", "pods", "--output=name", "--field-selector=status.phase=Running").split()
        place.kubectl("delete", pod, "--wait=false")  # what `kubectl drain` does
        printed, _ = process.communicate(timeout=300)
        print(printed)
        assert process.returncode == 0, printed
        assert "stopped. Resume with: python -m my_project.train run_dir=" in log_of(place)
        assert "resuming from" in log_of(place)
        assert "epoch 40 of 40" in printed  # of the second pod, whose log is followed, too
        assert place.outcome(place.sweep() / "000") == place.outcome(place.project / "runs/straight")
        runs = run("python", "-c", TRACKED, cwd=place.project, env=place.env).output
        assert sorted(runs.splitlines()[-2:]) == ["FINISHED False", "FINISHED True"]
    finally:
        tracking.terminate()
        tracking.wait()


def log_of(place: Place, run_name: str = "000") -> str:
    found = list((place.project / "runs").glob(f"*/sweep-*/{run_name}/train.log"))
    return found[0].read_text() if found else ""


def processes(node: str) -> list[int]:
    """Of the pods of this number in their jobs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"NODE_RANK={node}".encode() in environment and b"my_project.train" in command:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("lost", ["0", "1"])
def test_a_run_on_two_nodes_that_loses_one_goes_on(place: Place, lost: str) -> None:
    settings = (*TWO, "trainer.max_epochs=30", "tracking=off", "launch.cpus=1", "launch.memory_gb=1")
    process = place.start(*settings)
    until(lambda: "epoch 5 of 30" in log_of(place), "the fifth epoch")
    (pid,) = processes(lost)
    os.kill(pid, signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    print(printed)
    assert process.returncode == 0, printed
    pods = json.loads(place.kubectl("get", "pods", "--output=json"))["items"]
    codes = sorted(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] for pod in pods)
    assert codes == [0, 0, 75, 137]
    assert "resuming from" in log_of(place)
    assert (place.sweep() / "000/metrics.json").exists()


def test_a_sweep_of_six_says_how_each_went_and_is_resumed(place: Place) -> None:
    quick = (*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "tracking=off", "launch.parallel=3")
    printed = place.train(*quick, "launch.retries=0", "optimizer.lr=0.001,0.01,1e38", "seed=0,1", expect=1)
    print(printed)
    assert "4 of 6 runs finished" in printed
    reason = r"error: run 004: train/loss is (nan|inf) at step \d: training stops here\."
    assert re.search(reason, printed)
    assert "training stops here" in (place.sweep() / "004/job.log").read_text()
    assert len((place.sweep() / "sweep.csv").read_text().splitlines()) == 7
    running = place.kubectl("get", "jobs", "--output=name").split()
    assert len(running) == 6
    again = place.train(f"sweep_dir={place.sweep().relative_to(place.project)}", expect=1)
    assert "4 of 6 runs finished" in again
    assert again.count(" is running") <= 2


def test_ctrl_c_leaves_the_jobs_which_are_found_again_and_cancelled(place: Place) -> None:
    process = place.start(*SMALL, *LONG[:1], "trainer.max_epochs=400", "tracking=off")
    until(lambda: "epoch 2 of 400" in log_of(place), "the second epoch")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    sweep = place.sweep().relative_to(place.project)
    assert f'the jobs go on. To cancel them: make jobs ARGS="--cancel {sweep}"' in printed
    assert f"resume with: python -m my_project.train sweep_dir={sweep}" in printed
    listed = run("make", "jobs", cwd=place.project, env=place.env).output
    assert re.search(rf"my-project-\S+-000 +kubernetes +running +{sweep}", listed)
    with place.start(f"sweep_dir={sweep}") as process:
        assert process.stdout
        assert next(line for line in process.stdout if " is running" in line)
        run("make", "jobs", f"ARGS=--cancel {sweep}", cwd=place.project, env=place.env)
        printed = process.stdout.read()
    assert process.returncode == 1
    assert "run 000: it was stopped or killed." in printed
    assert "stopped. Resume with" in log_of(place)
    assert "no jobs" in run("make", "jobs", cwd=place.project, env=place.env).output


def test_results_come_back_without_the_volume(place: Place) -> None:
    (place.project / "runs").unlink()
    printed = place.train(*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "tracking=off")
    assert "1 of 1 runs finished" in printed
    assert re.search(r"^ 000 +\d\.\d+ +\d\.\d+ +\d+\.\d +best$", printed, re.MULTILINE)
    assert "its folder is where my-project-" in printed


def refused(place: Place, *settings: str, env: dict[str, str] | None = None) -> str:
    """What is said, in one sentence; no job is there."""
    answer: Answer = run(
        *place.command(*SMALL, *settings), cwd=place.project, env={**place.env, **(env or {})}, expect=1
    )
    assert not place.kubectl("get", "jobs", "--output=name")
    (sentence,) = [line for line in answer.output.splitlines() if line.startswith("error: ")]
    return sentence.removeprefix("error: ")


def test_what_the_cluster_lacks_is_one_sentence(place: Place, tmp_path: Path) -> None:
    assert refused(place, "launch.volume=ruins") == (
        "launch.volume is ruins, but this namespace has no such persistentvolumeclaim. It has runs."
    )
    assert refused(place, "+launch.secrets.PASSWORD=none/password") == (
        "launch.secrets.PASSWORD is none, but this namespace has no such secret. It has none."
    )
    assert refused(place, "launch.image=me/project:latest") == (
        "launch.image must end with the digest of an image, as registry.example.com/me/project@sha256:..., got "
        "me/project:latest. To build one, and see its digest: make image PUSH=registry.example.com/me/project"
    )
    assert refused(place, "launch.context=nobody") == (
        "you may not create jobs in this namespace of the cluster. Choose yours by launch.namespace=..., or ask "
        "whoever runs the cluster for the right to create jobs.batch."
    )
    assert refused(place, env={"KUBECONFIG": str(tmp_path / "none")}) == (
        "kubectl knows no cluster. Choose one: kubectl config use-context <name>"
    )
    assert refused(place, env={"PATH": place.env["PATH"].split(":")[1]}) == (
        "launch=kubernetes needs kubectl, which is not here. Install it (https://kubernetes.io/docs/tasks/tools), or "
        "use launch=local."
    )


@pytest.mark.parametrize(("settings", "sentence"), [
    (("trainer.accelerator=auto",), "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
    ((f"launch.image={IMAGE[:-1]}1",), f"ErrImagePull: {IMAGE[:-1]}1: not found"),
])  # fmt: skip
def test_why_a_job_waits_is_said(place: Place, settings: tuple[str, ...], sentence: str) -> None:
    with place.start(*SMALL, *settings, "tracking=off") as process:
        assert process.stdout
        line = next(line for line in process.stdout if " is waiting: " in line)
        assert line.rstrip().endswith(f" is waiting: {sentence}")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 75
    listed = run("make", "jobs", cwd=place.project, env=place.env).output
    assert sentence in listed
