"""What is told of scaling against the batch size: plain values, which scaling.json keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..trial import choice_label
from .comparison import Interval
from .laws import LeftOut, Prediction
from .optimum import Optimum
from .scaling import AtBatchSize, Exponent, Law, Scaling
from .targets import StepsToTarget
from .trends import Trend


@dataclass(frozen=True)
class SizeTold:
    """One batch size.

    lr_star, as_good, best_base_lr, best_value, headroom   as in a summary (`analysis`)
    edge             (largest base LR that trains, lowest that does not); an end is 0 or inf where
                     nothing bounds it
    optimum          of the smooth curve, which laws are fitted to
    usable_decades, lr_sensitivity   nan if unknown, the second in older files too
    max_train_steps  of its trainings, ascending
    seeds            the most that any configuration has
    """

    batch_size: int
    lr_star: float
    as_good: Interval
    best_base_lr: float
    best_value: float
    headroom: float
    edge: Interval
    optimum: Optimum
    usable_decades: float
    max_train_steps: tuple[int, ...]
    seeds: int
    lr_sensitivity: float = math.nan


@dataclass(frozen=True)
class ScalingTold:
    """One optimizer and values of the scientific hyperparameters.

    sentence       the answer; settles: what would tell rules of thumb apart, if they are not
    sizes          ascending
    edge, exponent   of unstable_base_lr, of the optimal base LR; None if not fitted
    left_out       each batch size predicted from the others
    targets        steps to target; None if no target could be chosen
    trends         usable decades, LR sensitivity, best value, log10 of the headroom
    predictions    base LRs at the batch sizes that were asked for
    optimum_band, edge_band   laws and their 95 % interval, over the batch sizes
    notes          what could not be said, and why
    """

    optimizer: str
    scientific: tuple[tuple[str, Any], ...]
    sentence: str
    settles: str
    sizes: tuple[SizeTold, ...]
    edge: Exponent | None
    exponent: Exponent | None
    laws: tuple[Law, ...]
    left_out: tuple[LeftOut, ...]
    targets: StepsToTarget | None
    trends: tuple[Trend, ...]
    predictions: tuple[Prediction, ...]
    optimum_band: tuple[Prediction, ...]
    edge_band: tuple[Prediction, ...]
    notes: tuple[str, ...]

    @property
    def key(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """Which group of the study it is."""
        return self.optimizer, self.scientific

    @property
    def label(self) -> str:
        """The optimizer and its scientific values, as in a group's label."""
        return choice_label(self.optimizer, self.scientific)


@dataclass(frozen=True)
class ScalingReport:
    """All groups of a study.

    objective, maximize   as the study has them
    target                that was asked for; None: chosen for each group
    """

    objective: str
    maximize: bool
    target: float | None
    groups: tuple[ScalingTold, ...]


def told(scaling: Scaling) -> ScalingTold:
    """What `scaling` says, at once."""
    return ScalingTold(
        optimizer=scaling.optimizer,
        scientific=scaling.scientific,
        sentence=scaling.sentence,
        settles=scaling.settles,
        sizes=tuple(map(_size, scaling.sizes)),
        edge=scaling.edge,
        exponent=scaling.exponent,
        laws=scaling.laws,
        left_out=scaling.left_out,
        targets=scaling.targets,
        trends=scaling.trends,
        predictions=scaling.predictions,
        optimum_band=scaling.optimum_band,
        edge_band=scaling.edge_band,
        notes=scaling.notes,
    )


def _size(one: AtBatchSize) -> SizeTold:
    row = one.summary
    return SizeTold(
        batch_size=one.batch_size,
        lr_star=row.lr_star,
        as_good=row.as_good,
        best_base_lr=row.best_base_lr,
        best_value=row.best_value,
        headroom=row.headroom,
        edge=one.edge,
        optimum=one.optimum,
        usable_decades=row.usable_decades,
        max_train_steps=one.max_train_steps,
        seeds=row.seeds,
        lr_sensitivity=row.lr_sensitivity,
    )
