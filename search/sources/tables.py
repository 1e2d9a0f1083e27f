"""A table with a row per run: what W&B, MLflow and Optuna export, and whatever else is a row per
run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from ..judge.imported import State
from ..logs.delimited import delimiter, long_cells
from ..study.study import quote
from .names import (
    CONFIG_PREFIXES,
    METRIC_PREFIXES,
    is_of_bookkeeping,
    role_of,
    sounds_like_result,
)
from .runs import STATES, Run, Sweep, is_number, is_text

PARQUET = (".parquet", ".pq")
LARGEST_NUMBER = 10**9  # of a run: trials are numbered alike

Row = Mapping[str, Any]


def read_table(path: Path) -> Sweep:
    """The runs of a CSV or Parquet file. Raises UserError for one that cannot be read or is
    empty.
    """
    rows = _parquet_rows(path) if path.suffix.lower() in PARQUET else _csv_rows(path)
    if not rows:
        raise UserError(f"{path}: has no rows: a row per run is needed")
    return sweep_of_rows(str(path.resolve()), rows)


def _csv_rows(path: Path) -> list[Row]:
    try:
        with long_cells(), path.open(newline="", encoding="utf-8-sig") as file:
            separator = delimiter(file.readline())
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator, restkey="", strict=True)
            rows = [{name: cell(text) for name, text in row.items() if name} for row in reader]
            names = [name for name in reader.fieldnames or () if name]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is no table: it must be UTF-8, and byte {error.start} is not"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path}: is no table: {first_line(error)}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: has two columns of one name: {', '.join(twice)}")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def cell(text: str | None) -> Any:
    """The value of a cell of text: a number, true or false, or a text; None if it is empty."""
    text = (text or "").strip()
    if not text:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text) if "_" not in text else text
        except ValueError:
            continue
    return text


def _parquet_rows(path: Path) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{path}: needs pyarrow to be read: pip install 'tunewright[parquet]'"
        ) from error
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no Parquet table: {first_line(error)}") from error
    rows = [{name: plain(value) for name, value in row.items()} for row in rows]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def plain(value: Any) -> Any:
    """A value as a hyperparameter can have it: a number, true or false, or else its text."""
    if isinstance(value, str):
        return cell(value)
    return value if isinstance(value, bool | int | float) else str(value)


def sweep_of_rows(origin: str, rows: Sequence[Row]) -> Sweep:
    """The runs of a table, its columns told apart by their names: hyperparameters, results, and
    what a tracker keeps of its own.

    With prefixes, as config. or params_, these alone are hyperparameters. Without, all columns are
    but those whose names say that they are results.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    kinds = _kinds(columns, rows)
    names = _names(columns, rows)
    runs = [
        Run(
            name=name,
            number=number,
            config=_part(row, kinds, "config"),
            metrics=_metrics(row, kinds),
            state=_state(row, kinds),
            seconds=next(iter(_numbers(row, kinds, "seconds")), math.nan),
        )
        for (name, number), row in zip(names, rows, strict=True)
    ]
    return Sweep(origin, runs, remarks=list(_texts_among_results(runs, rows, kinds)))


def _texts_among_results(
    runs: Sequence[Run], rows: Sequence[Row], kinds: Mapping[str, tuple[str, str]]
) -> Iterator[str]:
    """A sentence for each column of results in which a text stands among numbers."""
    for name in (name for name, (kind, _) in kinds.items() if kind == "metric"):
        told = [row.get(name) for row in rows]
        wrong = [place for place, value in enumerate(told) if is_text(value)]
        if 0 < len(wrong) < sum(map(is_number, told)):
            yield (
                f"{name}: {len(wrong)} of {len(rows)} values are no numbers, and count as none, as "
                f"{quote(told[wrong[0]])} of {runs[wrong[0]].name}"
            )


def _kinds(columns: Sequence[str], rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """What each column is (config, metric, state, seconds), and its name without prefix."""
    prefixed = any(_prefix(name, CONFIG_PREFIXES) for name in columns)
    kinds = {}
    for name in columns:
        config, metric = _prefix(name, CONFIG_PREFIXES), _prefix(name, METRIC_PREFIXES)
        if config:
            kinds[name] = ("config", name.removeprefix(config))
        elif metric:
            kinds[name] = ("metric", name.removeprefix(metric))
        elif role := role_of(name):
            kinds[name] = (role, name)
        elif is_of_bookkeeping(name):
            continue
        elif prefixed or sounds_like_result(name, [row.get(name) for row in rows]):
            kinds[name] = ("metric", name)
        else:
            kinds[name] = ("config", name)
    return kinds


def _prefix(name: str, prefixes: Iterable[str]) -> str:
    return next((one for one in prefixes if name.startswith(one) and name != one), "")


def _part(row: Row, kinds: Mapping[str, tuple[str, str]], kind: str) -> dict[str, Any]:
    found = {}
    for name, value in row.items():
        own, short = kinds.get(name, ("", ""))
        if own == kind and value is not None:
            found[short] = value
    return found


def _metrics(row: Row, kinds: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    found = _part(row, kinds, "metric")
    return {name: float(value) for name, value in found.items() if is_number(value)}


def _numbers(row: Row, kinds: Mapping[str, tuple[str, str]], kind: str) -> list[float]:
    return [float(value) for value in _part(row, kinds, kind).values() if is_number(value)]


def _state(row: Row, kinds: Mapping[str, tuple[str, str]]) -> State:
    texts = [str(value).lower() for value in _part(row, kinds, "state").values()]
    return next((STATES[text] for text in texts if text in STATES), "")


def _names(columns: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, int | None]]:
    """What runs are called, and their numbers: of the first column of names that differ, else the
    rows' own.
    """
    for column in sorted(filter(_names_runs, columns), key=_names_runs):
        values = [row.get(column) for row in rows]
        if None in values or len(set(map(str, values))) < len(values):
            continue
        if all(isinstance(value, int) and 0 <= value < LARGEST_NUMBER for value in values):
            return [(f"{column} {value}", value) for value in values]
        return [(str(value), None) for value in values]
    return [(f"row {number}", number) for number in range(len(rows))]


def _names_runs(column: str) -> int:
    """A rank of columns that name runs; 0 for one that does not."""
    names = ("number", "id", "run_id", "trial_id", "name", "run_name", "run")
    lower = column.lower().replace(" ", "_")
    return names.index(lower) + 1 if lower in names else 0
