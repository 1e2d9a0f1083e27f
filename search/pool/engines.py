"""The engines chosen for a study, kept for its next run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..store.storage import Store
from ..train.execution import Engine
from ..trial import Point

# User attributes of an Optuna study, each a mapping by workload arguments. `UPDATES` has those
# choices alone that were made without measuring, because training is short: they hold for no more.
ENGINES, UPDATES = "engines", "updates_of_unmeasured_engines"


class EngineRecords:
    """How the points of one study train, by batch size and workload arguments.

    `keep` changes what is in memory, `save` writes it to the database, which may not answer.
    """

    def __init__(self, store: Store) -> None:
        self._optuna_studies = store.optuna_studies
        self._records: dict[tuple[int, str], dict[str, Any]] = {}
        for size, optuna_study in store.optuna_studies.items():
            attributes = optuna_study.user_attrs
            for name in (ENGINES, UPDATES):
                self._records[size, name] = dict(attributes.get(name, {}))
        self._unsaved: set[tuple[int, str]] = set()

    def by_batch_size(self) -> dict[int, dict[str, Any]]:
        """As environment.json shows them."""
        return {size: self._records[size, ENGINES] for size in self._optuna_studies}

    def engine_of(self, points: Sequence[Point], updates: int) -> Engine | None:
        """The engine of an earlier run, if it holds for so many updates in all."""
        size, key = points[0].batch_size, points[0].workload_key
        found = self._records[size, ENGINES].get(key)
        if found is None:
            return None
        engine = Engine(**found)
        holds = engine.measured or updates <= (self._records[size, UPDATES].get(key) or 0)
        return engine if holds else None

    def keep(self, points: Sequence[Point], engine: Engine, updates: int | None = None) -> None:
        """Remember an engine; `updates` of one that was chosen because these are few."""
        size, key = points[0].batch_size, points[0].workload_key
        if self._records[size, ENGINES].get(key) == asdict(engine):
            return
        for name, value in ((ENGINES, asdict(engine)), (UPDATES, updates)):
            kept = self._records[size, name]
            if kept.get(key) != value:
                self._unsaved.add((size, name))
            kept[key] = value

    def has_unsaved(self) -> bool:
        return bool(self._unsaved)

    def save(self) -> None:
        """Raises UnansweredError; what is not saved by then is saved by the next call."""
        for size, name in sorted(self._unsaved):
            self._optuna_studies[size].set_user_attr(name, self._records[size, name])
            self._unsaved.remove((size, name))
