"""Ask whether the packages of this environment have known vulnerabilities (pip-audit).

    make audit      # ARGS="--vulnerability-service osv" asks another service

A finding fails, unless audit-accepted.toml accepts it, with a reason and until a date.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "audit-accepted.toml"
KEYS = {"id": str, "reason": str, "expires": datetime.date}


@dataclass(frozen=True)
class Finding:
    package: str
    ids: tuple[str, ...]  # the first is the service's own, the others are its names elsewhere
    fixed_in: str


def main() -> None:
    answer = ask(requirements(), sys.argv[1:])
    unknown = [package["name"] for package in answer if "skip_reason" in package]
    if len(unknown) == len(answer):
        fail("the service knows none of these packages, so nothing was audited. Check the network, or try again later")
    until = accepted_until()
    today = datetime.datetime.now(tz=datetime.UTC).date()
    findings = list(found(answer))
    wrong = 0
    for finding in findings:
        day = max((until[name] for name in finding.ids if name in until), default=None)
        if day is None:
            state = "FOUND"
        elif day < today:
            state = f"FOUND, accepted until {day}"
        else:
            state = f"accepted until {day}"
        wrong += day is None or day < today
        print(f"{finding.package}: {' '.join(finding.ids)}, fixed in {finding.fixed_in}: {state}")
    if unknown:
        print(f"Not known to the service: {' '.join(unknown)}")
    if wrong:
        fail(
            f"{wrong} of {len(findings)} findings not accepted. Install a version that is fixed, or accept one "
            'for a time in audit-accepted.toml: [[accepted]], id = "...", reason = "...", expires = 2030-12-31'
        )
    audited = len(answer) - len(unknown)
    print(f"{audited} packages audited, {len(findings)} findings{', all accepted' if findings else ''}.")


def requirements() -> list[str]:
    """All installed packages except this project, without the label of a build (`+cpu`): the service knows none."""
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    versions: dict[str, str] = {}
    for package in distributions():  # Python imports the first of two packages with one name
        versions.setdefault(re.sub(r"[-_.]+", "-", package.name).lower(), package.version.partition("+")[0])
    return [f"{name}=={version}" for name, version in sorted(versions.items()) if name != own]


def ask(packages: list[str], options: list[str]) -> list[dict[str, Any]]:
    """What pip-audit reports for each package; it looks them up, and installs none."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "requirements.txt")
        pinned.write_text("\n".join(packages), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned), "--no-deps", "--disable-pip"]
        shown = ["--format", "json", "--aliases", "on", "--progress-spinner", "off"]
        done = subprocess.run([*command, *shown, *options], capture_output=True, text=True)
    try:
        answer: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = done.stderr.strip().splitlines() or ["it printed nothing"]
        fail(f"pip-audit could not ask, so nothing was audited: {why[-1]}. Check the network")
    return answer


def found(answer: list[dict[str, Any]]) -> Iterable[Finding]:
    for package in answer:
        for finding in package.get("vulns", []):
            ids = (finding["id"], *sorted(finding.get("aliases", [])))
            fixed_in = " or ".join(finding["fix_versions"]) or "no version yet"
            yield Finding(f"{package['name']} {package['version']}", ids, fixed_in)


def accepted_until() -> dict[str, datetime.date]:
    """Maps the id of an accepted finding to the last day on which it is accepted."""
    try:
        entries = tomllib.loads(ACCEPTED.read_text(encoding="utf-8")).get("accepted", [])
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        fail(f"audit-accepted.toml is not TOML: {error}. Fix that line")
    for entry in entries:
        if any(type(entry.get(key)) is not kind or not entry[key] for key, kind in KEYS.items()):
            fail(
                "each [[accepted]] of audit-accepted.toml must have an id, a reason and a day such as "
                f"expires = 2030-12-31, without quotes, got {entry}. Add what is missing"
            )
    return {entry["id"]: entry["expires"] for entry in entries}


def fail(sentence: str) -> NoReturn:
    sys.exit(f"error: {sentence}.")


if __name__ == "__main__":
    main()
