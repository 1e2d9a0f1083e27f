"""The clip threshold of every update as a recurrence over the norms, in NumPy.

`clipping` says what it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

Z_DECAY = 0.97  # β: half of what m and s² hold is from the last 23 updates; ZClip's α
# first updates that enter m and s² and are not clipped for them; ZClip's warmup steps
Z_GATHERS = 25
# Of clip_tensor, AdaGC's β: half of what γ holds is from the last 34 updates.
TENSOR_DECAY = 0.98
# first updates, whose smallest norms are where γ begins; AdaGC's warmup has 100 of them
TENSOR_GATHERS = 25
TENSOR_FIRST = 1.0  # the threshold of the global norm in these; AdaGC's λ_abs

Number = TypeVar("Number", float, "Tensor")


def clip_z_of(update: NDArray[np.int64], clip_z: ArrayLike) -> NDArray[np.float64]:
    """clip_z at update 0, 1, …: off during the first ones."""
    return np.where(update < Z_GATHERS, math.inf, clip_z)


def share_of(update: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the norm of update 0, 1, … contributes to m and s².

    All of it at first, 1 − β after a while.
    """
    return (1.0 - Z_DECAY) / (1.0 - np.power(Z_DECAY, update + 1, dtype=np.float64))


def update_moments(
    mean: Number, variance: Number, norm: Number, share: Number
) -> tuple[Number, Number]:
    """Mean and variance of the norms after one more of them."""
    distance = norm - mean
    change = share * distance
    return mean + change, (1.0 - share) * (variance + change * distance)


def clip_thresholds(
    norm_T: NDArray[np.float64], clip_norm: float, clip_z: float
) -> NDArray[np.float64]:
    """The thresholds of a whole trial, [T], from its unclipped norms.

    The recurrence of training again, where m and s² are held in float64 as well: the thresholds
    that were used, up to the last bit of a square root (torch does not round it as the standard
    says).
    """
    if clip_z == math.inf:
        return np.full(len(norm_T), clip_norm)
    update_T = np.arange(len(norm_T))
    found, mean, variance = [], 0.0, 0.0
    columns = (norm_T, clip_z_of(update_T, clip_z), share_of(update_T))
    for norm, z, share in zip(*(column.tolist() for column in columns), strict=True):
        z_limit = mean + z * math.sqrt(variance) if variance > 0 else math.inf
        found.append(min(clip_norm, z_limit))
        mean, variance = update_moments(mean, variance, min(norm, found[-1]), share)
    return np.array(found)
