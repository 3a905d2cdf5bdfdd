"""Draw docs/prompts.txt and docs/doctor.txt, which a terminal printed, as pictures that need nothing from elsewhere.

.venv/bin/python docs/picture.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

TITLES = {"prompts": "cookiecutter gh:org/ml-template", "doctor": "ulimit -n 256; make doctor"}
DOCS = Path(__file__).resolve().parent


def svg(title: str, text: str) -> str:
    console = Console(record=True, width=max(map(len, text.splitlines())), file=io.StringIO())
    console.print(Text(text.rstrip("\n")))
    drawn = console.export_svg(title=title, unique_id="terminal")
    # rich asks a server for its font; the one that the reader has will do
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL).replace("Fira Code, ", "")


if __name__ == "__main__":
    for name, title in TITLES.items():
        text = (DOCS / f"{name}.txt").read_text(encoding="utf-8")
        (DOCS / "images" / f"{name}.svg").write_text(svg(title, text) + "\n", encoding="utf-8")
