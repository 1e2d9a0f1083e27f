"""tunewright.search.integrations.transformers, under a short name."""

from tunewright.search.integrations.transformers import Watch, arguments

__all__ = ["Watch", "arguments"]
