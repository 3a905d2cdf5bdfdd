"""What is submitted to an engine that starts runs somewhere else, and how its answers are read.

tests/test_kubernetes.py does it on a real API server, where one is.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ml_project.train import train
from omegaconf import DictConfig, OmegaConf
from runengine import Run, UserError, compose
from runengine.launch import slurm
from runengine.launch.azureml import AzureML, command_job
from runengine.launch.job import Job, Seen, copy_project, describe, refuse_incomplete, result_in, shell
from runengine.launch.kubernetes import Kubernetes, _seen, objects
from runengine.launch.sky import Sky, _answer, task
from runengine.launch.slurm_host import SlurmHost
from runengine.launch.ssh import Ssh
from runengine.machine import doctor
from runengine.runs.run import REPORT
from runengine.settings import project
from runengine.settings.check import check
from runengine.settings.process import SENDS_LATER
from runengine.tracking.sync import sync

IMAGE = f"registry.example.com/me/project@sha256:{'0' * 64}"
FOLDER = Path("runs/digits/sweep-20261128-184013.840763-bd7bca/007")
NAME = "ml-project-20261128-184013-840763-bd7bca-007"


def settings(*typed: str) -> DictConfig:
    return compose("train", ["launch=kubernetes", f"launch.image={IMAGE}", "launch.volume=runs", *typed])


def job(*typed: str, folder: Path = FOLDER) -> Job:
    return describe(settings(*typed), folder, ["seed=7", f"run_dir={folder}"])


def container(*typed: str) -> dict[str, Any]:
    made: dict[str, Any] = objects(job(*typed))[-1]["spec"]["template"]["spec"]["containers"][0]
    return made


def variables(*typed: str) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(*typed)["env"]}


def test_a_job_trains_as_the_command_line_does() -> None:
    assert job().name == NAME
    assert container()["command"] == ["python", "-m", train.home.module, "seed=7", f"run_dir={FOLDER}"]


def test_a_long_name_keeps_what_distinguishes_it() -> None:
    names = {
        job(folder=Path(f"runs/x/sweep-20261128-184013.840763-{'a-long-name-' * 5}bd7bca/{n:03d}")).name
        for n in range(3)
    }
    assert len(names) == 3
    for name in names:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])", name), name


def test_what_a_pod_gets_follows_from_the_settings() -> None:
    limits = {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": "2"}
    ddp = ("trainer=ddp", "trainer.devices=2")
    assert container(*ddp)["resources"] == {"limits": limits, "requests": limits}
    assert "nvidia.com/gpu" not in container("trainer=cpu")["resources"]["limits"]
    assert (
        variables("+launch.env.A=1", "+launch.secrets.B=name/key", "+launch.secrets.C=name").items()
        >= {
            "A": "1",
            "B": {"secretKeyRef": {"name": "name", "key": "key"}},
            "C": {"secretKeyRef": {"name": "name", "key": "C"}},
        }.items()
    )


def test_a_server_of_mlflow_is_passed_on_and_a_file_is_not() -> None:
    assert variables("tracking=server", "tracking.mlflow_uri=https://mlflow.example.com")["MLFLOW_TRACKING_URI"] == (
        "https://mlflow.example.com"
    )
    assert "MLFLOW_TRACKING_URI" not in variables()


def test_several_nodes_find_each_other() -> None:
    two = ("trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2")
    service, made = objects(job(*two))
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= made["spec"]["template"]["metadata"]["labels"].items()
    known = variables(*two)
    assert known["MASTER_ADDR"] == f"{NAME}-0.{service['metadata']['name']}"
    assert known["LOCAL_WORLD_SIZE"] == "2"
    assert "job-completion-index" in known["NODE_RANK"]["fieldRef"]["fieldPath"]
    assert "MASTER_ADDR" not in variables()


@pytest.mark.parametrize(("environment", "rank", "child"), [
    ({}, 0, False),
    ({"LOCAL_RANK": "1"}, 1, True),
    ({"NODE_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2, False),
    ({"NODE_RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 3, True),
])  # fmt: skip
def test_the_number_of_a_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], rank: int, child: bool
) -> None:
    from runengine.settings import process

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (process.rank(), process.is_child()) == (rank, child)


@pytest.mark.parametrize(("typed", "sentence"), [
    (["launch=kubernetes"], "launch=kubernetes needs launch.image and launch.volume: what they are stands in "
     "src/runengine/conf/launch/kubernetes.yaml."),
    (["launch=kubernetes", "launch.image=me/project:1", "launch.volume=runs"],
     "launch.image must end with the digest of an image, as registry.example.com/me/project@sha256:..., got "
     "me/project:1. To build one, and see its digest: make image PUSH=registry.example.com/me/project"),
    (["launch=slurm", "launch.dry_run=true"],
     "launch.dry_run needs launch.host with launch=slurm: jobs of the Slurm here are made by submitit."),
])  # fmt: skip
def test_what_is_missing_is_said_before_anything_is_written(typed: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_incomplete(compose("train", typed).launch)
    assert str(error.value) == sentence


ENDED = "2026-11-28T18:40:51Z"


def cluster_says(conditions: list[tuple[str, str]], *pods: dict[str, Any]) -> Seen:
    status = [
        {"type": kind, "status": "True", "message": message, "lastTransitionTime": ENDED}
        for kind, message in conditions
    ]
    return _seen({"status": {"startTime": "2026-11-28T18:40:41Z", "conditions": status}}, list(pods))


def pod(phase: str, state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    containers = [{"name": "train", "state": state}] if state else []
    return {
        "metadata": {"name": "x", "creationTimestamp": ENDED},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


def ended(code: int, **more: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, **more}}


def test_the_answers_of_a_cluster_are_read() -> None:
    unschedulable = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    stuck = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    message = json.dumps({"val/loss": 0.5})
    assert cluster_says([]) == Seen("waiting")
    assert cluster_says([], pod("Pending", conditions=[unschedulable])).why == "0/3 nodes are available"
    assert cluster_says([], pod("Pending", stuck)).why == "ImagePullBackOff: not found"
    assert cluster_says([], pod("Pending"), pod("Running")).state == "running"
    done = cluster_says([("SuccessCriteriaMet", ""), ("Complete", "")], pod("Succeeded", ended(0, message=message)))
    assert done == Seen("finished", "", 10.0, {"val/loss": 0.5})
    assert cluster_says([("Complete", "")], pod("Succeeded", ended(0))).result == {}


@pytest.mark.parametrize(("state", "why"), [
    (ended(1, message="...\nerror: data/processed does not exist. Run: make data\n"),
     "data/processed does not exist. Run: make data"),
    (ended(137, reason="OOMKilled"),
     "it took more memory than launch.memory_gb. Give it more, or make data.batch_size smaller"),
    (ended(3), "its pod ended with exit status 3"),
])  # fmt: skip
def test_why_a_job_has_failed(state: dict[str, Any], why: str) -> None:
    assert cluster_says([("FailureTarget", ""), ("Failed", "BackoffLimitExceeded")], pod("Failed", state)).why == why


def test_a_job_whose_pods_are_gone_has_failed_too() -> None:
    assert cluster_says([("Failed", "Job has reached the specified backoff limit")]).why == (
        "Job has reached the specified backoff limit"
    )


def test_the_cluster_is_the_one_that_is_named() -> None:
    named = Kubernetes({"context": "lab", "namespace": "students"})
    assert named.follow("x") == ["kubectl", "--context=lab", "--namespace=students", "logs", "--follow", "job/x"]


def test_a_run_that_mlflow_does_not_reach_is_sent_by_whoever_has_its_folder(
    run_training: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SENDS_LATER, "1")
    run = run_training("tracking=mlflow", "trainer.max_epochs=1")
    assert json.loads(run.unsent.read_text()) == {
        "status": "FINISHED",
        "why": "it was trained where MLflow is not reached",
    }
    assert run.mlflow_id() is None
    monkeypatch.setenv(REPORT, str(tmp_path / "report"))
    run_training(f"run_dir={run.folder}")  # its machine was lost before anybody had heard that it had finished
    assert (tmp_path / "report").read_text() == run.metrics.read_text()
    assert run.mlflow_id() is None
    monkeypatch.delenv(SENDS_LATER)
    assert sync([run]) == 0
    assert run.mlflow_id()
    assert not run.unsent.exists()


def test_a_model_is_registered_by_a_job_where_it_reaches_the_registry() -> None:
    with pytest.raises(UserError, match=re.escape("register=true needs a server of MLflow, which the job reaches.")):
        job("register=true")
    assert job("register=true", "tracking=server", "tracking.mlflow_uri=https://mlflow.example.com").name == NAME


def over_there(*typed: str) -> Job:
    cfg = compose("train", ["launch=ssh", "launch.host=box", *typed])
    return describe(cfg, FOLDER, ["seed=7", "optimizer.lr=1e-3", f"run_dir={FOLDER}"])


def test_what_starts_a_run_on_another_machine(tmp_path: Path) -> None:
    machine = Ssh({"host": "box", "folder": "my work/x"})
    said = machine.write(over_there(), tmp_path)
    assert said == f"for run in {tmp_path.as_posix()}/*.sh; do ssh box bash -s <$run; done"
    script = (tmp_path / "007.sh").read_text()
    assert "cd $HOME/'my work/x' || exit 1" in script
    assert f"python -m ml_project.train seed=7 optimizer.lr=1e-3 run_dir={FOLDER} &" in script
    assert f"{SENDS_LATER}=1" in script
    subprocess.run(["bash", "-n", tmp_path / "007.sh"], check=True)


@pytest.mark.parametrize(("said", "sentence"), [
    ("write failed: No space left on device (28)", "the disk of box is full. Free some space there: ssh box"),
    ("ssh: connect to host box port 22: Connection timed out",
     "box cannot be reached: ssh: connect to host box port 22: Connection timed out. Try: ssh box"),
    ("", "box cannot be reached: it does not say why. Try: ssh box"),
])  # fmt: skip
def test_what_ssh_says_becomes_a_sentence(said: str, sentence: str) -> None:
    assert Ssh({"host": "box"})._explain(said) == sentence


def test_several_nodes_are_not_for_one_machine() -> None:
    several = over_there("trainer=ddp", "trainer.num_nodes=2")
    with pytest.raises(UserError, match=r"^launch=ssh trains on one machine: trainer.num_nodes must be 1\.$"):
        Ssh({"host": "box"}).check([several])


@pytest.mark.parametrize("typed", ["+launch.env.A=1", "+launch.secrets.PASSWORD=name/key"])
def test_any_variable_may_be_added(typed: str) -> None:
    all_typed = ["launch=kubernetes", f"launch.image={IMAGE}", "launch.volume=runs", typed]
    check(compose("train", all_typed), "train", all_typed)
    with pytest.raises(UserError, match=re.escape("+launch.other adds a setting that nothing reads")):
        check(compose("train", [*all_typed, "+launch.other=1"]), "train", [*all_typed, "+launch.other=1"])


def sky_task(*typed: str) -> dict[str, Any]:
    cfg = compose("train", ["launch=sky", "launch.volume=runs", "launch.gpu_type=A100", *typed])
    return task(describe(cfg, FOLDER, ["seed=7", f"run_dir={FOLDER}"]), Path("runs/x/launch/project"))


def test_a_task_of_skypilot_is_recovered_where_a_run_asks_for_that() -> None:
    made = sky_task("trainer=gpu", "launch.spot=true", "launch.infra=aws")
    assert made["resources"] == {
        "infra": "aws", "accelerators": {"A100": 1}, "cpus": "4+", "memory": "16+", "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]},
    }  # fmt: skip
    assert (made["workdir"], made["volumes"]) == ("runs/x/launch/project", {"/mnt/project": "runs"})
    assert f"python -m {train.home.module} seed=7 run_dir={FOLDER}; STATUS=$?\n" in made["run"]
    assert made["run"].startswith("unset ${!SLURM_@}\n")  # else a job of SkyPilot's would be put back by the run
    assert "accelerators" not in sky_task("trainer=cpu")["resources"]


def test_where_skypilot_keeps_the_runs() -> None:
    bucket = sky_task("launch.volume=s3://lab/project")
    assert bucket["file_mounts"] == {"/mnt/project": {"source": "s3://lab/project", "mode": "MOUNT_CACHED"}}
    folder = sky_task("launch.volume=/shared/project")
    assert not {"volumes", "file_mounts"} & folder.keys()
    assert "ln -s /shared/project/runs runs" in folder["run"]


def test_the_nodes_of_a_task_find_each_other() -> None:
    made = sky_task("trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2")
    assert (made["num_nodes"], made["resources"]["accelerators"]) == (2, {"A100": 2})
    assert "export NODE_RANK=$SKYPILOT_NODE_RANK MASTER_ADDR=$(" in made["run"]
    assert "export LOCAL_WORLD_SIZE=2\n" in made["run"]
    assert "NODE_RANK" not in sky_task()["run"]


def test_a_secret_is_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "very secret")
    made = sky_task("launch.secrets=[PASSWORD]")
    assert made["secrets"] == {"PASSWORD": None}
    assert "very secret" not in json.dumps(made)


def sky_says(status: str, log: str = "", **more: Any) -> Seen:
    records = [
        {"job_id": number, "job_name": "x", "status": each, "job_duration": 7.0, "failure_reason": None, **more}
        for number, each in ((3, status), (2, "FAILED"))  # it was submitted before
    ]

    class Answers(Sky):
        def _jobs(self) -> list[dict[str, Any]]:
            return records

        def log(self, name: str, num_lines: int) -> str:
            return log

    engine = Answers({})
    seen = engine.look(["x"])["x"]
    assert engine.follow("x")[-1] == "3"  # the newest
    return engine.complete("x", seen) if seen.state in ("finished", "failed") else seen


def test_the_answers_of_skypilot_are_read() -> None:
    assert sky_says("STARTING") == Seen("waiting", "a machine is being made")
    assert sky_says("RECOVERING").state == "waiting"
    assert sky_says("RUNNING") == Seen("running")
    assert sky_says("CANCELLED").state == "gone"
    log = '(x, pid=7) epoch 1\n(x, pid=7) result: {"val/loss": 0.5}\nJob finished (status: SUCCEEDED).\n'
    assert sky_says("SUCCEEDED", log) == Seen("finished", "", 7.0, {"val/loss": 0.5})
    assert sky_says("SUCCEEDED", "").result == {}
    assert sky_says("FAILED", "(x, pid=7) error: there are no data. Run: make data\n").why == (
        "there are no data. Run: make data"
    )
    assert sky_says("FAILED_SETUP", failure_reason="\x1b[31mmake setup\x1b[0m failed").why == "make setup failed"
    assert sky_says("FAILED_NO_RESOURCE").why == "FAILED_NO_RESOURCE"
    assert Sky({}).place == {}


def azure_job(*typed: str) -> dict[str, Any]:
    cfg = compose("train", ["launch=azureml", f"launch.image={IMAGE}", "launch.compute=gpu", *typed])
    return command_job(describe(cfg, FOLDER, ["seed=7", f"run_dir={FOLDER}"]))


def test_a_job_of_azure_starts_its_run_again_where_that_asks_for_it() -> None:
    made = azure_job("+launch.env.A=a b")
    assert made["compute"] == "azureml:gpu"
    assert made["outputs"]["project"]["path"].endswith("/paths/ml_project")
    assert made["command"].startswith("cd /app || exit 1\n")
    assert (
        f"while python -m {train.home.module} seed=7 run_dir={FOLDER}; STATUS=$?; [ $STATUS = 75 ]; do"
        in (made["command"])
    )
    assert "export A='a b'\n" in made["command"]
    assert "distribution" not in made
    spot = azure_job("launch.compute=null", "launch.instance_type=Standard_NC24ads_A100_v4", "launch.spot=true")
    assert (spot["queue_settings"], "compute" in spot) == ({"job_tier": "spot"}, False)


def test_the_nodes_of_an_azure_job_start_their_own_processes() -> None:
    made = azure_job("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2")
    assert made["distribution"] == {"type": "pytorch", "process_count_per_instance": 1}
    assert made["resources"]["instance_count"] == 2
    assert "unset LOCAL_RANK RANK WORLD_SIZE\n" in made["command"]
    assert "export LOCAL_WORLD_SIZE=4\n" in made["command"]


@pytest.mark.parametrize(("typed", "sentence"), [
    (["launch.instance_type=Standard_NC6"], "launch=azureml needs either launch.compute, "),
    (["launch.compute=null"], "launch=azureml needs either launch.compute, "),
    (["launch.spot=true"], "launch.spot is for launch.instance_type: a cluster has its own tier. Leave it out."),
])  # fmt: skip
def test_where_azure_trains_is_said_once(typed: list[str], sentence: str) -> None:
    cfg = compose("train", ["launch=azureml", f"launch.image={IMAGE}", "launch.compute=gpu", *typed])
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        AzureML({}).check([describe(cfg, FOLDER, [])])


def azure_says(status: str, log: str = "") -> Seen:
    answer = [
        {"name": name, "status": each, "tags": {"runengine": "x"}, "creation_context": {"created_at": at}}
        for name, each, at in (("lime_1", status, "2026-11-28T12:00"), ("lime_0", "Failed", "2026-11-28T11:00"))
    ]
    answer.append({"name": "other", "status": "Failed", "tags": {}, "creation_context": {"created_at": "2026"}})

    class Answers(AzureML):
        def _az(self, *arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(arguments, 0, json.dumps(answer), "")

        def log(self, name: str, num_lines: int) -> str:
            assert self.follow(name)[-1] == "--name=lime_1"  # the newest
            return log

    engine = Answers({})
    seen = engine.look(["x"])["x"]
    return engine.complete("x", seen) if seen.state in ("finished", "failed") else seen


def test_the_answers_of_azure_are_read() -> None:
    assert azure_says("Queued") == Seen("waiting", "queued")
    assert azure_says("Running") == Seen("running")
    assert azure_says("Canceled").state == "gone"
    assert azure_says("Completed", 'result: {"val/loss": 0.5}\n').result == {"val/loss": 0.5}
    assert azure_says("Failed", "error: there are no data\n").why == "there are no data"
    assert azure_says("Failed").why == "Azure says: Failed. Its page says more"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("ends", "status"), [((0,), 0), ((1,), 1), ((75, 0), 0)])
def test_what_a_shell_runs_where_nobody_sees_the_folder(
    again: bool, ends: tuple[int, ...], status: int, tmp_path: Path
) -> None:
    """By bash, with a program that ends as a training does."""
    program = (
        "import os, pathlib, sys; runs = pathlib.Path('runs'); n = len(list(runs.iterdir())); "
        f"(runs / str(n)).touch(); end = {ends}[n]; "
        "end or pathlib.Path(os.environ['RUNENGINE_REPORT']).write_text('{\"val/loss\": 0.5}\\n'); sys.exit(end)"
    )
    cfg = compose("train", ["launch=azureml", f"launch.image={IMAGE}", "launch.compute=gpu"])
    made = replace(describe(cfg, FOLDER, []), command=(sys.executable, "-c", program))
    root = tmp_path / "project"
    (root / "runs").mkdir(parents=True)
    command = shell(made, str(tmp_path / "store"), again=again)
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True)
    expected = ends[0] if not again else status
    assert done.returncode == expected, done.stderr
    assert result_in(done.stdout) == ({"val/loss": 0.5} if expected == 0 else {})
    assert len(list((tmp_path / "store/runs").iterdir())) == (len(ends) if again else 1)


def test_the_project_goes_along_without_what_is_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    package = root / "src/mine"
    for name in ("src/mine/data/x.py", "data/raw.csv", "runs/a/config.yaml", ".env", ".venv/x", ".dvc/cache/x",
                 ".dvc/config", "mlflow.db", "src/mine/__pycache__/x.pyc", "Makefile"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x", encoding="utf-8")
    monkeypatch.chdir(root)
    monkeypatch.setattr(project, "current", lambda: project.Project("mine", package))
    copy_project(tmp_path / "copy")
    copied = {
        each.relative_to(tmp_path / "copy").as_posix() for each in (tmp_path / "copy").rglob("*") if each.is_file()
    }
    assert copied == {"src/mine/data/x.py", ".dvc/config", "Makefile", "src/copy_of.json"}


def cluster_script(tmp_path: Path, *typed: str) -> str:
    cfg = compose("train", ["launch=slurm", "launch.host=login", "launch.partition=gpu", *typed])
    made = describe(cfg, FOLDER, ["seed=7", f"run_dir={FOLDER}"])
    assert SlurmHost({"host": "login"}).write(made, tmp_path) == (
        f"for run in {tmp_path.as_posix()}/*.sh; do ssh login sbatch <$run; done"
    )
    subprocess.run(["bash", "-n", tmp_path / "007.sh"], check=True)
    return (tmp_path / "007.sh").read_text()


def test_what_is_submitted_to_a_cluster_from_outside(tmp_path: Path) -> None:
    script = cluster_script(
        tmp_path, "trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2", "+launch.extra.nodelist='n1,n2'"
    )
    for option in ("partition=gpu", "time=60", "nodes=2", "ntasks-per-node=2", "gpus-per-node=2", "mem=16G",
                   "cpus-per-task=4", "signal=USR1@120", "requeue", "nodelist=n1,n2", "open-mode=append"):  # fmt: skip
        assert f"#SBATCH --{option}\n" in script
    assert f"srun python -m {train.home.module} seed=7 run_dir={FOLDER}; STATUS=$?\n" in script
    alone = cluster_script(tmp_path, "trainer=cpu", "launch.use_srun=false")
    assert "#SBATCH --signal=B:USR1@120\n" in alone
    assert not {"srun", "gpus-per-node"} & set(re.findall(r"^srun|gpus-per-node", alone, re.MULTILINE))


@pytest.mark.parametrize(("state", "seen"), [
    ("PENDING|Resources", Seen("waiting", "Resources")),
    ("PENDING|None", Seen("waiting")),
    ("RUNNING|None", Seen("running")),
    ("0", Seen("finished", seconds=7)),
    ("75", Seen("gone", seconds=7)),
    ("lost", Seen("failed", "Slurm has ended it: it was cancelled, or its node was lost")),
])  # fmt: skip
def test_the_answers_of_a_cluster_far_away_are_read(state: str, seen: Seen) -> None:
    assert SlurmHost({"host": "login"})._seen(state, 7.0) == seen


def test_what_skypilot_says_before_its_answer_is_no_part_of_it() -> None:
    said = "\x1b[2mFailed to connect. Starting a local server.\x1b[0m\n" + json.dumps([{"job_id": 1}], indent=2)
    assert _answer(subprocess.CompletedProcess([], 0, said, "")) == [{"job_id": 1}]
    with pytest.raises(UserError, match=r"^SkyPilot does not answer: half an ans\. Try: sky api info$"):
        _answer(subprocess.CompletedProcess([], 0, "half an ans", ""))


@pytest.mark.parametrize(("typed", "state", "found"), [
    (["launch=local"], "ok", "runs are trained on this machine"),
    (["launch=kubernetes"], "fail", "launch=kubernetes needs launch.image and launch.volume: what they are stands in "
     "src/runengine/conf/launch/kubernetes.yaml."),
    (["launch=ssh", "launch.host=none.invalid"], "fail", "none.invalid cannot be reached: ssh: Could not resolve "),
    (["lunch=x"], "fail", "lunch is not a setting. Did you mean launch?"),
])  # fmt: skip
def test_the_doctor_asks_an_engine(typed: list[str], state: str, found: str) -> None:
    result = doctor.launch(typed)
    assert result.state == state
    assert result.found.startswith(found)
    assert not Path("runs").exists()


@pytest.mark.parametrize(("typed", "sentence"), [
    (["launch.secrets=[NOT_SET]"],
     "launch.secrets names NOT_SET, which is not set here. Set it: export NOT_SET=..."),
    (["launch.gpu_type=null"],
     "launch=sky needs launch.gpu_type with trainer.devices, such as A100. To see all: sky gpus list"),
])  # fmt: skip
def test_what_skypilot_needs_is_said_before_it_is_asked(typed: list[str], sentence: str) -> None:
    cfg = compose("train", ["launch=sky", "launch.volume=runs", "launch.gpu_type=A100", "trainer=gpu", *typed])
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        Sky({}).check([describe(cfg, FOLDER, [])])


def test_several_processes_need_srun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm, "refuse_missing", lambda partition: None)  # there is no Slurm here
    two = ["launch=slurm", "launch.use_srun=false", "trainer=ddp", "trainer.devices=2"]
    cfg = compose("train", two)
    OmegaConf.update(cfg, "hydra.launcher", {"setup": [], "gpus_per_node": None}, force_add=True)
    with pytest.raises(UserError) as error:
        slurm.prepare(cfg, Run(tmp_path / "sweep"))
    assert str(error.value) == (
        "without srun (launch.use_srun) one process is started, but trainer.devices and trainer.num_nodes want 2. "
        "Leave launch.use_srun out: srun starts them."
    )
