"""A shy cut: which trials of a group train to their end, by what all of them had reached (S2).

Synchronous: every configuration trains with its first seed to the same step, then all are decided
together. So who goes on depends on results alone, not on workers or interruptions. Of those that
train, the best `cut.keep` go on, and at least FEWEST; what is already infeasible takes nobody's
place. A learner's rounds are cut one by one.

Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", arXiv 1502.07943 (successive halving).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from ..trial import CUT, Point, Trial
from ..words import readable
from .sampling import rounds
from .study import Study

FEWEST = 3  # trials of a round that go on: a star needs a neighbour on both sides

Key = tuple[int, int]  # batch size and number


@dataclass(frozen=True)
class Bar:
    """What decided a round.

    cost    the highest that goes on; inf: all do
    kept    how many trials it keeps at least, of those that were feasible at the cut
    of      how many these were
    """

    cost: float
    kept: int
    of: int


@dataclass(frozen=True)
class Decision:
    """What follows from the results so far.

    to_cut   points to be trained up to the cut, whose round is not decided before
    stopped  points that end at the cut, and what decided it
    to_end   points that are trained to their end, further seeds included
    """

    to_cut: list[Point] = field(default_factory=list)
    stopped: list[tuple[Point, Bar]] = field(default_factory=list)
    to_end: list[Point] = field(default_factory=list)


def decide(
    study: Study,
    points: Iterable[Point],
    told: Collection[Key],
    at_cut: Callable[[Point], Trial | None],
    given_up: Collection[Key] = (),
) -> Decision:
    """Who goes on, of the points that `next_points` returns.

    `told` are finished. `at_cut` is a trial as it stood at its cut, with its verdict then; None
    where it has not come so far. It is asked only where a round has points that are not told.
    `given_up` crashed in this run, and nobody waits for them.
    """
    found = Decision()
    known = {*told, *given_up}
    by_configuration: dict[Key, list[Point]] = {}
    for point in points:
        configuration = point.batch_size, point.number // study.most_seeds
        by_configuration.setdefault(configuration, []).append(point)
    together = list(_rounds(study, by_configuration))
    kept = by_configuration.keys() - {key for one in together for key in one}
    for key in sorted(kept):  # of before the study grew: decided then
        found.to_end.extend(point for point in by_configuration[key] if _key(point) not in known)
    for configurations in together:
        own = [by_configuration[one] for one in configurations]
        if all(_key(point) in told for seeds in own for point in seeds):
            continue
        alive = [seeds for seeds in own if _key(seeds[0]) not in given_up]
        reached = {_key(seeds[0]): at_cut(seeds[0]) for seeds in alive}
        missing = [seeds[0] for seeds in alive if reached[_key(seeds[0])] is None]
        if missing:
            found.to_cut.extend(missing)
            continue
        bar = _bar(study, reached.values())
        for seeds in alive:
            first = seeds[0]
            one = reached[_key(first)]
            if one and (_key(first) in told or one.cost <= bar.cost):
                found.to_end.extend(point for point in seeds if _key(point) not in known)
            else:
                found.stopped.append((first, bar))
    return found


def _rounds(study: Study, configurations: Collection[Key]) -> Iterator[list[Key]]:
    """Configurations that are decided together."""
    for batch_size in study.batch_sizes:
        for of_group in rounds(study, batch_size).values():
            for numbers in of_group:
                own = [(batch_size, number) for number in numbers]
                yield [key for key in own if key in configurations]


def _bar(study: Study, reached: Iterable[Trial | None]) -> Bar:
    costs = sorted(one.cost for one in reached if one and one.feasible)
    if len(costs) < FEWEST:
        return Bar(math.inf, len(costs), len(costs))
    kept = _kept(study, len(costs))
    return Bar(costs[kept - 1], kept, len(costs))


def _kept(study: Study, feasible: int) -> int:
    assert study.cut is not None
    return min(feasible, max(FEWEST, math.ceil(study.cut.keep * feasible)))


def stop(study: Study, trial: Trial, bar: Bar) -> Trial:
    """A trial that stood so at its cut, as it is told: unfinished, or infeasible if it was so."""
    step, total = study.cut_step(trial.point), study.updates(trial.point)
    limit = readable(-bar.cost if study.maximize else bar.cost)
    reached = f"{CUT} {step} of {total}: {study.objective} {readable(trial.best_value)}"
    others = f"the best {bar.kept} of {bar.of} had reached {limit}"
    verdict = trial.verdict
    if verdict.infeasible:
        evidence = f"{verdict.evidence}; {reached}, where {others}"
        return replace(trial, verdict=replace(verdict, evidence=evidence))
    evidence = f"{reached}, where {others}"
    return replace(trial, verdict=replace(verdict, outcome="unfinished", evidence=evidence))


def most_saved(study: Study) -> int:
    """How many updates a cut saves at most: where every trial is feasible at its cut.

    Those of further seeds are among them, and those of finalists are not.
    """
    saved = 0
    for batch_size in study.batch_sizes:
        for group, of_group in rounds(study, batch_size).items():
            ended = sum(len(one) - _kept(study, len(one)) for one in of_group)
            whole, after = study.earliest_cut(group.optimizer, batch_size)
            saved += ended * (whole * study.first_seeds - after)
    return saved


def _key(point: Point) -> Key:
    return point.batch_size, point.number
