"""Samplers, one row each: what makes the points of a study (S2).

    halton, sobol   quasi-random sequences, scrambled (scipy.stats.qmc)
    random          independent points
    grid            every combination of the axes' values
    tpe, gp         Optuna's, which learn from finished trials; their first round is from Halton
    halton+tpe      the same as tpe, after EXPLORED points of each group from Halton: explore, then
                    exploit

Source: Tuning Playbook, "Choosing the right search algorithm"; Bousquet et al. 2017, "Critical
Hyper-Parameters: No Random, No Cry", arXiv 1706.03200 (Halton sequences).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported on first use
from numpy.typing import NDArray

from ..rules.hyperparameters import by_name

Unit = NDArray[np.float64]  # points in the unit cube, [points, axes]
Draw = Callable[[int, int, np.random.Generator], Unit]

ROUND = 8  # points of a group that a learner proposes at once
EXPLORED = 16  # points of a group before a learner that exploits what was explored


@dataclass(frozen=True)
class Sampler:
    """What makes the points of a study. Raises TypeError if the row is not complete.

    draw     `draw(count, axes, rng)` returns at least `count` points in [0, 1)^axes; a larger count
             must begin with the same points. None: a grid
    learner  the class of optuna.samplers that proposes what follows a first round of `draw`. Empty:
             all points are drawn before the first training
    first    how many points of a group are drawn before the learner proposes any
    """

    name: str
    draw: Draw | None
    learner: str = ""
    first: int = ROUND

    def __post_init__(self) -> None:
        if self.learner and not self.draw:
            raise TypeError(f"sampler {self.name!r}: a learner needs draw, for its first round")

    @property
    def is_grid(self) -> bool:
        """Whether its points are every combination of the axes' values."""
        return self.draw is None

    @property
    def is_adaptive(self) -> bool:
        """Whether it learns from finished trials where to go next."""
        return bool(self.learner)

    def sequence(self, count: int, axes: int, rng: np.random.Generator) -> Unit:
        """The first points of its sequence, [count, axes].

        Raises ValueError for a grid, which has none, and if `draw` returns anything else.
        """
        if self.draw is None:
            raise ValueError(f"sampler {self.name!r} has no sequence")
        unit = np.asarray(self.draw(count, axes, rng))
        if unit.shape[1:] != (axes,) or len(unit) < count:
            raise ValueError(
                f"sampler {self.name!r} drew an array of shape {unit.shape} for {count} points of "
                f"{axes} axes"
            )
        if not ((unit >= 0) & (unit < 1)).all():
            raise ValueError(f"sampler {self.name!r} drew a point outside of [0, 1)")
        return unit[:count]


def _halton(count: int, axes: int, rng: np.random.Generator) -> Unit:
    unit: Unit = scipy.stats.qmc.Halton(axes, scramble=True, rng=rng).random(count)
    return unit


def _sobol(count: int, axes: int, rng: np.random.Generator) -> Unit:
    """Sobol points are balanced in powers of two: the next power, whose beginning is used."""
    power = math.ceil(math.log2(max(count, 1)))
    unit: Unit = scipy.stats.qmc.Sobol(axes, scramble=True, rng=rng).random_base2(power)
    return unit


def _random(count: int, axes: int, rng: np.random.Generator) -> Unit:
    return rng.random((count, axes))


SAMPLERS: dict[str, Sampler] = by_name(
    [
        Sampler("halton", _halton),
        Sampler("sobol", _sobol),
        Sampler("grid", draw=None),
        Sampler("random", _random),
        Sampler("tpe", _halton, learner="TPESampler"),
        Sampler("gp", _halton, learner="GPSampler"),
        Sampler("halton+tpe", _halton, learner="TPESampler", first=EXPLORED),
    ]
)
