# The two commands are `make run` and `make test`; `make help` lists the rest. Every target sets up what it needs
# first, does nothing twice, and says what it does. Variables: PYTHON (which interpreter), ARGS (more for pytest).

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
# The tool that writes the lock files; pinned, for its output is committed.
UV_VERSION := 0.13.9
SOURCES := appliance pkcs11/appliance_pkcs11

.PHONY: help run test lint bench gauntlet build clean lock setup setup-lint setup-tests setup-gauntlet simulator

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup:
	@.ci/setup

setup-lint:
	@.ci/setup --lint

setup-tests:
	@.ci/setup --tests

setup-gauntlet:
	@.ci/setup --gauntlet

run: simulator  ## build, make demo tokens, start the daemon, sign batches through it, verify them, stop
	@$(BIN)/cloud-seal demo --directory .demo --simulated-hsm $(SIMULATOR) $(ARGS)

# The simulated HSM, for SM2: a project of its own, never part of what a rack installs. ninja knows what has changed.
SIMULATOR := firmware-sim/build/libfirmware_sim.so

simulator: setup
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	if [ ! -e firmware-sim/build/build.ninja ]; then \
	  echo "==> building the simulated HSM"; meson setup firmware-sim/build firmware-sim >/dev/null; \
	fi; \
	ninja -C firmware-sim/build --quiet $(notdir $(SIMULATOR)) >firmware-sim/build/make.log || \
	  { cat firmware-sim/build/make.log; exit 1; }

# Two processes, for two cores: most tests start processes and wait. A file's tests stay together, for they share what
# their fixtures make; files begin in the order of their names, which leaves short ones for the end. What is measured
# (pytest-benchmark) is measured alone, so here it only runs. ARGS="-n 0" runs everything in one process, in order.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --benchmark-disable

test: lint setup-tests simulator  ## lint, then the whole test suite but the gauntlet, two tests at a time
	@$(BIN)/pytest -m "not gauntlet" $(PARALLEL) $(ARGS)

lint: setup-lint  ## ruff, mypy --strict, the import contracts
	@echo "ruff check, ruff format --check" && $(BIN)/ruff check --quiet && $(BIN)/ruff format --check --quiet
	@echo "mypy --strict" && $(BIN)/mypy --no-error-summary
	@echo "lint-imports" && PYTHONPATH=.:pkcs11 $(BIN)/lint-imports

bench: setup  ## measure, side by side with the raw loop and with p11-kit's server; writes bench/
	@$(BIN)/python bench/run.py $(ARGS)

gauntlet: setup-gauntlet simulator  ## the long tests: every crash point, long fuzzing, soak
	@$(BIN)/pytest -m gauntlet $(ARGS)

build: setup-lint  ## the wheel, in dist/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip wheel --quiet --no-deps --no-index --no-build-isolation \
	  --wheel-dir dist . && ls -1 dist/*.whl

clean:  ## remove what was built, the demo and the virtual environment
	rm -rf build firmware-sim/build* dist .demo .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks .hypothesis

# Universal: one lock file for every Python from 3.11 on. Only versions and hashes go in, no addresses.
LOCK := build/lock/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
  --no-config pyproject.toml $(UPGRADE)

lock:  ## write the lock files anew from pyproject.toml; UPGRADE=--upgrade takes newer versions
	@python3 -m venv build/lock && build/lock/bin/pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	@$(LOCK) --output-file requirements.lock
	@$(LOCK) --group dev --group build --constraint requirements.lock --output-file requirements-dev.lock
	@for file in requirements.lock requirements-dev.lock; do \
	  sed -i -e '/^# Made by/d' -e '1i # Made by `make lock` from pyproject.toml: what was tested is what is installed.' $$file; \
	done
