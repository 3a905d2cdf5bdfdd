# The environment of this project: .venv, filled by Poetry with exactly what poetry.lock says. Keep poetry.lock in Git.
# With another Python:  make setup BASE_PYTHON=/opt/python3.12/bin/python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready
INSTALL_EXTRA = poetry install --extras "dev $(1)"
UNFINISHED := .venv-unfinished
# an image is made with EXTRAS= LOCKED=1: no tools, exactly the lock, and compiled, as its user cannot do it later
LOCK := poetry.lock
EXTRAS ?= dev
# in an active environment Poetry would install into that one
POETRY := env -u VIRTUAL_ENV -u CONDA_PREFIX -u PYENV_VERSION poetry

# pyenv's newest {{ cookiecutter.python_version }} if it has one, else the first of these that runs and fits
PYENV_PYTHON = $(shell pyenv prefix "$$(pyenv latest {{ cookiecutter.python_version }} 2>/dev/null)" 2>/dev/null)
BASE_PYTHON ?= $(firstword $(wildcard $(PYENV_PYTHON)/bin/python) $(foreach p,python{{ cookiecutter.python_version }} python3 python,\
	$(shell $(p) -c "import sys; (3, 11) <= sys.version_info < (3, 14) and print(sys.executable)" 2>/dev/null)))
INSTALL_PYTHON = $(if $(shell command -v pyenv),pyenv install {{ cookiecutter.python_version }},install Python {{ cookiecutter.python_version }})

.PHONY: lock lock-fresh clean-env

environment:
	@command -v poetry >/dev/null || { echo "error: poetry is not here. Install it (pipx install poetry), then run make setup again" >&2; exit 1; }
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python from 3.11 to 3.13 is here. Run: $(INSTALL_PYTHON)" >&2; exit 1; }
	@$(if $(LOCKED),$(LOCK_OR_SAY))
	@# a package whose unpacking was interrupted counts as installed for Poetry: start over
	@test ! -f $(UNFINISHED) || { echo "The last setup did not finish: the environment is made again from the start."; rm -rf .venv; }
	@touch $(UNFINISHED)
	@rm -f $(READY)
	$(POETRY) env use "$(BASE_PYTHON)"
	@test -f poetry.lock || $(POETRY) lock
	$(POETRY) install $(addprefix --extras ,$(EXTRAS)) $(if $(LOCKED),--compile)
	@rm -f $(UNFINISHED)
	@$(BIN)/python -m runengine doctor --quick || test $$? -eq 2 # 2: something is unknown
	@touch $(READY)

lock: ## take the newest versions that pyproject.toml allows into poetry.lock
	$(POETRY) update --lock

lock-fresh: ## is poetry.lock what pyproject.toml asks for?
	$(POETRY) check --lock

clean-env: ## remove the environment
	rm -rf .venv $(UNFINISHED)
