"""The installed package: library `tunewright.search`, reference workloads `tunewright.models`.

The public names of `tunewright.search` are names of `tunewright`, too, as `tunewright.run_study`.
pyproject.toml says which folder becomes which package.
"""

import importlib
from importlib.metadata import version
from typing import Any

from tunewright.search import __all__ as __all__

__version__ = version("tunewright")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use: that of torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("tunewright.search"), name)
