# Every target makes its own environment in .venv when that is missing or older than the pins.
#
#   make demo    generate pictures, train, evaluate, report: at most ten minutes on two cores
#   make test    the whole test suite          make lint   ruff and mypy
#   make chaos   fifty random faults over a small training on two processes (ARGS="--seed 1 --load 2")
#   make mutants five thousand damaged files, each of which is read or refused in one sentence
#   make bench   speed beside a plain version  make docs   check links and examples, build the site
#
# PYTHON=python3.12 chooses the interpreter. TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes
# on a machine without a GPU (not used by default, so that a package index is all the network needed).

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
TORCH_FLAGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# One thread a test process: two processes with two threads each fight for two cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test chaos mutants lint bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/diptych demo $(ARGS)

test: $(VENV)/dev.stamp
	$(THREADS) $(BIN)/python -m pytest -n 2 -q $(ARGS)

chaos: $(VENV)/dev.stamp
	$(THREADS) $(BIN)/python -m tests.distributed.chaos $(ARGS)

mutants: $(VENV)/dev.stamp
	$(THREADS) $(BIN)/python -m tests.mutants $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/dev.stamp
	$(THREADS) $(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) dist build docs/_site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "no '$(PYTHON)' here: install Python 3.11 or newer, or say which: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "diptych needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): say which to use, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual environments: install its venv package (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: whatever is asked for later finds it there and does not choose another build.
$(VENV)/torch.stamp: constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt $(TORCH_FLAGS) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@touch $@

# What builds the package comes under the same pins, hence no isolated build.
$(VENV)/%.stamp: pyproject.toml constraints.txt $(VENV)/torch.stamp
	$(PIP) install -q -c constraints.txt hatchling editables
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[$*]"
	$(PIP) check
	@touch $@
