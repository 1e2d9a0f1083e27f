"""Tables for the terminal: a study's plan, and what came of it. The report shows the same cells."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .analysis import GroupSummary, readable
from .schedule import total_steps
from .study import ADAPTIVE, Range, Study
from .trial import Group, Point, group_of

# What the terminal shows of `summary_cells`.
COLUMNS = (
    *("batch size", "optimizer", "lr_star", "unstable_base_lr", "headroom", "infeasible", "best value"),
    *("at step", "best point", "verdict"),
)
LEFT = ("optimizer", "best point", "verdict")


def print_table(table: Table) -> None:
    """Print to the terminal's width, or to 140 columns where there is no terminal."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def summary_table(summaries: Iterable[GroupSummary], varied: Collection[str], title: str = "") -> Table:
    """One row per group: batch size, optimizer and scientific values. Best points show what is varied."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", padding=(0, 1))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    for row in summaries:
        cells = summary_cells(row, varied)
        table.add_row(*(Text(cells[column]) for column in COLUMNS))
    return table


def summary_cells(row: GroupSummary, varied: Collection[str]) -> dict[str, str]:
    """A summary in words, by column. Of the best point, what is varied and not in another column."""
    last_feasible, unstable = row.unstable_base_lr
    if math.isinf(unstable):
        edge = f"> {readable(last_feasible)}" if last_feasible else "–"
        headroom = f"> {last_feasible / row.lr_star:.2g} ×" if last_feasible else "–"
    else:
        edge = f"{readable(last_feasible)} – {readable(unstable)}"
        headroom = _or_dash(row.headroom, "{:.2g} ×")
    if row.seeds > 1 and row.unstable_trials[1]:
        edge += " ({} of {})".format(*row.unstable_trials)
    best_value = readable(row.best_value) if row.best_point else "–"
    if row.seeds > 1 and row.best_values:
        best_value += f" ({readable(min(row.best_values))} – {readable(max(row.best_values))})"
    held = "".join(f", {name} = {readable(value)}" for name, value in row.group.scientific)
    return {
        "group": row.group.label,
        "batch size": str(row.group.batch_size),
        "optimizer": row.group.optimizer + held,
        "trials": str(row.trials),
        "infeasible": _or_dash(row.infeasible_fraction, "{:.0%}"),
        "crashed": str(row.crashed),
        "near lr_star": f"{row.good_region} ({row.good_region_fraction:.0%})" if row.best_point else "–",
        "lr_star": _or_dash(row.lr_star),
        "unstable_base_lr": edge,
        "headroom": headroom,
        "best value": best_value,
        "at step": str(row.best_step) if row.best_point else "–",
        "best point": "–" if row.best_point is None else _in_words(row.best_point, row.group, varied),
        "verdict": row.verdict,
    }


def _in_words(point: Point, group: Group, varied: Collection[str]) -> str:
    told = {"optimizer", "base_lr", *dict(group.scientific)}
    shown = (f"{name} {readable(value)}" for name, value in point.values.items() if name in varied and name not in told)
    return f"trial {point.number}: " + ", ".join(shown)


def _or_dash(value: float, form: str = "{:.3g}") -> str:
    return "–" if math.isnan(value) else form.format(value)


def plan_table(study: Study, points: Iterable[Point], seconds_per_step: Mapping[int, float]) -> Table:
    """What `tunewright check` shows: every group with its ranges, trials, updates and estimated time.

    An adaptive study shows its first round, and its time scaled to all trials.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{study.name}: {study.question}" if study.question else study.name,
        title_justify="left",
        caption="Time: one core, no trial stopped early.",
        caption_justify="left",
    )
    for column in ("group", "varied", "trials", "updates per trial", "time"):
        table.add_column(column, justify="left" if column in ("group", "varied") else "right", overflow="fold")
    by_group: dict[Group, list[Point]] = {}
    for point in points:
        by_group.setdefault(group_of(point, study.scientific_names), []).append(point)
    for group, members in by_group.items():
        held = dict(group.scientific)
        axes = {name: axis for name, axis in study.axes(group.optimizer).items() if name not in held}
        varied = [
            f"{name} {_axis_in_words(axis)}" for name, axis in axes.items() if isinstance(axis, Range) or len(axis) > 1
        ]
        updates = [total_steps(point, study.max_train_steps, study.prepend_warmup) for point in members]
        trials = len(members) // study.seeds
        if study.sampler in ADAPTIVE and study.trials is not None:
            trials = math.ceil(study.trials / len(study.groups(group.batch_size)))
        seconds = sum(updates) / len(updates) * trials * study.seeds * seconds_per_step[group.batch_size]
        span = f"{min(updates)}" if min(updates) == max(updates) else f"{min(updates)} to {max(updates)}"
        table.add_row(
            group.label, "; ".join(varied) or "nothing", _times_seeds(trials, study.seeds), span, _duration(seconds)
        )
    return table


def _times_seeds(configurations: int, seeds: int) -> str:
    return str(configurations) if seeds == 1 else f"{configurations} × {seeds} seeds"


def _axis_in_words(axis: Range | tuple[object, ...]) -> str:
    if isinstance(axis, Range):
        return f"{readable(axis.low)} to {readable(axis.high)}" + (" (log)" if axis.log else "")
    return "{" + ", ".join(readable(value) for value in axis) + "}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
