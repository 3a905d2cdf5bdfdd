"""Answers: `auto` becomes a value with a reason, bad ones are refused in one sentence, odd ones stay data."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, QUESTIONS, Bake, run
from test_generation import assert_clean

from ml_template import answers, machine

REFUSED = {
    "project_slug=../x": (
        "project_slug names a folder: 1 to 63 small letters, digits and dashes, a dash neither first nor last, "
        "got '../x'. Try x."
    ),
    "project_slug=con": (
        "project_slug con is a device on Windows, where no folder can have this name. Try con-project."
    ),
    "package_name=3d": (
        "package_name must be 1 to 63 small letters, digits and underscores, a letter first, got '3d'. Try p_3d."
    ),
    "package_name=class": "package_name class is a keyword of Python. Try class_project.",
    "package_name=json": "package_name json is a module of Python's standard library. Try json_project.",
    "package_name=torch": "package_name torch is a package the project itself uses. Try torch_project.",
    "package_name=runengine": "package_name runengine is a package the project itself uses. Try runengine_project.",
    "package_name=hydra_plugins": (
        "package_name hydra_plugins is a package the project itself uses. Try hydra_plugins_project."
    ),
    "project_slug=runengine": "project_slug runengine is a package the project itself uses. Try runengine-project.",
    "project_slug=hydra-plugins": (
        "project_slug hydra-plugins is a package the project itself uses. Try hydra-plugins-project."
    ),
    "project_slug=mlflow": "project_slug mlflow is a package the project itself uses. Try mlflow-project.",
    "package_name=nul": "package_name nul is a device on Windows. Try nul_project.",
    "package_name=ml_project": "package_name ml_project is the template's own placeholder. Try ml_project_project.",
    "project_name=a\nb": "project_name must be one line of text, got the control character '\\n'. Leave it out.",
    "author_name=a\x1bb": "author_name must be one line of text, got the control character '\\x1b'. Leave it out.",
    "description= ": "description is empty. Give it a value, or press Enter to take the suggestion.",
    f"description={'x' * 201}": "description must have at most 200 characters, got 201. Shorten it.",
    "pytorch_index=$(id)": (
        "pytorch_index must be an address such as https://download.pytorch.org/whl, got '$(id)'. "
        "Press Enter to take the official one."
    ),
    "pytorch_index=https://user:secret@mirror/whl": (
        "pytorch_index contains a user's name or a password, and every copy of the project would, too. Leave it out; "
        "pip and uv read ~/.netrc, Poetry has: poetry config http-basic."
    ),
    "data_remote_url=s3://key:secret@bucket": (
        "data_remote_url contains a password or a key, and every copy of the project would, too. Leave it out; "
        "later: dvc remote modify --local data, which Git ignores, or environment variables."
    ),
    "data_remote_url=s3://bucket/x": (
        "data_remote_url must be a folder such as ../my-project-data, got 's3://bucket/x'. "
        "Press Enter to take the suggestion; it can be changed later."
    ),
}  # fmt: skip

NASTY = [
    "L'Été d'O'Brien: 日本 \"x\"",
    "'; import os; os.system('touch /tmp/pwned') #",
    '"""; raise SystemExit #',
    "back\\slash \\n \\u0041 \\",
    "🎉 emoji 👩‍🔬 and \u200b invisible \ufeff",
    "{% raw %} {# comment #} ${HOME} $(id) `id` %PATH%",
    "ml_project and my_ml_project",
    "<script>alert(1)</script> & [link](x) | # --- ...",
    "yes", "null", "0x10", "1e3", "~", "- a", "key: value", "!tag", "*alias", "@at", "%dir",
]  # fmt: skip


@pytest.mark.parametrize(("typed", "sentence"), REFUSED.items(), ids=lambda text: ascii(text)[:40])
def test_a_refused_answer_gets_one_sentence_and_leaves_nothing(
    template: Path, tmp_path: Path, config_file: Path, typed: str, sentence: str
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {output}"
    answer = run(*command.split(), typed, cwd=tmp_path, expect=1)
    assert answer.output.splitlines() == [sentence]
    assert list(output.iterdir()) == []


def test_a_build_that_conda_forge_lacks_is_refused_and_the_answer_that_is_named_gives_it(
    template: Path, tmp_path: Path, config_file: Path
) -> None:
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {tmp_path}"
    printed = run(*command.split(), "cuda=rocm7.2", "env_manager=conda", cwd=tmp_path, expect=1).output
    assert printed == (
        "cuda=rocm7.2 needs env_manager=poetry, uv or venv, got conda: conda-forge has no such build of PyTorch. "
        "Give env_manager=venv; in a project that is: make switch CUDA=rocm7.2 ENV=venv.\n"
    )
    assert not (tmp_path / "my-project").exists()
    (named,) = re.findall(r"Give (\S+=\w+);", printed)
    assert "my-project is ready:" in run(*command.split(), "cuda=rocm7.2", named, cwd=tmp_path).output


def write_replay(template: Path, folder: Path, **given: str) -> Path:
    """A replay file with these answers as a person would have typed them: cookiecutter takes them as they are."""
    content = {name: value for name, value in QUESTIONS.items() if name != "__prompts__"}
    content |= {"project_slug": "my-project", "package_name": "my_project", "license": "MIT"}
    content |= {"python_version": "3.11", "env_manager": "venv", "cuda": "cpu"}
    content |= {"data_remote": "local", "data_remote_url": "../my-project-data"}
    content |= {"example": "images", "profile": "student", "ci": "none", **given}
    answers.resolve(content)
    (folder / "replay").mkdir(exist_ok=True)
    file = folder / "replay" / f"{template.name}.json"
    file.write_text(json.dumps({"cookiecutter": content}), encoding="utf-8")
    return file


@pytest.mark.parametrize("text", [*NASTY, "{{ 7*7 }}", "{{ cookiecutter.__class__ }}"])
def test_odd_answers_are_data_everywhere(template: Path, tmp_path: Path, config_file: Path, text: str) -> None:
    given = dict.fromkeys(("project_name", "description", "author_name", "author_email"), text)
    write_replay(template, tmp_path, **given)
    (tmp_path / "out").mkdir()
    command = f"{sys.executable} -m cookiecutter {template} --replay --config-file {config_file} -o {tmp_path / 'out'}"
    run(*command.split(), cwd=tmp_path)
    project = tmp_path / "out/my-project"
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert settings["description"] == text
    assert settings["authors"] == [{"name": text, "email": text}]
    assert text in (project / "LICENSE").read_text(encoding="utf-8")
    assert not Path("/tmp/pwned").exists()  # noqa: S108
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=project)


@pytest.mark.parametrize("text", [text for text in NASTY if "{" not in text])
def test_odd_answers_by_command_line_are_data(bake: Bake, text: str) -> None:
    # with braces they are not: cookiecutter itself evaluates what comes by command line
    assert tomllib.loads(bake(description=text).text("pyproject.toml"))["project"]["description"] == text


def test_a_name_of_many_languages_gives_a_clean_project(bake: Bake) -> None:
    project = bake(project_name=NASTY[0])
    assert project.path.name == "l-ete-d-o-brien-x"
    assert_clean(project, "l_ete_d_o_brien_x")
    assert project.text("README.md").splitlines()[0] == f"# {NASTY[0]}"


IMPOSSIBLE = [
    ("package_name", "class", "package_name class is a keyword of Python. Try class_project."),
    ("license", "WTFPL", "license must be one of Apache-2.0, BSD-3-Clause, MIT, Proprietary, got 'WTFPL'. CHOOSE"),
    ("env_manager", "../../x", "env_manager must be one of auto, conda, poetry, uv, venv, got '../../x'. CHOOSE"),
    (
        "env_manager",
        "conda",
        "cuda=xpu needs env_manager=poetry, uv or venv, got conda: conda-forge has no such build of PyTorch. "
        "Give env_manager=venv; in a project that is: make switch CUDA=xpu ENV=venv.",
    ),
    ("ci", None, "ci must be one of github, gitlab, none, got None. CHOOSE"),
    ("profile", ["team"], "profile must be one of student, team, got ['team']. CHOOSE"),
    ("project_name", None, "project_name is empty. Give it a value, or press Enter to take the suggestion."),
    ("author_name", "a\udc80", "author_name must be one line of text, got half a character '\\udc80'. Leave it out."),
]


@pytest.mark.parametrize(("question", "answer", "sentence"), IMPOSSIBLE, ids=ascii)
def test_a_bad_replay_file_is_refused_and_leaves_nothing(
    template: Path, tmp_path: Path, config_file: Path, question: str, answer: object, sentence: str
) -> None:
    replay = write_replay(template, tmp_path, cuda="xpu")
    content = json.loads(replay.read_text())
    content["cookiecutter"][question] = answer
    replay.write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    command = f"{sys.executable} -m cookiecutter {template} --replay --config-file {config_file} -o {tmp_path / 'out'}"
    printed = run(*command.split(), cwd=tmp_path, expect=1).output
    assert printed == sentence.replace("CHOOSE", "Choose one of them.") + "\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_default_that_is_empty_gets_one_sentence(template: Path, tmp_path: Path, config_file: Path) -> None:
    config_file.write_text(f"{config_file.read_text()}default_context: {{project_name: null}}\n", encoding="utf-8")
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {tmp_path}"
    printed = run(*command.split(), cwd=tmp_path, expect=1).output
    assert printed == "project_name is empty. Give it a value, or press Enter to take the suggestion.\n"
    assert not (tmp_path / "my-project").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_template_that_cannot_be_written_gives_a_project_that_can(template: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(template, tmp_path / "ml-template")
    for file in copy.rglob("*"):
        if file.is_file():
            file.chmod(0o444)
    # root writes everywhere, but for these two capabilities
    root = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    command: list[str | Path] = [
        *root,
        sys.executable,
        "-m",
        "cookiecutter",
        copy,
        "--no-input",
        "--default-config",
        "-o",
        tmp_path,
    ]
    printed = run(*command, "license=Apache-2.0", cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}).output
    assert "my-project is ready:" in printed
    files = [file for file in (tmp_path / "my-project").rglob("*") if file.is_file()]
    assert [file for file in files if not file.stat().st_mode & 0o200] == []


def test_without_hooks_the_project_says_what_it_lacks(template: Path, tmp_path: Path, config_file: Path) -> None:
    options = ["--no-input", "--accept-hooks", "no", "--config-file", str(config_file), "-o", str(tmp_path)]
    run(sys.executable, "-m", "cookiecutter", template, *options, cwd=tmp_path)
    project = tmp_path / "my-project"
    printed = run("make", "setup", cwd=project, expect=2).output
    sentence = (
        "this is no project yet: the hooks of the template did not run. Generate it again, with --accept-hooks yes."
    )
    assert sentence in printed
    assert "is still called `ml_project`" in (project / "HOOKS_DID_NOT_RUN.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--overwrite-if-exists", "--skip-if-file-exists"])
def test_a_project_is_not_generated_over_another(
    template: Path, tmp_path: Path, config_file: Path, option: str
) -> None:
    theirs = tmp_path / "my-project/ci/any/theirs"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs", encoding="utf-8")
    options = ["--no-input", "--overwrite-if-exists", option, "--config-file", str(config_file)]
    printed = run(
        sys.executable, "-m", "cookiecutter", template, *options, "-o", tmp_path, cwd=tmp_path, expect=1
    ).output
    assert printed == (
        f"{tmp_path / 'my-project'} is not empty: files of two projects would be mixed. Give another project_slug, or "
        "bring that project up to date with: cruft update.\n"
    )
    assert [file for file in (tmp_path / "my-project").rglob("*") if file.is_file()] == [theirs]


@pytest.mark.parametrize(("name", "slug", "package"), [
    ("My Project", "my-project", "my_project"),
    ("  3D -- Vision! ", "3d-vision", "p_3d_vision"),
    ("日本", "my-project", "my_project"),
    ("Con", "con-project", "con_project"),
    ("Torch", "torch-project", "torch_project"),
    ("Scikit Learn", "scikit-learn-project", "scikit_learn_project"),
    ("class", "class", "class_project"),
    ("Runengine", "runengine-project", "runengine_project"),
    ("Å" * 100, "a" * 63, "a" * 63),
])  # fmt: skip
def test_names_follow_from_the_project_name(name: str, slug: str, package: str) -> None:
    assert (answers.slug(name), answers.package(answers.slug(name))) == (slug, package)


def test_no_package_is_called_as_something_the_project_imports() -> None:
    imported = set()
    for file in PROJECT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.partition(".")[0].lower() for name in names}
    assert len(imported) > 50
    assert [name for name in sorted(imported) if not answers._taken(name)] == []


def test_no_project_is_called_as_a_package_it_requires() -> None:
    """It would have to be installed for itself."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [each for extra in settings["optional-dependencies"].values() for each in extra]
    required += settings["dependencies"]
    assert len(required) > 30
    for requirement in required:
        name = re.split(r"[{\[>=]", requirement)[0]
        assert answers.slug(name) == f"{name}-project"
        with pytest.raises(answers.Refused, match=f"^project_slug {name} is a package the project itself uses"):
            answers._check_slug(name)


def test_any_project_name_gives_names_that_are_accepted() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(3000):
        name = "".join(chr(chance.choice((chance.randrange(32, 127), chance.randrange(160, 0x3000)))) for _ in range(9))
        slug = answers.slug(name)
        answers._check_slug(slug)
        answers._check_package(answers.package(slug))


def test_text_reads_back_the_same_in_every_language() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    planes = ((32, 127), (0xA0, 0x800), (0x800, 0xD800), (0xE000, 0xFFFE), (0x1F300, 0x1FAFF))
    for _ in range(3000):
        text = "".join(chr(chance.randrange(*chance.choice(planes))) for _ in range(chance.randrange(30)))
        text = text + chance.choice(("", "\\", '"', "'", "ml_project", "\u2028", "\x85"))
        quoted = f'"{answers.lit(text)}"'
        assert json.loads(quoted) == text
        assert tomllib.loads(f"x = {quoted}")["x"] == text
        assert yaml.safe_load(f"x: {quoted}")["x"] == text
        assert eval(quoted) == text  # noqa: S307


def test_git_names_the_author(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bake_after_a_look: Bake) -> None:
    config = tmp_path / "gitconfig"
    config.write_text('[user]\n name = "Ada \\"L\\" Löw"\n email = ada@example.com\n', encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    authors = tomllib.loads(bake_after_a_look().text("pyproject.toml"))["project"]["authors"]
    assert authors == [{"name": 'Ada "L" Löw', "email": "ada@example.com"}]


@pytest.mark.parametrize("name", ["{{ 7*7 }}", "x" * 201])
def test_a_git_name_that_cannot_be_an_answer_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bake_after_a_look: Bake, name: str
) -> None:
    subprocess.run(["git", "config", "--file", str(tmp_path / "gitconfig"), "user.name", name], check=True)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    assert (
        tomllib.loads(bake_after_a_look().text("pyproject.toml"))["project"]["authors"][0]["name"]
        == QUESTIONS["author_name"]
    )


def test_generation_goes_on_where_nothing_can_be_read_from_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bake_after_a_look: Bake
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert (
        tomllib.loads(bake_after_a_look().text("pyproject.toml"))["project"]["authors"][0]["name"]
        == QUESTIONS["author_name"]
    )


def test_the_module_prints_its_recommendations(bare_machine: Path) -> None:
    printed = run(sys.executable, "-m", "ml_template.machine", cwd=PROJECT.parent).output
    for question, (answer, reason) in machine.detect(QUESTIONS["_builds"])["recommended"].items():
        assert [question, answer, *reason.split()] in [line.split() for line in printed.splitlines()]
