"""The text: cut once into parts that share nothing; windows in which every token is to be predicted once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import prepare_as_configured

from runengine import UserError

from ml_project.data import NOTHING, TextData
from ml_project.prepare import SPLITS, prepare, to_text, to_tokens


@pytest.fixture(scope="module")
def fox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short text, prepared: 44 characters, 29 different ones."""
    folder = tmp_path_factory.mktemp("fox")
    (folder / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.")
    prepare(folder / "made", folder / "fox.txt", val_fraction=0.25, test_fraction=0.25)
    return folder


def test_the_parts_of_the_text_are_all_of_it(fox: Path) -> None:
    vocabulary = json.loads((fox / "made/split.json").read_text())["vocabulary"]
    data = TextData(fox / "made", len(vocabulary), context=4, batch_size=1, seed=0)
    parts = [to_text(data.tokens(name).tolist(), vocabulary) for name in SPLITS]
    assert "".join(parts) == (fox / "fox.txt").read_text()
    assert list(map(len, parts)) == [22, 11, 11]


def test_the_same_text_makes_the_same_tokens(processed: Path, tmp_path: Path) -> None:
    assert prepare_as_configured(tmp_path / "again") == json.loads((processed / "split.json").read_text())


@pytest.mark.parametrize("context", [1, 3, 5, 10])
def test_each_token_is_predicted_once_from_those_before_it(fox: Path, context: int) -> None:
    data = TextData(fox / "made", 29, context, batch_size=1, seed=0)
    inputs_NT, targets_NT = data.split("val").tensors
    tokens = data.tokens("val")
    assert targets_NT[targets_NT != NOTHING].tolist() == tokens[1:].tolist()
    assert inputs_NT[targets_NT != NOTHING].tolist() == tokens[:-1].tolist()


def test_batches_have_the_configured_shape(data: TextData) -> None:
    tokens_BT, targets_BT = next(iter(data.train_dataloader()))
    assert tokens_BT.shape == targets_BT.shape == (data.batch_size, data.context)
    assert tokens_BT.dtype == targets_BT.dtype == torch.int64
    assert (tokens_BT[:, 1:] == targets_BT[:, :-1]).all()
    assert 0 <= tokens_BT.min() <= tokens_BT.max() < data.num_tokens


def test_a_window_longer_than_the_text_is_refused(fox: Path) -> None:
    with pytest.raises(UserError, match=r"has only 11 tokens\. Type data\.context=10, or bring a longer text\.$"):
        TextData(fox / "made", 29, context=11, batch_size=1, seed=0).split("val")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty. Put your text there, or set dataset.file."),
        (b" \n", "is empty. Put your text there, or set dataset.file."),
        (b"to \xff", "is no text in UTF-8: byte 3 is wrong. Save it as UTF-8."),
        (b"abc", "has 3 characters: too few for three splits. Bring a longer text."),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "new.txt").write_bytes(content)
    with pytest.raises(UserError) as refused:
        prepare(tmp_path / "made", tmp_path / "new.txt", val_fraction=0.1, test_fraction=0.1)
    assert str(refused.value).endswith(sentence)
    assert not (tmp_path / "made").exists()


def test_a_character_that_the_model_has_never_seen_is_refused() -> None:
    with pytest.raises(UserError, match=r"^the character 'é' was not there in the training\. Leave it out\.$"):
        to_tokens("café", ["a", "c", "f"])
