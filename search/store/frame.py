"""Trials as a data frame of pandas or polars, whichever is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from ..errors import UserError
from ..trial import Trial
from .table import columns_of, table_row

Kind = Literal["integer", "number", "truth", "text"]
# the type of a column, where every row has a value and where some have none; None: as pandas says
PANDAS: dict[Kind, tuple[str | None, str | None]] = {
    "integer": ("int64", "Int64"),
    "number": ("float64", "float64"),
    "truth": ("bool", "boolean"),
    "text": (None, None),
}
POLARS: dict[Kind, str] = {
    "integer": "Int64",
    "number": "Float64",
    "truth": "Boolean",
    "text": "String",
}
LIBRARIES = ("pandas", "polars")  # the first that is installed is the default


def trials_frame(
    trials: Sequence[Trial], library: Literal["pandas", "polars"] | None = None
) -> Any:
    """A data frame with a row per trial and the columns of trials.csv, of numbers where they are.

        frame = tunewright.trials_frame(trials)
        frame[frame.verdict == "feasible"].sort_values("best_value").head()

    A hyperparameter that a trial does not have is missing in its row. nan and inf stay: a crashed
    trial has no best value, inf.

    Args:
        trials: as `run_study` returns them
        library: pandas or polars; by default pandas, if it is installed

    Raises UserError if the library, or both, are not installed.
    """
    if library is not None and library not in LIBRARIES:
        raise UserError(f"library: must be one of {', '.join(LIBRARIES)}, got {library!r}")
    installed = [name for name in LIBRARIES if find_spec(name)]
    if not installed or (library and library not in installed):
        wanted = library or " or ".join(LIBRARIES)
        raise UserError(
            f"a data frame needs {wanted}, not installed here: pip install {library or 'pandas'}"
        )
    name = library or installed[0]
    rows = [table_row(trial) for trial in trials]
    columns = {one: [row.get(one) for row in rows] for one in columns_of(trials)}
    module = import_module(name)
    return _in_pandas(module, columns) if name == "pandas" else _in_polars(module, columns)


def _in_pandas(pandas: Any, columns: dict[str, list[Any]]) -> Any:
    found = {}
    for name, values in columns.items():
        kind = _kind(values)
        dtype = PANDAS[kind][None in values]
        found[name] = pandas.Series(_of_kind(values, kind), dtype=dtype)
    return pandas.DataFrame(found)


def _in_polars(polars: Any, columns: dict[str, list[Any]]) -> Any:
    found = []
    for name, values in columns.items():
        kind = _kind(values)
        dtype = getattr(polars, POLARS[kind])
        found.append(polars.Series(name, _of_kind(values, kind), dtype=dtype))
    return polars.DataFrame(found)


def _kind(values: Sequence[Any]) -> Kind:
    """What the values of a column are; texts where they are of several kinds."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "truth"
    if kinds == {int}:
        return "integer"
    return "number" if kinds and kinds <= {int, float} else "text"


def _of_kind(values: Sequence[Any], kind: Kind) -> list[Any]:
    convert = {"integer": int, "number": float, "truth": bool, "text": str}[kind]
    return [None if value is None else convert(value) for value in values]
