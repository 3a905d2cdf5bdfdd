"""Kubernetes: each run is a Job of batch/v1, submitted and watched by kubectl.

Its pods are replaced when they are drained, preempted or lost, and when they end with exit status 75; any other error
counts, and after `launch.retries` of them the run has failed. What a cluster was seen to do stands in the template's
docs/decisions.md.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..runs.run import REPORT
from ..settings import project
from ..settings.errors import RESUME_ME, UserError
from ..settings.files import atomic_write
from .job import ROOT, Job, Seen, as_yaml, error_in, later_or_server

CONTAINER = "train"
LABEL = "runengine/project"
USER = 1000  # of the image
# what a container waits for that does not come by itself
STUCK = {"CreateContainerConfigError", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"}
GPU = "nvidia.com/gpu"
INDEX = "batch.kubernetes.io/job-completion-index"

Object = dict[str, Any]


class Kubernetes:
    """The cluster of this context of kubectl.

    Args:
        settings: `context` and `namespace`, each may be None.
    """

    name = "kubernetes"
    page = "kubernetes.md"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.place = {name: settings.get(name) for name in ("context", "namespace")}
        self.pods: dict[str, str] = {}  # by job, whose log is to be read
        self.command = ["kubectl", *(f"--{name}={value}" for name, value in self.place.items() if value)]

    def reach(self) -> None:
        if shutil.which("kubectl") is None:
            raise UserError(
                "launch=kubernetes needs kubectl, which is not here. Install it "
                "(https://kubernetes.io/docs/tasks/tools), or use launch=local."
            )
        if self._kubectl("config", "current-context").returncode and len(self.command) == 1:
            raise UserError("kubectl knows no cluster. Choose one: kubectl config use-context <name>")
        allowed = self._kubectl("auth", "can-i", "create", "jobs.batch")
        if allowed.returncode and allowed.stdout.strip() != "no":
            raise UserError(f"the cluster does not answer: {_last_line(allowed.stderr)}. Try: kubectl get jobs")
        if allowed.returncode:
            raise UserError(
                "you may not create jobs in this namespace of the cluster. Choose yours by launch.namespace=..., or "
                "ask whoever runs the cluster for the right to create jobs.batch."
            )

    def check(self, jobs: Sequence[Job]) -> None:
        settings = jobs[0].settings
        self._need("persistentvolumeclaim", settings["volume"], "launch.volume")
        for variable, place in settings["secrets"].items():
            self._need("secret", str(place).partition("/")[0], f"launch.secrets.{variable}")
        if settings["gpu_type"] and jobs[0].gpus:
            self._refuse_unknown_gpu(settings["gpu_type"])
        for job in jobs:  # what the server would say of each, before the first is there
            self._create(job, "--dry-run=server")

    def prepare(self, job: Job) -> None:
        """The image has all of it."""

    def write(self, job: Job, folder: Path) -> str:
        atomic_write(folder / f"{job.folder.name}.yaml", as_yaml(*objects(job)))
        return " ".join([*self.command, "apply", "-f", folder.as_posix()])

    def submit(self, job: Job) -> None:
        self._kubectl("delete", "job", job.name, "--ignore-not-found", "--cascade=foreground", "--wait=true")
        self._create(job)

    def look(self, names: Sequence[str]) -> dict[str, Seen]:
        done = self._kubectl("get", "jobs,pods", "--selector", f"{LABEL}={_project()}", "--output=json")
        if done.returncode:
            raise UserError(f"the cluster does not answer: {_last_line(done.stderr)}. Try: kubectl get jobs")
        items: list[Object] = json.loads(done.stdout)["items"]
        jobs = {item["metadata"]["name"]: item for item in items if item["kind"] == "Job"}
        pods: dict[str, list[Object]] = {}
        for item in items:
            if item["kind"] == "Pod":
                pods.setdefault(item["metadata"].get("labels", {}).get("job-name", ""), []).append(item)
        self.pods |= {name: pod for name in jobs if (pod := _pod_to_read(pods.get(name, [])))}
        return {name: _seen(jobs[name], pods.get(name, [])) if name in jobs else Seen("gone") for name in names}

    def complete(self, name: str, seen: Seen) -> Seen:
        return seen  # its pods say all of it

    def log(self, name: str, num_lines: int) -> str:
        return self._kubectl("logs", self.pods.get(name, f"job/{name}"), f"--tail={num_lines}").stdout

    def follow(self, name: str) -> list[str]:
        return [*self.command, "logs", "--follow", self.pods.get(name, f"job/{name}")]

    def bring(self, job: Job) -> None:
        """A volume is read by a pod that mounts it, and nobody knows which may: docs/kubernetes.md."""

    def cancel(self, names: Sequence[str]) -> None:
        self._kubectl("delete", "job", *names, "--ignore-not-found", "--wait=false")

    def _create(self, job: Job, *options: str) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects(job)})
        done = self._kubectl("apply", "--filename=-", *options, stdin=text)
        if done.returncode:
            raise UserError(
                f"the cluster does not take job {job.name}: {_last_line(done.stderr)}. Change launch.*, see "
                "conf/launch/kubernetes.yaml."
            )

    def _need(self, kind: str, name: str, setting: str) -> None:
        done = self._kubectl("get", kind, name, "--output=name")
        if done.returncode and "NotFound" in done.stderr:
            there = self._kubectl("get", kind, "--output=jsonpath={.items[*].metadata.name}").stdout.split()
            known = f"It has {', '.join(there)}." if there else "It has none."
            raise UserError(f"{setting} is {name}, but this namespace has no such {kind}. {known}")

    def _refuse_unknown_gpu(self, wanted: str) -> None:
        """Nodes may be hidden, and are added by the minute: only what is listed and lacks it is refused."""
        label = f"{GPU}.product"
        found = self._kubectl("get", "nodes", "--output=json")
        nodes = json.loads(found.stdout)["items"] if found.returncode == 0 else []
        types = {node["metadata"].get("labels", {}).get(label) for node in nodes} - {None}
        if types and wanted not in types:
            raise UserError(f"launch.gpu_type must be one of {', '.join(sorted(map(str, types)))}, got {wanted}.")

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True, input=stdin)


def objects(job: Job) -> list[Object]:
    """The Job and, if it has several nodes, the Service by which they find each other."""
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _project(), "labels": {LABEL: _project()}},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LABEL: _project()}},
    }
    return [*([service] if job.nodes > 1 else []), _job(job)]


def _job(job: Job) -> Object:
    settings, labels = job.settings, {LABEL: _project(), "app.kubernetes.io/managed-by": project.ENGINE}
    queue = {"kueue.x-k8s.io/queue-name": settings["queue_name"]} if settings["queue_name"] else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job.name,
            "labels": {**labels, **queue},  # Kueue suspends a job that names a queue, until it is its turn
            "annotations": {"runengine/folder": job.folder.as_posix()},
        },
        "spec": {
            "completionMode": "Indexed",  # a pod knows its number, and its name follows from it
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": settings["retries"],
            "ttlSecondsAfterFinished": settings["keep_hours"] * 3600,
            "podReplacementPolicy": "Failed",  # a run's folder has one owner: first the old pod ends
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "Ignore",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [RESUME_ME]},
                    },
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(job)},
        },
    }


def _pod(job: Job) -> Object:
    settings = job.settings
    resources: Object = {"cpu": str(job.cpus * job.processes), "memory": f"{job.memory_gb}Gi"}
    if job.gpus:
        resources[GPU] = str(job.gpus)
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings["warn_s"],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"subdomain": _project()} if job.nodes > 1 else {}),
        **({"nodeSelector": {f"{GPU}.product": settings["gpu_type"]}} if settings["gpu_type"] and job.gpus else {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # not each file of the volume at each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": settings["image"],
                "command": list(job.command),
                "workingDir": ROOT,
                "env": _environment(job),
                "resources": {"limits": resources, "requests": resources},
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "project", "mountPath": f"{ROOT}/runs", "subPath": "runs"},
                    {"name": "project", "mountPath": f"{ROOT}/data", "subPath": "data"},
                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
                    {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
                ],
            }
        ],
        "volumes": [
            {"name": "project", "persistentVolumeClaim": {"claimName": settings["volume"]}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{job.memory_gb * 256}Mi"}},
        ],
    }


def _environment(job: Job) -> list[Object]:
    values = {
        **job.ranks,
        **later_or_server(job),
        "PYTHONUNBUFFERED": "1",
        REPORT: "/dev/termination-log",
        **job.settings["env"],
    }
    if job.nodes > 1:
        values["MASTER_ADDR"] = f"{job.name}-0.{_project()}"
    environment: list[Object] = [{"name": name, "value": str(value)} for name, value in values.items()]
    if job.nodes > 1:
        number = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
        environment.append({"name": "NODE_RANK", "valueFrom": number})
    for name, place in job.settings["secrets"].items():
        secret, _, key = str(place).partition("/")
        environment.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key or name}}})
    return environment


def _seen(job: Object, pods: list[Object]) -> Seen:
    conditions = {each["type"]: each for each in job["status"].get("conditions", []) if each["status"] == "True"}
    if "Complete" in conditions:
        return Seen(
            "finished",
            seconds=_seconds(job, conditions["Complete"]),
            result=_result([pod for pod in pods if pod["status"]["phase"] == "Succeeded"]),
        )
    if "Failed" in conditions:
        ended = sorted((pod for pod in pods if pod["status"]["phase"] == "Failed"), key=_created)
        why = _why_ended(ended[-1]) if ended else str(conditions["Failed"].get("message", ""))
        return Seen("failed", why, _seconds(job, conditions["Failed"]))
    if any(pod["status"]["phase"] == "Running" for pod in pods):
        return Seen("running")
    waiting = [pod for pod in pods if pod["status"]["phase"] == "Pending"]
    return Seen("waiting", next(filter(None, map(_why_waiting, waiting)), ""))


def _seconds(job: Object, end: Object) -> float:
    began, ended = (datetime.fromisoformat(each) for each in (job["status"]["startTime"], end["lastTransitionTime"]))
    return (ended - began).total_seconds()


def _result(pods: list[Object]) -> dict[str, float]:
    """What rank 0 has left at REPORT."""
    for pod in pods:
        for container in pod["status"].get("containerStatuses", []):
            with suppress(ValueError):
                return dict(json.loads(container["state"]["terminated"].get("message", "")))
    return {}


def _pod_to_read(pods: list[Object]) -> str:
    """Of those that run that of the first node; where none runs the one that ended last."""
    running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
    if running:
        pod = min(running, key=lambda pod: int(pod["metadata"].get("annotations", {}).get(INDEX, 0)))
    else:
        ended = [pod for pod in pods if pod["status"]["phase"] != "Pending"]
        if not ended:
            return ""
        pod = max(ended, key=_created)
    return f"pod/{pod['metadata']['name']}"


def _created(pod: Object) -> str:
    return str(pod["metadata"]["creationTimestamp"])


def _why_waiting(pod: Object) -> str:
    """What the scheduler says, or the node."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason", ""))
    for container in pod["status"].get("containerStatuses", []):
        waits = container["state"].get("waiting", {})
        if waits.get("reason") in STUCK:
            return f"{waits['reason']}: {waits.get('message', '')}"
    return ""


def _why_ended(pod: Object) -> str:
    for container in pod["status"].get("containerStatuses", []):
        ended = container["state"].get("terminated")
        if not ended:
            continue
        if ended.get("reason") == "OOMKilled":
            return "it took more memory than launch.memory_gb. Give it more, or make data.batch_size smaller"
        return error_in(ended.get("message", "")) or f"its pod ended with exit status {ended['exitCode']}"
    return str(pod["status"].get("message") or pod["status"].get("reason") or "")


def _project() -> str:
    """As a name of Kubernetes has to be."""
    return re.sub(r"[^a-z0-9]+", "-", project.current().package.lower()).strip("-")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines() or ["it does not say why"]
    return re.sub(r"^(error|Error from server( \(\w+\))?): ", "", lines[-1]).rstrip(".")
