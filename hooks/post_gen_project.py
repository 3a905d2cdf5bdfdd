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


def take_example(name: str) -> None:
    """Put the owner's package, tests and pages of an example in the place of those that lie here: `images`."""
    file = Path("examples", name, "example.json")
    if file.is_file():
        example = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        for replaced in [path for pattern in example["replaces"] for path in Path().glob(pattern)]:
            replaced.unlink()
        substitute(example["words"])
    keep("examples", name)


def owned(pattern: str) -> list[Path]:
    """The files that are the project's own; not those of examples that were not taken yet."""
    found = sorted(file for file in Path().rglob(pattern) if file.is_file() and file.parts[0] != "examples")
    return [file for file in found if not (file.parts[0] == "src" and file.parts[1] in ENGINE)]


def substitute(words: dict[str, str]) -> None:
    for file in owned("*"):
        if file.name != "LICENSE":  # in a licence the package's name can only be somebody's
            content = before = file.read_bytes()
            for old, new in words.items():
                content = content.replace(old.encode(), new.encode())
            if content != before:
                file.write_bytes(content)


def license_headers() -> None:
    """Apache's licence asks for a notice in each file."""
    for file in owned("*.py"):
        file.write_bytes(b"# SPDX-License-Identifier: Apache-2.0\n" + file.read_bytes())


def next_steps() -> str:
    chosen = [
        f"  {question:15} {ANSWERS[question]:6} {ANSWERS.get('__why_' + question, 'as you chose')}"
        for question in ("python_version", "env_manager", "cuda")
    ]
    commands = [f"  cd {Path.cwd().name}", "  make setup data train evaluate"]
    return "\n".join(["", f"{ANSWERS['project_slug']} is ready:", *chosen, "", *commands, ""])


for path in Path().rglob("*"):  # those of the template may be read-only
    path.chmod(path.stat().st_mode | 0o200)
for name in ("HOOKS_DID_NOT_RUN.md", "environment.mk"):  # the latter comes from env/
    Path(name).unlink()
take_example(ANSWERS["example"])
profile, ci = ANSWERS["profile"], ANSWERS["ci"]
manager = ANSWERS["env_manager"]
keep("env", manager, *([f"{manager}-triton"] if ANSWERS["__triton_name"] else ()))
keep("licenses", ANSWERS["license"])
keep("ci", *(() if ci == "none" else ("any", ci)))
keep("profiles", *(() if profile == "student" else (profile, f"{profile}-{ci}")))
if ANSWERS["license"] == "Apache-2.0":
    license_headers()
substitute({PLACEHOLDER: ANSWERS["package_name"]})
Path("src", PLACEHOLDER).rename(Path("src", ANSWERS["package_name"]))
print(next_steps().encode("ascii", "replace").decode(), file=sys.stderr)  # not into `cruft diff > patch`
