"""The engine knows no task: it does not speak of one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import runengine

ENGINE = Path(str(runengine.__file__)).parent
TASK = re.compile(r"image|accuracy|class(es|ifier)|softmax|logits", re.IGNORECASE)
NO_TASK = re.compile(r"https?://\S+|dataclass(es)?|classmethod|no kernel image")  # the last is CUDA's own message
OF_CONTAINERS = re.compile(r"image", re.IGNORECASE)  # in `launch` an image is what a container is made of
TEXTS = {".py", ".yaml", ".md", ""}
FILES = [file for file in sorted(ENGINE.rglob("*")) if file.is_file() and file.suffix in TEXTS]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ENGINE).as_posix())
def test_the_engine_does_not_speak_of_a_task(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    if "launch" in file.relative_to(ENGINE).parts:
        lines = [OF_CONTAINERS.sub("", line) for line in lines]
    assert [line for line in lines if TASK.search(NO_TASK.sub("", line))] == []
