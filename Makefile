SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs

.PHONY: help demo test test-all check format bench accuracy fuzz audit docs clean

help: ## say what the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,demo]"
	@touch $@

$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

demo: $(READY) ## train on real images with 10 % wrong labels, score every sample, write a page
	$(BIN)/diffin demo

test: $(READY) ## the quick tests
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-all: $(READY) ## every test, with coverage (which makes them half as slow again)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term

check: $(READY) ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src

format: $(READY) ## rewrite the files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## cost and error beside the authors' procedure and two other libraries
	$(BIN)/python benchmarks/scoring.py

accuracy: $(READY) ## estimators and other libraries against retraining; hours, and goes on where it stopped
	$(BIN)/python benchmarks/accuracy/compare.py

fuzz: $(READY) ## damage files of every format for ten minutes, and read them
	$(BIN)/python benchmarks/fuzz.py --minutes 10

audit: ## look the pinned packages up among known vulnerabilities; needs the network
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && \
		.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

docs: $(READY_DOCS) ## the documentation, into site/
	$(BIN)/mkdocs build --strict

clean: ## everything that can be made again, but no runs
	rm -rf $(VENV) .venv-peers .venv-audit .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build dist site
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
