"""Cut a text once into train, val and test, and its characters into numbers: the first stage of `dvc.yaml`.

    python -m ml_project.prepare                                                 # or `make data`
    python -m ml_project.prepare dataset=text dataset.file=data/raw/novel.txt

The first part of the text is for the training, the end for the test. Each split is a file `<split>.npy` (int64, N: for
each character its place in the vocabulary). `split.json` records the vocabulary, the counts, and the SHA-256 of each
file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import runengine
from runengine import UserError

SPLITS = ("train", "val", "test")


def prepare(folder: Path, file: Path, *, val_fraction: float, test_fraction: float) -> dict[str, Any]:
    """Write the three splits and `split.json` into `folder`; returns the content of `split.json`.

    Args:
        folder: is replaced as a whole, when all is complete.
        file: a text in UTF-8.
        val_fraction: of the characters.
        test_fraction: of the characters.
    """
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise UserError(
            f"val_fraction and test_fraction must be > 0, and val_fraction + test_fraction must be < 1, got "
            f"{val_fraction} + {test_fraction}. Leave something to each split, train too."
        )
    text = read(file)
    ends = [round(len(text) * (1 - val_fraction - test_fraction)), round(len(text) * (1 - test_fraction))]
    parts = dict(zip(SPLITS, (text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]), strict=True))
    if min(map(len, parts.values())) < 2:
        raise UserError(f"{file} has {len(text)} characters: too few for three splits. Bring a longer text.")
    vocabulary = sorted(set(text))

    record: dict[str, Any] = {
        "characters": {name: len(part) for name, part in parts.items()},
        "num_tokens": len(vocabulary),
        "vocabulary": vocabulary,
    }
    with runengine.prepared_folder(folder, record) as new:
        for name, part in parts.items():
            np.save(new / f"{name}.npy", to_tokens(part, vocabulary))
    return record


def read(file: Path) -> str:
    """The text, as it stands; only the ends of lines are those of Linux."""
    if not file.is_file():
        raise UserError(f"{file} does not exist. Put your text there, or set dataset.file.")
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors mark UTF-8 by three bytes
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8: byte {error.start} is wrong. Save it as UTF-8.") from None
    if not text.strip():
        raise UserError(f"{file} is empty. Put your text there, or set dataset.file.")
    return text


def to_tokens(text: str, vocabulary: list[str]) -> np.ndarray:
    """For each character its place in the vocabulary; int64, N."""
    known_K, codes_N = (
        np.frombuffer("".join(characters).encode("utf-32-le", "surrogatepass"), np.uint32)
        for characters in (vocabulary, text)
    )
    tokens_N = np.searchsorted(known_K, codes_N).clip(max=len(known_K) - 1)  # the vocabulary is sorted
    for code in codes_N[known_K[tokens_N] != codes_N][:1]:
        raise UserError(f"the character {chr(code)!r} was not there in the training. Leave it out.")
    return tokens_N.astype(np.int64)


def to_text(tokens: Iterable[int], vocabulary: list[str]) -> str:
    return "".join(vocabulary[token] for token in tokens)


def topics(file: Path) -> None:
    """Write the help pages that come with Python, in an order that mixes their subjects, as one text."""
    from pydoc_data.topics import topics as pages

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        mixed = sorted(pages, key=lambda name: hashlib.sha256(name.encode()).digest())
        runengine.atomic_write(file, "\n".join(pages[name] for name in mixed))


def from_settings(cfg: DictConfig) -> dict[str, Any]:
    """As `conf/prepare.yaml` says; returns the content of `split.json`."""
    file = Path(cfg.dataset.file)
    if cfg.dataset.from_python:
        topics(file)
    return prepare(Path(cfg.folder), file, val_fraction=cfg.val_fraction, test_fraction=cfg.test_fraction)


@runengine.main("prepare")
def main(cfg: DictConfig) -> None:
    record = from_settings(cfg)
    counts = ", ".join(f"{name} {count}" for name, count in record["characters"].items())
    print(f"wrote {cfg.folder}: {counts} characters, {record['num_tokens']} different ones")
    print(f"train on it: {runengine.train_command(HydraConfig.get().runtime.choices['dataset'], cfg.folder)}")


if __name__ == "__main__":
    main()
