"""What the files of `conf/` say of their settings: each with its default, and the comment next to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from . import project
from .errors import UserError

GLOBAL = "@package _global_"  # in its first line: a file's settings stand at the top, not under the name of its group
FOR_EDITORS = "yaml-language-server:"  # names the schema that an editor checks a file by
FLOAT = re.compile(r"[-+]?[\d.]+[eE][-+]?\d+")  # 1e-4 is a number for OmegaConf and editors, but not for PyYAML


class Setting(NamedTuple):
    """`kind`: the ending of its tag in YAML; empty for a name above other settings."""

    path: tuple[str, ...]
    default: str
    kind: str
    comment: str

    @property
    def key(self) -> str:
        return ".".join(self.path)


class Option(NamedTuple):
    """A file of conf/: the lines that say what it is for, what it starts from, what it builds, its settings."""

    about: list[str]
    base: str
    target: str
    settings: list[Setting]


def own_settings(file: Path) -> list[Setting]:
    """Of a script: those of the files it starts from, such as the engine's `runengine`, then those it sets itself."""
    rows = {}
    for name in defaults(file):
        if isinstance(name, yaml.ScalarNode) and (base := project.choices("").get(name.value)):
            rows.update({row.key: row for row in read_option(base).settings})
    for row in read_option(file).settings:
        comment = row.comment or (rows[row.key].comment if row.key in rows else "")
        rows[row.key] = row._replace(comment=comment)
    return list(rows.values())


def defaults(file: Path) -> list[yaml.Node]:
    """The entries of its list of defaults."""
    root, _ = _read(file)
    found: list[yaml.Node] = next((value.value for key, value in root.value if key.value == "defaults"), [])
    return found


def groups(file: Path) -> dict[str, tuple[str, str]]:
    """The groups that a script chooses from: the default, and the comment next to it."""
    _, lines = _read(file)
    return {
        key.value: (value.value, _next_to(lines, value))
        for item in defaults(file)
        for key, value in (item.value if isinstance(item, yaml.MappingNode) else ())
        if project.choices(key.value)
    }


def is_global(file: Path) -> bool:
    return f"# {GLOBAL}" in _read(file)[1]


def read_option(file: Path, group: str = "") -> Option:
    root, lines = _read(file)
    num_about = next((number for number, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    about = [line[1:].removeprefix(" ") for line in lines[:num_about] if line.startswith("#")]
    about = [line for line in about if not line.startswith(FOR_EDITORS)]
    top = {key.value: value for key, value in root.value}
    if GLOBAL in about:
        about.remove(GLOBAL)
        group = ""
    base = ""
    if group and "defaults" in top:
        base = "".join(item.value for item in top["defaults"].value if isinstance(item, yaml.ScalarNode))
    found = _settings(root, (group,) if group else (), lines, num_about)
    rows = [row for row in found if row.path[0] != "hydra"]
    return Option(about, base, top["_target_"].value if "_target_" in top else "", rows)


def _read(file: Path) -> tuple[yaml.MappingNode, list[str]]:
    """What stands in the file, and its lines."""
    text = file.read_text(encoding="utf-8")
    try:
        root = yaml.compose(text)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{place}: this is no YAML: {error.problem}.") from None
    return root if isinstance(root, yaml.MappingNode) else yaml.MappingNode("", []), text.splitlines()


def _settings(node: yaml.MappingNode, above: tuple[str, ...], lines: list[str], num_about: int) -> Iterator[Setting]:
    for key, value in node.value:
        path = (*above, key.value)
        if key.value in ("_target_", "_partial_", "defaults"):
            continue
        comments = [*_above(lines, key, num_about), _next_to(lines, key), _next_to(lines, value)]
        comment = " ".join(dict.fromkeys(filter(None, comments)))
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            if comment:
                yield Setting(path, "", "", comment)
            yield from _settings(value, path, lines, num_about)
        else:
            yield Setting(path, _source(lines, value), _kind(value), comment)


def _kind(node: yaml.Node) -> str:
    is_float = isinstance(node, yaml.ScalarNode) and not node.style and FLOAT.fullmatch(node.value)
    return "float" if is_float else str(node.tag).rsplit(":", 1)[-1]


def _source(lines: list[str], node: yaml.Node) -> str:
    """A value as it was written."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        line = lines[int(start.line)]
        return line[start.column : end.column]
    return " ".join(line.strip() for line in lines[start.line : end.line])


def _above(lines: list[str], key: yaml.Node, num_about: int) -> list[str]:
    found: list[str] = []
    number = key.start_mark.line - 1
    while number >= num_about and lines[number].lstrip().startswith("#"):
        found.insert(0, lines[number].lstrip("# "))
        number -= 1
    return found


def _next_to(lines: list[str], node: yaml.Node) -> str:
    """The comment at the end of the line of a name or of a value on one line."""
    if node.start_mark.line != node.end_mark.line:
        return ""
    found = re.match(r":?\s+#\s*(.*)", lines[node.end_mark.line][node.end_mark.column :])
    return found[1] if found else ""
