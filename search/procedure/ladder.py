"""How far a remedy lets the base LR go: multiples of one at which plain training fails (R8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..judge.diagnosis import Edge
from ..trial import Trial
from .steps import Case

# multiples of unstable_base_lr for a remedy to reach, the first that works (R8)
LADDER = (10.0, 5.0, 3.0, 1.0)
HIGHER = (100.0, 30.0)  # tried for a warmup where 10 × worked (R8)


@dataclass(frozen=True)
class Reference:
    """The base LR that LADDER has multiples of, and its name."""

    name: str
    base_lr: float


def reference_of(case: Case, edge: Edge) -> Reference:
    """The upper end of unstable_base_lr, or lr_star where training recovers at every base LR.

    At the upper end half of the trainings or more diverge; lower, a useless remedy would seem to
    work.
    """
    if edge.found:
        return Reference("unstable_base_lr", edge.interval[1])
    return Reference("lr_star", case.point.base_lr)


def all_train(case: Case, trials: Sequence[Trial]) -> bool:
    """Whether every one of some trials is feasible, and there are any."""
    return bool(trials) and all(trial.feasible for trial in case.judged(trials))
