"""Trials whose configuration has not all its seeds: they are shown, and not ranked.

Where only finalists get every seed (`study.finalists`), a configuration with one seed may lead by
luck. lr_star, tables and statistics count those that have all. As evidence of what trains and what
does not, every trial counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..trial import Trial
from .analysis import group_trials, has_value, repetitions


def mark_provisional(
    trials: Sequence[Trial], seeds: int, scientific: Sequence[str] = ()
) -> list[Trial]:
    """Trials in their order; those whose configuration has fewer than `seeds` are marked so.

    In a group none of whose configurations trains with all its seeds, as before the finalists have
    trained, no trial is marked: what there is says which is the best so far.
    """
    found: set[int] = set()
    for own in group_trials(trials, scientific).values():
        taken = Counter(trial.point.configuration for trial in own)
        whole = {name for name, count in taken.items() if count >= seeds}
        trains = [each for each in repetitions(own) if all(map(has_value, each))]
        if any(each[0].point.configuration in whole for each in trains):
            found |= {id(trial) for trial in own if trial.point.configuration not in whole}
    return [replace(one, provisional=True) if id(one) in found else one for one in trials]
