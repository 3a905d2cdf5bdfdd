# The environment of this project: a conda environment in .conda, made from environment.yml.
# With a program of your choice (else mamba, micromamba or conda, the first that runs):  make setup CONDA=...
.PHONY: lock lock-fresh clean-env
BIN := .conda/bin
READY := .conda/.ready
INSTALL_EXTRA = $(BIN)/python -m pip install --editable ".[$(1)]"
export CONDA :=

# Windows has an environment's programs in three folders
ifeq ($(OS),Windows_NT)
BIN := .conda
export PATH := $(CURDIR)/.conda/Scripts:$(CURDIR)/.conda/Library/bin:$(PATH)
endif

# make does not activate the environment, so it does what etc/conda/activate.d does
unexport VIRTUAL_ENV
export PYTHONNOUSERSITE := 1
ifdef LD_LIBRARY_PATH
export LD_LIBRARY_PATH := $(shell unset ISOLATE_OLD_USERSITE; . ./etc/conda/activate.d/project.sh; printf %s "$$LD_LIBRARY_PATH")
endif

environment:
	@sh scripts/setup_env.sh setup $(BIN)/python $(READY)

# newer packages than the lock has:  rm conda-lock.txt && make clean-env setup lock
lock: ## write the exact conda packages to conda-lock.txt, for the next setup
	@sh scripts/setup_env.sh lock $(BIN)/python $(READY)

lock-fresh: ## is conda-lock.txt what environment.yml asks for?
	@test ! -f conda-lock.txt || grep -x "# environment.yml $$(cksum <environment.yml)" conda-lock.txt >/dev/null || { echo "error: conda-lock.txt was written for another environment.yml. Run: make clean-env setup lock" >&2; exit 1; }

# conda keeps the packages in its cache, so that the next setup is quick; `conda clean --all` empties that, for all projects
clean-env: ## remove the environment
	rm -rf .conda
