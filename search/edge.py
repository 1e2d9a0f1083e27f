"""The edge of stability of one group as a probability: how often training diverges, base LR by base LR.

The edge is random: at one base LR some seeds train and some diverge. What `analysis.unstable_interval` reads from
single trials, the first unlucky one included, is estimated here from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.optimize import isotonic_regression
from scipy.stats import binomtest

from .trial import Trial

HALF = 0.5  # unstable_base_lr: the base LR at which half of the trainings diverge
ROUNDING = 1e-9  # of a fitted probability, which is k of n trials: below 1/2, it is so by at least 1/(2 n)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Tried:
    """What became of the trials of one group at one base_lr: `infeasible` of `trials` judged ones."""

    base_lr: float
    infeasible: int
    trials: int


def tries(trials: Iterable[Trial]) -> list[Tried]:
    """One record per base_lr, ascending. Other hyperparameters are pooled; crashed trials are no evidence."""
    infeasible: dict[float, list[bool]] = {}
    for trial in trials:
        if not trial.verdict.crashed:
            infeasible.setdefault(trial.point.base_lr, []).append(trial.verdict.infeasible)
    return [Tried(base_lr, sum(infeasible[base_lr]), len(infeasible[base_lr])) for base_lr in sorted(infeasible)]


def probability(tried: Sequence[Tried]) -> list[float]:
    """P(diverge | base_lr) at each base_lr, in their order, which is ascending.

    The non-decreasing p that minimizes Σ trials (infeasible / trials − p)²: of all non-decreasing ones it is also
    the most likely. Source: Barlow, Bartholomew, Bremner & Brunk 1972, "Statistical Inference under Order
    Restrictions".
    """
    if not tried:
        return []
    fitted = isotonic_regression([one.infeasible / one.trials for one in tried], weights=[one.trials for one in tried])
    return [float(p) for p in fitted.x]


def bracket(tried: Sequence[Tried], above: float = 0.0) -> tuple[float, float]:
    """Where unstable_base_lr lies, the base LR at which half of the trainings diverge: between two that were tried.

    (largest base_lr with fitted P < 1/2, smallest with P ≥ 1/2); (largest, inf) if none reaches 1/2, (0, smallest)
    if all do. Only base LRs ≥ `above` count: far below lr_star a training may be infeasible for being too slow,
    which says nothing about the edge.
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
    bounds = binomtest(infeasible, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(bounds.low), float(bounds.high)
