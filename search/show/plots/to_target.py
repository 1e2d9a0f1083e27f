"""Updates to a target against the batch size, and where a larger batch stops to pay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ...judge.comparison import Interval
from ...judge.scaled import ScalingReport, ScalingTold
from ...judge.targets import StepsToTarget
from ...words import readable
from .arrange import settled
from .batch_sizes import Known, around, in_panels, intervals, reach, size_axis, tinted
from .style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    VERMILLION,
    escape,
    footnote,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    right_legend,
)

CURVE_POINTS = 33
UPDATES, FIT, KNEE, PERFECT, NEVER = (
    "updates",
    "fit",
    "critical batch size",
    "perfect scaling, 1/B",
    "not reached",
)


@dataclass(frozen=True)
class TargetPanel:
    """One optimizer and scientific value.

    reached     updates to the target by batch size; not_reached: batch sizes that do not reach it
    perfect     (batch size, updates): the first one that reaches it, and where halving the updates
                with every doubling leads; empty if none does
    curve       S = S_min (1 + B_crit / B); empty where B_crit is not known
    critical    nan if not fitted; 0 or inf: below or beyond the batch sizes
    interval    of it; an end is 0 or inf likewise
    """

    label: str
    target: float
    reached: tuple[Known, ...]
    not_reached: tuple[int, ...]
    perfect: tuple[tuple[float, float], ...]
    curve: tuple[tuple[float, float], ...]
    critical: float
    interval: Interval
    note: str


@dataclass(frozen=True)
class TargetInfo:
    """The figure as plain data. `without` are the groups for which no target could be chosen."""

    objective: str
    sizes: tuple[int, ...]
    panels: tuple[TargetPanel, ...]
    without: tuple[str, ...]

    def in_words(self) -> str:
        """The figure in a sentence: each panel's updates, and the critical batch size."""
        parts = []
        for panel in self.panels:
            own = [f"{one.in_words} at B = {one.batch_size}" for one in panel.reached]
            own += [f"not reached at B = {size}" for size in panel.not_reached]
            parts.append(", ".join([panel.label, panel.note, *own]))
        return in_one_sentence("updates to a target against the batch size", parts)


def target_info(report: ScalingReport) -> TargetInfo:
    """What the figure shows: a panel per group that has a target."""
    sizes = {one.batch_size for told in report.groups for one in told.sizes}
    panels = [
        _panel(told, told.targets, report.objective) for told in report.groups if told.targets
    ]
    without = tuple(told.label for told in report.groups if not told.targets)
    return TargetInfo(report.objective, tuple(sorted(sizes)), tuple(panels), without)


def _panel(told: ScalingTold, found: StepsToTarget, objective: str) -> TargetPanel:
    sizes = [one.batch_size for one in found.reached]
    there = [one for one in found.reached if math.isfinite(one.updates)]
    first, largest = there[0] if there else None, max(sizes)
    perfect = (first.batch_size, largest) if first else ()
    drawn = np.geomspace(min(sizes), largest, CURVE_POINTS).tolist() if found.is_known else ()
    note = f"{objective} {readable(found.target)}"
    reached = [Known(one.batch_size, one.updates, one.interval) for one in there]
    not_reached = [one.batch_size for one in found.reached if one not in there]
    guide = [(float(size), first.examples / size) for size in perfect if first]
    return TargetPanel(
        label=told.label,
        target=found.target,
        reached=tuple(reached),
        not_reached=tuple(not_reached),
        perfect=tuple(guide),
        curve=tuple((size, found.updates_at(size)) for size in drawn),
        critical=found.critical,
        interval=found.interval,
        note=f"{note}: {found.words}" if found.words else note,
    )


# --- drawing --------------------------------------------------------------------------------------


def target_figure(info: TargetInfo) -> go.Figure:
    """The figure: dots with their intervals, the guide 1/B, the fit, and its knee with a band."""
    places = in_panels(len(info.panels))
    figure = panel_figure(
        f"Updates until {escape(info.objective)} reaches a target",
        "at the base_lr that reaches it soonest; bars: 95 % intervals",
        {
            place: panel_title(panel.label, escape(panel.note))
            for place, panel in zip(places, info.panels, strict=True)
        },
    )
    x_axis = size_axis(info.sizes)
    named: set[str] = set()
    for (row, column), panel in zip(places, info.panels, strict=True):
        ends = _range(panel)
        traces = [*_knee(panel, x_axis["range"], ends), *_curves(panel), *_dots(panel, ends)]
        for trace in traces:
            trace.showlegend = bool(trace.name) and trace.name not in named
            named.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
        figure.update_yaxes(row=row, col=column, **log_axis(*ends))
    figure.update_xaxes(title_text="batch size B", **x_axis)
    figure.update_yaxes(title_text="updates")
    without = ", ".join(info.without)
    footnote(figure, escape(f"No target could be chosen: {without}." if without else ""))
    right_legend(figure, "")
    return settled(figure)


def _range(panel: TargetPanel) -> tuple[float, float]:
    lines = [*panel.perfect, *panel.curve]
    return around(reach(panel.reached) + [updates for _, updates in lines] or [1.0])


def _dots(panel: TargetPanel, ends: tuple[float, float]) -> list[go.Scatter]:
    dots = go.Scatter(
        x=[one.batch_size for one in panel.reached],
        y=[one.value for one in panel.reached],
        mode="markers",
        marker={"size": 9, "color": BLUE},
        name=UPDATES,
        legendgroup=UPDATES,
        hovertext=list(map(_hover, panel.reached)),
        hoverinfo="text",
    )
    never = go.Scatter(
        x=list(panel.not_reached),
        y=[ends[1]] * len(panel.not_reached),
        mode="markers",
        marker={"symbol": "x-thin", "size": 10, "line": {"width": 2, "color": VERMILLION}},
        name=NEVER,
        cliponaxis=False,
        hovertemplate="B = %{x}: not reached<extra></extra>",
    )
    bars = intervals(panel.reached, BLUE, legendgroup=UPDATES)
    return [*bars, dots, *[never] * bool(panel.not_reached)]


def _hover(one: Known) -> str:
    examples = readable(float(one.batch_size * one.value))
    return f"B = {escape(one.batch_size)}: {one.in_words} updates<br>{examples} examples"


def _curves(panel: TargetPanel) -> list[go.Scatter]:
    lines = (
        (panel.perfect, PERFECT, {"color": MUTED, "width": 1.5, "dash": "dash"}),
        (panel.curve, FIT, {"color": INK, "width": 2}),
    )
    curves = []
    for line, name, look in lines:
        sizes, updates = zip(*line, strict=True) if line else ((), ())
        curves.append(
            go.Scatter(
                x=sizes,
                y=updates,
                mode="lines",
                line=look,
                name=name,
                hovertemplate=f"{name}: B = %{{x:.4g}}, %{{y:.3g}} updates<extra></extra>",
            )
        )
    return [curve for curve in curves if curve.x]


def _knee(
    panel: TargetPanel, x_range: Sequence[float], ends: tuple[float, float]
) -> list[go.Scatter]:
    """The interval of the critical batch size as a band, and that itself as a line with its name.

    An end that is not known is the border of the panel.
    """
    if math.isnan(panel.critical):
        return []
    border = [10**end for end in x_range]
    low, high = (min(max(end, border[0]), border[1]) for end in panel.interval)
    shared = {"mode": "lines", "hoverinfo": "skip", "legendgroup": KNEE}
    line = 0 < panel.critical < math.inf
    found = [
        go.Scatter(
            x=[low, low, high, high],
            y=[ends[0], ends[1], ends[1], ends[0]],
            line={"width": 0},
            fill="toself",
            fillcolor=tinted(ORANGE),
            name="" if line else KNEE,
            **shared,
        )
    ]
    if line:
        left = panel.critical > math.sqrt(border[0] * border[1])
        found.append(
            go.Scatter(
                x=[panel.critical] * 2,
                y=list(ends),
                line={"color": ORANGE, "width": 2},
                text=["", f" B = {readable(float(f'{panel.critical:.2g}'))} "],
                textposition="bottom left" if left else "bottom right",
                name=KNEE,
                **shared | {"mode": "lines+text"},
            )
        )
    return found
