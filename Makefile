# The two commands are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
VENV := .venv
LOCK := requirements.lock
BIN := $(VENV)/bin
UV := uv==0.13.9
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo demo-short test test-all test-gpu test-slurm slurm test-docs test-oldest lint \
        format lock wheels
help:
	@echo "make demo   set up .venv, run the active experiment of params.yaml, print its table"
	@echo "make test   set up .venv, run the tests (make test-all: the slow ones too; test-slurm, test-oldest)"
	@echo "make test-gpu  the tests that need a GPU"
	@echo "make wheels    what a GPU node without a network may lack (docs/cluster.md)"
	@echo "make setup  set up .venv alone      make lint  check style      make lock  renew versions"

setup: $(BIN)/.installed
$(BIN)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv is missing (on Debian: apt-get install python3-venv)"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(UV)"
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	snakemake --cores all
	fsd show

demo-short: setup
	snakemake --cores all --config experiment=tiny
	fsd show --experiment tiny

test: setup
	python -m pytest -m "not slow and not gpu and not slurm"

test-all: setup
	python -m pytest -m "not gpu and not slurm"

# What needs a GPU. Without one nothing would be tested, and nothing must not pass.
test-gpu: setup
	@python -W ignore -c 'import torch; torch.zeros(1, device="cuda").add_(1).item()' 2>/dev/null || \
	  { echo "make test-gpu: torch cannot use a GPU here, so there is nothing to test (fsd doctor says why)"; exit 2; }
	python -m pytest tests/gpu -m gpu

# A node is lost in the middle of a training on a private Slurm (installed where there is none).
test-slurm: setup slurm
	python -m pytest -m slurm

slurm:
	@command -v sbatch >/dev/null || { \
	  root=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$root apt-get update -q && \
	  $$root apt-get install -y -q --no-install-recommends slurm-wlm; } || \
	  { echo "Slurm is not installed (on Debian: apt-get install slurm-wlm)"; exit 2; }

# What the README tells to type, typed.
test-docs: setup
	python -m pytest -m docs

# The same tests on the oldest torch that is supported, in an environment of their own.
test-oldest:
	$(MAKE) VENV=.venv-oldest LOCK=requirements-oldest.lock test

lint: setup
	ruff check .
	ruff format --check .
	snakefmt --check workflow

format: setup
	ruff check --fix .
	ruff format .
	snakefmt workflow

# Versions and hashes of everything, for Python 3.11 and newer, with no index address in them.
lock:
	for name in requirements requirements-oldest; do \
	  $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate --all-extras pyproject.toml $$name.in \
	    -o $$name.lock || exit 1; \
	done

# What a GPU node with torch and the common packages may lack, for benchmarks/gpu.py; versions and hashes
# as in the lock.
WHEELS_PYTHON ?= 3.12
WHEELS := annotated-types|faster-coco-eval|pycocotools|pydantic|pydantic-core|typing-extensions|typing-inspection
wheels: $(LOCK)
	@mkdir -p $@
	@rm -f $@/*.whl
	@awk '/^[a-z]/ {on = /^($(WHEELS))==/} on' $(LOCK) > $@/requirements.txt
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	  --python-version $(WHEELS_PYTHON) --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  --require-hashes --requirement $@/requirements.txt --dest $@
	@du -sh $@
