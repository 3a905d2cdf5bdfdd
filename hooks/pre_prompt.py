"""Say at each `auto` what it means on this machine, and why. Runs in a copy of the template; never fails."""

import json
import runpy
from pathlib import Path

questions = Path("cookiecutter.json")
try:
    machine = runpy.run_path("ml_template/machine.py")
    content = json.loads(questions.read_text(encoding="utf-8"))
    content.update(machine["author"]())
    content["_detected"] = machine["detect"](content["_builds"])
    for question, (answer, reason) in content["_detected"]["recommended"].items():
        content["__prompts__"][question]["auto"] += f": {answer} ({reason})".replace("[", r"\[")
    questions.write_text(json.dumps(content, indent=2), encoding="utf-8")
except Exception as error:
    print(f"Nothing could be read from this machine ({error!a}); the template's own suggestions are used.")
