"""Training-loss curves of all trials, with lr_star's and those just above it picked out (R3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ...judge.analysis import group_trials, just_above, rank_configurations
from ...trial import Group, Trial
from ...words import readable
from .arrange import settled
from .style import (
    GREEN,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    footnote,
    hover,
    in_grid,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    trial_id,
)
from .thin import thin

CEILING = 10.0  # times the highest initial loss: what rises above leaves the frame
OUT_OF_FRAME = 100.0  # a loss is drawn no higher than this many times the top of the frame
MOST_LISTED = 20  # numbers of trials that have no curve
ABOVE_COLOURS = (ORANGE, PURPLE, SKY)  # the next three learning rates above lr_star (R3)


@dataclass(frozen=True)
class Line:
    """One training, thinned.

    rank          0 for lr_star, with all its seeds, 1, 2, 3 for the next learning rates above it,
                  −1 for all others
    steps, loss   updates done before the loss was measured, and the loss
    """

    number: int
    rank: int
    infeasible: bool
    base_lr: float
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    hover: str


@dataclass(frozen=True)
class CurvesPanel:
    """The curves of one group; `missing` lists its trials without one, by number."""

    group: Group
    lr_star: float
    lines: tuple[Line, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True)
class CurvesInfo:
    """Training-loss curves as plain data. `loss_range` is common to all panels."""

    log_steps: bool
    log_loss: bool
    loss_range: tuple[float, float]
    panels: tuple[CurvesPanel, ...]

    def in_words(self) -> str:
        """The figure in a sentence: each panel's lr_star, and what became of the next above it."""
        count = sum(len(panel.lines) for panel in self.panels)
        return in_one_sentence(
            f"training loss of {count} trials", map(_panel_in_words, self.panels)
        )


def _panel_in_words(panel: CurvesPanel) -> str:
    if math.isnan(panel.lr_star):
        return f"{panel.group.label}, no feasible trial"
    above = {line.base_lr: line for line in panel.lines if line.rank > 0}
    told = [
        f"{readable(base_lr)} " + ("infeasible" if above[base_lr].infeasible else "feasible")
        for base_lr in sorted(above)
    ]
    star = f"{panel.group.label}, lr_star = {readable(panel.lr_star)}"
    return star + (f", above it {', '.join(told)}" if told else "")


def curves_info(
    trials: Iterable[Trial],
    objective: str,
    *,
    log_steps: bool = False,
    scientific: Sequence[str] = (),
) -> CurvesInfo:
    """Training curves as plain data: a panel per group, a line per trial with a curve (S3, R3)."""
    panels = tuple(
        _panel(group, own, objective, log_steps)
        for group, own in group_trials(trials, scientific).items()
    )
    log_loss, low, high = frame(
        [line.loss for panel in panels for line in panel.lines if line.loss]
    )
    return CurvesInfo(log_steps, log_loss, loss_range=(low, high), panels=panels)


def frame(losses: Sequence[Sequence[float]]) -> tuple[bool, float, float]:
    """Whether the loss axis is logarithmic, and its lowest and highest value.

    A loss that blows up does not set them.
    """
    lowest, highest = min(map(min, losses), default=0.1), max(map(max, losses), default=1.0)
    high = min(highest, CEILING * max((loss[0] for loss in losses), default=1.0))
    low = lowest
    if lowest >= 0:
        low = min((value for loss in losses for value in loss if value > 0), default=0.1)
    return 0 < low < high, low, high


def _panel(group: Group, trials: list[Trial], objective: str, log_steps: bool) -> CurvesPanel:
    ranking = rank_configurations(trials)
    best = ranking[0].point.configuration if ranking else ()
    above = sorted({trial.point.base_lr for trial in just_above(trials)})
    lines = []
    for trial in trials:
        if not len(trial.curve.loss):
            continue
        base_lr = trial.point.base_lr
        rank = (
            0
            if trial.point.configuration == best
            else above.index(base_lr) + 1
            if base_lr in above
            else -1
        )
        text = hover(trial, objective)
        places, loss = thin(trial.curve.loss, log_steps)
        lines.append(
            Line(
                trial.point.number,
                rank,
                trial.verdict.infeasible,
                base_lr,
                tuple(map(trial.curve.step_of, places)),
                loss,
                text,
            )
        )
    return CurvesPanel(
        group,
        lr_star=ranking[0].point.base_lr if ranking else math.nan,
        lines=tuple(lines),
        missing=tuple(trial.point.number for trial in trials if not len(trial.curve.loss)),
    )


# --- drawing --------------------------------------------------------------------------------------


def curves_figure(info: CurvesInfo) -> go.Figure:
    """The figure: grey feasible, red infeasible, colours for lr_star and just above (R3)."""
    places = in_grid(panel.group for panel in info.panels)
    titles = {
        places[panel.group]: panel_title(panel.group.label, _key(panel)) for panel in info.panels
    }
    figure = panel_figure(
        "Training loss: does it rise just above lr_star?",
        "grey: feasible, red: infeasible; in colour: lr_star and the next learning rates above it",
        titles,
    )
    shown: set[str] = set()
    for panel in info.panels:
        row, column = places[panel.group]
        ends = [line for line in panel.lines if line.infeasible and line.loss]
        lines = []
        for line in sorted(panel.lines, key=_depth):
            lines.append(_trace(line, info))
            lines[-1].meta = trial_id(panel.group.batch_size, line.number)
        for trace in [*lines, _ends(ends, info)] if ends else lines:
            trace.showlegend = bool(trace.name) and trace.name not in shown
            shown.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
    _draw_axes(figure, info)
    missing = [
        f"{panel.group.label}: trials {_listed(panel.missing)}"
        for panel in info.panels
        if panel.missing
    ]
    footnote(figure, "no curve: " + "; ".join(missing) if missing else "")
    return settled(figure)


def _listed(numbers: Sequence[int]) -> str:
    """Numbers of trials; of many, the first ones and how many there are."""
    first = ", ".join(map(str, numbers[:MOST_LISTED]))
    more = len(numbers) - MOST_LISTED
    return f"{first} and {more} more" if more > 0 else first


def _colour(line: Line) -> str:
    if line.rank < 0:
        return VERMILLION if line.infeasible else PALE
    return (GREEN, *ABOVE_COLOURS)[line.rank]


def _key(panel: CurvesPanel) -> str:
    """Which colour is which learning rate."""
    first = {line.rank: line for line in panel.lines if line.rank >= 0}
    names = [
        f"<span style='color:{_colour(line)}'><b>━</b></span>&nbsp;"
        + (
            f"{readable(line.base_lr / panel.lr_star)}&nbsp;×"
            if rank
            else f"lr_star&nbsp;=&nbsp;{readable(line.base_lr)}"
        )
        for rank, line in sorted(first.items())
    ]
    return "&nbsp;&nbsp;&nbsp; ".join(names) or "no feasible trial"


def _depth(line: Line) -> tuple[bool, int]:
    """Order of drawing: lines without a colour of their own first, lr_star last."""
    return line.rank >= 0, -line.rank


def in_frame(
    loss: Sequence[float], log_loss: bool, loss_range: tuple[float, float]
) -> NDArray[np.float64]:
    """Losses as they are drawn.

    One that a log axis has no place for lies on the frame's edge; one above the frame is drawn not
    far above it.
    """
    low, high = loss_range
    return np.asarray(np.clip(loss, low if log_loss else None, OUT_OF_FRAME * high))


def _trace(line: Line, info: CurvesInfo) -> go.Scatter:
    chosen = line.rank >= 0
    kind, opacity = ("infeasible", 0.35) if line.infeasible else ("feasible", 0.6)
    if chosen:
        kind, opacity = "", 1.0
    return go.Scatter(
        x=np.array(line.steps) + info.log_steps,
        y=in_frame(line.loss, info.log_loss, info.loss_range).astype(np.float32),
        mode="lines",
        line={"color": _colour(line), "width": 1.6 if chosen else 1},
        opacity=opacity,
        name=kind,
        hovertemplate=f"step %{{x}}, loss %{{y:.3g}}<br>{line.hover}<extra></extra>",
    )


def _ends(lines: list[Line], info: CurvesInfo) -> go.Scatter:
    """Crosses where infeasible trainings ended, at the top of the frame for those that left it."""
    low, high = info.loss_range
    return go.Scatter(
        x=[line.steps[-1] + info.log_steps for line in lines],
        y=[min(max(line.loss[-1], low), high) for line in lines],
        mode="markers",
        marker={"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": VERMILLION}},
        name="end of an infeasible trial",
        legendrank=2000,
        hovertext=[line.hover for line in lines],
        hoverinfo="text",
        cliponaxis=False,
    )


def _draw_axes(figure: go.Figure, info: CurvesInfo) -> None:
    figure.update_yaxes(**loss_axis(info.log_loss, info.loss_range))
    last = max(
        (line.steps[-1] for panel in info.panels for line in panel.lines if line.steps), default=1
    )
    figure.update_xaxes(**step_axis(info.log_steps, last))
    figure.update_yaxes(title_text="training loss")
    figure.update_xaxes(title_text="step + 1" if info.log_steps else "step")


def loss_axis(log_loss: bool, loss_range: tuple[float, float]) -> dict[str, Any]:
    """An axis of losses, with a margin around the frame."""
    low, high = loss_range
    if log_loss:
        margin = (high / low) ** 0.04
        return log_axis(low / margin, high * margin)
    margin = 0.04 * (high - low) or 0.5
    return {"range": [low - margin, high + margin]}


def step_axis(log_steps: bool, last: int, start: float = 1.0) -> dict[str, Any]:
    """An axis of steps up to the last one; a log axis counts them from 1, and begins at `start`."""
    return (
        log_axis(start, (last + 1) * 1.05) if log_steps else {"range": [-0.02 * last, 1.02 * last]}
    )
