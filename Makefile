# `make repro` runs the whole benchmark; `make test` every fast test; `make review` compares with main. Each sets up .venv
# when it is missing or the pins changed.

PYTHON ?= python3
HELLO := $(dir $(lastword $(MAKEFILE_LIST)))src/segquant/hello.py
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED = 1

STAMP := .venv/.installed-$(shell cat requirements.txt constraints.txt pyproject.toml | cksum | cut -d' ' -f1)

BASE ?= main

.PHONY: .venv hello repro review test test-slow lint

.venv: $(STAMP)

# What is left of an .venv goes first: its python3 comes first in PATH, and a cut one cannot make another.
$(STAMP):
	@rm -rf .venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "segquant needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "setting up .venv: two to four minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

hello:
	@$(PYTHON) -I $(HELLO) 2>/dev/null || true # a Python that is too old or cut off is named below

repro: hello $(STAMP)
	@python -m segquant.base.locks
	python -m segquant.warm dvc repro
	@segquant report

# What a pull request would be told: rebuilds what changed, compares with BASE, fails where a method failed or too much
# accuracy went. These two stages need all but the last, which would end it before the comparison.
review: $(STAMP)
	@python -m segquant.base.locks
	python -m segquant.warm dvc repro select report
	segquant review --base $(BASE) --output review.md

test: $(STAMP)
	ruff check src stages tests benchmarks
	ruff format --check src stages tests benchmarks
	pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-slow: $(STAMP)
	pytest -m slow

lint: $(STAMP)
	ruff check --fix src stages tests benchmarks
	ruff format src stages tests benchmarks
