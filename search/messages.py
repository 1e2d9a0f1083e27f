"""What a command says on standard error: through `logging`, with its kind in front of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import LOG
from .words import fitted

PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.DEBUG: "debug: "}


class _OnStandardError(logging.Handler):
    """Writes to what is standard error now: a progress bar may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(fitted(self.format(record), sys.stderr), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class _Prefixed(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return PREFIXES.get(record.levelno, "") + super().format(record)


@contextmanager
def told(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Tell what the program logs: errors, warnings and notes.

    With `quiet` errors alone, with `verbose` details, too.
    """
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler = _OnStandardError()
    handler.setFormatter(_Prefixed())
    before = LOG.level
    LOG.setLevel(level)
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)
