"""How far an exported model answers from the model itself: number by number, by its metric, and in which time."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..settings.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

BATCH = 64  # examples; the first one is also asked for alone, so that a fixed size of batches is noticed
ROUNDS, LONGEST_S = 20, 2.0  # of the measurement of times: it ends with whichever comes first

Measure = Callable[[Any], Mapping[str, float]]  # answers (a tensor, or tensors by their names) -> metrics


class Saved(NamedTuple):
    """An exported model, loaded again."""

    answer: Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # a batch of each input -> of each output
    runtime: str  # what has loaded it


class Served:
    """The model that is exported, with real examples, and what it answers to them.

    Args:
        model: on the CPU, in evaluation mode.
        inputs: by their names, each with the batch as its first dimension: three examples or more.
        metadata: goes with the model; plain types.

    Raises:
        UserError: an answer has no row for each example, or another shape or value each time.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        self.model, self.inputs, self.metadata = model, dict(inputs), dict(metadata)
        self.num_examples = len(next(iter(self.inputs.values())))
        self.outputs: dict[str, torch.Tensor] = self._in_batches(self._answer)
        again = self._in_batches(self._answer)
        if not all(difference(again[name], answer) <= self.rounding() for name, answer in self.outputs.items()):
            raise UserError(
                "the model answers otherwise when it is asked again: something in it is random, or remembers what it "
                "was asked. Often it is a dropout that is not told that the training is over: write nn.Dropout, or "
                "F.dropout(x, p, self.training)."
            )

    def answers_of(self, saved: Saved) -> dict[str, torch.Tensor]:
        """The same of the exported model."""
        import numpy as np
        import torch

        def answer(batch: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
            arrays = saved.answer([each.numpy() for each in batch])
            return {name: torch.from_numpy(np.array(each)) for name, each in zip(self.outputs, arrays, strict=True)}

        return self._in_batches(answer)

    def in_float64(self) -> dict[str, torch.Tensor] | None:
        """What the model would answer with fewer roundings; None where it computes in fixed types."""
        try:
            model = copy.deepcopy(self.model).double()
            inputs = [each.double() if each.is_floating_point() else each for each in self.inputs.values()]
            return self._in_batches(lambda batch: self._answer(batch, model), inputs)
        except Exception:  # whatever a model raises that is given another type
            return None

    def _answer(self, batch: Sequence[torch.Tensor], model: nn.Module | None = None) -> dict[str, torch.Tensor]:
        import torch

        with torch.inference_mode():
            answers = self.model(*batch) if model is None else model(*batch)
        if isinstance(answers, torch.Tensor):
            answers = {"output": answers}
        elif isinstance(answers, tuple | list):
            answers = {f"output_{index}": each for index, each in enumerate(answers)}
        for each in answers.values() if isinstance(answers, Mapping) else [answers]:
            if not isinstance(each, torch.Tensor) or not each.ndim or len(each) != len(batch[0]):
                got = tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__
                raise UserError(f"a model must give a row for each of {len(batch[0])} examples, got {got}.")
        return dict(answers)

    def _in_batches(
        self,
        answer: Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]],
        inputs: Sequence[torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        import torch

        inputs = inputs or [*self.inputs.values()]
        starts = [0, *range(1, self.num_examples, BATCH)]
        parts = [
            answer([each[start:end] for each in inputs])
            for start, end in zip(starts, [*starts[1:], self.num_examples], strict=True)
        ]
        for name in parts[0]:
            if len(shapes := {tuple(part[name].shape[1:]) for part in parts}) > 1:
                shown = " and ".join(map(str, sorted(shapes)))
                raise UserError(f"the model's answers have another shape from example to example: {shown}. Pad them.")
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def rounding(self) -> float:
        """The largest difference that it explains, as a part of the greatest answer: each layer adds its sums'."""
        import torch

        numbers = [each for each in (*self.model.parameters(), *self.model.buffers()) if each.is_floating_point()]
        unit = max((torch.finfo(each.dtype).eps / 2 for each in numbers), default=2.0**-24)
        depths = [each[0].numel() if each.ndim > 1 else each.numel() for each in self.model.parameters()]
        depths += [each[0].numel() for each in self.inputs.values()]
        return sum(rounding(unit, depth, min(unit, 2.0**-24)) for depth in depths)  # fp16, bf16 are summed in fp32


def compare(served: Served, saved: Saved, measure: Measure | None) -> dict[str, Any]:
    """What an exported model answers, next to the model itself: for `exports.json`.

    Raises:
        UserError: they differ by more than rounding explains.
    """
    got = served.answers_of(saved)
    worst, most = 0.0, largest_error(served)
    for name, wanted in served.outputs.items():
        if got[name].shape != wanted.shape or got[name].dtype != wanted.dtype:
            given = f"{got[name].dtype} {tuple(got[name].shape)}"
            raise UserError(
                f"the exported model gives {given} where the model gives {wanted.dtype} {tuple(wanted.shape)}."
            )
        worst = max(worst, difference(got[name], wanted))
    if not worst <= most:  # not `worst > most`, which is false for NaN
        raise UserError(
            f"the exported model answers otherwise than the model: by up to {worst:.1e} of the greatest answer, and "
            f"rounding explains {most:.1e}."
        )
    before, after = (
        measure(next(iter(each.values())) if len(each) == 1 else each) if measure else {}
        for each in (served.outputs, got)
    )
    return {
        "runtime": saved.runtime,
        "examples": served.num_examples,
        "difference": worst,
        "rounding": most,
        "metrics": {name: [float(before[name]), float(after[name])] for name in before},
        "latency_ms": {str(size): _latency_ms(served, saved, size) for size in (1, min(BATCH, served.num_examples))},
    }


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The greatest one, as a part of the greatest finite number that is wanted; infinite where only one is a number."""
    if wanted.is_complex():
        return max(difference(got.real, wanted.real), difference(got.imag, wanted.imag))
    got, wanted = got.double(), wanted.double()
    finite = wanted.isfinite()
    if not got.isfinite().equal(finite) or not got[~finite].nan_to_num().equal(wanted[~finite].nan_to_num()):
        return math.inf
    if not finite.any():
        return 0.0
    scale = float(wanted[finite].abs().max())
    return float((got - wanted)[finite].abs().max()) / (scale or 1.0)


def largest_error(served: Served) -> float:
    """The largest difference that rounding explains, as a part of the greatest answer.

    Where the model's own answers are farther than `rounding` from those it gives in float64, it is twice this distance:
    neither the model nor the program is nearer to what is right.
    """
    exact = served.in_float64()
    own = [difference(answer, exact[name]) for name, answer in served.outputs.items()] if exact else []
    return max([served.rounding(), *(2 * each for each in own if math.isfinite(each))])


def rounding(unit: float, depth: int, unit_of_sums: float) -> float:
    """The largest relative error that rounding explains, for sums of `depth` terms: 2 (u + sqrt(depth) v).

    u is the unit roundoff of factors or result, v that of the sums. Errors of random signs grow with the square root of
    the number of terms (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis").
    """
    return 2 * (unit + math.sqrt(depth) * unit_of_sums)


def _latency_ms(served: Served, saved: Saved, size: int) -> list[float]:
    """Medians of the model and of the exported one, asked in turns for a batch of this size."""
    import torch

    batch = [each[:size] for each in served.inputs.values()]
    arrays = [each.numpy() for each in batch]
    took: tuple[list[float], list[float]] = ([], [])
    ends_at = time.monotonic() + LONGEST_S
    asks: list[Callable[[], Any]] = [lambda: served.model(*batch), lambda: saved.answer(arrays)]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for times, ask in zip(took, asks, strict=True):
                start = time.perf_counter()
                ask()
                times.append((time.perf_counter() - start) * 1000)
            if time.monotonic() > ends_at:
                break
    return [statistics.median(times) for times in took]
