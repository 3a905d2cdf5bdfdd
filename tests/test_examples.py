"""The examples but the first, each from the question to a served answer, in the environment of the demo."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import CHOICES, PROJECT, ROOT, extra, free_port, generate, install_next_to, link_environment, run
from hugging_face import LIBRARY, save

sys.path.append(str(ROOT / "tests/engine"))
from pages import Commands, Server, follow  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow

PAGES = (
    "tools",
    "model",
    "metric",
    "setting",
    "augmentation",
    "folds",
    "bring-your-own-data",
    "experiment",
    "recipes",
    "sweep",
)  # what an example says otherwise
AUGMENTATION = {"table": "data.hide=0.1", "text": "data.move_windows=true"}
HUGGING_FACE = {"table": "data/raw/houses", "text": "data/raw/stories"}  # where the page says that one was saved
OTHER_TASKS = {("minimal", "another-task"): "new.csv", ("minimal", "segmentation"): "new.npy"}  # what is predicted
EXPERIMENTS = {"table": "diabetes", "text": "topics", "minimal": "points"}
FIGURES = {
    "table": ("learning_curve.png", "predicted_against_true.png", "residuals.png"),
    "text": ("learning_curve.png", "bits_by_place.png"),
    "minimal": (),
}
SHORTER = {"table": [], "text": ["trainer.max_epochs=2"], "minimal": []}  # a minute's training, three times
REACHES = {  # the default: 0.49; of 2 epochs: 2.6; 0.012
    "table": ("test/r2", 0.35, 0.65),
    "text": ("test/bits", 2.0, 3.0),
    "minimal": ("test/loss", 0.005, 0.02),
}


ROWS = "size,town,price\n" + "".join(f"{n},{'Ulm' if n % 2 else 'Bonn'},{n * n}\n" for n in range(40))
BAD_TABLES = [  # the file, what is typed, and the sentence without the file's name
    (ROWS, {}, " has no column 'progression': its columns are size, town, price. Set dataset.target."),
    (ROWS, {"target": "prize"}, " has no column 'prize': its columns are size, town, price. Did you mean price?"),
    (ROWS, {"target": "price", "ignore": ["nr"]}, " has no column 'nr': its columns are size, town, price. Set"),
    (ROWS, {"target": "town"}, ", row 2, column 'town': 'Bonn' is no number. Name another dataset.target; for"),
    (
        ROWS + "9,Ulm,\n",
        {"target": "price"},
        ", row 42, column 'price': the value is missing. Fill it in, or delete the",
    ),
    (
        ROWS + "n,Ulm,9\n",
        {"target": "price"},
        ", row 42, column 'size': 'n' is no number, as others in this column are. Write numbers such as 0.5, or say "
        "that they are categories: dataset.categories=[size]",
    ),
    (
        "a,y\n" + "".join(f"'{n},5',{n}\n" for n in range(60)).replace("'", '"'),
        {"target": "y"},
        ", row 2, column 'a': '0,5' looks like a number, but is none. Write numbers such as 0.5, or say that they are "
        "categories: dataset.categories=[a]",
    ),
    (ROWS + "1e200,Ulm,9\n", {"target": "price"}, ", row 42, column 'size': '1e200' is too large. Write a number such"),
    (ROWS.replace("Ulm", "").replace("Bonn", "?"), {"target": "price"}, ": the column 'town' is empty. Leave it out: "),
    (
        "id,y\n" + "".join(f"a{n},{n}\n" for n in range(120)),
        {"target": "y"},
        ": the column 'id' has 120 different words, more than 100: a model learns nothing from a name. Leave it out: "
        "dataset.ignore=[id]",
    ),
    ("a,y\n" + "1,7\n" * 40, {"target": "y"}, ": the target 'y' is 7 in all training rows: nothing to learn."),
    ("a,y\n1,2\n2,3\n3,4\n", {"target": "y"}, " has 3 rows: too few for three splits. Add rows, or change the"),
    ("a,y\n1,2\n2\n", {"target": "y"}, ", row 3: 1 values for 2 columns. Fix this row."),
    ("y\n1\n2\n", {"target": "y"}, " has no column other than y: nothing to learn from."),
    ("", {"target": "y"}, " holds no rows: it needs a line of names, then one line an example."),
]
PREPARE = """
import json, sys
from pathlib import Path
from my_project.prepare import prepare
from runengine import UserError
settings = {"target": "progression", "categories": [], "ignore": []}
shares = {"split_seed": 0, "val_fraction": 0.15, "test_fraction": 0.2}
said = []
for content, typed, _ in json.load(sys.stdin):
    Path("table.csv").write_text(content)
    try:
        prepare(Path("made"), Path("table.csv"), **{**settings, **typed}, **shares)
        said.append("prepared")
    except UserError as error:
        said.append(str(error))
    if Path("made").exists():
        said[-1] = "something was written"
print(json.dumps(said))
"""


@dataclass
class Example:
    """A project, set up, with its data; and its environment's variables."""

    name: str
    folder: Path
    env: dict[str, str]

    def make(self, *words: str) -> str:
        return run("make", "--no-print-directory", *words, cwd=self.folder, env=self.env).output

    def start(self, module: str, *words: str) -> str:
        return run(self.folder / ".venv/bin/python", "-m", f"my_project.{module}", *words, cwd=self.folder).output


@pytest.fixture(scope="module", params=CHOICES["example"][1:])
def example(
    request: pytest.FixtureRequest,
    template: Path,
    demo: tuple[Path, str],
    env: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Example:
    folder = tmp_path_factory.mktemp(request.param)
    project = generate(template, folder, example=request.param, env_manager="venv", cuda="cpu").path
    link_environment(demo[0], project)
    active = {**env, "PATH": f"{project / '.venv/bin'}{os.pathsep}{env['PATH']}"}
    made = Example(request.param, project, active)
    made.make("setup", "data")
    return made


@pytest.fixture(scope="module")
def trained(example: Example) -> Path:
    """The folder of a run of the default settings, or of the beginning of one, evaluated."""
    printed = example.make("train", "evaluate", f"ARGS={' '.join(SHORTER[example.name])}")
    found = re.search(r"^run folder     (\S+)$", printed, re.MULTILINE)
    assert found, printed
    return example.folder / found[1]


def test_it_learns_and_shows_it(example: Example, trained: Path) -> None:
    for name in FIGURES[example.name]:
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    metric, least, most = REACHES[example.name]
    assert least < json.loads((trained / "test_metrics.json").read_text())[metric] < most


def test_the_notebook_shows_the_run(example: Example, trained: Path, jupyter: Callable[[Path], str]) -> None:
    output = jupyter(example.folder / "notebooks/first_look.ipynb")
    assert trained.name in output
    assert output.count("torch.Size") == 2
    assert '"image/png"' in output


def test_a_training_that_is_killed_ends_as_if_nothing_had_happened(example: Example, trained: Path) -> None:
    python = str(example.folder / ".venv/bin/python")
    command = [python, "-m", "my_project.train", "run_dir=runs/killed", *SHORTER[example.name]]
    killed = subprocess.Popen(command, cwd=example.folder, env=example.env, start_new_session=True)
    last = example.folder / "runs/killed/checkpoints/last.ckpt"
    while not last.is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    example.make("resume")
    assert (last.parents[1] / "history.csv").read_bytes() == (trained / "history.csv").read_bytes()


@pytest.fixture
def served(example: Example, trained: Path) -> Iterator[str]:
    port = free_port()
    example.make("promote", f"RUN={trained.relative_to(example.folder)}")
    process = subprocess.Popen(
        ["make", "serve", f"PORT={port}"], cwd=example.folder, env=example.env, start_new_session=True
    )
    try:
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def ask(address: str, inputs: object) -> list[Any]:
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found: list[Any] = json.loads(answer.read())["predictions"]
                return found
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(0.25)
    raise AssertionError(f"nobody answers at {address}")


def test_it_leaves_as_onnx_and_as_a_program_of_pytorch(
    example: Example, trained: Path, python: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_folder = f"RUN={trained.relative_to(example.folder)}"
    refused = run("make", "export", run_folder, cwd=example.folder, env=example.env, expect=2).output
    assert 'Run: .venv/bin/python -m pip install --editable ".[onnx]", then make export again' in refused
    library = install_next_to(python, tmp_path_factory.getbasetemp(), *extra(example.folder, "onnx"))
    env = {**example.env, "PYTHONPATH": str(library)}
    printed = [example.make("export", run_folder, "FORMAT=pt2")]
    printed.append(run("make", "export", run_folder, cwd=example.folder, env=env).output)
    for said in printed:
        assert re.search(
            r"^compared +\d+ real examples: answers differ by \S+ of the greatest; rounding expl", said, re.M
        )
    tested = json.loads((trained / "test_metrics.json").read_text())
    for format, made in json.loads((trained / "exports.json").read_text()).items():
        assert 0 <= made["difference"] <= made["rounding"] < 1e-4
        ((name, (before, after)),) = made["metrics"].items()
        assert after == pytest.approx(before, rel=1e-5), format
        assert before == pytest.approx(
            tested[name], rel=1e-3 if made["examples"] != 256 else 0.1
        )  # not all of the text


def test_its_test_split_is_a_page_to_look_at(example: Example, trained: Path) -> None:
    assert "look.html: open it in a browser" in example.make("look", f"RUN={trained.relative_to(example.folder)}")
    found = re.search(r'id="data">(.*?)</script>', (trained / "look.html").read_text(encoding="utf-8"))
    assert found
    seen = json.loads(found[1])
    losses = [row[seen["columns"].index(seen["sort"])] for row in seen["rows"]]
    assert losses == sorted(losses, reverse=True)
    metric, _, _ = REACHES[example.name]
    assert f"{metric} " in seen["about"]
    if example.name == "table":
        assert seen["columns"][:5] == ["row", "progression", "predicted progression", "error", "loss"]
        tested = json.loads((trained / "test_metrics.json").read_text())
        assert sum(losses) / len(losses) == pytest.approx(tested["test/rmse"] ** 2, rel=1e-4)
    if example.name == "text":
        assert any("\n" in row[seen["columns"].index("text")] for row in seen["rows"])


def new_rows(example: Example, trained: Path) -> tuple[str, list[list[float]], int]:
    """A file for `predict`, what a server is asked for the same rows, and the column of the answers."""
    if example.name == "minimal":
        rows = [[0.5, -1.0, 2.0], [1.0, 2.0, 3.0]]
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (example.folder / "new.csv").write_text(text, encoding="utf-8")
        return "new.csv", rows, 0
    file = "data/raw/diabetes.csv"
    data = json.loads((trained / "data.json").read_text())
    with (example.folder / file).open() as opened:
        patients = list(csv.DictReader(opened))
    places = data["categories"]
    inputs = [
        [places[name].index(row[name]) if name in places else float(row[name]) for name in data["columns"]]
        for row in patients
    ]
    return file, inputs, 2


def most_probable(address: str, tokens: list[int], context: int) -> int:
    """The token that a server would have after these."""
    (probabilities,) = ask(address, [tokens[-context:] + [-1] * (context - len(tokens))])
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def test_what_is_served_is_what_is_predicted_from_raw_input(example: Example, trained: Path, served: str) -> None:
    if example.name == "text":
        text, vocabulary = "The statement", json.loads((trained / "data.json").read_text())["vocabulary"]
        tokens = [vocabulary.index(character) for character in text]
        for _ in range(12):
            tokens.append(most_probable(served, tokens, 64))
        for model in (str(trained), f"models:/my_project-{EXPERIMENTS[example.name]}@champion"):
            said = example.start("predict", text, "--model", model, "--length", "12", "--temperature", "0")
            assert said == "".join(vocabulary[token] for token in tokens) + "\n"
        assert all(map(math.isnan, ask(served, [[-1] * 64])[0]))
        return
    file, inputs, column = new_rows(example, trained)
    answers = ask(served, inputs)
    table = example.start("predict", file, "--model", str(trained)).splitlines()
    predicted = [float(line.split(",")[column]) for line in table[1 if example.name == "table" else 0 :]]
    assert predicted == pytest.approx(answers, rel=1e-4)
    champion = f"models:/my_project-{EXPERIMENTS[example.name]}@champion"
    assert example.start("predict", file, "--model", champion).splitlines() == table

    if example.name == "table":  # a place that no category has: no answer, and not that of somebody else
        assert math.isnan(ask(served, [[*inputs[0][:1], 7.0, *inputs[0][2:]]])[0])
    else:
        (example.folder / "other.csv").write_text("1,2\n", encoding="utf-8")
        command = (example.folder / ".venv/bin/python", "-m", "my_project.predict", "other.csv", "--model")
        for model in (str(trained), champion):
            said = run(*command, model, cwd=example.folder, expect=1).output.splitlines()[-1]
            assert said == "error: a row has 2 numbers, but the model takes 3. Fix the file."


def test_the_pipeline_runs_once(example: Example) -> None:
    pipeline = example.folder / "pipeline.yaml"
    pipeline.write_text(pipeline.read_text().replace('train: ""', f'train: "{" ".join(SHORTER[example.name])}"'))
    run("dvc", "repro", cwd=example.folder, env=example.env)
    again = run("dvc", "repro", cwd=example.folder, env=example.env).output
    assert "Data and pipelines are up to date." in again


@pytest.mark.parametrize("example", ["table"], indirect=True)
def test_a_table_that_nothing_can_be_learned_from_is_one_sentence(example: Example, tmp_path: Path) -> None:
    done = subprocess.run(
        [example.folder / ".venv/bin/python", "-c", PREPARE],
        cwd=tmp_path,
        input=json.dumps(BAD_TABLES),
        capture_output=True,
        text=True,
        check=True,
    )
    for said, (_, _, sentence) in zip(json.loads(done.stdout), BAD_TABLES, strict=True):
        assert said.startswith(f"table.csv{sentence}"), said


def test_its_card_speaks_of_its_task(example: Example, trained: Path) -> None:
    example.make("card", f"RUN={trained.relative_to(example.folder)}")
    card, sheet = ((trained / name).read_text() for name in ("model-card.md", "data-sheet.md"))
    assert f"| `{REACHES[example.name][0]}` |" in card
    assert not re.search(r"image|accuracy|digits", card + sheet)
    if example.name == "table":
        assert "| `target` | progression |" in sheet
        assert "442 patients" in sheet
    if example.name == "text":
        assert "the help pages that come with Python" in sheet
    assert re.search(r"\| `train` \| \d+ \|", sheet)


def test_its_own_checks_and_tests_pass(example: Example) -> None:
    assert "Success: no issues found" in example.make("check", "MYPY=--strict")
    run("codespell", "README.md", "docs", "src/my_project", "tests", cwd=example.folder, env=example.env)
    assert re.search(r"= \d+ passed in ", example.make("test"))


def test_its_pages_can_be_followed(example: Example, tmp_path: Path) -> None:
    """One after the other in a copy, whose whole suite passes afterwards."""
    if example.name in AUGMENTATION:
        example.start("train", "name=older", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "tracking=off")
    copy = follow_in_a_copy(example, tmp_path, PAGES)
    copy.make("test")
    if example.name in AUGMENTATION:
        check_augmentation(copy, AUGMENTATION[example.name])


def check_augmentation(example: Example, setting: str) -> None:
    """Only batches of the training are changed; a run that is older than the setting can be evaluated."""
    python, env = example.folder / ".venv/bin/python", {**example.env, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    run(python, ROOT / "tests/engine/augmented.py", "my_project", setting, cwd=example.folder, env=env)
    printed = example.start("evaluate", "@older")
    name = re.escape(setting.partition("=")[0])
    assert re.search(
        rf"-older-\w+ was trained when there was no (.*, )?{name}[,:].* default is taken\.$", printed, re.M
    )


@pytest.mark.parametrize(("example", "page"), OTHER_TASKS, indirect=["example"])
def test_a_page_on_another_task_goes_the_whole_way(example: Example, page: str, tmp_path: Path) -> None:
    """Checked, tested, and trained into a model whose answers are the run's own."""
    copy = follow_in_a_copy(example, tmp_path, [page])
    copy.make("check", "test", "MYPY=--strict")  # what mypy has kept of the strict run above is copied, too
    copy.make("train", "promote", "look", "ARGS=trainer.max_epochs=1")
    said: list[str | bytes] = []
    for model in (), ("--model", f"models:/my_project-{EXPERIMENTS[example.name]}@champion"):
        said.append(copy.start("predict", OTHER_TASKS[example.name, page], *model))
        said += [file.read_bytes() for file in copy.folder.glob("new.masks.npy")]
    assert said[: len(said) // 2] == said[len(said) // 2 :]


def follow_in_a_copy(example: Example, folder: Path, pages: Iterable[str]) -> Example:
    copy = folder / "project"
    run("cp", "-a", example.folder, copy, cwd=folder)
    run("make", "setup", cwd=copy, env=example.env)
    env = {**example.env, "PATH": f"{copy / '.venv/bin'}:{os.environ['PATH']}"}
    python = copy / ".venv/bin/python"
    with Server(str(python)) as server:
        commands = Commands(server, copy, env)
        for page in filter(lambda page: (copy / f"docs/{page}.md").is_file(), pages):
            images = PROJECT / f"docs/{page}.md"  # what it says, too, the engine's tests have typed
            own = (PROJECT / "examples" / example.name / f"docs/{page}.md").is_file()
            text = "" if own else images.read_text(encoding="utf-8")
            followed = text.replace("ml_project", "my_project").splitlines()
            if page == "bring-your-own-data" and example.name in HUGGING_FACE:
                library = install_next_to(python, folder.parent, LIBRARY)
                commands.env["PYTHONPATH"] += f"{os.pathsep}{library}"
                save(example.name, copy / HUGGING_FACE[example.name], python, commands.env)
            follow(copy / f"docs/{page}.md", copy, commands.run, followed)
    return Example(example.name, copy, env)
