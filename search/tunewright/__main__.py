"""`python -m tunewright`."""

from tunewright.search.cli import run_program

run_program()
