"""The template where it lies: real Python, no Jinja in it, and nothing that does not belong."""

from __future__ import annotations

import ast
import html
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import CHOICES, PROJECT, QUESTIONS, ROOT, commit, copy_template, run

from ml_template.answers import WINDOWS_DEVICES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())


def project_files() -> list[Path]:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", ".", cwd=PROJECT).output
    return sorted(file for name in listed.split("\0") if name and (file := PROJECT / name).is_file())


def test_no_python_of_the_project_holds_jinja() -> None:
    files = [file for file in project_files() if file.suffix == ".py"]
    assert len(files) > 15
    for file in files:
        text = file.read_text(encoding="utf-8")
        ast.parse(text)
        assert "{{" not in text, file
        assert "{%" not in text, file


def test_every_file_is_what_its_suffix_says_before_rendering() -> None:
    for file in project_files():
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".toml":
            tomllib.loads(text)
        elif file.suffix == ".yaml":
            yaml.safe_load(text)


# RUF200: the version of torch in pyproject.toml is a Jinja value until it is rendered. Examples lie deeper than later
WHERE_IT_LIES = (
    "check", "--extend-select", "E501", "--ignore", "RUF200", "--extend-per-file-ignores", "examples/*/tests/*:S101",
    "--config", 'lint.isort.known-first-party=["ml_project"]',
)  # fmt: skip


@pytest.mark.parametrize("tool", [WHERE_IT_LIES, ("format", "--check")], ids=["check", "format"])
def test_the_project_is_ruff_clean_where_it_lies(tool: tuple[str, ...]) -> None:
    run(sys.executable, "-m", "ruff", *tool, "--no-cache", ".", cwd=PROJECT)


def test_the_template_itself_is_clean(tmp_path: Path) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=ROOT)
    run(sys.executable, "-m", "ruff", "format", "--check", "--no-cache", ".", cwd=ROOT)
    run(sys.executable, "-m", "mypy", "--cache-dir", tmp_path, cwd=ROOT)


def test_every_question_has_a_prompt_and_every_choice_a_reason_to_take_it() -> None:
    prompts = QUESTIONS["__prompts__"]
    for name in (name for name in QUESTIONS if not name.startswith("_")):
        assert name in prompts
        if name in CHOICES and name != "python_version":
            assert set(CHOICES[name]) <= set(prompts[name])


def test_the_table_has_a_row_for_every_build() -> None:
    assert list(QUESTIONS["_builds"]) == [build for build in CHOICES["cuda"] if build != "auto"]


def test_nothing_else_lies_among_the_hooks() -> None:
    # cookiecutter runs anything called post_gen_project.*, a backup copy included
    names = sorted(file.name for file in (ROOT / "hooks").iterdir())
    assert names == ["post_gen_project.py", "pre_gen_project.py", "pre_prompt.py"]


def test_hooks_import_the_standard_library_only_and_print_ascii() -> None:
    for file in (ROOT / "hooks").iterdir():
        text = file.read_text(encoding="utf-8")
        assert text.isascii()
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in sys.stdlib_module_names for name in names), file


def test_readmes_are_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
    for page in PAGES:
        if page.name != "decisions.md":
            assert len(page.read_text(encoding="utf-8").splitlines()) < 120, page


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_questions_are_json_that_a_person_can_read() -> None:
    assert json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["project_name"] == "My Project"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?://", target)]
    for target in linked:
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings], target
    if page.name != "comparison.md":  # which names the files of others
        for name in re.findall(r"`((?:docs|tests|ml_template|hooks|benchmarks|\.github)/[^`\s<*]+)`", text):
            assert (ROOT / name).exists() or (PROJECT / name).exists(), name


@pytest.mark.parametrize("name", ["prompts", "doctor"])
def test_a_picture_shows_what_the_terminal_printed(name: str) -> None:
    picture = (ROOT / f"docs/images/{name}.svg").read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<text [^>]*terminal-line-[^>]*>([^<]*)</text>", picture))
    printed = (ROOT / f"docs/{name}.txt").read_text(encoding="utf-8")
    assert "".join(html.unescape(drawn).split()) == "".join(printed.split()), "Run: .venv/bin/python docs/picture.py"
    assert set(re.findall(r"https?://[^/\s\"]+", picture)) <= {  # names, which nobody asks; and what was printed
        "http://www.w3.org", "https://www.textualize.io", *re.findall(r"https?://[^/\s]+", printed)
    }  # fmt: skip
    assert "@font-face" not in picture


def test_the_picture_of_the_doctor_has_every_check() -> None:
    code = (PROJECT / "src/runengine/machine/doctor.py").read_text(encoding="utf-8")
    names = re.findall(r'^    Check\("([^"]+)"', code, re.MULTILINE)
    printed = (ROOT / "docs/doctor.txt").read_text(encoding="utf-8")
    shown = re.findall(r"^(\S.{13}) (?:ok|fail|skip|unknown) ", printed, re.MULTILINE)
    assert [name.rstrip() for name in shown] == names, "Make docs/doctor.txt again as docs/maintaining.md says"
    assert f"![The doctor: {len(names)} checks, " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_of_options_has_every_question_every_choice_and_every_build() -> None:
    page = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n?)*)", page, re.MULTILINE))
    for name in (name for name in QUESTIONS if not name.startswith("_")):
        (section,) = [text for heading, text in sections.items() if f"`{name}`" in heading]
        if name in CHOICES:
            assert sorted(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) == sorted(CHOICES[name]), name
    for name, build in QUESTIONS["_builds"].items():
        least, greatest = build.get("capability", ["-", "-"])
        arm = " to ".join(limit or "newest" for limit in build.get("aarch64", ["-"]))
        limits = f"{build.get('driver', '-')} | {least} | {greatest or 'newest'} | {arm}"
        assert f"| {name} | `torch{build['torch']}` | {build['tested']} | {limits} |" in sections["The PyTorch builds"]


def test_the_workflows_are_safe_and_fit_their_schema() -> None:
    tools = Path(sys.executable).parent
    run(tools / "zizmor", "--offline", "--no-progress", "--strict-collection", ROOT / ".github", cwd=ROOT)
    for schema, files in {
        "vendor.github-workflows": WORKFLOWS,
        "vendor.dependabot": [ROOT / ".github/dependabot.yml"],
    }.items():
        run(tools / "check-jsonschema", "--builtin-schema", schema, *files, cwd=ROOT)
    for file in WORKFLOWS:
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            assert job["timeout-minutes"] <= 120
            assert job["permissions"] == {"contents": "read"}
            for step in job["steps"]:
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False


def test_the_workflows_run_what_is_here() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets += re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    text = "\n".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    called = re.findall(r"\bmake (?:-C \S+ )?([a-z-]+)", text)
    assert called
    assert set(called) <= set(targets)
    for name in re.findall(r"tests/\w+\.py|\.ci/\w+", text):
        assert (ROOT / name).is_file(), name
    (matrix,) = re.findall(r"^ *env_manager: (\[.*\])$", text, re.MULTILINE)
    assert sorted(yaml.safe_load(matrix)) == sorted(set(CHOICES["env_manager"]) - {"auto"})
    (matrix,) = re.findall(r"^ *python: (\[.*\])$", text, re.MULTILINE)
    assert yaml.safe_load(matrix) == [version for version in CHOICES["python_version"] if version != "auto"]


def test_windows_can_have_every_file_and_gets_it_with_the_same_lines(tmp_path: Path) -> None:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).output
    names = [name for name in listed.split("\0") if name]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert not re.search(r'[<>:"|?*\\\x00-\x1f]|[. ](/|$)', name), name
        for part in name.split("/"):
            assert part.split(".")[0].lower() not in WINDOWS_DEVICES, name
        assert len(name) < 120, name  # of 260 letters, with the user's folder before it
    copy_template(tmp_path / "here", ".gitattributes", "Makefile")
    commit(tmp_path / "here")
    run("git", "clone", "-q", "-c", "core.autocrlf=true", tmp_path / "here", tmp_path / "there", cwd=tmp_path)
    cloned = [file for file in (tmp_path / "there").rglob("*") if file.is_file() and ".git" not in file.parts]
    assert len(cloned) > 50
    assert [file for file in cloned if b"\r\n" in file.read_bytes()] == []


def test_the_generators_own_code_names_the_encoding_of_every_text_file() -> None:
    for file in [*(ROOT / "hooks").glob("*.py"), *(ROOT / "ml_template").glob("*.py")]:  # Windows has another default
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if name in ("read_text", "write_text") or (name == "open" and not any("b" in mode for mode in modes)):
                assert "encoding" in [keyword.arg for keyword in node.keywords], ast.unparse(node)


def test_make_gives_every_command_to_a_shell() -> None:
    # macOS's make 3.81 starts a simple command itself, and looks for it on the PATH from before `export PATH`
    assert "\nSHELL := /bin/bash\n" in (PROJECT / "Makefile").read_text(encoding="utf-8")
