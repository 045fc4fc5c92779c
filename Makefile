# Two commands on a fresh machine: `make demo` and `make test`. Both make their own environment in .venv.
# `make wheel-check` builds the source package and the wheel into dist/ and tries the wheel on every Python at hand.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE = 1

.PHONY: demo test docs fuzz install check sanitize bench clean wheels wheel-check

demo: install
	$(BIN)/dicache demo --out demo.png

test: install check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The long form of what `make test` fuzzes shortly.
fuzz: install
	DICACHE_FUZZ=1 $(BIN)/python -m pytest --numprocesses 2 -m "hypothesis or long"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/link && mkdir -p build/link/dicache
	ln -s $(CURDIR)/dicache/* $(CURDIR)/probes $(CURDIR)/estimators $(CURDIR)/extension $(CURDIR)/bench build/link/dicache
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

sanitize: install
	mkdir -p build/sanitize
	$(BIN)/python extension/build.py --sanitize --out build/sanitize

bench: install
	$(BIN)/python -m dicache.bench.studies.budgets

wheels:
	.ci/wheels build

wheel-check:
	.ci/wheels build try

install: .venv/installed

.venv/installed: setup.py pyproject.toml constraints.txt extension/build.py $(wildcard extension/csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,bench,docs]"
	-$(BIN)/pip install --quiet nvidia-cuda-nvrtc-cu12  # a test compiles the CUDA source with it, and is skipped without
	touch $@

clean:
	rm -rf .venv build/link build/docs build/site build/sanitize build/wheels dist extension/*.so
