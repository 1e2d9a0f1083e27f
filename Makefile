# `make check` is what must hold of every commit. Without an environment it makes one first, in .venv.

VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: check
check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

# Written last: an installation that was interrupted, or one without the development tools, is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
