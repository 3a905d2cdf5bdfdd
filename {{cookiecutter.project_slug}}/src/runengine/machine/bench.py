"""What this machine reaches, beside what its chips can and what they reached before.

    python -m ml_project.bench                           # 20 s on two idle CPU cores
    python -m ml_project.bench --json today.json         # the figures as a file
    python -m ml_project.bench --compare A.json B.json   # two such files, row by row
    python -m ml_project.bench --mlflow                  # also as a run of the experiment `bench`

How to read the table: docs/bench.md. The best figures of each chip are kept in bench.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs import provenance
from ..tracking import mlflow_client
from .gpu_specs import Chip, published
from ..settings.config import compose
from ..settings.errors import UserError, one_sentence
from ..settings.console import first_line
from ..runs.run import program, write_whole

if TYPE_CHECKING:
    import torch

    from .kernels import Measurement, Reading

BUDGET_S = 0.5  # of each measurement, after a warm-up of 0.15 s
COLUMNS = 100  # of the terminal
HISTORY = Path("bench.json")  # belongs into Git: what this chip reached, for all who have one
EXPERIMENT = "bench"
RESULT, BEST = "ml-bench result 1", "ml-bench best 1"  # what our files say they are

# unit: name, and whether more is better
UNITS = {
    "tflop_s": ("TFLOP/s", True),
    "gb_s": ("GB/s", True),
    "us": ("us", False),
    "images_s": ("images/s", True),
    "sequences_s": ("sequences/s", True),
}

# GB/s of one lane, one way, after the coding of the line: PCI-SIG, 2.5, 5, 8, 16, 32 GT/s
PCIE_LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938}

NOT_ON_A_CPU = "compiled steps (compiling takes longer than all of this), tf32, fp16 and fp8 (no units for them)"

BUSY = "other processes, heat, a power cap, a laptop on battery"


@dataclass(frozen=True)
class Standard:
    """From what share of the limit on it is fine, and below what share broken; between them slow, often by `causes`."""

    fine: float
    broken: float
    causes: str


# The shares are ours; behind each what is known to be reached.
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
    # batch norm and ReLU wait for memory: a V100 reached 1,154 images/s, 0.23 (batch 128, AMP, channels last:
    # github.com/sandeepkumar-skb/pytorch_experiments)
    "resnet": Standard(0.1, 0.02, "eager mode, a slow cuDNN kernel, fp32 without TF32"),
    # the limit is this project's own step: below it, the device waits for images
    "loader": Standard(1.0, 0.0, "training waits for the data: raise data.num_workers, or do less for each image"),
}
# what was published of these is of tensor cores: on a CPU, and in 32 bits, only what was reached before tells
TENSOR_CORES = {"attention", "block", "resnet"}
FINE_BEFORE, BROKEN_BEFORE = 0.85, 0.3  # of what the chip reached before; a spread above 0.15 widens it
NOISY = 0.3  # a spread above it is of something else that ran: such a figure is not kept as the best


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
    verdict: str = "-"
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.what}, {self.dtype}" if self.dtype != "-" else self.what

    def ratio(self, other: float | None) -> float | None:
        """How good it is beside another figure: 1 is as good, more is better."""
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
    shared = row.device in ("cpu", "host")  # with other processes: what is far below an earlier figure is not broken
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
    worst = max(found, key=["fine", "slow", "broken"].index, default="-")
    notes = [row.note or (causes if worst in ("slow", "broken") else "")]
    if row.spread and row.spread > NOISY:
        notes.append("says little: something else was running")
    return replace(row, verdict=worst, note="; ".join(filter(None, notes)))


def bench(budget_s: float = BUDGET_S, overrides: tuple[str, ...] = ()) -> tuple[list[Row], list[Machine]]:
    """Measure everything, device by device, without limits and verdicts.

    Args:
        budget_s: seconds of each measurement.
        overrides: settings of conf/, for the model and the data that are measured.
    """
    import torch
    from tqdm import tqdm

    from . import kernels

    torch.manual_seed(0)
    cfg = compose("train", list(overrides))
    found = kernels.devices()
    todo = [(device, row) for device in found for row in kernels.plan(device, cfg, budget_s)]
    load = kernels.Measurement(
        "host", "loader", f"data loader, batch {cfg.data.batch_size}", "-", "images_s",
        lambda: kernels.loading(cfg, budget_s),
    )  # fmt: skip
    todo.append((torch.device("cpu"), load))
    if len(found) > 1:
        together = f"all-reduce over {len(found)} GPUs, 256 MiB"
        todo.append((torch.device("cpu"), kernels.Measurement(
            "all", "all_reduce", together, "fp32", "gb_s",
            lambda: kernels.all_reduce(len(found), "cuda", 1 << 28, budget_s),
        )))  # fmt: skip
    rows = []
    with tqdm(total=len(todo), leave=False, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for device, wanted in todo:
            bar.set_description(f"{wanted.what} {wanted.dtype}")
            with kernels.on(device):
                rows.append(attempt(wanted))
                kernels.release(device)
            bar.update()
    return rows, [machine_of(device) for device in found]


def attempt(wanted: Measurement) -> Row:
    """The row of a measurement; what goes wrong stands in it, and the others go on."""
    from .kernels import WrongResult

    row = Row(wanted.device, wanted.kind, wanted.what, wanted.dtype, wanted.unit)
    try:
        reading: Reading = wanted.measure()
    except UserError as error:
        return replace(row, note=str(error))
    except WrongResult as error:
        return replace(row, verdict="broken", note=str(error))
    except Exception as error:  # of any kind: libraries, compilers, drivers
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in ("out of memory", "allocate memory")):
            return replace(row, note="out of memory")
        return replace(row, verdict="failed", note=first_line(error)[:200])
    if not (math.isfinite(reading.value) and reading.value > 0):
        return replace(row, verdict="broken", note=f"measured {reading.value}")
    return replace(
        row, reached=reading.value, spread=reading.spread, steps_s=reading.steps_s, flop_each=reading.flop_each
    )


def judge(rows: list[Row], machines: list[Machine], best: dict[str, Any]) -> list[Row]:
    """Limits, what was reached before, and verdicts."""
    return [
        verdict(replace(row, limit=_limit(row, rows, machines), before=_before(row, machines, best)))
        if row.reached
        else row
        for row in rows
    ]


def _limit(row: Row, rows: list[Row], machines: list[Machine]) -> float | None:
    """Published, or where nothing is, what the device's own product and copy reach."""
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
        return None  # it is the limit
    else:
        products = [other for other in rows if (other.device, other.kind) == (row.device, "product")]
        tflop_s = next((other.reached for other in products if other.dtype == row.dtype), None)
    return tflop_s * 1e12 / row.flop_each if tflop_s else None


def _before(row: Row, machines: list[Machine], best: dict[str, Any]) -> float | None:
    figure = best.get(_known_as(row, machines), {}).get(row.key, {}).get(f"reached_{row.unit}")
    return float(figure) if figure else None


def _known_as(row: Row, machines: list[Machine]) -> str:
    """What is not of one device is kept with the first."""
    return next((machine for machine in machines if machine.device == row.device), machines[0]).known_as


def machine_of(device: torch.device) -> Machine:
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        chip, known_as = published(name), f"{name}, torch {torch.__version__}"
        return Machine(str(device), name, known_as, chip, pcie_gb_s(device))
    name = cpu_name()
    if device.type == "cpu":
        name += f", {torch.get_num_threads()} threads"
    return Machine(str(device), name, f"{name}, torch {torch.__version__}", None, None)


def pcie_gb_s(device: torch.device) -> float | None:
    """One way, by the newest generation and the most lanes that card and slot could agree on; None if not known."""
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        lanes = pynvml.nvmlDeviceGetMaxPcieLinkWidth(card)
        return PCIE_LANE_GB_S[pynvml.nvmlDeviceGetMaxPcieLinkGeneration(card)] * int(lanes)
    except (pynvml.NVMLError, AttributeError, KeyError):  # no NVIDIA card, a slice of one, a newer bus
        return None


def cpu_name() -> str:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()


def conditions(machines: list[Machine], load_average_1min: float | None) -> dict[str, Any]:
    import psutil
    import torch

    seen = provenance.environment()
    battery = psutil.sensors_battery()
    return {
        "at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "chips": [machine.name for machine in machines],
        "torch": torch.__version__,
        "driver": seen["driver"],
        "python": seen["python"],
        "system": seen["system"],
        "cpus": seen["cpus"],
        "threads": torch.get_num_threads(),
        "load_average_1min": load_average_1min,
        "on_battery": battery is not None and not battery.power_plugged,
    }


def load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def read_best(file: Path) -> dict[str, Any]:
    """The best figures of each chip with each torch.

    Raises:
        UserError: the file is none of ours.
    """
    if not file.exists():
        return {}
    try:
        text = json.loads(file.read_text(encoding="utf-8"))
        best: dict[str, Any] = text["best"]
        ours = text["format"] == BEST and all(
            isinstance(entry, dict) for rows in [best, *best.values()] for entry in rows.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise UserError(
            f"{file} is damaged: it does not hold the best figures of a bench, and is left as it is. "
            "Take it from Git again, or delete it to begin anew."
        )
    return best


def keep_best(file: Path, best: dict[str, Any], rows: list[Row], machines: list[Machine], now: dict[str, Any]) -> int:
    """Write the rows that are the best of their chip so far; returns how many. Wrong or noisy ones never are."""
    kept = json.loads(json.dumps(best))
    num_better = 0
    for row in rows:
        of_chip = kept.setdefault(_known_as(row, machines), {})
        before = of_chip.get(row.key, {}).get(f"reached_{row.unit}")  # perhaps of the GPU beside it
        sure = row.verdict != "broken" and (row.spread or 0) <= NOISY
        if row.reached and sure and (row.ratio(before) or math.inf) > 1:
            entry = {f"reached_{row.unit}": float(f"{row.reached:.4g}"), "at": now["at"][:10]}
            entry |= {"driver": now["driver"], "python": now["python"]}
            of_chip[row.key] = entry
            num_better += 1
    if num_better:
        write_whole(file, json.dumps({"format": BEST, "best": kept}, indent=1, sort_keys=True) + "\n")
    return num_better


def figure(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value < 0.1 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows: list[Row], machines: list[Machine], now: dict[str, Any]) -> str:
    """For a terminal of 100 columns."""
    on_battery = ", on battery" if now["on_battery"] else ""
    busy = (now["load_average_1min"] or 0) > now["cpus"] / 2
    said = (
        f"{now['at']}: torch {now['torch']}, driver {now['driver'] or 'none'}, Python {now['python']}, {now['cpus']} "
        f"CPUs, {now['threads']} threads, load average {now['load_average_1min']} before the start{on_battery}"
        f"{': others are at work here, and figures come out too low' if busy else ''}"
    )
    lines = textwrap.wrap(said, COLUMNS)
    sections = [(machine.device, _about(machine)) for machine in machines]
    sections.append(("host", "the limit of the data loader is this project's training step"))
    sections.append(("all", "all GPUs together"))
    for device, about in sections:
        of_device = [row for row in rows if row.device == device]
        if not of_device:
            continue
        lines += ["", *textwrap.wrap(f"{device}: {about}", COLUMNS)]
        lines.append(_line("what", "dtype", "reached", "+-", "limit", "ratio", "before", "verdict"))
        for row in of_device:
            lines += _shown(row)
        if device == "cpu":
            lines += textwrap.wrap(f"not measured: {NOT_ON_A_CPU}", COLUMNS)
    return "\n".join(lines)


def _about(machine: Machine) -> str:
    if machine.chip:
        note = f" ({machine.chip.note})" if machine.chip.note else ""
        return f"{machine.name}; limits: {machine.chip.source}{note}"
    why = "no table of CPUs is published" if machine.device == "cpu" else "it is not in chips.py"
    return f"{machine.name}; {why}, so its own matrix product and copy, as measured here, are the limits"


def _shown(row: Row) -> list[str]:
    name = UNITS[row.unit][0]
    reached = f"{figure(row.reached)} {name}" if row.reached else "-"
    ratio, spread = row.ratio(row.limit), row.spread
    line = _line(
        row.what,
        row.dtype,
        reached,
        f"{spread:.0%}" if spread is not None else "-",
        figure(row.limit),
        "-" if ratio is None else f"{ratio:.0%}" if ratio < 10 else f"{ratio:,.0f}x",
        figure(row.before),
        row.verdict,
    )
    return [line, *textwrap.wrap(row.note, COLUMNS, initial_indent="    ", subsequent_indent="    ")]


def _line(what: str, dtype: str, reached: str, spread: str, limit: str, ratio: str, before: str, said: str) -> str:
    widths = f"{what:<41} {dtype:<5} {reached:>17} {spread:>4} {limit:>7} {ratio:>5} {before:>7} {said}"
    return widths.rstrip()


def result(rows: list[Row], now: dict[str, Any]) -> dict[str, Any]:
    return {"format": RESULT, "conditions": now, "rows": [row.as_json() for row in rows]}


def read_result(file: Path) -> dict[str, Any]:
    """What `--json` has written.

    Raises:
        UserError: the file is missing, or something else.
    """
    again = f"Make one with: {program('bench')} --json {file}"
    if not file.is_file():
        raise UserError(f"{file} does not exist. {again}")
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        rows, now = read["rows"], read["conditions"]
        ours = read["format"] == RESULT and {"chips", "torch", "at"} <= now.keys()
        ours = ours and all({"device", "what", "dtype"} <= row.keys() for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise UserError(f"{file} is no result of this bench. {again}")
    return dict(read)


def compare(file_a: Path, file_b: Path) -> str:
    """B beside A, row by row."""
    a, b = read_result(file_a), read_result(file_b)
    lines = [f"A  {file_a}, {a['conditions']['at']}", f"B  {file_b}, {b['conditions']['at']}"]
    for name in ("chips", "torch"):
        was, now = (_plain(each["conditions"][name]) for each in (a, b))
        if was != now:
            lines.append(f"warning: {name} is {was} in A, another in B: {now}")
    lines += ["", f"{'what':<52} {'dtype':<5} {'A':>9} {'B':>9} {'B/A':>6}"]
    of_a = {(row["device"], row["what"], row["dtype"]): row for row in a["rows"]}
    for row in b["rows"]:
        other = of_a.pop((row["device"], row["what"], row["dtype"]), {})
        unit = next((unit for unit in UNITS if f"reached_{unit}" in row), "")
        here, there = row.get(f"reached_{unit}"), other.get(f"reached_{unit}")
        ratio = f"{here / there:.2f}" if here and there else "-"
        better = "less is better" if unit and not UNITS[unit][1] else ""
        what = f"{row['device']} {row['what']}"
        lines.append(f"{what:<52} {row['dtype']:<5} {figure(there):>9} {figure(here):>9} {ratio:>6} {better}".rstrip())
    lines += [f"only in A: {' '.join(key)}" for key in of_a]
    return "\n".join(lines)


def _plain(value: object) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def track(rows: list[Row], now: dict[str, Any]) -> str:
    """Record the result as a run of the experiment `bench` in MLflow; returns what to say.

    Raises:
        UserError: MLflow does not take it.
    """
    uri: str | None = compose("train").tracking.mlflow_uri
    if uri is None:
        raise UserError("conf/train.yaml says tracking: off, so MLflow did not get this. Say tracking: mlflow.")
    try:
        client = mlflow_client.mlflow_client(uri)
        from mlflow.entities import Metric, Param

        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(EXPERIMENT, mlflow_client.artifacts_beside(uri, EXPERIMENT))
        )
        run_id = client.create_run(experiment_id, run_name=", ".join(now["chips"])[:200]).info.run_id
        now_ms = int(time.time() * 1000)
        metrics = [Metric(_metric(row), row.reached, now_ms, 0) for row in rows if row.reached is not None]
        client.log_batch(run_id, metrics, [Param(name, _plain(value)) for name, value in now.items()])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bench_result.json"
            file.write_text(json.dumps(result(rows, now), indent=1) + "\n", encoding="utf-8")
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
    except Exception as error:
        raise UserError(mlflow_client.trouble(uri, error)) from error
    return f"MLflow has it: experiment {EXPERIMENT}, run {run_id}"


def _metric(row: Row) -> str:
    """MLflow takes letters, digits and `_ - . space : /` in a name."""
    letters = "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in row.key)
    return f"{row.device.replace(':', '')}/{letters}/{row.unit}"


def main() -> None:
    parser = argparse.ArgumentParser(prog=program("bench"), description="What this machine reaches.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures into this file as well")
    parser.add_argument("--mlflow", action="store_true", help=f"record them in MLflow, experiment {EXPERIMENT}")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two such files; measures nothing")
    arguments = parser.parse_args()
    if arguments.compare:
        print(compare(*arguments.compare))
        return
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(f"--json: the folder {arguments.json.parent} does not exist. Make it, or name another.")
    load_average_1min = load_average()  # before the bench makes its own
    warnings: list[str] = []
    try:
        best: dict[str, Any] | None = read_best(HISTORY)
    except UserError as error:
        best = None
        warnings.append(str(error))
    rows, machines = bench()
    now = conditions(machines, load_average_1min)
    rows = judge(rows, machines, best or {})
    print(table(rows, machines, now))
    print()
    if arguments.json:
        write_whole(arguments.json, json.dumps(result(rows, now), indent=1) + "\n")
        print(f"wrote {arguments.json}")
    if best is not None and (num_better := keep_best(HISTORY, best, rows, machines, now)):
        print(f"wrote {HISTORY}: {num_better} of {len(rows)} figures are the best of this chip so far")
    if arguments.mlflow:
        try:
            print(track(rows, now))
        except UserError as error:
            warnings.append(str(error))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    with one_sentence():
        main()
