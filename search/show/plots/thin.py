"""Drawing less than there is: of a long curve, without losing a spike (R5), and of many trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ...judge.analysis import has_value
from ...trial import Array, Curve, Trial

EARLY_STEPS = 25  # "look closely at the first 25 or so" (R5): drawn in full
# of the planned updates: the window of the running median that stands out of minibatch noise
TYPICAL_SHARE = 0.02
MOST_DRAWN = 300  # values per curve: a study has hundreds of curves


def thin(
    values: Array, log_steps: bool = False, most: int = MOST_DRAWN
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps and values to draw: the first 25, then the extremes of every stretch of steps.

    Stretches are equally long on the axis that is drawn. At most `most` values, in order;
    non-finite ones are left out. The lowest, the highest, the first and the last finite value are
    always among them.
    """
    steps = np.flatnonzero(np.isfinite(values))
    if len(steps) > most:
        later, count = steps[EARLY_STEPS:-1], (most - EARLY_STEPS - 1) // 2
        space = np.geomspace if log_steps else np.linspace
        edges = np.searchsorted(later, space(later[0], later[-1], count + 1)[1:-1], side="right")
        stretches = [stretch for stretch in np.split(later, edges) if len(stretch)]
        extremes = [
            stretch[pick(values[stretch])]
            for stretch in stretches
            for pick in (np.argmin, np.argmax)
        ]
        steps = np.unique(np.concatenate([steps[:EARLY_STEPS], extremes, steps[-1:]]))
    return tuple(steps.tolist()), tuple(values[steps].tolist())


def typical(
    curve: Curve, log_steps: bool, most: int = MOST_DRAWN
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The median over TYPICAL_SHARE of the planned updates around each step, thinned.

    Within half a window of the start, and of the end of a training that was stopped, it is the
    losses themselves, so that a blow-up stays as it was. It is empty where the window has fewer
    than three steps: training is too short to need a median.
    """
    half = int(TYPICAL_SHARE * curve.total_steps) // 2
    if half < 1:
        return (), ()
    median = curve.loss.copy()
    if len(median) > 2 * half:
        median[half:-half] = np.median(sliding_window_view(curve.loss, 2 * half + 1), axis=1)
        if len(median) == curve.total_steps:
            median[-half:] = median[-half - 1]
    return thin(median, log_steps, most)


def most_informative(trials: Sequence[Trial], most: int) -> list[Trial]:
    """At most `most` of the trials of one group, in their order; all, if they are so few.

    Half of them are the best, a quarter the infeasible ones nearest above the base_lr of the best,
    where the edge of stability is; the others are evenly spaced among the rest.
    """
    if len(trials) <= most:
        return list(trials)
    best = sorted(filter(has_value, trials), key=lambda trial: trial.cost)[: most // 2]
    star = best[0].point.base_lr if best else 0.0
    above = [one for one in trials if one.verdict.infeasible and one.point.base_lr > star]
    edge = sorted(above, key=lambda trial: trial.point.base_lr)[: most // 4]
    chosen = {id(trial) for trial in [*best, *edge]}
    rest = [trial for trial in trials if id(trial) not in chosen]
    places = np.linspace(0, len(rest) - 1, min(most - len(chosen), len(rest))).astype(int)
    chosen |= {id(rest[place]) for place in places}
    return [trial for trial in trials if id(trial) in chosen]
