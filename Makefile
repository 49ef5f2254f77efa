# Two commands matter: `make search` and `make test`. Everything they need is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONFIG ?= configs/simulated_flake_search.toml

.PHONY: help search test check env env-dev bench clean

help:
	@echo "make search   set up and search a simulated chip ($(CONFIG))"
	@echo "make test     set up and run formatter, linter, types, import directions, tests"
	@echo "make bench    the budget tables, quick form"
	@echo "make clean    remove the environment and caches (never the runs)"

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Scopeloop needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 search")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	@touch $@

env: $(VENV)/.base
env-dev: $(VENV)/.dev

search: env
	$(BIN)/scopeloop search $(CONFIG)

check: env-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest

bench: env
	$(BIN)/scopeloop bench all --quick

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
