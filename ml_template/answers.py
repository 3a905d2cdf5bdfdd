"""From answers to values: `auto` becomes a concrete choice with its reason, bad answers are refused in one sentence."""

from __future__ import annotations

import json
import keyword
import re
import runpy
import sys
import tomllib
import unicodedata
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

PLACEHOLDER = "ml_project"  # the package's name in the template: post_gen_project.py replaces it
NEVER_SET = "CHANGE-ME"  # no bucket can have this name; the project's scripts/data_remote.py asks for a real one
FREE_TEXT = ("project_name", "description", "author_name", "author_email")
ENGINE = ("hydra_plugins", "runengine")  # packages that stand next to the project's own
TEMPLATE = Path(__file__).resolve().parent.parent
PYPROJECT = TEMPLATE / "{{cookiecutter.project_slug}}" / "pyproject.toml"


def required() -> frozenset[str]:
    """The packages that a project's pyproject.toml names, as Python would import them: `pytorch_lightning`."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = [re.match(r"[A-Za-z0-9-]+", each) for one in lists for each in one]
    return frozenset(name[0].lower().replace("-", "_") for name in names if name).union(ENGINE, ["tensorflow_cpu"])


# A project of such a name would have to be installed for itself.
REQUIRED = required()
# What a project imports, too: under another name than it is installed by, or brought by others. A package of such a
# name would hide it.
IMPORTED = REQUIRED.union(
    """alembic codespell_lib conf conftest example filelock functorch hydra joblib lightning lightning_fabric
    mpl_toolkits mypyc pil pip py pydevd_plugins pylab pynvml ray reference setuptools sklearn sqlalchemy src
    submitit test tests torchgen torchvision wheel yaml""".split()  # noqa: SIM905
)
WINDOWS_DEVICES = frozenset(["aux", "con", "nul", "prn", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))])

REMEDY = "Update the driver, or choose what `auto` recommends; keep it if the project will run elsewhere."

Cookiecutter = MutableMapping[str, Any]


class Refused(ValueError):
    """A bad answer: the question, what was answered, what is wanted, what to do."""


def slug(text: object) -> str:
    """`L'Ete 2` -> `l-ete-2`: letters, digits and dashes; never empty."""
    ascii_text = (
        unicodedata.normalize("NFKD", str("" if text is None else text)).encode("ascii", "ignore").decode().lower()
    )
    name = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:63].strip("-") or "my-project"
    return f"{name}-project" if name in WINDOWS_DEVICES or name.replace("-", "_") in REQUIRED else name


def package(text: str) -> str:
    """`3d-vision` -> `p_3d_vision`: a name that Python can import."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    name = (name if name[:1].isalpha() else f"p_{name}")[:63].strip("_")
    return f"{name}_project" if _taken(name) else name


def remote_url(kind: str, slug: str) -> str:
    """The address that is suggested for DVC's remote: a folder works at once, the others need a name."""
    return f"../{slug}-data" if kind == "local" else f"{kind}://{NEVER_SET}/{slug}"


def lit(value: object) -> str:
    """The inside of a double-quoted string, right in Python, TOML, YAML and JSON alike.

    Characters that do not print are escaped; the placeholder too, so that the package's renaming leaves text alone.
    """
    text = json.dumps(str(value), ensure_ascii=False)[1:-1]
    escaped = "".join(c if c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in text)
    return escaped.replace(PLACEHOLDER, PLACEHOLDER.replace("_", "\\u005f"))


def md(value: object) -> str:
    """Escape text for Markdown, so that it makes no emphasis, link, code or HTML."""
    text = re.sub(r"([\\`*_<>\[\]{}|&~$#])", r"\\\1", str(value).strip())
    return re.sub(r"^(\d*)([-+.)=])", r"\1\\\2", text)  # at the start of a line these make lists and rules


def owner(email: object) -> str:
    """The address, if CODEOWNERS accepts it; otherwise nothing."""
    return str(email) if re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", str(email), re.ASCII) else ""


def resolve(answers: Cookiecutter) -> str:
    """Put a concrete value in the place of each `auto`, and refuse bad answers.

    Changes `answers` in place, before anything is rendered, so that files, hooks and the replay file agree.
    """
    kind, name = answers["data_remote"], answers["project_slug"]
    if NEVER_SET in answers["data_remote_url"] or answers["data_remote_url"] == remote_url("local", name):
        answers["data_remote_url"] = remote_url(kind, name)  # `cruft update` may bring that of another kind
    _check_all(answers)
    builds = answers["_builds"]
    detected = answers.get("_detected")  # set by pre_prompt.py, which cruft and `--accept-hooks no` do not run
    if not detected:
        detected = _detect(builds)
    recommended = dict(detected["recommended"])
    if answers["env_manager"] == "auto" and recommended["env_manager"][0] == "conda" and not _on_conda(answers):
        recommended = dict(_detect(builds, conda=False)["recommended"])
    for question in recommended:  # the build comes last
        if question == "cuda":
            recommended["cuda"] = detected["cuda"][answers["env_manager"]]
        answer, reason = recommended[question]
        if answers[question] == "auto":
            answers[question] = answer
        answers[f"__why_{question}"] = reason if answers[question] == answer else "as you chose"
    if misfits := detected["misfits"].get(answers["cuda"]):
        answers["__why_cuda"] = f"as you chose. Not for this machine: {'; '.join(misfits)}. {REMEDY}"
    build = builds[answers["cuda"]]
    answers["__bin"] = ".conda/bin" if answers["env_manager"] == "conda" else ".venv/bin"
    answers["__torch_version"] = build["tested"]
    answers["__torch_range"] = build["torch"]
    answers["__torch_index"] = f"{answers['pytorch_index'].rstrip('/')}/{answers['cuda']}"
    answers["__torch_driver"] = build.get("driver", "")
    answers["__torch_capability"] = "-".join(build.get("capability", []))
    url = answers["data_remote_url"]
    answers["__dvc_extra"] = "" if kind == "local" else f"[{kind}]"
    # DVC reads a folder from where its configuration lies
    answers["__dvc_url"] = f"../{url}" if kind == "local" and not url.startswith(("/", "~")) else url
    # its wheel wants CUDA 12 from pip; conda's libraries are others
    with_cuda = build.get("cuda", "").startswith("12.") and answers["env_manager"] != "conda"
    answers["__tensorflow"] = "[and-cuda]" if with_cuda else "-cpu"
    answers["__triton_name"], answers["__triton_range"] = build.get("triton", ("", ""))
    conda_torch, answers["__conda_cuda"] = build.get("conda", ("", ""))
    answers["__conda_torch"] = f"{conda_torch}{build['torch']}"
    image = "conda" if answers["env_manager"] == "conda" else answers["python_version"]
    answers["__manager"] = answers["_managers"].get(answers["env_manager"], "")
    answers["__image"] = answers["_images"][image]
    answers["__license_id"] = "LicenseRef-Proprietary" if answers["license"] == "Proprietary" else answers["license"]
    return ""


def _detect(builds: dict[str, Any], conda: bool = True) -> Any:
    return runpy.run_path(str(Path(__file__).with_name("machine.py")))["detect"](builds, conda)


def _on_conda(answers: Cookiecutter) -> bool:
    """Does conda-forge have this build of PyTorch? `auto` becomes one that it has."""
    return answers["cuda"] == "auto" or "conda" in answers["_builds"][answers["cuda"]]


def validate(answers: Cookiecutter) -> str:
    """Refuse bad answers of a replay file, which were not checked before, and a folder that holds something.

    The pre_gen hook calls it, when the project's folder has been made.

    Raises:
        cookiecutter.exceptions.ContextDecodingException: which cookiecutter prints as one line, with exit status 1.
            A FailedHookException of a hook would be printed under a traceback.
    """
    output = answers.get("_output_dir")  # cruft has none
    folder = Path(output, answers["project_slug"]) if output else None
    try:
        _check(answers)
        if folder and any(folder.iterdir()):
            raise Refused(
                f"{folder} is not empty: files of two projects would be mixed. Give another project_slug, or bring "
                "that project up to date with: cruft update."
            )
    except Refused as refusal:
        from cookiecutter.exceptions import ContextDecodingException

        if folder and not any(folder.iterdir()):
            folder.rmdir()
        raise ContextDecodingException(str(refusal)) from None
    return ""


def _check_all(answers: Cookiecutter) -> None:
    try:
        _check(answers)
    except Refused as refusal:
        from cookiecutter.exceptions import FailedHookException

        raise FailedHookException(str(refusal)) from None


def _check(answers: Cookiecutter) -> None:
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    for question, options in questions.items():  # a replay file can hold anything
        is_choice = isinstance(options, list) and not question.startswith("_")
        if is_choice and answers[question] not in options:
            wanted = ", ".join(sorted(options))
            raise Refused(f"{question} must be one of {wanted}, got {answers[question]!a}. Choose one of them.")
    if answers["env_manager"] == "conda" and not _on_conda(answers):
        cuda = answers["cuda"]
        raise Refused(
            f"cuda={cuda} needs env_manager=poetry, uv or venv, got conda: conda-forge has no such build of PyTorch. "
            f"Give env_manager=venv; in a project that is: make switch CUDA={cuda} ENV=venv."
        )
    for question in FREE_TEXT:
        text = "" if answers[question] is None else str(answers[question])
        bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
        if bad is not None:
            what = "half a character" if unicodedata.category(bad) == "Cs" else "the control character"
            raise Refused(f"{question} must be one line of text, got {what} {bad!a}. Leave it out.")
        if not text.strip():
            raise Refused(f"{question} is empty. Give it a value, or press Enter to take the suggestion.")
        if len(text) > 200:
            raise Refused(f"{question} must have at most 200 characters, got {len(text)}. Shorten it.")
    _check_slug(str(answers["project_slug"]))
    _check_package(str(answers["package_name"]))
    index = str(answers["pytorch_index"])
    if not re.fullmatch(r"(https?|file)://[!-~]+", index) or re.search(r"[\"'\\`${}\s]", index):
        raise Refused(
            f"pytorch_index must be an address such as https://download.pytorch.org/whl, got {index!a}. "
            "Press Enter to take the official one."
        )
    if "@" in index.partition("://")[2].partition("/")[0]:
        raise Refused(
            "pytorch_index contains a user's name or a password, and every copy of the project would, too. Leave it "
            "out; pip and uv read ~/.netrc, Poetry has: poetry config http-basic."
        )
    _check_remote(str(answers["data_remote"]), str(answers["data_remote_url"]))


def _check_remote(kind: str, url: str) -> None:
    if re.search(r"://[^/]*:[^/]*@|[?&](sig|key|token|password)=|AccountKey=|SharedAccessSignature", url):
        raise Refused(
            "data_remote_url contains a password or a key, and every copy of the project would, too. Leave it out; "
            "later: dvc remote modify --local data, which Git ignores, or environment variables."
        )
    is_address = re.fullmatch(r"[^\s:]+" if kind == "local" else rf"{kind}://[^/\s].*", url.replace(" ", "_"))
    if not is_address or re.search(r"""["'\\`${}#?&;%]|[^\x20-\x7e]|^ | $""", url):
        wanted = "a folder such as" if kind == "local" else "an address such as"
        raise Refused(
            f"data_remote_url must be {wanted} {remote_url(kind, 'my-project')}, got {url!a}. "
            "Press Enter to take the suggestion; it can be changed later."
        )


def _check_slug(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise Refused(
            "project_slug names a folder: 1 to 63 small letters, digits and dashes, a dash neither first nor last, "
            f"got {name!a}. Try {slug(name)}."
        )
    if name in WINDOWS_DEVICES:
        raise Refused(
            f"project_slug {name} is a device on Windows, where no folder can have this name. Try {slug(name)}."
        )
    if name.replace("-", "_") in REQUIRED:
        raise Refused(f"project_slug {name} is a package the project itself uses. Try {slug(name)}.")


def _check_package(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise Refused(
            "package_name must be 1 to 63 small letters, digits and underscores, a letter first, "
            f"got {name!a}. Try {package(slug(name))}."
        )
    if taken := _taken(name):
        raise Refused(f"package_name {name} is {taken}. Try {name}_project.")


def _taken(name: str) -> str:
    """What this name already means; empty if it is free."""
    meanings = {
        "a keyword of Python": keyword.iskeyword(name) or keyword.issoftkeyword(name),
        "a module of Python's standard library": name in sys.stdlib_module_names,
        "a package the project itself uses": name in IMPORTED,
        "a device on Windows": name in WINDOWS_DEVICES,
        "the template's own placeholder": name == PLACEHOLDER,
    }
    return next((what for what, is_so in meanings.items() if is_so), "")


FILTERS = {"slug": slug, "package": package, "lit": lit, "md": md, "remote_url": remote_url, "owner": owner}
GLOBALS = {"resolve": resolve, "validate": validate}

if __name__ == "<run_path>":  # cookiecutter loads this file so, before it asks
    runpy.run_path(str(Path(__file__).with_name("questions.py")))["ask_less"]()
