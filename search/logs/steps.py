"""The steps of a log's columns, in order: of runs that went back to a checkpoint, what came later.

A run that resumes writes again what lies between its checkpoint and where it was stopped. Then what
it wrote there before is of a training that nobody has the model of, and is left out of every
column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..trial import Array
from .table import Column

Steps = NDArray[np.int64]
# of the rows going back, while no step comes twice: rows in no order, instead of a run that resumes
UNSORTED_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Restarts:
    """Where training went back: the rows from which on it went on, and from which steps."""

    rows: NDArray[np.int64]
    steps: Steps
    is_unsorted: bool = False

    @property
    def note(self) -> str:
        if self.is_unsorted:
            return "The rows are not in the order of their steps: they were sorted."
        if not len(self.rows):
            return ""
        times = "once" if len(self.rows) == 1 else f"{len(self.rows)} times"
        at = "" if len(self.rows) == 1 else " at the first"
        back = f"Training went back {times}, to step {self.steps[0]}{at}"
        return f"{back}: what was logged later counts."

    def is_kept(self, rows: NDArray[np.int64], steps: Steps) -> NDArray[np.bool_]:
        """Whether rows at some steps belong to the training that went on."""
        if not len(self.rows):
            return np.ones(len(rows), bool)
        # the lowest step that training went back to after each row
        lowest = np.minimum.accumulate(self.steps[::-1])[::-1]
        after = np.searchsorted(self.rows, rows, side="right")
        limit = np.append(lowest, np.iinfo(np.int64).max)[after]
        return np.asarray(steps <= limit)


def counted_on(step: Column, epoch: Column) -> Column:
    """Steps that begin anew with each epoch, counted on from one to the next; else as they are.

    Where not every step is logged, the last ones of an epoch are not known: it is taken to end at
    the next step that would be.
    """
    back = np.flatnonzero(np.diff(step.values) < 0) + 1
    own = np.searchsorted(epoch.rows, step.rows, side="right") - 1
    epochs = epoch.values[np.maximum(own, 0)]
    if not len(back) or not (epochs[back] > epochs[back - 1]).all():
        return step
    ahead = np.diff(step.values)
    spacing = np.median(ahead[ahead > 0]) if (ahead > 0).any() else 1
    begins = np.zeros(len(step.values))
    begins[back] = step.values[back - 1] + spacing - np.minimum(step.values[back], step.values[0])
    return Column(step.rows, step.values + np.cumsum(begins))


def find_restarts(rows: NDArray[np.int64], steps: Steps) -> Restarts:
    """Where the steps of a column go back, unless two rows only changed places."""
    none = np.empty(0, np.int64)
    back = np.flatnonzero(np.diff(steps) < 0) + 1
    if not len(back):
        return Restarts(none, none)
    if len(back) > UNSORTED_SHARE * len(steps) and len(np.unique(steps)) == len(steps):
        return Restarts(none, none, is_unsorted=True)
    back = back[(back < 2) | (steps[back] <= steps[back - 2])]
    return Restarts(rows[back], steps[back])


def steps_of(column: Column, step: Column | None) -> tuple[Column, Steps]:
    """A column without the rows before the first step, and the steps of those that are left.

    The step of a row is its own, or the last before it. Without a column of steps, rows are
    counted.
    """
    if step is None:
        return column, column.rows
    if np.array_equal(column.rows, step.rows):
        return column, step.values.astype(np.int64)
    at = np.searchsorted(step.rows, column.rows, side="right") - 1
    known = at >= 0
    kept = Column(column.rows[known], column.values[known])
    return kept, step.values[at[known]].astype(np.int64)


def in_order(column: Column, steps: Steps, restarts: Restarts) -> tuple[Steps, Array, int]:
    """Steps that rise, their values, and how many gave way to a later one of the same step."""
    kept = restarts.is_kept(column.rows, steps)
    steps, values = steps[kept], column.values[kept]
    if len(steps) and (np.diff(steps) > 0).all():
        return steps, values, 0
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(np.diff(steps) > 0, True)[: len(steps)]
    return steps[last], values[last], int((~last).sum())
