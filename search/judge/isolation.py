"""The effect of one hyperparameter where all others are chosen well (S7).

It is that of the best trial of each of its values, or of each bucket of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..trial import Trial
from ..words import in_order
from .analysis import rank_configurations

MOST_BUCKETS = 8


@dataclass(frozen=True)
class Bucket:
    """The trials whose value lies in [low, high]; they have one value if both are the same."""

    low: Any
    high: Any
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """Of the configuration that ranks first; None if no trial is feasible."""
        return next(iter(rank_configurations(self.trials)), None)


def isolate(
    trials: Sequence[Trial], axis: str, *, choices: bool, log: bool = False
) -> list[Bucket]:
    """Buckets of a hyperparameter that every trial has, in order; every trial is in one of them.

    A bucket per value if they are choices. Else their range is split into equal parts, also in log,
    √trials of them and at most MOST_BUCKETS; empty ones are left out. Raises ValueError if values
    that are no choices are not finite numbers, or not positive where `log`.
    """
    values = [trial.point.values[axis] for trial in trials]
    if choices:
        own: dict[str, list[Trial]] = {}
        named = {repr(value): value for value in values}
        for trial, value in zip(trials, values, strict=True):
            own.setdefault(repr(value), []).append(trial)
        order = sorted(named, key=lambda name: in_order(named[name]))
        return [Bucket(named[name], named[name], tuple(own[name])) for name in order]
    places = [math.log10(value) if log else float(value) for value in values]
    if not all(map(math.isfinite, places)):
        raise ValueError(f"{axis}: a scale needs finite values")
    count = min(MOST_BUCKETS, max(1, round(math.sqrt(len(trials)))))
    low, high = min(places, default=0.0), max(places, default=0.0)
    width = (high - low) / count
    found: dict[int, list[Trial]] = {}
    for trial, place in zip(trials, places, strict=True):
        part = min(int((place - low) / width), count - 1) if width else 0
        found.setdefault(part, []).append(trial)
    return [_bucket(found[part], axis) for part in sorted(found)]


def _bucket(trials: Sequence[Trial], axis: str) -> Bucket:
    values = [trial.point.values[axis] for trial in trials]
    return Bucket(min(values), max(values), tuple(trials))
