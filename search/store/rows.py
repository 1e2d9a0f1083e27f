"""Trials as rows of Optuna's tables, at the numbers that their points have in the plan.

Optuna numbers trials as they come, and has no way to say otherwise; so did earlier versions of
tunewright. In Optuna a number is what people call a trial, and the order in which trials are read:
nothing of Optuna's needs the numbers to have no gaps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

RECORD = "record"  # the user attribute that holds a whole trial, but for its curve
NUMBER = "number"  # the user attribute that holds the number of a trial's point
LAST = -1  # the number of a trial that has no point, until it is added
GIVES_WAY = (TrialState.FAIL, TrialState.PRUNED)  # states of a trial that is tried again


def backend_of(storage: BaseStorage) -> RDBStorage:
    """What Optuna's cache of a storage is a cache of."""
    backend = getattr(storage, "_backend", storage)
    if not isinstance(backend, RDBStorage):
        raise TypeError(f"a storage in a database is needed, got {type(backend).__name__}")
    return backend


def stored_trials(optuna_study: optuna.Study) -> list[FrozenTrial]:
    """All trials of an Optuna study as they were added.

    Not by Optuna's cache, which knows only one where two have the same number, as they may when
    somebody else adds a trial.
    """
    backend = backend_of(optuna_study._storage)
    return backend.get_all_trials(optuna_study._study_id, deepcopy=False)


def add_trials(optuna_study: optuna.Study, trials: Sequence[FrozenTrial], planned: int = 0) -> None:
    """Add finished trials to an Optuna study in one transaction: all of them, or none.

    Each has the number of its point, and takes the place of an earlier try of it that crashed or
    was stopped. `LAST` stands for the next number after all others and after the `planned` ones. A
    few statements write them all; one by one, as Optuna adds trials, they take 6 ms each.
    """
    study_id = optuna_study._study_id
    numbers = {trial.number for trial in trials}
    with Session(backend_of(optuna_study._storage).engine) as session, session.begin():
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        rows: list[Any] = [
            models.TrialModel(
                number=trial.number,
                study_id=study_id,
                state=trial.state,
                datetime_start=trial.datetime_start,
                datetime_complete=trial.datetime_complete,
            )
            for trial in trials
        ]
        session.add_all(rows)
        session.flush()
        ids = [row.trial_id for row in rows]
        for model, parts in _rows_of(trials, ids):
            if parts:
                session.execute(sqlalchemy.insert(model.__table__), parts)
        # Rows are removed after others are there: SQLite gives the id of a removed last row to the
        # next one, which a reader would then take for the one that it knows.
        is_crowded = _give_way(session, study_id, numbers, ids)
        if is_crowded or LAST in numbers:
            _number(session, study_id, planned)


def describe_again(
    optuna_study: optuna.Study,
    described: Mapping[int, tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]],
) -> None:
    """Give trials, by the ids of their rows, other parameters and distributions: all, or none."""
    params = models.TrialParamModel
    parts = [
        part
        for id, (values, distributions) in described.items()
        for part in _parameter_rows(id, values, distributions)
    ]
    with Session(backend_of(optuna_study._storage).engine) as session, session.begin():
        for id in described:
            session.execute(sqlalchemy.delete(params).where(params.trial_id == id))
        if parts:
            session.execute(sqlalchemy.insert(params.__table__), parts)


def number_trials(optuna_study: optuna.Study, planned: int = 0) -> None:
    """Give every trial of ours the number of its point, and all others numbers after these.

    `planned`: how many numbers points may have. Where all is so already, nothing is written.
    """
    with Session(backend_of(optuna_study._storage).engine) as session, session.begin():
        _number(session, optuna_study._study_id, planned)


@dataclass(frozen=True)
class Numbered:
    """What decides about a trial's number.

    id      of its row
    number  as it is stored
    point   the number of its point; None if it is none of ours
    state   as Optuna has it
    """

    id: int
    number: int
    point: int | None
    state: TrialState

    @classmethod
    def of(cls, trial: FrozenTrial) -> Numbered:
        is_ours = RECORD in trial.user_attrs
        point = trial.user_attrs.get(NUMBER) if is_ours else None
        return cls(trial._trial_id, trial.number, point, trial.state)


def numbers_of(trials: Collection[Numbered], planned: int = 0) -> dict[int, int]:
    """The number of each trial, by the id of its row.

    Of several tries of a point the complete one has its number, or else the latest. What has no
    number of its own keeps the one that it has, if that is after all others, or gets the next.
    """
    tries: dict[int, Numbered] = {}
    for one in sorted(trials, key=lambda one: (one.state == TrialState.COMPLETE, one.id)):
        if one.point is not None:
            tries[one.point] = one
    numbers = {one.id: point for point, one in tries.items()}
    start = max(planned, max(tries, default=-1) + 1)
    others = sorted((one for one in trials if one.id not in numbers), key=lambda one: one.id)
    held = Counter(one.number for one in others)
    stay = [one for one in others if one.number >= start and held[one.number] == 1]
    numbers |= {one.id: one.number for one in stay}
    free = count(max([start - 1, *(one.number for one in stay)]) + 1)
    return numbers | {one.id: next(free) for one in others if one.id not in numbers}


def _give_way(
    session: Session, study_id: int, numbers: Collection[int], ids: Collection[int]
) -> bool:
    """Remove the earlier tries of what was added; whether others have a number of these."""
    trial = models.TrialModel
    same = session.query(trial).filter(
        trial.study_id == study_id, trial.number.in_(numbers), trial.trial_id.not_in(ids)
    )
    is_ours = trial.user_attributes.any(key=RECORD)
    for row in same.filter(trial.state.in_(GIVES_WAY), is_ours):
        session.delete(row)
    session.flush()
    return bool(session.query(same.exists()).scalar())


def _number(session: Session, study_id: int, planned: int) -> None:
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    own = trial.study_id == study_id
    is_ours = trial.user_attributes.any(key=RECORD)
    stated = (
        session.query(trial.trial_id, attribute.value_json)
        .join(attribute, attribute.trial_id == trial.trial_id)
        .filter(own, attribute.key == NUMBER, is_ours)
    )
    points = {id: int(json.loads(value)) for id, value in stated}
    rows = [
        Numbered(id, number, points.get(id), state)
        for id, number, state in session.query(trial.trial_id, trial.number, trial.state).filter(
            own
        )
    ]
    numbers = numbers_of(rows, planned)
    changed = [
        {"trial_id": row.id, "number": numbers[row.id]}
        for row in rows
        if numbers[row.id] != row.number
    ]
    if changed:
        session.execute(sqlalchemy.update(trial), changed)


def _rows_of(
    trials: Sequence[FrozenTrial], ids: Sequence[int]
) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """What tables hold of trials, besides the trials themselves."""
    pairs = list(zip(ids, trials, strict=True))
    values, steps = models.TrialValueModel, models.TrialIntermediateValueModel
    yield (
        models.TrialParamModel,
        [
            part
            for id, trial in pairs
            for part in _parameter_rows(id, trial.params, trial.distributions)
        ],
    )
    yield models.TrialUserAttributeModel, list(_attributes(pairs, "user_attrs"))
    yield models.TrialSystemAttributeModel, list(_attributes(pairs, "system_attrs"))
    told = [(id, trial.value) for id, trial in pairs if trial.value is not None]
    stored = [(id, values.value_to_stored_repr(value)) for id, value in told]
    yield (
        values,
        [
            {"trial_id": id, "objective": 0, "value": value, "value_type": kind}
            for id, (value, kind) in stored
        ],
    )
    reported = [
        (id, step, steps.intermediate_value_to_stored_repr(value))
        for id, trial in pairs
        for step, value in trial.intermediate_values.items()
    ]
    yield (
        steps,
        [
            {
                "trial_id": id,
                "step": step,
                "intermediate_value": value,
                "intermediate_value_type": kind,
            }
            for id, step, (value, kind) in reported
        ],
    )


def _parameter_rows(
    id: int, values: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> Iterator[dict[str, Any]]:
    for name, value in values.items():
        yield {
            "trial_id": id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }


def _attributes(pairs: Iterable[tuple[int, FrozenTrial]], kind: str) -> Iterator[dict[str, Any]]:
    for id, trial in pairs:
        for key, value in getattr(trial, kind).items():
            yield {"trial_id": id, "key": key, "value_json": json.dumps(value)}
