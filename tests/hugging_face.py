"""The library `datasets` next to the packages of an environment, and tiny data sets that it saves."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import run

SAVE = {
    "images": """
import sys
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Picture

features = Features({"image": Image(), "label": ClassLabel(names=["night", "day"])})

def split(count):
    pictures = [Picture.new("RGB", (30, 20 + row), (200 * (row % 2), row, 0)) for row in range(count)]
    return Dataset.from_dict({"image": pictures, "label": [row % 2 for row in range(count)]}, features=features)

DatasetDict({"test": split(8), "train": split(20), "validation": split(6)}).save_to_disk(sys.argv[1])
""",
    "table": """
import sys
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

number, town = Value("float64"), ClassLabel(names=["Ulm", "Bonn"])
features = Features({"Rooms": number, "Town": town, "MedHouseVal": number})

def split(count):
    columns = {"Rooms": [0.1 * row for row in range(count)], "Town": [row % 2 for row in range(count)]}
    return Dataset.from_dict({**columns, "MedHouseVal": [0.2 * row for row in range(count)]}, features=features)

DatasetDict({"train": split(40), "validation": split(10), "test": split(10)}).save_to_disk(sys.argv[1])
""",
    "text": """
import sys
from datasets import Dataset, DatasetDict

stories = Dataset.from_dict({"text": [f"Café number {row} is open.\\nCome in!" for row in range(100)]})
DatasetDict({"train": stories, "validation": stories.select([0])}).save_to_disk(sys.argv[1])
""",
}


def install(python: Path, base: Path) -> Path:
    """A folder with what `pip install datasets` would add to this environment, which stays as it is."""
    report, folder = base / "datasets-library.json", base / "datasets-library"
    if folder.is_dir():
        return folder
    run(python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report, "datasets>=5,<6", cwd=base)
    added = [one["metadata"] for one in json.loads(report.read_text(encoding="utf-8"))["install"]]
    wanted = [f"{package['name']}=={package['version']}" for package in added]
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *wanted, cwd=base)
    return folder


def save(example: str, folder: Path, python: Path, env: dict[str, str]) -> None:
    """What `save_to_disk` writes of a data set for this example."""
    run(python, "-c", SAVE[example], folder, cwd=folder.parents[2], env=env)
