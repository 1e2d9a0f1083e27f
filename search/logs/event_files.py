"""TensorBoard's event files: scalars by tag. A run is a folder of one file or of several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from .table import Table, TableBuilder

MARK = "tfevents"  # in the name of every event file
STEP = "step"  # the column of steps; a tag of that name is left out
CHUNK = 5_000  # rows at a time
OF_RECORD = 16  # bytes of each record beside its event: its length, and two checksums


def files(path: Path) -> list[Path]:
    """The event files that a path names: itself, or those of a folder, oldest first."""
    if path.is_dir():
        return sorted(child for child in path.iterdir() if MARK in child.name)
    return [path] if MARK in path.name else []


def read(path: Path) -> Table:
    """The scalars of a run, a row for each step as it was written.

    Raises UserError without the package, and for files of which nothing can be read. Where one is
    damaged, or still being written, what stands before that counts, and it is said.
    """
    builder, notes = TableBuilder(), list[str]()
    rows: list[dict[str, object]] = []
    for file in files(path):
        for row in _rows(file, notes):
            rows.append(row)
            if len(rows) == CHUNK:
                builder.add_records(rows)
                rows = []
    builder.add_records(rows)
    if not builder.count:
        raise UserError(f"{path}: has no scalars" + (f": {notes[0]}" if notes else ""))
    return builder.table(notes)


def _rows(file: Path, notes: list[str]) -> Iterator[dict[str, object]]:
    """Scalars that were written one after the other for the same step, as one row."""
    row: dict[str, object] = {}
    for step, tag, value in _scalars(file, notes):
        if row and (row[STEP] != step or tag in row):
            yield row
            row = {}
        row[STEP] = step
        row[tag] = value
    if row:
        yield row


def _scalars(file: Path, notes: list[str]) -> Iterator[tuple[int, str, float]]:
    loader, event_type, as_array = _tensorboard()
    size, done = file.stat().st_size, 0
    try:
        for record in loader(str(file)).Load():
            event = event_type.FromString(record)
            done += len(record) + OF_RECORD
            for value in event.summary.value:
                if value.tag == STEP:
                    continue
                kind = value.WhichOneof("value")
                if kind == "simple_value":
                    yield event.step, value.tag, value.simple_value
                elif kind == "tensor" and value.tensor.dtype in (1, 2):  # float, double
                    array = as_array(value.tensor)
                    if array.size == 1:
                        yield event.step, value.tag, float(array.item())
    except Exception as error:  # of a damaged file the package raises whatever it stumbles over
        notes.append(f"{file.name} is damaged: {first_line(error)}.")
        return
    if done < size:
        notes.append(
            f"{file.name} is damaged, or still being written, after {done} of {size} bytes: what "
            "stands before counts."
        )


def _tensorboard() -> tuple[Any, Any, Any]:
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise UserError(
            "event files are read by the package tensorboard: install tunewright[tensorboard]"
        ) from error
    return RawEventFileLoader, Event, make_ndarray
