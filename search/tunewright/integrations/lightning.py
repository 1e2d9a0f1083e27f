"""tunewright.search.integrations.lightning, under a short name."""

from tunewright.search.integrations.lightning import Watch, arguments

__all__ = ["Watch", "arguments"]
