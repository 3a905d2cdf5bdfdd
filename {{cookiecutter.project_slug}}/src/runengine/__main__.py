"""The engine's own commands: python -m runengine <command>; most are targets of the Makefile."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {  # module, and what it is for
    "bench": ("machine.bench", "measure this machine, and compare with what it can"),
    "card": ("model_card", "write a run's model card and data sheet"),
    "doctor": ("machine.doctor", "is this machine able to train?"),
    "engine": ("manifest", "is the engine as it was released?"),
    "export": ("tracking.export", "export a run's model as ONNX or a program of PyTorch, and compare it"),
    "jobs": ("list_jobs", "list the jobs that were started somewhere else, and cancel them"),
    "look": ("look", "write a page of the test split with a run's answers"),
    "memory": ("machine.memory", "count what a training step keeps in memory, before a long run"),
    "promote": ("tracking.registry", "make a run's model the one that is served"),
    "rerun": ("rerun", "train a recorded run again from its commit, and compare"),
    "runs": ("list_runs", "list runs, and delete old ones"),
    "schema": ("settings.schema", "write what an editor completes and checks conf/ by"),
    "serve": ("tracking.registry", "answer requests with the promoted model"),
    "settings": ("settings.check", "write the settings that decide a result, for dvc.yaml"),
    "store": ("tracking.mlflow_client", "make the tables of MLflow's database"),
    "sync": ("tracking.sync", "send to MLflow what it could not accept during the runs"),
    "upgrade": ("upgrade", "replace the engine by another version"),
}
UNLISTED = {  # typed by the Makefile and dvc.yaml alone
    "code": "settings.code",
    "dvc-ready": "repository",
    "first-commit": "repository",
    "hooks": "repository",
    "mlflow": "tracking.pages",
    "offer": "repository",
    "send": "tracking.sending",
    "settle": "settings.settle",
}
SUBCOMMANDS = {"promote", "serve"}  # of one module
MODULES = {**{name: module for name, (module, _) in COMMANDS.items()}, **UNLISTED}
OF_GIT_AND_DVC = {
    "dvc-ready",
    "first-commit",
    "hooks",
    "offer",
    "settle",
}  # any engine can do these, for the project at hand
OF_THE_ENGINE = {"engine", "upgrade"}  # they work where files of the engine are missing, and whichever was imported


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in MODULES:
        out = sys.stdout if name in ("-h", "--help") else sys.stderr
        if out is sys.stderr:
            print(f"error: {name} is not a command of the engine.", file=out)
        lines = [f"    python -m runengine {command:10} {about}" for command, (_, about) in COMMANDS.items()]
        print("\n".join(lines), file=out)
        sys.exit(out is sys.stderr)
    if name not in OF_GIT_AND_DVC | SUBCOMMANDS:
        del sys.argv[1]
    try:
        if name in OF_THE_ENGINE:
            importlib.import_module(f".{MODULES[name]}", __package__).main()
            return
        from .settings import project
        from .settings.errors import friendly_errors

        with friendly_errors():
            if name not in OF_GIT_AND_DVC:
                project.check_imports()
            importlib.import_module(f".{MODULES[name]}", __package__).main()
    except ImportError:
        from .manifest import exit_if_incomplete

        exit_if_incomplete()
        raise


if __name__ == "__main__":
    main()
