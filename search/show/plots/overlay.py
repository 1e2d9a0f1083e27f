"""Best validation value against base LR, one line per scientific value (S7), or per batch size.

It shows whether one is worse, or only more fragile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ...judge.analysis import (
    group_trials,
    has_value,
    mean_cost,
    repetitions,
    star_of,
    varied_names,
)
from ...judge.optimum import Optimum
from ...trial import Group, Trial, cost
from ...words import readable
from .arrange import settled
from .axis import HEAD, at_height, in_panel, is_turned, scale, value_axis
from .batch_sizes import Known, in_panels
from .style import (
    MUTED,
    RAIL_NAME,
    SEPARATOR,
    colours,
    escape,
    footnote,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    right_legend,
    scientific_label,
)

RAIL_ROW = 0.055  # height of each line's own row on the rail of infeasible trials
SPREAD = 0.05  # of the step between two base LRs: how far apart the crosses of its seeds stand
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagon")


@dataclass(frozen=True)
class Repeated:
    """The seeds of one group at one base_lr.

    `values` are the best values of those that trained, `infeasible` counts the others.
    """

    base_lr: float
    values: tuple[float, ...]
    infeasible: int

    @property
    def mean(self) -> float:
        """Over the seeds; nan if one is infeasible, as in `analysis.rank_configurations`."""
        return math.nan if self.infeasible else sum(self.values) / len(self.values)


@dataclass(frozen=True)
class OverlayLine:
    """One group by base_lr, ascending.

    lr_star   nan if every base_lr has an infeasible seed
    optimum   of the smooth curve through the values, and the objective there; where lines are batch
              sizes and it is known
    joined    whether a line joins the points: they differ in base_lr alone, or each is the best of
              several configurations
    """

    group: Group
    lr_star: float
    points: tuple[Repeated, ...]
    optimum: tuple[Known, float] | None = None
    joined: bool = True


@dataclass(frozen=True)
class OverlayInfo:
    """An overlay as plain data: the lines of a batch size and optimizer share a panel.

    by_batch_size  whether lines are batch sizes: those of an optimizer and scientific values then
                   share a panel
    y_range        from the best side to the worst: lowest and highest value of a trial that
                   trained, or highest and lowest if the objective is maximized
    seeds          the most that any configuration has
    outdone        trials of configurations that another one of their group outdid at the same
                   base_lr
    crashed        trials that are no evidence
    """

    objective: str
    log_y: bool
    y_range: tuple[float, float]
    seeds: int
    lines: tuple[OverlayLine, ...]
    outdone: int = 0
    crashed: int = 0
    by_batch_size: bool = False

    def in_words(self) -> str:
        """The figure in a sentence: lr_star of each line, or its optimum, and its value there."""
        return in_one_sentence(f"best {self.objective} against base_lr", map(_in_words, self.lines))

    def choice(self, line: OverlayLine) -> tuple[tuple[str, Any], ...]:
        """Names and values that tell a line from others of its panel."""
        own = line.group
        return (("batch size", own.batch_size),) if self.by_batch_size else own.scientific

    @property
    def panels(self) -> dict[Group, tuple[tuple[int, int], str]]:
        """(row, column) and title of the panel of each group."""
        groups = [line.group for line in self.lines]
        if self.by_batch_size:
            titles = {group: group.label.partition(", ")[2] for group in groups}
            own = list(dict.fromkeys(titles.values()))
            places = in_panels(len(own))
            return {group: (places[own.index(title)], title) for group, title in titles.items()}
        rows = sorted({group.optimizer for group in groups})
        columns = sorted({group.batch_size for group in groups})
        return {
            group: (
                (rows.index(group.optimizer) + 1, columns.index(group.batch_size) + 1),
                f"batch size {group.batch_size}, {group.optimizer}",
            )
            for group in groups
        }


def _in_words(line: OverlayLine) -> str:
    if line.optimum:
        at, value = line.optimum
        return f"{line.group.label}, {readable(value)} at an optimum of {at.in_words}"
    mean = next((point.mean for point in line.points if point.base_lr == line.lr_star), math.nan)
    if math.isnan(mean):
        return f"{line.group.label}, no feasible base_lr"
    return f"{line.group.label}, {readable(mean)} at lr_star = {readable(line.lr_star)}"


def comparable(trials: Iterable[Trial], scientific: Sequence[str]) -> bool:
    """Whether an overlay says something.

    It does if groups of a batch size and optimizer were tried at the same base LRs.
    """
    base_lrs: dict[tuple[int, str], list[set[float]]] = {}
    for group, own in group_trials(trials, scientific).items():
        tried = {trial.point.base_lr for trial in own}
        base_lrs.setdefault((group.batch_size, group.optimizer), []).append(tried)
    return "base_lr" not in scientific and all(
        len(groups) > 1 and len(groups[0]) > 1 and all(tried == groups[0] for tried in groups)
        for groups in base_lrs.values()
    )


def overlay_info(
    trials: Iterable[Trial],
    objective: str,
    scientific: Sequence[str],
    optima: Mapping[Group, Optimum] | None = None,
) -> OverlayInfo:
    """An overlay as plain data.

    Where a group has several configurations at a base_lr, the best of them is drawn (S7). With
    `optima` of groups, lines are batch sizes.
    """
    trials = list(trials)
    maximize = any(trial.maximize for trial in trials)
    ranked = [trial.best_value for trial in trials if has_value(trial)]
    log_y, low, high = scale(ranked, maximize)
    lines, drawn = [], 0
    for group, own in group_trials(trials, scientific).items():
        best = _best_by_base_lr(own)
        drawn += sum(map(len, best))
        points = []
        for seeds in best:
            values = tuple(trial.best_value for trial in seeds if has_value(trial))
            points.append(Repeated(seeds[0].point.base_lr, values, len(seeds) - len(values)))
        star = star_of(own)
        lines.append(
            OverlayLine(
                group,
                star.lr_star if star else math.nan,
                tuple(points),
                _marked(group, (optima or {}).get(group), maximize),
                optima is None or _is_line(own, best),
            )
        )
    crashed = sum(trial.verdict.crashed for trial in trials)
    return OverlayInfo(
        objective=objective,
        log_y=log_y,
        y_range=(low, high),
        seeds=max((len(seeds) for seeds in repetitions(trials)), default=1),
        lines=tuple(lines),
        outdone=len(trials) - crashed - drawn,
        crashed=crashed,
        by_batch_size=optima is not None,
    )


def _marked(group: Group, one: Optimum | None, maximize: bool) -> tuple[Known, float] | None:
    if one is None or one.where == "unknown":
        return None
    return Known(group.batch_size, one.base_lr, one.interval), cost(one.value, maximize)


def _is_line(trials: Sequence[Trial], best: Sequence[Sequence[Trial]]) -> bool:
    """Whether neighbours are alike but for base_lr, as far as they should be."""
    chosen = len(repetitions(trials)) > len(best)
    return chosen or set(varied_names(trials)) <= {"base_lr"}


def _best_by_base_lr(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The best configuration at each base_lr, ascending.

    Fewer infeasible seeds are better; then the mean decides.
    """

    def worth(seeds: list[Trial]) -> tuple[int, float]:
        return sum(not has_value(trial) for trial in seeds), mean_cost(seeds)

    best: dict[float, list[Trial]] = {}
    for seeds in sorted(repetitions(trials), key=worth):
        best.setdefault(seeds[0].point.base_lr, seeds)
    return [best[base_lr] for base_lr in sorted(best)]


# --- drawing --------------------------------------------------------------------------------------


def overlay_figure(info: OverlayInfo) -> go.Figure:
    """The figure: lines through means, small marks for seeds, crosses for seeds that failed."""
    panels = sorted(set(info.panels.values()))
    places = {group: place for group, (place, _) in info.panels.items()}
    mark = (
        "diamond: optimum of the smooth curve, with its 95 % interval"
        if info.by_batch_size
        else "star: lr_star"
    )
    names = SEPARATOR.join(name for name, _ in info.choice(info.lines[0]))
    figure = panel_figure(
        f"Best {escape(info.objective)} against base_lr, by {escape(names)}",
        f"line: mean over seeds; {mark}; a cross on the rail: a seed that did not train; the line "
        "ends there",
        {place: panel_title(title, "") for place, title in panels},
    )
    choices = dict.fromkeys(map(info.choice, info.lines))
    styles = {choice: style for style, choice in enumerate(choices)}
    shades = colours([dict(choice) for choice in styles])
    head = (
        HEAD + RAIL_ROW * (len(styles) + 1)
        if any(p.infeasible for line in info.lines for p in line.points)
        else HEAD
    )
    named: set[int] = set()
    for line in info.lines:
        style, (row, column) = styles[info.choice(line)], places[line.group]
        for trace in _traces(line, info, style, shades[style]):
            trace.showlegend = trace.showlegend and style not in named
            figure.add_trace(trace, row=row, col=column)
        named.add(style)
    _draw_axes(figure, info, places, head)
    footnote(figure, _footnote(info))
    right_legend(figure, names)
    return settled(figure)


def _traces(line: OverlayLine, info: OverlayInfo, style: int, colour: str) -> list[go.Scatter]:
    low, high = info.y_range
    rail = at_height(HEAD + RAIL_ROW * (style + 1), low, high, info.log_y)
    symbol, name = SYMBOLS[style % len(SYMBOLS)], escape(scientific_label(info.choice(line)))
    shared: dict[str, Any] = {"legendgroup": str(style), "showlegend": False, "cliponaxis": False}
    means = go.Scatter(
        x=[point.base_lr for point in line.points],
        y=[point.mean for point in line.points],
        mode="lines+markers" if line.joined else "markers",
        line={"color": colour, "width": 2.5},
        marker={"symbol": symbol, "size": 7, "color": colour},
        name=name,
        hovertemplate=f"{name}<br>base_lr %{{x:.3g}}, mean %{{y:.3g}}<extra></extra>",
        **shared | {"showlegend": True},
    )
    runs = [(point.base_lr, value) for point in line.points for value in point.values]
    seeds = go.Scatter(
        x=[base_lr for base_lr, _ in runs],
        y=[value for _, value in runs],
        mode="markers",
        marker={"symbol": symbol, "size": 5, "color": colour, "opacity": 0.45},
        hovertemplate=f"{name}<br>base_lr %{{x:.3g}}, one seed %{{y:.3g}}<extra></extra>",
        **shared,
    )
    infeasible = [x for point in line.points for x in _side_by_side(point, line)]
    crosses = go.Scatter(
        x=infeasible,
        y=[rail] * len(infeasible),
        mode="markers",
        marker={"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": colour}},
        hovertemplate=f"{name}<br>base_lr %{{x:.3g}}: infeasible<extra></extra>",
        **shared,
    )
    ways = _ways_out(line, rail, colour, shared) if line.joined else []
    best = _optimum(line, name, colour) if info.by_batch_size else [_star(line, name, colour)]
    for trace in best:
        trace.update(shared)
    return [seeds, means, *ways, crosses, *best]


def _star(line: OverlayLine, name: str, colour: str) -> go.Scatter:
    stars = [point for point in line.points if point.base_lr == line.lr_star]
    return go.Scatter(
        x=[point.base_lr for point in stars],
        y=[point.mean for point in stars],
        mode="markers",
        marker={
            "symbol": "star",
            "size": 17,
            "color": colour,
            "line": {"width": 1, "color": "white"},
        },
        hovertemplate=f"{name}<br>lr_star %{{x:.3g}}, mean %{{y:.3g}}<extra></extra>",
    )


def _optimum(line: OverlayLine, name: str, colour: str) -> list[go.Scatter]:
    """A diamond at the optimum, and a bar over its interval, within what was tried."""
    if line.optimum is None:
        return []
    at, value = line.optimum
    tried = line.points[0].base_lr, line.points[-1].base_lr
    ends = [min(max(end, tried[0]), tried[1]) for end in at.interval]
    bar = go.Scatter(
        x=ends,
        y=[value, value],
        mode="lines",
        line={"color": colour, "width": 5},
        opacity=0.5,
        hoverinfo="skip",
    )
    mark = go.Scatter(
        x=[at.value],
        y=[value],
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 13,
            "color": colour,
            "line": {"width": 1.5, "color": "white"},
        },
        hovertemplate=f"{name}<br>optimum {at.in_words}, %{{y:.3g}}<extra></extra>",
    )
    return [bar, mark]


def _side_by_side(point: Repeated, line: OverlayLine) -> list[float]:
    """A place for each infeasible seed at one base_lr, close to it on a log axis."""
    rates = [other.base_lr for other in line.points]
    step = (rates[-1] / rates[0]) ** (SPREAD / max(len(rates) - 1, 1))
    return [
        point.base_lr * step ** (2 * i - (point.infeasible - 1)) for i in range(point.infeasible)
    ]


def _ways_out(
    line: OverlayLine, rail: float, colour: str, shared: dict[str, Any]
) -> list[go.Scatter]:
    """Dotted lines from a mean to the rail, where the next base_lr has an infeasible seed."""
    return [
        go.Scatter(
            x=[point.base_lr, following.base_lr],
            y=[point.mean, rail],
            mode="lines",
            line={"color": colour, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
            **shared,
        )
        for point, following in zip(line.points, line.points[1:], strict=False)
        if not point.infeasible and following.infeasible
    ]


def _draw_axes(
    figure: go.Figure, info: OverlayInfo, places: dict[Group, tuple[int, int]], head: float
) -> None:
    figure.update_yaxes(**value_axis(info.y_range, info.log_y, head))
    for row, column in set(places.values()):
        own = [line for line in info.lines if places[line.group] == (row, column)]
        compared = own if info.by_batch_size else info.lines
        rates = [point.base_lr for line in compared for point in line.points]
        margin = (max(rates) / min(rates)) ** 0.05
        x_axis = log_axis(min(rates) / margin, max(rates) * margin)
        figure.update_xaxes(row=row, col=column, **x_axis)
    figure.update_yaxes(title_text=f"best {escape(info.objective)}")
    figure.update_xaxes(title_text="base_lr")
    if head == HEAD:
        return
    turned = is_turned(info.y_range)
    for row, column in set(places.values()):
        figure.add_shape(
            type="rect",
            x0=0,
            x1=1,
            y0=in_panel(HEAD, head, turned),
            y1=0 if turned else 1,
            fillcolor=MUTED,
            opacity=0.08,
            line_width=0,
            layer="below",
            row=row,
            col=column,
            xref="x domain",
            yref="y domain",
        )
        figure.add_annotation(
            name=RAIL_NAME,
            text="infeasible",
            y=in_panel(head - RAIL_ROW / 2, head, turned),
            xanchor="left",
            yanchor="middle",
            showarrow=False,
            font={"color": MUTED},
            row=row,
            col=column,
            xref="x domain",
            yref="y domain",
        )


def _footnote(info: OverlayInfo) -> str:
    trials = sum(
        len(point.values) + point.infeasible for line in info.lines for point in line.points
    )
    notes = [f"{trials} trials, {info.seeds} seed{'s' * (info.seeds > 1)} per line and base_lr"]
    if info.outdone:
        notes.append(
            f"at each base_lr the best configuration, {info.outdone} trials of others not drawn"
        )
    if info.crashed:
        notes.append(f"{info.crashed} crashed trials not drawn")
    if not all(line.joined for line in info.lines):
        notes.append("no line where other hyperparameters differ from mark to mark")
    if info.by_batch_size:
        return "; ".join(notes) + "."
    stars = (
        f"{scientific_label(info.choice(line))}: lr_star = {readable(line.lr_star)}"
        for line in info.lines
    )
    return "; ".join(notes) + ". " + "; ".join(stars) + "."
