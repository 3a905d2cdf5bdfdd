"""The pipeline and its data: what runs again, what goes on after a kill, and remotes that are there or not.

The remotes are a folder, S3 emulated by moto, and SSH, all on this machine; Azure and Google Cloud cannot be had here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CHOICES, PROJECT, SSHD, Answer, Bake, commit, run, serve_ssh

pytestmark = pytest.mark.slow

SHORT = "trainer=cpu trainer.max_epochs=2 trainer.limit_train_batches=3"
PERSON = {f"GIT_{who}_{what}": "x@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
WEIGHTS = """
import hashlib, sys, torch
state = torch.load(f"{sys.argv[1]}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
print(hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest())
"""


@dataclass(frozen=True)
class Pipeline:
    """A copy of the demo in a Git repository of its own, with the demo's environment."""

    path: Path
    env: dict[str, str]

    def dvc(self, *arguments: str, expect: int = 0) -> str:
        return run("dvc", *arguments, cwd=self.path, env=self.env, expect=expect).output

    def stages(self) -> str:
        """What `dvc repro` ran, by the first letters."""
        return "".join(name[0] for name in re.findall(r"^Running stage '(\w+)'", self.dvc("repro"), re.MULTILINE))

    def decided(self) -> str:
        """What it would run next, after the settings; that is then taken as done, which saves a training."""
        self.dvc("repro", "settings")
        changed = json.loads(self.dvc("status", "--json"))
        self.dvc("commit", "--force")
        return "".join(name[0] for name in ("settings", "prepare", "train", "evaluate") if name in changed)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.path / file).read_text(encoding="utf-8")
        assert old in text
        (self.path / file).write_text(text.replace(old, new), encoding="utf-8")

    def append(self, file: str, line: str) -> None:
        with (self.path / file).open("a", encoding="utf-8") as opened:
            opened.write(f"\n{line}\n")

    def make(self, target: str, expect: int = 0) -> str:
        return run("make", target, cwd=self.path, env=self.env, expect=expect).output

    def wipe(self) -> None:
        """As a fresh clone: nothing that DVC keeps is here."""
        for folder in ("data", "runs", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.path / folder, ignore_errors=True)


@pytest.fixture
def pipeline(project: Path, env: dict[str, str], tmp_path: Path) -> Pipeline:
    copy = tmp_path / "project"
    written = {"data", "runs", "mlruns", "mlflow.db", "mlflow.db.lock", "dvc.lock"}  # by tests before this one
    copy.mkdir()
    for part in project.iterdir():
        if part.is_dir() and part.name not in written | {".venv", ".dvc"}:
            shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif part.is_file() and part.name not in written:
            shutil.copy(part, copy)
    (copy / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(project / ".dvc" / name, copy / ".dvc")
    (copy / ".venv").symlink_to(project / ".venv")
    (copy / "pipeline.yaml").write_text(f'prepare: ""\ntrain: "{SHORT}"\n', encoding="utf-8")
    (copy / ".gitignore").write_text((copy / ".gitignore").read_text() + "/.venv\n")
    commit(copy)
    path = f"{project / '.venv/bin'}:{env['PATH']}"
    return Pipeline(copy, {**env, **PERSON, "PATH": path, "HOME": str(tmp_path)})


def test_what_changed_runs_again_and_what_depends_on_it(pipeline: Pipeline) -> None:
    conf, engine = "src/my_project/conf", "src/runengine/conf"
    pipeline.edit("pipeline.yaml", SHORT, f"{SHORT} tracking=off")  # saves a minute, and changes no stage
    assert pipeline.stages() == "spte"
    assert pipeline.stages() == ""
    lock = re.search(r"path: data/processed\n\s+hash: md5\n\s+md5: (\S+)", (pipeline.path / "dvc.lock").read_text())
    assert lock
    version = "from runengine.runs.provenance import *; print(data_version(Path('data/processed')))"
    printed = run("python", "-c", version, cwd=pipeline.path, env=pipeline.env).output
    assert f"'data_dvc_md5': '{lock[1]}'" in printed

    for unrelated in ("search/default", "model/mlp", "optimizer/sgd"):
        pipeline.append(f"{conf}/{unrelated}.yaml", "new: 1")
    for unrelated in ("launch/slurm", "tracking/server", "debug/overfit"):
        pipeline.append(f"{engine}/{unrelated}.yaml", "new: 1")
    pipeline.append("src/runengine/machine/doctor.py", "# a sentence of the doctor")
    assert pipeline.stages() == "s"
    pipeline.append("src/my_project/evaluate.py", "# changed")
    assert pipeline.stages() == "se"
    pipeline.edit(f"{conf}/optimizer/adamw.yaml", "lr: 0.003", "lr: 0.002")
    assert pipeline.stages() == "ste"
    assert "lr: 0.002" in (pipeline.path / "runs/dvc/latest/config.yaml").read_text()
    pipeline.edit(f"{conf}/prepare.yaml", "split_seed: 0", "split_seed: 1")
    assert pipeline.stages() == "spte"
    pipeline.append("src/my_project/model.py", "# changed")
    assert pipeline.decided() == "te"
    (pipeline.path / "src/my_project/layers").mkdir()
    (pipeline.path / "src/my_project/layers/blocks.py").write_text("SIZE = 3\n", encoding="utf-8")
    pipeline.append("src/my_project/model.py", "from .layers.blocks import SIZE")
    assert pipeline.decided() == "te"
    pipeline.append("src/my_project/layers/blocks.py", "# changed")
    assert pipeline.decided() == "te"
    (pipeline.path / "src/runengine/VERSION").write_text("99.0.0\n", encoding="utf-8")
    assert pipeline.stages() == "te"
    printed = pipeline.dvc("repro", "--force", "train")
    assert "runs/dvc/latest starts over: it was finished" in printed


def start(pipeline: Pipeline, until: str) -> subprocess.Popen[bytes]:
    """`dvc repro`, up to this line of its training's log."""
    log = pipeline.path / "runs/dvc/latest/train.log"
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=pipeline.path, env=pipeline.env, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit "ignore"
    )  # fmt: skip
    for _ in range(1200):
        if log.is_file() and until in log.read_text():
            return process
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError(f"{until!r} never came")


def outcome(folder: Path, run_folder: Path | str, env: dict[str, str]) -> tuple[str, str]:
    """History and weights."""
    weights = run("python", "-c", WEIGHTS, run_folder, cwd=folder, env=env).output
    return (folder / run_folder / "history.csv").read_text(), weights


@pytest.fixture(scope="module")
def straight(demo: tuple[Path, str], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of a training of sixty epochs that nothing stopped, without DVC."""
    project = demo[0]
    folder, path = tmp_path_factory.mktemp("straight") / "run", f"{project / '.venv/bin'}:{env['PATH']}"
    settings = SHORT.replace("max_epochs=2", "max_epochs=60").split()
    train = ("python", "-m", "my_project.train", *settings, "tracking=off", f"run_dir={folder}")
    run(*train, cwd=project, env={**env, "PATH": path})
    return outcome(project, folder, {**env, "PATH": path})


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_pipeline_that_was_stopped_goes_on(
    pipeline: Pipeline, straight: tuple[str, str], signum: signal.Signals
) -> None:
    pipeline.edit("pipeline.yaml", SHORT, f"{SHORT} tracking=off")
    pipeline.stages()  # so that there is an older run in the folder
    pipeline.edit("pipeline.yaml", "max_epochs=2", "max_epochs=60")
    process = start(pipeline, "epoch 4 of 60")
    os.killpg(process.pid, signum)
    assert process.wait(timeout=60) != 0

    printed = pipeline.dvc("repro")
    assert "Running stage 'settings'" not in printed
    assert "resuming from runs/dvc/latest/checkpoints/last.ckpt" in printed
    assert "starts over" not in printed
    run_folder = pipeline.path / "runs/dvc/latest"
    assert len((run_folder / "starts.jsonl").read_text().splitlines()) == 2
    assert pipeline.stages() == ""
    assert outcome(pipeline.path, "runs/dvc/latest", pipeline.env) == straight


def test_a_run_that_was_stopped_is_not_continued_with_other_settings(pipeline: Pipeline) -> None:
    pipeline.edit("pipeline.yaml", "max_epochs=2", "max_epochs=2000")
    process = start(pipeline, "epoch 4 of 2000")
    mlflow_run_id = pipeline.path / "runs/dvc/latest/mlflow_run_id"
    for _ in range(600):  # a thread asks for it during the training
        if mlflow_run_id.exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    old = mlflow_run_id.read_text()
    pipeline.edit("src/my_project/conf/optimizer/adamw.yaml", "lr: 0.003", "lr: 0.004")
    pipeline.edit("pipeline.yaml", "max_epochs=2000", "max_epochs=2")
    printed = pipeline.dvc("repro")
    assert "runs/dvc/latest starts over: optimizer.lr, trainer.max_epochs changed" in printed
    assert len((pipeline.path / "runs/dvc/latest/history.csv").read_text().splitlines()) == 3
    assert mlflow_run_id.read_text() != old


def test_experiments_are_compared_and_know_their_mlflow_run(pipeline: Pipeline) -> None:
    pipeline.stages()
    commit(pipeline.path)
    pipeline.dvc("exp", "run", "-n", "mlp", "-S", f"pipeline.yaml:train='{SHORT} model=mlp optimizer.lr=0.01'")
    mlflow_id = (pipeline.path / "runs/dvc/latest/mlflow_run_id").read_text().strip()
    shown = pipeline.dvc("exp", "show", "--no-pager", "--only-changed", "--md")
    (line,) = (line for line in shown.splitlines() if "[mlp]" in line)
    assert {"0.01", mlflow_id} <= {cell.strip() for cell in line.split("|")}
    changed = {line.split()[1] for line in pipeline.dvc("metrics", "diff").splitlines()[1:]}
    assert {"val/accuracy", "test/accuracy"} <= changed
    assert re.search(r"optimizer\.lr +0\.003 +0\.01\n", pipeline.dvc("params", "diff"))
    assert "index.html" in pipeline.dvc("plots", "diff")
    page = (pipeline.path / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "Learning curve" in page
    assert "Confusion matrix" in page


def test_an_experiment_in_a_copy_tracks_in_the_projects_mlflow(pipeline: Pipeline) -> None:
    pipeline.stages()
    commit(pipeline.path)
    before = (pipeline.path / "runs/dvc/latest/config.yaml").read_text()
    pipeline.dvc("exp", "run", "--temp", "-n", "aside", "-S", f"pipeline.yaml:train='{SHORT} optimizer.lr=0.01'")
    assert (pipeline.path / "runs/dvc/latest/config.yaml").read_text() == before
    shown = json.loads(pipeline.dvc("exp", "show", "--json"))
    (aside,) = (line["revs"][0]["data"] for line in shown[1]["experiments"] if line["name"] == "aside")
    mlflow_id = aside["metrics"]["runs/dvc/latest/metrics.json"]["data"]["mlflow_run_id"]
    ask = f"import mlflow; print(mlflow.MlflowClient('sqlite:///mlflow.db').get_run('{mlflow_id}').info.status)"
    assert run("python", "-c", ask, cwd=pipeline.path, env=pipeline.env).output.strip() == "FINISHED"


# Remotes


@pytest.fixture(scope="session")
def dvc_with_remotes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with DVC, S3 and SSH: the demo has what a local remote needs."""
    wanted = next(name for name in dependencies() if name.startswith("dvc"))
    return new_venv(tmp_path_factory.mktemp("dvc"), re.sub(r"\{\{.*?\}\}", "[s3,ssh]", wanted))


def dependencies() -> list[str]:
    names: list[str] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    return names


def new_venv(folder: Path, *wanted: str) -> Path:
    """By uv: pip takes minutes to find versions that go together."""
    python = folder / "venv/bin/python"
    run(sys.executable, "-m", "uv", "venv", "-q", "--python", sys.executable, folder / "venv", cwd=folder)
    run(sys.executable, "-m", "uv", "pip", "install", "-q", "--python", python, *wanted, cwd=folder)
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(port: int) -> None:
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.25)
    raise AssertionError(f"nothing listens at {port}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 with a bucket `data`; of its own, as pip never finds a moto that goes with dvc[s3]."""
    python = new_venv(tmp_path_factory.mktemp("moto"), "moto[server]>=5,<6")
    port = free_port()
    server = subprocess.Popen(
        [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        address = f"http://127.0.0.1:{port}"
        make = f"import boto3; boto3.client('s3', endpoint_url='{address}').create_bucket(Bucket='data')"
        run(python, "-c", make, cwd=python.parent, env={**os.environ, **AWS})
        yield address
    finally:
        server.terminate()
        server.wait()


AWS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of an sshd on loopback that knows one key, and the folder with that key."""
    if not SSHD.exists():
        pytest.skip("sshd is not here (openssh-server)")
    folder = tmp_path_factory.mktemp("ssh")
    with serve_ssh(folder, "Subsystem sftp internal-sftp") as port:
        yield port, folder


Remote = Callable[[str], Pipeline]


@pytest.fixture
def remote(pipeline: Pipeline, request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """A pipeline whose data go to such a remote, as one who has configured it has it."""

    def configure(kind: str) -> Pipeline:
        env = {**pipeline.env}
        if kind != "local":
            # `make push` with a Python that has this remote's extra; the training has none of it
            python = request.getfixturevalue("dvc_with_remotes")
            pipeline.edit("Makefile", "@python scripts/data_remote.py", f"@{python} scripts/data_remote.py")
        if kind == "local":
            pipeline.dvc("remote", "modify", "data", "url", str(tmp_path / "store"))
        elif kind == "s3":
            env |= AWS
            pipeline.dvc("remote", "modify", "data", "url", "s3://data/project")
            pipeline.dvc("remote", "modify", "data", "endpointurl", request.getfixturevalue("s3"))
        else:
            port, folder = request.getfixturevalue("ssh")
            pipeline.dvc("remote", "modify", "data", "url", f"ssh://127.0.0.1:{port}{tmp_path}/store")
            pipeline.dvc("remote", "modify", "--local", "data", "keyfile", str(folder / "key"))
        return Pipeline(pipeline.path, env)

    return configure


def test_what_has_been_made_so_far_comes_back(remote: Remote) -> None:
    pipeline = remote("local")
    lock = pipeline.path / "dvc.lock"
    lock.unlink(missing_ok=True)
    assert error_of(pipeline, "pull") == (
        "error: dvc.lock names no data yet, so there is nothing to pull. Run: make data, or dvc repro."
    )
    pipeline.make("data")
    assert "train:" not in lock.read_text()
    pipeline.make("push")
    pipeline.wipe()
    assert re.search(r"\d+ files fetched", pipeline.make("pull"))
    assert (pipeline.path / "data/processed/split.json").is_file()
    assert pipeline.make("pull") == "Everything is up to date.\n"


@pytest.mark.parametrize("kind", ["local", "s3", "ssh"])
def test_what_was_pushed_comes_back_and_nothing_runs_again(remote: Remote, kind: str) -> None:
    pipeline = remote(kind)
    pipeline.stages()
    assert re.search(r"\d+ files pushed", pipeline.make("push"))
    assert pipeline.make("push") == "Everything is up to date.\n"
    tracked = run("git", "ls-files", "--others", "--exclude-standard", cwd=pipeline.path).output
    assert "config.local" not in tracked
    before = (pipeline.path / "runs/dvc/latest/checkpoints/best.ckpt").read_bytes()
    pipeline.wipe()
    assert re.search(r"\d+ files fetched", pipeline.make("pull"))
    assert (pipeline.path / "runs/dvc/latest/checkpoints/best.ckpt").read_bytes() == before
    assert pipeline.stages() == ""
    assert "test/accuracy" in pipeline.dvc("metrics", "show")


def error_of(pipeline: Pipeline, target: str) -> str:
    """The one line on stderr of a `make` that fails; make's own comes after it."""
    done = subprocess.run(
        ["make", target], cwd=pipeline.path, env=pipeline.env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 2
    sentence, of_make = done.stderr.splitlines()
    assert of_make.startswith("make: ***")
    return sentence


def refuse_after(s3: str, num_requests: int) -> None:
    """From then on moto looks at the keys, and knows none."""
    address, plain = f"{s3}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(address, str(num_requests).encode(), plain)).close()


def test_a_remote_that_is_not_there_gets_one_sentence(remote: Remote, s3: str, ssh: tuple[int, Path]) -> None:
    pipeline = remote("s3")
    pipeline.dvc("repro", "prepare")

    def modify(*arguments: str) -> None:
        pipeline.dvc("remote", "modify", *arguments)

    def said(sentence: str, target: str = "push") -> None:
        assert error_of(pipeline, target) == f"error: {sentence}"

    sign_in = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run: aws configure."
    modify("data", "url", "s3://CHANGE-ME/project")
    said(
        "the address of the remote was never set: s3://CHANGE-ME/project. "
        "Run: dvc remote modify data url s3://<yours>/project."
    )
    modify("data", "url", "s3://nobody/project")
    for target in ("push", "pull"):
        pipeline.wipe() if target == "pull" else None
        said(
            f"s3://nobody/project at {s3}: there is no such bucket. "
            "Create it, or correct the address: dvc remote modify data url <address>.",
            target,
        )
    pipeline.dvc("repro", "prepare")
    modify("data", "url", "s3://data/refused")
    nobody = Pipeline(pipeline.path, {name: value for name, value in pipeline.env.items() if "ACCESS_KEY" not in name})
    sentence = f"error: s3://data/refused at {s3}: no credentials were found. {sign_in}"
    assert error_of(nobody, "push") == sentence
    refuse_after(s3, 0)
    said(f"s3://data/refused at {s3}: access was refused with the credentials that were found. {sign_in}")
    refuse_after(s3, 1_000_000)
    nothing = f"http://127.0.0.1:{free_port()}"
    modify("data", "endpointurl", nothing)
    look = "Check the address (dvc remote list) and the network."
    said(f"s3://data/refused at {nothing} cannot be reached. {look}")
    modify("data", "--unset", "endpointurl")

    port, folder = ssh
    modify("data", "url", f"ssh://127.0.0.1:{port}/store")
    modify("--local", "data", "keyfile", str(folder / "other"))
    sign_in = "Run: ssh-add, or: dvc remote modify --local data keyfile <file>."
    said(f"ssh://127.0.0.1:{port}/store: access was refused with the credentials that were found. {sign_in}")
    modify("--local", "data", "keyfile", str(folder / "nothing"))
    said(f"ssh://127.0.0.1:{port}/store: no credentials were found. {sign_in}")
    modify("--local", "data", "keyfile", str(folder / "key"))
    modify("data", "url", nothing.replace("http", "ssh") + "/store")
    said(f"{nothing.replace('http', 'ssh')}/store cannot be reached. {look}")

    (pipeline.path / ".dvc/config.local").unlink()
    pipeline.dvc("remote", "remove", "data")
    said("there is no remote. Run: dvc remote add -d data <address>.")


def damage(file: Path) -> None:
    """Other content of the same length, and as unwritable as DVC leaves its files."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(0o444)


def test_data_that_are_damaged_in_dvcs_cache_too_are_made_again_by_what_the_sentence_names(pipeline: Pipeline) -> None:
    """`make data` would bring back the damaged file: DVC takes its cache for intact."""
    pipeline.dvc("repro", "prepare")
    manifest = next((pipeline.path / ".dvc/cache/files/md5").rglob("*.dir"))
    (md5,) = (entry["md5"] for entry in json.loads(manifest.read_text()) if entry["relpath"] == "val_images.npy")
    damage(pipeline.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    shutil.rmtree(pipeline.path / "data/processed")
    pipeline.make("data")
    train = ("python", "-m", "my_project.train", "experiment=smoke", "tracking=off")
    env = {**pipeline.env, "PYTHONPATH": "src"}
    printed = run(*train, cwd=pipeline.path, env=env, expect=1).output
    sentence, command = printed.splitlines()[-1].split(" Run: ")
    assert sentence == ("error: data/processed/val_images.npy is damaged: its SHA-256 is not the one in split.json.")
    run(*command.split(), cwd=pipeline.path, env=env)
    run(*train, cwd=pipeline.path, env=env)


def test_damaged_data_go_nowhere(remote: Remote, tmp_path: Path) -> None:
    pipeline = remote("local")
    pipeline.dvc("repro", "prepare")
    manifest = next((pipeline.path / ".dvc/cache/files/md5").rglob("*.dir"))
    md5 = json.loads(manifest.read_text())[0]["md5"]
    name = f"files/md5/{md5[:2]}/{md5[2:]}"
    damage(pipeline.path / ".dvc/cache" / name)
    sentence = (
        f"error: the content of 1 file(s) in DVC's cache has changed: .dvc/cache/{name}. "
        "Delete them, then fetch them again (make pull) or create them again (dvc repro --force)."
    )
    assert [error_of(pipeline, "push"), error_of(pipeline, "pull")] == [sentence, sentence]
    assert not (tmp_path / "store").exists()
    (pipeline.path / ".dvc/cache" / name).unlink()
    pipeline.dvc("repro", "--force", "prepare")
    assert re.search(r"\d+ files pushed", pipeline.make("push"))

    damage(tmp_path / "store" / name)
    pipeline.wipe()
    assert error_of(pipeline, "pull") == (
        f"error: {tmp_path}/store/{name} is damaged in the remote: its content does not match its name. "
        "Delete it there, then run make push where the data are intact."
    )
    (tmp_path / "store" / name).unlink()
    pipeline.wipe()
    assert error_of(pipeline, "pull") == (
        f"error: {tmp_path}/store does not have 1 file(s) that dvc.lock names, such as {md5}. "
        "Run make push where the data are, or create them again: dvc repro --force."
    )
    assert (
        "ERROR: failed to pull data"
        in run("make", "pull", "ARGS=-v", cwd=pipeline.path, env=pipeline.env, expect=2).output
    )


def test_dvc_takes_the_configuration_of_every_remote(bake: Bake, python: Path, env: dict[str, str]) -> None:
    for kind in CHOICES["data_remote"]:
        project = bake(data_remote=kind, project_slug=f"p-{kind}").path
        commit(project)
        answer: Answer = run(python.with_name("dvc"), "remote", "list", cwd=project, env={**env, "COLUMNS": "500"})
        address = str(project.parent / f"p-{kind}-data") if kind == "local" else f"{kind}://CHANGE-ME/p-{kind}"
        assert answer.output.split() == ["data", address, "(default)"]
