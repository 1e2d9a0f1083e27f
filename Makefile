# `make check` is what must hold of every commit. `make check-all` adds the tests that are marked slow:
# PostgreSQL, torch's compiler, other frameworks, the documentation, whole studies and benchmarks. Both make the environment,
# in .venv, first. `make docs` builds the documentation: build/site/docs/index.html.

VENV ?= .venv
BIN := $(VENV)/bin

# Hundreds of processes import the same modules: compiled once, they are kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: check check-all docs
check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --dist loadgroup -m "not slow"

check-all: check $(VENV)/.frameworks $(VENV)/.docs
	$(BIN)/pytest -n auto --dist loadgroup -m slow

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -E -W --keep-going -q -c docs -b html . build/site

# What builds the documentation, and its test.
$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Lightning, Transformers and TensorBoard, which slow tests train with, and clusters that start workers.
$(VENV)/.frameworks: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,lightning,transformers,tensorboard,dask,ray,slurm]'
	touch $@

# Written last: an installation that was interrupted, or one without the development tools, is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
