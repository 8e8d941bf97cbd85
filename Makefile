# Everything a newcomer types. `make` alone lists it.

PYTHON ?= python3
VENV ?= .venv
# On Linux, PyPI's torch brings several gigabytes of CUDA libraries. On a machine without a GPU, this takes the CPU build:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Two workers with one thread each: the suite's tensors are too small to share out.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: help quickstart test test-fast test-slow test-all test-gpu check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

quickstart: $(VENV)/.quickstart ## the whole story on real sentences, about 12 minutes on two older CPU cores
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.dev ## the test suite, within 10 minutes on two CPU cores
	$(PYTEST) -m "not slow" -n 2 --dist worksteal

test-fast: $(VENV)/.dev ## the pure core: tests/unit, under a minute
	$(PYTEST) -m "not slow" -n 2 tests/unit

test-slow: $(VENV)/.dev ## only the long and multi-process tests
	$(PYTEST) -m slow

test-all: test test-slow ## both of them

test-gpu: $(VENV)/.dev ## every layout and precision on one GPU, within 10 minutes
	$(BIN)/python tests/support/gpu_smoke.py

check: $(VENV)/.dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the virtual environment, outputs and caches
	rm -rf $(VENV) outputs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: installed once, and again when the pinned versions change.
$(VENV)/.quickstart: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[quickstart,onnx]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[quickstart,wandb,onnx,deepspeed,dev]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; say which with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP_INSTALL) torch --index-url $(TORCH_INDEX))
