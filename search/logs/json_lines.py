"""JSON lines, an object on each line that names what it holds; or one list of such objects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pydantic_core

from ..errors import UserError
from .table import MOST_BROKEN, Table, TableBuilder, not_whole

CHUNK = 500  # lines at a time
BLANK = b"\xef\xbb\xbf \t\r\n"  # a byte order mark, too


def recognizes(head: bytes) -> bool:
    return head.translate(None, BLANK).startswith(b"{")


def read(path: Path) -> Table:
    """The columns of a file of JSON lines.

    Lines that are no whole object are left out, and said to be. Raises UserError where most are.
    """
    builder, notes, broken, line = TableBuilder(), list[str](), 0, ""
    with path.open(encoding="utf-8-sig") as file:
        while lines := list(islice(file, CHUNK)):
            line = lines[-1]
            records, bad = _records(lines)
            broken += bad
            builder.add_records(records)
    if broken > MOST_BROKEN * (builder.count + broken):
        raise UserError(f"{path}: {broken} of {builder.count + broken} lines are no JSON objects")
    if broken and not line.endswith("\n") and _records([line])[1]:
        broken -= 1
        notes.append(
            "The last line is half of one, of a log that is still being written, and left out."
        )
    return builder.table([*notes, *not_whole(broken)])


def recognizes_list(head: bytes) -> bool:
    """Whether a file begins as a list of objects."""
    return head.translate(None, BLANK).startswith(b"[{")


def read_list(path: Path) -> Table:
    """The columns of a JSON list of objects. Raises UserError if it is none, or cut off."""
    try:
        records = pydantic_core.from_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from error
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: is no list of objects alone")
    builder = TableBuilder()
    builder.add_records(records)
    return builder.table()


def _records(lines: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The objects on some lines, and how many lines are none."""
    try:
        found = pydantic_core.from_json(f"[{','.join(lines)}]")
    except ValueError:
        found = []
    if len(found) == len(lines) and set(map(type, found)) == {dict}:
        return found, 0
    records, broken = [], 0
    for line in filter(str.strip, lines):
        try:
            record = pydantic_core.from_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken += 1
    return records, broken
