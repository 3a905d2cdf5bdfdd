"""How Sphinx builds these pages; reference.py writes what stands in the code already.

make docs        # docs/_build/html/index.html
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

from reference import setup  # noqa: E402, F401

about = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project = html_title = about["name"]
author = copyright = ", ".join(person["name"] for person in about["authors"]).replace("%Y", "%\u2060Y")
version = about["version"]

extensions = ["myst_parser"]
exclude_patterns = ["_build", "locale"]
myst_enable_extensions = ["colon_fence"]
myst_disable_syntax = ["html_inline", "html_block"]  # `<folder>` in a docstring is text
myst_heading_anchors = 3  # page.md#heading: a link to a heading that is not there ends the build
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages have no page here
suppress_warnings = ["ref.python"]  # two classes of one name in two modules
smartquotes = False  # what is copied into a shell is not changed

html_theme = "furo"
html_copy_source = False

gettext_compact = "docs"  # one catalogue: docs.pot
locale_dirs = ["locale"]
