"""How good the best of n trials is: how many trials a search really needed (S12)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

BAND = (0.05, 0.95)  # quantiles around the mean


@dataclass(frozen=True)
class BestOf:
    """The expected best value of the first n trials, n = 1 … T, and its band."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def best_of(values: ArrayLike, maximize: bool = False) -> BestOf:
    """How good the best of n trials is, from values [T] of independent trials.

    The bootstrap draws n of the T values with replacement and keeps the lowest, or the highest if
    they are maximized. Its distribution is known: with v_1 ≤ … ≤ v_T, and all turned round for the
    highest,

        P(best of n > v_k) = ((T − k) / T)^n,

    so mean and quantiles need no sampling. Source: Dodge et al. 2019, "Show your work". Raises
    ValueError if there is no value or one is not finite.
    """
    sign = -1.0 if maximize else 1.0
    v_T = np.sort(sign * np.asarray(values, np.float64))
    if not len(v_T) or not np.isfinite(v_T).all():
        raise ValueError("best_of needs finite values")
    count = len(v_T)
    # row n, column k = 0 … T
    above_TK = (np.arange(count, -1, -1) / count) ** np.arange(1, count + 1)[:, None]
    mean_T = (-np.diff(above_TK, axis=1) * v_T).sum(1)
    band = (v_T[(above_TK[:, 1:] > 1 - q).sum(1).clip(max=count - 1)] for q in BAND)
    low_T, high_T = reversed([*band]) if maximize else band
    return BestOf(*(tuple(map(float, sign * curve)) for curve in (mean_T, low_T, high_T)))
