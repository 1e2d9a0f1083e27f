"""Trials beside their neighbours: where a lower base LR learns, learning nothing is a collapse.

By itself, a run that learns nothing may have a base LR that is too low, so it is feasible
(`verdict`). Beside runs that take shorter steps and learn, its loss is "uncharacteristically high"
(R6): its base LR is too high. The store keeps each trial's own verdict. The verdict beside
neighbours may change with every trial that is added, so it is made when trials are read
(`storage.read_trials`): tables, report, axis plots and dashboard then agree. Source: Tuning
Playbook, "How can optimization failures be debugged and mitigated?" (R3, R6).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..rules.hyperparameters import HYPERPARAMETERS
from ..trial import COMMON, Curve, Point, Trial, cost
from .analysis import group_trials, is_rankable, rank_configurations
from .curve_shape import UNLEARNED_FRACTION, levels
from .verdict import patience

# of what others learn: a base LR that is a few times too high leaves far more
NEXT_TO_NOTHING_SHARE = 0.25
# equal in points whose length of steps can be compared by the other hyperparameters
SAME_STEPS = ("decay", "decay_settings", "workload_key")
NEXT_TO_NOTHING = "next to nothing of what a lower base LR learns"


def judge_beside_neighbours(trials: Iterable[Trial], scientific: Sequence[str] = ()) -> list[Trial]:
    """Trials in their order; those that are collapsed beside others of their group are marked so.

    Such a trial has a base LR above the best, and ends with less than NEXT_TO_NOTHING_SHARE of what
    another one learned. The other one has a lower base LR, no hyperparameter that makes its steps
    longer, and trained no longer. The trial's objective has improved as little as its loss.
    """
    trials = list(trials)
    found = {
        id(one) for own in group_trials(trials, scientific).values() for one in _find_collapsed(own)
    }
    return [mark_collapsed(trial) if id(trial) in found else trial for trial in trials]


def learns_nothing(trial: Trial, learned: float, reached: float = math.nan) -> bool:
    """Whether a feasible trial ends with next to nothing of what others learn.

    The others end at a training loss `learned`. It must lie below the start by more than luck, and
    also below the trial's end by more than luck. They reach the cost `reached` (`Trial.cost`; nan:
    not known), and the trial reaches next to nothing of that.
    """
    curve = trial.curve
    if not trial.feasible or not len(curve.loss):
        return False
    untrained = cost(trial.initial_value, trial.maximize)
    gains = untrained - trial.cost, untrained - reached
    if math.isfinite(untrained) and gains[0] >= NEXT_TO_NOTHING_SHARE * gains[1] > 0:
        return False
    level, end = levels(curve.loss, curve.chance_loss), ends_at(curve)
    fall = level.chance - learned
    if not fall > max(UNLEARNED_FRACTION * abs(level.chance), level.luck):
        return False
    return end > level.chance - NEXT_TO_NOTHING_SHARE * fall and level.above(end, learned)


def mark_collapsed(trial: Trial) -> Trial:
    """The trial with the verdict collapsed, its own evidence kept."""
    evidence = f"{trial.verdict.evidence}; {NEXT_TO_NOTHING}"
    return replace(trial, verdict=replace(trial.verdict, outcome="collapsed", evidence=evidence))


def is_collapsed_by_neighbours(trial: Trial) -> bool:
    """Whether a trial is infeasible by its neighbours alone, not by its own curve."""
    return trial.verdict.evidence.endswith(NEXT_TO_NOTHING)


def ends_at(curve: Curve) -> float:
    """The typical loss at the end of a training."""
    return float(np.median(curve.loss[-patience(curve.planned_losses) :]))


def _find_collapsed(trials: Sequence[Trial]) -> list[Trial]:
    """The collapsed trials of one group."""
    ranking = rank_configurations(trials)
    ends = [(ends_at(one.curve), one) for one in trials if is_rankable(one) and len(one.curve.loss)]
    if not ranking or not ends:
        return []
    first, lowest, best = ranking[0], min(end for end, _ in ends), min(one.cost for _, one in ends)
    above = [one for _, one in ends if one.point.base_lr > first.point.base_lr]
    # Only few are left. The others learned enough even beside the best loss and value of all.
    left = [one for one in above if learns_nothing(one, lowest, best)]
    return [one for one in left if _is_learned_at_shorter_steps(one, ends)]


def _is_learned_at_shorter_steps(trial: Trial, ends: Sequence[tuple[float, Trial]]) -> bool:
    """Whether any trial with shorter steps, and no more of them, learned what this one did not."""
    taken = len(trial.curve.loss)
    as_long = [(end, one) for end, one in ends if len(one.curve.loss) <= taken]
    slower = [(end, one.cost) for end, one in as_long if _is_slower(one.point, trial.point)]
    return bool(slower) and learns_nothing(trial, *min(slower))


def _is_slower(point: Point, other: Point) -> bool:
    """Whether one point takes shorter steps by base LR, and by no hyperparameter longer ones."""
    if not point.base_lr < other.base_lr:
        return False
    if any(getattr(point, name) != getattr(other, name) for name in SAME_STEPS):
        return False
    for name, row in HYPERPARAMETERS.items():
        if row.longer_steps and row.longer_steps * (_of(point, name) - _of(other, name)) > 0:
            return False
    return True


def _of(point: Point, name: str) -> float:
    """A hyperparameter of a point; 0 where its optimizer has none of that name."""
    return float(getattr(point, name) if name in COMMON else point.settings.get(name, 0.0))
