"""Everything of this project that a GPU can prove, in one report: `make gpu-check`.

    make demo
    python benchmarks/gpu.py                # writes gpu-check/report.md, and gpu-check/bench.json

Without a GPU the same is done on the CPU: it shows that the check runs, and nothing more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
EXAMPLES = ("images", "table", "text", "minimal")
DEVICE = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
# two trainings with the same seed
COMPARE = """
import sys, torch
one, other = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in sys.argv[1:])
most = max(float((one[key].double() - other[key].double()).abs().max()) for key in one)
print("equal to the bit" if most == 0 else f"the largest difference of a weight is {most:.3g}")
"""


@dataclass(frozen=True)
class Part:
    """A command, and what it shows."""

    title: str
    command: Sequence[object]
    folder: Path
    env: dict[str, str] = field(default_factory=dict)


def parts(project: Path, work: Path, report: Path, *, device: str, quick: bool) -> Iterator[Part]:
    python = project / ".venv/bin/python"
    few = ["--quick"] if quick else []
    trainer = "gpu" if device == "cuda" else "cpu"
    loop = [python, ROOT / "benchmarks/loop.py", "--project", project, "--device", device, *few]
    if not quick:
        yield Part("The doctor", [python, "-m", "runengine", "doctor"], project)
        yield Part("The bench", [python, "-m", "runengine", "bench", "--json", report.parent / "bench.json"], project)
        tests = ROOT / "tests/engine/test_gpu.py"
        options = ["-q", "-rs", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--confcutdir", ROOT / "tests/engine"]
        here = {"PYTHONPATH": str(TEMPLATE / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        yield Part("Tests that need a GPU", [python, "-m", "pytest", *options, tests], TEMPLATE, here)
        yield Part("The layers of the loop", loop, work)
    yield Part("What trainer=gpu takes, one after the other left out", [*loop, "--choices"], work)
    yield Part("How often a step waits for the device", [*loop, "--waits"], work)
    for example in EXAMPLES[-1:] if quick else EXAMPLES:
        yield from of_example(example, project, work, trainer)
    train = [python, "-m", "my_project.train", f"trainer={trainer}", "trainer.max_epochs=3"]
    for how in ("false", "true") if not quick else ():
        names = [f"runs/{how}-{number}" for number in (1, 2)]
        for name in names:
            typed = [f"run_dir={work / name}", f"trainer.deterministic={how}"]
            yield Part(f"A training, trainer.deterministic={how}", [*train, *typed], project)
        yield Part("Both compared", [python, "-c", COMPARE, *names], work)


def of_example(example: str, demo: Path, work: Path, trainer: str) -> Iterator[Part]:
    """A new project, trained and measured by the demo's Python: all examples need the same packages."""
    python, template = demo / ".venv/bin/python", demo.parent / "template"
    new = [f"example={example}", "env_manager=venv", "cuda=cpu", "--no-input", "--default-config"]
    cookiecutter = [sys.executable, "-m", "cookiecutter", template, *new, "--output-dir", work / example]
    yield Part(f"{example}: a new project", cookiecutter, work)
    project, here = work / example / "my-project", {"PYTHONPATH": "src"}
    for name, *typed in (["prepare"], ["train", f"trainer={trainer}"], ["evaluate"]):
        yield Part(f"{example}: {name}", [python, "-m", f"my_project.{name}", *typed], project, here)


def check(project: Path, report: Path, *, quick: bool) -> bool:
    """Run all parts, write the report while they end, and return whether all ended well."""
    asked = subprocess.run([project / ".venv/bin/python", "-c", DEVICE], capture_output=True, text=True, check=True)
    name = asked.stdout.strip()
    report.parent.mkdir(exist_ok=True)
    lines = [f"# {name or 'No GPU: on the CPU'}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores"]
    failed = []
    with tempfile.TemporaryDirectory() as work:
        for part in parts(project, Path(work), report, device="cuda" if name else "cpu", quick=quick):
            print(f"{part.title} ... ", end="", flush=True)
            started = time.perf_counter()
            command = list(map(str, part.command))
            done = subprocess.run(
                command, cwd=part.folder, env={**os.environ, **part.env}, text=True, encoding="utf-8",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            ended = "" if done.returncode == 0 else f", exit status {done.returncode}"
            failed += [part.title] * bool(ended)
            print(f"{time.perf_counter() - started:.0f} s{ended}", flush=True)
            shown = " ".join(command).replace(str(ROOT), ".").replace(work, "$TMPDIR")
            lines += [f"\n## {part.title}{ended}\n", f"    {shown[:300]}\n", "```", done.stdout.strip(), "```"]
            report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nthe report is {report}" + (f"; NOT WELL: {', '.join(failed)}" if failed else ""))
    return not failed


def main() -> None:
    parser = argparse.ArgumentParser(description="Everything that a GPU can prove, in one report.")
    parser.add_argument("--quick", action="store_true", help="does it still run? The figures mean nothing")
    parser.add_argument("--project", type=Path, default=ROOT / "demo/my-project")
    parser.add_argument("--report", type=Path, default=ROOT / "gpu-check/report.md")
    arguments = parser.parse_args()
    if not (arguments.project / ".venv/bin/python").exists():
        sys.exit(f"error: there is no project with a .venv in {arguments.project}. Run: make demo")
    sys.exit(not check(arguments.project.absolute(), arguments.report.absolute(), quick=arguments.quick))


if __name__ == "__main__":
    main()
