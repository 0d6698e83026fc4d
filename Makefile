# Everything from a fresh machine with Python, pip and make. Targets set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

# The run of make train: a file or the name of a configuration.
CONFIG ?= digits_msngan
# Settings of make train and make table2, as key=value.
SETTINGS ?=

# Table II from nothing: train, score, report. What is done is skipped, so the same command goes on after a stop.
SEEDS ?= 0
STEPS ?=
TABLE2 ?= cifar10_wgan_gp_bn cifar10_wgan_gp_bn_joint cifar10_wgan_gp cifar10_sngan cifar10_hinge cifar10_msngan
PROTOCOLS ?= paper sngan standard
EXTRACTOR ?= inception
WEIGHTS ?=
RUNS ?= runs
OUT ?= table2
FLOOR ?= cifar10:test
# The file of make page.
PAGE ?= page.html
# As many of the GPUs as divide the batch of 64.
GPUS = $(shell $(RUN)/python -c 'import torch; print(max(n for n in (1, 2, 4, 8, 16) if n <= max(1, torch.cuda.device_count())))')
LAUNCH = $(if $(filter-out 1,$(GPUS)),$(RUN)/accelerate launch --multi_gpu --num_processes $(GPUS) --num_machines 1 \
	--mixed_precision no --dynamo_backend no,$(RUN)/python)

# Tests run in JOBS processes that share the cores. Each begins with its part of the files, so that what a file sets up is
# set up once; who is done takes from the others.
JOBS ?= 2
TEST = $(RUN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

.PHONY: help setup train test test-fast faults table2 page docs lint format hooks clean

help:
	@echo "make train      set up, train a configuration (scikit-learn's digits), score it and show where everything is:"
	@echo "                [CONFIG=FILE_OR_NAME] [SETTINGS=\"key=value ...\"]"
	@echo "make test       set up, then run all tests but the faults: [JOBS=2]"
	@echo "make test-fast  the tests that need less than a minute together: [JOBS=2]"
	@echo "make faults     kill, fill, damage and overload on purpose (half an hour: see docs/faults.md): [JOBS=2]"
	@echo "make table2     train, score and report Table II:"
	@echo "                [SEEDS=\"0 1 2\"] [STEPS=N] [TABLE2=\"CONFIGURATION ...\"] [SETTINGS=\"key=value ...\"]"
	@echo "                [PROTOCOLS=\"paper ...\"] [EXTRACTOR=NAME] [WEIGHTS=FILE] [FLOOR=SPEC] [RUNS=FOLDER] [OUT=FOLDER]"
	@echo "make page       write one HTML file of runs: [RUNS=\"FOLDER ...\"] [PAGE=FILE]"
	@echo "make docs       build the documentation site into build/site, and check its links"
	@echo "make lint       style (ruff) and types (mypy)"
	@echo "make format     rewrite the code in the project's style"
	@echo "make hooks      check style and types before each commit"
	@echo "make setup      only set up $(VENV): [PYTHON=python3.12], which each of these may be given"
	@echo "make clean      remove $(VENV) and the caches of the tools"
	@echo "make help       show this list"

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
	$(RUN)/python train.py --page --config $(CONFIG) $(SETTINGS)

test: setup
	$(TEST)

test-fast: setup
	$(TEST) -m "not slow and not faults"

faults: setup
	$(TEST) -m faults

# Scores along training show early that the extractor's weights are at hand, and give the report its curves.
table2: setup
	@set -e; launch="$(LAUNCH)"; runs=""; for seed in $(SEEDS); do for name in $(TABLE2); do \
		run=$(RUNS)/$${name}_seed$$seed; runs="$$runs $$run"; \
		$$launch train.py --config configs/$$name.yaml seed=$$seed run.dir=$(RUNS) run.name=$${name}_seed$$seed \
			evaluation.every=5000 evaluation.extractor=$(EXTRACTOR) $(if $(WEIGHTS),evaluation.weights=$(WEIGHTS)) \
			$(if $(STEPS),training.steps=$(STEPS)) $(SETTINGS); \
		$$launch -m eval score $$run --protocol $(PROTOCOLS) --extractor $(EXTRACTOR) \
			$(if $(WEIGHTS),--extractor-weights $(WEIGHTS)) $(if $(FLOOR),--floor $(FLOOR)); \
	done; done; \
	$(RUN)/python -m eval table2 $$runs --extractor $(EXTRACTOR) --out $(OUT)

page: setup
	$(RUN)/python -m gan page $(RUNS) --out $(PAGE) --force

docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict --quiet
	@echo "wrote build/site/index.html"

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
