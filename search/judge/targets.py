"""Updates and examples until the objective reaches a target, against the batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..trial import Trial
from .comparison import Interval


@dataclass(frozen=True)
class Reached:
    """How soon a target is reached at one batch size, at the base LR that reaches it soonest.

    updates    until then, interpolated between evaluations; inf if no training reaches it
    interval   that holds `updates` with 95 % confidence; (nan, nan) if not known
    base_lr    at which it is reached soonest; nan if it is not reached
    trainings  that reach it
    """

    batch_size: int
    updates: float
    interval: Interval
    base_lr: float
    trainings: int

    @property
    def examples(self) -> float:
        return self.updates * self.batch_size


@dataclass(frozen=True)
class StepsToTarget:
    """Updates to a target against the batch size: (S/S_min − 1)(E/E_min − 1) = 1.

    target          of the objective; is_given: whether it was asked for, else chosen
    reached         by batch size, ascending
    critical        B_crit = E_min / S_min: at that batch size twice S_min updates are needed; nan
                    if not fitted, 0 or inf if it lies below or beyond the batch sizes
    interval        that holds it with 95 % confidence; an end is 0 or inf where the data do not
                    bound it
    fewest_updates, fewest_examples   S_min and E_min; nan where B_crit is not bounded
    words           the regimes in a sentence
    notes           what keeps more from being said
    """

    target: float
    is_given: bool
    reached: tuple[Reached, ...]
    critical: float
    interval: Interval
    fewest_updates: float
    fewest_examples: float
    words: str
    notes: tuple[str, ...]


def steps_to_target(
    trials: Mapping[int, Sequence[Trial]], objective: str, target: float | None = None
) -> StepsToTarget | None:
    """Of the trials of one optimizer by batch size; None if no target could be chosen."""
    raise NotImplementedError
