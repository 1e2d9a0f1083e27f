"""[warm_start]: trials of earlier studies of the same workload count, where they lie in the space.

They are copied, with their curves, before the first training: the results folders that they come
from are only read. The study then goes on from them as one that has grown (`study.earlier`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from ..errors import UserError
from ..rules.optimizers import decays_vectors
from ..study.earlier import Earlier, Generation, completed, why_outside
from ..study.study import DECAY_VECTORS, Study
from ..trial import Point, Trial
from .changes import changes_besides, document_of
from .files import curve_path
from .growth import GROWN, MAY_GROW, WARM, History, grow
from .rows import stored_trials
from .storage import Store, open_store, read_records, tell_all

# Keys that may differ from those of the studies whose trials count.
MAY_DIFFER = (
    *MAY_GROW,
    "question",
    "seed",
    "seeds",
    "cut",
    "keep_checkpoints",
    "figure",
    "cluster",
)


@dataclass(frozen=True)
class Source:
    """A results folder, its trials that count here, and why others do not.

    trials    as they were there, and the points that they are here
    left_out  how many trials do not count, by the reason
    """

    store: Store
    trials: list[tuple[Trial, Point]]
    left_out: Counter[str]

    def in_words(self) -> str:
        """How many trials count, and why the others do not."""
        total = len(self.trials) + self.left_out.total()
        words = f"{self.store.folder}: {len(self.trials)} of its {total} trials count"
        reasons = [f"{count} with {reason}" for reason, count in self.left_out.most_common(3)]
        if len(self.left_out) > len(reasons):
            reasons.append("and others")
        return f"{words}; not {', '.join(reasons)}" if reasons else words


class _Counted:
    """What counts already: which trainings, and which number each configuration has."""

    def __init__(self, study: Study, firsts: Mapping[int, int], own: Iterable[Point]) -> None:
        self._study = study
        self._free = {size: firsts.get(size, 0) for size in study.batch_sizes}
        self._trainings: set[tuple[object, ...]] = set()
        self._numbers: dict[tuple[object, ...], int] = {}
        for point in own:
            self._trainings.add((*_configuration(point), point.seed))
            self._numbers[_configuration(point)] = point.number // study.most_seeds

    def has(self, point: Point) -> bool:
        return (*_configuration(point), point.seed) in self._trainings

    def add(self, point: Point) -> Point:
        """The point that a training is here."""
        configuration = _configuration(point)
        self._trainings.add((*configuration, point.seed))
        if configuration not in self._numbers:
            self._numbers[configuration] = self._free[point.batch_size]
            self._free[point.batch_size] += 1
        first = self._numbers[configuration] * self._study.most_seeds
        return point.with_number(first + point.seed - self._study.seed, point.seed)


def _configuration(point: Point) -> tuple[object, ...]:
    return point.batch_size, point.configuration


def gather(
    study: Study, firsts: Mapping[int, int] | None = None, own: Iterable[Point] = ()
) -> list[Source]:
    """The trials that a study's [warm_start] names; of the same training, one.

    `firsts`: the first free number of a configuration, by batch size; 0 by default. `own`: the
    points that the study has trained itself. Raises UserError for a folder without results, or
    with those of something else.
    """
    sources: list[Source] = []
    counted = _Counted(study, firsts or {}, own)
    for name in study.warm_start.folders if study.warm_start else ():
        folder = Path(name)
        try:
            store = open_store(folder)
        except UserError as error:
            raise UserError(f"{study.name}: warm_start.from: {error}") from error
        _refuse_other(study, store, name)
        sources.append(_source(study, store, counted))
    return sources


def _refuse_other(study: Study, store: Store, name: str) -> None:
    both = set(study.optimizers) & set(store.study.optimizers)
    may_differ = MAY_DIFFER if decays_vectors(both) else (*MAY_DIFFER, DECAY_VECTORS)
    if changes := changes_besides(document_of(store.study), document_of(study), may_differ):
        raise UserError(
            f"{study.name}: warm_start.from: {name}: its trials say nothing of this study: "
            f"{'; '.join(changes)}"
        )


def _source(study: Study, store: Store, counted: _Counted) -> Source:
    """What counts of a folder, besides what is counted already."""
    trials: list[tuple[Trial, Point]] = []
    left_out: Counter[str] = Counter()
    for trial in read_records(store):
        point = completed(study, trial.point)
        reason = why_outside(study, point) if trial.verdict.judged else "no verdict"
        if not reason and counted.has(point):
            reason = "a training that counts already"
        if reason:
            left_out[reason] += 1
        else:
            trials.append((trial, counted.add(point)))
    return Source(store, trials, left_out)


def as_earlier(study: Study, sources: Sequence[Source]) -> dict[int, Earlier]:
    """What the sources make of a study that has no results yet, by batch size."""
    found = {}
    for batch_size in study.batch_sizes:
        generations, points = _generations(study, sources, batch_size)
        if points:
            found[batch_size] = Earlier(generations, points)
    return found


def _generations(
    study: Study, sources: Iterable[Source], batch_size: int, first: int = 0
) -> tuple[tuple[Generation, ...], tuple[Point, ...]]:
    generations: list[Generation] = []
    points: dict[int, Point] = {}
    end = first
    for source in sources:
        own = [point for _, point in source.trials if point.batch_size == batch_size]
        for point in own:
            number = point.number // study.most_seeds
            points[number] = point.with_number(number, study.seed)
            end = max(end, number + 1)
        if own:
            generations.append(Generation(source.store.study, end))
    return tuple(generations), tuple(points[number] for number in sorted(points))


def warm_start(store: Store) -> tuple[Store, list[str]]:
    """A store with the trials that its study's [warm_start] names, and a sentence on each folder.

    Copied once: where that was done, nothing is. Killed in between, it goes on.
    """
    study = store.study
    left = [size for size, one in store.optuna_studies.items() if not one.user_attrs.get(WARM)]
    if not study.warm_start or not left:
        return store, []
    before = {size: _before(store.optuna_studies[size], study) for size in left}
    firsts = {size: grown[-1]["end"] if grown else 0 for size, grown in before.items()}
    judged = [trial.point for trial in read_records(store) if trial.verdict.judged]
    own = [
        point
        for point in judged
        if point.number // study.most_seeds < firsts.get(point.batch_size, 0)
    ]
    sources = gather(study, firsts, own)
    for size in left:
        pairs = [
            (source, trial, point)
            for source in sources
            for trial, point in source.trials
            if point.batch_size == size
        ]
        for source, trial, point in pairs:
            curve = curve_path(source.store.folder, trial.point)
            if curve.exists():
                shutil.copyfile(curve, curve_path(store.folder, point))
        generations, _ = _generations(study, sources, size, firsts[size])
        new = [{"study": document_of(g.study), "end": g.end, WARM: True} for g in generations]
        optuna_study = store.optuna_studies[size]
        optuna_study.set_user_attr(GROWN, [*before[size], *new])
        there = {frozen.number for frozen in stored_trials(optuna_study)}
        told = [replace(trial, point=point) for _, trial, point in pairs]
        tell_all(store, [trial for trial in told if trial.point.number not in there])
        optuna_study.set_user_attr(WARM, True)
    grown_study, _ = grow(study, store.optuna_studies)
    return replace(store, study=grown_study), [one.in_words() for one in sources]


def _before(optuna_study: optuna.Study, study: Study) -> list[dict[str, Any]]:
    """What a study was before, without an attempt at a warm start that was killed."""
    return [one for one in History.of(optuna_study, study).before if not one.get(WARM)]
