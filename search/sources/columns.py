"""Which column of a sweep is which hyperparameter: as the user says, else by usual names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..rules.hyperparameters import HYPERPARAMETERS, is_finite, of_kind
from ..study.study import (
    LARGEST,
    LARGEST_SEED,
    MOST_EXAMPLES,
    MOST_STEPS,
    RESULT_COLUMNS,
    SHOWN_NAMES,
    SMALLEST,
    quote,
)
from ..trial import COMMON
from .names import OBJECTIVES, usual_column
from .runs import Run, Sweep, is_number

OWN = ("base_lr", "batch_size", "optimizer")  # without which a run has no place in any plot
WHOLE = {  # hyperparameters that are whole numbers: the lowest and the highest
    "batch_size": (1, MOST_EXAMPLES),
    "seed": (0, LARGEST_SEED),
    "max_train_steps": (1, MOST_STEPS),
}
OFF = (0, False, "none", "null", "off")  # of a clipping threshold, as others write it
# our names that a column may be taken for by its name
GUESSED = (*OWN, "seed", *COMMON, *of_kind("optimizer"))
FEW_TEXTS = 6  # so many different ones are choices, however few runs there are

Given = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Columns:
    """What is read from where.

    of           our name → columns of config, of which a run has one
    objective    a column of metrics, or of config where a table does not tell them apart
    arguments    the name that a workload's argument has → column of config
    constants    what the user states of all runs
    guessed      what was not said, as `ours = theirs`
    left_out     columns that are nothing of these, with the reason
    floats       columns of arguments in which 1 and 1.0 are the same value
    is_metric    whether the source says that the objective is a result: a column of config that has
                 its name is another one
    """

    of: Mapping[str, tuple[str, ...]]
    objective: str
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    guessed: tuple[str, ...]
    left_out: Mapping[str, str]
    floats: frozenset[str] = frozenset()
    is_metric: bool = False

    def raw(self, ours: str, run: Run) -> Any:
        """What a run has of a hyperparameter, as its source writes it; None if it has nothing."""
        values = (run.config.get(column) for column in self.of.get(ours, ()))
        return next((value for value in values if value is not None), self.constants.get(ours))

    def objective_of(self, run: Run) -> float | None:
        """The objective that a run's source states; None if it states none."""
        value = run.metrics.get(self.objective)
        if value is None and not self.is_metric:
            value = run.config.get(self.objective)
        return None if value is None else float(value)


def name_columns(
    sweep: Sweep,
    given: Given,
    constants: Mapping[str, Any],
    ignored: Sequence[str] = (),
) -> Columns:
    """What the columns of a sweep are. `given` is what the user says, our name → columns.

    Raises UserError where that names no column, where the objective or one of OWN is not known, and
    where a column or a constant cannot be what it is taken for.
    """
    config, metrics = sweep.config_columns, sweep.metric_columns
    known = [*config, *(name for name in metrics if name not in config)]
    asked = [(ours, name) for ours, names in given.items() for name in names]
    for ours, name in [*asked, *(("", name) for name in ignored)]:
        _refuse_unknown(ours, name, known)
    for ours, value in constants.items():
        _refuse_wrong(ours, value)
    objective, is_guessed = _objective(sweep, given, config, metrics)
    is_metric = objective in metrics or objective == sweep.objective
    of = {ours: tuple(theirs) for ours, theirs in given.items() if ours != "objective"}
    guessed = [f"objective = {objective}"] if is_guessed else []
    taken = {objective, *ignored, *(name for names in of.values() for name in names)}
    for ours in dict.fromkeys((*GUESSED, "max_train_steps")):
        if ours in of or ours in constants:
            continue
        found = usual_column(ours, [name for name in config if name not in taken])
        if not found or (ours not in OWN and _fault(ours, found, sweep.runs)):
            continue
        of[ours] = tuple(found)
        taken.update(found)
        guessed += [] if found == [ours] else [f"{ours} = {' or '.join(found)}"]
    _refuse_missing(of, constants, known)
    for ours, theirs in of.items():
        if fault := _fault(ours, theirs, sweep.runs):
            raise UserError(fault)
    named = {ours: theirs[0] for ours, theirs in of.items() if ours not in our_names()}
    rest, left_out = _arguments([name for name in config if name not in taken], sweep.runs)
    arguments = {**rest, **named}
    if is_metric and objective in config:
        left_out[objective] = f"has the name of the objective: --map ANOTHER={objective}"
    of = {ours: theirs for ours, theirs in of.items() if ours in our_names()}
    return Columns(
        of=of,
        objective=objective,
        arguments=arguments,
        constants=constants,
        guessed=tuple(guessed),
        left_out=left_out,
        floats=frozenset(name for name in arguments.values() if _mixes_floats(name, sweep.runs)),
        is_metric=is_metric,
    )


def _mixes_floats(name: str, runs: Sequence[Run]) -> bool:
    """Whether a column of numbers has both integers and floats."""
    kinds = {type(run.config[name]) for run in runs if name in run.config}
    return kinds == {int, float}


def our_names() -> set[str]:
    """The names of hyperparameters that mean something here."""
    return {*OWN, *WHOLE, *HYPERPARAMETERS}


def _refuse_unknown(ours: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        where = f"--map {ours}={name}" if ours else f"--ignore {name}"
        raise UserError(f"{where}: there is no column {name!r}; there are {_listed(known)}")


def _refuse_wrong(ours: str, value: Any) -> None:
    try:
        if ours in our_names():
            convert(ours, value)
    except ValueError as error:
        raise UserError(f"--set {ours}={value}: must be {error}") from error


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - 3 * SHOWN_NAMES
    shown = ", ".join(names[: 3 * SHOWN_NAMES]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown


def _objective(
    sweep: Sweep, given: Given, config: Sequence[str], metrics: Sequence[str]
) -> tuple[str, bool]:
    """The column that runs are ranked by, and whether it was guessed."""
    if "objective" in given:
        (name, *others) = given["objective"]
        if others:
            raise UserError("--map objective=…: must name one column: runs are ranked by one")
        wrong = [value for run in sweep.runs if not is_number(value := run.config.get(name, 0.0))]
        if wrong and name not in metrics:
            raise UserError(
                f"--map objective={name}: must be a column of numbers, got {quote(wrong[0])}"
            )
        return name, False
    if sweep.objective:
        return sweep.objective, False
    alone = metrics if len(metrics) == 1 else [name for name in OBJECTIVES if name in metrics]
    if alone:
        return alone[0], True
    raise UserError(
        "which column are runs ranked by? Name it with --map objective=COLUMN, and say --maximize "
        f"if higher is better; there are {_listed(metrics or config)}"
    )


def _refuse_missing(
    of: Mapping[str, Sequence[str]], constants: Mapping[str, Any], known: Sequence[str]
) -> None:
    missing = [ours for ours in OWN if ours not in of and ours not in constants]
    if missing:
        states = ",".join(f"{ours}=…" for ours in missing)
        raise UserError(
            f"no column has a usual name of {' or '.join(missing)}: name it with --map "
            f"{missing[0]}=COLUMN, or say what all runs have with --set {states}; there are "
            f"{_listed(known)}"
        )


# --- values ---------------------------------------------------------------------------------------


def convert(ours: str, value: Any) -> Any:
    """A value of a source as a Point holds it. Raises ValueError with what it must be."""
    if ours == "optimizer":
        return str(value)
    if ours in WHOLE:
        low, high = WHOLE[ours]
        if not (is_finite(value) and value == int(value) and low <= value <= high):
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)
    if ours == "clip_norm" and (value in OFF or str(value).lower() in OFF or value == -1):
        return math.inf
    row = HYPERPARAMETERS[ours]
    if not row.accepts(value):
        raise ValueError(row.requirement)
    if is_number(value) and value not in (0, math.inf) and not SMALLEST <= value <= LARGEST:
        raise ValueError(f"between {SMALLEST:g} and {LARGEST:g}")
    return row.convert(value)


def _fault(ours: str, names: Sequence[str], runs: Sequence[Run]) -> str:
    """Why columns cannot be a hyperparameter of ours; empty if they can."""
    if ours not in our_names():
        return ""
    for run in runs:
        for name in names:
            try:
                if (value := run.config.get(name)) is not None:
                    convert(ours, value)
            except ValueError as error:
                return (
                    f"column {name!r}, taken for {ours}: must be {error}, and {run.name} has "
                    f"{quote(value)}"
                )
    return ""


def _arguments(names: Sequence[str], runs: Sequence[Run]) -> tuple[dict[str, str], dict[str, str]]:
    """The columns that vary as arguments of a workload, and why others are not."""
    arguments, left_out = {}, {}
    for name in names:
        values = [run.config[name] for run in runs if name in run.config]
        different = {repr(value) for value in values}
        texts = sum(isinstance(value, str) for value in values)
        if len(different) < 2:
            left_out[name] = f"is {values[0]} in every run"
        elif name in our_names() or name in RESULT_COLUMNS:
            left_out[name] = "has a name that means something else here: --map ANOTHER=" + name
        elif texts and len(different) > max(FEW_TEXTS, len(values) / 2):
            left_out[name] = "has a text of its own in nearly every run"
        elif any(isinstance(value, float) and math.isnan(value) for value in values):
            left_out[name] = "has nan"
        else:
            arguments[name] = name
    return arguments, left_out
