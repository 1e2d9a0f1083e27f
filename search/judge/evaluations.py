"""What the evaluations of a training say by themselves: did it learn, and keep what it learned?

They measure the weights that the user will have, on other data and by another measure than the
training loss. That may be taken at other weights, as schedule-free optimizers do, and may be no
measure of success at all. Lower is better. Source: Tuning Playbook, "How can optimization failures
be debugged and mitigated?" (R6), and S6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..trial import UNTRAINED_STEPS, Array, Curve

# of the untrained model's value: a gain as large is learning beyond doubt
LEARNED_SHARE = 0.20
KEPT_SHARE = 0.50  # of what was learned: with less at its end, a run has lost most of it
# of the untrained model's value: so far above it, a run is worse than no training
WORSE_SHARE = 0.05
# A log's first evaluation may be a later one, of a model that has learned: nobody knows how much,
# and overfitting may well take it above that.
WORSE_THAN_TRAINED_SHARE = 0.50
ENDING = 3  # evaluations whose median is the end of a run, so that no single one decides
SCATTER_DEVIATIONS = 6.0  # of the scatter between evaluations: more than that is no noise
FEWEST_TO_SCATTER = 8  # evaluations that tell how they scatter
NORMAL = 1.4826  # standard deviation / median absolute deviation, of normal noise

State = Literal["unknown", "learned", "lost", "worse", "non_finite"]


@dataclass(frozen=True)
class Evaluations:
    """What they say, and where.

    state    unknown     too few, or too little change: they are no evidence
             learned     much better than the untrained model, and kept until the end
             lost        had learned, and lost more than half of that by the end
             worse       ended worse than the untrained model; much worse than at the first
                         evaluation, if that is a later one
             non_finite  ended as nan or inf
    step     updates done at the best evaluation; non_finite: at the first of those that end the run
             as nan or inf
    first, best, ended  values: of the untrained model, the lowest, the end
    gaps     evaluations before the end that were not finite; not that of the untrained model if it
             is nan, as where nobody evaluated it
    ended_at      updates done at the last evaluation
    is_untrained  whether the first one is of the untrained model: if not, nothing is called lost
    """

    state: State
    step: int = 0
    first: float = math.nan
    best: float = math.nan
    ended: float = math.nan
    gaps: int = 0
    ended_at: int = 0
    is_untrained: bool = True


def summarize_evaluations(curve: Curve, objective: str = "", maximize: bool = False) -> Evaluations:
    """The state of a curve's evaluations of the objective.

    By default, the curve's only metric counts, if it has just one.
    """
    values = _values(curve, objective, maximize)
    finite = np.isfinite(values)
    if not len(values):
        return Evaluations("unknown")
    ended_at = int(curve.eval_step[-1])
    if not finite[-1]:
        after = np.flatnonzero(finite)
        first_bad = int(after[-1]) + 1 if len(after) else 0
        gaps = int((~finite[:first_bad]).sum())
        step = int(curve.eval_step[first_bad])
        return Evaluations("non_finite", step, gaps=gaps, ended_at=ended_at)
    gaps = int((~finite).sum()) - int(np.isnan(values[0]))  # that may be unknown
    known, steps = values[finite], curve.eval_step[finite]
    sign = -1.0 if maximize else 1.0
    first, best, ended = float(known[0]), _lowest(known), _ending(known)
    state: State = "unknown"
    is_untrained = bool(steps[0] <= UNTRAINED_STEPS)
    if len(known) > 1 and finite[0] and steps[0] <= steps[-1]:
        state = _state(known, first, best, ended, is_untrained)
    return Evaluations(
        state,
        int(steps[np.argmin(known)]),
        sign * first,
        sign * best,
        sign * ended,
        gaps,
        ended_at,
        is_untrained,
    )


def _values(curve: Curve, objective: str, maximize: bool) -> Array:
    names = [objective] if objective else list(curve.metrics)
    values = curve.metrics.get(names[0], np.empty(0)) if len(names) == 1 else np.empty(0)
    return -values if maximize else values


def _lowest(values: Array) -> float:
    """The lowest value; where there are enough, the lowest median of three in a row.

    So a single lucky evaluation does not count.
    """
    if len(values) < FEWEST_TO_SCATTER:
        return float(values.min())
    threes = np.sort(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)[1]
    return float(min(threes.min(), _ending(values)))


def _ending(values: Array) -> float:
    """The value at the end of training."""
    return (
        float(np.median(values[-ENDING:]))
        if len(values) >= FEWEST_TO_SCATTER
        else float(values[-1])
    )


def _state(values: Array, first: float, best: float, ended: float, is_untrained: bool) -> State:
    scatter = SCATTER_DEVIATIONS * _scatter(values)
    worse_share = WORSE_SHARE if is_untrained else WORSE_THAN_TRAINED_SHARE
    is_worse = ended - first > max(worse_share * abs(first), scatter) or _is_worse_by_ratio(
        values, first, ended, worse_share
    )
    if first - best > max(LEARNED_SHARE * abs(first), scatter):
        if (first - ended) / (first - best) >= KEPT_SHARE:
            return "learned"
        if is_untrained:
            return "lost" if ended <= first else "worse"
    return "worse" if is_worse else "unknown"


def _is_worse_by_ratio(values: Array, first: float, ended: float, share: float) -> bool:
    """Whether the end is above the first value by more than evaluations scatter as ratios.

    What has blown up bounces by as much as it has risen, so that as differences nothing stands out.
    """
    if values.min() <= 0:
        return False
    rise = math.log(ended) - math.log(first)
    return rise > max(math.log1p(share), SCATTER_DEVIATIONS * _scatter(np.log(values)))


def _scatter(values: Array) -> float:
    """The deviation of evaluations by the differences of neighbours; 0 where there are too few."""
    if len(values) < FEWEST_TO_SCATTER:
        return 0.0
    return NORMAL * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
