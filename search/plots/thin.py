"""Thinning a long curve for drawing, so that no spike is lost (R5)."""

from __future__ import annotations

import numpy as np

from ..trial import Array

EARLY_STEPS = 25  # "look closely at the first 25 or so" (R5): drawn in full
MOST_DRAWN = 300  # values per curve: a study has hundreds of curves


def thin(values: Array, most: int = MOST_DRAWN) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps and values to draw: the first 25, then the minimum and maximum of every equal stretch.

    At most `most` values, in order; non-finite ones are left out. The lowest, the highest, the first and
    the last finite value are always among them.
    """
    steps = np.flatnonzero(np.isfinite(values))
    if len(steps) > most:
        later = steps[EARLY_STEPS:-1]
        stretches = np.array_split(later, max(1, (most - EARLY_STEPS - 1) // 2))
        extremes = [
            stretch[pick(values[stretch])] for stretch in stretches for pick in (np.argmin, np.argmax)
        ]
        steps = np.unique(np.concatenate([steps[:EARLY_STEPS], extremes, steps[-1:]]))
    return tuple(steps.tolist()), tuple(values[steps].tolist())
