"""The cut of a study, on the driver's side: who is trained to where, and who is told as cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..judge.so_far import so_far
from ..store.files import curve_path, find_curve
from ..store.storage import Store, without_curve
from ..study.cut import Decision, Key, decide, stop
from ..trial import Point, Trial
from .inbox import Inbox


class Cuts:
    """The trials of one study at its cut."""

    def __init__(self, store: Store, inbox: Inbox) -> None:
        self._store, self._study, self._inbox = store, store.study, inbox
        self._known: dict[Key, Trial] = {}  # as they stood at the cut, without their curves

    def decide(
        self, points: Sequence[Point], trials: Mapping[Key, Trial], given_up: Collection[Key]
    ) -> Decision:
        """Who goes on, of the points of a plan; those that do not are put among the finished ones.

        `trials` are told; a later try finds the same, whatever was told meanwhile.
        """

        def at_cut(point: Point) -> Trial | None:
            key = point.batch_size, point.number
            if key not in self._known:
                found = self._find(point, trials.get(key))
                if found is None:
                    return None
                self._known[key] = found
            return self._known[key]

        decision = decide(self._study, points, trials, at_cut, given_up)
        for point, bar in decision.stopped:
            self._inbox.stop(stop(self._study, self._known[point.batch_size, point.number], bar))
        return decision

    def waiting(self) -> int:
        """How many trials have come to the cut and are not decided."""
        return self._inbox.count_at_cut()

    def _find(self, point: Point, told: Trial | None) -> Trial | None:
        """A trial as it stood at its cut, by the curve that is kept; None if there is no trial."""
        trial = self._inbox.at_cut(point) if told is None else told
        if trial is None:
            return None
        if told is not None:
            curve = find_curve(curve_path(self._store.folder, point))
            trial = replace(told, curve=curve or told.curve)
        study = self._study
        found = so_far(trial, study.cut_step(point), study.objective, study.divergence)
        return without_curve(found, study.updates(point))
