"""Is this machine able to train? One line for each thing that can be wrong, with the command that fixes it.

    python -m runengine doctor            # make doctor
    python -m runengine doctor --fix      # prints the commands that fix what failed; it runs none

    python -m runengine doctor launch=kubernetes launch.volume=...   # would that engine take a run?

A check is `ok`, `fail`, `skip` (it does not apply here) or `unknown` (the machine gave no answer, or not in time).
Exit status: 0 no check failed, 1 a check failed, 2 no check failed, but one is unknown.
"""

from __future__ import annotations

import argparse
import json
import sys

from ..settings import project
from ..settings.console import first_line
from ..settings.errors import INTERRUPTED, explain
from . import check_computing, check_devices, check_gpu_state, check_setup, check_system
from .checks import Check, NotRead, Result, fail, ok
from .collect_env import Machine

# in the order in which they would stop a new user
CHECKS = (
    Check("python", check_setup.python, quick=True),
    Check("environment", check_setup.environment, quick=True),
    Check("packages", check_setup.packages, quick=True),
    Check("engine", check_setup.engine),
    Check("PyTorch", check_devices.build, quick=True),
    Check("driver", check_devices.driver, quick=True),
    Check("GPUs", check_devices.gpus, quick=True),
    Check("arithmetic", check_computing.arithmetic, quick=True),
    Check("libraries", check_setup.libraries),
    Check("convolution", check_computing.convolution),
    Check("system", check_system.system),
    Check("disk", check_system.disk),
    Check("MLflow", check_setup.mlflow),
    Check("Hydra", check_setup.hydra),
    Check("DVC", check_setup.dvc),
    Check("git", check_setup.git),
    Check("cores", check_system.cores),
    Check("memory", check_system.memory),
    Check("shared memory", check_system.shared_memory),
    Check("open files", check_system.descriptors),
    Check("GPU memory", check_devices.gpu_memory),
    Check("GPU clocks", check_devices.gpu_clocks),
    Check("GPU errors", check_gpu_state.gpu_errors),
    Check("GPU link", check_gpu_state.gpu_link),
    Check("GPU modes", check_gpu_state.gpu_modes),
    Check("pinned memory", check_computing.pinned),
    Check("several GPUs", check_computing.together),
    Check("torch.compile", check_computing.compiling),
    Check("TensorFlow", check_computing.tensorflow),
)


def examine(check: Check, machine: Machine) -> Result:
    """An error in a check makes that check `unknown`; the other checks still run."""
    try:
        return check.look(machine)
    except NotRead as error:
        return Result("unknown", str(error))
    except Exception as error:
        return Result("unknown", f"{type(error).__name__}: {first_line(error)}")


def launch(settings: list[str]) -> Result:
    """Is the engine that these settings choose reached, and would it take a run?"""
    from ..launch.elsewhere import examine as ask

    try:
        return ok(ask(settings))
    except Exception as error:
        said = explain(error)
        if said is None:
            raise
        return fail(said, "no run would be started there", "# What that sentence says")


def status(results: list[Result]) -> int:
    states = {result.state for result in results}
    return 1 if "fail" in states else 2 if "unknown" in states else 0


def as_text(check: Check, result: Result) -> str:
    lines = [f"{check.name:14} {result.state:8} {result.found}"]
    if result.state == "fail":
        lines.append(f"{'':14} {'why:':>8} {result.why}")
        for number, line in enumerate(result.fix.splitlines()):
            lines.append(f"{'':14} {'' if number else 'do:':>8} {line.removeprefix('# ')}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {project.ENGINE} doctor", description="Is this machine able to train?"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--fix", action="store_true", help="print the commands that fix what failed; run none")
    parser.add_argument(
        "--quick", action="store_true", help="only check that the environment is the right one and computes correctly"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="launch=...", help="of a run: ask only whether that engine would take it"
    )
    arguments = parser.parse_args()
    wanted = arguments.settings
    asked = (Check("launch", lambda machine: launch(wanted), quick=True),) if wanted else CHECKS
    machine = Machine(project.root(), quick=arguments.quick)
    found: list[tuple[Check, Result]] = []
    try:
        for check in asked:
            if check.quick or not arguments.quick:
                found.append((check, examine(check, machine)))
                if not (arguments.json or arguments.fix):
                    print(as_text(*found[-1]), flush=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    ends = status([result for _, result in found])
    if arguments.json:
        checks = [{"check": check.name, **result._asdict()} for check, result in found]
        print(json.dumps({"status": ends, "checks": checks}, indent=2))
    elif arguments.fix:
        for check, result in found:
            if result.state == "fail":
                print(f"# {check.name}: {result.found}\n{result.fix}")
    elif not wanted:
        print(last_line(found))
    sys.exit(ends)


def last_line(found: list[tuple[Check, Result]]) -> str:
    names = {
        state: ", ".join(check.name for check, result in found if result.state == state)
        for state in ("fail", "unknown")
    }
    if names["fail"]:
        return f"\nFailed: {names['fail']}. For the commands that fix it: make doctor ARGS=--fix"
    if names["unknown"]:
        return f"\nNo check failed, but these got no answer: {names['unknown']}."
    return "\nNo check failed."
