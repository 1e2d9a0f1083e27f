"""Programs of this package in a new interpreter, which finds modules where this one does."""

from __future__ import annotations

import json
import sys


def command_of(module: str, main: str, *arguments: str) -> list[str]:
    """The command that calls a function `main` of a module of `tunewright.search.pool`.

    There the arguments are sys.argv[1:]. -P: the interpreter does not look for modules first where
    it stands.
    """
    program = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
        f"from tunewright.search.pool.{module} import {main}; {main}()"
    )
    return [sys.executable, "-P", "-c", program, json.dumps(sys.path), *arguments]
