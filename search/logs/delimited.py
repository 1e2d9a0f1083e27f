"""CSV files: a line of names, then a line for each row, whose cells may be empty."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pydantic_core

from ..errors import UserError, first_line
from .table import MOST_BROKEN, Table, TableBuilder, not_whole

DELIMITERS = (",", "\t", ";")
# Rows at a time: few enough that what is made of them stays in the processor's caches.
CHUNK = 500
LONGEST_CELL = 2**31 - 1


def header(head: bytes) -> list[str]:
    """The names in the first line of a file that begins with `head`."""
    first = (head.splitlines() or [b""])[0].decode("utf-8-sig", "replace")
    if "\0" in first:
        return []
    try:
        (names,) = csv.reader([first], delimiter=delimiter(first))
    except (csv.Error, ValueError):
        return []
    return [name.strip() for name in names]


def delimiter(line: str) -> str:
    """What separates the names in a table's first line."""
    return max(DELIMITERS, key=line.count)


def read(path: Path) -> Table:
    """The columns of a CSV file.

    Lines of another length are left out, and said to be, as is a last line without an end: it may
    be half of one. So is a line of names that comes again, as a run writes that goes on with its
    log. Raises UserError for what is no table.
    """
    builder, notes = TableBuilder(), list[str]()
    with long_cells(), path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        names = header(first.encode())
        _check_names(path, names)
        chunks = _chunks(csv.reader(file, delimiter=delimiter(first)), _is_whole(path), notes)
        try:
            broken = sum(_add(builder, names, chunk) for chunk in chunks)
        except csv.Error as error:
            raise UserError(f"{path}: is no CSV file: {first_line(error)}") from error
    if broken > MOST_BROKEN * (builder.count + broken):
        raise UserError(
            f"{path}: {broken} of {builder.count + broken} lines have not {len(names)} cells, as "
            "the first line has: it is no table"
        )
    return builder.table([*notes, *not_whole(broken)])


@contextmanager
def long_cells() -> Iterator[None]:
    """Let cells be as long as they are: of histograms, say, or of whole configurations."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_whole(path: Path) -> bool:
    """Whether the last line has an end."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() in (b"\n", b"\r")


def _chunks(
    rows: Iterator[list[str]], is_whole: bool, notes: list[str]
) -> Iterator[list[list[str]]]:
    """Some rows at a time, without the last one unless its line has an end."""
    chunk = list(islice(rows, CHUNK))
    while following := list(islice(rows, CHUNK)):
        yield chunk
        chunk = following
    if chunk and not is_whole:
        chunk.pop()
        notes.append(
            "The last line has no end: it may be half of one, of a log that is still being "
            "written, and is left out."
        )
    yield chunk


def _check_names(path: Path, names: list[str]) -> None:
    if not any(names):
        raise UserError(f"{path}: is empty")
    if all(map(_is_number, names)):
        raise UserError(f"{path}: has no line of names: its first line holds numbers")
    again = {name for name in names if name and names.count(name) > 1}
    if again:
        raise UserError(f"{path}: two columns are named {min(again)!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _add(builder: TableBuilder, names: list[str], rows: list[list[str]]) -> int:
    """Add the rows that are whole; return how many are not."""
    broken = 0
    if set(map(len, rows)) != {len(names)} or names in rows:
        filled = [row for row in rows if row and [cell.strip() for cell in row] != names]
        rows = [row for row in filled if len(row) == len(names)]
        broken = len(filled) - len(rows)
    columns = {
        name: _cells(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=False)
    }
    builder.add(columns, len(rows))
    return broken


def _cells(texts: tuple[str, ...]) -> Sequence[object]:
    """Cells as numbers, where all are or are empty; else as they are.

    JSON's parser reads numbers several times as fast as `float`, to the same last bit.
    """
    if not any(texts):
        return (None,)
    held = [text or "null" for text in texts] if "" in texts else texts
    try:
        values = pydantic_core.from_json(f"[{','.join(held)}]")
    except ValueError:
        return texts
    return values if len(values) == len(texts) else texts  # a cell may hold a comma
