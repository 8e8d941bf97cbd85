# Commands for users and developers. `make` without a target lists them.

PYTHON ?= python3
VENV ?= .venv
# On Linux, PyPI's torch brings several gigabytes of CUDA libraries. For a machine without a GPU, use the CPU build:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Of each kind, for make fuzz.
INPUTS ?= 5000
# Of each row, for make faults.
FAULTED_RUNS ?= 40

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Two workers with one thread each: the tensors in tests are too small for more threads.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: help quickstart kernels test test-fast test-slow fuzz faults long-run audit test-all test-gpu bench-gpu check wheel dist docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

quickstart: $(VENV)/.quickstart ## the complete workflow on real sentences, about 15 minutes on two CPU cores
	$(BIN)/python scripts/quickstart.py

kernels: | $(BIN)/python ## the library of sparse_accel.runtime, from csrc/; pip install -e . makes it too
	$(BIN)/python sparse_accel/runtime/build.py

test: $(VENV)/.dev kernels ## the test suite, within 10 minutes on two CPU cores
	$(PYTEST) -m "not slow" -n 2 --dist worksteal

test-fast: $(VENV)/.dev kernels ## only tests/unit, under a minute
	$(PYTEST) -m "not slow" -n 2 tests/unit

test-slow: $(VENV)/.dev kernels ## only the long and multi-process tests
	$(PYTEST) -m slow tests/distributed
	$(PYTEST) -m slow tests --ignore=tests/distributed -n 2 --dist loadfile

long-run: $(VENV)/.dev kernels ## memory, open files, threads and speed over 50,000 steps and 1,000 sessions, a quarter of an hour
	$(BIN)/python tests/support/long_run.py --steps 50000 --sessions 1000

fuzz: $(VENV)/.dev kernels ## changed inputs for everything that reads one, about half an hour; INPUTS=100000 for longer
	$(BIN)/python tests/fuzz/campaign.py --jobs 2 --inputs $(INPUTS)

faults: $(VENV)/.dev kernels ## disturbed runs of every script and layout; FAULTED_RUNS=40 of each, about an hour
	FAULTED_RUNS=$(FAULTED_RUNS) $(PYTEST) -m slow -n 2 --dist worksteal tests/fuzz/test_disturbed.py

audit: $(VENV)/.audit ## licences of all that is installed, and known faults of its versions (needs the network)
	$(BIN)/pip-licenses --python $(BIN)/python --format markdown --order license
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

test-all: test test-slow ## test and test-slow

test-gpu: $(VENV)/.dev ## every layout and precision on one GPU, within 10 minutes
	$(BIN)/python tests/support/gpu_smoke.py

bench-gpu: $(VENV)/.dev ## the recipe's speed and memory on one GPU, BERT-base, within 4 minutes
	$(BIN)/python scripts/benchmark_gpu.py

check: $(VENV)/.dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.wheel ## a wheel with the library, for any Linux on x86-64 since 2014, in dist
	$(BIN)/python tests/support/make_wheel.py --output dist

dist: $(VENV)/.wheel ## that wheel and the archive of its sources, in dist
	$(BIN)/python tests/support/make_wheel.py --output dist --sdist

docs: $(VENV)/.docs ## the site of docs/, in build/docs; a dead link is an error
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -E -W --keep-going -n -q docs build/docs
	@echo "build/docs/index.html"

clean: ## remove the virtual environment, outputs and caches
	rm -rf $(VENV) sparse_accel/runtime/libsparse_accel.so outputs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: install once, and again if the pinned versions change.
$(VENV)/.quickstart: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[quickstart,onnx,report]'
	@$(BIN)/python sparse_accel/runtime/build.py --optional
	touch $@

$(VENV)/.dev: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[quickstart,wandb,onnx,report,deepspeed,docs,dev]'
	touch $@

$(VENV)/.docs: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[docs]'
	touch $@

$(VENV)/.audit: constraints.txt | $(BIN)/python
	$(PIP_INSTALL) pip-audit pip-licenses
	touch $@

# The wheel is built in an environment of its own; setuptools makes the archive of the sources.
$(VENV)/.wheel: constraints.txt | $(BIN)/python
	$(PIP_INSTALL) ziglang setuptools
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; use: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP_INSTALL) torch --index-url $(TORCH_INDEX))
