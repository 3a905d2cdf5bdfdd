"""The parts of the pages that stand in the code already: settings, the doctor's checks, modules.

They are read when the pages are built, from the files themselves: nothing is imported that takes long.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runengine
from runengine.machine import check_computing, check_devices, check_gpu_state, check_setup, check_system, doctor
from runengine.settings import project
from runengine.settings.check import LIMITS, OPTIONAL
from runengine.settings.comments import Setting, groups, own_settings, read_option
from runengine.settings.console import size

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PACKAGE = project.current().folder
ENGINE = project.ENGINE_FOLDER
OF_TESTS = {"assert_resumes_exactly": "testing"}  # what of the engine only tests import
KINDS = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "text", "seq": "a list"}
DIRECTIVE = "{py:%s}"
UNKNOWN = "\u2026"  # what only the machine can tell
CHECKS = (check_computing, check_devices, check_gpu_state, check_setup, check_system)  # the modules that look
CONSTANTS = {name: value for module in CHECKS for name, value in vars(module).items() if name.isupper()}
Functions = dict[str, ast.FunctionDef]


def settings() -> str:
    """Every setting of every script, with its default, its range, and the comment next to it."""
    parts = []
    for file in sorted(project.current().conf.glob("*.yaml"), key=lambda file: (file.stem != "train", file.stem)):
        script = file.stem
        parts += [f"## {script}: settings outside of groups", *table(own_settings(file))]
        for group, (default, comment) in groups(file).items():
            parts += [f"## {script}: {group}", sentence(comment), f"Default: `{group}={default}`."]
            for name, choice in runengine.choices(group).items():
                option = read_option(choice, group)
                base = f"As `{group}={option.base}`, but:" if option.base else ""
                target = f"Builds `{option.target}`." if option.target else ""
                parts += [f"### {group}={name}", *paragraphs(option.about), target, base, *table(option.settings)]
    return "\n\n".join(part for part in parts if part)


def table(rows: list[Setting]) -> list[str]:
    if not rows:
        return []
    lines = ["| setting | default | may be | what |", "|---|---|---|---|"]
    for row in rows:
        limits = " and ".join(f"{sign} {limit}" for sign, limit in LIMITS.get(row.key, []))
        allowed = limits or (KINDS.get(row.kind, "") if not row.default.startswith("$") else "")
        if limits and row.key in OPTIONAL:
            allowed += ", or null"
        default = f"`{row.default}`" if row.default else ""
        cells = [f"`{row.key}`", default, escaped(allowed), escaped(row.comment)]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return ["\n".join(lines)]


def paragraphs(lines: list[str]) -> list[str]:
    """Comments as Markdown: a command is a line of code, an empty line begins a new paragraph."""
    parts: list[str] = []
    for line in lines:
        if line.startswith("python -m"):
            parts.append(f"    {line}")
        elif parts and parts[-1] and line and not parts[-1].startswith("    "):
            parts[-1] += f" {escaped(line)}"
        else:
            parts.append(escaped(line))
    return re.sub(r"(\n    .*)\n(?=\n    )", r"\1", "\n\n".join(filter(None, parts))).split("\n\n")


def sentence(text: str) -> str:
    return ended(text if "=" in text.split(" ")[0] else text[:1].upper() + text[1:])


def ended(text: str) -> str:
    return escaped(text) + ("." if text and text[-1] not in ".:" else "")


def escaped(text: str) -> str:
    """Text that means nothing to Markdown, but for `code`."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part[:1] == "`" and len(part) > 2 else re.sub(r"([\\`*_<>\[\]{}$#~])", r"\\\1", part)
                   for part in parts)  # fmt: skip


def checks() -> str:
    """What the doctor may say, check by check: its own sentences, with \u2026 for what the machine fills in."""
    trees = [parsed(Path(str(module.__file__))) for module in CHECKS]
    functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    parts = []
    for check in doctor.CHECKS:
        parts.append(f"## {check.name}")
        for found, why, *fixes in dict.fromkeys(sentences(functions[check.look.__name__], functions)):
            parts.append(
                f"**{escaped(found)}**" if found.strip(f"{UNKNOWN}: ") else "*It says this in the machine's own words.*"
            )
            parts.append(f"{sentence(why)}{' One of these fixes it:' if len(fixes) > 1 else ''}")
            for fix in fixes:
                lines = fix.splitlines()
                parts += [ended(line[2:]) for line in lines if line.startswith("# ")]
                commands = [line for line in lines if not line.startswith("# ") and line.strip(UNKNOWN)]
                parts.append("\n".join(f"    {command}" for command in commands))
    return "\n\n".join(part for part in parts if part)


def sentences(function: ast.FunctionDef, functions: Functions) -> Iterator[tuple[str, ...]]:
    """Of each `fail(found, why, fix)` in a check, and in the function that it hands the question to."""
    known = {
        target.id: node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in sorted(calls, key=lambda call: call.lineno):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name == "fail":
            found, why, fix = call.args
            yield words(found, known), words(why, known), *alternatives(fix, known)
        elif name == "compare":
            yield from sentences(functions[name], functions)


def alternatives(node: ast.expr, known: dict[str, ast.expr]) -> list[str]:
    """What fixes it, one way or the other."""
    if isinstance(node, ast.Name) and node.id in known:
        node = known[node.id]
    if isinstance(node, ast.IfExp):
        return [*alternatives(node.body, known), *alternatives(node.orelse, known)]
    return [words(node, known)]


def words(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """An expression that makes a text, as it reads before anything is known."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(words(value, known) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return words(node.value, known)
    if isinstance(node, ast.BinOp):
        return words(node.left, known) + words(node.right, known)
    if isinstance(node, ast.IfExp):
        ways = filter(None, (words(node.body, known), words(node.orelse, known)))
        return " / ".join(dict.fromkeys(ways))
    if isinstance(node, ast.Name) and node.id in known:
        rest = {name: value for name, value in known.items() if name != node.id}
        return words(known[node.id], rest)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "size":
        number = words(node.args[0], known)
        return size(float(number)) if number.isdigit() else UNKNOWN
    if isinstance(node, ast.Name) and isinstance(constant := CONSTANTS.get(node.id), str | int | float):
        return str(constant)
    return UNKNOWN


def modules() -> str:
    """Your modules and what they offer, then what the engine does: signatures carry shapes, docstrings carry units."""
    parts = []
    for file in sorted(PACKAGE.glob("[!_]*.py")):
        tree = parsed(file)
        parts += [f"## {file.stem}", block(":::", "module", f"{PACKAGE.name}.{file.stem}", []), markdown(tree)]
        parts += [described(node, 0) for node in tree.body]
    parts += [f"## {ENGINE.name}", block(":::", "module", ENGINE.name, []), markdown(parsed(ENGINE / "__init__.py"))]
    for name, module in {**runengine.HOMES, **OF_TESTS}.items():
        if module in OF_TESTS.values():
            parts += [f"## {ENGINE.name}.{module}", block(":::", "module", f"{ENGINE.name}.{module}", [])]
        body = parsed(ENGINE / f"{module.replace('.', '/')}.py").body
        parts += [described(node, 0) for node in body if getattr(node, "name", "") == name]
    return "\n\n".join(part for part in parts if part)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def described(node: ast.stmt, depth: int) -> str:
    """A function or class with a docstring as a directive; nothing for what is private or has none."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_") or not ast.get_docstring(node):
        return ""
    fence = ":" * (5 - depth)
    if isinstance(node, ast.ClassDef):
        inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        inner = [markdown(node), *(described(each, depth + 1) for each in node.body)]
        return block(fence, "class", node.name + (f"({arguments(inits[0])})" if inits else ""), inner)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list):
        return block(fence, "property", node.name, [markdown(node)])
    kind = "method" if depth else "function"
    return block(fence, kind, f"{node.name}({arguments(node)}){returns}", [markdown(node)])


def arguments(function: ast.FunctionDef) -> str:
    return re.sub(r"^(self|cls)(, )?", "", ast.unparse(function.args))


def block(fence: str, kind: str, signature: str, inner: list[str]) -> str:
    return "\n".join([f"{fence}{DIRECTIVE % kind} {signature}", "\n\n".join(filter(None, inner)), fence])


def markdown(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """A docstring as Markdown, which never fails: its sections become lists, what is indented is code."""
    lines, in_section = [], False
    for line in inspect.cleandoc(ast.get_docstring(node) or "").splitlines():
        name = re.fullmatch("(Args|Returns|Raises|Yields):", line)
        if name:
            in_section = True
            lines += ["", f"**{name[1]}**", ""]
        elif in_section and line.startswith("    "):
            lines.append(re.sub(r"^(\*{0,2}\w+): ", r"- `\1`: ", line[4:]) if line[4] != " " else f"  {line.strip()}")
        else:
            in_section = in_section and not line
            lines.append(re.sub("^#", r"\\#", line))
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "<!-- settings -->": settings,
    "<!-- checks -->": checks,
    "<!-- modules -->": modules,
}


def fill(app: Sphinx, page: str, content: list[str]) -> None:
    """Put the parts into the page that asks for them; a change of the code builds it again."""
    for mark, make in PARTS.items():
        if mark in content[0]:
            content[0] = content[0].replace(mark, make())
            for file in (*PACKAGE.rglob("*.*"), *ENGINE.rglob("*.*")):
                if file.suffix in (".py", ".yaml"):
                    app.env.note_dependency(str(file), docname=page)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
