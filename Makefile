# Each target sets up what it needs, once. `make demo` and `make test` work as the first command in a
# fresh clone with Python, a C++ compiler and make.
#
#   make demo        train, transplant and adapt a tokenizer on five photographs; runs/demo/report.html
#   make test        all tests (under ten minutes on two cores)
#   make bench       the kernels against their peers, interleaved; runs/bench/
#   make soak        ten thousand searches a kernel, every Triton tile compiled
#   make mutants     break the kernels one line at a time and see the tests go red (half an hour)
#   make gpu-check   on a GPU machine: build, GPU tests, races, benchmarks, one command
#   make lint        ruff

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# The torch to install where none is found; one version gives everyone the same numbers.
TORCH ?= torch==2.13.0
# Triton compiles and interprets on a CPU too, so that its kernels are tested everywhere.
TRITON ?= triton==3.7.1

BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test bench soak mutants gpu-check lint clean

demo: $(VENV)/.demo
	$(BIN)/vqkern demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/compare.py $(ARGS)
	$(BIN)/python -m pytest benchmarks --benchmark-json=runs/bench/pytest.json

soak: $(VENV)/.test
	mkdir -p runs
	set -o pipefail; $(BIN)/python -m pytest -m slow --durations=0 $(ARGS) | tee runs/soak.txt

mutants: $(VENV)/.test
	$(BIN)/python tests/mutants.py --out runs/mutants.txt $(ARGS)

# The Python that is there already, with its CUDA torch: a GPU machine often has no network.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

lint: $(VENV)/.test
	$(BIN)/ruff check .

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.python $(SOURCES)
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	@touch $@

$(VENV)/.test: $(VENV)/.python $(SOURCES)
	$(BIN)/python -m pip install --quiet -e ".[test]" "$(TRITON)"
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(VENV)/.python $(SOURCES)
	$(BIN)/python -m pip install --quiet -e ".[bench,test]" "$(TRITON)"
	@touch $@

clean:
	rm -rf build .pytest_cache .ruff_cache vqkern/_native*.so vqkern/_hopper.so
