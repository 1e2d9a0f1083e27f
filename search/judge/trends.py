"""Whether a quantity changes with the batch size: the slope of a straight line, and its interval.

The line is fitted by least squares against log10 B, every batch size counting alike, and its slope
has the interval of Student's distribution with n − 2 degrees of freedom: exact for normal noise,
from three batch sizes on. A permutation test cannot decide there: of four batch sizes its smallest
p is 2/24, of three 2/6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from ..words import readable
from .comparison import Interval
from .laws import FEWEST_SIZES
from .optimum import quantile

Direction = Literal["rises", "falls", "not shown", "unknown"]


@dataclass(frozen=True)
class Trend:
    """Whether a quantity changes with the batch size: slope per decade of it.

    values    by batch size, ascending, those that are known
    slope     nan for fewer than three
    interval  of the slope, 95 %
    answer    rises or falls, if the interval leaves 0 out; not shown; unknown: fewer than three
    """

    name: str
    values: tuple[tuple[int, float], ...]
    slope: float
    interval: Interval
    answer: Direction

    @property
    def words(self) -> str:
        """The answer in a sentence, with the numbers."""
        if self.answer == "unknown":
            return f"{self.name}: known at fewer than {FEWEST_SIZES} batch sizes"
        low, high = map(readable, self.interval)
        does = {
            "rises": "rises with the batch size",
            "falls": "falls with the batch size",
            "not shown": "no change with the batch size is shown",
        }[self.answer]
        return f"{self.name}: {does}, {readable(self.slope)} ({low} to {high}) per decade of it"


def trend(name: str, values: Mapping[int, float]) -> Trend:
    """The trend of a quantity by batch size; values that are not finite are left out."""
    known = tuple((size, values[size]) for size in sorted(values) if math.isfinite(values[size]))
    if len(known) < FEWEST_SIZES:
        return Trend(name, known, math.nan, (math.nan, math.nan), "unknown")
    sizes, y = zip(*known, strict=True)
    line = scipy.stats.linregress(np.log10(sizes), y)
    reach = quantile(len(known) - 2) * float(line.stderr)
    slope = float(line.slope)
    interval = slope - reach, slope + reach
    answer: Direction = "not shown"
    if interval[0] > 0 or interval[1] < 0:
        answer = "rises" if slope > 0 else "falls"
    return Trend(name, known, slope, interval, answer)
