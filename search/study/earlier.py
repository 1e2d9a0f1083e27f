"""A study that has grown: what was trained before counts, and new points fill what is missing.

Ranges may widen, lists, batch sizes, optimizers, scientific values and trials may be added. Trials
whose points lie in the space, as it is now, are kept. New points are the next ones of the group's
sequence over the whole space. Where kept points lie already, as many of the sequence's points are
left out; so the density of points becomes equal in the old and in the new part of a range:

    target = max(share, n / f),

with n kept points in the space as it was, which is the part f of the space as it is (lengths of log
ranges in decades).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..rules.optimizers import RULES, is_of_torch
from ..rules.schedule import applies
from ..trial import Group, Point, group_of
from ..words import readable
from .study import Axis, Range, Study, values_of

SAME = 1e-9  # relative: a border is written with fewer digits than it is computed with


@dataclass(frozen=True)
class Generation:
    """What a study was, and the number of the first configuration that was not planned then."""

    study: Study
    end: int


@dataclass(frozen=True)
class Earlier:
    """What a study was before it grew, at one batch size.

    generations  the oldest first; at least one
    points       the configurations that were trained then, by number, with the study's first seed;
                 those outside of the space, too
    """

    generations: tuple[Generation, ...]
    points: tuple[Point, ...]

    @property
    def end(self) -> int:
        """The number of the first configuration that is new."""
        return self.generations[-1].end

    def generation_of(self, point: Point) -> int:
        """The place of the generation that planned a point."""
        return next(i for i, one in enumerate(self.generations) if point.number < one.end)


def why_outside(study: Study, point: Point) -> str:
    """What of a point is none of a study's, as "base_lr 10"; empty if it lies in the space."""
    if point.batch_size not in study.batch_sizes:
        return f"batch size {point.batch_size}"
    if point.optimizer not in study.optimizers:
        return f"optimizer {point.optimizer}"
    if not study.seed <= point.seed < study.seed + study.most_seeds:
        return f"seed {point.seed}"
    axes: dict[str, Any] = dict(study.axes(point.optimizer, point.batch_size))
    axes = {name: axis for name, axis in axes.items() if applies(name, point.decay)}
    own = {**point.settings, **point.decay_settings, **point.workload_args}
    defaults = _defaults_of(point.optimizer)
    for name in own.keys() - axes.keys() - study.workload_args.keys():
        if own[name] != defaults.get(name):
            return f"{name} {readable(own[name])}"
    for name, axis in axes.items():
        if name not in point.values or not _holds(study, point, name, axis):
            return f"{name} {readable(point.values.get(name, 'missing'))}"
    for name, argument in study.workload_args.items():
        if own.get(name) not in values_of(argument):
            return f"{name} {readable(own.get(name, 'missing'))}"
    return ""


def _holds(study: Study, point: Point, name: str, axis: Axis) -> bool:
    if isinstance(axis, Range) or name in study.ties[point.optimizer]:
        return _is_on(axis, study.quantity(point, name))
    values = [study.convert(point.optimizer, name, one) for one in axis]
    return _is_on(tuple(values), point.values[name])


def completed(study: Study, point: Point) -> Point:
    """A point with the settings that its study did not name, and that have an axis now.

    They were the optimizer's defaults.
    """
    if point.optimizer not in study.optimizers:
        return point
    axes, defaults = study.axes(point.optimizer), _defaults_of(point.optimizer)
    unnamed = [name for name in defaults if name in axes and name not in point.settings]
    if not unnamed:
        return point
    settings = {**point.settings, **{name: defaults[name] for name in unnamed}}
    return replace(point, settings=settings)


def _defaults_of(optimizer: str) -> Mapping[str, float]:
    """What a setting is that a study does not name; those of torch's are left to torch."""
    return {} if is_of_torch(optimizer) else RULES[optimizer].defaults


def kept_points(study: Study, earlier: Earlier) -> dict[Group, list[Point]]:
    """The configurations of before that lie in the space as it is now, by group."""
    found: dict[Group, list[Point]] = {}
    for point in earlier.points:
        if not why_outside(study, point):
            found.setdefault(group_of(point, study.scientific_names), []).append(point)
    return found


@dataclass(frozen=True)
class Filling:
    """What the kept points of a group leave to be filled, among the points of a sequence.

    axes   of the group that vary now, in the order of the sequence's columns
    kept   the group's kept points
    study  as it is now
    """

    axes: Mapping[str, Axis]
    kept: Sequence[Point]
    earlier: Earlier
    study: Study

    def target(self, share: int) -> int:
        """How many points of the sequence make its density equal to that of the kept points."""
        return max(share, self._wanted)

    def missing(
        self, share: int, unit: Sequence[Sequence[float]], values: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Which points of a sequence are to be trained: neither kept, nor stood for by a kept one.

        None of the space as it was, if that is as dense already as `share` points make it.

        Args:
            share: how many configurations the group is to have, at least
            unit: the sequence in the unit cube, [points, axes]
            values: the same points as values
        """
        same = Counter(_key(point.values[name] for name in self.axes) for point in self.kept)
        keys = [_key(self._as_point_holds(row).values()) for row in values]
        matched = same & Counter(keys)
        stand_in = self._unmatched_by_cell(matched)
        is_dense = share <= self._wanted
        left = []
        for i, (row, key) in enumerate(zip(unit, keys, strict=True)):
            cell = self._cell(row)
            if matched[key]:
                matched[key] -= 1
            elif stand_in[cell]:
                stand_in[cell] -= 1
            elif not (is_dense and self._was_there(values[i])):
                left.append(i)
        return left

    def _unmatched_by_cell(self, matched: Mapping[tuple[str, ...], int]) -> Counter[object]:
        """How many kept points stand for points of the sequence, by the part they lie in."""
        found: Counter[object] = Counter()
        for point in self._counted:
            values = {name: point.values[name] for name in self.axes}
            if not matched[_key(values.values())]:
                quantities = {name: self.study.quantity(point, name) for name in self.axes}
                places = [_place(axis, quantities[name]) for name, axis in self.axes.items()]
                found[self._cell(places)] += 1
        return found

    def _as_point_holds(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of axes, of tied ones the hyperparameters that follow."""
        first = self.kept[0]
        tied = [name for name in self.axes if name in self.study.ties[first.optimizer]]
        chosen = {"base_lr": first.base_lr, **row}
        chosen = {name: chosen[name] for name in ("base_lr", *tied)}
        found = self.study.hyperparameters(first.optimizer, first.batch_size, chosen)
        return {name: found[name] if name in tied else row[name] for name in self.axes}

    @cached_property
    def _spaces(self) -> list[dict[str, Axis]]:
        """The axes as each generation had them.

        Without values where it had not the optimizer, or the axis was not tied by the same.
        """
        optimizer, batch_size = self.kept[0].optimizer, self.kept[0].batch_size
        ties = self.study.ties[optimizer]
        found = []
        for one in self.earlier.generations:
            had: dict[str, Axis] = {}
            if optimizer in one.study.optimizers:
                had = {name: (value,) for name, value in _defaults_of(optimizer).items()}
                had |= one.study.axes(optimizer, batch_size)
                before = one.study.ties[optimizer]
                had = {name: had[name] for name in had if before.get(name) == ties.get(name)}
            found.append({name: had.get(name, ()) for name in self.axes})
        return found

    @cached_property
    def _parts(self) -> list[float]:
        """The share of the space as it is that each had; 0 where it had one value of a range."""
        return [
            math.prod(_overlap(had[name], axis) for name, axis in self.axes.items())
            for had in self._spaces
        ]

    @cached_property
    def _widest(self) -> int:
        """The generation that had most of the space as it is; the latest such."""
        return max(range(len(self._parts)), key=lambda i: (self._parts[i], i))

    @cached_property
    def _counted(self) -> list[Point]:
        """Kept points that were drawn from a part of the space, not from a slice of it."""
        return [one for one in self.kept if self._parts[self.earlier.generation_of(one)]]

    @cached_property
    def _wanted(self) -> int:
        """n / f: so many points have the density that kept points have where most of them are."""
        part = self._parts[self._widest]
        study = self.earlier.generations[self._widest].study
        inside = sum(not why_outside(study, point) for point in self._counted)
        return math.ceil(inside / part - SAME) if part else 0

    def _was_there(self, values: Mapping[str, Any]) -> bool:
        """Whether a point lies in the space as it was."""
        before = self._spaces[self._widest]
        return all(_is_on(before[name], value) for name, value in values.items())

    def _cell(self, row: Sequence[float]) -> tuple[object, ...]:
        """Which part of the space a place is in: parts begin and end where earlier ones did."""
        columns = zip(self.axes.items(), row, strict=True)
        return tuple(self._cell_on(name, axis, u) for (name, axis), u in columns)

    def _cell_on(self, name: str, axis: Axis, u: float) -> object:
        before = [had[name] for had in self._spaces]
        if not isinstance(axis, Range):
            value = axis[int(u * len(axis))]
            return tuple(_is_on(one, value) for one in before)
        ranges = [one for one in before if isinstance(one, Range)]
        ends = {_place(axis, end) for one in ranges for end in (one.low, one.high)}
        return sum(u >= end for end in ends if SAME < end < 1 - SAME)


def _is_on(axis: Axis, value: Any) -> bool:
    if isinstance(axis, Range):
        return bool(axis.low * (1 - SAME) <= value <= axis.high * (1 + SAME))
    return value in axis


def _place(axis: Axis, value: Any) -> float:
    """Where a value lies on an axis: 0 at its low end, 1 at its high end; of a list mid-cell."""
    if not isinstance(axis, Range):
        return (axis.index(value) + 0.5) / len(axis)
    if axis.log:
        return math.log(value / axis.low) / math.log(axis.high / axis.low)
    return float((value - axis.low) / (axis.high - axis.low))


def _overlap(before: Axis, now: Axis) -> float:
    """The share of an axis that it had before; 0 for one value, or for a list, of a range."""
    if isinstance(now, Range):
        if not isinstance(before, Range):
            return 0.0
        ends = [min(max(_place(now, end), 0.0), 1.0) for end in (before.low, before.high)]
        return ends[1] - ends[0]
    if isinstance(before, Range):
        return 1.0
    return len({*before} & {*now}) / len(now)


def _key(values: Any) -> tuple[str, ...]:
    return tuple(map(repr, values))
