"""What is submitted to an engine that starts runs somewhere else, and how its answers are read.

tests/test_kubernetes.py does it on a real API server, where one is.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_project.train import train
from omegaconf import DictConfig
from runengine import Run, UserError, compose
from runengine.launch.job import Job, Seen, describe, refuse_incomplete
from runengine.launch.kubernetes import Kubernetes, _seen, objects
from runengine.launch.ssh import Ssh
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
