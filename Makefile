# Linux, Python 3.10 or newer, a C++20 compiler. `make` alone lists what there is.
# PYTHON picks the interpreter: the one .venv is made from, and for `make gpu` the one that has torch.
PYTHON ?= python3

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint docs bench gpu gpu-cache gpu-tests

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
DEPENDENCIES := $(VENV)/dependencies.stamp
INSTALLED := $(VENV)/installed.stamp
SITE := build/site
RESULTS := benchmarks/results
GPU_CACHE := $(CURDIR)/build/triton-cache
# A process for each core, whose waiting threads leave it to the other. ARGS="-n 0 tests/test_errors.py" runs one file in
# this process.
PYTEST := OMP_WAIT_POLICY=passive $(VENV_PYTHON) -m pytest -n auto
PIP_INSTALL := $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

help:
	@echo "make setup   create .venv, install the pinned versions, build the extension"
	@echo "make demo    distil a student on real images (ARGS=... are passed on: ARGS=--help)"
	@echo "make test    run the tests, five minutes on two cores (ARGS=... are passed on to pytest)"
	@echo "make test-all  run the rest: ahead-of-time compilation, Triton's interpreter, emulated CUDA, sanitizers, every"
	@echo "             instruction set, long gradchecks"
	@echo "make lint    ruff and mypy"
	@echo "make docs    build the site, with the API reference, into build/site; warnings are errors"
	@echo "make bench   time everything on this CPU, write the tables and plots (ARGS=... are passed on to the run)"
	@echo "make gpu     ten minutes on a GPU with the installed torch, offline: right results first, then times"
	@echo "             (ARGS=... are passed on: ARGS='--seconds 300')"
	@echo "make gpu-cache  compile every kernel of make gpu beforehand, without a GPU; PYTHON has the GPU machine's Triton"
	@echo "make gpu-tests  with a GPU, without a limit of time: build the extension, run the GPU tests, every benchmark"

setup: $(INSTALLED)

$(DEPENDENCIES): constraints.txt
	@echo "==> Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> Installing torch and the build tools (the first time, the download takes a while)"
	@$(PIP_INSTALL) torch triton numpy setuptools wheel ninja
	@touch $@

$(INSTALLED): $(DEPENDENCIES) pyproject.toml setup.py $(shell find csrc -type f)
	@echo "==> Building the extension and installing the package in place"
	@$(PIP_INSTALL) --no-build-isolation --editable ".[demo,test,lint,docs,release]"
	@$(VENV_PYTHON) -c 'import icd_kernels; print("==> Backends here:", ", ".join(icd_kernels.available_backends()))'
	@touch $@

demo: $(INSTALLED)
	@echo "==> Distilling a student on real images"
	@$(VENV_PYTHON) train_example.py $(ARGS)

test: $(INSTALLED)
	@echo "==> Running the tests, but for the thorough ones (make test-all)"
	@$(PYTEST) --dist worksteal -m "not thorough" $(ARGS)

test-all: $(INSTALLED)
	@echo "==> Running the thorough tests: those that make test leaves out"
	@$(PYTEST) --dist loadgroup --no-loadscope-reorder -m thorough $(ARGS)

lint: $(INSTALLED)
	@echo "==> Checking lint rules, format and types"
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

docs: $(INSTALLED)
	@echo "==> Building the site"
	@$(VENV_PYTHON) -m sphinx --fail-on-warning --keep-going --quiet -b html docs $(SITE)
	@echo "==> $(SITE)/index.html"

bench: $(INSTALLED)
	@echo "==> Timing on this CPU; keep the machine quiet"
	@$(VENV_PYTHON) -m benchmarks run $(ARGS)
	@echo "==> Writing the tables and plots"
	@$(VENV_PYTHON) -m benchmarks render

gpu:
	@$(PYTHON) -c 'import importlib.util as u, sys; u.find_spec("torch") or sys.exit("make gpu: no torch in $(PYTHON)")'
	@TRITON_CACHE_DIR="$(GPU_CACHE)" $(PYTHON) -m benchmarks.ten_minutes $(ARGS)

gpu-cache:
	@$(PYTHON) -c 'import importlib.util as u, sys; all(map(u.find_spec, ("torch", "triton"))) or sys.exit("make gpu-cache: torch and triton are needed in $(PYTHON)")'
	@TRITON_CACHE_DIR="$(GPU_CACHE)" $(PYTHON) -m benchmarks.compile_ahead $(ARGS)

gpu-tests:
	@$(PYTHON) -c 'import importlib.util as u, sys; u.find_spec("torch") or sys.exit("make gpu: no torch in $(PYTHON)")'
	@$(PYTHON) -c 'import torch, sys; torch.cuda.is_available() or sys.exit("make gpu-tests: torch sees no GPU; nothing was run")'
	@echo "==> Building the extension against the installed torch"
	@TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$($(PYTHON) -c 'import torch; print(";".join(sorted({"%d.%d" % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})))')}" ICD_KERNELS_EXTENSION=1 $(PYTHON) setup.py build_ext --inplace
	@mkdir -p $(RESULTS)
	@echo "==> Running the GPU tests"
	@$(PYTHON) -m pytest -m gpu tests/gpu --junitxml=$(RESULTS)/gpu-tests.xml
	@sed -i 's/ hostname="[^"]*"//' $(RESULTS)/gpu-tests.xml
	@echo "==> Timing on the GPU"
	@$(PYTHON) -m benchmarks run --device cuda $(ARGS)
