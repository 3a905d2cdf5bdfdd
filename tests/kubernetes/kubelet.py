"""A node for a real API server: it runs the command of each pod as a process of this machine, and says how it ended.

    python tests/kubernetes/kubelet.py <folder> <kubeconfig> <project> <image>

What stands for the parts of a container: the image is a folder with a project, the volume is `<folder>/volume`, and the
pod's root a folder of links. There is no isolation, no DNS (pods meet on loopback), and one GPU less than anybody asks.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Pod = dict[str, Any]
NODE = "node"


class Api:
    """The API server of this kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        self.url = config["clusters"][0]["cluster"]["server"]
        self.token = config["users"][0]["user"]["token"]
        self.context = ssl._create_unverified_context()  # noqa: S323

    def ask(self, method: str, path: str, content: object = None, kind: str = "application/json") -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if content is None else json.dumps(content).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": kind},
        )
        try:
            with urllib.request.urlopen(request, context=self.context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return {}
            raise


class Kubelet:
    def __init__(self, folder: Path, kubeconfig: Path, project: Path, image: str) -> None:
        self.folder, self.project, self.image = folder, project, image
        self.api = Api(kubeconfig)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.index: dict[str, int] = {}  # of each pod in its job, where the server gives none
        self.deadline: dict[str, float] = {}
        self.name: dict[str, str] = {}

    def run(self) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Logs)
        server.kubelet = self  # type: ignore[attr-defined]
        key, certificate = self.folder / "key.pem", self.folder / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=node", "-days", "2"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.api.ask("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_port}},
        }
        self.api.ask("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status}, "application/merge-patch+json")
        while True:
            pods = self.api.ask("GET", "/api/v1/pods")["items"]
            for pod in pods:
                self.attend(pod, pods)
            time.sleep(0.1)

    def attend(self, pod: Pod, pods: list[Pod]) -> None:
        uid, phase = pod["metadata"]["uid"], pod["status"].get("phase")
        leaving = "deletionTimestamp" in pod["metadata"]
        if process := self.running.get(uid):
            if leaving and uid not in self.deadline:
                process.terminate()  # as a container's first process gets it, and no other
                self.deadline[uid] = time.monotonic() + pod["metadata"].get("deletionGracePeriodSeconds", 30)
            if uid in self.deadline and time.monotonic() > self.deadline[uid]:
                os.killpg(process.pid, signal.SIGKILL)
            if process.poll() is not None:
                self.end(pod, process.returncode)
                del self.running[uid]
        elif leaving:
            self.api.ask("DELETE", path_of(pod), {"gracePeriodSeconds": 0})
        elif phase == "Pending" and self.fits(pod):
            self.start(pod, pods)

    def names(self) -> list[str]:
        """Of the pods that run."""
        return [self.name[uid] for uid in list(self.running)]

    def fits(self, pod: Pod) -> bool:
        """Schedule it; say why not, as the scheduler and the node would."""
        (container,) = pod["spec"]["containers"]
        if "nvidia.com/gpu" in container["resources"].get("limits", {}):
            message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            self.patch(pod, conditions=[
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            ])  # fmt: skip
            return False
        if container["image"] != self.image:
            waiting = {"reason": "ErrImagePull", "message": f"{container['image']}: not found"}
            self.patch(pod, containerStatuses=[status_of(container, {"waiting": waiting})])
            return False
        return True

    def start(self, pod: Pod, pods: list[Pod]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        (container,) = pod["spec"]["containers"]
        self.name[uid] = name
        root, volume = self.folder / "pods" / name, self.folder / "volume"
        root.mkdir(parents=True)
        for part in self.project.iterdir():
            if part.name not in ("runs", "data", "mlflow.db"):
                (root / part.name).symlink_to(part)
        for mount in container["volumeMounts"]:
            if "subPath" in mount:
                (volume / mount["subPath"]).mkdir(parents=True, exist_ok=True)
                (root / mount["subPath"]).symlink_to(volume / mount["subPath"])
        python = self.project / ".venv/bin"
        environment = {"PATH": f"{python}:{os.environ['PATH']}", "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        for variable in container["env"]:
            environment[variable["name"]] = variable.get("value", "") or self.value(variable, pod, pods)
        if "MASTER_ADDR" in environment:
            environment["MASTER_ADDR"] = "127.0.0.1"
        environment["RUNENGINE_REPORT"] = str(self.folder / f"{uid}.message")
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[uid] = subprocess.Popen(
                container["command"], cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"name": NODE}}
        self.api.ask("POST", f"{path_of(pod)}/binding", binding)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        state = status_of(container, {"running": {"startedAt": now}})
        self.patch(pod, phase="Running", containerStatuses=[state], startTime=now)

    def value(self, variable: dict[str, Any], pod: Pod, pods: list[Pod]) -> str:
        source = variable["valueFrom"]
        if "secretKeyRef" in source:
            import base64

            secret = self.api.ask("GET", f"/api/v1/namespaces/default/secrets/{source['secretKeyRef']['name']}")
            return base64.b64decode(secret["data"][source["secretKeyRef"]["key"]]).decode()
        job = pod["metadata"]["labels"]["job-name"]
        others = {
            self.index[other["metadata"]["uid"]]
            for other in pods
            if other["metadata"]["labels"].get("job-name") == job and other["metadata"]["uid"] in self.running
        }
        number = next(number for number in range(100) if number not in others)
        self.index[pod["metadata"]["uid"]] = number
        known = {"metadata": {"annotations": {"batch.kubernetes.io/job-completion-index": str(number)}}}
        self.api.ask("PATCH", path_of(pod), known, "application/merge-patch+json")
        return str(number)

    def end(self, pod: Pod, code: int) -> None:
        (container,) = pod["spec"]["containers"]
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        report, log = self.folder / f"{uid}.message", self.folder / f"{name}.log"
        code = 128 - code if code < 0 else code
        message = report.read_text(encoding="utf-8") if report.exists() else ""
        if code and not message:  # FallbackToLogsOnError
            message = log.read_text(encoding="utf-8", errors="replace")[-2048:]
        ended = {"exitCode": code, "message": message, "reason": "Error" if code else "Completed"}
        phase = "Failed" if code else "Succeeded"
        self.patch(pod, phase=phase, containerStatuses=[status_of(container, {"terminated": ended})])

    def patch(self, pod: Pod, **status: object) -> None:
        if any(pod["status"].get(name) != value for name, value in status.items()):
            self.api.ask("PATCH", f"{path_of(pod)}/status", {"status": status}, "application/merge-patch+json")


class Logs(BaseHTTPRequestHandler):
    """What `kubectl logs` asks the API server for, and that a node."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        name, options = address.path.split("/")[3], parse_qs(address.query)
        kubelet = self.server.kubelet  # type: ignore[attr-defined]
        file = kubelet.folder / f"{name}.log"
        self.send_response(200)
        self.end_headers()
        content = file.read_bytes()
        if "tailLines" in options:
            content = b"".join(content.splitlines(keepends=True)[-int(options["tailLines"][0]) :])
        self.wfile.write(content)
        sent = file.stat().st_size
        while "follow" in options and name in kubelet.names():
            self.wfile.flush()
            time.sleep(0.1)
            with file.open("rb") as log:
                log.seek(sent)
                content = log.read()
            self.wfile.write(content)
            sent += len(content)

    def log_message(self, *_: object) -> None: ...


def path_of(pod: Pod) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def status_of(container: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": container["name"], "image": container["image"], "imageID": "", "ready": "running" in state,
        "restartCount": 0, "state": state,
    }  # fmt: skip


if __name__ == "__main__":
    Kubelet(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]).run()
