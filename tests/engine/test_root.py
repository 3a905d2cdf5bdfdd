"""Commands work from any folder: all hangs on the project's root, and a typed path means what the shell means."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runengine
from conftest import SOURCE
from ml_project.train import build_data, train
from pages import Server
from PIL import Image
from runengine import Run, compose
from runengine.settings import project, start

SHORT = ["model=mlp", "trainer=cpu", "tracking=off", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
TRAIN = "ml_project.train"
Command = Callable[..., str]


@pytest.fixture
def here(workplace: Path) -> Path:
    """The root of a project, the code in it: as an editable install imports it."""
    for package in ("ml_project", "runengine", "hydra_plugins"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE / package, workplace / "src" / package, ignore=ignored)
    (workplace / "notebooks").mkdir()
    return workplace


@pytest.fixture
def command(here: Path, server: Server) -> Command:
    """`python -m ...`, typed in this folder of the project; returns what it printed."""

    def run(folder: str, *typed: str, **variables: str) -> str:
        outside = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        environment = {**outside, "PYTHONPATH": str(here / "src"), **variables}
        status, printed = server.run(["-m", *typed], here / folder, environment)
        assert status == 0, printed
        return printed

    return run


def everything(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_what_is_typed_in_a_subfolder_happens_in_the_root(here: Path, command: Command) -> None:
    before, package = everything(here), here / "src/ml_project"
    modules = everything(package)
    settings = [*SHORT, "tracking=mlflow"]
    said = command("notebooks", TRAIN, *settings, PYTHONPATH="../src")  # from there on, too
    (run,) = (here / "runs/digits").iterdir()
    assert f"run {run.relative_to(here)}\n" in said
    assert (run / "mlflow_run_id").is_file()  # in the root's mlflow.db
    assert everything(here) - before == {"runs", "mlruns", "mlflow.db.lock"}
    assert everything(here / "notebooks") == set()

    as_printed = run.relative_to(here).as_posix()
    for folder, typed in [("notebooks", as_printed), (f"{as_printed}/..", run.name)]:
        (run / "test_metrics.json").unlink(missing_ok=True)
        assert f"run folder     {as_printed}\n" in command(folder, "ml_project.evaluate", typed)
        assert (run / "test_metrics.json").is_file()

    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(here / "notebooks/new.png")
    said = command("src/ml_project", "ml_project.predict", "../../notebooks/new.png", "--output", "answers.csv")
    assert said == "wrote src/ml_project/answers.csv: 1 rows\n"
    assert everything(package) - modules == {"answers.csv"}
    assert (package / "answers.csv").read_text().splitlines()[1].startswith("notebooks/new.png,0,")


def test_what_is_typed_outside_of_the_project_happens_in_it(
    here: Path, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.rmtree(here / "data")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mlp").mkdir()  # a folder that is called as a choice is
    said = command(str(elsewhere), "ml_project.prepare")
    assert (here / "data/processed/split.json").is_file(), said
    command(str(elsewhere), TRAIN, *SHORT, "run_dir=runs/x")
    assert Run(here / "runs/x").finished()
    said = command(str(elsewhere), TRAIN, *SHORT, f"init_from={os.path.relpath(here / 'runs/x', elsewhere)}")
    assert len(list((here / "runs/digits").iterdir())) == 1
    said = command(str(elsewhere), "runengine", "card", "runs/x")
    assert said.startswith("wrote runs/x/model-card.md")
    assert everything(elsewhere) == {"mlp"}


def test_without_a_project_at_hand_the_current_folder_is_the_root(here: Path, command: Command) -> None:
    """As with a wheel in an environment outside of the project."""
    (here / "pyproject.toml").unlink()
    shutil.move(here / "data", here / "notebooks")
    command("notebooks", TRAIN, *SHORT, "run_dir=runs/x")
    assert Run(here / "notebooks/runs/x").finished()
    assert not (here / "runs").exists()


def test_processes_that_a_command_starts_work_in_the_root(here: Path, command: Command) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "run_dir=runs/two"]
    command("notebooks", TRAIN, *SHORT, *ddp, PYTHONPATH="../src")
    assert Run(here / "runs/two").finished()
    said = command("notebooks", TRAIN, "-m", *SHORT, "launch=joblib", "seed=0,1", PYTHONPATH="../src")
    (sweep,) = (here / "runs/digits").iterdir()
    assert f"sweep {sweep.relative_to(here)}: 2 of 2 runs finished" in said
    assert f"ml_project.evaluate {sweep.relative_to(here)}/00" in said
    assert everything(here / "notebooks") == set()


TYPED = {  # in notebooks/, where new.png, digits/, mlp/, 0/ and "a b,c.ckpt" are; in the root are runs/x and data
    "../runs/x": "runs/x",
    "../runs/x/": "runs/x",
    "runs/x": "runs/x",
    "new.png": "notebooks/new.png",
    "digits": "notebooks/digits",
    "other.png": "other.png",
    "../new": "new",
    "../../elsewhere": "{above}/elsewhere",
    "init_from=../runs/x": "init_from=runs/x",
    "init_from=runs/x": "init_from=runs/x",
    "init_from=../../x": "init_from={above}/x",
    "+data.own=./new.png": "+data.own=notebooks/new.png",
    "run_dir=.": "run_dir=notebooks",
    "run_dir=new": "run_dir=new",
    "data.folder=digits/": "data.folder=notebooks/digits",
    "init_from='a b,c.ckpt'": r"init_from='notebooks/a b,c.ckpt'",
    "experiment_name=digits": "experiment_name=digits",
    "model=mlp": "model=mlp",
    "seed=0": "seed=0",
    "tracking.mlflow_uri=sqlite:///mlflow.db": "tracking.mlflow_uri=sqlite:///mlflow.db",
    "--model=../runs/x": "--model=runs/x",
    "--model ../runs/x/": "--model runs/x",
    "--experiment digits": "--experiment digits",
    "--output new.csv": "--output new.csv",
    "models:/x@champion": "models:/x@champion",
}


@pytest.mark.parametrize(("typed", "meant"), TYPED.items())
def test_a_typed_path_means_what_the_shell_means(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    for folder in ("notebooks/digits", "notebooks/mlp", "notebooks/0", "runs/x"):
        (workplace / folder).mkdir(parents=True)
    for file in ("new.png", "a b,c.ckpt"):
        (workplace / "notebooks" / file).touch()
    monkeypatch.chdir("notebooks")
    monkeypatch.setattr(start, "_typed_in", [])
    words = [typed] if "'" in typed else typed.split()
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with runengine.friendly_errors():
        assert Path.cwd() == workplace
        assert " ".join(sys.argv[1:]) == meant.format(above=workplace.parent)
    with runengine.friendly_errors():  # the second time changes nothing
        assert " ".join(sys.argv[1:]) == meant.format(above=workplace.parent)


def test_a_file_to_be_written_is_where_the_user_stands(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_typed_in", [])
    assert runengine.typed_path("new.csv") == Path("new.csv")
    (workplace / "notebooks").mkdir()
    (workplace / "notebooks/old.csv").touch()
    (workplace / "new.csv").touch()  # another
    monkeypatch.chdir("notebooks")
    monkeypatch.setattr(sys, "argv", ["predict", "--output", "old.csv"])
    with runengine.friendly_errors():
        assert runengine.typed_path("new.csv") == Path("notebooks/new.csv")
        assert runengine.typed_path(sys.argv[2]) == Path("notebooks/old.csv")
        assert runengine.typed_path("/a/new.csv") == Path("/a/new.csv")


def test_tab_completes_paths_from_where_the_user_stands(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "notebooks").mkdir()
    monkeypatch.chdir("notebooks")
    monkeypatch.setattr(sys, "argv", ["train", "-sc", "query=bash"])
    with runengine.friendly_errors():
        assert Path.cwd() == workplace / "notebooks"


def test_the_root_is_that_of_the_project_whose_command_it_is(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed in another project."""
    other, package = workplace / "other", workplace / "mine/src/mine"
    for folder, name in ((other, "other"), (workplace / "mine", "mine")):
        folder.mkdir()
        (folder / "pyproject.toml").write_text(f'[tool.runengine]\npackage = "{name}"\n')
    monkeypatch.chdir(other)
    monkeypatch.setattr(project, "_used", [project.Project("mine", package)])
    assert project.at_hand() == workplace / "mine"


def test_a_notebook_finds_runs_and_data_and_stays_where_it_is(
    workplace: Path, run_training: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training("run_dir=runs/x", *SHORT[:4])
    recorded = (workplace / "runs/x/config.yaml").read_text()
    notebooks = workplace / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name in ("runs/x", "../runs/x", Path("runs/x"), runengine.find(None)):
        cfg, _, data = runengine.load(name)
        data.setup("fit")
        assert cfg.tracking.mlflow_uri is None
    assert runengine.find(None).folder == workplace / "runs/x"
    cfg = compose("train", [*SHORT, "tracking=mlflow", "run_dir=runs/y"])
    assert cfg.tracking.mlflow_uri == f"sqlite:///{workplace}/mlflow.db"
    assert cfg.experiment_name == "digits"
    build_data(cfg).setup("fit")

    new = train.start(compose("train", [*SHORT, "run_dir=runs/y", *_small(recorded)]), ["run_dir=runs/y"])
    assert new.folder == workplace / "runs/y"
    assert (new.folder / "config.yaml").read_text() == recorded  # the project may move
    assert Path.cwd() == notebooks
    assert everything(notebooks) == set()


def _small(recorded: str) -> list[str]:
    """The size of a batch that a run was trained with."""
    (line,) = [line for line in recorded.splitlines() if line.strip().startswith("batch_size:")]
    return [f"data.batch_size={line.split()[1]}", "trainer.limit_train_batches=4"]


# --------------------------------------------------------------------------- .env

ENV = """\
# of my own
MLFLOW_TRACKING_URI=https://mlflow.example.com/a#b
  export MY_NAME = Ada Lovelace   # the first
MY_PASSWORD='p# "1"'

MY_TOKEN="a \\"quoted\\" one" # kept
MY_BLANKS="  "
MY_OWN=of the file
MLFLOW_TRACKING_TOKEN=
"""


@pytest.fixture
def env(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes `.env` and begins a command; what it sets is taken away at the end of the test."""
    for name in ("MY_NAME", "MY_PASSWORD", "MY_TOKEN", "MY_BLANKS", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def begin(text: str) -> None:
        (workplace / ".env").write_text(text, encoding="utf-8")
        with runengine.friendly_errors():
            pass

    return begin


def test_what_env_sets_is_set_unless_the_environment_has_it(
    env: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_OWN", "of the shell")
    env(ENV)
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com/a#b"
    assert os.environ["MY_NAME"] == "Ada Lovelace"
    assert os.environ["MY_PASSWORD"] == 'p# "1"'  # noqa: S105
    assert os.environ["MY_TOKEN"] == 'a "quoted" one'  # noqa: S105
    assert os.environ["MY_BLANKS"] == "  "
    assert os.environ["MY_OWN"] == "of the shell"
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ  # not filled in yet, as in .env.example
    assert compose("train").tracking.mlflow_uri == os.environ["MLFLOW_TRACKING_URI"]


@pytest.mark.parametrize("line", [
    "secret-2", "MY NAME=secret-2", "='secret-2'", "1=secret-2", "A='secret-2", 'A="secret-2', "A='secret-2' more",
    'A="secret-2\\"',
])  # fmt: skip
def test_a_line_of_env_that_is_no_setting_is_named_and_not_shown(
    env: Callable[[str], None], workplace: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    with pytest.raises(SystemExit) as end:
        env(f"MY_NAME=Ada\n\n{line}\n")
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: .env, line 3 is not NAME=value, with quotes at both ends of the value or none. Correct it in "
        f"{workplace / '.env'}, or put # in front of it.\n"
    )


def test_a_folder_called_env_is_left_alone(workplace: Path) -> None:
    (workplace / ".env").mkdir()
    with runengine.friendly_errors():
        pass


def test_the_secrets_of_env_reach_every_process_and_no_file(
    here: Path, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(here / "mlflow.db", store)
    (here / ".env").write_text(f"MLFLOW_TRACKING_URI=sqlite:///{store}\nMY_TOKEN='hush-4711'\n")
    script = here / "src/ml_project/train.py"  # its function runs in the jobs of a sweep, which are other processes
    old = "    model = instantiate(cfg.model, "
    new = "    import os, pathlib\n    pathlib.Path(f'token-{os.getpid()}').write_text(os.environ['MY_TOKEN'])\n"
    assert script.read_text().count(old) == 1
    script.write_text(script.read_text().replace(old, new + old))
    (here / "mlflow.db").unlink()
    typed = [*SHORT, "tracking=mlflow", "launch=joblib", "seed=0,1"]
    said = command("notebooks", TRAIN, "-m", *typed)
    assert "hush-4711" not in said
    assert {file.read_text() for file in here.glob("token-*")} == {"hush-4711"}, said
    assert not (here / "mlflow.db").exists()  # the runs are where .env says
    (sweep,) = (here / "runs/digits").iterdir()
    assert (sweep / "000/mlflow_run_id").is_file()
    for file in [store, *here.rglob("*"), *store.parent.rglob("*")]:
        if file.is_file() and not file.name.startswith("token-"):
            assert file == here / ".env" or b"hush-4711" not in file.read_bytes(), file
    assert said.startswith("sweep ")
    said = command("notebooks", "runengine", "sync")
    assert said == "MLflow has everything\n"


def test_env_is_ignored_by_git_and_never_in_an_image() -> None:
    project_folder = SOURCE.parent
    assert ".env" in (project_folder / ".gitignore").read_text().splitlines()
    named = [line for line in (project_folder / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert named[0] == "*"
    assert "**/.env*" in named[-8:]  # the last word on a file counts
