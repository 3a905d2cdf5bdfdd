"""Which of the owner's modules decide a result: for the pipeline, and for a run that starts over if they changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SOURCE
from runengine.runs import provenance
from runengine.settings import code, project

RUNS = 'if __name__ == "__main__":\n    main()\n'
FILES = {
    "__init__.py": "",
    "model.py": f"import torch\n{RUNS}",  # by its settings
    "blocks/conv.py": "SIZE = 3",
    "conf/__init__.py": "",
    "conf/train.yaml": "# python -m package.train\nmodel: {_target_: package.model.CNN}\n",
    "predict.py": RUNS,
    "train.py": f"from .predict import (\n    export,\n)\n{RUNS}",
    "evaluate.py": RUNS.replace('"', "'"),
    "table.py": RUNS,
    "broken.py": "import table, evaluate, (",
}


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "package"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    before = project.current()
    project.use(project.Project("package", folder))
    yield folder
    project.use(before)


def test_every_module_counts_without_programs_that_nothing_names(package: Path) -> None:
    hashes = code.hashes()
    assert list(hashes["modules"]) == [
        "__init__.py", "blocks/conv.py", "broken.py", "conf/__init__.py", "model.py", "predict.py",
    ]  # fmt: skip
    assert sorted(hashes["programs"]) == ["evaluate", "model", "predict", "table", "train"]
    (package / "tasks.py").write_text('importlib.import_module("package.table")', encoding="utf-8")
    assert {"table.py", "tasks.py"} <= code.hashes()["modules"].keys()


@pytest.mark.parametrize(("name", "counts"), [
    ("train.py", True), ("model.py", True), ("blocks/conv.py", True), ("predict.py", True), ("broken.py", True),
    ("evaluate.py", False), ("table.py", False), ("conf/train.yaml", False),
])  # fmt: skip
def test_the_fingerprint_of_a_training_has_the_same_files(package: Path, name: str, counts: bool) -> None:
    before = provenance.fingerprint({"seed": 0}, None)
    (package / name).write_text(FILES[name] + "\n# changed", encoding="utf-8")
    after = provenance.fingerprint({"seed": 0}, None)
    assert [key for key in after if after[key] != before.get(key)] == ([name] if counts else [])
    assert before.keys() == after.keys()
    assert {"seed", "the engine"} <= after.keys()


def test_the_pipeline_gets_them_as_a_file(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    file = tmp_path / "runs/dvc/code.json"
    subprocess.run([sys.executable, "-m", "runengine", "code", str(file)], env=environment, check=True)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written == code.hashes()
    assert {"data.py", "model.py", "task.py"} <= written["modules"].keys()
    assert {"train.py", "evaluate.py"}.isdisjoint(written["modules"])
    assert {"train", "evaluate"} <= written["programs"].keys()  # dvc.yaml names them
