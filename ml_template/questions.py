"""Which of cookiecutter's questions are asked: those that somebody at a first try can answer, and that matter here.

cookiecutter asks each question that can be given by name; one that begins with `_` is not asked, but cruft forgets its
answer. So the two functions that ask are replaced by ones that skip. Seen in cookiecutter 2.4 to 2.7:
`cookiecutter.prompt.read_user_variable(name, default, prompts, prefix)`, and `read_user_choice` with the options in the
default's place. Where they are called otherwise, every question is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
BY_NAME = ("package_name", "python_version", "pytorch_index")  # follow from the others, or fit this machine
UNKNOWN = {"author_name": "The authors", "author_email": "authors@example.com"}  # asked only where Git does not know

Ask = Callable[..., Any]


def ask_less() -> None:
    """From now on, this process asks less: of this template's questions, not of another's."""
    from cookiecutter import prompt

    asked: dict[str, None] = {}  # in their order
    for name in ("read_user_variable", "read_user_choice"):
        ask = getattr(prompt, name, None)
        if ask is not None and not hasattr(ask, "asks_less"):
            setattr(prompt, name, _asking_less(ask, asked))


def _asking_less(ask: Ask, asked: dict[str, None]) -> Ask:
    def ask_or_skip(name: str, default: Any, prompts: Any = None, prefix: str = "") -> Any:
        if not (isinstance(prompts, dict) and {"pytorch_index", "data_remote_url"} <= prompts.keys()):
            return ask(name, default, prompts, prefix)
        suggested = default[0] if isinstance(default, list) else default
        if _is_skipped(name, str(suggested)):
            return suggested
        if not asked:
            print(f"Not asked: {', '.join(_known())}. Give them by name: cookiecutter ... python_version=3.12\n")
        asked[name] = None
        number = len(asked)
        return ask(name, default, prompts, f"  [dim][{number}/{number + sum(1 for _ in _left(name))}][/] ")

    ask_or_skip.asks_less = True  # type: ignore[attr-defined]
    return ask_or_skip


def _is_skipped(name: str, suggested: str) -> bool:
    """A local folder for data needs no address; who Git knows need not be typed."""
    if name in UNKNOWN:
        return suggested != UNKNOWN[name]
    return name in BY_NAME or (name == "data_remote_url" and "://" not in suggested)


def _known() -> list[str]:
    """What is not asked, with what Git says of the author."""
    questions = _questions()
    return [*BY_NAME, *(f"{name} ({questions[name]})" for name in UNKNOWN if _is_skipped(name, questions[name]))]


def _left(name: str) -> Iterator[str]:
    """The questions after this one that are asked if nobody answers by name."""
    questions = _questions()
    names = [each for each in questions if not each.startswith("_")]
    for each in names[names.index(name) + 1 :]:
        suggested = questions[each] if each in UNKNOWN else ""
        if not _is_skipped(each, suggested):
            yield each


def _questions() -> dict[str, Any]:
    """As pre_prompt.py has left them."""
    questions: dict[str, Any] = json.loads((HOME / "cookiecutter.json").read_text(encoding="utf-8"))
    return questions
