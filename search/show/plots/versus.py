"""Baseline and candidates: every run, the gain (S9), and the best of n trials (S12)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from ...judge.best_of import BAND, BestOf
from ...judge.comparison import Comparison
from ...words import better_side, readable
from .arrange import settled
from .axis import HEAD, is_turned, scale, value_axis
from .style import (
    INK,
    MUTED,
    PALE,
    PALETTE,
    escape,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    right_legend,
)

BAND_OPACITY = 0.15
SPREAD = 0.25  # of a side's column: how far apart the marks of its runs stand
GAIN_MARGIN = 0.15  # above and below, of the range of gains; their texts stand beside them


@dataclass(frozen=True)
class VersusSide:
    """One side: the value of each run, and the best-of-n curve of its search, if it has one."""

    name: str
    values: tuple[float, ...]
    best_of: BestOf | None


@dataclass(frozen=True)
class Gain:
    """By how much a candidate is better, with its 95 % interval; `side` is its place among all."""

    side: int
    gain: float
    interval: tuple[float, float]

    def in_words(self) -> str:
        low, high = map(readable, self.interval)
        return f"{'+' if self.gain > 0 else ''}{readable(self.gain)} ({low} to {high})"


@dataclass(frozen=True)
class VersusInfo:
    """A comparison as plain data.

    checkpoint   the baseline's value
    runs_range   spans the checkpoint and all runs, from the best side to the worst; `log_runs`
    y_range      spans the curves, too; `log_y`
    gains        of each candidate
    paired       runs at one place of every side have the same seed
    """

    objective: str
    checkpoint: float
    sides: tuple[VersusSide, ...]
    log_runs: bool
    runs_range: tuple[float, float]
    log_y: bool
    y_range: tuple[float, float]
    gains: tuple[Gain, ...]
    paired: bool

    def in_words(self) -> str:
        """The figure in a sentence: the gain of each candidate."""
        names = [side.name for side in self.sides]
        parts = [f"{names[one.side]}, gain {one.in_words()}" for one in self.gains]
        side = better_side(is_turned(self.y_range))
        runs = f"{self.objective} of each run"
        subject = f"{runs} against the baseline's {readable(self.checkpoint)}, {side}"
        return in_one_sentence(subject, parts)


def versus_info(result: Comparison) -> VersusInfo:
    """What the figure shows: the retrained baseline first, if there is one, then the candidates."""
    sides = [VersusSide(name, side.values, side.best_of) for name, side in result.sides]
    runs = [result.checkpoint.value, *(value for side in sides for value in side.values)]
    log_runs, *runs_range = scale(runs, result.maximize)
    drawn = runs + [value for side in sides for value in _curve_values(side)]
    log_y, low, high = scale(drawn, result.maximize)
    first = len(sides) - len(result.candidates)
    found = [one.evidence for one in result.candidates]
    return VersusInfo(
        objective=result.objective,
        checkpoint=result.checkpoint.value,
        sides=tuple(sides),
        log_runs=log_runs,
        runs_range=(runs_range[0], runs_range[1]),
        log_y=log_y,
        y_range=(low, high),
        gains=tuple(
            Gain(side, one.gain, one.gain_interval) for side, one in enumerate(found, start=first)
        ),
        paired=all(one.paired for one in found),
    )


def _curve_values(side: VersusSide) -> Iterable[float]:
    if side.best_of:
        yield from side.best_of.low
        yield from side.best_of.high


def versus_figure(info: VersusInfo) -> go.Figure:
    """The figure: a column of marks for the runs of each side; beside it the gains; below, curves.

    The checkpoint is a dashed line.
    """
    pairs = ", thin lines join runs of the same seed" if info.paired else ""
    titles = {
        (1, 1): panel_title("Runs with fresh seeds", f"each mark a run, the bar their mean{pairs}"),
        (1, 2): panel_title("Gain over the baseline", "mean and 95 % interval; above 0 is better"),
    }
    curves = any(side.best_of for side in info.sides)
    if curves:
        note = f"mean, and {BAND[0]:.0%} to {BAND[1]:.0%} of samples"
        titles[2, 1] = panel_title("Best of n trials of the search", note)
    figure = panel_figure(
        f"{escape(info.objective)} against the baseline",
        f"dashed: the baseline's checkpoint, {readable(info.checkpoint)}; "
        f"{better_side(is_turned(info.y_range))}",
        titles,
    )
    if info.paired:
        figure.add_trace(_pairs(info), row=1, col=1)
    for place, side in enumerate(info.sides):
        colour = PALETTE[place % len(PALETTE)]
        for trace in _run_traces(place, side, colour):
            figure.add_trace(trace, row=1, col=1)
        for trace in _curve_traces(side, colour) if side.best_of else ():
            figure.add_trace(trace, row=2, col=1)
    for gain in info.gains:
        figure.add_trace(_gain(gain, info), row=1, col=2)
    _draw_axes(figure, info, curves)
    right_legend(figure, "side")
    return settled(figure)


def _draw_axes(figure: go.Figure, info: VersusInfo, curves: bool) -> None:
    ends = [end for one in info.gains for end in one.interval] + [0.0]
    margin = GAIN_MARGIN * (max(ends) - min(ends)) or 1.0
    checkpoint = {"color": INK, "width": 1.5, "dash": "dash"}
    columns = {"tickvals": [], "showgrid": False}
    figure.update_xaxes(title_text="side")
    figure.update_xaxes(row=1, col=1, range=[-0.5, len(info.sides) - 0.5], **columns)
    figure.update_xaxes(row=1, col=2, range=[-0.6, len(info.gains) - 0.4], **columns)
    figure.update_yaxes(title_text=escape(info.objective))
    figure.update_yaxes(row=1, col=1, **value_axis(info.runs_range, info.log_runs, HEAD))
    figure.update_yaxes(
        row=1, col=2, range=[min(ends) - margin, max(ends) + margin], title_text="gain"
    )
    figure.add_hline(0, line={"color": MUTED, "width": 1.5}, row=1, col=2)
    figure.add_hline(info.checkpoint, line=checkpoint, row=1, col=1)
    if curves:
        most = max(len(side.best_of.mean) for side in info.sides if side.best_of)
        figure.update_yaxes(row=2, col=1, **value_axis(info.y_range, info.log_y, HEAD))
        figure.update_xaxes(
            row=2, col=1, title_text="n", **log_axis(0.95, most * 1.05, marked=(1, most))
        )
        figure.add_hline(info.checkpoint, line=checkpoint, row=2, col=1)


def _across(place: int, count: int) -> list[float]:
    """Where the runs of a side stand, by their seeds."""
    return [place + SPREAD * (2 * i / max(count - 1, 1) - 1) for i in range(count)]


def _pairs(info: VersusInfo) -> go.Scatter:
    """A line through the runs of every seed, from side to side."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    counts = [len(side.values) for side in info.sides]
    for run in range(min(counts)):
        xs += [*(_across(place, count)[run] for place, count in enumerate(counts)), None]
        ys += [*(side.values[run] for side in info.sides), None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"color": PALE, "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )


def _gain(one: Gain, info: VersusInfo) -> go.Scatter:
    """A large mark with its interval, and the numbers beside it."""
    side, (low, high) = info.sides[one.side], one.interval
    colour = PALETTE[one.side % len(PALETTE)]
    return go.Scatter(
        x=[one.side - info.gains[0].side],
        y=[one.gain],
        error_y={
            "array": [high - one.gain],
            "arrayminus": [one.gain - low],
            "color": colour,
            "thickness": 4,
            "width": 12,
        },
        mode="markers+text",
        marker={"size": 16, "color": colour, "symbol": "diamond"},
        text=[f"<b>{'+' if one.gain > 0 else ''}{readable(one.gain)}</b>"],
        textfont={"size": 16},
        textposition="middle right",
        cliponaxis=False,
        legendgroup=side.name,
        showlegend=False,
        hovertemplate=f"{escape(side.name)}<br>gain {one.in_words()}<extra></extra>",
    )


def _run_traces(place: int, side: VersusSide, colour: str) -> list[go.Scatter]:
    name = escape(side.name)
    shared: dict[str, Any] = {"legendgroup": side.name, "name": name}
    runs = go.Scatter(
        x=_across(place, len(side.values)),
        y=list(side.values),
        mode="markers",
        marker={"size": 8, "color": colour, "opacity": 0.8},
        hovertemplate=f"{name}<br>run %{{pointNumber}}: %{{y:.3g}}<extra></extra>",
        showlegend=False,
        **shared,
    )
    mean = go.Scatter(
        x=[place - SPREAD, place + SPREAD],
        y=[fmean(side.values)] * 2,
        mode="lines",
        line={"color": colour, "width": 3},
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
