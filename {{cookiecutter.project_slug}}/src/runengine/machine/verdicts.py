"""Judge the figures of the bench: by the limit of the chip, and by what it reached before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .gpu_specs import Chip

# unit: name, and whether more is better
UNITS = {
    "tflop_s": ("TFLOP/s", True),
    "gb_s": ("GB/s", True),
    "us": ("us", False),
    "examples_s": ("examples/s", True),
    "sequences_s": ("sequences/s", True),
}

BUSY = "other processes, heat, a power cap, a laptop on battery"


@dataclass(frozen=True)
class Standard:
    """Shares of the limit: fine from the first on, broken below the second; slow in between, often by `causes`."""

    fine: float
    broken: float
    causes: str


# The shares were chosen for this project. The comment above each says what is known to have been reached.
STANDARDS = {
    # an H200 reached 0.80 in bf16 (torch 2.11, random data). A T4 and an L4 fall below: 70 W
    "product": Standard(0.65, 0.2, BUSY),
    # an H200 reached 0.90
    "copy": Standard(0.75, 0.3, f"{BUSY}, ECC"),
    # packets and their heads leave 0.8 to 0.9 of a link
    "pinned": Standard(
        0.7, 0.25, "fewer or older PCIe lanes than the card has (nvidia-smi -q -d PCIE), a virtual machine"
    ),
    # no source: half of what a product must reach
    "convolution": Standard(0.3, 0.05, f"{BUSY}, a slow cuDNN kernel"),
    # FlashAttention-2 reached 0.35 on an H100, 0.5 to 0.73 on an A100 (arXiv:2407.08608, 2307.08691)
    "attention": Standard(0.25, 0.05, "attention without its fast kernels (eager), fp32 without TF32"),
    # Megatron-LM: 0.44 to 0.52 of an A100 (arXiv:2104.04473); one block alone reaches less
    "block": Standard(0.25, 0.04, "attention without its fast kernels, small batches, eager mode"),
    # batch norm and ReLU wait for memory: a V100 reached 1,154 examples/s, 0.23 (batch 128, AMP, channels last:
    # github.com/sandeepkumar-skb/pytorch_experiments)
    "resnet": Standard(0.1, 0.02, "eager mode, a slow cuDNN kernel, fp32 without TF32"),
    # the limit is this project's own step: below it, the device waits for data
    "loader": Standard(1.0, 0.0, "training waits for the data: raise data.num_workers, or do less for each example"),
}
# Published figures of these were reached on tensor cores: a CPU, and 32 bits, are only compared with earlier results.
TENSOR_CORES = {"attention", "block", "resnet"}
FINE_EQUAL = 0.9  # share of what a card of the same name reaches in the same minute, in the rows that vary least:
COMPARED = {"product", "copy"}
FINE_BEFORE, BROKEN_BEFORE = 0.85, 0.3  # shares of what the chip reached before; a spread above 0.15 lowers the first
NOISY = 0.3  # above it something else was running: such a figure is not kept as the best


@dataclass(frozen=True)
class Row:
    """One line of the result. `reached` is None where it could not be measured: `note` says why."""

    device: str
    kind: str
    what: str
    dtype: str
    unit: str
    reached: float | None = None
    spread: float | None = None
    steps_s: float | None = None
    flop_each: float = 0.0
    limit: float | None = None
    before: float | None = None
    equal: float | None = None  # the best that a card of the same name reached in this row
    verdict: str = "-"
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.what}, {self.dtype}" if self.dtype != "-" else self.what

    def ratio(self, other: float | None) -> float | None:
        """How good it is compared with another figure: 1 is as good, more is better."""
        if not other or not self.reached:
            return None
        return self.reached / other if UNITS[self.unit][1] else other / self.reached

    def as_json(self) -> dict[str, Any]:
        figures = {"reached": self.reached, "limit": self.limit, "best_before": self.before}
        return {
            **{name: getattr(self, name) for name in ("device", "what", "dtype", "verdict", "note")},
            **{f"{name}_{self.unit}": value for name, value in figures.items() if value is not None},
            **({"steps_s": self.steps_s} if self.steps_s else {}),
            **({"spread_ratio": round(self.spread, 4)} if self.spread is not None else {}),
            **({"ratio_to_limit": round(ratio, 4)} if (ratio := self.ratio(self.limit)) else {}),
        }


@dataclass(frozen=True)
class Machine:
    """One device: its name, the name under which its best figures are kept, and its limits."""

    device: str
    name: str
    known_as: str
    chip: Chip | None
    pcie_gb_s: float | None


def verdict(row: Row) -> Row:
    """The row with `fine`, `slow` or `broken`, and the usual causes; by the limit, and by what was reached before."""
    found: list[str] = []
    standard = STANDARDS.get(row.kind)
    # other processes use a CPU, too: a figure far below an earlier one does not mean that it is broken
    shared = row.device in ("cpu", "host")
    if row.kind in TENSOR_CORES and (shared or row.dtype not in ("bf16", "fp16")):
        standard = None
    causes, share = BUSY, row.ratio(row.limit)
    if standard and share:
        found.append("fine" if share >= standard.fine else "slow" if share >= standard.broken else "broken")
        if share < standard.fine and row.device != "cpu":
            causes = standard.causes
    if share_before := row.ratio(row.before):
        least = min(FINE_BEFORE, 1 - (row.spread or 0))
        far_off = share_before < BROKEN_BEFORE and not shared
        found.append("fine" if share_before >= least else "broken" if far_off else "slow")
    if (share_equal := row.ratio(row.equal)) and share_equal < min(FINE_EQUAL, 1 - (row.spread or 0)):
        found.append("slow")
        more = f"a card of the same name reaches {1 / share_equal - 1:.0%} more"
        causes = f"{more}: compare slots, cooling and power limits"
    worst = max(found, key=["fine", "slow", "broken"].index, default="-")
    notes = [row.note or (causes if worst in ("slow", "broken") else "")]
    if row.spread and row.spread > NOISY:
        notes.append("unreliable: something else was running")
    return replace(row, verdict=worst, note="; ".join(filter(None, notes)))


def judge(rows: list[Row], machines: list[Machine], best: dict[str, Any]) -> list[Row]:
    """The rows with their limits, with what was reached before, and with verdicts."""
    return [
        verdict(
            replace(
                row,
                limit=_limit(row, rows, machines),
                before=_before(row, machines, best),
                equal=_equal(row, rows, machines),
            )
        )
        if row.reached
        else row
        for row in rows
    ]


def _limit(row: Row, rows: list[Row], machines: list[Machine]) -> float | None:
    """The published limit; where there is none, what the device reached in its own product and copy."""
    if row.kind == "loader":
        steps = [other.reached for other in rows if other.kind == "own" and other.reached]
        return max(steps, default=None)
    machine = next((machine for machine in machines if machine.device == row.device), None)
    if machine is None:
        return None
    if row.kind == "pinned":
        return machine.pcie_gb_s
    if row.kind == "copy":
        return machine.chip.memory_gb_s if machine.chip else None
    if not row.flop_each:
        return None
    if machine.chip:
        tflop_s = machine.chip.tflop_s(row.dtype)
    elif row.kind == "product":
        return None  # the product is the limit of the other rows
    else:
        products = [other for other in rows if (other.device, other.kind) == (row.device, "product")]
        tflop_s = next((other.reached for other in products if other.dtype == row.dtype), None)
    return tflop_s * 1e12 / row.flop_each if tflop_s else None


def _equal(row: Row, rows: list[Row], machines: list[Machine]) -> float | None:
    """The most that another card of this name reached in the same row."""
    names = {machine.device: machine.name for machine in machines}
    if row.kind not in COMPARED or row.device not in names:
        return None
    others = (other for other in rows if other.key == row.key and other.device != row.device)
    return max((other.reached or 0 for other in others if names.get(other.device) == names[row.device]), default=None)


def _before(row: Row, machines: list[Machine], best: dict[str, Any]) -> float | None:
    figure = best.get(chip_of(row, machines), {}).get(row.key, {}).get(f"reached_{row.unit}")
    return float(figure) if figure else None


def chip_of(row: Row, machines: list[Machine]) -> str:
    """The name under which its figures are kept; a row that belongs to no single device is kept with the first."""
    return next((machine for machine in machines if machine.device == row.device), machines[0]).known_as
