"""Which column of a sweep is which hyperparameter: as the user says, else by usual names."""

from __future__ import annotations

import itertools
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
from .runs import Run, Sweep, is_number, is_text, says_nothing

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
    ranges       columns of arguments that are numbers of a range: a text among them is no value
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
    ranges: frozenset[str] = frozenset()
    is_metric: bool = False

    def raw(self, ours: str, run: Run) -> Any:
        """What a run has of a hyperparameter, as its source writes it; None if it has nothing."""
        values = (run.config.get(column) for column in self.of.get(ours, ()))
        return next((value for value in values if _is_told(ours, value)), self.constants.get(ours))

    def argument(self, column: str, run: Run) -> Any:
        """What a run has of an argument; None if it has nothing."""
        value = run.config.get(column)
        if column in self.ranges and not is_number(value):
            return None
        return float(value) if column in self.floats and value is not None else value

    def objective_of(self, run: Run) -> float | None:
        """The objective that a run's source states; None if it states none, or no number."""
        value = run.metrics.get(self.objective)
        if value is None and not self.is_metric:
            value = run.config.get(self.objective)
        return None if value is None or not is_number(value) else float(value)

    def faults_of(self, run: Run) -> list[str]:
        """Why a run has no point, as `base_lr = 'abc', must be a number > 0`; empty if it has."""
        missing = [ours for ours in OWN if self.raw(ours, run) is None]
        faults = [f"has no {' and no '.join(missing)}"] if missing else []
        for ours in self.of:
            value = self.raw(ours, run)
            try:
                if value is not None:
                    convert(ours, value)
            except ValueError as error:
                faults.append(f"{ours} = {quote(value)}, must be {error}")
        return faults


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
        if not found or (ours not in OWN and not _may_be(ours, found, sweep.runs)):
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
    elif why := _texts_among_numbers(objective, sweep.runs):
        left_out[objective] = why
    of = {ours: theirs for ours, theirs in of.items() if ours in our_names()}
    values = {name: _values(name, sweep.runs) for name in arguments.values()}
    ranges = frozenset(name for name in values if _is_range(values[name]))
    floats = frozenset(name for name in values if _mixes_floats(values[name]))
    return Columns(
        of=of,
        objective=objective,
        arguments=arguments,
        constants=constants,
        guessed=tuple(guessed),
        left_out=left_out,
        floats=floats,
        ranges=ranges,
        is_metric=is_metric,
    )


def _mixes_floats(values: Sequence[Any]) -> bool:
    """Whether numbers of a column are both integers and floats."""
    kinds = {type(value) for value in values}
    return {int, float} <= kinds and (kinds == {int, float} or _is_range(values))


def _values(name: str, runs: Sequence[Run]) -> list[Any]:
    return [run.config[name] for run in runs if name in run.config]


def _is_range(values: Sequence[Any]) -> bool:
    """Whether values are numbers of a range, among which a text is a slip and no choice."""
    numbers = [value for value in values if is_number(value)]
    return len(set(numbers)) > FEW_TEXTS and 2 * len(numbers) > len(values)


def _texts_among_numbers(name: str, runs: Sequence[Run]) -> str:
    """That some values of the objective are texts, in words; empty if none is."""
    own = [run for run in runs if is_text(run.config.get(name))]
    if not own:
        return ""
    return f"of {len(own)} runs, as {quote(own[0].config[name])} of {own[0].name}: is no number"


def _is_told(ours: str, value: Any) -> bool:
    """Whether a value tells of a hyperparameter. A clipping threshold may be `none`; nan stands for
    an empty cell where columns of numbers have no other way.
    """
    if ours == "clip_norm" and str(value).lower() in OFF:
        return value is not None
    return not says_nothing(value) and value == value


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
        values = _values(name, sweep.runs)
        if name not in metrics and values and not any(map(is_number, values)):
            raise UserError(
                f"--map objective={name}: must be a column of numbers, got {quote(values[0])}"
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


def _misfits(
    ours: str, names: Sequence[str], runs: Sequence[Run]
) -> tuple[list[tuple[Run, Any, str]], int]:
    """The values of columns that cannot be a hyperparameter of ours, each with its run and what it
    must be; and how many values there are.
    """
    wrong, count = [], 0
    for run, name in itertools.product(runs, names if ours in our_names() else ()):
        if not _is_told(ours, value := run.config.get(name)):
            continue
        count += 1
        try:
            convert(ours, value)
        except ValueError as error:
            wrong.append((run, value, str(error)))
    return wrong, count


def _may_be(ours: str, names: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether columns of a usual name are that hyperparameter: a number that it cannot be speaks
    against it, a text here and there does not.
    """
    wrong, count = _misfits(ours, names, runs)
    return not any(is_number(value) for _, value, _ in wrong) and 2 * len(wrong) <= count


def _fault(ours: str, names: Sequence[str], runs: Sequence[Run]) -> str:
    """Why columns as a whole cannot be a hyperparameter of ours; empty if they can: if at least
    half of their values can.
    """
    wrong, count = _misfits(ours, names, runs)
    if 2 * len(wrong) <= count:
        return ""
    run, value, rule = wrong[0]
    others = f", one of {len(wrong)} such values of {count}" if count > 1 else ""
    return (
        f"column {' or '.join(map(repr, names))}, taken for {ours}: must be {rule}, and {run.name} "
        f"has {quote(value)}{others}"
    )


def _arguments(names: Sequence[str], runs: Sequence[Run]) -> tuple[dict[str, str], dict[str, str]]:
    """The columns that vary as arguments of a workload, and why others are not."""
    arguments, left_out = {}, {}
    for name in names:
        values = _values(name, runs)
        if _is_range(values):
            values = [value for value in values if is_number(value)]
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
