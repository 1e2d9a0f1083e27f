"""Checks of what a study file hands to a factory: the message names the argument, the rule and the
value.
"""

from __future__ import annotations

from collections.abc import Sequence

# of a width or depth: two layers of this width have 400 MB, so many layers take seconds to make
MOST = 10_000


def at_least(lowest: int, most: int = MOST, **arguments: int) -> None:
    """Raise ValueError unless every argument is a whole number from `lowest` to `most`."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"{name}: must be a whole number of at least {lowest}, got {value!r}")
        if value > most:
            raise ValueError(f"{name}: must be a whole number of at most {most}, got {value!r}")


def one_of(choices: Sequence[object], **arguments: object) -> None:
    """Raise ValueError unless every argument is one of `choices`."""
    for name, value in arguments.items():
        if value not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"{name}: must be one of {listed}, got {value!r}")
