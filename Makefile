# Everything goes through here; CI calls only these targets.
# `make setup` builds .venv from requirements.lock; the other targets do so by themselves.

VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SPARK  := $(VENV)/.ready-spark
BENCH  := $(VENV)/.ready-bench
PYTHON := $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& { echo $$p; break; }; done)
PACKAGES := src serving training monitoring simulation
CODE     := $(PACKAGES) feature_repo tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup data demo test coverage test-kills test-spark lint format bench bench-online bench-log bench-offline bench-audit bench-quick lock clean

help:  ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Make .venv and install what is locked

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Tallystick needs Python 3.11 or 3.12; install one and run make again."; exit 1; }
	@echo "Installing into $(VENV) with $(PYTHON) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

data: $(READY)  ## Make the reference scenario's tables
	@$(BIN)/python feature_repo/sources.py

demo: $(READY) data  ## Play the year: serve, log, audit, decide, retrain
	@$(BIN)/tally demo --out demo-out

test: $(READY) data  ## Run every test, on all cores
	@$(BIN)/python -m pytest -n logical --dist worksteal

coverage: $(READY) data  ## Run every test and print which lines and branches it reaches
	@$(BIN)/python -m pytest -n logical --dist worksteal --cov --cov-report=term:skip-covered

test-kills: $(READY)  ## Kill the log's workers and compactors 200 times
	@LOG_KILLS=200 $(BIN)/python -m pytest tests/integration/test_log_kills.py

test-spark: $(SPARK)  ## Run the tests that need Spark
	@$(BIN)/python -m pytest -m spark tests/contract

$(SPARK): $(READY) requirements-spark.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-spark.lock
	@touch $@

lint: $(READY)  ## Check style, types and the shape of the house
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy

format: $(READY)  ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

bench: bench-online bench-log bench-offline bench-audit  ## Run all benches, one after the other

bench-online: $(READY)  ## Measure serving against Feast's own server
	@$(BIN)/python -m benchmarks.online $(QUICK)

bench-log: $(READY)  ## Measure the prediction log
	@$(BIN)/python -m benchmarks.log $(QUICK)

bench-offline: $(BENCH)  ## Measure training sets against Feast's stores and the engines
	@$(BIN)/python -m benchmarks.offline $(QUICK)

bench-audit: $(READY)  ## Inject each cause of skew and measure the audit
	@$(BIN)/python -m benchmarks.audit $(QUICK)

bench-quick:  ## Run all benches in a quick form, to compare two versions of the code
	@$(MAKE) --no-print-directory bench QUICK=--quick

$(BENCH): $(READY) requirements-bench.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

lock: $(READY)  ## Resolve the dependencies again (needs the network)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header \
		--extra demo --extra delta --group dev pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header \
		--constraint requirements.lock --extra spark pyproject.toml -o requirements-spark.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header \
		--constraint requirements.lock --group bench -o requirements-bench.lock

clean:  ## Remove what the other targets made, but for .venv
	@rm -rf demo-out reports build dist feature_repo/data feature_repo/.tallystick \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
