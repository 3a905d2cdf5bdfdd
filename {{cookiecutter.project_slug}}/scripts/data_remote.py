"""`dvc push` or `dvc pull`, with errors in one sentence; damaged data are not sent.

python scripts/data_remote.py push        # `make push`; ARGS=-v shows what DVC itself says
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

NEVER_SET = "CHANGE-ME"  # the template's placeholder in an address
SIGN_IN = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run: aws configure",
    "azure": "Set AZURE_STORAGE_CONNECTION_STRING, or run: az login, then: "
    "dvc remote modify --local {name} account_name <account>",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "ssh": "Run: ssh-add, or: dvc remote modify --local {name} keyfile <file>",
}
# what the libraries' errors contain, in the order in which it is searched for
CAUSES = {
    "NoSuchBucket|bucket does not exist|ContainerNotFound|container does not exist": (
        "{url}: there is no such bucket. Create it, or correct the address: dvc remote modify {name} url <address>"
    ),
    "RemoteMissingDepsError|requires 'dvc-": "{url} needs dvc[{kind}]. Write it into pyproject.toml, then: make setup",
    "locate credentials|requires either account_name|Anonymous caller|DefaultCredentialsError|authentication token"
    "|^ssh .*No such file or directory: '": "{url}: no credentials were found. {sign_in}",
    "InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|AuthenticationFailed|Forbidden|[Pp]ermission ?[Dd]enied": (
        "{url}: access was refused with the credentials that were found. {sign_in}"
    ),
    "Could not connect|Cannot connect|Connect call failed|Connection refused|Connection lost|Name or service not known"
    "|nodename nor servname|getaddrinfo|[Tt]imed out|Timeout|No route to host|unreachable": (
        "{url} cannot be reached. Check the address (dvc remote list) and the network"
    ),
    "No space left|Disk quota exceeded": "the disk is full. Free some space",
    "Unable to acquire lock|Unable to acquire": "another dvc command is running in this project. Wait until it ends",
}


class ErrorLog(logging.Handler):
    """What DVC logs of a failure, with the errors that caused it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"
        if record.exc_info:
            self.add(record.exc_info[1])

    def add(self, error: BaseException | None) -> None:
        while error is not None:
            self.text += f"{type(error).__module__}.{type(error).__name__}: {error}\n"
            error = error.__cause__ or error.__context__


def main() -> None:
    parser = argparse.ArgumentParser(description="`dvc push` or `dvc pull`; more options are passed on.")
    parser.add_argument("action", choices=["push", "pull"])
    parser.add_argument("-r", "--remote", help="another remote than the default one")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what DVC itself says")
    known, more = parser.parse_known_args()

    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    errors = listen(quiet=not known.verbose)
    try:
        with Repo() as repo:
            name = known.remote or repo.config["core"].get("remote")
            remotes = repo.config["remote"]
            if name not in remotes:
                fail(f"there is no remote {name or ''}".rstrip() + ". Run: dvc remote add -d data <address>")
            url = str(remotes[name]["url"])
            if NEVER_SET in url:
                address = url.replace(NEVER_SET, "<yours>")
                fail(f"the address of the remote was never set: {url}. Run: dvc remote modify {name} url {address}")
            cache = Path(repo.cache.local.path)
            refuse_damaged(cache, used(repo, cache))
            options = more if any(word[0] != "-" for word in more) else [*more, *made(repo, known.action)]
            status = call([known.action, "-r", name, *options], errors, verbose=known.verbose)
            lost = sorted(oid for oid in used(repo, cache) if not file_of(cache, oid).exists())
            if status or (known.action == "push" and "do not exist neither locally nor on remote" in errors.text):
                kind = url.split("://")[0] if "://" in url else "local"
                where = f"{url} at {remotes[name]['endpointurl']}" if "endpointurl" in remotes[name] else url
                facts = {"url": where, "name": name, "kind": kind, "sign_in": SIGN_IN.get(kind, "").format(name=name)}
                cause = explain(f"{kind} {errors.text}", facts)
                fail(cause or explain_lost(repo.cloud.get_remote_odb(name), url, lost) or last_line(errors.text))
    except DvcException as error:
        fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)


def made(repo: Any, action: str) -> list[str]:
    """What is pulled: of stages that have not run yet there is nothing in the remote, and DVC would call it missing.

    The wheelhouse, which is large and seldom needed, only by its name: `make pull ARGS=wheelhouse`.
    """
    outs = [out for out in repo.index.outs if out.use_cache]
    names = [str(out) for out in outs if out.hash_info and str(out) != "wheelhouse"]
    if action == "push" or len(names) == len(outs):
        return []
    if not names:
        fail("dvc.lock names no data yet, so there is nothing to pull. Run: make data, or dvc repro")
    return names


def call(command: list[str], errors: ErrorLog, *, verbose: bool) -> int:
    """Run the command as `dvc` does; unless `verbose`, without the paragraphs that it prints for an error."""
    from dvc.cli import DvcParserError, main, parse_args
    from dvc.ui import ui

    if verbose:
        return int(main([*command, "-v"]))
    try:
        arguments = parse_args(command)
        ui.enable()
        return int(arguments.func(arguments).do_run())
    except DvcParserError:  # it has printed what is wrong
        sys.exit(1)
    except Exception as error:  # of any library behind DVC
        errors.add(error)
        return 1


def listen(*, quiet: bool) -> ErrorLog:
    errors = ErrorLog()
    for name in ("dvc", "dvc_objects", "dvc_data"):
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if quiet and handler.level >= logging.WARNING:
                logger.removeHandler(handler)
        logger.addHandler(errors)
    if quiet:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return errors


def used(repo: Any, cache: Path) -> Iterator[str]:
    """The MD5 of everything that `dvc.lock` and *.dvc files name; of folders also that of each file."""
    for out in repo.index.outs:
        oid = out.hash_info.value if out.use_cache and out.hash_info else None
        if oid:
            yield oid
            if oid.endswith(".dir") and (folder := file_of(cache, oid)).is_file():
                yield from (entry["md5"] for entry in json.loads(folder.read_text(encoding="utf-8")))


def file_of(cache: Path, oid: str) -> Path:
    return cache / oid[:2] / oid[2:]


def refuse_damaged(cache: Path, oids: Iterator[str]) -> None:
    """DVC assumes that a read-only file of its cache is intact, and would pass on a damaged one."""
    damaged = []
    try:
        for oid in oids:
            if (file := file_of(cache, oid)).is_file():
                with file.open("rb") as content:
                    if hashlib.file_digest(content, "md5").hexdigest() != oid.removesuffix(".dir"):
                        damaged.append(file)
    except (ValueError, KeyError, TypeError):  # a damaged list of a folder's files, which was checked before the files
        pass
    if damaged:
        fail(
            f"the content of {len(damaged)} file(s) in DVC's cache has changed: {short(damaged[0])}. "
            "Delete them, then fetch them again (make pull) or create them again (dvc repro --force)"
        )


def explain(text: str, facts: dict[str, str]) -> str:
    """The first known cause; empty if there is none."""
    found = (sentence for pattern, sentence in CAUSES.items() if re.search(pattern, text, re.DOTALL))
    return next(found, "").format(**facts)


def explain_lost(remote: Any, url: str, lost: list[str]) -> str:
    """Are the files that the cache lacks damaged in the remote, or missing there, too?"""
    missing = []
    while lost:
        oid = lost.pop()
        path = remote.oid_to_path(oid)
        if not remote.fs.exists(path):
            missing.append(oid)
            continue
        content = remote.fs.cat_file(path)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != oid.removesuffix(".dir"):
            return (
                f"{path} is damaged in the remote: its content does not match its name. "
                "Delete it there, then run make push where the data are intact"
            )
        if oid.endswith(".dir"):
            lost += [entry["md5"] for entry in json.loads(content)]
    if not missing:
        return ""
    return (
        f"{url} does not have {len(missing)} file(s) that dvc.lock names, such as {missing[0]}. "
        "Run make push where the data are, or create them again: dvc repro --force"
    )


def short(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "DVC failed without a message"


def fail(sentence: str) -> NoReturn:
    sys.exit(f"error: {sentence.rstrip('.')}.")


if __name__ == "__main__":
    main()
