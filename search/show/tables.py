"""Tables for the terminal: a study's plan, and what came of it. The report shows the same cells."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.console import Group as Blocks
from rich.table import Column, Table
from rich.text import Text

from ..judge.analysis import GroupSummary
from ..judge.answer import Answer
from ..judge.comparison import STUDENT, Comparison, Evidence, Side, holm
from ..judge.diagnosis import GroupDiagnosis, Remedy
from ..judge.edge_ratio import FAR_BEYOND, EdgeRatio
from ..judge.plateau import headroom_base
from ..study.cut import most_saved
from ..study.earlier import why_outside
from ..study.sampling import (
    free_axes,
    most_finalists,
    next_points,
    shares,
    some_points,
    trials_of_finalists,
    yet_to_plan,
)
from ..study.study import Axis, Range, Study
from ..trial import Group, Point, Trial, as_told, group_of
from ..words import FAR, better_side, duration, fitted, headroom_in_words, ratio, readable

# What the terminal shows of `summary_cells`, within 80 columns; the report has the rest.
COLUMNS = ("batch size", "optimizer", "lr_star", "unstable_base_lr", "best value", "verdict")
HEADS = {
    "batch size": "batch\nsize",
    "unstable_base_lr": "unstable\nbase_lr",
}
WINNER = "→ "
# `comparison_rows`
COMPARED = ("side", "mean", "spread", "range", "may fail", "gain", "P(better)", "p", "decision")
MAY_FAIL = (
    "may fail: the largest share of infeasible runs that these runs allow, with 95 % confidence"
)
WITHOUT_TERMINAL = 140  # columns
UNLIMITED = 10_000  # columns, where what a table has around its cells is measured
NOT_TRIED = "`tunewright check --time` also tries the workload, and estimates how long trials take."
# of a plan, to estimate the updates of its trials: enough for a mean, quickly made
POINTS_JUDGED = 1_000
UNKNOWN = "unknown"
LEFT = ("remedy", "optimizer", "verdict", "side", "search space", "decision")


def print_table(table: Table, console: Console | None = None) -> None:
    """Print to the terminal's width, or to 140 columns where there is no terminal.

    No word is broken: a table whose words do not fit in is printed as a list, a block per row, a
    line per column.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=WITHOUT_TERMINAL, file=console.file)
    console.print(table if _fit(table, console) else _as_list(table))


def print_wrapped(sentences: Iterable[str]) -> None:
    """Print sentences, a paragraph each; on a terminal wrapped between words to its width."""
    for sentence in sentences:
        print(fitted(sentence, sys.stdout))


def _fit(table: Table, console: Console) -> bool:
    """Set the columns' widths so that no word is broken; returns whether there is room for that.

    Rich itself narrows the widest column first, also below its longest word.
    """
    texts = [[str(column.header), *map(_plain, column.cells)] for column in table.columns]
    wanted = [max(cell_len(line) for text in own for line in _lines(text)) for own in texts]
    longest = [max(map(_longest_word, own)) for own in texts]
    for column, width in zip(table.columns, wanted, strict=True):
        column.width = width
    unlimited = console.options.update(max_width=UNLIMITED)
    frame = console.measure(table, options=unlimited).maximum - sum(wanted)
    around = max(_longest_word(_plain(text or "")) for text in (table.title, table.caption))
    if max(sum(longest) + frame, around) > console.width:
        return False
    widths, most = wanted, max(wanted, default=0)
    while sum(widths) + frame > console.width:
        most -= 1
        widths = [max(low, min(high, most)) for low, high in zip(longest, wanted, strict=True)]
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    return sum(widths) + frame >= around


def _plain(cell: RenderableType) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _lines(text: str) -> list[str]:
    return text.splitlines() or [""]


def _longest_word(text: str) -> int:
    """Of a cell, whose first word keeps the spaces before it."""
    indented = len(text) - len(text.lstrip())
    first, *others = text.split() or [""]
    return max([indented + cell_len(first), *map(cell_len, others)])


def _as_list(table: Table) -> Blocks:
    """A block per row of a table: the first cell, below it the others with their column's name."""
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    blocks: list[RenderableType] = [Text(str(table.title))] if table.title else []
    for row in rows:
        block = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
        for head, cell in zip(heads, row, strict=True):
            if str(cell).strip():
                block.add_row(f"  {head}", cell)
        blocks.append(block)
    blocks += [Text(str(table.caption))] if table.caption else []
    return Blocks(*blocks)


def summary_table(
    answers: Iterable[Answer],
    title: str = "",
    comparison: Comparison | None = None,
) -> Table:
    """One row per group: batch size, optimizer and scientific values.

    Of each batch size the best comes first, and is marked. With a comparison its baseline is the
    first row, and a column says by how much each best value is better.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    if comparison:
        table.caption = f"{comparison.gain_in_words}."
    columns = with_gain(COLUMNS, comparison)
    for column in columns:
        table.add_column(
            HEADS.get(column, column),
            justify="left" if column in LEFT else "right",
            overflow="fold",
        )
    rows = [baseline_cells(comparison)] if comparison else []
    for answer in sorted(answers, key=lambda one: one.batch_size):
        for row in answer.rows:
            cells = summary_cells(row, (), comparison)
            mark = WINNER if answer.is_winner(row) else " " * len(WINNER)
            cells["optimizer"] = mark + cells["optimizer"]
            cells["best value"] = readable(row.best_value) if row.point else "–"
            rows.append(cells)
    for cells in rows:
        table.add_row(*(Text(cells.get(column, "")) for column in columns))
    return table


def with_gain(columns: Sequence[str], comparison: Comparison | None) -> list[str]:
    """Columns of a table of best values; `gain` comes after them once there is a baseline."""
    value = next(
        place
        for place, column in enumerate(columns, start=1)
        if column in ("best value", "best_value")
    )
    return [*columns[:value], *(["gain"] if comparison else []), *columns[value:]]


def signed(gain: float) -> str:
    """A difference for people: + or −, three significant digits; a dash for what has none."""
    return "–" if math.isnan(gain) else f"{'+' if gain > 0 else ''}{readable(gain)}"


def baseline_cells(comparison: Comparison) -> dict[str, str]:
    """The row of the baseline in a summary, by column: what is known of a checkpoint."""
    known, name = comparison.known_settings, Path(comparison.checkpoint.path).name
    return {
        "group": f"baseline: {name}",
        "batch size": str(known.get("batch_size", "")),
        "optimizer": "baseline",
        "best value": readable(comparison.checkpoint.value),
        "gain": "0",
        "point": f"checkpoint {name}",
    }


def summary_cells(
    row: GroupSummary, varied: Collection[str], comparison: Comparison | None = None
) -> dict[str, str]:
    """A summary in words, by column.

    Value, step and point are those of the best mean; the point has what is varied and not in
    another column.
    """
    last_feasible, unstable = row.unstable_base_lr
    if math.isinf(unstable):
        edge = f"> {readable(last_feasible)}" if last_feasible else "–"
        base = headroom_base(row.best_base_lr, row.as_good)
        headroom = f"> {ratio(min(last_feasible / base, FAR))} ×" if last_feasible else "–"
    else:
        edge = f"{readable(last_feasible)} – {readable(unstable)}"
        headroom = "–" if math.isnan(row.headroom) else headroom_in_words(row.headroom)
    if row.seeds > 1 and row.unstable_trials[1]:
        edge += " ({} of {})".format(*row.unstable_trials)
    best_value = best_step = point = near = "–"
    if row.point:
        best_value, best_step = readable(row.best_value), _or_dash(row.best_step, "{:.0f}")
        point = _in_words(row.point, row.group, varied)
        near = f"{row.good_region} ({row.good_region_fraction:.0%})"
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
        "near lr_star": near,
        "lr_star": "–" if math.isnan(row.lr_star) else readable(row.lr_star),
        "as good": as_good_in_words(row),
        "unstable_base_lr": edge,
        "headroom": headroom,
        "usable decades": _or_dash(row.usable_decades, "{:.2f}"),
        "LR sensitivity": _or_dash(row.lr_sensitivity, "{:.2f}"),
        "best value": best_value,
        "gain": signed(comparison.gain(row.best_value)) if comparison else "",
        "at step": best_step,
        "point": point,
        "verdict": row.verdict,
    }


def as_good_in_words(row: GroupSummary) -> str:
    """The base LRs that are as good as the best: "0.01 – 0.1", "0.01 – 1, a basin", or "0.01"."""
    if math.isnan(row.as_good[0]):
        return "–"
    low, high = map(readable, row.as_good)
    return low if low == high else f"{low} – {high}" + ", a basin" * row.is_basin


def _in_words(point: Point, group: Group, varied: Collection[str]) -> str:
    told = {"optimizer", "base_lr", *dict(group.scientific)}
    shown = [
        f"{name} {readable(value)}"
        for name, value in point.values.items()
        if name in varied and name not in told
    ]
    number = f"trial {point.number}"
    return f"{number}: {', '.join(shown)}" if shown else number


def _or_dash(value: float, form: str = "{:.3g}") -> str:
    return "–" if math.isnan(value) else form.format(value)


def comparison_tables(result: Comparison) -> list[Table]:
    """What `tunewright compare` shows: values with decisions, and what each side cost."""
    values = Table(
        box=box.SIMPLE_HEAD,
        title=f"{result.objective}, {better_side(result.maximize)}: {result.seeds} runs per side, "
        f"seeds from {result.first_seed}",
        title_justify="left",
        caption=f"{result.gain_in_words}; its 95 % interval is "
        f"{interval_method(result)}; p: corrected for "
        f"all candidates;\n{MAY_FAIL}.\n{on_test_split(result)}",
        caption_justify="left",
    )
    costs = Table(
        box=box.SIMPLE_HEAD,
        title="What each side cost",
        title_justify="left",
        caption_justify="left",
    )
    costs_rows = cost_rows(result)
    # too long for a column of the terminal
    spaces = dict.fromkeys(row.pop("search space") for row in costs_rows)
    costs.caption = "\n".join(f"Searched: {space}." for space in spaces if space != UNKNOWN)
    for table, rows in ((values, comparison_rows(result)), (costs, costs_rows)):
        _fill(table, rows)
    return [values, costs]


def interval_method(result: Comparison | GroupDiagnosis) -> str:
    """How the intervals of gains were found; older files have another method."""
    own = result.candidates if isinstance(result, Comparison) else result.remedies
    return next((one.evidence.interval_method for one in own if one.evidence), STUDENT)


def on_test_split(result: Comparison) -> str:
    """The final pair on the test split, in words.

    Empty while undecided, or without a test split.
    """
    if not result.test:
        return ""
    names = {"baseline": "the checkpoint", "candidate": result.final.side.name}
    sides = [
        f"{names[side]} has "
        + ", ".join(f"{name} {readable(value)}" for name, value in metrics.items())
        for side, metrics in result.test.items()
    ]
    return f"On the test split, looked at once after the decision, {'; '.join(sides)}."


def comparison_rows(result: Comparison) -> list[dict[str, str]]:
    """A row each for the checkpoint, its retrained settings if known, and every candidate."""
    rows = [
        _row(
            side=f"checkpoint {Path(result.checkpoint.path).name}",
            mean=readable(result.checkpoint.value),
            spread="" if result.baseline else UNKNOWN,
        )
    ]
    if result.baseline:
        rows.append(
            _row(side=f"baseline: {result.baseline.name}", **_spread_cells(result.baseline))
        )
    corrected = holm([one.evidence.p_better for one in result.candidates])
    for one, p in zip(result.candidates, corrected, strict=True):
        needed = "no number of" if math.isinf(one.seeds_needed) else f"{one.seeds_needed:.0f}"
        rows.append(
            _row(
                side=one.side.name,
                **_spread_cells(one.side),
                **_evidence_cells(one.evidence),
                p=readable(p),
                decision=one.decision
                + (
                    f"; {needed} seeds would settle it"
                    if one.decision == "not enough evidence"
                    else ""
                ),
            )
        )
        if one.equal_steps:
            rows.append(
                _row(
                    side=f"– against the baseline at {one.side.total_steps} updates",
                    **_evidence_cells(one.equal_steps),
                    p=readable(one.equal_steps.p_better),
                )
            )
    return rows


def diagnosis_plan_table(
    plan: Mapping[Group, Iterable[tuple[str, int, int]]], seconds: Mapping[int, float]
) -> Table:
    """The most that a diagnosis takes: a row per group and step.

    `seconds` are those of one update, by batch size.
    """
    table = Table(
        box=box.SIMPLE_HEAD, title="At most", title_justify="left", caption_justify="left"
    )
    table.caption = "A healthy group stops after the confirmation."
    columns = ["group", "step", "trainings", "updates"]
    if seconds:
        table.caption = f"Time: one core, one trial after the other. {table.caption}"
        columns.append("time")
    for column in columns:
        table.add_column(column, justify="left" if column in ("group", "step") else "right")
    for group, rows in plan.items():
        for i, (step, trainings, updates) in enumerate(rows):
            cells = [group.label if i == 0 else "", step, str(trainings), str(updates)]
            if seconds:
                cells.append(duration(updates * seconds[group.batch_size]))
            table.add_row(*(Text(cell) for cell in cells))
    return table


def diagnosis_table(found: GroupDiagnosis, objective: str, maximize: bool = False) -> Table:
    """The remedies of a group, for the terminal."""
    rows = remedy_rows(found)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{found.group.label}: {objective}, {better_side(maximize)}",
        title_justify="left",
        padding=(0, 1),
    )
    _fill(table, rows)
    return table


def _fill(table: Table, rows: Sequence[Mapping[str, str]]) -> None:
    """A column for each key, which all rows have, and the rows; no rows, no columns."""
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))


def remedy_rows(found: GroupDiagnosis) -> list[dict[str, str]]:
    """A row per way to train: tuned, rerun, and decided.

    Plain training, the first, has also how near it is to the edge at lr_star, if that was measured.
    """
    rows = [_remedy_row(one, one.name == found.adopted) for one in found.remedies]
    if found.edge_runs:
        for row in rows:
            row["of the edge"] = ""
        rows[0]["of the edge"] = _of_the_edge(found.edge_runs[0].highest)
    return rows


def _of_the_edge(look: EdgeRatio | None) -> str:
    if look is None:
        return "–"
    return readable(look.ratio) if look.ratio <= FAR_BEYOND else f"> {FAR_BEYOND:g}"


def _remedy_row(one: Remedy, adopted: bool) -> dict[str, str]:
    return {
        "remedy": ("→ " if adopted else "") + one.name,
        "base_lr": readable(one.point.base_lr),
        "trains up to": readable(one.highest_base_lr),
        "usable decades": _or_dash(one.usable_decades, "{:.2f}"),
        "LR sensitivity": _or_dash(one.lr_sensitivity, "{:.2f}"),
        "clipped": f"{one.clip_fraction:.0%}" if one.clip_fraction else "",
        "updates": str(one.updates),
        "tuned": readable(one.tuned_value),
        "rerun": readable(one.mean) if one.values else "",
        "may fail": _may_fail(one.failure_bound),
        "gain": _gain(one.evidence),
        "gain at equal updates": _gain(one.equal_steps),
        "decision": one.decision or "",
    }


def _may_fail(bound: float) -> str:
    return "" if math.isnan(bound) else f"≤ {bound:.0%}"


def _gain(one: Evidence | None) -> str:
    return _evidence_cells(one)["gain"] if one else ""


def _row(**cells: str) -> dict[str, str]:
    return dict.fromkeys(COMPARED, "") | cells


def _spread_cells(side: Side) -> dict[str, str]:
    return {
        "mean": readable(statistics.fmean(side.values)),
        "spread": readable(statistics.stdev(side.values)),
        "range": f"{readable(min(side.values))} – {readable(max(side.values))}",
        "may fail": _may_fail(side.failure_bound),
    }


def _evidence_cells(one: Evidence) -> dict[str, str]:
    low, high = map(readable, one.gain_interval)
    return {
        "gain": f"{readable(one.gain)} ({low} – {high})",
        "P(better)": "{:.0%} ({:.0%} – {:.0%})".format(one.better_fraction, *one.better_interval),
    }


def cost_rows(result: Comparison) -> list[dict[str, str]]:
    """The fairness of a comparison: what finding and training each side took (S9)."""
    rows = [
        {
            "side": name,
            "trials": str(side.trials),
            "search space": side.space,
            "batch size": str(side.point.batch_size),
            "updates": str(side.max_train_steps),
            "with warmup": str(side.total_steps),
            "time of search": duration(side.search_seconds),
            "time of a run": duration(side.run_seconds),
        }
        for name, side in result.sides
    ]
    if result.baseline is None:
        rows.insert(0, dict.fromkeys(rows[0], UNKNOWN) | {"side": "baseline"})
    return rows


def plan_table(study: Study, seconds_per_step: Mapping[int, float] | None = None) -> Table:
    """What `tunewright check` shows: every group with its ranges, trials and updates.

    It has the estimated time, too, if the seconds of an update are given by batch size.
    """
    caption = "Time: one core, no trial stopped early." if seconds_per_step else NOT_TRIED
    if study.command:
        caption = "A command is not timed: it trains as long as it does."
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{study.name}: {study.question}" if study.question else study.name,
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    times = ["time"] if seconds_per_step else []
    for column in ("group", "varied", "trials", "updates per trial", *times):
        table.add_column(
            column, justify="left" if column in ("group", "varied") else "right", overflow="fold"
        )
    for group, updates in _updates_of_groups(study).items():
        trials = shares(study, group.batch_size)[group]
        if seconds_per_step:
            each = statistics.fmean(updates) * seconds_per_step[group.batch_size]
            trainings = trials * study.first_seeds + trials_of_finalists(study, trials)
            times = [duration(each * trainings)]
        span = (
            f"{min(updates)}"
            if min(updates) == max(updates)
            else f"{min(updates)} to {max(updates)}"
        )
        table.add_row(
            group.label,
            _varied_in_words(study, group) or "nothing",
            _times_seeds(study, trials),
            span,
            *times,
        )
    return table


def missing_in_words(study: Study, trials: Sequence[Trial]) -> str:
    """How many trainings a run would do, and how many it has already.

    Of a study that has grown, also how many of before lie outside of its space.
    """
    done = [as_told(trial) for trial in trials if not trial.verdict.crashed]
    points = next_points(study, done)
    missing = len(points) - len(done)
    may_follow = sum(yet_to_plan(study, points).values()) if missing else 0
    words = f"{study.name}: {len(points)} trainings planned, {len(done)} done, {missing} to train"
    if may_follow:
        words += f", and up to {may_follow} that follow from their results"
    before = [point for one in study.earlier.values() for point in one.points]
    if outside := sum(bool(why_outside(study, point)) for point in before):
        words += f"; {outside} configurations of before lie outside of its space: kept, not shown"
    return words


def cut_in_words(study: Study) -> str:
    """What a study's cut does, and how many updates it saves at most."""
    assert study.cut is not None
    planned = sum(
        shares(study, group.batch_size)[group] * statistics.fmean(updates) * study.first_seeds
        for group, updates in _updates_of_groups(study).items()
    )
    saved = most_saved(study)
    at, keep = (readable(100 * share) for share in (study.cut.at, study.cut.keep))
    return (
        f"{study.name}: cut at {at} % of a training, where the best {keep} % of each group go on: "
        f"saves at most {saved:,} of {planned:,.0f} updates ({saved / planned:.0%})"
    )


def _updates_of_groups(study: Study) -> dict[Group, list[int]]:
    """The updates of some trials of every group: enough for their mean and their range."""
    found: dict[Group, list[int]] = {}
    if not study.prepend_warmup:  # then all trials are equally long, and no point has to be drawn
        for batch_size in study.batch_sizes:
            for group in study.groups(batch_size):
                found[group] = [study.until_stop(study.train_steps(batch_size))]
        return found
    for point in some_points(study, POINTS_JUDGED):
        group = group_of(point, study.scientific_names)
        found.setdefault(group, []).append(study.updates(point))
    return found


def _varied_in_words(study: Study, group: Group) -> str:
    return "; ".join(
        f"{study.axis_name(group.optimizer, name)} {axis_in_words(axis)}"
        for name, axis in free_axes(study, group).items()
    )


def space_in_words(study: Study) -> str:
    """The ranges of every group, as `tunewright check` shows them."""
    groups = study.groups(study.batch_sizes[0])
    held = ["".join(f", {name}={value}" for name, value in group.scientific) for group in groups]
    spaces = [
        f"{group.optimizer}{values}: {_varied_in_words(study, group) or 'nothing'}"
        for group, values in zip(groups, held, strict=True)
    ]
    return ". ".join(spaces)


def _times_seeds(study: Study, configurations: int) -> str:
    first, most = study.first_seeds, study.most_seeds
    words = (
        str(configurations) if most == 1 else f"{configurations} × {first} seed{'s' * (first > 1)}"
    )
    more = most_finalists(study, configurations)
    return f"{words}, up to {more} × {most - first} more" if more else words


def axis_in_words(axis: Axis) -> str:
    """A range as `low to high (log)`, values to choose from as `{a, b}`, a fixed value as it is."""
    if isinstance(axis, Range):
        return f"{readable(axis.low)} to {readable(axis.high)}" + (" (log)" if axis.log else "")
    if len(axis) == 1:
        return readable(axis[0])
    return "{" + ", ".join(readable(value) for value in axis) + "}"
