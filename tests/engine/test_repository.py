"""The project in Git, by the commands that the Makefile types; what is asked at a terminal: tests/test_quality.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runengine import UserError, repository
from runengine.tracking import pages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is in no repository, of somebody whom Git knows."""
    (tmp_path / "gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.com\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc/config").touch()
    (project / ".dvc/.gitignore").write_text("/config.local\n/tmp\n", encoding="utf-8")
    (project / ".pre-commit-config.yaml").write_text("repos: []\n", encoding="utf-8")
    return project


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_dvc_has_its_setting_outside_git_and_only_there(folder: Path) -> None:
    local = folder / ".dvc/config.local"
    for _ in range(2):
        repository.dvc_ready(folder)
        assert "no_scm = true" in local.read_text(encoding="utf-8")
    git(folder, "init", "--quiet")
    local.write_text(local.read_text(encoding="utf-8") + "['remote \"data\"']\n    url = /a/store\n", encoding="utf-8")
    for _ in range(2):
        repository.dvc_ready(folder)
        assert "no_scm" not in local.read_text(encoding="utf-8")
    assert "url = /a/store" in local.read_text(encoding="utf-8")


def test_what_is_ready_costs_no_start_of_dvc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.dvc_ready(folder)
    monkeypatch.setattr(repository, "_run", lambda *command: pytest.fail(f"{command} was run"))
    repository.dvc_ready(folder)


def test_the_first_commit_has_everything_and_the_checks(folder: Path) -> None:
    repository.dvc_ready(folder)
    repository.first_commit(folder)
    assert git(folder, "log", "--format=%an %s") == "Ada Start from the template\n"
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "branch", "--show-current") == "main\n"
    assert (folder / ".git/hooks/pre-commit").is_file()
    assert "no_scm" not in (folder / ".dvc/config.local").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"^this folder is in Git and has commits. Run: make hooks$"):
        repository.first_commit(folder)


def test_without_a_user_or_git_or_a_repository_nothing_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^this folder is not in Git yet. Run: make first-commit$"):
        repository.hooks(folder)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    with pytest.raises(UserError, match=r"^Git does not know you yet. Run: git config --global user.name "):
        repository.first_commit(folder)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^git is not here. Install it \(https://git-scm.com\), then run: "):
        repository.first_commit(folder)
    assert not (folder / ".git").exists()


def test_nothing_is_asked_where_nobody_sits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository.offer(folder, folder / "asked")
    assert capsys.readouterr().out == ""
    assert not (folder / "asked").exists()


def test_a_command_that_fails_ends_with_its_status(folder: Path) -> None:
    git(folder, "init", "--quiet")
    (folder / ".git/config").write_text("[core", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        repository._run(folder, "git", "add", "--all")
    assert end.value.code == 128


@pytest.mark.parametrize(("uri", "shown"), [
    ("", "sqlite:///mlflow.db"), ("sqlite:////mnt/a.db", "sqlite:////mnt/a.db"), ("https://runs.example.com", None),
])  # fmt: skip
def test_mlflow_shows_the_database_of_the_runs_or_says_where_they_are(
    uri: str, shown: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def call(command: list[str], env: dict[str, str]) -> int:
        started.append(command)
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(sys, "argv", ["mlflow", "--port", "5001"])
    with pytest.raises(SystemExit) as end:
        pages.main()
    assert end.value.code == 0
    said = capfd.readouterr().out
    if shown is None:
        assert said == "MLflow: your runs are on the server that MLFLOW_TRACKING_URI names\n"
        assert started == []
    else:
        assert said.startswith('MLflow: http://127.0.0.1:5001   (choose "Model training" at the top left; ')
        (command,) = started
        assert command[command.index("--backend-store-uri") + 1] == shown
        assert command[-6:] == ["--host", "127.0.0.1", "--port", "5001", "--workers", "1"]
