"""The edge of stability of one group as a probability: how often training diverges by base LR.

The edge is random: at one base LR some seeds train and some diverge. `analysis.unstable_interval`
reads the edge from single trials, so that one unlucky trial can move it. Here it is estimated from
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from ..trial import Array, Trial

HALF = 0.5  # unstable_base_lr: the base LR at which half of the trainings diverge
# of a fitted probability, which is k of n trials: if below 1/2, then by at least 1/(2 n)
ROUNDING = 1e-9
CONFIDENCE = 0.95
LIKELIHOOD_RATIO = 2.28  # its 95 % quantile where P(diverge) passes 1/2: Banerjee & Wellner 2001
# p below which P(diverge) is not called non-decreasing: one group of a hundred at most
CONTRADICTED = 0.01
RESAMPLES = 999  # of the counts, for that p


@dataclass(frozen=True)
class Tried:
    """The judged trials of one group at one base_lr: `infeasible` of `trials`."""

    base_lr: float
    infeasible: int
    trials: int


def tries(trials: Iterable[Trial]) -> list[Tried]:
    """One record per base_lr, ascending.

    Other hyperparameters are pooled; trials that are no evidence are left out.
    """
    infeasible: dict[float, list[bool]] = {}
    for trial in trials:
        if trial.verdict.judged:
            infeasible.setdefault(trial.point.base_lr, []).append(trial.verdict.infeasible)
    return [
        Tried(base_lr, sum(infeasible[base_lr]), len(infeasible[base_lr]))
        for base_lr in sorted(infeasible)
    ]


def probability(tried: Sequence[Tried]) -> list[float]:
    """P(diverge | base_lr) at each base_lr, in their order, which is ascending.

    The non-decreasing p that minimizes Σ trials (infeasible / trials − p)²: of all non-decreasing
    ones it is also the most likely. Source: Barlow, Bartholomew, Bremner & Brunk 1972, "Statistical
    Inference under Order Restrictions".
    """
    if not tried:
        return []
    fitted = scipy.optimize.isotonic_regression(
        [one.infeasible / one.trials for one in tried], weights=[one.trials for one in tried]
    )
    return [float(p) for p in fitted.x]


def bracket(tried: Sequence[Tried], above: float = 0.0) -> tuple[float, float]:
    """The two base LRs that were tried between which unstable_base_lr lies.

    At unstable_base_lr half of the trainings diverge. (largest base_lr with fitted P < 1/2,
    smallest with P ≥ 1/2); (largest, inf) if none reaches 1/2, (0, smallest) if all do. Only base
    LRs ≥ `above` count: far below lr_star a training may be infeasible for being too slow, which
    says nothing about the edge.
    """
    counted = [one for one in tried if one.base_lr >= above]
    stable = [p < HALF - ROUNDING for p in probability(counted)]
    below = [one.base_lr for one, holds in zip(counted, stable, strict=True) if holds]
    beyond = [one.base_lr for one, holds in zip(counted, stable, strict=True) if not holds]
    return max(below, default=0.0), min(beyond, default=math.inf)


def interval(infeasible: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of P(diverge) from `infeasible` of `trials`.

    Raises ValueError unless 0 ≤ infeasible ≤ trials and trials ≥ 1. Source: Clopper & Pearson 1934.
    """
    bounds = scipy.stats.binomtest(infeasible, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(bounds.low), float(bounds.high)


def confidence_interval(tried: Sequence[Tried], above: float = 0.0) -> tuple[float, float]:
    """The base LRs between which unstable_base_lr lies with 95 % confidence.

    An end is 0 or inf where nothing bounds it. The data do not distinguish the x between two
    neighbouring base LRs. Of n trainings at base LR i, k diverged:

        LR(x) = 2 (max ℓ(p) − max_{p_i ≤ 1/2 below x, p_i ≥ 1/2 above x} ℓ(p)),
        ℓ(p) = Σ k log p + (n − k) log(1 − p)

    over non-decreasing p; the interval is where LR(x) ≤ LIKELIHOOD_RATIO. Only base LRs ≥ `above`
    count, as in `bracket`, which the interval contains. That quantile is for many base LRs with one
    training each. With the few of a diagnosis, the interval covers unstable_base_lr in 95 to 100 %
    of simulations if trainings diverge independently. If the same seeds diverge at every base LR,
    it does so for edges up to 0.1 decades wide, and in about 88 % at 0.3
    (tests/benchmarks/promises.py). Source: Banerjee & Wellner 2001, "Likelihood ratio tests for
    monotone functions".
    """
    counted = [one for one in tried if one.base_lr >= above]
    if not counted:
        return 0.0, math.inf
    best = _log_likelihood(counted, np.array(probability(counted)))
    held = []
    for place in range(len(counted) + 1):
        below = np.minimum(probability(counted[:place]), HALF)
        beyond = np.maximum(probability(counted[place:]), HALF)
        ratio = 2 * (best - _log_likelihood(counted, np.concatenate([below, beyond])))
        if ratio <= LIKELIHOOD_RATIO:
            held.append(place)
    ends = [0.0, *(one.base_lr for one in counted), math.inf]
    return ends[held[0]], ends[held[-1] + 1]


def _log_likelihood(tried: Sequence[Tried], p: Array) -> float:
    p = np.clip(p, 0.0, 1.0)  # a fitted one may be beyond by rounding
    infeasible = np.array([one.infeasible for one in tried])
    trials = np.array([one.trials for one in tried])
    xlogy = scipy.special.xlogy
    return float((xlogy(infeasible, p) + xlogy(trials - infeasible, 1 - p)).sum())


def contradiction(tried: Sequence[Tried], above: float = 0.0) -> float:
    """The p-value of "P(diverge) never decreases with the base LR".

    If it is small, the trials contradict that. The statistic is twice the log likelihood of the
    observed shares less that of the non-decreasing fit; p is the share of RESAMPLES sets of counts,
    drawn from the fit, in which it is at least as large. 1 without trials. Source: Robertson,
    Wright & Dykstra 1988, "Order Restricted Statistical Inference" (the statistic).
    """
    counted = [one for one in tried if one.base_lr >= above]
    fitted = np.array(probability(counted))
    trials = np.array([one.trials for one in counted], np.int64)
    seen = _departure(counted)
    if seen < ROUNDING:
        return 1.0
    rng = np.random.default_rng(0)
    as_large = 0
    for drawn in rng.binomial(trials, np.clip(fitted, 0, 1), size=(RESAMPLES, len(counted))):
        pairs = zip(counted, drawn.tolist(), strict=True)
        again = [Tried(one.base_lr, infeasible, one.trials) for one, infeasible in pairs]
        as_large += _departure(again) >= seen - ROUNDING
    return (1 + as_large) / (1 + RESAMPLES)


def _departure(tried: Sequence[Tried]) -> float:
    """2 × (log likelihood of the observed shares − that of the non-decreasing fit)."""
    shares = np.array([one.infeasible / one.trials for one in tried])
    fitted = np.array(probability(tried))
    return 2 * (_log_likelihood(tried, shares) - _log_likelihood(tried, fitted))
