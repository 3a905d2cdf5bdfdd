# The environment of this project: a plain virtual environment in .venv, filled by pip.
# To build it elsewhere, or with another Python:  make setup BASE_PYTHON=/opt/python3.12/bin/python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready
INSTALL_EXTRA = $(BIN)/python -m pip install --editable ".[$(1)]"
export EXTRAS ?= dev

# the first of these that runs and fits; a name alone says little, pyenv answers to names it cannot run
BASE_PYTHON ?= $(firstword $(foreach p,python{{ cookiecutter.python_version }} python3 python python3.13 python3.12 python3.11,\
	$(shell $(p) -c "import sys; (3, 11) <= sys.version_info < (3, 14) and print('$(p)')" 2>/dev/null)))

environment:
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python from 3.11 to 3.13 was found. Install one, or name it: make setup BASE_PYTHON=..." >&2; exit 1; }
	@$(BASE_PYTHON) scripts/setup_env.py setup

.PHONY: lock lock-fresh clean-env

# newer packages than the lock has:  rm pylock.toml && make clean-env setup lock
lock: ## write the exact packages to pylock.toml, for the next setup
	@$(BASE_PYTHON) scripts/setup_env.py lock

lock-fresh: ## is pylock.toml what pyproject.toml asks for?
	@$(BASE_PYTHON) scripts/setup_env.py fresh

clean-env: ## remove the environment
	rm -rf .venv
