"""Replace the engine of this project by another version, as a complete folder; nothing is merged.

    python -m runengine upgrade <from>      # make upgrade FROM=<from>, which then runs the tests

<from>: the folder of a project, of the template or of an engine, the address of a Git repository (with @<tag> one
of its versions), or a wheel.
Files of the present engine that were edited are kept in engine-edited-<version>/.

Only Python's standard library and manifest.py are imported: this repairs an engine whose other files are missing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import manifest
from .manifest import NAME, PLUGIN

ADDRESS = re.compile(r"\w[\w+.-]*://\S+|[\w.-]+@[\w.-]+:\S+")  # https://..., ssh://..., file://..., git@host:path
HOST = re.compile(r"\w[\w+.-]*://[^/]*/|[\w.-]+@[\w.-]+:")  # what may hold another @ than that of a tag


class Refused(Exception):
    """Its text is the message for the user."""


def upgrade(source: str, target: Path) -> None:
    """Put the engine that `source` holds into the place of `target`, and print what changes.

    Args:
        source: a folder, the address of a Git repository (`<address>` or `<address>@<tag>`), or a wheel.
        target: the project's `src/runengine`.

    Raises:
        Refused: `source` has no engine, or one whose files are not those of a release. Nothing was changed.
    """
    if target.parent.name != "src":
        raise Refused(
            f"this project has no src/{NAME}: its engine is an installed package. Name the version that you want in "
            "pyproject.toml, then run: make setup"
        )
    with _opened(source) as folder:
        new = _find(source, folder)
        before, after = manifest.version(target), manifest.version(new)
        print(f"engine {before} -> {after}")
        for section in changes(new / "CHANGELOG.md", before, after):
            print(f"\n{section}")
        print()
        with _built(new, target.parent) as built:
            keep_edited(target)
            _swap(built, target)
    print("Run: make test")


def changes(changelog: Path, before: str, after: str) -> list[str]:
    """The sections of the versions after `before`, up to `after`."""
    text = changelog.read_text(encoding="utf-8") if changelog.is_file() else ""
    sections = re.findall(r"^## (?=\d).*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    least, most = _numbers(before), _numbers(after)
    return [section.rstrip() for section in sections if least < _numbers(section.split()[1]) <= most]


def keep_edited(engine: Path) -> None:
    """Copy the edited and added files into the project's folder, and name them."""
    edits = manifest.compare(engine)
    if edits:
        print(manifest.describe(engine))
    names = [*edits.changed, *edits.added]
    if not names:
        return
    project = engine.parents[1]
    folder = project / f"engine-edited-{manifest.version(engine)}"
    number = 1
    while folder.exists():
        number += 1
        folder = project / f"engine-edited-{manifest.version(engine)}-{number}"
    for name in names:
        copy = folder / name.removeprefix("../")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(engine / name, copy)
    print(f"Your edited files are kept in {folder.name}/. Edit the new files in the same way where you still need it.")


@contextmanager
def _opened(source: str) -> Iterator[Path]:
    """A folder with the content of the source."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "source")
        if not source:
            raise Refused(f"no engine was named: {_WANTED}.")
        if Path(source).is_file():
            try:
                with zipfile.ZipFile(source) as wheel:
                    wheel.extractall(folder)
            except zipfile.BadZipFile:
                raise Refused(f"{source} is not a wheel: it cannot be unpacked. Download it again.") from None
        elif Path(source).is_dir() and not (Path(source) / "objects").is_dir():  # a bare repository of Git
            folder = Path(source).resolve()
        elif Path(source).is_dir():
            _clone(source, folder)
        elif (address := _address_and_tag(source)) and (ADDRESS.fullmatch(address[0]) or Path(address[0]).is_dir()):
            _clone(address[0], folder, address[1])
        else:
            raise Refused(f"{source} does not exist: {_WANTED}.")
        yield folder


_WANTED = "FROM= must be the folder of a project or of the template, the address of a Git repository, or a wheel"


def _address_and_tag(source: str) -> tuple[str, str]:
    """The address of a repository, and the tag after its last @, as pip has it: `git+https://host/name.git@v0.2.0`."""
    source = source.removeprefix("git+")
    host = found[0] if (found := HOST.match(source)) else ""
    path, _, tag = source.removeprefix(host).rpartition("@")
    return (host + path, tag) if path else (source, "")


def _clone(address: str, folder: Path, tag: str = "") -> None:
    """Its newest version, or the one that has this tag, or is the last of the branch of this name."""
    try:
        if tag:
            _refuse_unknown(address, tag)
        version = [f"--branch={tag}"] if tag else []
        quiet = ["-c", "advice.detachedHead=false"]
        done = subprocess.run(["git", *quiet, "clone", "--quiet", "--depth", "1", *version, "--", address, folder])
    except FileNotFoundError:
        raise Refused("git is not installed. Install it, or give a folder or a wheel.") from None
    if done.returncode != 0:
        raise Refused(f"git cannot clone {address}; its message is above.")


def _refuse_unknown(address: str, tag: str) -> None:
    asked = ["git", "ls-remote", "--quiet", "--heads", "--tags", "--refs", "--", address]
    done = subprocess.run(asked, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Refused(f"git cannot read {address}; its message is above.")
    names = [line.split("\trefs/")[1].partition("/") for line in done.stdout.splitlines()]
    if tag not in [name for _, _, name in names]:
        newest = sorted((name for kind, _, name in names if kind == "tags"), key=_numbers, reverse=True)[:5]
        has = f"Its newest tags: {', '.join(newest)}." if newest else f"It has no tags: leave @{tag} out."
        raise Refused(f"{address} has no tag {tag}. {has}")


def _find(source: str, folder: Path) -> Path:
    """The engine in this folder.

    Raises:
        Refused: there is none, or its files are not those of a release.
    """
    in_template = sorted(folder.glob("[{][{]*/src/" + NAME))
    places = [folder, folder / NAME, folder / "src" / NAME, *in_template]  # an engine, a wheel, a project, a template
    found = [place for place in places if (place / "MANIFEST").is_file()]
    if not found:
        raise Refused(f"{source} has no engine: {_WANTED}.")
    engine = found[0].resolve()
    edits = manifest.compare(engine)
    if edits or manifest.version(engine) == "unknown":
        raise Refused(
            f"the engine in {source} is not as it was released: {edits or 'VERSION is damaged'}. Take it from the "
            "template, or from a project in which it was not edited."
        )
    return engine


@contextmanager
def _built(new: Path, src: Path) -> Iterator[Path]:
    """A copy of the new engine next to the present one, on the same disk: a folder that is like `src`."""
    built = src / f".{NAME}.new"
    shutil.rmtree(built, ignore_errors=True)  # of an upgrade that was killed
    try:
        for name in ("MANIFEST", *manifest.read(new)):
            copy = built / "hydra_plugins" / Path(name).name if name == PLUGIN else built / NAME / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new / name, copy)
        if manifest.compare(built / NAME):
            raise Refused(f"{new} changed while it was copied. Start again.")
        yield built
    finally:
        shutil.rmtree(built, ignore_errors=True)


def _swap(built: Path, target: Path) -> None:
    """After a kill at any point, the old engine and the new one are complete, under one name or another."""
    old = target.with_name(f".{NAME}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    try:
        (built / NAME).rename(target)
    except BaseException:  # also Ctrl-C
        if not target.exists():
            old.rename(target)
        raise
    plugin = (target / PLUGIN).resolve()
    plugin.parent.mkdir(exist_ok=True)
    (built / "hydra_plugins" / plugin.name).replace(plugin)
    shutil.rmtree(old, ignore_errors=True)


def _numbers(version: str) -> tuple[int, ...]:
    """`0.10.1` comes after `0.9`."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {NAME} upgrade", description="Replace the engine.")
    parser.add_argument("source", metavar="from", help="folder, address of a Git repository, or wheel")
    try:
        upgrade(parser.parse_args().source, manifest.here())
    except Refused as refusal:
        sys.exit(f"error: {refusal}")
