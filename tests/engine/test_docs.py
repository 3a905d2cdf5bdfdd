"""The pages of a project: those on how to do something are followed to the letter, as `pages.py` says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import runengine
import torch
from conftest import SOURCE
from omegaconf import OmegaConf
from pages import Commands, Server, follow
from PIL import Image
from runengine import Run, compose
from runengine.machine import doctor
from runengine.settings import project
from runengine.settings.comments import read_option
from runengine.settings.config import flatten

SPLITS = ("train", "val", "test")
WEIGHTS = """
import pytorch_lightning as pl, torch
from runengine import compose
from ml_project.train import build_data, build_task
cfg = compose("train", ["model=mlp"])
data, task = build_data(cfg), build_task(cfg)
labels_N = data.split("train").labels_N
labels_N[labels_N == 7] = 8
labels_N[:10] = 7
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
pl.Trainer(accelerator="cpu", max_steps=1, **quiet).fit(task, data)
counted_K = labels_N.bincount() * task.weights_K
assert torch.allclose(counted_K, counted_K.mean()) and counted_K.sum().round() == len(labels_N), counted_K
images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
losses = torch.nn.functional.cross_entropy(task.eval()(images), labels, reduction="none")
task.log = lambda *_, **__: None
assert torch.allclose(task.training_step((images, labels)), (losses * task.weights_K[labels]).sum() / len(labels))
assert "weights_K" not in task.state_dict()
"""
SHIFTED = """
from collections import Counter
import torch
from ml_project.data import shifted
torch.manual_seed(0)
images = torch.rand(2700, 2, 5, 4)
padded = torch.nn.functional.pad(images, [2, 2, 2, 2])
places = Counter()
for image, whole in zip(shifted(images, 2), padded, strict=True):
    cuts = {(top, left): whole[:, top : top + 5, left : left + 4] for top in range(5) for left in range(5)}
    (place,) = [place for place, cut in cuts.items() if torch.equal(cut, image)]
    places[place] += 1
assert len(places) == 25 and 60 < min(places.values()) and max(places.values()) < 160, places
assert torch.equal(shifted(images, 0), images)
"""
ROOT = SOURCE.parent
DOCS = ROOT / "docs"
# the one on own data: tests/test_own_data.py
PAGES = (
    "tools", "experiment", "model", "metric", "setting", "augmentation", "folds", "rare-classes", "recipes", "sweep",
    "engine",
)  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, processed: Path, server: Server) -> Commands:
    """A copy of the project, where a page is followed."""
    folder = tmp_path_factory.mktemp("followed")
    shutil.copytree(processed, folder / "data/processed")
    (folder / "pyproject.toml").write_text('[tool.runengine]\npackage = "ml_project"\n', encoding="utf-8")
    (folder / "src").mkdir()  # Python would remember that it was not there
    return Commands(server, folder, dict(os.environ))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot copy a process")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(page: str, origin: Commands) -> None:
    shutil.rmtree(origin.folder / "src", ignore_errors=True)
    shutil.copytree(ROOT / "src", origin.folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    if page == "augmentation":
        origin.run("python -m ml_project.train name=older")
    printed: list[str] = []
    tests_named = follow(DOCS / f"{page}.md", origin.folder, lambda command: printed.append(origin.run(command)))
    if page == "recipes":  # batch norm's measurements as well
        assert changed_after_freezing(origin.folder) == {"model.classify.2.weight", "model.classify.2.bias"}
    if page == "setting":
        assert printed[-1].count(" was trained when there was no l1: today's default is taken.\n") == 1
    if page == "augmentation":
        check_augmentation(origin)
    if page == "folds":
        check_folds(origin)
    if page == "metric":
        check_fiftyone(next((origin.folder / "runs").rglob("fiftyone")))
    if page == "rare-classes":
        origin.run(f"python -c {shlex.quote(WEIGHTS)}")
    for tests in tests_named:
        run_tests(origin, tests)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot copy a process")
def test_all_pages_change_one_project_whose_tests_pass(origin: Commands) -> None:
    shutil.rmtree(origin.folder / "src")
    shutil.copytree(ROOT / "src", origin.folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for page in PAGES:
        follow(DOCS / f"{page}.md", origin.folder, lambda _: None)
    run_tests(origin, "tests")


def run_tests(origin: Commands, tests: str) -> None:
    shutil.copytree(ROOT / "tests", origin.folder / "tests", dirs_exist_ok=True)
    origin.run(f"python -m pytest -q -p no:cacheprovider {tests}")


def check_fiftyone(folder: Path) -> None:
    """As its documentation describes an import: a file of labels by the names of the pictures in `data/`."""
    answers = [line.split(",") for line in (folder.parent / "test_predictions.csv").read_text().splitlines()]
    column = {"label": 0, "predicted": 1}
    pictures = sorted(file.stem for file in (folder / "data").iterdir())
    assert len(pictures) == len(answers) - 1
    with Image.open(folder / "data" / f"{pictures[0]}.png") as picture:
        assert picture.size == (8, 8)
    for name, place in column.items():
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert content["classes"] is None
        assert sorted(content["labels"]) == pictures
        said = [content["labels"][picture] for picture in pictures]
        assert [each["label"] for each in said] == [answer[place] for answer in answers[1:]]
        confidence = [str(each.get("confidence", "")) for each in said]
        assert confidence == ([answer[2] for answer in answers[1:]] if name == "predicted" else [""] * len(said))


def check_augmentation(origin: Commands) -> None:
    """Each place of an image is as probable as any other; training batches alone change; older runs can be read."""
    origin.run(f"python -c {shlex.quote(SHIFTED)}")
    origin.run(f"python {Path(__file__).with_name('augmented.py')} ml_project data.shift=1")
    printed = origin.run("python -m ml_project.evaluate @older")
    assert " was trained when there was no data.shift: today's default is taken.\n" in printed
    with pytest.raises(AssertionError, match=re.escape("data.shift must be >= 0, got -1.")):
        origin.run("python -m ml_project.train data.shift=-1")


def check_folds(origin: Commands) -> None:
    """Each example is in the test split of one fold; groups stay together; too few of them are one sentence."""
    file, alone = origin.folder / "src/ml_project/folds.py", "list(range(len(raw.labels)))"
    code = file.read_text(encoding="utf-8")
    for num_groups in (1797, 40):
        file.write_text(code.replace(alone, f"[row % {num_groups} for row in {alone}]"), encoding="utf-8")
        origin.run("python -m ml_project.folds")
        tested: list[int] = []
        for fold in range(5):
            rows = {name: np.load(origin.folder / f"data/folds/{fold}/{name}_rows.npy") for name in SPLITS}
            groups = [set(of_split % num_groups) for of_split in rows.values()]
            assert len(set.union(*groups)) == sum(map(len, groups)) == num_groups
            tested += rows["test"].tolist()
        assert sorted(tested) == list(range(1797))
    of_its_own = '    raw = replace(raw, predefined_splits={"test": [0]})\n    if raw.predefined_splits:'
    for changed, sentence in (
        (
            code.replace(alone, f"[row % 3 for row in {alone}]"),
            "3 groups are too few for 5 folds. Set a smaller FOLDS.",
        ),
        (
            code.replace("    if raw.predefined_splits:", of_its_own),
            "these data have splits of their own (test), which folds would mix. Train on those, or leave "
            "predefined_splits out of the RawDataset that conf/dataset/ names.",
        ),
    ):
        file.write_text(changed, encoding="utf-8")
        with pytest.raises(AssertionError, match=re.escape(f"error: {sentence}")):
            origin.run("python -m ml_project.folds")
    file.write_text(code.replace("FOLDS = 5", "FOLDS = 3"), encoding="utf-8")
    origin.run("python -m ml_project.folds")
    assert sorted(fold.name for fold in (origin.folder / "data/folds").iterdir()) == ["0", "1", "2"]
    sentence = (
        "data/folds/3/train_images.npy does not exist: data/folds holds 0, 1, 2. Take one of these, or have more "
        "written by: python -m ml_project.folds"
    )
    with pytest.raises(AssertionError, match=re.escape(f"error: {sentence}\n")):
        origin.run("python -m ml_project.train data=folds experiment_name=folds seed=3")


def changed_after_freezing(folder: Path) -> set[str]:
    """The tensors in which the run with the recipe's callback differs from the one that it began with."""
    configs = [OmegaConf.load(file) for file in (folder / "runs").rglob("config.yaml")]
    (cfg,) = (each for each in configs if "freeze" in each.callbacks)
    (run,) = (folder / "runs").glob(f"{cfg.experiment_name}/*{cfg.name}*")
    before = torch.load(folder / cfg.init_from / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    after = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_lines_for_a_notebook_give_the_trained_task_and_its_data(run_training: Callable[..., Run]) -> None:
    run = run_training("trainer.max_epochs=1")
    page = (DOCS / "engine.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(lines, found)  # noqa: S102
    assert found["run"].folder == run.folder
    state = torch.load(run.best, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in found["task"].state_dict().items())
    images, _ = next(iter(found["data"].val_dataloader()))
    assert found["task"](images).shape == (len(images), found["cfg"].data.num_classes)


def test_what_somebody_from_another_template_is_told_to_type_is_there() -> None:
    page = (DOCS / "from-lightning-hydra-template.md").read_text(encoding="utf-8")
    ours = " ".join(line.split(" | ", 1)[1] for line in page.splitlines() if line.startswith("| `"))
    typed = [shlex.split(words) for words in re.findall(r"`([^`]*[a-z]=[^`]*)`", ours) if "..." not in words]
    assert len(typed) >= 8
    for word in {word for words in typed for word in words if word != "-m"}:
        name, _, value = word.partition("=")
        assert runengine.choices(name) or name in dict(flatten(compose("train"))), word
        compose("train", [f"{name}={value if value.startswith('[') else value.split(',')[0]}"])  # the first of a sweep


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^[a-z-]+$", index, re.MULTILINE))
    assert listed == {file.stem for file in DOCS.glob("*.md")} - {"index"}


def test_every_setting_is_in_the_reference_with_its_default() -> None:
    page = reference.settings()
    for group in project.groups():
        program = "prepare" if group == "dataset" else "train"
        for name in runengine.choices(group):
            assert f"### {group}={name}\n" in page
            for key, _ in flatten(compose(program, [f"{group}={name}"])):
                known = key.endswith(("_target_", "_partial_")) or f"| `{key}` |" in page
                assert known or any(f"| `{above}` |" in page for above in parents(key)), key
    assert "| `monitor.metric` | `val/loss` | text | a name the task logs; null: " in page  # the owner's value
    batch_size = compose("train").data.batch_size
    assert f"| `data.batch_size` | `{batch_size}` | \\>= 1 | over all devices together |" in page


def parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def test_every_check_of_the_doctor_has_what_fixes_it() -> None:
    sections = re.split(r"^## ", reference.checks(), flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == [check.name for check in doctor.CHECKS]
    for section in sections:
        assert re.search(r"^\*.*\*$", section, re.MULTILINE), section
        assert section.count("\n\n") > 1, section


def test_the_reference_names_shapes_and_units() -> None:
    page = reference.modules()
    assert "{py:class} CNN(input_shape: Sequence[int], num_classes: int, channels: int, dropout: float)" in page
    assert "- `input_shape`: C, H, W; H and W at least 4." in page
    assert "{py:method} forward(images_BCHW: Tensor) -> Tensor" in page


def test_the_reference_has_what_the_engine_offers_and_nothing_else_of_it() -> None:
    page = reference.modules()
    engine = page[page.index("\n## runengine\n") :]
    offered = re.findall(r"^:{5}\{py:(?:function|class)\} (\w+)", engine, re.MULTILINE)
    assert offered == [*runengine.HOMES, "assert_resumes_exactly"]
    page = (DOCS / "engine.md").read_text(encoding="utf-8")
    assert [name for name in offered if f"`{name}`" not in page] == []


@pytest.mark.parametrize(("comment", "shown"), [
    ("a|b *c* <d>", r"a\|b \*c\* \<d\>"), ("`x|y`", r"`x\|y`"), ("", "")
])  # fmt: skip
def test_a_comment_stays_text(comment: str, shown: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"# what it is\na: 1{'  # ' if comment else ''}{comment}\n", encoding="utf-8")
    option = read_option(file, "mine")
    assert option.about == ["what it is"]
    assert f"| `mine.a` | `1` | an integer | {shown} |" in reference.table(option.settings)[0]


def test_a_file_of_settings_may_be_empty_and_a_setting_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# nothing yet\n", encoding="utf-8")
    assert read_option(file, "mine") == (["nothing yet"], "", "", [])
    file.write_text("a:  # not set\nb:\n  # first\n  c: [1, 2]  # second\n", encoding="utf-8")
    rows = read_option(file, "mine").settings
    assert [(row.key, row.default, row.comment) for row in rows] == [
        ("mine.a", "", "not set"),
        ("mine.b.c", "[1, 2]", "first second"),
    ]
