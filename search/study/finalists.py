"""Which configurations of a group get all their seeds: those that may win, and the edge's.

With one seed a configuration may lead by luck, so the best few are trained with more. The edge of
stability is random, so the base LRs next to it are, too. Which these are follows from the results
of the first seeds alone: neither the number of workers nor interruptions change it. Source: Tuning
Playbook, "Determining which changes to adopt" (S9): reruns for what may be adopted, not for all.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..trial import Told, cost
from .study import Study

NEXT_TO_EDGE = 2  # configurations: the one below the edge, and the one above


def choose_finalists(
    study: Study, first: Mapping[int, Told], whole: Mapping[int, Told]
) -> set[int]:
    """The numbers of the configurations of one group that get all their seeds.

    The best `study.finalists` of those that trained; where none of these trains with every seed,
    also the next ones, until one does. And the two at the edge: the lowest base LR above the best
    one that did not train, and the highest below it that did.

    Args:
        first: every configuration of the group, as its first seeds say, by number
        whole: those that have all their seeds, as these say
    """
    feasible = [number for number, one in first.items() if one.diverged <= 0 and not one.cut]
    feasible.sort(key=lambda number: (_cost(study, first[number]), first[number].point.base_lr))
    chosen: list[int] = []
    for start in range(0, len(feasible), study.finalists):
        chosen += feasible[start : start + study.finalists]
        done = [whole[number] for number in chosen if number in whole]
        if len(done) < len(chosen) or any(one.diverged <= 0 for one in done):
            break
    return {*chosen, *_next_to_edge(first, feasible)}


def _cost(study: Study, one: Told) -> float:
    return cost(one.value, study.maximize)


def _next_to_edge(first: Mapping[int, Told], feasible: list[int]) -> list[int]:
    """The configurations on both sides of the edge; `feasible` is ordered, the best one first."""

    def base_lr(number: int) -> float:
        return first[number].point.base_lr

    star = base_lr(feasible[0]) if feasible else 0.0
    failed = [number for number, one in first.items() if one.diverged > 0]
    above = min((number for number in failed if base_lr(number) > star), key=base_lr, default=None)
    if above is None:
        return []
    below = [number for number in feasible if base_lr(number) < base_lr(above)]
    return [above, *([max(below, key=base_lr)] if below else [])]
