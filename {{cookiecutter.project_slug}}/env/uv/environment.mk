# The environment of this project: .venv, filled by uv with exactly what uv.lock says. Keep uv.lock in Git.
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready
INSTALL_EXTRA = uv sync --extra dev --extra $(1)
UNFINISHED := .venv-unfinished
# an image is made with EXTRAS= LOCKED=1: no tools, exactly the lock, and compiled, as its user cannot do it later
LOCK := uv.lock
EXTRAS ?= dev
BASE_PYTHON ?= {{ cookiecutter.python_version }}
UV := env -u VIRTUAL_ENV -u CONDA_PREFIX uv

.PHONY: lock lock-fresh clean-env

environment:
	@command -v uv >/dev/null || { echo "error: uv is not here. Install it (https://docs.astral.sh/uv), then run make setup again" >&2; exit 1; }
	@$(if $(LOCKED),$(LOCK_OR_SAY))
	@# a package whose unpacking was interrupted counts as installed for uv: start over
	@test ! -f $(UNFINISHED) || { echo "The last setup did not finish: the environment is made again from the start."; rm -rf .venv; }
	@touch $(UNFINISHED)
	@rm -f $(READY)
	$(UV) sync --python "$(BASE_PYTHON)" $(addprefix --extra ,$(EXTRAS)) $(if $(LOCKED),--locked --compile-bytecode)
	@rm -f $(UNFINISHED)
	@$(BIN)/python -m runengine doctor --quick || test $$? -eq 2 # 2: something is unknown
	@touch $(READY)

lock: ## take the newest versions that pyproject.toml allows into uv.lock
	$(UV) lock --upgrade

lock-fresh: ## is uv.lock what pyproject.toml asks for?
	$(UV) lock --check

clean-env: ## remove the environment
	rm -rf .venv $(UNFINISHED)
