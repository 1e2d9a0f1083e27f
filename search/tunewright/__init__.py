"""The installed package: library `tunewright.search`, reference workloads `tunewright.models`.

This folder holds what belongs to neither. pyproject.toml says which folder becomes which package.
"""

from importlib.metadata import version

__version__ = version("tunewright")
