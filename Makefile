# Two commands do all: `make demo` shows what this template gives, `make test` proves it.
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-next check gpu-check clean

TOOLS := .venv
READY := $(TOOLS)/.ready
PROJECT := demo/my-project
ARGS ?=
ANSWERS ?=
TEMPLATE := $(shell find cookiecutter.json hooks ml_template needs_cookiecutter*.py '{{cookiecutter.project_slug}}' -type f | grep -v ' ')

# the first of these that runs and fits; a name alone says little, pyenv answers to names it cannot run
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13 python,\
	$(shell $(p) -c "import sys; (3, 11) <= sys.version_info < (3, 14) and print('$(p)')" 2>/dev/null)))

# cookiecutter would copy __pycache__ into projects
test test-fast test-next demo/.generated: export PYTHONDONTWRITEBYTECODE := 1

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -e 's/:.*## /\t/' | awk -F '\t' '{printf "make %-10s %s\n", $$1, $$2}'

demo: demo/.generated ## generate a project in demo/, set it up, train it; ANSWERS="env_manager=uv" for others than the default
	@$(MAKE) --no-print-directory -C $(PROJECT) setup data train evaluate
	@echo
	@echo "The project is in $(PROJECT). Compare its runs in the browser:"
	@echo "  make -C $(PROJECT) mlflow"

test: $(READY) ## set up and run all tests, with a training from end to end
	@$(TOOLS)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(READY) ## the quick ones, under 3 minutes: no torch
	@$(TOOLS)/bin/python -m pytest -n 2 -m "not slow" $(ARGS)

test-next: $(READY) ## the engine's own tests with the next Hydra, before it is released
	@$(TOOLS)/bin/python -m pytest tests/next.py $(ARGS)

check: $(READY) ## look for mistakes: ruff, mypy
	$(TOOLS)/bin/ruff check .
	$(TOOLS)/bin/ruff format --check .
	$(TOOLS)/bin/mypy

gpu-check: demo ## on a machine with a GPU: everything that one can prove, in gpu-check/report.md
	@$(TOOLS)/bin/python benchmarks/gpu.py

clean: ## remove everything that make made
	rm -rf $(TOOLS) demo gpu-check .*_cache

demo/.generated: $(READY) $(TEMPLATE)
	@echo "== Generating a project with default answers in $(PROJECT)"
	@rm -rf $(PROJECT) demo/template
	@mkdir -p demo/template
	@# cookiecutter copies the whole folder first, and .venv and demo with it; from here it has little to copy
	@cp -R cookiecutter.json hooks ml_template needs_cookiecutter*.py '{{cookiecutter.project_slug}}' demo/template
	@find demo/template -name '.*_cache' -prune -exec rm -rf {} +  # of ruff and mypy, if they ran there
	@$(TOOLS)/bin/cookiecutter demo/template --no-input --default-config --output-dir demo $(ANSWERS)
	@touch $@

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python from 3.11 to 3.13 was found. Install one, or name it: make demo PYTHON=..." >&2; exit 1; }
	@echo "== Making the tools of the template in $(TOOLS) with $(PYTHON)"
	@rm -rf $(TOOLS)
	@$(PYTHON) -m venv $(TOOLS) || { rm -rf $(TOOLS); echo "error: $(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@$(TOOLS)/bin/python -m pip install --disable-pip-version-check --no-compile --quiet "pip>=25.1,<27"  # knows --group
	@$(TOOLS)/bin/python -m pip install --disable-pip-version-check --no-compile --quiet --group dev
	@touch $@
