"""Let a trained model continue a text.

    python -m ml_project.predict "The statement"
    python -m ml_project.predict "The statement" --model runs/topics/… --length 500 --temperature 0.5
    python -m ml_project.predict "The statement" --model models:/ml_project-topics@champion

The model looks back on as many characters as it was trained with; what stands before them has no influence.

Legend: N texts, T tokens, K different tokens.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import runengine
from runengine import Run, UserError

from .prepare import to_tokens

if TYPE_CHECKING:
    import torch


WINDOWS = 256  # of the test split, with which an exported model is compared


class Model(NamedTuple):
    """A trained model, wherever it was loaded from."""

    next: Callable[[np.ndarray], np.ndarray]  # tokens_NT int64 -> probabilities_NK float32: see `complete`
    vocabulary: list[str]
    context: int  # T


def load(name: str | None) -> Model:
    """The model of a run's folder, of a checkpoint in it, or of MLflow (`models:/...`, `runs:/...`)."""
    if name and name.startswith(("models:/", "runs:/")):
        served = runengine.load_model(name)
        known: Mapping[str, Any] = served.metadata.metadata or {}
        if not known.keys() >= {"vocabulary", "context"}:
            raise UserError(f"{name} does not say which characters it knows. Give a model of this project.")
        return Model(served.predict, known["vocabulary"], known["context"])
    import torch

    run, checkpoint = runengine.find_checkpoint(name)
    cfg, task, _ = runengine.load(checkpoint)
    vocabulary = runengine.read_data(run)["vocabulary"]
    model = complete(task.model, len(vocabulary))

    def probabilities(tokens_NT: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            probabilities_NK: np.ndarray = model(torch.from_numpy(tokens_NT)).numpy()
        return probabilities_NK

    return Model(probabilities, vocabulary, cfg.data.context)


def complete(model: torch.nn.Module, num_tokens: int) -> torch.nn.Module:
    """Tokens of a text in, probability of each next token out; a shorter text is followed by -1.

    The answer is NaN for what is no text: tokens that do not exist or stand after a -1, or none.
    """
    from torch import Tensor, nn

    class Complete(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens_NT: Tensor) -> Tensor:
            is_token_NT = tokens_NT != -1
            last_N = is_token_NT.sum(dim=1) - 1
            logits_NTK = self.model(tokens_NT.clamp(0, num_tokens - 1))
            place_N1K = last_N.clamp(min=0)[:, None, None].expand(-1, 1, num_tokens)
            probabilities_NK: Tensor = logits_NTK.gather(1, place_N1K).squeeze(1).float().softmax(dim=1)
            gap_N = (is_token_NT[:, 1:] & ~is_token_NT[:, :-1]).any(dim=1)
            wrong_N = gap_N | (last_N < 0) | ((tokens_NT < -1) | (tokens_NT >= num_tokens)).any(dim=1)
            return probabilities_NK.masked_fill(wrong_N[:, None], float("nan"))

    return Complete().eval()


def export(run: Run) -> None:
    """Write the best model for `make promote`, `serve` and `export`: tokens N T in, probabilities N K out."""
    import torch

    cfg, task, data = runengine.load(run)
    tokens_NT, targets_NT = (each[:WINDOWS].clone() for each in data.split("test").tensors)
    last_N = torch.arange(len(tokens_NT)).clamp(max=cfg.data.context - 1)  # shorter texts, too
    tokens_NT[torch.arange(cfg.data.context) > last_N[:, None]] = -1
    next_N1 = targets_NT.gather(1, last_N[:, None])

    def bits(probabilities_NK: torch.Tensor) -> dict[str, float]:
        given_N1 = probabilities_NK.gather(1, next_N1.clamp(min=0))[next_N1 >= 0]
        return {"test/bits": float(-given_N1.log2().mean())}

    known = {"vocabulary": runengine.read_data(run)["vocabulary"], "context": cfg.data.context}
    runengine.save_model(run, complete(task.model, len(known["vocabulary"])), tokens_NT, known, bits)


def generate(model: Model, text: str, length: int, temperature: float = 0.8, seed: int = 0) -> Iterator[str]:
    """The characters that follow, one by one.

    Args:
        model: of `load`.
        text: what stands before.
        length: how many characters.
        temperature: 0 takes the most probable one each time; 1 draws as the model says; more is more surprising.
        seed: of what is drawn.
    """
    random = np.random.default_rng(seed)
    tokens = to_tokens(text, model.vocabulary).tolist()
    for _ in range(length):
        tokens_1T = np.full((1, model.context), -1)
        seen = tokens[-model.context :]
        tokens_1T[0, : len(seen)] = seen
        probabilities_K = model.next(tokens_1T)[0].astype(np.float64)
        if not np.isfinite(probabilities_K).all():
            raise UserError("the model answers with NaN. Give another --model.")
        if temperature:
            scaled_K = (probabilities_K / probabilities_K.max()) ** (1 / temperature)
            token = random.choice(len(scaled_K), p=scaled_K / scaled_K.sum())
        else:
            token = probabilities_K.argmax()
        tokens.append(int(token))
        yield model.vocabulary[token]


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.predict", description="Continue a text.")
    parser.add_argument("text", help="what stands before: one character or more")
    parser.add_argument("--model", help="a run's folder, a checkpoint, or models:/...; without it the newest run")
    parser.add_argument("--length", type=int, default=300, help="how many characters to write (300)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most probable (0.8)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    typed = parser.parse_args()
    if not typed.text:
        raise UserError("the text is empty. Give one character or more.")
    for name, value, least, most in (
        ("length", typed.length, 1, math.inf),
        ("temperature", typed.temperature, 0, 10),
        ("seed", typed.seed, 0, math.inf),
    ):
        if not least <= value <= most:
            limit = f" and <= {most}" if most < math.inf else ""
            raise UserError(f"--{name} must be >= {least}{limit}, got {value:g}.")
    print(typed.text, end="", flush=True)
    for character in generate(load(typed.model), typed.text, typed.length, typed.temperature, typed.seed):
        print(character, end="", flush=True)
    print()


if __name__ == "__main__":
    with runengine.friendly_errors():
        main()
