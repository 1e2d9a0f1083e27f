"""Learning-rate schedules: warmup, then a shape of decay.

With base LR η₀ and w = warmup_steps, update t = 0, 1, … of T in all has the learning rate

    η_t = η₀ (t + 1) / w                t < w: linear from 0 to η₀ at the last update of warmup
    η_t = η₀ f(s),    s = t − w         else, over the S = T − w updates that remain

where f is the row of SHAPES that `decay` names:

    constant         f = 1
    linear           f = 1 − s/S
    cosine           f = ½ (1 + cos(π s/S))
    wsd              f = min(1, (1 − s/S) / d)                              d = decay_fraction, 0.2
    cosine_restarts  f = ½ (1 + cos(π c)),    c = (n + 1) s/S mod 1         n = restarts, 1

wsd is warmup, stable, decay: η₀ until the last share d of updates, then linear to 0, so that runs
of different lengths have their beginning in common; d = 1 is linear. cosine_restarts is n + 1
cosines of equal length, one after the other; n = 0 is cosine.

Source: Tuning Playbook, "Learning rate warmup" (R8, R11). wsd: Hu et al. 2024, "MiniCPM", arXiv
2404.06395, whose decay is exponential; linear, over 20 % of updates: Hägele et al. 2024, "Scaling
Laws and Compute-Optimal Training Beyond Fixed Training Durations", arXiv 2405.18392.
cosine_restarts: Loshchilov & Hutter 2017, "SGDR", arXiv 1608.03983, T_mult = 1 and η_min = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from .hyperparameters import (
    HYPERPARAMETERS,
    Hyperparameter,
    by_name,
    declare,
    fault_of,
    is_count,
    is_number,
)

if TYPE_CHECKING:
    from ..trial import Point

MAX_WARMUP_FRACTION = 0.10  # of max_train_steps (R10)
LONG_WARMUP = 0.05  # of max_train_steps; where more is needed, those may have to grow (R12)

Steps = NDArray[np.int64]
Factors = NDArray[np.float64]
Settings = Mapping[str, float]


@dataclass(frozen=True)
class Shape:
    """A course of the learning rate after warmup. Raises TypeError if the row is not complete.

    factor    f for s = 0 … S − 1, [S], given s, S and the shape's settings
    defaults  its own settings, rows of HYPERPARAMETERS, each with its default
    bounds    the smallest and the largest value of each setting that S updates can show, given S:
              beyond, other settings have the same learning rates
    """

    name: str
    factor: Callable[[Steps, int, Settings], Factors]
    defaults: Settings = field(default_factory=dict)
    bounds: Callable[[int], Mapping[str, tuple[float, float]]] = field(default=lambda steps: {})

    def __post_init__(self) -> None:
        if fault := fault_of(self.defaults, "schedule"):
            self._refuse(fault)
        try:
            factors = self.factor(np.arange(4), 4, self.defaults)
        except KeyError as error:
            self._refuse(f"its factor needs {error}, which has no default")
        if np.shape(factors) != (4,) or not np.isfinite(factors).all():
            self._refuse("its factor must be a finite number for each update")

    def _refuse(self, reason: str) -> NoReturn:
        raise TypeError(f"decay {self.name!r}: {reason}")


def _constant(step: Steps, steps: int, own: Settings) -> Factors:
    return np.ones(len(step))


def _linear(step: Steps, steps: int, own: Settings) -> Factors:
    return 1.0 - step / max(steps, 1)


def _cosine(step: Steps, steps: int, own: Settings) -> Factors:
    return 0.5 * (1.0 + np.cos(np.pi * (step / max(steps, 1))))


def _wsd(step: Steps, steps: int, own: Settings) -> Factors:
    return np.minimum(1.0, _linear(step, steps, own) / own["decay_fraction"])


def _cosine_restarts(step: Steps, steps: int, own: Settings) -> Factors:
    in_cycle = step * (int(own["restarts"]) + 1) % max(steps, 1)
    return _cosine(in_cycle, steps, own)


declare(
    Hyperparameter(
        "decay_fraction",
        "schedule",
        "a number in (0, 1]",
        lambda value: is_number(value) and 0 < value <= 1,
        description="Of the decay wsd: the share of the updates after warmup in which it decays",
        example=[0.1, 0.3],
    )
)
declare(
    Hyperparameter(
        "restarts",
        "schedule",
        "an integer ≥ 0",
        is_count,
        is_integer=True,
        description="Of the decay cosine_restarts: how often the cosine begins anew",
        example=[1, 3],
    )
)

SHAPES: dict[str, Shape] = by_name(
    [
        Shape("constant", _constant),
        Shape("linear", _linear),
        Shape("cosine", _cosine),
        # two updates at least in the decay, and in each cycle
        Shape(
            "wsd",
            _wsd,
            {"decay_fraction": 0.2},
            bounds=lambda steps: {"decay_fraction": (2 / max(steps, 2), 1.0)},
        ),
        Shape(
            "cosine_restarts",
            _cosine_restarts,
            {"restarts": 1},
            bounds=lambda steps: {"restarts": (0, max(steps // 2 - 1, 0))},
        ),
    ]
)
declare(
    Hyperparameter(
        "decay",
        "common",
        choices=SHAPES,
        default="constant",
        description="How the learning rate falls after warmup",
        example=["constant", "cosine"],
    )
)


def add(shape: Shape) -> Shape:
    """Add a row to SHAPES, under its name, and return it. Raises TypeError if the name is taken."""
    SHAPES.update(by_name([*SHAPES.values(), shape]))
    return shape


def applies(name: str, decay: object) -> bool:
    """Whether a hyperparameter plays a part under a decay: settings of other shapes play none."""
    row = HYPERPARAMETERS.get(name)  # none of a setting that only an optimizer of torch has
    return row is None or row.kind != "schedule" or name in SHAPES[str(decay)].defaults


def longest_warmup(max_train_steps: int) -> int:
    """The largest warmup_steps that a study may contain (R10)."""
    return int(MAX_WARMUP_FRACTION * max_train_steps)


def orders_of_magnitude(max_train_steps: int) -> list[int]:
    """No warmup, then 10, 100, ... up to a tenth of max_train_steps (R10)."""
    powers = (10**exponent for exponent in range(1, 19))
    return [0] + [steps for steps in powers if steps <= longest_warmup(max_train_steps)]


def total_steps(point: Point, max_train_steps: int, prepend_warmup: bool) -> int:
    """Updates in all: a prepended warmup adds to the baseline schedule (R11)."""
    return max_train_steps + point.warmup_steps if prepend_warmup else max_train_steps


def learning_rates(point: Point, total: int) -> NDArray[np.float64]:
    """The learning rate of each update, [total]. Raises ValueError for an unknown decay."""
    warmup = min(point.warmup_steps, total)
    ramp = np.arange(1, warmup + 1) / max(point.warmup_steps, 1)
    shape = SHAPES.get(point.decay)
    if shape is None:
        raise ValueError(f"decay must be one of {', '.join(SHAPES)}; got {point.decay!r}")
    own = {**shape.defaults, **point.decay_settings}
    decay = shape.factor(np.arange(total - warmup), total - warmup, own)
    return point.base_lr * np.concatenate([ramp, decay])
