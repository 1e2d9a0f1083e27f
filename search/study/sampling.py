"""Which points to train: a fixed plan for exploration, Optuna's TPE and GP for exploitation (S2).

Every group (batch size, optimizer, scientific values) gets an equal share of the trials and a
sequence of its own, seeded by the study's seed and the group's name. Point n of a batch size is the
next one of group n mod G, so a study that is given more trials later keeps the points it has. With
several seeds what is drawn are configurations: number n becomes the points n · seeds + i, i <
seeds, which differ in their seed alone.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rules.schedule import applies
from ..signals import stop_if_asked
from ..trial import COMMON, Group, Point, Told, group_of
from .earlier import Earlier, Filling, kept_points
from .finalists import NEXT_TO_EDGE, choose_finalists
from .samplers import ROUND
from .study import DECAY_SETTINGS, Axis, Range, Study, grid_size


def plan(study: Study) -> list[Point]:
    """Every point that a non-adaptive study may train, in training order; the same on every call.

    Where some configurations get more seeds than others, all are here with all their seeds.
    """
    return [
        with_seed(study, point, i)
        for batch_size in study.batch_sizes
        for point in _plan(study, batch_size)
        for i in range(study.most_seeds)
    ]


def some_points(study: Study, most: int) -> list[Point]:
    """Configurations by which to judge a plan, without making all of it.

    At most `most`, or one of every group if there are more groups. The first ones of an adaptive
    study are those of its first round; of a grid they are spread over it.
    """
    each = max(1, most // len(study.batch_sizes))
    if study.sampling.is_grid:
        sizes = study.batch_sizes
        return [point for batch_size in sizes for point in _grid_points(study, batch_size, each)]
    assert study.trials is not None  # for every sampler but grid (Study.problems)
    trials = min(study.trials, max(each, study.group_count()))
    few = study.model_copy(update={"trials": trials, "seeds": 1}).grown_from({})
    return next_points(few, [])


def next_points(study: Study, told: Sequence[Told]) -> list[Point]:
    """The points that can be trained now, given the finished trials.

    Those already trained are among them.

    A non-adaptive study has all its configurations from the start. A learner proposes ROUND of them
    for each group when the earlier ones are told. A group's finalists get their other seeds when
    all its configurations are told. So the points depend on the results alone, not on the number of
    workers or on interruptions.
    """
    points: list[Point] = []
    for batch_size in study.batch_sizes:
        own = [one for one in told if one.point.batch_size == batch_size]
        known = _configurations(study, own, study.first_seeds)
        if study.sampling.is_adaptive:
            configurations = _proposed(study, batch_size, known)
        else:
            configurations = _plan(study, batch_size)
        cut = {one.point.number // study.most_seeds for one in own if one.cut}
        for point in configurations:
            seeds = range(1 if point.number in cut else study.first_seeds)
            points += [with_seed(study, point, i) for i in seeds]
        if study.finalists:
            whole = _configurations(study, own, study.most_seeds)
            points += _points_of_finalists(study, batch_size, configurations, known, whole)
    return points


def _proposed(study: Study, batch_size: int, known: Mapping[int, Told]) -> list[Point]:
    """The configurations of an adaptive study that are known so far, group by group."""
    points: list[Point] = []
    fixed = _fixed_values(study)
    for part in _parts(study, batch_size):
        numbers = [*(point.number for point in part.kept), *part.numbers]
        drawn = len(part.kept) + len(part.values)
        points += part.kept
        points += [
            _point(study, fixed, part.group, number, values)
            for number, values in zip(part.numbers, part.values, strict=False)
        ]
        for start in range(drawn, len(numbers), ROUND):
            earlier, now = numbers[:start], numbers[start : start + ROUND]
            if not all(number in known for number in earlier):
                break
            if all(number in known for number in now):
                points += [known[number].point for number in now]
                continue
            told = [known[number] for number in earlier]
            points += [
                _point(study, fixed, part.group, number, values)
                for number, values in zip(
                    now, _proposals(study, part.group, told, len(now)), strict=True
                )
            ]
    return points


@dataclass(frozen=True)
class _Part:
    """What a group has in the plan of a batch size.

    kept     configurations that were trained before the study grew, by number
    numbers  of its new configurations
    values   of those of them that are drawn beforehand: all, unless a learner proposes the others
    """

    group: Group
    kept: list[Point]
    numbers: list[int]
    values: list[dict[str, Any]]


def _parts(study: Study, batch_size: int) -> list[_Part]:
    """The plan of a batch size, group by group.

    New configurations are numbered in turn, one of each group that still has some.
    """
    assert study.trials is not None  # for every sampler but grid (Study.problems)
    groups = study.groups(batch_size)
    earlier = study.earlier.get(batch_size)
    kept = kept_points(study, earlier) if earlier else {}
    most = max((len(points) for points in kept.values()), default=0)
    drawn, counts = [], []
    for index, group in enumerate(groups):
        own = kept.get(group, [])
        share = len(range(index, study.trials, len(groups)))
        if not own:
            share = max(share, most)  # as many as the others, if it is new
        values = _drawn(study, group, own, earlier, share)
        is_adaptive = study.sampling.is_adaptive
        counts.append(max(len(values), share - len(own)) if is_adaptive else len(values))
        drawn.append(values)
    numbers = _in_turn(counts, earlier.end if earlier else 0)
    return [
        _Part(group, kept.get(group, []), own, values)
        for group, own, values in zip(groups, numbers, drawn, strict=True)
    ]


def _drawn(
    study: Study, group: Group, kept: Sequence[Point], earlier: Earlier | None, share: int
) -> list[dict[str, Any]]:
    """The new points of a group that are drawn before any training."""
    axes = free_axes(study, group)
    count = min(share, study.sampling.first) if study.sampling.is_adaptive else share
    if not (kept and earlier):
        return _sequence(study, group, count)
    filling = Filling(axes, kept, earlier, study)
    if not study.sampling.is_adaptive:
        count = filling.target(share)
    unit = _unit(study, group, count)
    values = _values_at(axes, unit)
    return [values[i] for i in filling.missing(share, unit.tolist(), values)]


def _in_turn(counts: Sequence[int], first: int) -> list[list[int]]:
    """Numbers from `first` on, given to groups in turn until each has its count."""
    numbers: list[list[int]] = [[] for _ in counts]
    number = first
    for turn in range(max(counts, default=0)):
        for own, count in zip(numbers, counts, strict=True):
            if turn < count:
                own.append(number)
                number += 1
    return numbers


def rounds(study: Study, batch_size: int) -> dict[Group, list[list[int]]]:
    """The numbers of the configurations of each group that are planned at once, round by round.

    All that are new in one round, where nothing is learned; else those drawn, then the learner's.
    """
    if study.sampling.is_grid:
        earlier = study.earlier.get(batch_size)
        found: dict[Group, list[list[int]]] = {group: [[]] for group in study.groups(batch_size)}
        for point in _plan(study, batch_size):
            if earlier is None or point.number >= earlier.end:
                found[group_of(point, study.scientific_names)][0].append(point.number)
        return found
    return {part.group: _rounds_of(part) for part in _parts(study, batch_size)}


def _rounds_of(part: _Part) -> list[list[int]]:
    drawn = len(part.values)
    ends = [*range(drawn, len(part.numbers), ROUND), len(part.numbers)]
    pairs = itertools.pairwise([0, *ends])
    return [part.numbers[start:end] for start, end in pairs if start < end]


def _points_of_finalists(
    study: Study,
    batch_size: int,
    configurations: Sequence[Point],
    known: Mapping[int, Told],
    whole: Mapping[int, Told],
) -> list[Point]:
    """The further seeds of the finalists of every group whose configurations are all told."""
    points: list[Point] = []
    for group, share in shares(study, batch_size).items():
        own = [p for p in configurations if group_of(p, study.scientific_names) == group]
        first = {point.number: known[point.number] for point in own if point.number in known}
        if len(first) < share:
            continue
        chosen = choose_finalists(study, first, whole)
        points += [
            with_seed(study, point, i)
            for point in own
            if point.number in chosen
            for i in range(study.first_seeds, study.most_seeds)
        ]
    return points


def most_finalists(study: Study, configurations: int) -> int:
    """How many of a group's configurations may get all their seeds, at most."""
    return min(configurations, study.finalists + NEXT_TO_EDGE) if study.finalists else 0


def trials_of_finalists(study: Study, configurations: int) -> int:
    """How many trainings the finalists of a group take besides the first, at most.

    More only where none of the best trains with every seed.
    """
    return most_finalists(study, configurations) * (study.most_seeds - study.first_seeds)


def yet_to_plan(study: Study, points: Iterable[Point]) -> dict[int, int]:
    """How many trainings may follow those that can be planned now, at most, by batch size.

    They are what a learner will propose, and further seeds of finalists that are not known yet.
    """
    seeds: dict[Group, dict[int, int]] = {}
    for point in points:
        known = seeds.setdefault(group_of(point, study.scientific_names), {})
        number = point.number // study.most_seeds
        known[number] = known.get(number, 0) + 1
    to_come = {}
    for batch_size in study.batch_sizes:
        to_come[batch_size] = 0
        for group, share in shares(study, batch_size).items():
            known = seeds.get(group, {})
            to_come[batch_size] += (share - len(known)) * study.first_seeds
            if max(known.values(), default=0) <= study.first_seeds:
                to_come[batch_size] += trials_of_finalists(study, share)
    return to_come


def with_seed(study: Study, configuration: Point, i: int) -> Point:
    """The i-th point of a numbered configuration: number · most_seeds + i, with seed + i."""
    number = configuration.number * study.most_seeds + i
    return configuration.with_number(number, configuration.seed + i)


def _configurations(study: Study, told: Iterable[Told], seeds: int) -> dict[int, Told]:
    """Configurations of one batch size whose first `seeds` seeds are told, by number.

    This is the inverse of `with_seed`. A configuration is told by the mean of the values; it
    diverged as soon as its first seed did. One that was cut has no more seeds to wait for.
    """
    by_number: dict[int, list[Told]] = {}
    for one in sorted(told, key=lambda one: one.point.number):
        number, i = divmod(one.point.number, study.most_seeds)
        if i < seeds:
            by_number.setdefault(number, []).append(one)
    found = {}
    for number, each in by_number.items():
        is_cut = any(one.cut for one in each)
        if len(each) == seeds or is_cut:
            found[number] = Told(
                each[0].point.with_number(number, study.seed),
                value=fmean(one.value for one in each),
                diverged=max(one.diverged for one in each),
                cut=is_cut,
            )
    return found


def _plan(study: Study, batch_size: int) -> list[Point]:
    """The configurations of a non-adaptive study, by number."""
    fixed = _fixed_values(study)
    if study.sampling.is_grid:
        return _grid_points(study, batch_size, study.planned_trials())
    points = []
    for part in _parts(study, batch_size):
        points += part.kept
        points += [
            _point(study, fixed, part.group, number, values)
            for number, values in zip(part.numbers, part.values, strict=True)
        ]
    return sorted(points, key=lambda point: point.number)


def _grid_points(study: Study, batch_size: int, most: int) -> list[Point]:
    """The grids of a batch size's groups, one after the other.

    If they have more than `most` points together, only some, at most `most`. Kept points come
    first, and are no second time among them.
    """
    groups = study.groups(batch_size)
    earlier = study.earlier.get(batch_size)
    kept = kept_points(study, earlier) if earlier else {}
    points = sorted(
        (point for own in kept.values() for point in own), key=lambda point: point.number
    )
    there = {point.configuration for point in points}
    steps = math.ceil(sum(_grid_total(study, group) for group in groups) / most)
    rows = [(group, values) for group in groups for values in _grid(free_axes(study, group), steps)]
    fixed = _fixed_values(study)
    number = earlier.end if earlier else 0
    for group, values in rows:
        point = _point(study, fixed, group, number, values)
        if point.configuration not in there:
            points.append(point)
            number += 1
    return points


def _grid_total(study: Study, group: Group) -> int:
    return math.prod(map(grid_size, free_axes(study, group).values()))


def shares(study: Study, batch_size: int) -> dict[Group, int]:
    """How many configurations each group of a batch size gets in all."""
    groups = study.groups(batch_size)
    if batch_size in study.earlier and study.sampling.is_grid:
        planned = Counter(
            group_of(point, study.scientific_names) for point in _plan(study, batch_size)
        )
        return {group: planned[group] for group in groups}
    if study.sampling.is_grid:
        return {group: _grid_total(study, group) for group in groups}
    if batch_size in study.earlier:
        parts = _parts(study, batch_size)
        return {part.group: len(part.kept) + len(part.numbers) for part in parts}
    assert study.trials is not None  # for every sampler but grid (Study.problems)
    return {
        group: len(range(index, study.trials, len(groups))) for index, group in enumerate(groups)
    }


def next_number(study: Study, batch_size: int) -> int:
    """The number of the first configuration after all that a study plans at a batch size."""
    earlier = study.earlier.get(batch_size)
    total = sum(shares(study, batch_size).values())
    if earlier is None:
        return total
    kept = sum(map(len, kept_points(study, earlier).values()))
    return earlier.end + total - kept


def free_axes(study: Study, group: Group) -> dict[str, Axis]:
    """The axes of a group that vary: neither fixed, nor scientific, nor of a decay it has not."""
    held = dict(group.scientific)
    return {
        name: axis
        for name, axis in study.axes(group.optimizer, group.batch_size).items()
        if name not in held
        and (isinstance(axis, Range) or len(axis) > 1)
        and ("decay" not in held or applies(name, held["decay"]))
    }


Fixed = Mapping[str, Mapping[str, Any]]


def _fixed_values(study: Study) -> Fixed:
    """The values that stand where none is drawn, by optimizer and axis."""
    return {
        optimizer: {
            name: axis[0] for name, axis in study.axes(optimizer).items() if isinstance(axis, tuple)
        }
        for optimizer in study.optimizers
    }


def _point(
    study: Study, fixed: Fixed, group: Group, number: int, values: Mapping[str, Any]
) -> Point:
    """A point of a group: the values drawn, the scientific ones and the fixed ones."""
    stop_if_asked()  # a long plan takes seconds
    held = dict(group.scientific)
    chosen = (
        dict(fixed[group.optimizer])
        | {name: value for name, value in held.items() if name not in study.workload_args}
        | dict(values)
    )
    chosen = study.hyperparameters(group.optimizer, group.batch_size, chosen)
    common = {name: chosen.pop(name) for name in COMMON}
    of_decay = {name: chosen.pop(name) for name in DECAY_SETTINGS if name in chosen}
    return Point(
        number=number,
        batch_size=group.batch_size,
        optimizer=group.optimizer,
        seed=study.seed,
        settings=chosen,
        decay_settings={
            name: value for name, value in of_decay.items() if applies(name, common["decay"])
        },
        workload_args={name: held.get(name, value) for name, value in study.workload_args.items()},
        **common,
    )


def _entropy(study: Study, group: Group, *more: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([study.seed, zlib.crc32(group.label.encode()), *more])


def _sequence(study: Study, group: Group, count: int) -> list[dict[str, Any]]:
    """The first `count` points of a group's sequence."""
    return _values_at(free_axes(study, group), _unit(study, group, count))


def _unit(study: Study, group: Group, count: int) -> NDArray[np.float64]:
    """The same in the unit cube, [count, axes]."""
    axes = free_axes(study, group)
    if not axes:
        return np.empty((count, 0))
    return study.sampling.sequence(count, len(axes), np.random.default_rng(_entropy(study, group)))


def _values_at(axes: Mapping[str, Axis], unit: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [
        {name: _at(axis, u) for (name, axis), u in zip(axes.items(), row, strict=True)}
        for row in unit
    ]


def _at(axis: Axis, u: float) -> Any:
    """The value of an axis at u ∈ [0, 1): log-spaced on a log axis.

    Of a list, each value is equally likely.
    """
    if not isinstance(axis, Range):
        return axis[int(u * len(axis))]
    if axis.log:
        return float(axis.low * (axis.high / axis.low) ** u)
    return float(axis.low + (axis.high - axis.low) * u)


def _grid(axes: Mapping[str, Axis], step: int) -> list[dict[str, Any]]:
    """About every `step`-th point of a grid.

    The step is made to share no factor with an axis, so that no value is left out.
    """
    columns = [_ticks(axis) for axis in axes.values()]
    while any(math.gcd(step, len(column)) > 1 for column in columns) and step > 1:
        step += 1
    rows = itertools.islice(itertools.product(*columns), 0, None, step)
    return [dict(zip(axes, row, strict=True)) for row in rows]


def _ticks(axis: Axis) -> Sequence[Any]:
    if not isinstance(axis, Range):
        return axis
    assert axis.points is not None  # required of every range by the grid sampler (Study.problems)
    space: NDArray[np.float64] = (np.geomspace if axis.log else np.linspace)(
        axis.low, axis.high, axis.points
    )
    return [float(value) for value in space]


def _proposals(
    study: Study, group: Group, told: Sequence[Told], count: int
) -> list[dict[str, Any]]:
    """The next points of a group, learned from finished trials."""
    # Optuna takes a second to import, and most studies need none here
    from .adaptive import propose

    seed = int(_entropy(study, group, len(told)).generate_state(1)[0])
    return propose(study, free_axes(study, group), told, count, seed)
