"""Logs that somebody else's training wrote: their formats, and what in them is a loss. No torch."""
