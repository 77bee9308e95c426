# Two commands do everything on a fresh machine: `make demo` and `make test`. `make` alone lists the rest.
PYTHON      ?= python3
VENV        ?= .venv
# Where pip takes torch from; empty is pip's own default. A small CPU-only build on Linux:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test fast lint clean

help:            ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"{sys.executable} is Python {v[0]}.{v[1]}; llm needs 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.runtime: $(BIN)/python requirements.txt pyproject.toml
	@echo "Installing the packages of requirements.txt into $(VENV) (a few minutes the first time) ..."
	@$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) "$$(grep '^torch' requirements.txt)",true)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "Installing the test packages ..."
	@$(PIP) --editable '.[test]'
	@touch $@

setup: $(VENV)/.runtime   ## make the virtual environment and install the packages

demo: $(VENV)/.runtime    ## train a small model on the text at hand; loss curve and samples
	@$(BIN)/python -m llm.tasks.demo

test: $(VENV)/.test       ## every test
	@$(BIN)/python -m pytest

fast: $(VENV)/.test       ## the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.test       ## ruff and mypy
	@$(BIN)/ruff check llm tests
	@$(BIN)/mypy

clean:           ## remove the virtual environment and caches (never logs or data)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info
