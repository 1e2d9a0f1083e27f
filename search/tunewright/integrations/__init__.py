"""Callbacks of other frameworks, under a short name: `lightning.Watch`, `transformers.Watch`."""
