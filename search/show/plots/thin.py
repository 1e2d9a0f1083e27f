"""Thinning a long curve for drawing, so that no spike is lost (R5)."""

from __future__ import annotations

import numpy as np

from ...trial import Array

EARLY_STEPS = 25  # "look closely at the first 25 or so" (R5): drawn in full
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
