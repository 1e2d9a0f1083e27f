"""Points of a sweep, and the study file that holds them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..rules.constructors import is_import_path, module_and_class
from ..rules.hyperparameters import HYPERPARAMETERS
from ..rules.optimizers import RULES
from ..study.study import MOST_STEPS, MOST_VALUES, Axis, Range
from ..trial import COMMON, Point
from .columns import OWN, Columns, convert, our_names
from .runs import Run, Sweep, is_number

MOST_BATCH_SIZES = 32  # each is tuned by itself, and has a column of every figure (R20)
FEW_VALUES = 10  # so few numbers, tried repeatedly, are a list and not a range
DECADE = 10.0  # positive numbers that span more are a logarithmic range
OWN_NUMBERS = ("base_lr", *COMMON)
# names of optimizers in code that other people's tools write, besides those of classes
ALIASES = {
    **dict.fromkeys(("adamwtorch", "adamwtorchfused", "adamwhf", "adamw8bit"), "adamw"),
    **dict.fromkeys(("fusedadam", "adam8bit"), "adam"),
    **dict.fromkeys(("sgdm", "sgdmomentum", "momentumsgd", "heavyball"), "momentum"),
    **dict.fromkeys(("nag", "nesterovmomentum"), "nesterov"),
}  # fmt: skip
# torch's own that are no rule here, as named in torch.optim
OF_TORCH = {
    name.lower(): f"torch.optim.{name}"
    for name in (
        *("Adadelta", "Adafactor", "Adagrad", "Adamax", "ASGD", "LBFGS", "Muon", "RAdam", "Rprop"),
        "SparseAdam",
    )
}


@dataclass(frozen=True)
class Placed:
    """A run and its point."""

    run: Run
    point: Point


def place_runs(
    sweep: Sweep, columns: Columns, numbers: Mapping[str, int]
) -> tuple[list[Placed], list[str]]:
    """The point of each run, `numbers` by the names of runs; and those that have none, each with
    the reason.

    Raises UserError if there are none, or more batch sizes than can be told apart.
    """
    placed, without = [], []
    for run in sweep.runs:
        if faults := columns.faults_of(run):
            without.append(f"{run.name}: {', '.join(faults)}")
        else:
            placed.append(Placed(run, _point(run, columns, numbers[run.name])))
    if not placed:
        raise UserError(
            f"{sweep.origin}: no run has {', '.join(OWN)}: nothing can be placed; {without[0]}"
        )
    sizes = {one.point.batch_size for one in placed}
    if len(sizes) > MOST_BATCH_SIZES:
        raise UserError(
            f"{sweep.origin}: has {len(sizes)} batch sizes, and each is tuned by itself (R20): let "
            "them be an axis of one group, --map samples=batch_size --set batch_size=64"
        )
    return placed, without


def _point(run: Run, columns: Columns, number: int) -> Point:
    values = {}
    for ours in (*columns.of, *columns.constants):
        raw = columns.raw(ours, run)
        if raw is not None and ours in our_names() and ours != "max_train_steps":
            values[ours] = convert(ours, raw)
    optimizer = optimizer_name(values.pop("optimizer"), run, values.get("momentum"))
    common = {name: values.pop(name) for name in OWN_NUMBERS if name in values}
    unstated = [name for name in (*COMMON, "seed") if name not in common and name not in values]
    size, seed = values.pop("batch_size"), values.pop("seed", 0)
    defaults = _settings_of(optimizer)
    settings = {name: value for name, value in values.items() if name in defaults}
    others = {name: value for name, value in values.items() if name not in defaults}
    arguments = {
        name: value
        for name, column in columns.arguments.items()
        if (value := columns.argument(column, run)) is not None
    }
    stated = {name: value for name, value in columns.constants.items() if name not in our_names()}
    return Point(
        number=number,
        batch_size=size,
        optimizer=optimizer,
        seed=seed,
        settings=settings,
        workload_args={**stated, **arguments, **others},
        unstated=unstated,
        **common,
    )


def _settings_of(optimizer: str) -> Iterable[str]:
    """The hyperparameters that belong to an optimizer; of one that is no rule none is known."""
    return RULES[optimizer].defaults if optimizer in RULES else ()


def optimizer_name(text: str, run: Run, momentum: float | None = None) -> str:
    """The name here of an optimizer that others name by class, import path or command line.

    torch's SGD is `momentum` where a run has one, and `nesterov` where it says so. One that is no
    rule has its import path, that of torch.optim if it is there, and otherwise one in `other`.
    """
    short = re.sub(r"[^a-z0-9]", "", re.split(r"[.:]", text)[-1].lower())
    name = ALIASES.get(short, short)
    if name == "sgd" and momentum is not None:
        name = "nesterov" if run.config.get("nesterov") is True else "momentum"
    if name in RULES:
        return name
    if is_import_path(text) and all(module_and_class(text)):
        return text
    return OF_TORCH.get(name, f"other.{re.sub(r'[^A-Za-z0-9_]', '_', text)}")


# --- the study file -------------------------------------------------------------------------------


def document_of_sweep(
    sweep: Sweep, columns: Columns, placed: Sequence[Placed], maximize: bool
) -> dict[str, Any]:
    """What the study file of a sweep holds: ranges as its source states them, else as they were
    tried.
    """
    points = [one.point for one in placed]
    sizes = Counter(point.batch_size for point in points)
    found = dict.fromkeys(point.optimizer for point in points)
    optimizers = sorted(found, key=lambda name: [*RULES, name].index(name))
    space: dict[str, Any] = {"optimizer": {}}
    tables = {name: _axes_of(name, sweep, columns, placed) for name in optimizers}
    for name in COMMON:
        own = [table.get(name) for table in tables.values()]
        if own[0] is not None and all(axis == own[0] for axis in own):
            space[name] = own[0]
            for table in tables.values():
                del table[name]
    space["optimizer"] = tables
    arguments = dict.fromkeys(name for point in points for name in point.workload_args)
    return {
        "imported": sweep.origin,
        "objective": columns.objective,
        "maximize": maximize,
        "max_train_steps": _longest(columns, placed),
        "batch_sizes": sorted(sizes),
        "trials": max(sizes.values()),
        "workload_args": {name: _argument(name, sweep, columns, points) for name in arguments},
        "space": space,
    }


def _longest(columns: Columns, placed: Sequence[Placed]) -> int:
    """Updates of the longest training; where nothing says so, the most that a study may have."""
    stated = [columns.raw("max_train_steps", one.run) for one in placed]
    steps = [convert("max_train_steps", value) for value in stated if value is not None]
    steps += [one.run.curve.total_steps for one in placed if len(one.run.curve.loss)]
    return max(steps, default=MOST_STEPS)


def _axes_of(
    optimizer: str, sweep: Sweep, columns: Columns, placed: Sequence[Placed]
) -> dict[str, Any]:
    """The axes of an optimizer's runs, as values of a study file."""
    own = [one for one in placed if one.point.optimizer == optimizer]
    axes = {}
    for name in (*COMMON, *_settings_of(optimizer)):
        names = columns.of.get(name, ())
        used = [column for column in names if any(column in one.run.config for one in own)]
        if not used and name not in columns.constants:
            continue
        values = [one.point.values[name] for one in own if name in one.point.values]
        axes[name] = _written(_axis(name, [sweep.axes.get(column) for column in used], values))
    return axes


def _argument(name: str, sweep: Sweep, columns: Columns, points: Sequence[Point]) -> Any:
    values = [point.workload_args[name] for point in points if name in point.workload_args]
    column = columns.arguments.get(name, name)
    used = [column] if column in columns.arguments.values() else list(columns.of.get(name, ()))
    return _written(_axis(name, [sweep.axes.get(one) for one in used], values))


def _axis(name: str, stated: Sequence[Axis | None], values: Sequence[Any]) -> Axis:
    """What was searched: as the source states it, if that holds all values, else the values."""
    known = [axis for axis in stated if axis is not None]
    if len(known) == len(stated) > 0:
        axis = _union(name, known)
        if axis and _holds(axis, values):
            return axis
    different = sorted(dict.fromkeys(values), key=str)
    if all(map(is_number, different)):
        different.sort()
        repeated = len(different) <= FEW_VALUES and 2 * len(different) <= len(values)
        if len(different) > 1 and not repeated and math.isfinite(different[-1]):
            low, high = float(different[0]), float(different[-1])
            return Range(low=low, high=high, log=low > 0 and high / low > DECADE, points=None)
    return tuple(different[:MOST_VALUES])


def _union(name: str, axes: Sequence[Axis]) -> Axis | None:
    """One axis of several, as of columns that one optimizer each has; None if they do not go
    together.
    """
    ranges = [axis for axis in axes if isinstance(axis, Range)]
    if ranges and len(ranges) == len(axes):
        low, high = min(axis.low for axis in ranges), max(axis.high for axis in ranges)
        axis = Range(low=low, high=high, log=all(axis.log for axis in ranges), points=None)
        row = HYPERPARAMETERS.get(name)
        return axis if row is None or (row.accepts(low) and row.accepts(high)) else None
    if ranges:
        return None
    lists = [axis for axis in axes if isinstance(axis, tuple)]
    try:
        found = [_converted(name, value) for axis in lists for value in axis]
    except ValueError:
        return None
    return tuple(dict.fromkeys(found))


def _converted(name: str, value: Any) -> Any:
    return convert(name, value) if name in HYPERPARAMETERS else value


def _holds(axis: Axis, values: Iterable[Any]) -> bool:
    if isinstance(axis, tuple):
        return set(values) <= set(axis)
    return all(is_number(value) and axis.low <= value <= axis.high for value in values)


def _written(axis: Axis) -> Any:
    """An axis as a study file has it."""
    if isinstance(axis, Range):
        return axis.model_dump(exclude_defaults=True)
    return axis[0] if len(axis) == 1 else list(axis)
