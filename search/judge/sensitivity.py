"""How much a result depends on its base LR: usable decades and LR sensitivity of a sweep.

Every function takes the trials of one sweep: one configuration but for base_lr and seed. The value
of a base LR is the mean over its seeds of min(best value, value of the untrained model). An
infeasible run has the value of its untrained model. Values are costs (`Trial.cost`): lower is
better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from ..trial import Trial, cost
from ..words import readable

TOLERANCE = 0.05  # of what the best base LR learned: a value as close to its value is as good


def usable_decades(trials: Iterable[Trial]) -> float:
    """Width of the base LRs around the best one whose value is within TOLERANCE of it, in decades.

    Each border lies half way, on the log axis, between the last such base LR and its neighbour. At
    an end of the sweep, beyond which nothing is known, it is the last base LR tried. nan without
    trials.
    """
    worth, start = _by_base_lr(trials)
    if not worth:
        return math.nan
    rates = sorted(worth)
    low, high = _usable(rates, worth, start)
    left = math.sqrt(rates[low] * rates[low - 1]) if low > 0 else rates[low]
    right = math.sqrt(rates[high] * rates[high + 1]) if high < len(rates) - 1 else rates[high]
    return math.log10(right / left)


def usable_range(trials: Iterable[Trial]) -> tuple[float, float]:
    """The lowest and the highest base LR tried that are usable; (nan, nan) without trials."""
    worth, start = _by_base_lr(trials)
    if not worth:
        return math.nan, math.nan
    rates = sorted(worth)
    low, high = _usable(rates, worth, start)
    return rates[low], rates[high]


def usable_in_words(usable: tuple[float, float]) -> str:
    """Where the loss is flat, which says more than how far the edge is above a lucky best."""
    low, high = usable
    share = f"{100 * TOLERANCE:g} %"
    return f"flat from {readable(low)} to {readable(high)}, within {share} of what is learned"


def _usable(rates: Sequence[float], worth: Mapping[float, float], start: float) -> tuple[int, int]:
    """The places of the first and the last base LR around the best that are within TOLERANCE."""
    best = min(worth.values())
    limit = best + TOLERANCE * (start - best)
    at = rates.index(min(rates, key=lambda rate: worth[rate]))
    low = high = at
    while low > 0 and worth[rates[low - 1]] <= limit:
        low -= 1
    while high < len(rates) - 1 and worth[rates[high + 1]] <= limit:
        high += 1
    return low, high


def lr_sensitivity(trials: Iterable[Trial]) -> float:
    """Mean over the base LRs of (value − best) / (value of the untrained model − best).

    0: every base LR is as good as the best; 1: every other one learns nothing. Comparable between
    models only over the same range of log-spaced base LRs. nan without trials, or where nothing is
    better than the untrained model. Source: Wortsman et al. 2023, arXiv 2309.14322.
    """
    worth, start = _by_base_lr(trials)
    best = min(worth.values(), default=start)
    return (
        fmean((value - best) / (start - best) for value in worth.values())
        if best < start
        else math.nan
    )


def _by_base_lr(trials: Iterable[Trial]) -> tuple[dict[float, float], float]:
    """The value of each base LR, and the mean value of the untrained models."""
    found: dict[float, list[float]] = {}
    starts = []
    for trial in trials:
        if not trial.verdict.judged or not math.isfinite(trial.initial_value):
            continue
        start = cost(trial.initial_value, trial.maximize)
        starts.append(start)
        worth = min(trial.cost, start) if trial.feasible else start
        found.setdefault(trial.point.base_lr, []).append(worth)
    return {rate: fmean(values) for rate, values in found.items()}, fmean(
        starts
    ) if starts else math.nan
