"""The schemas of settings for editors: every file is valid, every fault is refused with the name of its key."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # comes with nbstripout, by nbformat
import pytest
from conftest import SOURCE
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf
from runengine import UserError, compose
from runengine.settings import comments, project
from runengine.settings.check import check
from runengine.settings.schema import Schemas
from runengine.settings.signatures import Signature, signature

ENGINE_CONF = project.ENGINE_FOLDER / "conf"
EXAMPLES = ("images", *sorted(folder.name for folder in (SOURCE.parent / "examples").iterdir()))
LINE = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)
HEAD = "# @package _global_\n"
SGD = "_target_: torch.optim.SGD\n"
CNN = "_target_: ml_project.model.CNN\n"
PLATEAU = "_target_: torch.optim.lr_scheduler.ReduceLROnPlateau"

FAULTS = [  # a file of conf/, what stands there, the key with the fault, and whether the program sees it, too
    ("experiment/x", "seed: fast", "seed", True),
    ("experiment/x", "seed: -1", "seed", True),
    ("experiment/x", "seed: null", "seed", True),
    ("experiment/x", "patience: 0", "patience", True),
    ("experiment/x", "patince: 3", "patince", False),
    ("experiment/x", "compile: 3", "compile", False),
    ("experiment/x", "tags: word", "tags", False),
    ("experiment/x", "experiment_name: 3", "experiment_name", True),
    ("experiment/x", "monitor: {mode: up}", "monitor.mode", True),
    ("experiment/x", "monitor: {mode: null}", "monitor.mode", True),
    ("experiment/x", "monitor: {metrik: val/loss}", "monitor.metrik", False),
    ("experiment/x", "tracking: {checkpoints: some}", "tracking.checkpoints", True),
    ("experiment/x", "tracking: {uri: sqlite}", "tracking.uri", False),
    ("experiment/x", "trainer: {devices: 0}", "trainer.devices", True),
    ("experiment/x", "trainer: {max_epochs: null}", "trainer.max_epochs", True),
    ("experiment/x", "trainer: {max_epoch: 3}", "trainer.max_epoch", False),
    ("experiment/x", "trainer: {detect_anomaly: 3}", "trainer.detect_anomaly", False),
    ("experiment/x", "trainer: {min_epochs: some}", "trainer.min_epochs", False),
    ("experiment/x", "checkpoint: {every_minutes: 0}", "checkpoint.every_minutes", True),
    ("experiment/x", "checkpoint: {every_minute: 5}", "checkpoint.every_minute", False),
    ("experiment/x", "launch: {minuts: 5}", "launch.minuts", False),
    ("experiment/x", "data: {batch_size: null}", "data.batch_size", True),
    ("experiment/x", "data: {batch_size: 1.5}", "data.batch_size", True),
    ("experiment/x", "optimizer: {lr: fast}", "optimizer.lr", False),
    ("experiment/x", "optimizer: {lrr: 0.1}", "optimizer.lrr", False),
    ("experiment/x", "model: {dropout: [0.1]}", "model.dropout", False),
    ("experiment/x", f"callbacks: {{a: {{{SGD.strip()}, momentumm: 0.9}}}}", "callbacks.a.momentumm", False),
    ("experiment/x", "defaults: [override /model: cmn]", "defaults.0.override /model", True),
    ("experiment/x", "defaults: [override /modle: cnn]", "defaults.0.override /modle", True),
    ("experiment/x", "defaults: [override /search: default]\nsearch: {trials: 0}", "search.trials", True),
    ("optimizer/x", f"{SGD}nestrov: true", "nestrov", False),
    ("optimizer/x", f"{SGD}nesterov: maybe", "nesterov", False),
    ("optimizer/x", f"{SGD}_partial_: maybe", "_partial_", False),
    ("optimizer/x", "defaults: [sgd]\nlrr: 1", "lrr", False),
    ("lr_scheduler/x", f"scheduler: {{{PLATEAU}, mode: up}}", "scheduler.mode", False),
    ("lr_scheduler/x", "intervall: step", "intervall", False),
    ("model/x", f"{CNN}hidden: 3", "hidden", False),
    ("model/x", f"{CNN}channels: null", "channels", False),
    ("data/x", "defaults: [digits]\nbatch_size: 0", "batch_size", True),
    ("tracking/x", "defaults: [mlfow]", "defaults.0", True),
    ("tracking/x", "defaults: [mlflow]\ncheckpoints: some", "checkpoints", True),
    ("dataset/x", "_target_: ml_project.images.from_folder\nsize: 64", "size", False),
    ("dataset/y", f"{HEAD}val_fraction: much", "val_fraction", False),
]  # fmt: skip
FINE = [
    ("experiment/x", "seed: ${oc.env:SEED,1}\nmonitor: {metric: '???', mode: '${a}'}\nmodel: {dropout: '${seed}'}"),
    ("experiment/x", "callbacks: {freeze: {_target_: mine.Freeze, layers: 3}}"),
    ("experiment/x", "loggers: {csv: {_target_: pytorch_lightning.loggers.CSVLogger, save_dir: .}}"),
    ("experiment/x", "launch: {minutes: 5, extra: {qos: long, constraint: a100}}"),
    ("experiment/x", "search: {space: {model: {dropout: {low: 0, high: 0.5}, channels: {choices: [8, 16]}}}}"),
    ("experiment/x", "defaults: [override /lr_scheduler: null, override /search: default]\nlr_scheduler: null"),
    ("experiment/x", "defaults: [smoke, /trainer/cpu, _self_, override hydra/launcher: joblib]\nhydra: {mode: RUN}"),
    ("experiment/x", "trainer: {benchmark: true, log_every_n_steps: 5, gradient_clip_val: null, max_epochs: 3}"),
    ("experiment/x", "trainer: {strategy: {_target_: mine.Strategy, size: 2}}\ntracking: {mlflow_uri: null}"),
    ("experiment/x", "model: {_target_: mine.Model, width: 3}\noptimizer: {lr: 1, momentum: 0, weight_decay: 1e-4}"),
    ("optimizer/x", "defaults: [sgd]\nlr: 1e-2"),
    ("optimizer/x", "_target_: torch.optim.Adam\n_partial_: true\nbetas: [0.9, 0.99]"),
    ("optimizer/x", "# nothing yet"),
    ("tracking/x", "defaults: [mlflow, _self_]\nsystem_every_s: null"),
    ("dataset/x", f"{HEAD}folder: data/mine\ndataset: {{_target_: mine.read, address: here}}"),
]  # fmt: skip


def make(root: Path) -> str:
    """What `make schema` types, in this project."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-m", "runengine", "schema"]
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The settings and the code of a project with this example, as it is generated, with its schemas."""
    made: dict[str, Path] = {}

    def generate(example: str) -> Path:
        if example not in made:
            root = made[example] = tmp_path_factory.mktemp(example)
            shutil.copytree(SOURCE, root / "src", ignore=shutil.ignore_patterns("__pycache__"))
            (root / "pyproject.toml").write_text('[tool.runengine]\npackage = "ml_project"\n', encoding="utf-8")
            files = SOURCE.parent / "examples" / example
            if files.is_dir():
                for pattern in json.loads((files / "example.json").read_text(encoding="utf-8"))["replaces"]:
                    for file in root.glob(pattern):
                        file.unlink()
                shutil.copytree(files / "src", root / "src", dirs_exist_ok=True)
            make(root)
        return made[example]

    return generate


@pytest.fixture
def mine(generated: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings of a copy of the project, which this process works for."""
    package = tmp_path / "copy/ml_project"
    shutil.copytree(generated("images") / "src/ml_project", package)
    monkeypatch.setattr(project, "_used", [project.Project("ml_project", package)])
    return package / "conf"


@pytest.fixture(scope="session")
def schemas(generated: Callable[[str], Path]) -> dict[str, Any]:
    """Those of the project as it is generated."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in generated("images").glob(".schemas/*")}


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{HEAD if file.parent.name == 'experiment' else ''}{text}\n", encoding="utf-8")
    return file


def name_of(file: Path) -> str:
    """The schema that fits a file of the project that this process works for."""
    if file.parent.name == "conf":
        return "train" if file.stem == project.ENGINE else file.stem
    script = "prepare" if file.parent.name == "dataset" else "train"
    return script if comments.is_global(file) else file.parent.name


def faults(schema: dict[str, Any], file: Path) -> set[str]:
    """The keys that a validator complains about."""
    loaded = OmegaConf.load(file) if OmegaConf.load(file) else None
    return set(_faults(schema, OmegaConf.to_container(loaded) if loaded else None))


def _faults(schema: dict[str, Any], content: Any) -> Iterator[str]:
    for error in jsonschema.Draft7Validator(schema).iter_errors(content):
        place = [str(part) for part in error.absolute_path]
        if error.validator == "additionalProperties":
            patterns = "|".join(error.schema.get("patternProperties", {})) or "$."
            known = error.schema["properties"]
            for name in (name for name in error.instance if name not in known and not re.search(patterns, name)):
                yield ".".join([*place, name])
        else:
            yield ".".join(place)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_file_is_valid_and_names_the_schema_that_fits(
    example: str, generated: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = generated(example)
    own = project.Project("ml_project", root / "src/ml_project")
    monkeypatch.setattr(project, "_used", [own])
    files = [*own.conf.rglob("*.yaml"), *ENGINE_CONF.rglob("*.yaml")]
    assert len(files) > 25
    for file in files:
        wanted = root / f".schemas/{name_of(file)}.json"
        if file.is_relative_to(root):
            (named,) = LINE.findall(file.read_text(encoding="utf-8"))
            assert (file.parent / named).resolve() == wanted, file
        schema = json.loads(wanted.read_text(encoding="utf-8"))
        jsonschema.Draft7Validator.check_schema(schema)
        assert faults(schema, file) == set(), file


@pytest.mark.parametrize(("place", "text", "key", "seen"), FAULTS)
def test_a_fault_is_refused_with_its_key(
    place: str, text: str, key: str, seen: bool, mine: Path, schemas: dict[str, Any]
) -> None:
    file = written(mine / f"{place}.yaml", text)
    assert faults(schemas[name_of(file)], file) == {key}
    group, name = place.split("/")
    script = "prepare" if group == "dataset" else "train"
    if seen:
        named = key.split(".")[-1].removeprefix("override /")
        with pytest.raises((UserError, HydraException), match=f"{named}|In '{place}'"):
            check(compose(script, [f"{group}={name}"]), script)
    else:  # where it is no longer so, say it above
        check(compose(script, [f"{group}={name}"]), script)


@pytest.mark.parametrize(("place", "text"), FINE)
def test_what_the_program_takes_is_accepted(place: str, text: str, mine: Path, schemas: dict[str, Any]) -> None:
    file = written(mine / f"{place}.yaml", text)
    assert faults(schemas[name_of(file)], file) == set()


def test_a_setting_of_the_owner_is_known_with_its_type_and_its_comment(mine: Path) -> None:
    train, experiment = mine / "train.yaml", mine / "experiment/x.yaml"
    train.write_text(train.read_text() + "l1: 1e-4  # times all weights\n", encoding="utf-8")
    schema = Schemas().make()["train"]
    assert schema["properties"]["l1"]["description"] == "times all weights"
    assert faults(schema, train) == set()
    for value, wrong in (("0.1", set()), ("much", {"l1"})):
        assert faults(schema, written(experiment, f"l1: {value}")) == wrong


def test_a_fault_that_stands_in_a_file_is_not_taken_for_a_setting(mine: Path) -> None:
    for name, text, key in (
        ("optimizer/sgd", "lrr: 1\n", "lrr"),
        ("train", "trainer: {max_epoch: 1}\n", "trainer.max_epoch"),
        ("tracking/x", "uri: x\n", "uri"),
    ):
        file = mine / f"{name}.yaml"
        written(file, (file.read_text() if file.is_file() else "") + text)
        assert faults(Schemas().make()[name_of(file)], file) == {key}


def test_the_choices_of_a_group_are_completed_with_what_it_is_for(mine: Path) -> None:
    (mine / "model/mine.yaml").write_text("defaults: [cnn]\n", encoding="utf-8")
    entry = Schemas().make()["train"]["properties"]["defaults"]["items"]["then"]["properties"]
    assert entry["override /model"]["anyOf"][0]["enum"] == ["cnn", "mine", "mlp", None]
    assert entry["launch"]["description"] == "where runs are started"


def test_what_cannot_be_read_is_not_checked_and_said(generated: Callable[[str], Path], tmp_path: Path) -> None:
    root = shutil.copytree(generated("minimal"), tmp_path / "copy")
    model = root / "src/ml_project/model.py"
    model.write_text("class Linear(:\n", encoding="utf-8")
    (root / "src/ml_project/conf/optimizer/mine.yaml").write_text("_target_: nowhere.Mine\n", encoding="utf-8")
    (root / ".schemas/gone.json").touch()
    assert make(root).splitlines() == [
        f"The arguments of ml_project.model.Linear are not checked: {model}, line 1: invalid syntax.",
        "The arguments of nowhere.Mine are not checked: its source is not found.",
        "wrote 9 schemas into .schemas/",
    ]
    assert not (root / ".schemas/gone.json").exists()
    schema = json.loads((root / ".schemas/model.json").read_text(encoding="utf-8"))
    assert not set(_faults(schema, {"_target_": "ml_project.model.Linear", "anything": 1}))


def test_what_is_read_of_a_class_is_what_python_says() -> None:
    schemas = Schemas()
    assert not schemas.unknown
    names = {*schemas.signatures, "torch.nn.Linear", "torchmetrics.Accuracy", "pytorch_lightning.loggers.CSVLogger"}
    assert len(names) > 12
    for name in names:
        parameters = inspect.signature(get_object(name)).parameters.values()
        kinds = [each.kind.name for each in parameters]
        arguments = [each.name for each in parameters if not each.kind.name.startswith("VAR")]
        read = signature(name)
        assert isinstance(read, Signature)
        assert (list(read.arguments), read.more) == (arguments, "VAR_KEYWORD" in kinds), name


def test_what_a_class_takes_is_found_wherever_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "one_of_mine.py").write_text(
        "from another_of_mine import Net\n\n"
        "try:\n    from nowhere import Other\nexcept ImportError:\n    class Other:\n"
        "        def __init__(self, x: 'any tensor', y: int): ...\n\n"
        "class Net(Net):\n    pass\n",
        encoding="utf-8",
    )
    (tmp_path / "another_of_mine.py").write_text("class Net:\n    def __init__(self, width): ...\n", encoding="utf-8")
    other = signature("one_of_mine.Other")
    assert isinstance(other, Signature)
    assert list(other.arguments) == ["x", "y"]
    assert not any(other.arguments["x"])
    assert signature("one_of_mine.Net") == Signature({}, more=True)  # not followed to the one that it hides
