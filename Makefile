# Everything runs in .venv, which the first target that needs it builds.
# What is needed beforehand: Python 3.11 or later, make, a C compiler, a package registry that pip can reach.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.package
MIN := import sys; sys.exit(sys.version_info < (3, 11))

# The first of these that runs and is new enough; `make PYTHON=/path/to/python …` overrules.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c '$(MIN)' 2>/dev/null && { echo $$p; break; }; done)

# Tests whose programs share the machine by the clock: nothing else runs beside them.
TIMED := tests/fleet tests/strict tests/stores/test_shares.py tests/integrations/mediator/test_faults.py

# All others, of which many wait for something most of the time. The longest files hold the fewest tests, and
# would come last if they were put in order by number.
MANY := -n 3 --dist loadfile --no-loadscope-reorder

# ARGS may choose tests of one of the two runs only, for which pytest has a status of its own.
NONE := [ $$? -eq 5 ]

# Further arguments for pytest, as in `make test ARGS="-m 'not slow'"`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench build lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

run: $(READY)  ## summarise 1,000 articles through a rate-limited API on this machine
	$(BIN)/python -m examples.articles.demo

test: lint  ## what CI runs: lint, then every test
	$(BIN)/python -m pytest $(MANY) $(TIMED:%=--ignore %) $(ARGS) || $(NONE)
	$(BIN)/python -m pytest $(TIMED) $(ARGS) || $(NONE)

lint: $(READY)  ## ruff, mypy, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)  ## let ruff fix and format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)  ## benchmarks, side by side with peers
	$(BIN)/python -m benchmarks

build: $(READY)  ## wheel and source archive in dist/
	$(BIN)/python -m build --no-isolation

lock:  ## pin the newest versions in requirements/dev.txt (needs uv)
	uv pip compile --quiet --universal --upgrade --python-version 3.11 --all-extras \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
		pyproject.toml requirements/dev.in --output-file requirements/dev.txt

clean:  ## remove all that these targets make
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.created:
	@"$(PYTHON)" -c '$(MIN)' 2>/dev/null || { \
		echo 'headgate needs Python 3.11 or later; found: "$(PYTHON)". Try: make PYTHON=/path/to/python3.11'; \
		exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON); this is done once."
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.requirements: requirements/dev.txt $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

$(READY): pyproject.toml $(VENV)/.requirements
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
