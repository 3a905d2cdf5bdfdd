"""The engine's own commands: python -m runengine <command>; most are targets of the Makefile."""

from __future__ import annotations

import importlib
import sys

from .settings.errors import friendly_errors

COMMANDS = {  # module, and what it is for
    "bench": ("machine.bench", "what this machine reaches, next to what it could"),
    "card": ("model_card", "write a run's model card and data sheet"),
    "doctor": ("machine.doctor", "is this machine able to train?"),
    "promote": ("tracking.registry", "make a run's model the one that is served"),
    "rerun": ("rerun", "train a recorded run again from its commit, and compare"),
    "serve": ("tracking.registry", "answer requests with the promoted model"),
    "settings": ("settings.config", "write the settings that decide a result, for dvc.yaml"),
    "store": ("tracking.mlflow_client", "make the tables of MLflow's database"),
    "sync": ("tracking.sync", "send to MLflow what it could not take when the runs were on"),
}
SUBCOMMANDS = {"promote", "serve"}  # of one module


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        out = sys.stdout if name in ("-h", "--help") else sys.stderr
        if out is sys.stderr:
            print(f"error: {name} is not a command of the engine.", file=out)
        lines = [f"    python -m runengine {command:10} {about}" for command, (_, about) in COMMANDS.items()]
        print("\n".join(lines), file=out)
        sys.exit(out is sys.stderr)
    if name not in SUBCOMMANDS:
        del sys.argv[1]
    with friendly_errors():
        importlib.import_module(f".{COMMANDS[name][0]}", __package__).main()


if __name__ == "__main__":
    main()
