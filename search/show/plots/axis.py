"""Axis plot: the best validation value of every trial against one hyperparameter (S3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from ...judge.analysis import (
    GroupSummary,
    group_trials,
    has_value,
    rank_configurations,
    summarize,
    varied_names,
)
from ...judge.comparison import Interval
from ...judge.isolation import Bucket, isolate
from ...judge.plateau import NOWHERE
from ...judge.sensitivity import usable_in_words
from ...trial import Group, Trial
from ...words import headroom_in_words, in_order, readable
from .arrange import settled
from .style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PALE,
    RAIL_NAME,
    VERMILLION,
    brief,
    escape,
    footnote,
    hover,
    in_grid,
    in_one_sentence,
    linear_ticks,
    log_axis,
    panel_figure,
    panel_title,
)
from .thin import most_informative

MOST_MARKS = 2000  # of a figure: more are slow to draw, and hide one another
MOST_TOLD = 400  # of the marks of a figure have all their hyperparameters on hover
LOG_SPAN = 1.0  # decades of feasible values above which the y axis is logarithmic
MAX_CHOICES = 6  # so few values, tried repeatedly, are categories and not a scale
JITTER = 0.30  # half-width of the spread of trials within a category; categories are 1 apart
GOLDEN = 0.6180339887  # multiples of it, modulo 1, never bunch: jitter without randomness
MARGIN = 0.05  # to the left and right, of the range of values
FOOT, HEAD = -0.07, 1.08  # y range as heights; the feasible values span heights 0 to 1 (S3)
RAIL = 0.14  # height of the band of infeasible trials, and of each one above it

Kind = Literal[
    "feasible", "fewer seeds", "cut", "infeasible", "crashed", "unfinished", "winner", "best"
]
LOOKS: dict[Kind, dict[str, Any]] = {  # in the order of drawing, the star on top (S3)
    "feasible": {
        "symbol": "circle",
        "size": 8,
        "color": BLUE,
        "opacity": 0.75,
        "line": {"width": 0},
    },
    "fewer seeds": {
        "symbol": "circle-open",
        "size": 7,
        "color": BLUE,
        "opacity": 0.6,
        "line": {"width": 1},
    },
    "cut": {"symbol": "triangle-right-open", "size": 9, "color": BLUE, "line": {"width": 1.2}},
    "infeasible": {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": VERMILLION}},
    "crashed": {"symbol": "square-open", "size": 8, "color": MUTED, "line": {"width": 1.5}},
    "unfinished": {"symbol": "triangle-right-open", "size": 8, "color": MUTED},
    "winner": {"symbol": "circle", "size": 12, "color": BLUE, "line": {"width": 0}},
    "best": {"symbol": "star", "size": 17, "color": GREEN, "line": {"width": 1, "color": "white"}},
}
GREEN_BAND = "rgba(0, 158, 115, 0.13)"  # of base LRs that are as good
FAINT = {"symbol": "circle", "size": 6, "color": PALE, "opacity": 0.6, "line": {"width": 0}}
# Bands beyond the range of what trained, from it outwards, each drawn where it is needed.
RAILS: dict[Kind, str] = {"infeasible": VERMILLION, "crashed": MUTED, "unfinished": MUTED}


@dataclass(frozen=True)
class Mark:
    """One trial; a winner is the best of its value or bucket (S7), unless it is the best of all.

    `x` is its value, or category index and jitter; `y` its best value, of one that was cut the best
    until then, or that of a rail.
    """

    number: int
    x: float
    y: float
    kind: Kind
    hover: str


@dataclass(frozen=True)
class Told:
    """What is known of a group's base LRs: lr_star, those that are as good, and both in words."""

    lr_star: float
    as_good: Interval
    note: str


@dataclass(frozen=True)
class Panel:
    """The trials of one group, in the order they came; `undrawn` counts those that are left out.

    `failed` counts all that did not train to their end, drawn or not. `as_good`: the base LRs that
    are as good as the best, a band; (nan, nan) for another axis, or where they are not known.
    """

    group: Group
    note: str
    marks: tuple[Mark, ...]
    failed: Mapping[Kind, int]
    undrawn: int = 0
    as_good: Interval = NOWHERE


@dataclass(frozen=True)
class AxisInfo:
    """An axis plot as plain data.

    categories   tick labels at x = 0, 1, ...; empty if the axis is a scale
    y_range      from the best side to the worst: lowest and highest value of feasible trials and
                 of those that were cut, the baseline's included, or highest and lowest if the
                 objective is maximized. They alone set the scale; other trials stand on rails
                 beyond the worst
    isolated     whether the best trial of each value or bucket is picked out (S7): always, but for
                 base_lr, whose own effect is to be seen
    joined       whether the winners are joined by a line: the values are numbers
    baseline     value of the checkpoint that the study was compared with, a dashed line
    cut_at       of the trials that were cut, the share of their training after which they were; nan
                 if it is not known, or not the same
    not_varied   (optimizer, trials) not drawn: their optimizer has one value of the hyperparameter,
                 or they have none
    """

    axis: str
    objective: str
    log_x: bool
    log_y: bool
    categories: tuple[str, ...]
    y_range: tuple[float, float]
    panels: tuple[Panel, ...]
    not_varied: tuple[tuple[str, int], ...] = ()
    baseline: float | None = None
    isolated: bool = False
    joined: bool = False
    cut_at: float = math.nan

    def in_words(self) -> str:
        """The figure in a sentence: each panel's best, and how many trials did not train."""
        count = sum(len(panel.marks) + panel.undrawn for panel in self.panels)
        subject = f"{self.objective} against {self.axis}, {count} trials"
        return in_one_sentence(subject, map(_panel_in_words, self.panels))


def _panel_in_words(panel: Panel) -> str:
    failed = [f"{count} {kind}" for kind, count in panel.failed.items()]
    return ", ".join(
        [f"{panel.group.label}, {len(panel.marks) + panel.undrawn} trials", panel.note, *failed]
    )


def axis_info(
    trials: Iterable[Trial],
    axis: str,
    objective: str,
    *,
    log: bool = False,
    scientific: Sequence[str] = (),
    baseline: float | None = None,
    told: Mapping[Group, Told] | None = None,
) -> AxisInfo:
    """What an axis plot shows: a panel per group, a mark per trial.

    A scientific hyperparameter splits trials into panels of their own, unless it is the axis
    itself. `told` has what is known of a group besides its trials, as by a diagnosis.
    """
    trials = list(trials)
    if axis == "optimizer":
        having = {trial.point.optimizer for trial in trials}
    else:
        having = _optimizers_that_vary(trials, axis)
    shown = [
        trial for trial in trials if trial.point.optimizer in having and axis in trial.point.values
    ]
    left_out = Counter(trial.point.optimizer for trial in trials)
    left_out -= Counter(trial.point.optimizer for trial in shown)
    values = [trial.point.values[axis] for trial in shown]
    log = log and all(isinstance(value, int | float) and value > 0 for value in values)
    categories = _categories(values, log)
    drawn = [trial.best_value for trial in shown if _has_place(trial)]
    if baseline is not None:
        drawn.append(baseline)
    log_y, low, high = scale(drawn, any(trial.maximize for trial in trials))
    rails = _rails({_kind(trial) for trial in shown})
    draw = _Drawing(
        axis,
        objective,
        categories,
        log and not categories,
        rails,
        lambda height: at_height(height, low, high, log_y),
        len(shown),
        told or {},
    )
    return AxisInfo(
        axis=axis,
        objective=objective,
        log_x=log and not categories,
        log_y=log_y,
        categories=tuple(readable(value) for value in categories),
        y_range=(low, high),
        panels=tuple(
            draw.panel(group, members)
            for group, members in _panels(shown, axis, scientific).items()
        ),
        not_varied=tuple(sorted(left_out.items())),
        baseline=baseline,
        isolated=draw.isolated,
        joined=draw.isolated and all(isinstance(value, int | float) for value in values),
        cut_at=_cut_at(shown),
    )


def _optimizers_that_vary(trials: list[Trial], axis: str) -> set[str]:
    by_optimizer: dict[str, list[Trial]] = {}
    for trial in trials:
        by_optimizer.setdefault(trial.point.optimizer, []).append(trial)
    return {optimizer for optimizer, own in by_optimizer.items() if axis in varied_names(own)}


def _panels(trials: list[Trial], axis: str, scientific: Sequence[str]) -> dict[Group, list[Trial]]:
    groups = group_trials(trials, [name for name in scientific if name != axis])
    if axis != "optimizer":
        return groups
    together: dict[Group, list[Trial]] = {}
    for group, members in groups.items():
        together.setdefault(Group(group.batch_size, "all optimizers", group.scientific), []).extend(
            members
        )
    return together


def _categories(values: list[Any], log: bool) -> list[Any]:
    """The values in order, if they are choices; empty if the axis is a scale.

    They are choices if not all are finite numbers, or if they are few and tried repeatedly.
    """
    distinct = sorted({repr(value): value for value in values}.values(), key=in_order)
    scale = all(isinstance(value, int | float) and math.isfinite(value) for value in distinct)
    few = not log and len(distinct) <= MAX_CHOICES and 2 * len(distinct) <= len(values)
    return distinct if few or not scale else []


def scale(values: Sequence[float], maximize: bool) -> tuple[bool, float, float]:
    """Whether the y axis is logarithmic, and its values at the best side and at the worst.

    The values are 0 and 1 if there are none. Trials that did not train stand beyond the worst. A
    log axis presses the highest values together: where these are the best, it is never one.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    wide = low > 0 and math.log10(high / low) > LOG_SPAN
    if low == high:
        low, high = low - 0.1 * abs(low or 1), high + 0.1 * abs(high or 1)
    return (False, high, low) if maximize else (wide, low, high)


def is_turned(y_range: tuple[float, float]) -> bool:
    """Whether a range from best to worst falls, so that heights count from the top of the panel."""
    return y_range[0] > y_range[1]


def at_height(height: float, low: float, high: float, log: bool) -> float:
    """The value at a height: 0 is low, 1 is high, evenly or in log.

    low is above high if the range is turned.
    """
    return low * (high / low) ** height if log else low + (high - low) * height


def told_of(row: GroupSummary) -> Told:
    """lr_star of a summary, and what is as good."""
    star = f"lr_star = {readable(row.lr_star)}"
    low, high = row.as_good
    if low < high:
        star += f" (to {readable(high)} as good)"
    if math.isnan(row.lr_star):
        words = "no feasible trial"
    elif math.isinf(row.headroom):
        words = f"{star}, nothing infeasible above it"
    elif row.is_basin:
        words = f"{star}, headroom {headroom_in_words(row.headroom)} the basin's end"
    else:
        words = f"{star}, headroom {headroom_in_words(row.headroom)}"
    if row.is_flat:
        words += f", {usable_in_words(row.usable)}"
    return Told(row.lr_star, row.as_good, words)


def _has_place(trial: Trial) -> bool:
    """Whether a trial stands at its value, and not on a rail."""
    return has_value(trial) or (trial.is_cut and math.isfinite(trial.best_value))


def _cut_at(trials: Iterable[Trial]) -> float:
    cut = [trial.curve for trial in trials if trial.is_cut]
    shares = {round(len(one.loss) / max(one.total_steps, 1), 2) for one in cut}
    return shares.pop() if len(shares) == 1 and all(shares) else math.nan


def _kind(trial: Trial) -> Kind:
    if _has_place(trial) and trial.is_cut:
        return "cut"
    if has_value(trial):
        return "fewer seeds" if trial.provisional else "feasible"
    if trial.verdict.crashed:
        return "crashed"
    return "unfinished" if trial.verdict.unfinished else "infeasible"


def _rails(kinds: Collection[str]) -> list[Kind]:
    """The rails that are needed, from the range of values outwards; the first one for all
    others.
    """
    needed: list[Kind] = [kind for kind in RAILS if kind in kinds]
    return list(dict.fromkeys(["infeasible", *needed])) if needed else []


@dataclass(frozen=True)
class _Drawing:
    """How the trials of a figure become marks; `at` is the value at a height, `count` their sum."""

    axis: str
    objective: str
    categories: list[Any]
    log: bool
    rails: Sequence[Kind]
    at: Callable[[float], float]
    count: int
    told: Mapping[Group, Told]

    @property
    def isolated(self) -> bool:
        return self.axis != "base_lr"

    def panel(self, group: Group, trials: list[Trial]) -> Panel:
        told, best = self._starred(group, trials)
        winners = self._winners(trials)
        always = {id(best), *winners}
        few = most_informative(trials, self._share(trials, MOST_MARKS))
        always_and_few = always | set(map(id, few))
        drawn = [trial for trial in trials if id(trial) in always_and_few]
        whole = always | set(map(id, most_informative(drawn, self._share(trials, MOST_TOLD))))
        marks = []
        for trial in drawn:
            kind = "best" if trial is best else "winner" if id(trial) in winners else _kind(trial)
            text = hover(trial, self.objective) if id(trial) in whole else brief(trial)
            lead = winners.get(id(trial), "")
            marks.append(Mark(trial.point.number, *self._place(trial, kind), kind, lead + text))
        kinds = Counter(map(_kind, trials))
        failed = {kind: kinds[kind] for kind in ("cut", *RAILS) if kinds[kind]}
        undrawn = len(trials) - len(marks)
        return Panel(group, told.note, tuple(marks), failed, undrawn, told.as_good)

    def _starred(self, group: Group, trials: list[Trial]) -> tuple[Told, Trial | None]:
        """What is told of a group, and the trial that is starred."""
        ranking = rank_configurations(trials)
        best = next(iter(ranking), None)
        if self.axis == "base_lr":
            told = self.told.get(group) or told_of(summarize(trials)[0])
            low, high = told.as_good  # a diagnosis may have found that others are
            inside = [trial for trial in ranking if low <= trial.point.base_lr <= high]
            return told, next(iter(inside), best)
        note = "no feasible trial"
        if best:
            value = readable(best.point.values[self.axis])
            note = f"best: {readable(best.best_value)} at {value}"
        return Told(math.nan, NOWHERE, note), best

    def _share(self, trials: list[Trial], most: int) -> int:
        """Of what a figure may show, the part of one panel."""
        return max(1, most * len(trials) // self.count)

    def _winners(self, trials: list[Trial]) -> dict[int, str]:
        """The best trial of each value or bucket, by its id, and what it is the best of."""
        if not self.isolated:
            return {}
        found = {}
        choices = bool(self.categories)
        for bucket in isolate(trials, self.axis, choices=choices, log=self.log):
            if bucket.best is not None:
                found[id(bucket.best)] = self._lead(bucket)
        return found

    def _lead(self, bucket: Bucket) -> str:
        name, low = escape(self.axis), escape(bucket.low)
        where = f"{name} = {low}"
        if bucket.low != bucket.high:
            where = f"{name} from {low} to {escape(bucket.high)}"
        failed = sum(trial.verdict.infeasible for trial in bucket.trials)
        also = f", {failed} infeasible" if failed else ""
        return f"<b>best of {len(bucket.trials)} with {where}{also}</b><br>"

    def _place(self, trial: Trial, kind: Kind) -> tuple[float, float]:
        number, value = trial.point.number, trial.point.values[self.axis]
        x = value
        if self.categories:
            top = kind == "winner" or (kind == "best" and self.isolated)
            spread = 0.0 if top else JITTER * _jitter(number, GOLDEN)
            x = list(map(repr, self.categories)).index(repr(value)) + spread
        if _has_place(trial):
            return float(x), trial.best_value
        height = HEAD + RAIL * (self.rails.index(kind) + 0.5 + 0.25 * _jitter(number, math.sqrt(2)))
        return float(x), self.at(height)


def _jitter(number: int, ratio: float) -> float:
    """A number in [-1, 1), the same for the same trial; an irrational `ratio` spreads many."""
    return 2 * (number * ratio % 1) - 1


# --- drawing --------------------------------------------------------------------------------------


def axis_figure(info: AxisInfo) -> go.Figure:
    """The figure: blue dots feasible, green star the best, red crosses infeasible (S3).

    A green band holds the base LRs that are as good; its lower end is lr_star.
    """
    places = in_grid(panel.group for panel in info.panels)
    figure = panel_figure(
        f"Best {escape(info.objective)} against {escape(info.axis)}",
        _subtitle(info),
        {place: panel_title(group.label, _note_of(info, group)) for group, place in places.items()},
    )
    kinds = {mark.kind for panel in info.panels for mark in panel.marks}
    _draw_bands(figure, info, places)
    if info.joined:
        for panel in info.panels:
            row, column = places[panel.group]
            figure.add_trace(_profile(panel), row=row, col=column)
    for kind, look in LOOKS.items():
        legend = True
        for panel in info.panels:
            marks = [mark for mark in panel.marks if mark.kind == kind]
            row, column = places[panel.group]
            if marks:
                look = FAINT if info.isolated and kind == "feasible" else look
                trace = _markers(marks, kind, look, legend)
                trace.name = _legend_name(info, kind)
                figure.add_trace(trace, row=row, col=column)
                legend = False
    _draw_axes(figure, info, places, kinds)
    _draw_rails(figure, places, kinds, is_turned(info.y_range))
    if info.baseline is not None:
        figure.add_hline(
            info.baseline, line={"color": INK, "width": 1.5, "dash": "dash"}, layer="below"
        )
    notes = _left_out(info)
    if info.baseline is not None:
        notes.append(f"dashed: the baseline's checkpoint, {readable(info.baseline)}")
    notes += [
        f"not drawn: {trials} trials of {escape(optimizer)} that do not vary {escape(info.axis)}"
        for optimizer, trials in info.not_varied
    ]
    footnote(figure, "; ".join(notes))
    return settled(figure)


def _subtitle(info: AxisInfo) -> str:
    drawn = sum(len(panel.marks) for panel in info.panels)
    count = drawn + sum(panel.undrawn for panel in info.panels)
    side = "below" if is_turned(info.y_range) else "above"
    rail = f"trials that did not train stand {side} the range of the others"
    if not info.isolated:
        return f"one mark per trial, {count} in all; {rail}"
    part = "value" if info.categories else "bucket of values"
    return f"large: best trial of each {part}, base_lr and all else chosen for it (S7); {rail}"


def _legend_name(info: AxisInfo, kind: Kind) -> str:
    if kind == "fewer seeds":
        return "fewer seeds, not ranked"
    if kind == "cut":
        when = "early" if math.isnan(info.cut_at) else f"at {info.cut_at:.0%}"
        return f"stopped {when}, value then"
    if not info.isolated:
        return kind
    names: dict[Kind, str] = {
        "winner": "best of its value" if info.categories else "best of its bucket",
        "best": "best of all",
        "feasible": "other feasible trials",
    }
    return names.get(kind, kind)


def _draw_bands(figure: go.Figure, info: AxisInfo, places: dict[Group, tuple[int, int]]) -> None:
    """A band from lr_star to the highest base LR that is as good, over the range of values."""
    foot, top = (at_height(height, *info.y_range, info.log_y) for height in (FOOT, HEAD))
    legend = True
    for panel in info.panels:
        low, high = panel.as_good
        if not low < high:
            continue
        row, column = places[panel.group]
        band = go.Scatter(
            x=[low, low, high, high],
            y=[foot, top, top, foot],
            mode="none",
            fill="toself",
            fillcolor=GREEN_BAND,
            name="as good",
            legendgroup="as good",
            showlegend=legend,
            hoverinfo="skip",
        )
        figure.add_trace(band, row=row, col=column)
        legend = False


def _profile(panel: Panel) -> go.Scatter:
    """The line through the best of each value or bucket."""
    tops = sorted((mark.x, mark.y) for mark in panel.marks if mark.kind in ("winner", "best"))
    return go.Scatter(
        x=[x for x, _ in tops],
        y=[y for _, y in tops],
        mode="lines",
        line={"color": BLUE, "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )


def _left_out(info: AxisInfo) -> list[str]:
    """What is not drawn, or told less of, in a figure of very many trials."""
    drawn, undrawn = (
        sum(len(panel.marks) for panel in info.panels),
        sum(panel.undrawn for panel in info.panels),
    )
    notes = []
    if undrawn:
        notes.append(
            f"{drawn} of {drawn + undrawn} trials drawn: the best, those that failed just above "
            "the best base_lr, and some of the others"
        )
    if drawn > MOST_TOLD:
        notes.append("hyperparameters on hover for the best and the nearest that failed")
    return notes


def _note_of(info: AxisInfo, group: Group) -> str:
    return next(panel.note for panel in info.panels if panel.group == group)


def _markers(marks: list[Mark], kind: Kind, look: dict[str, Any], legend: bool) -> go.Scatter:
    return go.Scatter(
        x=[mark.x for mark in marks],
        y=[mark.y for mark in marks],
        mode="markers",
        marker=look,
        name=kind,
        legendgroup=kind,
        showlegend=legend,
        cliponaxis=False,
        hovertext=[mark.hover for mark in marks],
        hoverinfo="text",
    )


def _head(kinds: set[Kind]) -> float:
    """Height of the top of the panels: only the rails that are needed."""
    return HEAD + RAIL * len(_rails(kinds))


def _draw_axes(
    figure: go.Figure, info: AxisInfo, places: dict[Group, tuple[int, int]], kinds: set[Kind]
) -> None:
    y_axis = value_axis(info.y_range, info.log_y, _head(kinds))
    for panel in info.panels:
        row, column = places[panel.group]
        in_row = [
            mark.x for other in info.panels if places[other.group][0] == row for mark in other.marks
        ]
        figure.update_yaxes(row=row, col=column, **y_axis)
        figure.update_xaxes(row=row, col=column, **_x_axis(info, in_row))
    figure.update_yaxes(title_text=f"best {escape(info.objective)}")
    figure.update_xaxes(title_text=escape(info.axis))


def value_axis(y_range: tuple[float, float], log_y: bool, head: float) -> dict[str, Any]:
    """An axis of objective values, with ticks only within their range.

    It reaches from FOOT up to height `head` of the range.
    """
    foot, top = sorted(at_height(height, *y_range, log_y) for height in (FOOT, head))
    low, high = sorted(y_range)
    if log_y:
        return log_axis(foot, top, marked=(low, high))
    return {"range": [foot, top], "tickvals": linear_ticks(low, high)}


def in_panel(height: float, head: float, turned: bool) -> float:
    """A height as a share of a panel that reaches up to height `head`.

    It counts from the top if the range is turned.
    """
    share = (height - FOOT) / (head - FOOT)
    return 1 - share if turned else share


def _x_axis(info: AxisInfo, values: list[float]) -> dict[str, Any]:
    if info.categories:
        return {
            "range": [-0.5, len(info.categories) - 0.5],
            "tickvals": list(range(len(info.categories))),
            "ticktext": [escape(category) for category in info.categories],
            "showgrid": False,
        }
    low, high = min(values), max(values)
    if info.log_x:
        return log_axis(low * (high / low) ** -MARGIN * 0.99, high * (high / low) ** MARGIN * 1.01)
    pad = MARGIN * (high - low) or 0.5
    return {"range": [low - pad, high + pad]}


def _draw_rails(
    figure: go.Figure, places: dict[Group, tuple[int, int]], kinds: set[Kind], turned: bool
) -> None:
    """A tinted band and a name at the right for each rail."""
    head = _head(kinds)

    def domain(height: float) -> float:
        return in_panel(height, head, turned)

    for place, name in enumerate(_rails(kinds)):
        foot, colour = HEAD + RAIL * place, RAILS[name]
        for row, column in places.values():
            panel = {"row": row, "col": column, "xref": "x domain", "yref": "y domain"}
            figure.add_shape(
                type="rect",
                x0=0,
                x1=1,
                y0=domain(foot),
                y1=domain(foot + RAIL),
                fillcolor=colour,
                opacity=0.07,
                line_width=0,
                layer="below",
                **panel,
            )
            figure.add_annotation(
                name=RAIL_NAME,
                text=name,
                y=domain(foot + RAIL / 2),
                xanchor="left",
                yanchor="middle",
                showarrow=False,
                font={"color": colour},
                **panel,
            )
