"""Which of the owner's modules decide a result: all but the programs that nothing else in the package names.

    python -m runengine code runs/dvc/code.json    # their SHA-256, for dvc.yaml

So an edit of `evaluate.py` trains nothing again, while no module that training imports can be forgotten.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import sys
from pathlib import Path

from . import project

PROGRAM = re.compile(rb"^if __name__ == [\"']__main__[\"']:", re.MULTILINE)


def hashes() -> dict[str, dict[str, str]]:
    """SHA-256 of the owner's code.

    Returns:
        `modules`: by the path in the package, what decides the result of every program: `{"data.py": ...}`.
        `programs`: by its name, each module that can be started: `{"train": ...}`. One that another module imports, or
            that a settings file names, is in `modules`, too.
    """
    owner = project.current()
    files = {file.relative_to(owner.folder).as_posix(): file.read_bytes() for file in _files(owner.folder, "py")}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    programs = [name for name, content in files.items() if "/" not in name and PROGRAM.search(content)]
    settings = [re.sub(rb"#.*", b"", file.read_bytes()) for file in _files(owner.conf, "yaml")]  # without comments
    apart = []  # from every other program
    for name in programs:
        stem = name.removesuffix(".py")
        others = [content for other, content in files.items() if other != name]
        in_full = f"{owner.package}.{stem}".encode()
        written = any(in_full in content for content in (*others, *settings))
        if not written and not any(stem in _imported(content) for content in others):
            apart.append(name)
    return {
        "modules": {name: sha256[name] for name in files if name not in apart},
        "programs": {name.removesuffix(".py"): sha256[name] for name in programs},
    }


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.rglob(f"*.{suffix}") if file.is_file())


@functools.cache  # each run of a sweep asks
def _imported(source: bytes) -> set[str]:
    """Every name that stands in an import, such as `a`, `b` and `c` of `from a.b import c`."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # nothing can import such a file either
        return set()
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    names += [node.module for node in imports if isinstance(node, ast.ImportFrom) and node.module]
    return {part for name in names for part in name.split(".")}


def main() -> None:
    file = Path(sys.argv[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(hashes(), indent=2) + "\n", encoding="utf-8")
