# Everything a newcomer needs: `make demo` for a real campaign, `make test` for the tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export EVPACK_HOME ?= $(CURDIR)/.evpack
# Two threads of two steps (or of a test and its child) on two cores only get in each other's way.
test: export OMP_NUM_THREADS = 1
AREA ?= all

.DEFAULT_GOAL := help
.PHONY: help study study-scheduling test-scheduling test-tuning chaos venv demo demo-quick test lint format up fuzz bench docs fixture clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

venv: $(READY) ## Build .venv with every pinned package

# torch goes first and alone: the rest then accepts the build that is there instead of choosing another one.
$(READY): requirements.txt pyproject.toml
	@echo "building $(VENV) (a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed; give one with PYTHON=..."; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check "$$(grep -E '^torch==' requirements.txt | cut -d' ' -f1)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(READY) ## Edit, damage and evaluate a real model through Airflow; seal and verify the evidence pack
	@$(BIN)/evpack assets demo
	@$(BIN)/evpack campaign run --suite demo

demo-quick: $(READY) ## The same without a scheduler (airflow dags test)
	@$(BIN)/evpack assets demo
	@$(BIN)/evpack campaign run --suite demo --quick

test: lint ## Lint, types, layers and every test that belongs to CI
	@$(BIN)/python -m pytest

# How tools/with_docker.sh ends where no engine can be had.
MAY_SKIP = 77
test-docker: export OMP_NUM_THREADS = 1
test-docker: $(READY) ## The tests of steps in containers; root gets an engine and an image for them where there is none
	@tools/with_docker.sh $(BIN)/python -m pytest -m docker tests/docker || test $$? = $(MAY_SKIP)

worker-image: $(READY) ## Build the image that steps run in, and print its id for EVPACK_WORKER_IMAGE
	@tools/worker_image.sh wheelhouse $(BASE)

lint: $(READY) ## Ruff, mypy --strict, layer rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

up: $(READY) ## Airflow with its UI on this project, until Ctrl-C
	@$(BIN)/evpack airflow up

fuzz: $(READY) ## Attack packs with 2,000 mutations and the parsers for ten minutes
	@EVPACK_FUZZ_MUTATIONS=2000 EVPACK_FUZZ_SECONDS=600 $(BIN)/python -m pytest -q tests/pack/test_pack_fuzz.py

bench: $(READY) ## Measure the promised figures: make bench AREA=campaign
	@$(BIN)/python -m benchmarks $(AREA)

test-scheduling: $(READY) ## The full suite's shapes and 1,100 cells on a real scheduler (half an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow tests/scheduling/test_scheduling_real.py

chaos: $(READY) ## Kill, starve and fill campaigns on a real scheduler until twenty disturbances are survived
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow -k in_processes tests/scheduling/test_scheduling_chaos.py
	@OMP_NUM_THREADS=1 tools/with_docker.sh $(BIN)/python -m pytest -q -s -m slow -k in_containers tests/scheduling/test_scheduling_chaos.py || test $$? = $(MAY_SKIP)

test-tuning: $(READY) ## Tune the fixture and the demo model again and hold the shipped entries against it (half an hour or more)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow tests/tuning

study-scheduling: $(READY) ## Simulate the full suite on 1, 2, 4 and 8 devices; studies/results/scheduling.json
	@$(BIN)/python -m studies.scheduling

study: $(READY) ## Prove intervals and guards on three models (an hour or more; what is measured stays measured)
	@$(BIN)/evpack assets demo
	@$(BIN)/python -m studies

docs: $(READY) ## Regenerate docs/tuning.md, docs/benchmarks.md and docs/guards.md
	@$(BIN)/evpack settings docs > docs/tuning.md
	@$(BIN)/python -m benchmarks --docs
	@$(BIN)/python -m studies docs

fixture: $(READY) ## Train the fixture model again (about 3 minutes; needs the text)
	@$(BIN)/python tools/train_fixture.py

clean: ## Remove the virtual environment and this checkout's EVPACK_HOME
	@rm -rf $(VENV) .evpack build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
