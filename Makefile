# `make` alone lists the targets. The tools live in .venv; what has to be installed is decided in .ci/setup.
PYTHON ?= python3
BIN := .venv/bin
# Debian keeps mkfs.ext4 and its like where the path of a user who is not root does not lead.
export PATH := $(PATH):/usr/sbin:/sbin

# A process for each processor; one that has no test left takes half of another's.
PARALLEL := -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test xen-test xen-shell xen-bench check bench picture format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.complete ## Make .venv with xenbusd and its tools in it (done once; again when pyproject.toml changes)

.venv/.complete: pyproject.toml .ci/setup
	@PYTHON='$(PYTHON)' .ci/setup venv
	@touch $@

demo: .venv/.complete ## Show a disk pair at work on a simulated Xen host, read and written by a real NBD client
	@.ci/setup need demo
	@$(BIN)/python -m xenbusd.cli.demo

# Tests marked `alone` need every processor, so they run after the others, one by one.
test: .venv/.complete ## Run every test
	@.ci/setup want demo test
	@status=0; \
	$(BIN)/python -m pytest $(PARALLEL) -m 'not alone' || status=1; \
	$(BIN)/python -m pytest -m alone $$(grep -rlw --include='test_*.py' mark.alone tests) || status=1; \
	exit $$status

xen-test: .venv/.complete ## Boot a real Xen host under emulation, run tests/xen in it (root, Debian; minutes; ALL=1: long cases)
	@.ci/setup want xen
	@XENBUSD_XEN=1 XENBUSD_ALL=$(ALL) $(BIN)/python -m pytest tests/xen

xen-shell: .venv/.complete ## Boot the same host, and give a root shell in its dom0, with the work tree live (root, Debian)
	@.ci/setup need xen
	@$(BIN)/python -m tests.xen.shell

check: .venv/.complete ## Check format, style, types and layers, and run the quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q $(PARALLEL) tests/unit tests/properties

bench: .venv/.complete ## Measure, and print a table
	@$(BIN)/python tests/bench/run.py

xen-bench: .venv/.complete ## Measure disks on a real Xen host beside blkback's and qdisk's; 15 minutes (XENBUSD_BENCH=--help)
	@.ci/setup want xen
	@$(BIN)/python -m tests.bench.xen.run

picture: .venv/.complete ## Draw the modules and the table of states anew in docs/
	@$(BIN)/python -m tests.structure --write

format: .venv/.complete ## Put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove everything that make has made, .venv too
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
