"""Which base LR to use: lr_star, the lowest one that is not shown to be worse than the best.

A configuration is *as good* as the best if it is on the plateau around the best one. The plateau
begins as the best mean alone, and takes in the next base LR to either side as long as

    value − level ≤ min(t √(1/n + 1/N), √2) σ,

with level the mean of the N runs that are on it already, n seeds of the next one, σ the standard
deviation between runs, and t the quantile of Student's distribution for a one-sided test at ALPHA.
The first bound is a test: what is above it is shown to be worse. Where runs are few a test shows
next to nothing, and so the second one, by which two single runs differ. Comparing with the level,
not with the best alone, counts for less that the best of many is also the luckiest.

Luck of one configuration ends no plateau and begins none: the median of a base LR and its two
neighbours must be as good, and the lowest and the highest base LR must be so themselves. A plateau
holds no base LR at which nothing trains. Where several configurations share a base LR, the best of
them stands for it.

σ is that between seeds, of the better half of the configurations, by what is left of a value when
the means of its configuration and of its seed are taken away (the better half, since on the edge
runs differ more; of its seed, since a seed that all share is easy or hard for all of them). With
one seed it is estimated from neighbours on the axis of base LRs, half a decade to each side of the
best, by what is left when a straight line between the two next ones is taken away:

    e_i = y_i − (w y_{i−1} + (1 − w) y_{i+1}),   Var e_i = σ² (1 + w² + (1 − w)²).

None counts more than MOST_MEDIANS times the median of |e|: beside the edge stands a cliff, which is
no noise. Other hyperparameters that differ between neighbours add to σ. Source of the estimator:
Gasser, Sroka & Jennen-Steinmetz 1986, "Residual variance and residual pattern in nonlinear
regression".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy
from numpy.typing import NDArray

from .comparison import ALPHA, Interval

NOWHERE: Interval = (math.nan, math.nan)
# S5: half a decade of base_lr to each side (the width is ours)
GOOD_REGION = math.sqrt(10)
FEWEST_RESIDUALS = 3  # that the noise of one seed is known by
MOST_MEDIANS = 3.0  # of the residuals that one of them counts: two standard deviations of noise
FEWEST_HALF = 3  # configurations that are a better half
BASIN = 10.0  # a plateau wider than a decade is a basin: where its best lies is luck
ROUNDING = 1e-9  # of a level and of a distance: equal values are equal, also after a mean

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Runs:
    """What was measured of one configuration: a cost (`Trial.cost`) by seed."""

    base_lr: float
    costs: Mapping[Any, float]

    @property
    def mean(self) -> float:
        return math.fsum(self.costs.values()) / len(self.costs)


@dataclass(frozen=True)
class Noise:
    """How much one run differs from the next: standard deviation, and its degrees of freedom.

    The standard deviation is nan, and the degrees of freedom 0, where it is not known.
    """

    sigma: float = math.nan
    freedom: int = 0

    def limit(self, runs: int, of_best: int) -> float:
        """How far above a mean of `of_best` runs a mean of `runs` may lie and be as good.

        nan if the noise is not known.
        """
        if not self.freedom:
            return math.nan
        quantile = float(scipy.stats.t.ppf(1 - ALPHA, self.freedom))
        return self.sigma * min(quantile * math.sqrt(1 / runs + 1 / of_best), math.sqrt(2))


@dataclass(frozen=True)
class Plateau:
    """What is as good as the best.

    star, best   places of the configurations at lr_star and of the best mean, among those given
    as_good      the lowest and the highest base LR that are as good; NOWHERE if that is not known,
                 as the noise is not, or one base LR alone trains: then lr_star is the best
    """

    star: int
    best: int
    as_good: Interval
    noise: Noise


def find_plateau(measured: Sequence[Runs], infeasible: Iterable[float] = ()) -> Plateau:
    """The plateau of at least one feasible configuration, and of base LRs that are infeasible.

    All else that differs between the configurations is pooled. On a tie the lower base LR is best.
    """
    profile = _best_by_base_lr(measured)
    own = [measured[place] for place in profile]
    best = min(range(len(own)), key=lambda i: own[i].mean)
    noise = noise_of(measured)
    if not noise.freedom or len(own) == 1:
        return Plateau(profile[best], profile[best], NOWHERE, noise)
    reach = _open(own, best, list(infeasible))
    low = high = best
    while (wider := _widened(own, low, high, noise, reach)) != (low, high):
        low, high = wider
    return Plateau(profile[low], profile[best], (own[low].base_lr, own[high].base_lr), noise)


def is_basin(as_good: Interval) -> bool:
    """Whether what is as good spans more than a decade."""
    low, high = as_good
    return high > BASIN * low * (1 + ROUNDING)


def headroom_base(best_base_lr: float, as_good: Interval) -> float:
    """The base LR that headroom is relative to: unstable_base_lr / this.

    It is the best, which is where an expert would train, and no estimate of noise moves it. On a
    basin luck decides which base LR is best, and none of those is better than its upper end.
    """
    return as_good[1] if is_basin(as_good) else best_base_lr


def noise_of(measured: Sequence[Runs]) -> Noise:
    """The noise between runs of one group: between seeds, or else between neighbours."""
    if any(len(one.costs) > 1 for one in measured):
        return _between_seeds(measured)
    return _between_neighbours([measured[place] for place in _best_by_base_lr(measured)])


def _best_by_base_lr(measured: Sequence[Runs]) -> list[int]:
    """The places of the best configuration at each base LR, ascending."""
    found: dict[float, int] = {}
    for place, one in enumerate(measured):
        before = found.get(one.base_lr)
        if before is None or one.mean < measured[before].mean:
            found[one.base_lr] = place
    return [found[base_lr] for base_lr in sorted(found)]


def _open(own: Sequence[Runs], best: int, infeasible: Sequence[float]) -> NDArray[np.bool_]:
    """Which base LRs a plateau may reach: those between the infeasible ones next to the best."""
    rates, at = np.array([one.base_lr for one in own]), own[best].base_lr
    below = max((rate for rate in infeasible if rate < at), default=-math.inf)
    above = min((rate for rate in infeasible if rate > at), default=math.inf)
    return (rates > below) & (rates < above)


def _widened(
    own: Sequence[Runs], low: int, high: int, noise: Noise, reach: NDArray[np.bool_]
) -> tuple[int, int]:
    """The plateau with the next place that is as good on either side."""
    means = np.array([one.mean for one in own])
    counts = np.array([len(one.costs) for one in own])
    on_it = slice(low, high + 1)
    level, runs = float(np.average(means[on_it], weights=counts[on_it])), int(counts[on_it].sum())
    limits = np.array([noise.limit(int(count), runs) for count in counts])
    over = np.where(reach, means - level - limits - ROUNDING * abs(level), math.inf)
    beside = np.concatenate([[math.inf], over, [math.inf]])
    medians = np.median([beside[:-2], beside[1:-1], beside[2:]], axis=0)
    return _next(over, medians, low, -1), _next(over, medians, high, 1)


def _next(over: Array, medians: Array, end: int, step: int) -> int:
    """The next place beyond an end of the plateau that is as good; the end if there is none."""
    place = end + step
    while 0 <= place < len(over) and medians[place] <= 0:
        if over[place] <= 0:
            return place
        place += step
    return end


# --- noise between runs ---------------------------------------------------------------------------


def _between_seeds(measured: Sequence[Runs]) -> Noise:
    """Of the better half of the configurations, pooled."""
    half = max(FEWEST_HALF, math.ceil(len(measured) / 2))
    better = sorted(measured, key=lambda one: one.mean)[:half]
    repeated = [one for one in better if len(one.costs) > 1]
    shared = all(one.costs.keys() == repeated[0].costs.keys() for one in repeated)
    if len(repeated) > 1 and shared:
        costs = np.array([[one.costs[seed] for seed in repeated[0].costs] for one in repeated])
        left = costs - costs.mean(1, keepdims=True) - costs.mean(0) + costs.mean()
        freedom = (costs.shape[0] - 1) * (costs.shape[1] - 1)
        return Noise(math.sqrt(float((left**2).sum()) / freedom), freedom)
    freedom = sum(len(one.costs) - 1 for one in repeated)
    if not freedom:
        return Noise()
    squares = math.fsum((cost - one.mean) ** 2 for one in repeated for cost in one.costs.values())
    return Noise(math.sqrt(squares / freedom), freedom)


def _between_neighbours(own: Sequence[Runs]) -> Noise:
    """By the base LRs near the best that have a neighbour on each side."""
    at = min(own, key=lambda one: one.mean).base_lr if own else math.nan
    reach = GOOD_REGION * (1 + ROUNDING)
    near = [one for one in own if at / reach <= one.base_lr <= at * reach]
    if len(near) < FEWEST_RESIDUALS + 2:
        return Noise()
    x, y = np.log([one.base_lr for one in near]), np.array([one.mean for one in near])
    w = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
    residuals = y[1:-1] - (w * y[:-2] + (1 - w) * y[2:])
    left = np.abs(residuals) / np.sqrt(1 + w**2 + (1 - w) ** 2)
    left = np.minimum(left, MOST_MEDIANS * np.median(left))
    return Noise(float(np.sqrt(np.mean(left**2))), len(left))
