"""Base LR against the batch size: optimum and edge of stability, laws through them, predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ...judge.comparison import Interval
from ...judge.laws import Prediction
from ...judge.scaled import ScalingReport, ScalingTold
from ...judge.scaling import Exponent
from .arrange import settled
from .batch_sizes import (
    Known,
    around,
    band,
    in_panels,
    intervals,
    of_equal_decades,
    reach,
    size_axis,
)
from .style import (
    BLUE,
    GREEN,
    MUTED,
    VERMILLION,
    escape,
    footnote,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    right_legend,
)

GUIDES = ((0.5, "√B"), (1.0, "B"))  # exponents of rules of thumb, and what they are called
EDGE_WIDTH = 6  # pixels: of the bar between what trains and what does not
OPTIMUM, LAW, STAR, EDGE, EDGE_LAW, ASKED = (
    "optimal base_lr",
    "its law",
    "lr_star",
    "edge of stability",
    "its power law",
    "predicted",
)


@dataclass(frozen=True)
class LawPanel:
    """One optimizer and scientific value.

    optima       of smooth curves, by batch size; bounds among them
    stars        (batch size, lr_star)
    edges        the largest base LR that trains and the lowest that does not; the value is their
                 middle, or the one that is known
    law, edge_law   both laws, over the batch sizes that they are fitted to; empty if there is none
    asked        predictions at batch sizes that were asked for, ascending
    extrapolated the law from an end of these batch sizes to those that were asked beyond it, at
                 most two stretches
    note         both exponents in words
    """

    label: str
    optima: tuple[Known, ...]
    stars: tuple[tuple[int, float], ...]
    edges: tuple[Known, ...]
    law: tuple[Known, ...]
    edge_law: tuple[Known, ...]
    asked: tuple[Known, ...]
    extrapolated: tuple[tuple[Known, ...], ...]
    note: str

    @property
    def guides_from(self) -> tuple[float, float] | None:
        """Where the guides start: at the smallest batch size on the law, else on an optimum."""
        first = next(iter([*self.law, *self.optima, *self.edge_law, *self.edges]), None)
        return (first.batch_size, first.value) if first else None


@dataclass(frozen=True)
class LawInfo:
    """The figure as plain data; `sizes` are the batch sizes that were tried."""

    sizes: tuple[int, ...]
    panels: tuple[LawPanel, ...]

    def in_words(self) -> str:
        """The figure in a sentence: each panel's optima, and the exponents."""
        parts = []
        for panel in self.panels:
            optima = [f"{one.in_words} at B = {one.batch_size}" for one in panel.optima]
            told = ", ".join(optima) or "no optimum is known"
            parts.append(", ".join(filter(None, [f"{panel.label}, {told}", panel.note])))
        return in_one_sentence("optimal base_lr against the batch size", parts)


def law_info(report: ScalingReport) -> LawInfo:
    """What the figure shows: a panel per group."""
    sizes = {one.batch_size for told in report.groups for one in told.sizes}
    return LawInfo(tuple(sorted(sizes)), tuple(map(_panel, report.groups)))


def _panel(told: ScalingTold) -> LawPanel:
    law = _predicted(told.optimum_band)
    asked = sorted(told.predictions, key=lambda one: one.batch_size)
    beyond = _predicted(one for one in asked if one.extrapolated)
    stretches: list[list[Known]] = []
    if law:
        below = [one for one in beyond if one.batch_size < law[0].batch_size]
        above = [one for one in beyond if one.batch_size > law[-1].batch_size]
        stretches = [[*below, law[0]], [law[-1], *above]]
    optima = [
        Known(one.batch_size, one.optimum.base_lr, one.optimum.interval)
        for one in told.sizes
        if one.optimum.where != "unknown"
    ]
    edges = [
        Known(one.batch_size, _middle(one.edge), one.edge)
        for one in told.sizes
        if one.edge != (0.0, math.inf)
    ]
    stars = [(one.batch_size, one.lr_star) for one in told.sizes if math.isfinite(one.lr_star)]
    return LawPanel(
        label=told.label,
        optima=tuple(optima),
        stars=tuple(stars),
        edges=tuple(edges),
        law=tuple(law),
        edge_law=tuple(_predicted(told.edge_band)),
        asked=tuple(_predicted(asked)),
        extrapolated=tuple(tuple(one) for one in stretches if len(one) > 1),
        note=", ".join(filter(None, [_known("optimum", told.exponent), _known("edge", told.edge)])),
    )


def _predicted(found: Iterable[Prediction]) -> list[Known]:
    return [Known(one.batch_size, one.base_lr, one.interval) for one in found]


def _middle(edge: Interval) -> float:
    low, high = edge
    return math.sqrt(low * high) if low and math.isfinite(high) else low or high


def _known(name: str, exponent: Exponent | None) -> str:
    if exponent is None:
        return ""
    low, high = exponent.interval
    found = f"{name} ~ B^{exponent.value:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")
    return found + " but no power law holds" * exponent.fails


# --- drawing --------------------------------------------------------------------------------------


def law_figure(info: LawInfo) -> go.Figure:
    """The figure: blue the optimum, red the edge, bands their laws, hollow what was asked for.

    All panels span as many decades of base LR, so that the same slope looks the same.
    """
    places = in_panels(len(info.panels))
    figure = panel_figure(
        "Base LR against the batch size",
        "bars and bands: 95 % intervals, of the edge from what trains to what does not; an arrow: "
        "nothing bounds it; dashed: extrapolated",
        {
            place: panel_title(panel.label, panel.note)
            for place, panel in zip(places, info.panels, strict=True)
        },
    )
    ranges = of_equal_decades([_range(panel) for panel in info.panels])
    asked = [one.batch_size for panel in info.panels for one in panel.asked]
    named: set[str] = set()
    for (row, column), panel, ends in zip(places, info.panels, ranges, strict=True):
        for trace in _traces(panel, ends, max(info.sizes)):
            trace.showlegend = bool(trace.name) and trace.name not in named
            named.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
        figure.update_yaxes(row=row, col=column, **log_axis(*ends))
    figure.update_xaxes(title_text="batch size B", **size_axis(info.sizes, asked))
    figure.update_yaxes(title_text="base_lr")
    footnote(
        figure,
        "Dotted: where the rules of thumb √B and B (linear scaling) lead from the smallest batch "
        "size. lr_star is the lowest base_lr that is not shown to be worse than the best.",
    )
    right_legend(figure, "")
    return settled(figure)


def _range(panel: LawPanel) -> tuple[float, float]:
    curves = [*panel.law, *panel.edge_law]
    values = reach([*panel.optima, *panel.edges, *panel.asked])
    values += [one.value for one in curves] + [rate for _, rate in panel.stars]
    return around(values or [1.0])


def _traces(panel: LawPanel, ends: tuple[float, float], largest: int) -> list[go.Scatter]:
    found = _guides(panel, ends, largest)
    for name, colour, law in ((EDGE_LAW, VERMILLION, panel.edge_law), (LAW, BLUE, panel.law)):
        if law:
            found += [band(law, ends, colour, legendgroup=name), _line(law, name, colour)]
    for stretch in panel.extrapolated:
        found.append(band(stretch, ends, BLUE, legendgroup=LAW))
        found.append(_line(stretch, "", BLUE, dash="dash"))
    found += intervals(panel.edges, VERMILLION, EDGE_WIDTH, legendgroup=EDGE)
    found.append(_marks(panel.edges, EDGE, VERMILLION, "line-ew-open", size=16))
    found += intervals(panel.optima, BLUE, legendgroup=OPTIMUM)
    found.append(_marks(panel.optima, OPTIMUM, BLUE, "circle", size=9))
    if panel.asked:
        found += intervals(panel.asked, BLUE, 1, legendgroup=ASKED)
        found.append(_marks(panel.asked, ASKED, BLUE, "diamond-open", size=10))
    if panel.stars:
        stars = [Known(size, rate, (math.nan, math.nan)) for size, rate in panel.stars]
        found.append(_marks(stars, STAR, GREEN, "star", size=11))
    return found


def _marks(marks: Sequence[Known], name: str, colour: str, symbol: str, size: float) -> go.Scatter:
    return go.Scatter(
        x=[one.batch_size for one in marks],
        y=[one.value for one in marks],
        mode="markers",
        marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 2}},
        name=name,
        legendgroup=name,
        hovertext=[f"B = {escape(one.batch_size)}: {name} {one.in_words}" for one in marks],
        hoverinfo="text",
    )


def _line(law: Sequence[Known], name: str, colour: str, dash: str = "solid") -> go.Scatter:
    return go.Scatter(
        x=[one.batch_size for one in law],
        y=[one.value for one in law],
        mode="lines",
        line={"color": colour, "width": 2, "dash": dash},
        name=name,
        legendgroup=name or LAW,
        hovertemplate="B = %{x:.4g}: %{y:.3g}<extra></extra>",
    )


def _guides(panel: LawPanel, ends: tuple[float, float], largest: int) -> list[go.Scatter]:
    """Lines of slope ½ and 1 from the smallest batch size, up to the largest or the border."""
    if panel.guides_from is None:
        return []
    size, rate = panel.guides_from
    found = []
    for slope, label in GUIDES:
        last = min(float(largest), size * (ends[1] / rate) ** (1 / slope))
        look: dict[str, Any] = {"color": MUTED, "width": 1.5, "dash": "dot"}
        found.append(
            go.Scatter(
                x=[size, last],
                y=[rate, rate * (last / size) ** slope],
                mode="lines+text",
                line=look,
                text=["", label],
                textposition="bottom left",
                textfont={"color": MUTED},
                hoverinfo="skip",
            )
        )
    return found
