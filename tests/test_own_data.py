"""docs/bring-your-own-data.md, followed line by line on tiny data."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, install_next_to, run, without
from hugging_face import LIBRARY, save
from loopback import serve

sys.path.append(str(ROOT / "tests/engine"))
from pages import FENCE, Commands, Server, write  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow

TINY_DATA = """
import gzip, pathlib, sys
import numpy as np
from PIL import Image

random = np.random.default_rng(0)

def folder(name):
    made = pathlib.Path(name)
    made.mkdir(parents=True)
    return made

for name, colour in (("cat", 50), ("dog", 200)):
    images = folder(f"data/raw/images/{name}")
    for number in range(10):
        Image.new("RGB", (30, 20 + number), (colour, number, 0)).save(images / f"{number}.png")

eyes = folder("data/raw/eyes")
np.save(eyes / "images.npy", random.integers(0, 256, (20, 24, 24, 3), dtype=np.uint8))
np.save(eyes / "labels.npy", np.arange(20) % 2)

clothes = folder(sys.argv[1])
for part, count in (("train", 200), ("t10k", 50)):
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (clothes / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
"""
PREPARED = """
import json
import numpy as np

record = json.load(open("data/hugging_face/split.json"))
assert record["rows"] == {"train": 20, "val": 6, "test": 8}, record
assert record["classes"] == ["night", "day"], record
assert record["input_shape"] == [1, 28, 28], record
for split, rows in (("train", range(20)), ("val", range(20, 26)), ("test", range(26, 34))):
    images, labels, found = (np.load(f"data/hugging_face/{split}_{kind}.npy") for kind in ("images", "labels", "rows"))
    assert found.tolist() == list(rows)
    assert labels.tolist() == [row % 2 for row in range(len(rows))]
    assert ((images > 50).all(axis=(1, 2, 3)) == labels).all()
"""


def write_settings(file: Path, settings: list[str]) -> None:
    """Give each `key: value` to the line of this key; what has no key goes to the files that `prepare` depends on."""
    text = file.read_text(encoding="utf-8")
    for setting in settings:
        key, _, value = setting.partition(": ")
        if value:
            text, count = re.subn(rf"^( *){re.escape(key)}: [^#\n]*", rf"\g<1>{setting} ", text, flags=re.MULTILINE)
            assert count == 1, setting
        else:
            first = "      - src/my_project/prepare.py\n"
            assert text.count(first) == 1
            text = text.replace(first, f"      {setting}\n{first}")
    file.write_text(text, encoding="utf-8")


def check_hugging_face(command: str, project: Path, env: dict[str, str]) -> None:
    """The splits, the names of the classes and the pixels are those of the data set; mistakes are one sentence."""
    run("sh", "-c", command, cwd=project, env=env)
    run("python", "-c", PREPARED, cwd=project, env=env)
    for typed, sentence in (
        ("image=img", "data/raw/hugging_face has no column 'img': its columns are image, label. Set dataset.image"),
        ("folder=nowhere", "nowhere is not a folder. Save a data set there, or set dataset.folder."),
    ):
        printed = run("sh", "-c", f"{command} dataset.{typed}", cwd=project, env=env, expect=1).output
        assert f"error: {sentence}" in printed


def test_the_page_on_own_data_can_be_followed(
    project: Path, python: Path, env: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=without(project, ".venv", "runs", "mlruns"))
    venv = {**env, "PATH": f"{project / '.venv/bin'}:{env['PATH']}", "PYTHONPATH": str(copy / "src")}
    page = (copy / "docs/bring-your-own-data.md").read_text(encoding="utf-8")
    conf = copy / "src/my_project/conf"
    run("python", "-c", TINY_DATA, tmp_path / "clothes", cwd=copy, env=venv)
    file = copy
    for kind, content, name in FENCE.findall(page):
        file = copy / name if name else file
        if kind in ("python", "yaml"):
            write(file, content)
    clothes = conf / "dataset/fashion_mnist.yaml"
    text = clothes.read_text(encoding="utf-8")
    for part in (tmp_path / "clothes").iterdir():
        text = re.sub(rf"{part.name}: \w+", f"{part.name}: {hashlib.sha256(part.read_bytes()).hexdigest()}", text)

    commands = re.findall(r"^(?:    )?((?:mkdir|python|dvc) .*)$", page, re.MULTILINE)
    *commands, pipeline = commands
    assert len(commands) >= 10
    library = install_next_to(python, tmp_path_factory.getbasetemp(), LIBRARY)
    with_library = {**venv, "PYTHONPATH": f"{copy / 'src'}:{library}"}
    save("images", copy / "data/raw/hugging_face", python, with_library)
    with serve(tmp_path / "clothes") as address, Server(str(python)) as server:
        typed = Commands(server, copy, venv)
        clothes.write_text(re.sub(r"address: \S+", f"address: {address}", text), encoding="utf-8")
        for command in commands:
            if "pip install" in command or "load_dataset(" in command:
                continue  # what they would leave is there
            if command.endswith("dataset=hugging_face"):
                check_hugging_face(command, copy, with_library)
                continue
            printed = typed.run(command)
            if "dataset.file=" in command:
                for line in printed.splitlines():
                    assert f"    {line}\n" in page
            if "predict" in command:
                assert len(printed.splitlines()) == 151

    section = page.partition("## As the project's own data")[2]
    for name, settings in re.findall(r"^\| `([\w/.]+)`[^|]*\| (.*) \|$", section, re.MULTILINE):
        file = conf / name.removeprefix("conf/") if name.startswith("conf/") else copy / name
        write_settings(file, re.findall(r"`([^`]+)`", settings))
    run("dvc", "config", "--local", "core.no_scm", "true", cwd=copy, env=venv)
    printed = run("sh", "-c", pipeline, cwd=copy, env=venv).output
    assert "train on it: python -m my_project.train\n" in printed  # nothing has to be typed any more
    assert "Running stage 'evaluate'" in printed
    assert (copy / "data/processed/split.json").is_file()
    printed = run(
        "python", "-m", "pytest", "-q", "tests/test_data.py", "tests/test_model.py", cwd=copy, env=venv
    ).output
    assert " passed" in printed
