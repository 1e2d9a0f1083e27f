"""The optimum of a smooth curve through the values by base LR, at one batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..trial import Trial
from .comparison import Interval

# inside: of the base LRs that train. below, above: it lies at or beyond their lower, upper end, so
# base_lr is a bound. unknown: fewer than five of them, or no smooth curve has a minimum there
Where = Literal["inside", "below", "above", "unknown"]


@dataclass(frozen=True)
class Optimum:
    """Where the smooth curve of values by base LR is lowest at one batch size.

    base_lr    the optimum; where it is a bound, that; nan if unknown
    interval   that holds it with 95 % confidence; an end is 0 or inf where nothing bounds it
    spread     its standard error, in decades; inf if unknown
    value      of the smooth curve at base_lr, as a value of the objective; nan if unknown
    base_lrs   how many base LRs the curve rests on
    note       why it is a bound or unknown, in a sentence; empty if it is inside
    """

    where: Where
    base_lr: float
    interval: Interval = (0.0, math.inf)
    spread: float = math.inf
    value: float = math.nan
    base_lrs: int = 0
    note: str = ""


def find_optima(trials: Mapping[int, Sequence[Trial]]) -> dict[int, Optimum]:
    """The optimum at each batch size, from the trials of one optimizer by batch size."""
    raise NotImplementedError
