"""Laws of a base LR against the batch size: fitted, compared, and asked for other batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .comparison import Interval


@dataclass(frozen=True)
class Prediction:
    """A base LR at one batch size by the laws: `base_lr`, and its 95 % interval.

    extrapolated   whether the batch size lies outside those that the laws were fitted to
    rests_on       names of the laws that it is averaged over, with their weights
    """

    batch_size: int
    base_lr: float
    interval: Interval
    extrapolated: bool
    rests_on: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Law:
    """One law, fitted.

    name        constant, power, saturating or surge
    equation    in plain text, as eta = c * B^p
    shape       its shape: p, B_noise or B_n; nan for the constant
    interval    of the shape, 95 %; an end is -inf, 0 or inf where the data do not bound it
    misfit      sum over batch sizes of the squared distance, in standard errors
    freedom     batch sizes less parameters
    weight      AICc weight; nan where it cannot be compared
    fails       whether it misses by more than the noise explains (p < 0.05)
    """

    name: str
    equation: str
    shape: float
    interval: Interval
    misfit: float
    freedom: int
    weight: float
    fails: bool


@dataclass(frozen=True)
class LeftOut:
    """What the laws say of a batch size that they have not seen.

    miss       log10 of the measured base LR less that of the predicted one, in decades
    reach      half width of the 95 % prediction interval, in decades: prediction's and measured
               one's uncertainty
    fails      whether the miss is larger than that
    """

    batch_size: int
    predicted: Prediction
    measured: float
    miss: float
    reach: float
    fails: bool


@dataclass(frozen=True)
class Exponent:
    """The exponent p of base LR ~ B^p. `excluded`: those of 0, ½ and 1 outside of its interval."""

    value: float
    interval: Interval
    excluded: tuple[float, ...]
