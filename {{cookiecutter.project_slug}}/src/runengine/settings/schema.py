"""What an editor completes and checks the files of `conf/` by: JSON schemas, made from these files and from the code.

    python -m runengine schema    # writes .schemas/; `make setup` does it, too

A file names its schema in a comment: that of its group or, where its settings stand at the top, that of a script.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import comments, project
from .check import ALLOWED, LIMITS, OPEN, OPTIONAL, READ_BY_NAME
from .comments import Setting
from .files import atomic_write
from .signatures import JSON_TYPES, NULL, Kind, Signature, signature

FOLDER = Path(".schemas")
BUILT_FROM = {"trainer": "pytorch_lightning.Trainer"}  # a group that the engine hands to a class without a _target_
BOUNDS = {">": "exclusiveMinimum", ">=": "minimum", "<": "exclusiveMaximum", "<=": "maximum"}
TYPES = {  # an editor writes a value of the first one
    "boolean": "true or false", "integer": "an integer", "number": "a number", "array": "a list",
    "object": "names with values", "string": "text", "null": "null",
}  # fmt: skip
IN_PYTHON = {"seq": "list", "map": "dict"}  # kinds of values in YAML
LATER = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}  # the value of another setting, or one that is still to be set
IN_A_LIST = "[]"
ANYTHING = {"$ref": "#/definitions/anything"}
HAS_TARGET = {"type": "object", "required": ["_target_"]}
OF_HYDRA: dict[str, Any] = {  # what it reads next to the arguments of a _target_
    "_partial_": {"type": "boolean", "description": "true: called later, with arguments that are not known yet"},
    "_convert_": {"enum": ["none", "partial", "object", "all"]},
    "_recursive_": {"type": "boolean"},
    "_args_": {"type": "array"},
}
Schema = dict[str, Any]


@dataclass
class Node:
    """A setting or a group of settings, with all that the files say of it."""

    said: list[Setting] = field(default_factory=list)
    inner: dict[str, Node] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)

    def at(self, path: Iterable[str]) -> Node:
        return functools.reduce(lambda node, name: node.inner.setdefault(name, Node()), path, self)


class Schemas:
    """Those of the project at hand, by their names; `unknown` are the targets whose arguments cannot be checked."""

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}
        self.options, self.tops = Node(), dict[str, Node]()
        self.signatures = {name: self._signature(name) for name in BUILT_FROM.values()}
        folders = project.conf_folders()
        self.groups = {
            name: [file for each in folders for file in sorted((each / name).glob("*.yaml"))]
            for name in project.groups()
        }
        self.of_engine = {row.key for group, file in self._files() if folders[-1] in file.parents
                          for row in comments.read_option(file, group).settings}  # fmt: skip
        for group, file in self._files():
            place = () if comments.is_global(file) else (group,)
            self._add(self.options, comments.read_option(file, group).settings, group)
            self._add_targets(self.options, file, place, group)
        for script in sorted(project.current().conf.glob("*.yaml")):
            own = self.tops[script.stem] = Node()
            for group, (_, comment) in comments.groups(script).items():
                own.inner[group] = self.options.at([group])
                own.inner[group].said.append(Setting((group,), "", "", comment))
            self._add(own, comments.own_settings(script))
            self._add_targets(own, script)

    def _files(self) -> Iterator[tuple[str, Path]]:
        yield "", project.ENGINE_FOLDER / f"conf/{project.ENGINE}.yaml"
        yield from ((group, file) for group, files in self.groups.items() for file in files)

    def _add(self, node: Node, rows: Iterable[Setting], group: str = "") -> None:
        """Of a group's file what it says of its own group; nothing that the engine would not read."""
        for row in rows:
            unread = row.path[0] in READ_BY_NAME and row.key not in self.of_engine
            if not unread and row.path[0] == (group or row.path[0]):
                node.at(row.path).said.append(row)

    def _add_targets(self, node: Node, file: Path, above: tuple[str, ...] = (), group: str = "") -> None:
        for path, target in _targets(yaml.safe_load(file.read_text(encoding="utf-8")), above):
            if path[:1] != ("hydra",) and "${" not in target:
                if target not in self.signatures:
                    self.signatures[target] = self._signature(target)
                if IN_A_LIST not in path and path[:1] == ((group,) if group else path[:1]):
                    node.at(path).targets.add(target)

    def _signature(self, target: str) -> Signature | None:
        try:
            found = signature(target)
        except SyntaxError as error:
            self.unknown[target] = f"{error.filename}, line {error.lineno}: {error.msg}"
            return None
        if found is None:
            self.unknown[target] = "its source is not found"
        return found

    def make(self) -> dict[str, Schema]:
        made = {name: self._document(self._value(self.options.at([name]), name), project.choices(name))
                for name, files in self.groups.items() if not all(map(comments.is_global, files))}  # fmt: skip
        for script, node in self.tops.items():
            schema = self._inside(node, "")
            schema["properties"] |= {"hydra": {"type": "object", "description": "Hydra's own settings"}}
            made[script] = self._document(schema, project.choices(""))
        return made

    def _document(self, schema: Schema, names: Iterable[str]) -> Schema:
        built = {name: self._built(name, Node(), "") for name in sorted(self.signatures)}
        ways = [{"if": _is(name), "then": {"$ref": f"#/definitions/{name}"}} for name in built]
        inside = {"additionalProperties": ANYTHING, "items": ANYTHING}
        properties = {**schema.get("properties", {}), "defaults": self._defaults(names)}
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",  # the newest that yaml-language-server knows in full
            **{name: value for name, value in schema.items() if name not in {**LATER, "patternErrorMessage": ""}},
            "type": ["object", "null"],
            "properties": properties,
            "definitions": {**built, "anything": {"if": HAS_TARGET, "then": {"allOf": ways}, "else": inside}},
        }

    def _defaults(self, names: Iterable[str]) -> Schema:
        typed: Schema = {}
        matched: Schema = {r"^(override |optional )*/?hydra/": {}}
        for group in self.groups:
            options = list(project.choices(group))
            comment = next((row.comment for row in self.options.at([group]).said if row.path == (group,)), "")
            several = {"type": "array", "items": _one_of(options)}
            choice = {"description": comment, "anyOf": [*_one_of([*options, None])["anyOf"], several]}
            typed |= {group: choice, f"override /{group}": choice}
            matched[rf"^(override |optional )*/?{re.escape(group)}(@.*)?$"] = choice
        entry = {"type": "object", "properties": typed, "patternProperties": matched, "additionalProperties": False}
        entry |= {"minProperties": 1, "maxProperties": 1}
        with_group = [(rf"(/?{group}/)", file) for group, file in self._files() if group]
        paths = [f"{place}{'?' * comments.is_global(file)}{re.escape(file.stem)}" for place, file in with_group]
        name = _one_of(["_self_", *names], more=f"|^({'|'.join(paths)})$")
        return {"type": "array", "items": {"if": {"type": "object"}, "then": entry, "else": name}}

    def _value(self, node: Node, key: str, declared: Kind = Kind()) -> Schema:  # noqa: B008
        """What may stand behind a key; what its class declares comes before the type of its default."""
        comment = next((row.comment for row in node.said if row.comment), "")
        schema: Schema = {"description": comment} if comment else {}
        said = [kind for row in node.said if (kind := _kind(row)) != Kind()]
        kind = declared if any(declared) or not said else functools.reduce(Kind.__or__, said) | NULL
        has_inside = bool(node.inner or node.targets or key in BUILT_FROM)
        if has_inside and (any(kind) or all(row.kind == "" for row in node.said)):
            kind = Kind(kind.types | {"object", "null"}, kind.words)
        if key in LIMITS:
            numbers = kind.types & {"integer", "number"} or {"number"}
            kind = Kind(frozenset(numbers | ({"null"} if key in OPTIONAL else set())))
            schema |= {BOUNDS[sign]: limit for sign, limit in LIMITS[key]}
        if key in ALLOWED:
            kind = Kind(words=ALLOWED[key])
        schema |= _of_kind(kind)
        if f"{key}." in OPEN or not has_inside:
            return {**schema, "allOf": [ANYTHING]} if kind == Kind() or "object" in kind.types else schema
        return schema | self._inside(node, key)

    def _inside(self, node: Node, key: str) -> Schema:
        """The names in a mapping: what its class takes or, where it builds nothing, what the files have."""
        targets = sorted(node.targets)
        taken = [self.signatures[name] for name in [*targets, *([BUILT_FROM[key]] if key in BUILT_FROM else [])]]
        more = any(each is None or each.more for each in taken)
        declared: dict[str, Kind] = {}
        for name, kind in (pair for each in taken if each for pair in each.arguments.items()):
            declared[name] = declared[name] | kind if name in declared else kind
        names = dict.fromkeys([*declared, *(node.inner if more or not taken else ())])
        loose = self._names(node, key, {name: declared.get(name, Kind()) for name in names}, targets, more)
        if not targets:
            return loose
        ways = [{"if": _is(name), "then": self._built(name, node, key)} for name in targets]
        others = {"if": {"properties": {"_target_": {"enum": targets}}}, "else": ANYTHING}
        return {"if": HAS_TARGET, "then": {"allOf": [*ways, others]}, "else": loose}

    def _built(self, target: str, node: Node, key: str) -> Schema:
        found = self.signatures[target] or Signature({}, more=True)
        return self._names(node, key, found.arguments, [target], found.more)

    def _names(self, node: Node, key: str, kinds: dict[str, Kind], targets: list[str], more: bool) -> Schema:
        names = {
            name: self._value(node.inner.get(name, Node()), f"{key}.{name}".lstrip("."), kind)
            for name, kind in kinds.items()
        }
        if targets:
            known = sorted(node.targets or targets)
            names |= {"_target_": {"anyOf": [{"enum": known}, {"type": "string"}]}, **OF_HYDRA}
        if key in self.groups:
            names["defaults"] = {}
        return {"properties": names, "additionalProperties": more}


def _is(target: str) -> Schema:
    return {"properties": {"_target_": {"const": target}}, "required": ["_target_"]}


def _one_of(values: list[Any], more: str = "") -> Schema:
    """One of these, or a text that matches `more`."""
    return {"anyOf": [{"enum": values}, {**LATER, "pattern": f"{LATER['pattern']}{more}"}]}


def _kind(row: Setting) -> Kind:
    """Of a default; that of null and of another setting's value is not known."""
    name = IN_PYTHON.get(row.kind, row.kind)
    is_later = re.search(LATER["pattern"], row.default)
    return Kind(frozenset({JSON_TYPES[name]})) if name in JSON_TYPES and not is_later else Kind()


def _of_kind(kind: Kind) -> Schema:
    if not any(kind):
        return {}
    if kind.types <= NULL.types:
        return _one_of([*kind.words, *([None] if kind.types else [])])
    may_be = " or ".join(words for name, words in TYPES.items() if name in kind.types)
    later = {} if "string" in kind.types else {**LATER, "patternErrorMessage": f"Must be {may_be}."}
    of_type = {**later, "type": [name for name in TYPES if name in kind.types | {"string"}]}
    return {"anyOf": [{"enum": list(kind.words)}, of_type]} if kind.words else of_type


def _targets(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, str(node["_target_"])
        for key, value in node.items():
            yield from _targets(value, (*path, str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value, (*path, IN_A_LIST))


def main() -> None:
    schemas = Schemas()
    made = schemas.make()
    FOLDER.mkdir(exist_ok=True)
    for name, schema in made.items():
        atomic_write(FOLDER / f"{name}.json", json.dumps(schema, indent=1) + "\n")
    for file in FOLDER.glob("*.json"):
        if file.stem not in made:
            file.unlink()
    for target, why in schemas.unknown.items():
        print(f"The arguments of {target} are not checked: {why}.")
    print(f"wrote {len(made)} schemas into {FOLDER}/")
