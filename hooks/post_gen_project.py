"""Keep the chosen variants, rename the package, say what to do next. Fast, offline, the same every time."""

import sys

sys.path.pop(0)  # the temporary folder this file lies in: a stray json.py there would hide Python's own

import json
import shutil
from pathlib import Path

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")
PLACEHOLDER = "ml_project"
ENGINE = {"runengine", "hydra_plugins"}  # folders in src/ that are the same, byte for byte, in all projects


def keep(among: str, *chosen: str) -> None:
    """Move the content of the chosen folders to the project's top, append it to files that exist; delete the others."""
    for folder in (Path(among, name) for name in chosen):
        for source in sorted(file for file in folder.rglob("*") if file.is_file()):
            target = Path(source.relative_to(folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as end:
                end.write(source.read_bytes())
    shutil.rmtree(among)


def owned(pattern: str) -> list[Path]:
    """The files that are the project's own."""
    found = sorted(file for file in Path().rglob(pattern) if file.is_file())
    return [file for file in found if not (file.parts[0] == "src" and file.parts[1] in ENGINE)]


def license_headers() -> None:
    """Apache's licence asks for a notice in each file."""
    for file in owned("*.py"):
        file.write_bytes(b"# SPDX-License-Identifier: Apache-2.0\n" + file.read_bytes())


def rename_package(name: str) -> None:
    for file in owned("*"):
        if file.name != "LICENSE":  # in a licence the word can only be somebody's name
            content = file.read_bytes()
            if PLACEHOLDER.encode() in content:
                file.write_bytes(content.replace(PLACEHOLDER.encode(), name.encode()))
    Path("src", PLACEHOLDER).rename(Path("src", name))


def next_steps() -> str:
    chosen = [
        f"  {question:15} {ANSWERS[question]:6} {ANSWERS.get('__why_' + question, 'as you chose')}"
        for question in ("python_version", "env_manager", "cuda")
    ]
    return "\n".join(
        [
            "",
            f"{ANSWERS['project_slug']} is ready:",
            *chosen,
            "",
            f"  cd {Path.cwd().name}",
            "  make setup data train evaluate",
            "",
        ]
    )


profile, ci = ANSWERS["profile"], ANSWERS["ci"]
keep("env", ANSWERS["env_manager"])
keep("licenses", ANSWERS["license"])
keep("ci", *(() if ci == "none" else ("any", ci)))
keep("profiles", *(() if profile == "student" else (profile, f"{profile}-{ci}")))
if ANSWERS["license"] == "Apache-2.0":
    license_headers()
rename_package(ANSWERS["package_name"])
print(next_steps().encode("ascii", "replace").decode(), file=sys.stderr)  # not into `cruft diff > patch`
