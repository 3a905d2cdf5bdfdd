"""Every choice, alone and with every other, gives the same clean project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import CHOICES, ENGINE, PROJECT, QUESTIONS, Bake, Project, choices, pairs, run

FILES = """\
.devcontainer/Dockerfile .devcontainer/devcontainer.json .dockerignore .dvc/.gitignore .dvc/config .dvcignore
.env.example .gitattributes .gitignore .pre-commit-config.yaml .vscode/launch.json CITATION.cff Dockerfile LICENSE
AGENTS.md Makefile README.md docs/another-task.md docs/api.md docs/bench.md docs/bring-your-own-data.md docs/conf.py
docs/configuration.md docs/clouds.md docs/containers.md docs/documentation.md docs/engine.md docs/experiment.md
docs/from-lightning-hydra-template.md docs/index.md docs/kubernetes.md docs/metric.md docs/model-card.md
docs/model.md docs/notebook.md
docs/recipes.md docs/reference.py docs/remote.md docs/reproducibility.md docs/setting.md docs/slurm.md docs/sweep.md
docs/tools.md docs/tracking.md docs/troubleshooting.md dvc.yaml environment.mk notebooks/first_look.ipynb pipeline.yaml
pyproject.toml scripts/activate.sh scripts/audit.py scripts/data_remote.py scripts/switch.sh scripts/train.sbatch
scripts/wheelhouse.py
src/PACKAGE/__init__.py src/PACKAGE/data.py src/PACKAGE/evaluate.py src/PACKAGE/model.py
src/PACKAGE/predict.py src/PACKAGE/prepare.py src/PACKAGE/task.py src/PACKAGE/train.py
src/PACKAGE/conf/__init__.py src/PACKAGE/conf/experiment/smoke.yaml src/PACKAGE/conf/optimizer/adamw.yaml
src/PACKAGE/conf/optimizer/sgd.yaml src/PACKAGE/conf/prepare.yaml
src/PACKAGE/conf/search/default.yaml src/PACKAGE/conf/train.yaml
tests/conftest.py tests/test_data.py tests/test_model.py tests/test_run.py tests/test_settings.py
"""  # and those of the engine, as they are in the template
MORE_FILES = (
    "docs/augmentation.md src/PACKAGE/plots.py "
    "src/PACKAGE/conf/lr_scheduler/cosine.yaml src/PACKAGE/conf/lr_scheduler/one_cycle.yaml "
    "src/PACKAGE/conf/lr_scheduler/plateau.yaml "
)
EXAMPLE_FILES = {
    "images": MORE_FILES
    + (
        "docs/folds.md docs/rare-classes.md "
        "src/PACKAGE/datasets.py src/PACKAGE/images.py src/PACKAGE/tables.py "
        "src/PACKAGE/conf/model/mlp.yaml src/PACKAGE/conf/data/digits.yaml "
        "src/PACKAGE/conf/data/fashion_mnist.yaml src/PACKAGE/conf/data/images.yaml src/PACKAGE/conf/data/table.yaml "
        "src/PACKAGE/conf/model/cnn.yaml src/PACKAGE/conf/dataset/digits.yaml "
        "src/PACKAGE/conf/dataset/fashion_mnist.yaml src/PACKAGE/conf/dataset/images.yaml "
        "src/PACKAGE/conf/dataset/table.yaml"
    ),
    "table": MORE_FILES
    + (
        "docs/folds.md src/PACKAGE/conf/model/mlp.yaml src/PACKAGE/columns.py "
        "src/PACKAGE/conf/data/csv.yaml src/PACKAGE/conf/data/diabetes.yaml "
        "src/PACKAGE/conf/dataset/csv.yaml src/PACKAGE/conf/dataset/diabetes.yaml src/PACKAGE/conf/model/linear.yaml"
    ),
    "text": MORE_FILES
    + (
        "src/PACKAGE/conf/data/text.yaml src/PACKAGE/conf/data/topics.yaml src/PACKAGE/conf/dataset/text.yaml "
        "src/PACKAGE/conf/dataset/topics.yaml src/PACKAGE/conf/model/gpt.yaml"
    ),
    "minimal": "docs/segmentation.md src/PACKAGE/conf/data/points.yaml src/PACKAGE/conf/model/linear.yaml",
}
# none of these is left in a project that learns something else
NOT_OF_IMAGES = {
    ".pre-commit-config.yaml", "LICENSE",  # hexadecimal digits
    "docs/another-task.md", "docs/segmentation.md",  # are about other tasks, too
}  # fmt: skip
OF_IMAGES = re.compile(
    r"digits|\bpixel|photo|\bcnn\b|accuracy|fashion|logit|softmax|(?<!ENGINE\) )(?<!example `)\bimages\b", re.IGNORECASE
)
ITS_OWN = {"text": re.compile(r"logits_B?N?T?K?|\blogits\b|softmax|MulticlassAccuracy", re.IGNORECASE)}

OWN_FILES = {
    "poetry": "poetry.toml",
    "conda": (
        "environment.yml scripts/setup_env.sh etc/conda/activate.d/project.fish etc/conda/activate.d/project.sh "
        "etc/conda/deactivate.d/project.fish etc/conda/deactivate.d/project.sh"
    ),
    "uv": "",
    "venv": "scripts/setup_env.py",
}
CI_FILES = {"none": "", "github": ".github/workflows/ci.yml", "gitlab": ".gitlab-ci.yml"}
TEAM_FILES = {
    "none": "CHANGELOG.md CODEOWNERS CONTRIBUTING.md SECURITY.md",
    "github": (
        ".github/ISSUE_TEMPLATE/bug.md .github/dependabot.yml .github/pull_request_template.md "
        ".github/workflows/gpu.yml .github/workflows/release.yml .github/workflows/weekly.yml"
    ),
    "gitlab": ".gitlab/issue_templates/bug.md .gitlab/merge_request_templates/default.md renovate.json",
}


def manager_of(project: Project) -> str:
    manager: str = tomllib.loads(project.text("pyproject.toml"))["tool"]["ml-template"]["env_manager"]
    return manager


def assert_clean(
    project: Project,
    package: str = "my_project",
    profile: str = "student",
    ci: str = "none",
    example: str = "images",
    **_: str,
) -> None:
    """Exactly the files it should have, each of the kind its name says, with nothing of the template left."""
    names = f"{FILES} {EXAMPLE_FILES[example]} {OWN_FILES[manager_of(project)]} {CI_FILES[ci]}".split()
    if profile == "team":
        names += {*TEAM_FILES["none"].split(), *TEAM_FILES[ci].split()}
    engine = [name for name in Project(PROJECT).files() if name.startswith(ENGINE) and "__pycache__" not in name]
    assert project.files() == sorted([*(name.replace("PACKAGE", package) for name in names), *engine])
    for name in engine:
        assert (project.path / name).read_bytes() == (PROJECT / name).read_bytes(), name
    for name in project.files():
        text = project.text(name)
        assert "{{" not in (text.replace("${{ ", "") if name.startswith(".github/") else text), name
        assert "{%" not in text, name
        assert name in engine or "cookiecutter" not in text, name  # the engine finds a newer one in a template
        if example != "images" and name not in engine and name not in NOT_OF_IMAGES:
            text = ITS_OWN[example].sub("", text) if example in ITS_OWN else text
            found = OF_IMAGES.search(text)
            assert not found, (name, text[found.start() - 60 : found.end() + 60])
        if "ml_project" not in package:
            assert "ml_project" not in text, name
        if name.endswith(".toml"):
            tomllib.loads(text)
        elif name.endswith((".cff", ".yaml", ".yml")):
            yaml.safe_load(text)
        elif name.endswith(".json"):
            json.loads(text)
    for tool in (["check"], ["format", "--check"]):
        run(sys.executable, "-m", "ruff", *tool, "--no-cache", ".", cwd=project.path)


@pytest.mark.parametrize("answers", choices(), ids=lambda answers: "-".join(answers.values()))
def test_every_choice_gives_a_clean_project(bake: Bake, answers: dict[str, str]) -> None:
    assert_as_answered(bake(**answers), answers)


@pytest.mark.parametrize("answers", list(pairs()), ids=lambda answers: "-".join(answers.values()))
def test_every_pair_of_choices_gives_a_clean_project(bake: Bake, answers: dict[str, str]) -> None:
    assert_as_answered(bake(**answers), answers)


def assert_as_answered(project: Project, answers: dict[str, str]) -> None:
    assert_clean(project, **answers)
    settings = tomllib.loads(project.text("pyproject.toml"))
    chosen = settings["tool"]["ml-template"]
    for question in ("python_version", "env_manager", "cuda"):
        got = chosen["python" if question == "python_version" else question]
        wanted = answers.get(question, "auto")
        assert got in CHOICES[question]
        assert got != "auto"
        assert wanted in ("auto", got)
    build = QUESTIONS["_builds"][chosen["cuda"]]
    assert chosen["torch"] == build["tested"]
    assert chosen["driver"] == build.get("driver", "")
    assert chosen["capability"] == "-".join(build.get("capability", []))
    assert chosen["torch_index"] == f"{QUESTIONS['pytorch_index']}/{chosen['cuda']}"
    assert f"torch{build['torch']}" in settings["project"]["dependencies"]
    remote = answers.get("data_remote", CHOICES["data_remote"][0])
    dvc = "dvc" if remote == "local" else f"dvc[{remote}]"
    assert [name for name in settings["project"]["dependencies"] if name.startswith(f"{dvc}>=")]
    address = "../../my-project-data" if remote == "local" else f"{remote}://CHANGE-ME/my-project"
    assert f'url = "{address}"\n' in project.text(".dvc/config")


@pytest.mark.parametrize("example", CHOICES["example"])
@pytest.mark.parametrize("package", ["a", "my_ml_project", "x" * 63])
def test_the_length_of_the_package_name_does_not_matter(bake: Bake, package: str, example: str) -> None:
    assert_clean(bake(package_name=package, example=example), package, example=example)


@pytest.mark.parametrize("example", CHOICES["example"][1:])
def test_an_example_replaces_what_is_there(example: str) -> None:
    """Each file that it takes away, and each passage that it says otherwise, stands in the project as it lies."""
    settings = json.loads((PROJECT / "examples" / example / "example.json").read_text(encoding="utf-8"))
    for pattern in settings["replaces"]:
        assert list(PROJECT.glob(pattern)), pattern
    files = [
        file
        for folder in (".", "docs", "scripts", "src/ml_project")
        for file in PROJECT.glob(f"{folder}/*")
        if file.is_file()
    ]
    texts = [file.read_bytes() for file in files]
    for passage in settings["words"]:
        assert any(passage.encode() in text for text in texts), passage


@pytest.mark.parametrize("example", CHOICES["example"])
def test_what_assistants_are_told_is_there(bake: Bake, example: str) -> None:
    """Each target, file, module and setting that AGENTS.md names."""
    project = bake(example=example)
    said = re.findall(r"`([^`]+)`", project.text("AGENTS.md"))
    made = {"data/", "runs/", ".env", "train/", "val/", "test/"}  # later, or the beginning of a metric's name
    targets = re.findall(r"^([a-z-]+):", project.text("Makefile") + project.text("environment.mk"), re.MULTILINE)
    assert len(said) > 40
    for words in map(str.split, said):
        if words[0] == "make":
            assert {word for word in words[1:] if word.islower() and "=" not in word} <= set(targets), words
        elif words[:2] == ["python", "-m"]:
            assert (project.path / f"src/{words[2].replace('.', '/')}.py").is_file(), words
        elif len(words) == 1 and ("/" in words[0] or re.search(r"\.(py|md|toml|yaml)$", words[0])):
            places = (project.path / words[0], project.path / "src/my_project" / words[0])
            assert words[0] in made or any(place.exists() for place in places), words


@pytest.mark.parametrize(("license_", "line"), [
    ("MIT", "Copyright (c) Zoë ml_project"),
    ("BSD-3-Clause", "Copyright (c) Zoë ml_project"),
    ("Apache-2.0", "Apache License"),
    ("Proprietary", "Copyright (c) Zoë ml_project. All rights reserved."),
])  # fmt: skip
def test_the_license_is_the_one_chosen(bake: Bake, license_: str, line: str) -> None:
    project = bake(license=license_, author_name="Zoë ml_project")
    assert line in (text.strip() for text in project.text("LICENSE").splitlines())
    spdx = tomllib.loads(project.text("pyproject.toml"))["project"]["license"]
    assert spdx == ("LicenseRef-Proprietary" if license_ == "Proprietary" else license_)


def test_the_same_answers_give_the_same_bytes(bake: Bake) -> None:
    first = bake()
    content = {name: (first.path / name).read_bytes() for name in first.files()}
    shutil.rmtree(first.path)
    second = bake()
    assert {name: (second.path / name).read_bytes() for name in second.files()} == content


def test_generation_needs_no_network(template: Path, tmp_path: Path, config_file: Path) -> None:
    if sys.platform != "linux" or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0:
        pytest.skip("this system cannot take the network away from a process (unshare -rn)")
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {tmp_path}"
    answer = run("unshare", "-rn", *command.split(), cwd=tmp_path)
    assert "my-project is ready:" in answer.output


def test_the_last_words_say_what_was_chosen_why_and_what_to_type(
    template: Path, tmp_path: Path, config_file: Path, bare_machine: Path
) -> None:
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {tmp_path}"
    other = "3.12" if sys.version_info[:2] != (3, 12) else "3.13"
    answer = run(*command.split(), "license=MIT", f"python_version={other}", cwd=tmp_path)
    assert answer.output.isascii()
    assert re.search(rf"python_version +{other} +as you chose\n", answer.output)
    assert re.search(r"env_manager +venv +neither poetry, conda nor uv is here\n", answer.output)
    assert answer.output.endswith("  cd my-project\n  make setup data train evaluate\n\n")


@pytest.mark.parametrize(("typed", "written"), [
    ("/mnt/all of us/data", "/mnt/all of us/data"), ("~/data", "~/data"), ("store", "../store")
])  # fmt: skip
def test_a_folder_of_data_is_where_it_was_said_to_be(bake: Bake, typed: str, written: str) -> None:
    assert f'url = "{written}"\n' in bake(data_remote_url=typed).text(".dvc/config")


def test_a_manager_brings_its_own_settings(bake: Bake, tmp_path: Path) -> None:
    index = "http://127.0.0.1:1/mirror"
    poetry = tomllib.loads(bake(env_manager="poetry", cuda="cu126", pytorch_index=index).text("pyproject.toml"))["tool"]
    assert poetry["poetry"]["source"][1] == {
        "name": "pytorch-cu126",
        "url": f"{index}/cu126",
        "priority": "explicit",
    }
    uv = tomllib.loads(bake(project_slug="b", env_manager="uv", cuda="cu130").text("pyproject.toml"))["tool"]
    assert uv["uv"]["index"][0]["url"] == "https://download.pytorch.org/whl/cu130"
    assert "dependency-groups" not in tomllib.loads((tmp_path / "out/b/pyproject.toml").read_text(encoding="utf-8"))
    venv = tomllib.loads(bake(project_slug="c", env_manager="venv").text("pyproject.toml"))["tool"]
    assert not {"uv", "poetry"} & venv.keys()


@pytest.mark.parametrize(("cuda", "triton", "versions"), [
    ("rocm7.2", "triton-rocm", ">=3.7,<3.9"), ("xpu", "triton-xpu", ">=3.7,<3.8"),
])  # fmt: skip
def test_a_build_with_its_own_triton_takes_it_from_the_same_index(
    bake: Bake, cuda: str, triton: str, versions: str
) -> None:
    marker = "sys_platform != 'darwin'"
    poetry = tomllib.loads(bake(project_slug="a", env_manager="poetry", cuda=cuda).text("pyproject.toml"))
    assert poetry["tool"]["poetry"]["source"][1]["url"] == f"https://download.pytorch.org/whl/{cuda}"
    assert poetry["tool"]["poetry"]["group"]["triton"]["dependencies"] == {
        triton: {"version": versions, "source": f"pytorch-{cuda}", "markers": marker}
    }
    uv = tomllib.loads(bake(project_slug="b", env_manager="uv", cuda=cuda).text("pyproject.toml"))
    assert uv["dependency-groups"] == {"triton": [f"{triton}{versions}; {marker}"]}
    assert uv["tool"]["uv"]["default-groups"] == ["triton"]
    assert uv["tool"]["uv"]["sources"][triton] == {"index": "pytorch"}
    for other in (poetry, uv):
        assert triton not in json.dumps(other["project"])


def nvidia_smi(folder: Path, line: str) -> None:
    if sys.platform != "linux":
        pytest.skip("a script stands in for nvidia-smi, which Windows does not start; a Mac has no such GPUs")
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_what_this_machine_has_is_taken_without_a_question(bake_after_a_look: Bake, bare_machine: Path) -> None:
    nvidia_smi(bare_machine, "535.183.01, 8.0, 40960 MiB, NVIDIA A100-SXM4-40GB")
    (bare_machine / "uv").symlink_to("/bin/true")
    settings = tomllib.loads(bake_after_a_look().text("pyproject.toml"))
    assert settings["tool"]["ml-template"]["cuda"] == "cu126"
    assert settings["tool"]["ml-template"]["env_manager"] == "uv"
    assert "torch>=2.13,<2.15" in settings["project"]["dependencies"]


def test_an_answer_from_the_command_line_wins_over_what_was_detected(
    bake_after_a_look: Bake, bare_machine: Path
) -> None:
    nvidia_smi(bare_machine, "580.65.06, 9.0, 81559 MiB, NVIDIA H100")
    assert tomllib.loads(bake_after_a_look(cuda="cpu").text("pyproject.toml"))["tool"]["ml-template"]["cuda"] == "cpu"


def test_the_users_own_defaults_win_over_what_was_detected(
    bake_after_a_look: Bake, bare_machine: Path, config_file: Path
) -> None:
    nvidia_smi(bare_machine, "580.65.06, 9.0, 81559 MiB, NVIDIA H100")
    own = {"license": "Apache-2.0", "cuda": "cu126", "env_manager": "conda", "author_name": "Ada"}
    config_file.write_text(config_file.read_text() + yaml.safe_dump({"default_context": own}), encoding="utf-8")
    settings = tomllib.loads(bake_after_a_look().text("pyproject.toml"))
    assert settings["project"]["license"] == "Apache-2.0"
    assert settings["project"]["authors"][0]["name"] == "Ada"
    assert settings["tool"]["ml-template"]["cuda"] == "cu126"
    assert settings["tool"]["ml-template"]["env_manager"] == "conda"


@pytest.mark.parametrize(("line", "cuda", "warning"), [
    (
        "580.65.06, 12.0, 32607 MiB, NVIDIA RTX 5090", "cu126",
        "as you chose. Not for this machine: no code for NVIDIA RTX 5090 (compute capability 12.0, greatest 9.0). "
        "Update the driver, or choose what `auto` recommends; keep it if the project will run elsewhere.",
    ),
    (
        "550.54.14, 9.0, 81559 MiB, NVIDIA H100", "cu132",
        "as you chose. Not for this machine: driver 550.54.14 is older than 580, which CUDA 13.2 needs. "
        "Update the driver, or choose what `auto` recommends; keep it if the project will run elsewhere.",
    ),
])  # fmt: skip
def test_a_build_that_does_not_run_here_is_generated_with_a_warning(
    template: Path, tmp_path: Path, config_file: Path, bare_machine: Path, line: str, cuda: str, warning: str
) -> None:
    nvidia_smi(bare_machine, line)
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {tmp_path}"
    answer = run(*command.split(), f"cuda={cuda}", cwd=tmp_path)
    assert f"  cuda            {cuda}  {warning}\n" in answer.output
