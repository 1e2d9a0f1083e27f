"""What may change with the batch size, usable decades among it, each with its straight line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import plotly.graph_objects as go

from ...judge.scaled import ScalingReport
from ...judge.trends import Direction, Trend
from .arrange import settled
from .batch_sizes import MARGIN, size_axis
from .overlay import SYMBOLS
from .style import (
    PALETTE,
    escape,
    in_one_sentence,
    panel_figure,
    panel_title,
    right_legend,
)


@dataclass(frozen=True)
class TrendLine:
    """One group in a panel.

    place    of the group among all
    values   (batch size, value), ascending
    line     both ends of the straight line; empty if its slope is not known
    words    whether it changes, with the interval of the slope
    """

    place: int
    values: tuple[tuple[int, float], ...]
    line: tuple[tuple[float, float], ...]
    answer: Direction
    words: str


@dataclass(frozen=True)
class TrendsInfo:
    """The figure as plain data: a panel per quantity that is known at some batch size."""

    sizes: tuple[int, ...]
    groups: tuple[str, ...]
    panels: tuple[tuple[str, tuple[TrendLine, ...]], ...]

    def in_words(self) -> str:
        """The figure in a sentence: whether each quantity changes."""
        return in_one_sentence("what changes with the batch size", _words(self))


def trends_info(report: ScalingReport) -> TrendsInfo:
    """What the figure shows."""
    sizes = {one.batch_size for told in report.groups for one in told.sizes}
    panels: dict[str, list[TrendLine]] = {}
    for place, told in enumerate(report.groups):
        for trend in told.trends:
            if trend.values:
                panels.setdefault(trend.name, []).append(_line(place, trend))
    return TrendsInfo(
        sizes=tuple(sorted(sizes)),
        groups=tuple(told.label for told in report.groups),
        panels=tuple((name, tuple(lines)) for name, lines in panels.items()),
    )


def _line(place: int, trend: Trend) -> TrendLine:
    """The line of least squares passes through the means."""
    line: tuple[tuple[float, float], ...] = ()
    if math.isfinite(trend.slope):
        logs = [math.log10(size) for size, _ in trend.values]
        middle, level = fmean(logs), fmean(value for _, value in trend.values)
        ends = trend.values[0][0], trend.values[-1][0]
        line = tuple(
            (float(size), level + trend.slope * (math.log10(size) - middle)) for size in ends
        )
    return TrendLine(place, trend.values, line, trend.answer, trend.words)


def _words(info: TrendsInfo) -> list[str]:
    many = len(info.groups) > 1
    return [
        (f"{info.groups[one.place]}, " if many else "") + one.words
        for _, lines in info.panels
        for one in lines
    ]


# --- drawing --------------------------------------------------------------------------------------


def trends_figure(info: TrendsInfo) -> go.Figure:
    """The figure: a colour per group; a line is dashed where no change is shown."""
    figure = panel_figure(
        "What changes with the batch size",
        "lines: least squares; dashed where no change is shown, with 95 % confidence",
        {(1, place): panel_title(name, "") for place, (name, _) in enumerate(info.panels, start=1)},
    )
    named: set[int] = set()
    for column, (_, lines) in enumerate(info.panels, start=1):
        for one in lines:
            for trace in _traces(one, info.groups[one.place]):
                first = trace.mode == "markers" and one.place not in named
                trace.showlegend = first and len(info.groups) > 1
                figure.add_trace(trace, row=1, col=column)
            named.add(one.place)
        figure.update_yaxes(row=1, col=column, range=_range(lines))
    figure.update_xaxes(title_text="batch size B", **size_axis(info.sizes))
    right_legend(figure, "")
    return settled(figure)


def _range(lines: Sequence[TrendLine]) -> list[float]:
    values = [value for one in lines for _, value in [*one.values, *one.line]]
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return [low - margin, high + margin]


def _traces(one: TrendLine, label: str) -> list[go.Scatter]:
    colour, name = PALETTE[one.place % len(PALETTE)], escape(label)
    shared = {"name": name, "legendgroup": name, "cliponaxis": False}
    marks = go.Scatter(
        x=[size for size, _ in one.values],
        y=[value for _, value in one.values],
        mode="markers",
        marker={"symbol": SYMBOLS[one.place % len(SYMBOLS)], "size": 9, "color": colour},
        hovertemplate=f"{name}<br>B = %{{x}}: %{{y:.3g}}<extra></extra>",
        **shared,
    )
    dash = "dash" if one.answer == "not shown" else "solid"
    line = go.Scatter(
        x=[size for size, _ in one.line],
        y=[value for _, value in one.line],
        mode="lines",
        line={"color": colour, "width": 2, "dash": dash},
        hoverinfo="skip",
        **shared,
    )
    return [line, marks] if one.line else [marks]
