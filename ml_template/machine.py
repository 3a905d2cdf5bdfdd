"""What this machine recommends for each `auto`, with the reason.

python -m ml_template.machine
"""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

PYTHONS = ("3.11", "3.12", "3.13")  # Hydra 1.3 stops at 3.13; PyTorch 2.15 and pandas 3 start at 3.11


class Recommendation(NamedTuple):
    answer: str
    reason: str


def recommend() -> dict[str, Recommendation]:
    """An answer to each question that may be answered `auto`."""
    return {
        "python_version": recommend_python("{}.{}".format(*sys.version_info)),
        "env_manager": Recommendation("venv", "needs nothing but Python"),
        "cuda": Recommendation("cpu", "the only build of this version of the template"),
    }


def recommend_python(running: str) -> Recommendation:
    """The Python that runs, if the project can run on it."""
    if running in PYTHONS:
        return Recommendation(running, "it runs cookiecutter now")
    return Recommendation("3.12", f"Python {running}, which runs cookiecutter now, is not one of {', '.join(PYTHONS)}")


def author() -> dict[str, str]:
    """The author's name and e-mail address as Git knows them; without Git, nothing."""
    known = {}
    for question, setting in (("author_name", "user.name"), ("author_email", "user.email")):
        try:
            answer = subprocess.run(["git", "config", "--get", setting], capture_output=True, timeout=2, check=True)
            text = answer.stdout.decode("utf-8").strip()
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            continue
        if text and len(text) <= 200 and text.isprintable() and "{" not in text:  # cookiecutter evaluates braces
            known[question] = text
    return known


if __name__ == "__main__":
    for question, (answer, reason) in recommend().items():
        print(f"{question:16}{answer:8}{reason}")
