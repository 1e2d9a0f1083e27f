# `make check` is what must hold of every commit. Without an environment it makes one first, in .venv.

VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: check
check: $(BIN)/tunewright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

# The last file that pip writes: an installation that was interrupted is done again.
$(BIN)/tunewright:
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
