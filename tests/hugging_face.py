"""Tiny data sets that the library `datasets` saves."""

from __future__ import annotations

from pathlib import Path

from conftest import run

LIBRARY = "datasets>=5,<6"
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


def save(example: str, folder: Path, python: Path, env: dict[str, str]) -> None:
    """What `save_to_disk` writes of a data set for this example."""
    run(python, "-c", SAVE[example], folder, cwd=folder.parents[2], env=env)
