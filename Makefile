# Every target makes or refreshes .venv first, and only when the lock or pyproject.toml changed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
READY := .venv/.ready
RUN := .venv/bin/python -m
WORKERS ?= 3

.PHONY: help demo tour up test test-all coverage lint bench bench-quick screenshots lock clean

help: ## Say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(READY) ## Run one real night from start to verdict, in about five minutes
	$(RUN) deployments.cli demo

tour: $(READY) ## Play a week of nights with every ending, in under ten minutes
	$(RUN) deployments.cli tour

up: $(READY) ## Run the local stack until Ctrl-C
	exec $(RUN) deployments.cli up

# Many tests wait for servers, so there are more workers than cores; each runs whole files, and one thread.
test: $(READY) ## Run the tests that take less than half a minute each, side by side
	OMP_NUM_THREADS=1 $(RUN) pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: $(READY) ## Run every test, one after the other
	$(RUN) pytest

coverage: $(READY) ## Report which lines the tests of `make test` run, those of tests/flows left out
	OMP_NUM_THREADS=1 $(RUN) pytest -q -m "not slow" -n $(WORKERS) --dist loadfile --ignore tests/flows \
		--cov --cov-report=term:skip-covered

lint: $(READY) ## Check format, rules, types, imports and dependencies
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	.venv/bin/lint-imports
	.venv/bin/deptry .

bench: $(READY) ## Measure at full size, and compare side by side; BENCH="intake gate" measures these
	$(RUN) tests.benchmarks $(BENCH)

bench-quick: $(READY) ## Measure small: does every benchmark still run
	$(RUN) tests.benchmarks --quick

screenshots: $(READY) ## Make the pictures of the documentation anew; needs Chromium
	$(RUN) tests.screenshots

lock: ## Write the locks; what is locked already stays, unless UPGRADE=1
	PYTHON="$(PYTHON)" deployments/lock

clean: ## Remove what can be made again; .ratchet stays, it may hold models
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis .cache .coverage dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A half-made environment has no stamp, and is made again from nothing.
$(READY): requirements.lock requirements-torch.lock pyproject.toml
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Ratchet needs Python 3.11 or later; name one: make PYTHON=...")'
	test -e $(READY) || "$(PYTHON)" -m venv --clear .venv
	rm -f $(READY)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)
