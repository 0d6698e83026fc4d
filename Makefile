# Everything from a fresh machine with Python, pip and make. Targets set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup train test test-fast lint format hooks clean

help:
	@echo "make train      set up, then train the embedded default (digits) and show where everything is"
	@echo "make test       set up, then run all tests (at most 10 minutes on two cores)"
	@echo "make test-fast  the tests that need less than a minute together"
	@echo "make lint       style (ruff) and types (mypy)"
	@echo "make format     rewrite the code in the project's style"
	@echo "make hooks      check style and types before each commit"
	@echo "make setup      only set up $(VENV)"

setup: $(READY)

# The constraints keep pip at the torch build that the project is developed with.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch torchvision
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: setup
	$(RUN)/python train.py --config configs/digits_msngan.yaml

test: setup
	$(RUN)/python -m pytest

test-fast: setup
	$(RUN)/python -m pytest -m "not slow"

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: setup
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

hooks: setup
	$(RUN)/pre-commit install

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
