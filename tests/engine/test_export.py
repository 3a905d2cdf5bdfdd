"""An exported model answers as the run's own does, or is refused; with the real onnxruntime."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runengine import Run, UserError, save_model
from runengine.model_card import write_cards
from runengine.settings import project
from runengine.tracking.export import export, hash_of, in_words
from runengine.tracking.formats import load_onnx, load_pt2
from runengine.tracking.parity import Saved, Served, compare, difference, largest_error, rounding
from runengine.tracking.registry import promote
from torch import Tensor, nn

Train = Callable[..., Run]


class Pair(nn.Module):
    """Numbers and the code of a category in, two answers of different shapes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(7, 5), nn.Linear(8, 3)

    def forward(self, numbers_B3: Tensor, code_B: Tensor) -> dict[str, Tensor]:
        scores_B3 = self.layer(torch.cat([numbers_B3, self.embedding(code_B)], dim=1))
        return {"scores": scores_B3, "best": scores_B3.argmax(dim=1)}


@pytest.mark.parametrize(("format", "load"), [("onnx", load_onnx), ("pt2", load_pt2)])
def test_several_inputs_and_outputs_of_other_types_leave_by_their_names(
    tmp_path: Path, format: str, load: Callable[[Path], Saved]
) -> None:
    torch.manual_seed(0)
    model, inputs = Pair(), {"numbers": torch.randn(70, 3), "code": torch.randint(7, (70,))}

    def measure(answers: Mapping[str, Tensor]) -> dict[str, float]:
        return {"test/share_of_0": float((answers["best"] == 0).float().mean())}

    save_model(Run(tmp_path, export_format=format), model, inputs, {"columns": ["a", "b", "é"]}, measure)
    made = json.loads((tmp_path / "exports.json").read_text())[format]
    file = tmp_path / made["file"]
    assert made["sha256"] == hash_of(file)
    assert made["bytes"] == file.stat().st_size
    assert made["examples"] == 70
    assert 0 <= made["difference"] <= made["rounding"] < 1e-5
    before, after = made["metrics"]["test/share_of_0"]
    assert before == after == measure(model(*inputs.values()))["test/share_of_0"]
    assert made["latency_ms"].keys() == {"1", "64"}
    saved = load(file)
    for size in (1, 5):
        scores, best = saved.answer([each[:size].numpy() for each in inputs.values()])
        wanted = model(*(each[:size] for each in inputs.values()))
        assert best.tolist() == wanted["best"].tolist()
        assert scores == pytest.approx(wanted["scores"].detach().numpy(), rel=1e-5, abs=1e-6)
    assert [each.name for each in (tmp_path / "exports").iterdir()] == [file.name]
    assert in_words(made).splitlines()[2].startswith("test/share_of_0 0.")


def test_the_file_says_by_which_names_it_is_asked_and_what_goes_with_it(tmp_path: Path) -> None:
    import onnxruntime

    inputs = {"numbers": torch.randn(4, 3), "code": torch.randint(7, (4,))}
    save_model(Run(tmp_path, export_format="onnx"), Pair(), inputs, {"columns": ["a", "b", "é"]})
    session = onnxruntime.InferenceSession(str(tmp_path / "exports/model.onnx"))
    given = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    assert given == {"numbers": ("tensor(float)", ["batch", 3]), "code": ("tensor(int64)", ["batch"])}
    assert [each.name for each in session.get_outputs()] == ["scores", "best"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["columns"]) == ["a", "b", "é"]
    save_model(Run(tmp_path, export_format="pt2"), Pair(), inputs, {"columns": ["a", "b", "é"]})
    found = {"metadata.json": ""}
    with (tmp_path / "exports/model.pt2").open("rb") as file:
        torch.export.load(file, extra_files=found)
    assert json.loads(found["metadata.json"]) == {"columns": ["a", "b", "é"]}
    assert json.loads((tmp_path / "exports.json").read_text()).keys() == {"onnx", "pt2"}


BAD = """
import torch
from torch import nn

class Depends(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x

class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)[: len(x)] if len(x) == 2 else x

class Counts(nn.Module):
    def forward(self, x):
        return x.roll(int(x[0, 0]), 1)

class Longer(nn.Module):
    def forward(self, x):
        return x[:, : 1 + int(x.abs().sum() > 9)]

class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x[:, :, None] @ x[:, None, :]).real

class Chosen(nn.Module):
    def forward(self, x):
        return torch.where(x[:1] > 0, x > 1, x < -1)

class Raises(nn.Module):
    def forward(self, x):
        if torch.compiler.is_exporting(): raise ValueError("not while it is exported")
        return x

class Once(nn.Module):
    def forward(self, x):
        return -x if torch.compiler.is_exporting() else x

class Random(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)
"""
SENTENCES = [
    (
        "Depends",
        "onnx",
        "src/owner/model.py:7 (if x.sum() > 0:): which way the model takes there depends on the values that it is "
        "given, and a program of torch.export has one way. Compute both and choose by torch.where, or decide it "
        "outside of the model.",
    ),
    (
        "Fixed",
        "pt2",
        "the model takes 2 examples and no other number: somewhere the size of the batch is a number, as in x.reshape("
        "2, -1), or compared with one. Take len(x) instead.",
    ),
    (
        "Eigen",
        "onnx",
        "ONNX has no operation aten.linalg_eig, which src/owner/model.py:25 (return torch.linalg.eigvals(x[:, :, None] "
        "@ x[:, None, :]).real) needs. Write it with other ones, or take: make export FORMAT=pt2",
    ),
    (
        "Chosen",
        "onnx",
        "onnxruntime has no Where for such types, which src/owner/model.py:29 (return torch.where(x[:1] > 0, x > 1, x "
        "< -1)) needs. Write it with other ones, or take: make export FORMAT=pt2",
    ),
    (
        "Once",
        "onnx",
        "the exported model answers otherwise than the model: by up to 2.0e+00 of the greatest answer, and",
    ),
    (
        "Once",
        "pt2",
        "the exported model answers otherwise than the model: by up to 2.0e+00 of the greatest answer, and",
    ),
    ("Longer", "pt2", "the model's answers have another shape from example to example: (1,) and (2,). Pad them."),
    (
        "Random",
        "onnx",
        "the model answers otherwise when it is asked again: something in it is random, or remembers what it was "
        "asked. Often it is a dropout that is not told that the training is over: write nn.Dropout, or F.dropout(x, p, "
        "self.training).",
    ),
]


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package with models that cannot leave."""
    folder = tmp_path / "src/owner"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(BAD, encoding="utf-8")
    specification = importlib.util.spec_from_file_location("owner.model", folder / "model.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(project, "_used", [project.Project("owner", folder)])
    return module


@pytest.mark.parametrize(("name", "format", "sentence"), SENTENCES)
def test_a_model_that_cannot_leave_says_which_line_is_in_the_way(
    owner: Any, tmp_path: Path, name: str, format: str, sentence: str
) -> None:
    run, inputs = Run(tmp_path / "run", export_format=format), torch.randn(6, 4)
    run.folder.mkdir()
    with pytest.raises(UserError) as refused:
        save_model(run, getattr(owner, name)(), inputs, {})
    assert str(refused.value).startswith(f"the model of {run.folder} is not exported: {sentence}")
    assert not list(run.folder.iterdir())
    if "FORMAT=pt2" in sentence:
        save_model(Run(run.folder, export_format="pt2"), getattr(owner, name)(), inputs, {})
        assert (run.folder / "exports/model.pt2").is_file()


def test_a_model_that_one_way_of_torch_export_cannot_follow_leaves_by_the_other(owner: Any, tmp_path: Path) -> None:
    model = owner.Counts()
    save_model(Run(tmp_path, export_format="pt2"), model, torch.rand(6, 4) * 9, {})
    other = torch.rand(3, 4) * 9
    assert load_pt2(tmp_path / "exports/model.pt2").answer([other.numpy()])[0].tolist() == model(other).tolist()


def test_where_the_packages_of_onnx_are_absent_another_format_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "script" in name else find(name))
    with pytest.raises(UserError) as refused:
        save_model(Run(tmp_path, export_format="onnx"), nn.Linear(2, 3), torch.ones(4, 2), {})
    assert str(refused.value) == (
        f"the model of {tmp_path} is not exported: the format onnx needs onnxscript, which is not installed. `make "
        "export FORMAT=onnx` says how to install it; without it: make export FORMAT=pt2"
    )
    save_model(Run(tmp_path, export_format="pt2"), nn.Linear(2, 3), torch.ones(4, 2), {})


def test_mlflow_serves_no_model_of_several_inputs_but_another_format_takes_it(tmp_path: Path) -> None:
    inputs = {"numbers": torch.randn(4, 3), "code": torch.randint(7, (4,))}
    with pytest.raises(UserError) as refused:
        save_model(Run(tmp_path), Pair(), inputs, {})
    assert str(refused.value).endswith(
        " is not exported: MLflow serves a model of one tensor in and one out, and this one has numbers, code in and "
        "scores, best out. Make one of them, or export it: make export FORMAT=onnx"
    )
    assert not list(tmp_path.glob("model*"))
    save_model(Run(tmp_path, export_format="onnx"), Pair(), inputs, {})


@pytest.mark.parametrize(("factor", "taken"), [(1 + 1e-7, True), (1 + 1e-4, False), (float("nan"), False)])
def test_what_rounding_does_not_explain_is_refused(factor: float, taken: bool) -> None:
    torch.manual_seed(0)
    served = Served(nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4)).eval(), {"x": torch.randn(9, 30)}, {})

    def answer(batch: Any) -> list[np.ndarray]:
        with torch.inference_mode():
            return [served.model(torch.from_numpy(batch[0])).numpy() * np.float32(factor)]

    if taken:
        assert compare(served, Saved(answer, "x"), None)["difference"] < 1e-6
        return
    with pytest.raises(UserError, match="the exported model answers otherwise than the model: by up to"):
        compare(served, Saved(answer, "x"), None)


def test_where_there_is_no_number_there_must_be_none() -> None:
    nan, inf = float("nan"), float("inf")
    assert difference(torch.tensor([nan, inf, 4.0]), torch.tensor([nan, inf, 4.0])) == 0
    assert difference(torch.tensor([nan, -inf, 4.0]), torch.tensor([nan, inf, 4.0])) == inf
    assert difference(torch.tensor([1.0, inf]), torch.tensor([nan, inf])) == inf
    assert difference(torch.tensor([nan]), torch.tensor([1.0])) == inf
    assert difference(torch.tensor([8.0, 1.0]), torch.tensor([8.0, 1.5])) == 0.5 / 8


def test_the_bound_follows_the_type_and_the_depth_of_the_sums() -> None:
    torch.manual_seed(0)
    bounds = {
        (dtype, depth): largest_error(
            Served(nn.Linear(depth, 4, dtype=dtype), {"x": torch.randn(3, depth, dtype=dtype)}, {})
        )
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
        for depth in (16, 4096)
    }
    # the weights' sums, the bias and the input's
    assert bounds[torch.float32, 16] == 2 * rounding(2.0**-24, 16, 2.0**-24) + rounding(2.0**-24, 4, 2.0**-24)
    assert bounds[torch.float64, 4096] < 1e-12 < 1e-6 < bounds[torch.float32, 4096] < 1e-3 < bounds[torch.bfloat16, 16]
    assert 4 < bounds[torch.float32, 4096] / bounds[torch.float32, 16] < 16


def test_a_model_that_is_far_from_exact_itself_may_be_left_by_as_much() -> None:
    """It takes the difference of two large numbers."""

    class Cancels(nn.Module):
        def forward(self, x_B: Tensor) -> Tensor:
            return (x_B * 1.1 + 1e7) - 1e7

    served = Served(Cancels(), {"x": torch.rand(50)}, {})
    exact = served.in_float64()
    assert exact
    own = difference(served.outputs["output"], exact["output"])
    assert largest_error(served) == 2 * own > 0.1


def test_a_run_is_exported_listed_in_its_card_and_exported_again_after_it_was_resumed(
    run_training: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "model=mlp")
    for format in ("onnx", "pt2"):
        made = export(run, format)
        (before, after) = made["metrics"]["test/accuracy"]
        assert before == after
    assert f"exporting the model of {run.folder}\n" in capsys.readouterr().err
    write_cards(run)
    card = run.model_card.read_text()
    assert "## Exported" in card
    for file in ("exports/model.onnx", "exports/model.pt2"):
        assert f"| `{file}` | 0." in card
    run_training(f"run_dir={run.folder}", "trainer.max_epochs=2")
    assert not run.exports.exists()
    assert not (run.folder / "exports").exists()


def test_an_export_that_makes_nothing_does_not_pass_an_earlier_one_for_new(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runengine.tracking.payload import files_of

    run = run_training("trainer.max_epochs=1", "model=mlp")
    export(run, "pt2")
    export(run, "pt2")  # again is no fault
    (run.folder / "exports/model.onnx.new").touch()  # of one that was killed
    assert [name for name in files_of(run) if name.startswith("exports/")] == ["exports/model.pt2"]
    monkeypatch.setattr("ml_project.predict.export", lambda _: None)
    with pytest.raises(UserError, match=r"^ml_project.predict.export has made no model for .* runengine.save_model.$"):
        export(run, "pt2")


def test_a_model_that_is_not_what_was_compared_is_not_promoted(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "model=mlp")
    assert promote(run) == 1
    weights = run.model / "data/model.pt2"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError) as refused:
        promote(run)
    assert str(refused.value) == (
        f"{run.model} is not the model that was compared with the run's checkpoint. Delete the folder, and it is "
        f"exported again: rm -r {run.model}"
    )
    shutil.rmtree(run.model)
    assert promote(run) == 1
    run.exports.unlink()
    with pytest.raises(UserError, match="is not the model that was compared"):
        promote(run)
