"""Gradient norm against step, its histogram, and the clip thresholds they suggest (R15, R16)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ...judge.analysis import CLIP_TOO_MUCH, group_trials, star_of
from ...judge.readout import norm_percentile
from ...trial import CLIPPING, Array, Group, Outcome, Trial
from ...words import readable
from .arrange import settled
from .style import (
    BLUE,
    ORANGE,
    VERMILLION,
    footnote,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
)
from .thin import thin

BINS = 30  # of the histogram, equal in log
STEP_WIDTH, HISTOGRAM_WIDTH = 0.72, 0.28  # shares of the figure's width


@dataclass(frozen=True)
class NormsPanel:
    """The gradient norms of one trial, unclipped.

    edges, counts   histogram of the positive finite norms over all steps: len(edges) = len(counts)
                    + 1
    unshown         steps whose norm is 0 or non-finite: on no log axis
    outcome         the trial's verdict: an infeasible one stands for a group without a feasible one
    """

    group: Group
    number: int
    base_lr: float
    clip_norm: float
    clip_z: float
    clip_tensor: float
    clip_fraction: float
    percentile: float
    steps: tuple[int, ...]
    norms: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    unshown: int
    outcome: Outcome


@dataclass(frozen=True)
class NormsInfo:
    """Gradient norms of one trial of each group; `missing` names the groups that have none to show.

    scale   lowest and highest norm or threshold of all panels, if they are of one optimizer and
            batch size and so can be compared, also step by step; else None, and every panel has its
            own
    """

    panels: tuple[NormsPanel, ...]
    missing: tuple[str, ...]
    scale: tuple[float, float] | None = None

    def in_words(self) -> str:
        """The figure in a sentence: each panel's trial, percentile and thresholds."""
        parts = [f"{panel.group.label}, {_note(panel)}" for panel in self.panels]
        return in_one_sentence("gradient norm against step, and its histogram", parts)


def norms_info(trials: Iterable[Trial], *, scientific: Sequence[str] = ()) -> NormsInfo:
    """What the norms plot shows: the trial at lr_star of each group, if one is feasible (R15)."""
    panels, missing = [], []
    for group, own in group_trials(trials, scientific).items():
        star = star_of(own)
        trial = star.trial if star else _first_infeasible(own)
        if trial is None:
            missing.append(f"{group.label}: no feasible or infeasible trial")
        elif not len(_drawable(trial.curve.grad_norm)):
            missing.append(f"{group.label}: no curve for trial {trial.point.number}")
        else:
            panels.append(norms_panel(group, trial))
    one_kind = len({(panel.group.batch_size, panel.group.optimizer) for panel in panels}) == 1
    marks = [mark for panel in panels for mark in _marks(panel)]
    return NormsInfo(tuple(panels), tuple(missing), (min(marks), max(marks)) if one_kind else None)


def _first_infeasible(trials: Iterable[Trial]) -> Trial | None:
    """The infeasible trial at the lowest base_lr: the nearest to one that trains."""
    infeasible = (trial for trial in trials if trial.verdict.infeasible)
    return min(
        infeasible, key=lambda trial: (trial.point.base_lr, trial.point.number), default=None
    )


def _marks(panel: NormsPanel) -> list[float]:
    """What the norm axis of a panel must hold."""
    thresholds = (panel.percentile, panel.clip_norm)
    return [*panel.edges, *(value for value in thresholds if math.isfinite(value))]


def _drawable(norms: Array) -> Array:
    return norms[np.isfinite(norms) & (norms > 0)]


def norms_panel(group: Group, trial: Trial) -> NormsPanel:
    """The norms of a trial that has some that are finite and above 0."""
    norms = trial.curve.grad_norm
    shown = _drawable(norms)
    low, high = shown.min(), max(shown.max(), shown.min() * 1.001)
    counts, edges = np.histogram(shown, np.geomspace(low, high, BINS + 1))
    places, thinned = thin(np.where(norms > 0, norms, np.nan))
    return NormsPanel(
        group=group,
        number=trial.point.number,
        base_lr=trial.point.base_lr,
        clip_norm=trial.point.clip_norm,
        clip_z=trial.point.clip_z,
        clip_tensor=trial.point.clip_tensor,
        clip_fraction=trial.clip_fraction,
        percentile=norm_percentile(norms),
        steps=tuple(map(trial.curve.step_of, places)),
        norms=thinned,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        unshown=len(norms) - len(shown),
        outcome=trial.verdict.outcome,
    )


# --- drawing --------------------------------------------------------------------------------------


def norms_figure(info: NormsInfo) -> go.Figure:
    """The figure: a row per group, with the norm against step and its histogram (R15).

    Both are on the same scale.
    """
    titles = {}
    for row, panel in enumerate(info.panels, start=1):
        titles[row, 1] = panel_title(panel.group.label, _note(panel))
        titles[row, 2] = panel_title("", "over all steps")
    figure = panel_figure(
        "Gradient norm: where would clipping begin?",
        "unclipped norm at every step of the best trial of each group",
        titles,
        column_widths=[STEP_WIDTH, HISTOGRAM_WIDTH] if titles else None,
    )
    named: set[str] = set()
    for row, panel in enumerate(info.panels, start=1):
        last = max(one.steps[-1] for one in info.panels) if info.scale else panel.steps[-1]
        draw_norms(figure, row, panel, named, info.scale, last)
    figure.update_yaxes(title_text="gradient norm")
    figure.update_xaxes(col=1, title_text="step")
    figure.update_xaxes(col=2, title_text="number of steps")
    footnote(figure, "; ".join(info.missing))
    return settled(figure)


def draw_norms(
    figure: go.Figure,
    row: int,
    panel: NormsPanel,
    named: set[str],
    scale: tuple[float, float] | None = None,
    last: int | None = None,
) -> None:
    """Draw a panel and its histogram into a row of a figure; `named` are the names in its legend,
    `scale` and `last` the ends of the axes where panels are compared.
    """
    last = panel.steps[-1] if last is None else last
    figure.add_trace(_line(panel), row=row, col=1)
    figure.add_trace(_bars(panel), row=row, col=2)
    for column, ends in ((1, (0, panel.steps[-1])), (2, (0, max(panel.counts)))):
        for trace in _thresholds(panel, ends):
            trace.showlegend = trace.name not in named
            named.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
    low, high = scale or (min(_marks(panel)), max(_marks(panel)))
    figure.update_yaxes(row=row, **log_axis(low / 1.1, high * 1.1))
    figure.update_yaxes(row=row, col=2, showticklabels=False)
    figure.update_xaxes(row=row, col=1, range=[-0.02 * last, 1.02 * last])
    if panel.outcome != "feasible":
        figure.add_trace(_end(panel), row=row, col=1)
    figure.update_xaxes(row=row, col=2, range=[0, 1.05 * max(panel.counts)], nticks=4)


def _note(panel: NormsPanel) -> str:
    note = f"trial {panel.number}" + ("" if panel.outcome == "feasible" else f" ({panel.outcome})")
    note += f", base_lr = {readable(panel.base_lr)}"
    note += f", 90th percentile = {readable(panel.percentile)}"
    thresholds = {name: getattr(panel, name) for name in CLIPPING}
    in_use = [
        f"{name} = {readable(value)}" for name, value in thresholds.items() if math.isfinite(value)
    ]
    if in_use:
        counts_tensors = math.isfinite(panel.clip_tensor)
        what = "tensors" if counts_tensors else "updates"
        note += f", {' and '.join(in_use)} cut {panel.clip_fraction:.0%} of {what}"
        if panel.clip_fraction > CLIP_TOO_MUCH and not counts_tensors:
            note += ": lower base_lr instead (R17)"
    if panel.unshown:
        note += f"; {panel.unshown} steps with norm 0 or non-finite not drawn"
    return note


def _line(panel: NormsPanel) -> go.Scatter:
    return go.Scatter(
        x=np.array(panel.steps),
        y=np.array(panel.norms),
        mode="lines",
        line={"color": BLUE, "width": 1},
        showlegend=False,
        hovertemplate="step %{x}, norm %{y:.3g}<extra></extra>",
    )


def _end(panel: NormsPanel) -> go.Scatter:
    """A cross where an infeasible training ended."""
    return go.Scatter(
        x=panel.steps[-1:],
        y=panel.norms[-1:],
        mode="markers",
        marker={"symbol": "x-thin", "size": 11, "line": {"width": 2.5, "color": BLUE}},
        showlegend=False,
        cliponaxis=False,
        hoverinfo="skip",
    )


def _bars(panel: NormsPanel) -> go.Scatter:
    """The histogram as a filled outline, bars lying on their side."""
    edges = np.repeat(panel.edges, 2)
    counts = np.concatenate([[0], np.repeat(panel.counts, 2), [0]])
    return go.Scatter(
        x=counts,
        y=edges,
        mode="lines",
        line={"color": BLUE, "width": 1},
        fill="toself",
        fillcolor="rgba(0, 114, 178, 0.25)",
        showlegend=False,
        hoverinfo="skip",
    )


def _thresholds(panel: NormsPanel, ends: tuple[int, int]) -> list[go.Scatter]:
    lines = [
        ("90th percentile", panel.percentile, ORANGE, "dash"),
        ("clip_norm", panel.clip_norm, VERMILLION, "solid"),
    ]
    return [
        go.Scatter(
            x=list(ends),
            y=[threshold, threshold],
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash},
            name=name,
            legendgroup=name,
            hovertemplate=f"{name} {readable(threshold)}<extra></extra>",
        )
        for name, threshold, colour, dash in lines
        if math.isfinite(threshold)
    ]
