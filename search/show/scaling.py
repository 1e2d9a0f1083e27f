"""Scaling across batch sizes in rows and sentences: terminal and report show the same cells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ..judge.comparison import Interval
from ..judge.laws import ALL_LAWS, FORMS, Prediction
from ..judge.optimum import Optimum
from ..judge.scaled import ScalingReport, ScalingTold, SizeTold
from ..judge.scaling import Law
from ..judge.targets import Reached
from ..words import capitalized, readable
from .tables import print_table, print_wrapped

UNKNOWN = "–"
PARAMETERS = {form.name: form.shape for form in FORMS if form.shape}
# columns of `size_rows` that a terminal of 80 columns has room for; the report has all
COLUMNS = ("batch size", "optimal base_lr", "trains up to", "best value", "updates to target")
LAW_COLUMNS = ("law", "base_lr η at batch size B", "weight", "")
PREDICTION_COLUMNS = ("batch size", "base_lr", "95 %", "")
LEFT = ("law", "base_lr η at batch size B", "")


def scaling_sentences(told: ScalingTold) -> Iterator[str]:
    """The answer of one group, what would settle it, and what the tables do not say."""
    yield f"{told.label}: {told.sentence}."
    if told.settles:
        yield f"{told.settles}."
    if told.edge:
        yield f"Edge of stability: unstable_base_lr ~ B^{told.edge.words}."
    if told.exponent:
        yield f"Optimal base_lr ~ B^{told.exponent.words}."
    yield from misses_in_words(told)
    if told.targets and told.targets.words:
        target = readable(told.targets.target)
        yield f"Updates to a value of {target}: {told.targets.words}."
    yield from (f"{_capital(one.words)}." for one in told.trends)


def scaling_notes(told: ScalingTold) -> Iterator[str]:
    """What could not be said, and why."""
    notes = [*told.notes, *(told.targets.notes if told.targets else ())]
    yield from (f"{_capital(note)}." for note in notes)


def size_rows(told: ScalingTold) -> list[dict[str, str]]:
    """A row per batch size."""
    reached = {one.batch_size: one for one in told.targets.reached} if told.targets else {}
    return [_size_row(one, reached.get(one.batch_size)) for one in told.sizes]


def _size_row(one: SizeTold, reached: Reached | None) -> dict[str, str]:
    return {
        "batch size": str(one.batch_size),
        "optimal base_lr": optimum_in_words(one.optimum),
        "lr_star": _or_unknown(one.lr_star),
        "trains up to": edge_in_words(one.edge),
        "usable decades": _or_unknown(one.usable_decades),
        "LR sensitivity": _or_unknown(one.lr_sensitivity),
        "best value": _or_unknown(one.best_value),
        "updates to target": _updates(reached.updates) if reached else UNKNOWN,
        "examples to target": _updates(reached.examples) if reached else UNKNOWN,
        "max_train_steps": ", ".join(map(str, one.max_train_steps)),
    }


def optimum_in_words(optimum: Optimum) -> str:
    """The optimum of the smooth curve with its interval, "≥ 0.1", or a dash."""
    value = readable(optimum.base_lr)
    match optimum.where:
        case "unknown":
            return UNKNOWN
        case "above":
            return f"≥ {value}"
        case "below":
            return f"≤ {value}"
        case _:
            bounded = optimum.interval[0] > 0 or math.isfinite(optimum.interval[1])
            return f"{value} ({_range(optimum.interval)})" if bounded else f"about {value}"


def edge_in_words(edge: Interval) -> str:
    """Between which base LRs training breaks."""
    low, high = edge
    if math.isinf(high):
        return f"> {readable(low)}" if low else UNKNOWN
    return f"{readable(low)} – {readable(high)}" if low else f"< {readable(high)}"


def law_rows(told: ScalingTold) -> list[dict[str, str]]:
    """A row per law of the optimal base LR."""
    return [_law_row(law) for law in told.laws]


def _law_row(law: Law) -> dict[str, str]:
    parameter = ""
    if law.name in PARAMETERS:
        parameter = f"{PARAMETERS[law.name]} {readable(law.shape)} ({_range(law.interval)})"
    return {
        "law": law.name,
        "base_lr η at batch size B": law.equation,
        "parameter (95 %)": parameter,
        "weight": UNKNOWN if math.isnan(law.weight) else f"{law.weight:.2f}",
        "": "misses by more than the noise explains" if law.fails else "",
    }


def misses_in_words(told: ScalingTold) -> Iterator[str]:
    """How far the largest batch size lies from what the others predict."""
    if not told.left_out:
        return
    largest = max(one.batch_size for one in told.left_out)
    own = [one for one in told.left_out if one.batch_size == largest]
    main = next((one for one in own if one.law == ALL_LAWS), own[0])
    yield (
        f"Left out, B = {largest} is predicted at {readable(main.predicted)} from the others, and "
        f"measured at {readable(main.measured)}: a miss of {main.miss:+.2f} decades, "
        f"{'beyond' if main.fails else 'within'} its interval of ±{main.reach:.2f}."
    )
    failed = [one.law for one in own if one.fails]
    if failed:
        yield f"By more than its interval misses: {', '.join(failed)}."


def miss_rows(told: ScalingTold) -> list[dict[str, str]]:
    """A row per batch size: the miss of each law, in decades, predicted from the others."""
    rows: dict[int, dict[str, str]] = {}
    for one in told.left_out:
        size = {"batch size": str(one.batch_size), "measured": readable(one.measured)}
        row = rows.setdefault(one.batch_size, size)
        row[one.law] = f"{one.miss:+.2f} ± {one.reach:.2f}" + ", fails" * one.fails
    laws = dict.fromkeys(one.law for one in told.left_out)
    return [row | {law: row.get(law, UNKNOWN) for law in laws} for row in rows.values()]


def prediction_rows(told: ScalingTold) -> list[dict[str, str]]:
    """A row per batch size that was asked for."""
    return [_prediction_row(one) for one in told.predictions]


def _prediction_row(one: Prediction) -> dict[str, str]:
    rests_on = ", ".join(f"{law} {weight:.2f}" for law, weight in one.rests_on)
    return {
        "batch size": readable(one.batch_size),
        "base_lr": readable(one.base_lr),
        "95 %": _range(one.interval),
        "rests on": rests_on,
        "": "extrapolated" if one.extrapolated else "",
    }


def _table(rows: list[dict[str, str]], columns: Sequence[str] = ()) -> Table:
    """Of one group, for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = columns or list(rows[0])
    for name in names:
        table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[name]) for name in names))
    return table


def print_scaling(report: ScalingReport) -> None:
    """All groups, to the terminal."""
    for told in report.groups:
        print_wrapped(scaling_sentences(told))
        print_table(_table(size_rows(told), COLUMNS))
        if told.laws:
            print_table(_table(law_rows(told), LAW_COLUMNS))
        if told.predictions:
            print_table(_table(prediction_rows(told), PREDICTION_COLUMNS))
        print_wrapped(scaling_notes(told))


def _range(interval: Interval) -> str:
    low, high = interval
    return f"{readable(low)} to {readable(high)}"


def _or_unknown(value: float) -> str:
    return readable(value) if math.isfinite(value) else UNKNOWN


def _updates(value: float) -> str:
    return "not reached" if math.isinf(value) else readable(round(value))


def _capital(sentence: str) -> str:
    is_a_name = "_" in sentence.partition(" ")[0]  # of an objective, which is as it is written
    return sentence if is_a_name else capitalized(sentence)
