"""The installed package: library `tunewright.search`, reference workloads `tunewright.models`.

This folder holds what belongs to neither, and the names that a user's own training asks for.
pyproject.toml says which folder becomes which package.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("tunewright")
# names, and their modules in `tunewright.search`
_HOMES = {"current_run": "trainers.current", "watch": "integrations.watch"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: that of torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tunewright.search.{_HOMES[name]}"), name)
