"""Values in words: how a number is written for people, and in which order values stand."""

from __future__ import annotations

import os
import textwrap
from contextlib import suppress
from typing import Any, TextIO

INDENT = "  "

FAR = 100.0  # an edge so many times above the best base LR limits nobody


def in_order(value: Any) -> tuple[int, float, str]:
    """Sort key of hyperparameter values: numbers by size (inf last), then others by their text."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def better_side(maximize: bool) -> str:
    """On which side values of an objective are better."""
    return "higher is better" if maximize else "lower is better"


def readable(value: Any) -> str:
    """A value for people: a float with three significant digits, thousands written out.

    A text stays as it is.
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def capitalized(text: str) -> str:
    """With a capital first, and all else as it is."""
    return text[:1].upper() + text[1:]


def ratio(value: float) -> str:
    """How many times something is: two significant digits, whole from 10 on."""
    return f"{value:.0f}" if 9.95 <= abs(value) < 1e6 else f"{value:.2g}"


def headroom_in_words(value: float) -> str:
    """How many times the best base LR the edge is: beyond FAR the number says no more."""
    return f"over {FAR:g} ×" if value > FAR else f"{ratio(value)} ×"


def wrapped(text: str, width: int, indent: str = "") -> str:
    """A text for a terminal: lines of at most `width`, broken between words, the later ones
    indented by INDENT more than the first.
    """
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fitted(text: str, stream: TextIO) -> str:
    """A text for a stream: wrapped between words to the width of its terminal, if it has one.

    Lines that fit, and all lines of what is no terminal, stay as they are.
    """
    width = terminal_width(stream)
    if width is None:
        return text
    lines = []
    for line in text.splitlines():
        words = line.lstrip()
        indent = line[: len(line) - len(words)]
        lines.append(line if len(line) <= width else wrapped(words, width, indent))
    return "\n".join(lines)


def terminal_width(stream: TextIO) -> int | None:
    """The columns of a stream's terminal, or as the variable COLUMNS says; None without one."""
    if not stream.isatty():
        return None
    with suppress(ValueError, OSError):
        return int(os.environ.get("COLUMNS", "")) or None
    with suppress(ValueError, OSError):
        return os.get_terminal_size(stream.fileno()).columns or None
    return None


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
