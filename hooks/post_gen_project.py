"""Keep the chosen variants, rename the package, say what to do next. Fast, offline, the same every time."""

import sys

sys.path.pop(0)  # the temporary folder this file lies in: a stray json.py there would hide Python's own

import json
import shutil
from pathlib import Path

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")
PLACEHOLDER = "ml_project"


def keep(chosen: Path, among: Path) -> None:
    """Move the content of the chosen folder to the project's top and delete the others."""
    for source in sorted(chosen.rglob("*")):
        if source.is_file():
            target = Path(source.relative_to(chosen))
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    shutil.rmtree(among)


def append_settings() -> None:
    """The environment manager's own part of pyproject.toml comes after the common one."""
    own = Path("env", ANSWERS["env_manager"], "pyproject.toml")
    if own.exists():
        with Path("pyproject.toml").open("ab") as common:
            common.write(own.read_bytes())
        own.unlink()


def rename_package(name: str) -> None:
    for file in sorted(Path().rglob("*")):
        if file.is_file() and file.name != "LICENSE":  # there the word can only be somebody's name
            content = file.read_bytes()
            if PLACEHOLDER.encode() in content:
                file.write_bytes(content.replace(PLACEHOLDER.encode(), name.encode()))
    Path("src", PLACEHOLDER).rename(Path("src", name))
    for plugin in Path("src", "hydra_plugins").glob(f"{PLACEHOLDER}*"):
        plugin.rename(plugin.with_name(plugin.name.replace(PLACEHOLDER, name, 1)))


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


append_settings()
keep(Path("env", ANSWERS["env_manager"]), among=Path("env"))
keep(Path("licenses", ANSWERS["license"]), among=Path("licenses"))
rename_package(ANSWERS["package_name"])
print(next_steps().encode("ascii", "replace").decode(), file=sys.stderr)  # `cruft diff > patch` stays clean
