# `make demo` and `make test` install what they need; they require only make and Python >= 3.11 with venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SWEEP := outputs/sweeps/demo

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-all lint format bench lock clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

.venv/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Thaw needs Python >= 3.11, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

# One stamp per lock file: the environment is updated only if its lock file or pyproject.toml has changed.
.venv/installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing the pinned dependencies into .venv (about a minute the first time) ..."
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch .venv/installed

.venv/installed-dev: requirements-dev.lock pyproject.toml | .venv/bin/python
	@echo "Installing the pinned development dependencies into .venv (about a minute the first time) ..."
	$(PIP) install --require-hashes -r requirements-dev.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch .venv/installed .venv/installed-dev

install: .venv/installed  ## Create .venv with the dependencies

install-dev: .venv/installed-dev  ## Create .venv with the development dependencies

demo: .venv/installed  ## Compare four strategies on real data: sweep, export, analyse, plot (under 3 minutes)
	$(BIN)/python -m src.train -m experiment=four_strategies hydra.sweep.dir=$(SWEEP) resume=force
	$(BIN)/python scripts/export_sweep.py $(SWEEP) --out $(SWEEP)/sweep.parquet --history $(SWEEP)/history.parquet
	$(BIN)/python scripts/analyze_sweep.py $(SWEEP)/sweep.parquet

test: .venv/installed-dev  ## Run the fast tests (about 11 minutes on 2 cores; 27 the first time, because of compilation)
	$(BIN)/python -m pytest -n 2

test-all: .venv/installed-dev  ## Run all tests, including the slow ones
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

lint: .venv/installed-dev  ## Check format and rules (ruff) and types (pyright)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/installed-dev  ## Format the files and apply ruff's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed-dev  ## Run the benchmarks that docs/performance.md quotes
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

UV_COMPILE := uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url \
  --no-emit-find-links --no-annotate --quiet --python-version 3.11 --fork-strategy fewest --custom-compile-command "make lock"

lock:  ## Update both lock files (needs uv; UPGRADE=--upgrade for newer versions)
	$(UV_COMPILE) $(UPGRADE) --group build --output-file requirements.lock
	$(UV_COMPILE) $(UPGRADE) --group dev --extra dashboard --extra joblib --extra optuna --constraint requirements.lock --output-file requirements-dev.lock

clean:  ## Remove the environment and the tools' caches, but not outputs/
	rm -rf .venv .pytest_cache .ruff_cache ./*.egg-info build dist
