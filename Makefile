# The front door. Every target does its own set-up; arguments go through ARGS="…".

SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
# Tests run in parallel: each emulated host keeps one core busy.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 4 ] && n=4; echo $$n)

N ?= 20
HOSTS ?= bookworm trixie

.PHONY: help setup setup-lint setup-qemu run test prepare test-quick test-long test-repeat test-debug test-qemu test-hosts test-unit shell series mutants coverage doctor bench-rig images qemu man lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		awk -F '|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# Two in one checkout take turns.
setup: ## install missing packages (lists them first; sudo unless root) and make .venv
	@flock Makefile $(MAKE) --no-print-directory $(STAMP)-now

.PHONY: $(STAMP)-now
$(STAMP)-now:
	@sh emu/host-setup.sh emu/host-packages.txt
	@$(MAKE) --no-print-directory --silent $(STAMP)

setup-lint: setup
	@sh emu/host-setup.sh emu/host-packages.txt lint

setup-qemu: setup
	@sh emu/host-setup.sh emu/host-packages.txt qemu
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'meson>=1.5'

$(STAMP): pyproject.toml
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

run: setup ## boot Xen, dom0, LUN and domU; attach over our drivers; show ring, grants, data
	@$(BIN)/emu run $(ARGS)

test: setup ## all tests: unit, and system tests that boot Xen (JOBS=2 side by side)
	@$(BIN)/emu prepare -- $(ARGS)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 10 $(ARGS)

prepare: setup ## build what the tests need, as `make test` does first (ARGS as for pytest)
	@$(BIN)/emu prepare -- $(ARGS)

test-quick: setup ## the unit tests, and a test of each subject: rings, migration, grants
	@$(BIN)/emu prepare -- -m 'quick or not system' $(ARGS)
	@$(BIN)/python -m pytest -n $(JOBS) -m 'quick or not system' $(ARGS)

test-long: setup ## the tests that have a short form by default, in full: hours
	@$(BIN)/emu prepare -- -m long $(ARGS)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m long $(ARGS)

test-repeat: setup ## the whole suite N=20 times in a row; resumes where it was interrupted
	@$(BIN)/emu prepare -- $(ARGS)
	@$(BIN)/emu repeat --times $(N) -- -q -n $(JOBS) --dist worksteal $(ARGS)

test-debug: setup ## tests on debug kernels (lockdep, KASAN, kmemleak, …), built first: 40 min
	@$(BIN)/emu prepare -- -m debug $(ARGS)
	@$(BIN)/python -m pytest -m debug $(ARGS)

test-qemu: setup-qemu ## what our QEMU patches fix: boots on stock and patched QEMU, built first
	@$(BIN)/emu prepare -- -m qemu $(ARGS)
	@$(BIN)/python -m pytest -m qemu $(ARGS)

test-hosts: setup ## `make run` and test-quick on fresh machines: HOSTS="bookworm trixie", in chroots
	@$(BIN)/python .ci/hosts.py $(HOSTS) $(ARGS)

test-unit: setup ## the unit tests alone
	@$(BIN)/python -m pytest tests/unit $(ARGS)

shell: setup ## a terminal in dom0 (ARGS=domu: in the domU); Ctrl-] leaves
	@$(BIN)/emu shell $(ARGS)

series: setup ## check the driver series patch by patch: applies, builds, checkpatch, sparse
	@$(BIN)/emu series $(ARGS)

mutants: setup ## does the suite catch known flaws? run its tests on drivers with one flaw each (an hour)
	@$(BIN)/emu mutants $(ARGS)

coverage: setup ## which lines and branches of the drivers do the tests reach? (ARGS="--missing -- -m long")
	@$(BIN)/emu coverage --jobs $(JOBS) $(ARGS)

doctor: setup ## what this machine has and lacks, and how to fix it
	@$(BIN)/emu doctor $(ARGS)

bench-rig: setup ## measure the rig against its targets
	@$(BIN)/emu bench $(ARGS)

images: setup ## build the kernel, the guest images and the drivers; run nothing
	@$(BIN)/emu images build $(ARGS)

qemu: setup-qemu ## build QEMU with our patches (ARGS=patched-10.2: a newer one): 5 min on 2 cores
	@$(BIN)/emu qemu build $(ARGS)

man: setup ## build/emu.1, the manual page of emu
	@mkdir -p build
	@$(BIN)/argparse-manpage --module emu.commands.parser --function parser \
		--format single-commands-section --project-name emu-xen-block \
		--description 'the Xen block stack in QEMU' --manual-title emu-xen-block \
		--output build/emu.1

lint: setup-lint ## ruff, mypy, clang-format and gcc's analyzer, as CI runs them
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python .ci/lint_c.py

clean: ## remove .venv and what builds left here; the cache stays (emu cache prune)
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
