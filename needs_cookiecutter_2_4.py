"""What cookiecutter loads from this template. A cookiecutter before 2.4 cannot, and says so with this file's name.

Frozen: `cruft update` renders two versions in one process, so this
module stays the first version's; the code behind it is read again each time, from the template being rendered.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment
from jinja2.ext import Extension


class Answers(Extension):
    """Gives templates everything that `answers.py` offers them."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        # cookiecutter puts the template it renders last
        found = (Path(folder) / "ml_template" / "answers.py" for folder in reversed(sys.path))
        code: dict[str, Any] = runpy.run_path(str(next(file for file in found if file.is_file())))
        environment.filters.update(code["FILTERS"])
        environment.globals.update(code["GLOBALS"])
