"""Scaling across batch sizes in rows and sentences: terminal and report show the same cells."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from ..judge.comparison import Interval
from ..judge.laws import Prediction
from ..judge.optimum import Optimum
from ..judge.scaled import ScalingReport, ScalingTold, SizeTold
from ..judge.scaling import Law
from ..judge.targets import Reached
from ..words import readable
from .tables import print_table, print_wrapped

UNKNOWN = "–"
# columns of `size_rows` that a terminal of 80 columns has room for; the report has all
COLUMNS = ("batch size", "optimal base_lr", "trains up to", "best value", "updates to target")


def scaling_sentences(told: ScalingTold) -> Iterator[str]:
    """The answer of one group, what would settle it, and what the tables do not say."""
    yield f"{told.label}: {told.sentence}."
    if told.settles:
        yield f"{told.settles}."
    if told.edge:
        yield f"Edge of stability: unstable_base_lr ~ B^{told.edge.words}."
    if told.exponent:
        yield f"Optimal base_lr ~ B^{told.exponent.words}."
    if told.laws:
        yield f"Laws of the optimal base_lr: {'; '.join(map(law_in_words, told.laws))}."
    yield from map("{}.".format, misses_in_words(told))
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
            return f"{value} ({_range(optimum.interval)})"


def edge_in_words(edge: Interval) -> str:
    """Between which base LRs training breaks."""
    low, high = edge
    if math.isinf(high):
        return f"> {readable(low)}" if low else UNKNOWN
    return f"{readable(low)} – {readable(high)}" if low else f"< {readable(high)}"


def law_in_words(law: Law) -> str:
    """A law with its parameter and weight: "power, B^0.55 (0.42 to 0.68), weight 0.7"."""
    words = [law.name]
    if not math.isnan(law.shape):
        words.append(f"{_shape_name(law)} {readable(law.shape)} ({_range(law.interval)})")
    if not math.isnan(law.weight):
        words.append(f"weight {law.weight:.2f}")
    if law.fails:
        words.append("misses by more than the noise explains")
    return ", ".join(words)


def _shape_name(law: Law) -> str:
    return {"power": "exponent", "saturating": "B_noise", "surge": "B_n"}.get(law.name, "")


def law_rows(told: ScalingTold) -> list[dict[str, str]]:
    """A row per law of the optimal base LR."""
    return [
        {
            "law": law.name,
            "equation": law.equation,
            "parameter": ""
            if math.isnan(law.shape)
            else f"{_shape_name(law)} {readable(law.shape)} ({_range(law.interval)})",
            "weight": UNKNOWN if math.isnan(law.weight) else f"{law.weight:.2f}",
            "misfit": f"{readable(law.misfit)} of {law.freedom}",
            "holds": "no" if law.fails else "not refuted",
        }
        for law in told.laws
    ]


def misses_in_words(told: ScalingTold) -> Iterator[str]:
    """How far the laws miss the largest batch size, predicted from the others."""
    if not told.left_out:
        return
    largest = max(one.batch_size for one in told.left_out)
    yield f"B = {largest} predicted from the others: " + "; ".join(
        f"{one.law} {readable(one.predicted)}, measured {readable(one.measured)}, a miss of "
        f"{one.miss:+.2f} decades ({'more than' if one.fails else 'within'} its interval of "
        f"±{one.reach:.2f}{': the law fails' if one.fails else ''})"
        for one in told.left_out
        if one.batch_size == largest
    )


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


def size_table(told: ScalingTold) -> Table:
    """Of one group, for the terminal."""
    rows = [{name: row[name] for name in COLUMNS} for row in size_rows(told)]
    return _table(rows)


def prediction_table(told: ScalingTold) -> Table:
    """Of one group, for the terminal."""
    return _table(prediction_rows(told))


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return table


def print_scaling(report: ScalingReport) -> None:
    """All groups, to the terminal."""
    for told in report.groups:
        print_wrapped(scaling_sentences(told))
        print_table(size_table(told))
        if told.predictions:
            print_table(prediction_table(told))
        print_wrapped(scaling_notes(told))


def _range(interval: Interval) -> str:
    low, high = interval
    return f"{readable(low)} to {readable(high)}"


def _or_unknown(value: float) -> str:
    return readable(value) if math.isfinite(value) else UNKNOWN


def _updates(value: float) -> str:
    return "not reached" if math.isinf(value) else readable(round(value))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
