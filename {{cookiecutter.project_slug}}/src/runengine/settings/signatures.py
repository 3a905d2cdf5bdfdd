"""What a class or function takes, read from its source: torch takes seconds to import, and own code may be broken."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

JSON_TYPES = {
    "bool": "boolean", "int": "integer", "float": "number", "str": "string", "Path": "string", "None": "null",
    "dict": "object", "Dict": "object", "Mapping": "object", "Tensor": "object",  # built by a _target_ of its own
    "list": "array", "List": "array", "Sequence": "array", "Iterable": "array", "tuple": "array", "Tuple": "array",
}  # fmt: skip


class Kind(NamedTuple):
    """What a value may be: of one of these types of JSON, or one of these words; without both it may be anything."""

    types: frozenset[str] = frozenset()
    words: tuple[Any, ...] = ()

    def __or__(self, other: Kind) -> Kind:
        return Kind(self.types | other.types, self.words + other.words) if any(self) and any(other) else Kind()


NULL = Kind(frozenset({"null"}))


class Signature(NamedTuple):
    """`more`: it takes others as well, by ** or in a way that its source does not tell."""

    arguments: dict[str, Kind]
    more: bool = False


class Definition(NamedTuple):
    module: str
    node: ast.FunctionDef | ast.ClassDef


def signature(target: str) -> Signature | None:
    """Of the class or function of this full name; None where its source is not found.

    Raises:
        SyntaxError: its module cannot be read.
    """
    found = _resolve(target.split("."))
    return _of(found) if found else None


def _of(found: Definition) -> Signature:
    node = found.node
    if isinstance(node, ast.FunctionDef):
        return _of_function(node)
    bases = [base for each in node.bases if (base := _find(found.module, ast.unparse(each).split(".")))]
    bases = [base for base in bases if base.node is not node]  # class Net(Net), of which the second is imported
    if _is_dataclass(node):
        own = {
            ast.unparse(line.target): _kind(line.annotation) for line in node.body if isinstance(line, ast.AnnAssign)
        }
        above = [_of(base).arguments for base in bases if _is_dataclass(base.node)]
        return Signature({name: kind for fields in (*reversed(above), own) for name, kind in fields.items()})
    body = {line.name: line for line in node.body if isinstance(line, ast.FunctionDef)}
    if made := body.get("__init__") or body.get("__new__"):
        return _of_function(made, num_bound=1)
    return _of(bases[0]) if bases else Signature({}, more=bool(node.bases))


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list)


def _of_function(node: ast.FunctionDef, num_bound: int = 0) -> Signature:
    names = [*node.args.posonlyargs, *node.args.args]
    values = [*[None] * (len(names) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    arguments = {}
    for name, value in list(zip([*names, *node.args.kwonlyargs], values, strict=True))[num_bound:]:
        may_be_null = isinstance(value, ast.Constant) and value.value is None
        kind = _kind(name.annotation)
        arguments[name.arg] = kind | NULL if may_be_null else kind
    return Signature(arguments, node.args.kwarg is not None)


def _kind(node: ast.expr | None) -> Kind:
    """Of an annotation."""
    if isinstance(node, ast.BinOp):
        return _kind(node.left) | _kind(node.right)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _kind(ast.parse(node.value, mode="eval").body)
        except SyntaxError:  # words for whoever reads it
            return Kind()
    if isinstance(node, ast.Subscript):
        name = _last_name(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Literal":
            return Kind(words=tuple(part.value for part in parts if isinstance(part, ast.Constant)))
        if name in ("Union", "Optional"):
            kinds = [_kind(part) for part in parts]
            return functools.reduce(Kind.__or__, [*kinds, *([NULL] if name == "Optional" else [])])
        node = node.value
    name = "None" if isinstance(node, ast.Constant) and node.value is None else _last_name(node)
    return Kind(frozenset({JSON_TYPES[name]})) if name in JSON_TYPES else Kind()


def _last_name(node: ast.expr | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _resolve(names: Sequence[str], seen: frozenset[str] = frozenset()) -> Definition | None:
    """A full name: as much of it as there are files is a module."""
    for num_modules in range(len(names) - 1, 0, -1):
        if found := _find(".".join(names[:num_modules]), names[num_modules:], seen):
            return found
    return None


def _find(module: str, names: Sequence[str], seen: frozenset[str] = frozenset()) -> Definition | None:
    """What these names mean in a module: defined there, or imported from another one."""
    file, (name, *rest), place = _file(module), names, f"{module}:{'.'.join(names)}"
    if file is None or place in seen:
        return None
    for line in reversed(list(_statements(_parsed(file)))):
        full: list[str] = []
        if isinstance(line, ast.ClassDef | ast.FunctionDef) and line.name == name:
            return None if rest else Definition(module, line)
        if not isinstance(line, ast.Import | ast.ImportFrom):
            continue
        for alias in line.names:
            everything = alias.name == "*" and not rest
            if (isinstance(line, ast.ImportFrom) and alias.name == name) or alias.asname == name or everything:
                source = _source(module, file, line)
                full = [*source, *(names if everything else [*alias.name.split("."), *rest])]
            elif isinstance(line, ast.Import) and not alias.asname and alias.name.split(".")[0] == name:
                full = list(names)
            if full and (found := _resolve(full, seen | {place})):
                return found
    return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Of a module, those inside of `if` and `try` as well."""
    for line in body:
        yield line
        if isinstance(line, ast.If | ast.Try):
            handlers = line.handlers if isinstance(line, ast.Try) else []
            yield from _statements([*line.body, *(each for part in handlers for each in part.body), *line.orelse])


def _source(module: str, file: Path, line: ast.Import | ast.ImportFrom) -> list[str]:
    """The parts of the name of the module that it imports from."""
    if isinstance(line, ast.Import):
        return []
    package = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    above = package[: len(package) - line.level + 1] if line.level else []
    return [*above, *(line.module.split(".") if line.module else [])]


@functools.cache
def _parsed(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_bytes(), filename=str(file)).body


@functools.cache
def _file(module: str) -> Path | None:
    """Of a module that is written in Python."""
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec and not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    folders = spec.submodule_search_locations or [] if spec else []
    places = [Path(folder, *rest) for folder in folders]
    files = [file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))]
    return next((file for file in files if file.is_file()), None)
