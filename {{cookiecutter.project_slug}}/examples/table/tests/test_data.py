"""The data: split once, by a seed, into parts that share nothing; rows become what the model expects."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import prepare_as_configured

from runengine import UserError, read_csv

from ml_project.columns import find_categories, measure, to_rows
from ml_project.data import Encode, TableData
from ml_project.prepare import SPLITS, files_of


def test_every_row_is_in_exactly_one_split(processed: Path) -> None:
    places = np.concatenate([np.load(files_of(processed, name)[-1]) for name in SPLITS])
    assert len(set(places)) == len(places) == sum(json.loads((processed / "split.json").read_text())["rows"].values())


def test_the_same_seed_makes_the_same_split(processed: Path, tmp_path: Path) -> None:
    assert prepare_as_configured(tmp_path / "again") == json.loads((processed / "split.json").read_text())


def test_batches_have_the_configured_shape(data: TableData) -> None:
    features_BF, targets_B = next(iter(data.train_dataloader()))
    assert features_BF.shape == (data.batch_size, data.num_features)
    assert targets_B.shape == (data.batch_size,)
    assert features_BF.dtype == targets_B.dtype == torch.float32
    assert features_BF.isfinite().all()
    assert targets_B.isfinite().all()


def test_targets_are_scaled_by_the_training_rows(data: TableData) -> None:
    targets_N = data.split("train").tensors[1]
    assert float(targets_N.mean()) == pytest.approx(0, abs=1e-5)
    assert float(targets_N.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_numbers_categories_and_missing_values_become_features(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("size,town\n1,Ulm\n3,Bonn\n,Ulm\n")
    table = read_csv(file)
    categories = find_categories(file, table, [])
    rows_NC = to_rows(file, table, list(table), categories)
    assert rows_NC.tolist()[:2] == [[1, 1], [3, 0]]
    assert math.isnan(rows_NC[2, 0])
    encode = Encode(measure(rows_NC, list(table), categories))
    # size, is it missing, Bonn, Ulm
    assert encode(torch.from_numpy(rows_NC)).tolist() == [[-1, 0, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    unknown_NC = torch.tensor([[1, 2], [1, -1], [1, 0.5]], dtype=torch.float64)  # there are the towns 0 and 1
    assert encode(unknown_NC).isnan().all()
    assert encode(torch.tensor([[1, torch.nan]], dtype=torch.float64)).tolist() == [[-1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a\nRome\n", "row 2, column 'a': 'Rome' was not there in the training, only Bonn, Ulm. Fix it."),
        ("b\n1\n", "lacks columns that the model looks at: a. Add them."),
    ],
)
def test_a_row_that_the_model_cannot_know_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "new.csv"
    file.write_text(content)
    with pytest.raises(UserError) as refused:
        to_rows(file, read_csv(file), ["a"], {"a": ["Bonn", "Ulm"]})
    assert str(refused.value).endswith(sentence)
