"""The engines chosen for a study, kept for its next run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..store.storage import Store
from ..train.execution import Engine
from ..trial import Point

# A user attribute of an Optuna study, a mapping by workload arguments.
ENGINES = "engines"


class EngineRecords:
    """How the points of one study train, by batch size and workload arguments.

    `keep` changes what is in memory, `save` writes it to the database, which may not answer.
    """

    def __init__(self, store: Store) -> None:
        self._optuna_studies = store.optuna_studies
        self._records: dict[int, dict[str, Any]] = {
            size: dict(optuna_study.user_attrs.get(ENGINES, {}))
            for size, optuna_study in store.optuna_studies.items()
        }
        self._unsaved: set[int] = set()

    def by_batch_size(self) -> dict[int, dict[str, Any]]:
        """As environment.json shows them."""
        return self._records

    def engine_of(self, point: Point) -> Engine | None:
        """The engine that is kept for points of this batch size and workload."""
        found = self._records[point.batch_size].get(point.workload_key)
        return Engine.from_record(found) if found else None

    def keep(self, point: Point, engine: Engine) -> None:
        """Remember how points of this batch size and workload train."""
        of_size, record = self._records[point.batch_size], asdict(engine)
        if of_size.get(point.workload_key) != record:
            of_size[point.workload_key] = record
            self._unsaved.add(point.batch_size)

    def has_unsaved(self) -> bool:
        return bool(self._unsaved)

    def save(self) -> None:
        """Raises UnansweredError; what is not saved by then is saved by the next call."""
        for size in sorted(self._unsaved):
            self._optuna_studies[size].set_user_attr(ENGINES, self._records[size])
            self._unsaved.remove(size)
