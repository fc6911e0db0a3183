# The two commands are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
VENV := .venv
LOCK := requirements.lock
BIN := $(VENV)/bin
UV := uv==0.13.9
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo demo-short test test-all test-slurm slurm test-docs test-oldest lint format lock
help:
	@echo "make demo   set up .venv, run the active experiment of params.yaml, print its table"
	@echo "make test   set up .venv, run the tests (make test-all: the slow ones too; test-slurm, test-oldest)"
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
