"""Baseline and candidates: the value of every run (S9), and the best of n trials (S12)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from ...judge.best_of import BAND, BestOf
from ...judge.comparison import Comparison
from ...words import better_side, readable
from .arrange import settled
from .axis import HEAD, is_turned, scale, value_axis
from .style import INK, PALETTE, escape, log_axis, panel_figure, panel_title, right_legend

BAND_OPACITY = 0.15
SPREAD = 0.25  # of a side's column: how far apart the marks of its runs stand


@dataclass(frozen=True)
class VersusSide:
    """One side: the value of each run, and the best-of-n curve of its search, if it has one."""

    name: str
    values: tuple[float, ...]
    best_of: BestOf | None


@dataclass(frozen=True)
class VersusInfo:
    """A comparison as plain data.

    `checkpoint` is the baseline's value, `y_range` spans all that is drawn, from the best side to
    the worst.
    """

    objective: str
    checkpoint: float
    sides: tuple[VersusSide, ...]
    log_y: bool
    y_range: tuple[float, float]


def versus_info(result: Comparison) -> VersusInfo:
    """What the figure shows: the retrained baseline first, if there is one, then the candidates."""
    sides = [VersusSide(name, side.values, side.best_of) for name, side in result.sides]
    drawn = [result.checkpoint.value, *(value for side in sides for value in _drawn(side))]
    log_y, low, high = scale(drawn, result.maximize)
    return VersusInfo(result.objective, result.checkpoint.value, tuple(sides), log_y, (low, high))


def _drawn(side: VersusSide) -> Iterable[float]:
    yield from side.values
    if side.best_of:
        yield from side.best_of.low
        yield from side.best_of.high


def versus_figure(info: VersusInfo) -> go.Figure:
    """The figure: marks for runs, a line for their mean, curves with bands.

    The checkpoint is a dashed line.
    """
    titles = {(1, 1): panel_title("Runs with fresh seeds", "each mark a run, the line their mean")}
    curves = any(side.best_of for side in info.sides)
    if curves:
        note = f"mean, and {BAND[0]:.0%} to {BAND[1]:.0%} of samples"
        titles[1, 2] = panel_title("Best of n trials of the search", note)
    figure = panel_figure(
        f"{escape(info.objective)} against the baseline",
        f"dashed: the baseline's checkpoint, {readable(info.checkpoint)}; "
        f"{better_side(is_turned(info.y_range))}",
        titles,
    )
    for place, side in enumerate(info.sides):
        colour = PALETTE[place % len(PALETTE)]
        for trace in _run_traces(place, side, colour):
            figure.add_trace(trace, row=1, col=1)
        for trace in _curve_traces(side, colour) if side.best_of else ():
            figure.add_trace(trace, row=1, col=2)
    figure.add_hline(info.checkpoint, line={"color": INK, "width": 1.5, "dash": "dash"})
    figure.update_yaxes(**value_axis(info.y_range, info.log_y, HEAD))
    figure.update_yaxes(title_text=escape(info.objective))
    figure.update_xaxes(col=1, range=[-0.5, len(info.sides) - 0.5], tickvals=[], showgrid=False)
    if curves:
        most = max(len(side.best_of.mean) for side in info.sides if side.best_of)
        figure.update_xaxes(col=2, title_text="n", **log_axis(0.95, most * 1.05, marked=(1, most)))
    right_legend(figure, "side")
    return settled(figure)


def _run_traces(place: int, side: VersusSide, colour: str) -> list[go.Scatter]:
    count, name = len(side.values), escape(side.name)
    shared = {"legendgroup": side.name, "name": name}
    runs = go.Scatter(
        x=[place + SPREAD * (2 * i / (count - 1) - 1) for i in range(count)],
        y=list(side.values),
        mode="markers",
        marker={"size": 6, "color": colour, "opacity": 0.7},
        hovertemplate=f"{name}<br>run %{{pointNumber}}: %{{y:.3g}}<extra></extra>",
        showlegend=False,
        **shared,
    )
    mean = go.Scatter(
        x=[place - SPREAD, place + SPREAD],
        y=[fmean(side.values)] * 2,
        mode="lines",
        line={"color": colour, "width": 2.5},
        hovertemplate=f"{name}<br>mean %{{y:.3g}}<extra></extra>",
        **shared,
    )
    return [runs, mean]


def _curve_traces(side: VersusSide, colour: str) -> list[go.Scatter]:
    assert side.best_of is not None  # the caller looks
    counts = list(range(1, len(side.best_of.mean) + 1))
    shade = ", ".join(map(str, hex_to_rgb(colour)))
    band = go.Scatter(
        x=counts + counts[::-1],
        y=[*side.best_of.low, *side.best_of.high[::-1]],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=f"rgba({shade}, {BAND_OPACITY})",
        hoverinfo="skip",
        legendgroup=side.name,
        showlegend=False,
    )
    mean = go.Scatter(
        x=counts,
        y=list(side.best_of.mean),
        mode="lines",
        line={"color": colour, "width": 2.5},
        hovertemplate=f"{escape(side.name)}<br>best of %{{x}}: %{{y:.3g}}<extra></extra>",
        legendgroup=side.name,
        showlegend=False,
    )
    return [band, mean]
