"""CSV files: a line of names, then a line for each row, whose cells may be empty."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pydantic_core

from ..errors import UserError, first_line
from .table import Table, TableBuilder

DELIMITERS = (",", "\t", ";")
# Rows at a time: few enough that what is made of them stays in the processor's caches.
CHUNK = 500
# lines that are not whole: of more, the file is no table
MOST_BROKEN = 0.5


def header(head: bytes) -> list[str]:
    """The names in the first line of a file, of which `head` is the beginning; empty if it has no
    two.
    """
    first = head.partition(b"\n")[0].decode("utf-8-sig", "replace").rstrip("\r")
    cells = next(csv.reader([first], delimiter=_delimiter(first)), []) if "\0" not in first else []
    return [name.strip() for name in cells]


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)


def read(path: Path) -> Table:
    """The columns of a CSV file.

    Lines of another length are left out, and said to be, as is a last line without an end: it may
    be half of one. So is a line of names that comes again, as a run writes that goes on with its
    log. Raises UserError for what is no table.
    """
    builder, notes, broken = TableBuilder(), list[str](), 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        names = header(first.encode())
        _check_names(path, names)
        rows = csv.reader(_whole_lines(file, notes), delimiter=_delimiter(first))
        try:
            while chunk := list(islice(rows, CHUNK)):
                broken += _add(builder, names, chunk)
        except csv.Error as error:
            raise UserError(f"{path}: is no CSV file: {first_line(error)}") from error
    if broken > MOST_BROKEN * (builder.count + broken):
        raise UserError(
            f"{path}: {broken} of {builder.count + broken} lines have not {len(names)} cells, as "
            "the first line has: it is no table"
        )
    if broken:
        what = "line is" if broken == 1 else "lines are"
        notes.append(f"{broken} {what} not whole, and left out.")
    return builder.table(notes)


def _whole_lines(lines: Iterator[str], notes: list[str]) -> Iterator[str]:
    for line in lines:
        if line.endswith(("\n", "\r")):
            yield line
        elif line.strip():
            notes.append(
                "The last line has no end: it may be half of one, of a log that is still being "
                "written, and is left out."
            )


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


def _cells(texts: tuple[str, ...]) -> list[object]:
    """Cells as numbers, where all are or are empty; else as they are.

    JSON's parser reads numbers several times as fast as `float`, to the same last bit.
    """
    try:
        values = pydantic_core.from_json(f"[{','.join([text or 'null' for text in texts])}]")
    except ValueError:
        return list(texts)
    # true, or a cell with a comma, is no number
    plain = all(map({float, int, type(None)}.__contains__, set(map(type, values))))
    return list(values) if plain and len(values) == len(texts) else list(texts)
