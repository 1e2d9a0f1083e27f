"""The edge of stability: how often training diverges at each base LR, and where half of it does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ...judge.analysis import group_trials, star_of
from ...judge.stability_edge import HALF, Tried, bracket, interval, probability, tries
from ...trial import Group, Trial
from ...words import readable
from .arrange import settled
from .style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    escape,
    footnote,
    in_grid,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    right_legend,
)

# trials: the interval of a single one is nearly all of 0 to 1, and a search has hundreds
FEWEST_FOR_A_BAR = 2
# pixels across for one trial, and at most; the area grows with the number of trials
DOT, LARGEST_DOT = 5.0, 16.0
FOOT, HEAD = -0.05, 1.17  # of the y axis; above 1 stands the bracket's label
LABEL_AT = 1.1
MARGIN = 0.06  # to the left and right, of the range of base LRs
LIMITS = (PURPLE, ORANGE, SKY)  # colours of the predicted limits, in the order they come


@dataclass(frozen=True)
class EdgePanel:
    """The edge of one group.

    tried      every base_lr with its judged trials, ascending
    fitted     (base_lr, P(diverge)) from lr_star on: what is infeasible far below it is too slow,
               not unstable
    bracket    where the fit passes 1/2: unstable_base_lr lies between; (…, inf) or (0, …) where it
               is open
    lr_star    nan if nothing is feasible
    limits     (label, base_lr) of what theory predicts; finite ones alone
    """

    group: Group
    tried: tuple[Tried, ...]
    fitted: tuple[tuple[float, float], ...]
    bracket: tuple[float, float]
    lr_star: float
    limits: tuple[tuple[str, float], ...] = ()

    @property
    def decades(self) -> float:
        """Width of the bracket; inf if it is open."""
        low, high = self.bracket
        return math.log10(high / low) if low else math.inf


@dataclass(frozen=True)
class EdgeInfo:
    """The edges as plain data, a panel per group with judged trials.

    `crashed` trials are no evidence.
    """

    panels: tuple[EdgePanel, ...]
    crashed: int

    def in_words(self) -> str:
        """The figure in a sentence: each panel's lr_star and where half of its trials diverge."""
        parts = [f"{panel.group.label}, {_note(panel)}" for panel in self.panels]
        trials = sum(one.trials for panel in self.panels for one in panel.tried)
        return in_one_sentence(f"how often training diverges, {trials} trials", parts)


def edge_info(
    trials: Iterable[Trial],
    scientific: Sequence[str] = (),
    limits: Mapping[Group, Mapping[str, float]] | None = None,
) -> EdgeInfo:
    """What the figure shows. `limits` are predicted base LRs by group and label."""
    trials, limits = list(trials), limits or {}
    panels = [
        edge_panel(group, tries(own), _star(own), limits.get(group, {}))
        for group, own in group_trials(trials, scientific).items()
    ]
    return EdgeInfo(
        panels=tuple(panel for panel in panels if panel.tried),
        crashed=sum(trial.verdict.crashed for trial in trials),
    )


def _star(trials: list[Trial]) -> float:
    star = star_of(trials)
    return star.lr_star if star else math.nan


def edge_panel(
    group: Group, tried: Sequence[Tried], lr_star: float, limits: Mapping[str, float]
) -> EdgePanel:
    """The edge of a group from its trials; limits that are nan or inf are not drawn."""
    # all of them, if nothing is feasible
    counted = [one for one in tried if not one.base_lr < lr_star]
    return EdgePanel(
        group=group,
        tried=tuple(tried),
        fitted=tuple(zip((one.base_lr for one in counted), probability(counted), strict=True)),
        bracket=bracket(counted),
        lr_star=lr_star,
        limits=tuple(
            (label, base_lr) for label, base_lr in limits.items() if math.isfinite(base_lr)
        ),
    )


# --- drawing --------------------------------------------------------------------------------------


def edge_figure(info: EdgeInfo) -> go.Figure:
    """The figure: dots with confidence bars, the fit, its bracket shaded, limits dashed."""
    places = in_grid(panel.group for panel in info.panels)
    figure = panel_figure(
        "How often training diverges against base_lr",
        (
            "dots: share of trials that were infeasible, larger for more trials; bars: 95 % "
            "confidence (Clopper–Pearson)"
        ),
        {
            places[panel.group]: panel_title(panel.group.label, _note(panel))
            for panel in info.panels
        },
    )
    labels = list(dict.fromkeys(label for panel in info.panels for label, _ in panel.limits))
    named: set[str] = set()
    for panel in info.panels:
        row, column = places[panel.group]
        low, high = _range([other for other in info.panels if places[other.group][0] == row])
        _draw_bracket(figure, panel, (low, high), {"row": row, "col": column})
        for trace in [*_verticals(panel, labels), _fit(panel), _dots(panel)]:
            trace.showlegend = trace.name not in named
            named.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
        figure.update_xaxes(row=row, col=column, **log_axis(low, high))
    figure.update_yaxes(
        range=[FOOT, HEAD], tickvals=[0, 0.25, 0.5, 0.75, 1], ticktext=["0", "¼", "½", "¾", "1"]
    )
    figure.update_yaxes(title_text="P(diverge)")
    figure.update_xaxes(title_text="base_lr")
    footnote(figure, _footnote(info))
    right_legend(figure, "")
    return settled(figure)


def _note(panel: EdgePanel) -> str:
    low, high = map(readable, panel.bracket)
    if math.isinf(panel.decades):
        where = f"above {low}" if panel.bracket[0] else f"at most {high}"
    else:
        where = f"{low} to {high}"
    star = (
        "no feasible trial" if math.isnan(panel.lr_star) else f"lr_star = {readable(panel.lr_star)}"
    )
    return f"{star}, unstable_base_lr {where}"


def _range(panels: Sequence[EdgePanel]) -> tuple[float, float]:
    """The base LRs of a row of panels, predicted ones included, with a margin."""
    values = [one.base_lr for panel in panels for one in panel.tried]
    values += [base_lr for panel in panels for _, base_lr in panel.limits]
    margin = (max(values) / min(values)) ** MARGIN * 1.05
    return min(values) / margin, max(values) * margin


def _dots(panel: EdgePanel) -> go.Scatter:
    shares = [one.infeasible / one.trials for one in panel.tried]
    bars = [
        interval(one.infeasible, one.trials) if one.trials >= FEWEST_FOR_A_BAR else (share, share)
        for one, share in zip(panel.tried, shares, strict=True)
    ]
    above = [high - share for (_, high), share in zip(bars, shares, strict=True)]
    below = [share - low for (low, _), share in zip(bars, shares, strict=True)]
    sizes = [min(DOT * math.sqrt(one.trials), LARGEST_DOT) for one in panel.tried]
    return go.Scatter(
        x=[one.base_lr for one in panel.tried],
        y=shares,
        error_y={
            "array": above,
            "arrayminus": below,
            "color": PALE,
            "thickness": 1.5,
            "width": 0,
        },
        mode="markers",
        marker={
            "size": sizes,
            "color": BLUE,
            "opacity": 1,
            "line": {"width": 1, "color": "white"},
        },
        name="share that diverged",
        legendgroup="share",
        legendrank=1,
        cliponaxis=False,
        hovertext=[_hover(one, *bar) for one, bar in zip(panel.tried, bars, strict=True)],
        hoverinfo="text",
    )


def _hover(one: Tried, low: float, high: float) -> str:
    text = f"<b>base_lr {readable(one.base_lr)}</b><br>{one.infeasible} of {one.trials} infeasible"
    return text + f"<br>95 %: {low:.2f} to {high:.2f}" * (one.trials >= FEWEST_FOR_A_BAR)


def _fit(panel: EdgePanel) -> go.Scatter:
    return go.Scatter(
        x=[base_lr for base_lr, _ in panel.fitted],
        y=[p for _, p in panel.fitted],
        mode="lines",
        line={"color": INK, "width": 2},
        name="non-decreasing fit",
        legendgroup="fit",
        legendrank=2,
        hovertemplate="base_lr %{x:.3g}: fitted P %{y:.2f}<extra></extra>",
    )


def _verticals(panel: EdgePanel, labels: Sequence[str]) -> list[go.Scatter]:
    """lr_star and the predicted limits, as lines of many points: each shows its hover text."""
    lines = [
        (label, base_lr, LIMITS[labels.index(label) % len(LIMITS)], "dash")
        for label, base_lr in panel.limits
    ]
    if math.isfinite(panel.lr_star):
        lines.insert(0, ("lr_star", panel.lr_star, GREEN, "solid"))
    heights = [FOOT + i * (1 - FOOT) / 20 for i in range(21)]
    return [
        go.Scatter(
            x=[base_lr] * len(heights),
            y=heights,
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash},
            name=escape(label),
            legendgroup=label,
            legendrank=3,
            hovertemplate=f"{escape(label)}: base_lr {readable(base_lr)}<extra></extra>",
        )
        for label, base_lr, colour, dash in lines
    ]


def _draw_bracket(
    figure: go.Figure, panel: EdgePanel, ends: tuple[float, float], place: dict[str, Any]
) -> None:
    """Draw the bracket as a tinted band, with its width above it.

    An open one reaches to the border of the panel.
    """
    low, high = max(panel.bracket[0], ends[0]), min(panel.bracket[1], ends[1])
    if math.isfinite(panel.decades):
        text, x, anchor = f"{panel.decades:.2f} decades", math.sqrt(low * high), "center"
    elif panel.bracket[0]:
        text, x, anchor = "½ not reached", high, "right"
    else:
        text, x, anchor = "½ reached at the lowest", low, "left"
    figure.add_shape(
        type="rect",
        x0=low,
        x1=high,
        y0=FOOT,
        y1=1,
        fillcolor=VERMILLION,
        opacity=0.12,
        line_width=0,
        layer="below",
        **place,
    )
    figure.add_shape(
        type="line",
        x0=ends[0],
        x1=ends[1],
        y0=HALF,
        y1=HALF,
        line={"color": MUTED, "width": 1, "dash": "dot"},
        layer="below",
        **place,
    )
    figure.add_annotation(
        text=text,
        x=math.log10(x),
        y=LABEL_AT,
        xanchor=anchor,
        yanchor="middle",
        showarrow=False,
        font={"size": 12, "color": VERMILLION},
        **place,
    )


def _footnote(info: EdgeInfo) -> str:
    trials = sum(one.trials for panel in info.panels for one in panel.tried)
    notes = [f"{trials} trials; shaded: where the fit from lr_star on passes ½, and its width"]
    if any(one.trials < FEWEST_FOR_A_BAR for panel in info.panels for one in panel.tried):
        notes.append("no bar where one trial stands alone")
    if info.crashed:
        notes.append(f"{info.crashed} crashed trials not drawn")
    limits = [
        f"{panel.group.label}: " * (len(info.panels) > 1)
        + ", ".join(f"{label} {readable(base_lr)}" for label, base_lr in panel.limits)
        for panel in info.panels
        if panel.limits
    ]
    return escape(". ".join(["; ".join(notes), *limits]) + ".")
