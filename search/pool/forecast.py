"""How long a run will still take: what is planned, at the pace of what is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass
class _Work:
    """The trials of one study and batch size.

    planned    updates of all of them
    finished   updates that were planned for those that are finished
    trials     number of those of them whose length is known
    trained    updates that these took
    seconds    in which a worker trained these
    early      how many of them ended early, as hopeless ones do
    early_share  sum over these: updates taken, of those planned
    """

    planned: int = 0
    finished: int = 0
    trials: int = 0
    trained: int = 0
    seconds: float = 0.0
    early: int = 0
    early_share: float = 0.0


class Forecast:
    """Seconds per update are those of the same study and batch size, not of the last minute.

    So a run whose batch sizes come one after the other is forecast right from the first of them on.
    Where no trial of a batch size is finished, its pace lies on the line through the others'.
    """

    def __init__(self) -> None:
        self._work: dict[tuple[str, int], _Work] = {}

    def plan(self, study: str, updates: Mapping[int, int]) -> None:
        """The updates of all trials of a study, by batch size."""
        for batch_size, planned in updates.items():
            self._work.setdefault((study, batch_size), _Work()).planned = planned

    def finish(
        self, study: str, batch_size: int, planned: int, trained: int | None, seconds: float
    ) -> None:
        """A trial is finished; None where nobody knows how many updates it took."""
        work = self._work.setdefault((study, batch_size), _Work())
        work.finished += planned
        if trained is None:
            return
        work.trials += 1
        work.trained += trained
        work.seconds += seconds
        if trained < planned:
            work.early += 1
            work.early_share += trained / planned

    @property
    def seconds_trained(self) -> float:
        """In which workers trained what is finished."""
        return sum(work.seconds for work in self._work.values())

    def seconds_left(
        self, workers: int, in_training: Mapping[tuple[str, int], int], worked: float
    ) -> float | None:
        """How long so many workers still need; None before the first trial is finished.

        `in_training`: trials by study and batch size; `worked`: the seconds that all workers
        together have trained, for the finished trials and for these.
        """
        measured = {key: work for key, work in self._work.items() if work.trained}
        if not measured:
            return None
        left = sum(work.seconds for work in measured.values()) - worked
        not_begun = 0.0
        for key, work in self._work.items():
            begun, others = _updates_left(work, in_training.get(key, 0))
            pace = _pace(measured, *key)
            left += (begun + others) * pace
            not_begun += others * pace
        # what workers did beside training counts as training here, and must not hide what waits
        return max(not_begun, left) / max(1, workers)


def _updates_left(work: _Work, in_training: int) -> tuple[float, float]:
    """Updates, from their first one on, of the trials in training, and of those not begun.

    Hopeless trials end early, and are finished before those that began with them. So their share is
    that of all trials that have begun; and what is in training now has outlived them.
    """
    left = max(0, work.planned - work.finished)
    if not work.trials:
        return 0.0, left
    begun = min(left, in_training * work.finished / work.trials)
    share_saved = (work.early - work.early_share) / (work.trials + in_training)
    return begun, (left - begun) * (1.0 - share_saved)


def _pace(measured: Mapping[tuple[str, int], _Work], study: str, batch_size: int) -> float:
    """Seconds per update."""
    if own := measured.get((study, batch_size)):
        return own.seconds / own.trained
    same = {key: work for key, work in measured.items() if key[0] == study} or measured
    sizes = np.array([size for _, size in same], dtype=float)
    paces = np.array([work.seconds / work.trained for work in same.values()])
    if len(set(sizes)) < 2:
        return float(paces.mean())
    slope, base = np.polyfit(sizes, paces, 1)
    return float(np.clip(base + slope * batch_size, paces.min() / 4, paces.max() * 4))
