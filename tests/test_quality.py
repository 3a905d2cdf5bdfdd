"""What guards a project: first commit, checks before each one, audit, what CI types; all with real parts."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import PROJECT, Answer, Bake, Project, link_environment, run
from test_ci import commands
from test_terminal import session

pytestmark = pytest.mark.slow

TOOLS = Path(sys.executable).parent
QUESTION = "Put this project into Git now, with a first commit and checks before each commit? [y/N] "
LATER = "Not now. Later: make first-commit\n"
Make = Callable[..., Answer]


@pytest.fixture
def project(bake: Bake, demo: tuple[Path, str]) -> Path:
    """A team's new project next to the demo, with the demo's environment: what it installs is the same."""
    settings = tomllib.loads((demo[0] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ml-template"]
    answers = {"env_manager": "venv", "cuda": "cpu", "python_version": settings["python"]}
    folder = bake(profile="team", ci="github", **answers).path
    link_environment(demo[0], folder)
    return folder


@pytest.fixture
def somebody(env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A user whom Git knows. mypy is left out of the hooks: `make check` runs it in another test."""
    (tmp_path / "gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.com\n", encoding="utf-8")
    drop = {name: value for name, value in env.items() if name != "CI"}
    return {**drop, "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "SKIP": "mypy"}


def notebook(output: str) -> str:
    printed = {"output_type": "stream", "name": "stdout", "text": [output]}
    cell = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "outputs": [printed], "source": []}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


# in two parts, or this file would itself be stopped
FAULTS = {
    "notes.txt": ("passwords, tokens, private keys", "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE\n"),
    "deploy.sh": ("passwords, tokens, private keys", "key=AKIA" + "IOSFODNN7EXAMPLE\n"),
    "look.ipynb": ("notebooks without output", notebook("42")),
    "weights.bin": ("files of more than 2 MB", "\0" * 20_000_000),
    "notes.md": ("typos", "We rec" + "ieve the data.\n"),
}


def test_each_fault_is_stopped_by_its_hook(project: Path, somebody: dict[str, str]) -> None:
    run("make", "first-commit", cwd=project, env=somebody)
    for name, (hook, text) in FAULTS.items():
        (project / name).write_text(text, encoding="utf-8")
        run("git", "add", name, cwd=project, env=somebody)
        said = run("git", "commit", "--message", "x", cwd=project, env=somebody, expect=1).output
        failed = [line.partition("..")[0] for line in said.splitlines() if line.endswith("Failed")]
        assert failed == [hook], said
        run("git", "rm", "--quiet", "--force", name, cwd=project, env=somebody)
    (project / "notes.md").write_text("We receive the data.\n", encoding="utf-8")
    run("git", "add", "notes.md", cwd=project, env=somebody)
    run("git", "commit", "--message", "x", cwd=project, env=somebody)
    run(project / ".venv/bin/codespell", *PROJECT.rglob("*.m[kd]"), *PROJECT.rglob("*.yml"), cwd=project)


def test_the_first_commit_is_offered_at_a_terminal_and_nowhere_else(project: Path, somebody: dict[str, str]) -> None:
    offer = ["make", "--no-print-directory", "offer"]
    assert run(*offer, cwd=project, env=somebody).output == ""
    assert session(offer, {}, project, {**somebody, "CI": "true"}).output == ""
    no = session(["make", "--no-print-directory", "setup"], {"[y/N]": "n"}, project, somebody)
    assert no.returncode == 0
    assert no.output.endswith(f"{QUESTION}n\n{LATER}")
    assert not (project / ".git").exists()
    assert session(offer, {}, project, somebody).output == "", "it was asked already"

    (project / ".venv/.ready-asked").unlink()
    unknown = session(offer, {"[y/N]": "y"}, project, {**somebody, "GIT_CONFIG_GLOBAL": os.devnull})
    assert "error: Git does not know you yet. Run: git config --global user.name " in unknown.output
    assert not (project / ".git").exists()

    (project / ".venv/.ready-asked").unlink()
    yes = session(offer, {"[y/N]": "y"}, project, somebody)
    assert yes.returncode == 0, yes.output
    assert "pre-commit installed at .git/hooks/pre-commit\n" in yes.output
    log = run("git", "log", "--format=%an %s", cwd=project, env=somebody).output
    assert log == "Ada Start from the template\n"
    assert run("git", "status", "--porcelain", cwd=project, env=somebody).output == ""
    again = run("make", "first-commit", cwd=project, env=somebody, expect=2).output
    assert "error: this folder is in Git and has commits. Run: make hooks\n" in again


def test_hooks_want_a_repository(project: Path, somebody: dict[str, str]) -> None:
    said = run("make", "hooks", cwd=project, env=somebody, expect=2).output
    assert "error: this folder is not in Git yet. Run: make first-commit\n" in said


class Advisories(http.server.BaseHTTPRequestHandler):
    """Answers as api.osv.dev does, where only Scrapy has a known vulnerability (its record, shortened)."""

    record: ClassVar = {
        "id": "PYSEC-2021-363",
        "aliases": ["CVE-2021-41125", "GHSA-jwqp-28gf-p498"],
        "details": "HttpAuthMiddleware sends credentials to every domain.",
        "affected": [
            {
                "package": {"name": "scrapy", "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.5.1"}]}],
            }
        ],
    }
    asked: ClassVar[dict[str, str]] = {}

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        self.asked[name] = query["version"]
        answer = json.dumps({"vulns": [self.record]} if name == "scrapy" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    """The setting by which `make audit` asks the stand-in."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"ARGS=--vulnerability-service osv --osv-url http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


@pytest.fixture
def audit(project: Path, env: dict[str, str], service: str, tmp_path: Path) -> Make:
    """`make audit`, on request with a vulnerable package among the installed ones."""

    def make(vulnerable: bool = False, args: str = service, expect: int = 0) -> Answer:
        planted = tmp_path / "planted/scrapy-2.5.0.dist-info"
        planted.mkdir(parents=True, exist_ok=True)
        (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: scrapy\nVersion: 2.5.0\n", encoding="utf-8")
        path = {"PYTHONPATH": str(planted.parent)} if vulnerable else {}
        return run("make", "--no-print-directory", "audit", args, cwd=project, env={**env, **path}, expect=expect)

    return make


FOUND = "scrapy 2.5.0: PYSEC-2021-363 CVE-2021-41125 GHSA-jwqp-28gf-p498, fixed in 2.5.1: "


def test_a_finding_fails_until_it_is_accepted_and_again_when_that_has_expired(audit: Make, project: Path) -> None:
    assert audit().output.endswith(" packages audited, 0 findings.\n")
    assert Advisories.asked["torch"] == "2.13.0", "without its local version"
    assert "my-project" not in Advisories.asked
    refused = audit(vulnerable=True, expect=2).output
    assert refused.startswith(
        f"{FOUND}FOUND\nerror: 1 of 1 findings not accepted. Install a version that is fixed, or accept one for a time "
        'in audit-accepted.toml: [[accepted]], id = "...", reason = "...", expires = 2030-12-31.\n'
    )
    accepted = project / "audit-accepted.toml"
    entry = '[[accepted]]\nid = "CVE-2021-41125"\nreason = "we scrape one domain"\nexpires = {}\n'
    accepted.write_text(entry.format("9999-12-31"), encoding="utf-8")
    taken = audit(vulnerable=True).output
    assert taken.startswith(f"{FOUND}accepted until 9999-12-31\n")
    assert taken.endswith(" packages audited, 1 findings, all accepted.\n")
    accepted.write_text(entry.format("2025-01-31"), encoding="utf-8")
    assert f"{FOUND}FOUND, accepted until 2025-01-31\n" in audit(vulnerable=True, expect=2).output
    accepted.write_text(entry.format('"2025-01-31"'), encoding="utf-8")
    assert (
        "error: each [[accepted]] of audit-accepted.toml must have an id, a reason and a day such as "
        "expires = 2030-12-31, without quotes, got {'id': 'CVE-2021-41125'" in audit(expect=2).output
    )


def test_an_audit_that_could_not_ask_fails(audit: Make) -> None:
    nobody = "ARGS=--vulnerability-service osv --osv-url http://127.0.0.1:9/v1/query"
    printed = audit(args=nobody, expect=2).output
    assert printed.startswith("error: pip-audit could not ask, so nothing was audited: ")
    assert printed.splitlines()[0].endswith(". Check the network.")
    assert "Traceback" not in printed


ELSEWHERE = {
    "make check": "test_end_to_end.py",
    "make test": "test_end_to_end.py",
    "make check test": "test_end_to_end.py",
    "make ci-docs": "test_docs.py installs the same",
    "make docs": "test_docs.py",
    "make setup": "here, without CI",
    "make engine-newest": "below",
    "make engine-request": "below",
    "make ci-newest": "makes an environment: ci-setup, after the locks are gone",
    'make data train ARGS="experiment=smoke trainer=gpu"': "test_gpu.py, where there is one",
}


def test_what_ci_types_works(project: Path, somebody: dict[str, str], service: str, tmp_path: Path) -> None:
    """In the order of the files, as CI does; what other tests run is left to them. `gh` writes down its arguments."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/uvx").symlink_to(TOOLS / "uvx")
    gh = tmp_path / "tools/gh"
    gh.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\n', encoding="utf-8")
    gh.chmod(0o755)
    ci = {**somebody, "CI": "true", "PATH": f"{tmp_path / 'tools'}:{somebody['PATH']}"}
    run("git", "init", "--quiet", cwd=project, env=ci)
    run("git", "add", "--all", cwd=project, env=ci)
    typed = list(dict.fromkeys(commands(Project(project))))
    assert ELSEWHERE.keys() <= set(typed)
    ran = [line for line in typed if line not in ELSEWHERE]
    assert len(ran) >= 6
    for line in ran:
        told = service if line == "make audit" else "UNUSED="
        run("sh", "-c", f'{line} "$0"', told, cwd=project, env=ci)
    assert (tmp_path / "told").read_text(encoding="utf-8") == (
        "release create v0.1.0 --verify-tag --title 0.1.0 --notes-file release-notes.md sbom.json\n"
    )
    bill = json.loads((project / "sbom.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert "torch" in {part["name"] for part in bill["components"]}


@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_a_newer_engine_becomes_a_request_to_merge_it(
    bake: Bake, demo: tuple[Path, str], somebody: dict[str, str], tmp_path: Path, ci: str
) -> None:
    """The host is a repository here: `gh` writes down its arguments, Git's URL of GitLab is replaced by a folder."""
    project = bake(profile="team", ci=ci, env_manager="venv", cuda="cpu")
    link_environment(demo[0], project.path)
    host, tools, newer = (tmp_path / name for name in ("host.git", "tools", "newer"))
    tools.mkdir()
    (tools / "gh").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/told\n', encoding="utf-8")
    (tools / "gh").chmod(0o755)
    env = {**somebody, "PATH": f"{tools}:{somebody['PATH']}", "ARGS": "tests/test_settings.py", "UPGRADE_TOKEN": "key"}
    env |= {"CI_SERVER_HOST": "gitlab.example.com", "CI_PROJECT_PATH": "us/mine"}
    run("git", "init", "--quiet", "--bare", host, cwd=tmp_path)
    run("git", "-C", host, "config", "receive.advertisePushOptions", "true", cwd=tmp_path)
    for command in (
        ["init", "--quiet", "--initial-branch", "main"],
        ["add", "--all"],
        ["commit", "--quiet", "--no-verify", "--message", "first"],
        ["remote", "add", "origin", str(host)],
        ["config", f"url.{host}.insteadOf", "https://upgrade:key@gitlab.example.com/us/mine.git"],
    ):
        run("git", *command, cwd=project.path, env=env)
    printed = run("make", "engine-newest", cwd=project.path, env=env, expect=2).output
    assert (
        "error: ENGINE_FROM does not say where the engine comes from. Set it to the template's git address" in printed
    )

    def newest(folder: Path) -> str:
        typed = ("make", "engine-newest", "engine-request")
        return run(*typed, cwd=project.path, env={**env, "ENGINE_FROM": str(folder)}).output

    assert newest(PROJECT).endswith("the engine was the newest already\n")
    shutil.copytree(project.path / "src", newer / "src")
    (newer / "src/runengine/VERSION").write_text("9.0.0\n", encoding="utf-8")
    here = {**env, "PYTHONPATH": str(newer / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    run(project.path / ".venv/bin/python", "-m", "runengine", "engine", "--write-manifest", cwd=newer, env=here)
    assert "engine 0.1.0 -> 9.0.0\n" in newest(newer)
    branch = run("git", "-C", host, "branch", "--format", "%(refname:short)", cwd=tmp_path).output.strip()
    assert re.fullmatch("engine-9.0.0-[0-9a-f]{7}", branch)
    assert run("git", "-C", host, "show", f"{branch}:src/runengine/VERSION", cwd=tmp_path).output == "9.0.0\n"
    changed = run("git", "-C", host, "show", "--name-only", "--format=%s", branch, cwd=tmp_path).output
    assert changed == "Engine 9.0.0\n\nsrc/runengine/MANIFEST\nsrc/runengine/VERSION\n"
    run("git", "switch", "--quiet", "main", cwd=project.path, env=env)  # a week later
    run("git", "branch", "--quiet", "-D", branch, cwd=project.path, env=env)
    assert newest(newer).endswith(f"{branch} was proposed already\n")
    if ci == "github":
        told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
        assert told == ["auth setup-git", f"pr create --fill --head {branch}", "auth setup-git"]
