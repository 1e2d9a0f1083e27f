"""Learning-rate schedules: warmup, then constant, linear or cosine decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .hyperparameters import Hyperparameter, declare

if TYPE_CHECKING:
    from ..trial import Point

Decay = Literal["constant", "linear", "cosine"]
DECAYS: tuple[Decay, ...] = get_args(Decay)
declare(Hyperparameter("decay", "common", choices=DECAYS, default="constant"))

MAX_WARMUP_FRACTION = 0.10  # of max_train_steps (R10)
LONG_WARMUP = 0.05  # of max_train_steps; where more is needed, those may have to grow (R12)


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
    """The learning rate of each update, [total].

    Warmup is linear from 0 before the first update to base_lr at update w = warmup_steps,

        η_t = base_lr · (t + 1) / w                      t < w,

    and the decay runs over the remaining S = total − w updates, s = t − w:

        η_t = base_lr · {1,  1 − s/S,  ½ (1 + cos(π s/S))}   constant, linear, cosine.

    Raises ValueError for an unknown decay. Source: Tuning Playbook, "Learning rate warmup" (R8,
    R11).
    """
    warmup = min(point.warmup_steps, total)
    ramp = np.arange(1, warmup + 1) / max(point.warmup_steps, 1)
    progress = np.arange(total - warmup) / max(total - warmup, 1)
    match point.decay:
        case "constant":
            decay = np.ones_like(progress)
        case "linear":
            decay = 1.0 - progress
        case "cosine":
            decay = 0.5 * (1.0 + np.cos(np.pi * progress))
        case unknown:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}; got {unknown!r}")
    return point.base_lr * np.concatenate([ramp, decay])
