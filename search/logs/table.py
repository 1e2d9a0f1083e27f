"""What a file of any format holds: numbers by column and row. Cells that are empty are no numbers.

A loss that is nan was measured, and one that is missing was not: a column holds the first and the
rows of what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..trial import Array

MOST_BROKEN = 0.5  # of the lines of a file: where more are not whole, it is of another format
MISSING = frozenset(("", "null", "none"))
SHOWN = 40  # characters of a cell in a message
NUMBERS: frozenset[type] = frozenset((int, float))


@dataclass(frozen=True, eq=False)
class Column:
    """The numbers of a column, nan and inf included, and the rows that they stand in, rising."""

    rows: NDArray[np.int64]
    values: Array


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of numbers of a log, in the order in which they first appear.

    texts        columns that hold text: name → where, and what
    count        rows, of which each column holds some
    notes        what reading found, in sentences
    total_steps  updates that were planned; 0 where the format does not say
    """

    columns: Mapping[str, Column]
    texts: Mapping[str, str]
    count: int
    notes: tuple[str, ...] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    total_steps: int = 0


def not_whole(lines: int) -> list[str]:
    """A note on so many lines that are left out; none where none is."""
    what = "line is" if lines == 1 else "lines are"
    return [f"{lines} {what} not whole, and left out."] if lines else []


class TableBuilder:
    """Columns that grow by some rows at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: dict[str, list[Column]] = {}
        self._texts: dict[str, str] = {}

    def add_records(self, records: Sequence[Mapping[str, object]]) -> None:
        """Rows of which each names the columns that it holds."""
        shapes = dict.fromkeys(map(tuple, records))
        if len(shapes) == 1:  # then columns are a matter of turning rows
            (names,) = shapes
            columns = zip(*[record.values() for record in records], strict=True)
            self.add(dict(zip(names, columns, strict=True)), len(records))
            return
        every = dict.fromkeys(chain.from_iterable(shapes))
        self.add({name: [record.get(name) for record in records] for name in every}, len(records))

    def add(self, cells: Mapping[str, Sequence[object]], count: int) -> None:
        """`count` rows of some columns: numbers, their texts, or None for what is not there."""
        for name, values in cells.items():
            parts = self._parts.setdefault(name, [])
            if name not in self._texts:
                try:
                    parts.append(_column(values, self.count))
                except _TextError as error:
                    self._texts[name] = str(error)
        self.count += count

    def table(
        self,
        notes: Iterable[str] = (),
        hyperparameters: Mapping[str, Any] | None = None,
        total_steps: int = 0,
    ) -> Table:
        names = [name for name in self._parts if name not in self._texts]
        columns = {name: _joined(self._parts[name]) for name in names}
        return Table(
            columns, self._texts, self.count, tuple(notes), hyperparameters or {}, total_steps
        )


def _joined(parts: Sequence[Column]) -> Column:
    rows, values = [part.rows for part in parts], [part.values for part in parts]
    return Column(np.concatenate(rows), np.concatenate(values))


class _TextError(Exception):
    """A cell is no number: where, and what."""


def _column(values: Sequence[object], first: int) -> Column:
    """The numbers of some rows, of which the first has the number `first`.

    Raises _TextError for a cell that is neither a number nor missing; true and false are none.
    """
    kinds = set(map(type, values))
    if kinds <= NUMBERS:
        with suppress(OverflowError):  # a whole number with hundreds of digits
            return Column(np.arange(first, first + len(values)), np.array(values, np.float64))
    if kinds == {NoneType}:
        return Column(np.empty(0, np.int64), np.empty(0))
    rows = [place for place, value in enumerate(values) if not _is_missing(value)]
    numbers = [_number(values[place], first + place) for place in rows]
    return Column(np.array(rows, np.int64) + first, np.array(numbers, np.float64))


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING)


def _number(value: object, row: int) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    text = repr(value)
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    raise _TextError(f"{shown} in row {row + 1}")
