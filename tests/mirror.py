"""What a diagnosis or a comparison would be if its objective were the negative, and the other side
better.
"""

import re
from typing import Any

# of the objective, by the names that records give them; everything else stays as it is
VALUES = ("values", "tuned_value", "value")
BAND = {"mean": "mean", "low": "high", "high": "low"}  # of a best-of-n curve
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
TWO_NUMBERS = re.compile(rf"({NUMBER}) (and|to) ({NUMBER})")
MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def mirrored(record: Any) -> Any:
    """The record, as plain values, with the objective's own values negated.

    Sentences lose the signs of their numbers, and two numbers that bound a range come in the order
    of their sizes: what is left of a sentence is the same for an objective and for its negative.
    """
    if isinstance(record, dict):
        return {name: _mirrored(name, value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [mirrored(one) for one in record]
    return in_sizes(record) if isinstance(record, str) else record


def _mirrored(name: str, value: Any) -> Any:
    if name == "maximize":
        return not value
    if name == "best_of" and value:
        return {BAND[line]: negated(value[line]) for line in value}
    return negated(value) if name in VALUES else mirrored(value)


def negated(values: Any) -> Any:
    """A number, or all in a sequence; without a minus at 0."""
    if isinstance(values, list | tuple):
        return [negated(value) for value in values]
    return 0.0 - values


def unmirrored(record: Any) -> Any:
    """The record as `mirrored` gives it, with nothing negated: what a mirrored one is compared
    with.
    """
    if isinstance(record, dict):
        return {name: unmirrored(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [unmirrored(one) for one in record]
    if isinstance(record, str):
        return in_sizes(record)
    return record + 0.0 if isinstance(record, float) else record


def in_sizes(sentence: str) -> str:
    """A sentence without signs, its ranges from the smaller number to the larger."""
    bare = MINUS.sub("", sentence.replace("negative_", ""))

    def ordered(found: re.Match[str]) -> str:
        low, high = sorted((found[1], found[3]), key=float)
        return f"{low} {found[2]} {high}"

    return TWO_NUMBERS.sub(ordered, bare)
