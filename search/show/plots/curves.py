"""Training-loss curves of all trials, with lr_star's and those just above it picked out (R3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ...judge.analysis import group_trials, just_above, star_of
from ...trial import Group, Trial
from ...words import readable
from .arrange import settled
from .style import (
    BLUE,
    GREEN,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    brief,
    footnote,
    hover,
    in_grid,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    trial_id,
)
from .thin import TYPICAL_SHARE, most_informative, thin, typical

CEILING = 10.0  # times the highest initial loss: what rises above leaves the frame
OUT_OF_FRAME = 100.0  # a loss is drawn no higher than this many times the top of the frame
MOST_LISTED = 20  # numbers of trials that have no curve
MOST_LINES = 240  # curves of a figure
MOST_OF_A_MEDIAN = 100  # values of a smoothed curve: it has few extremes
# the next three learning rates above lr_star (R3), none of them like the colour of what failed
ABOVE_COLOURS = (PURPLE, SKY, BLUE)


@dataclass(frozen=True)
class Line:
    """One training, thinned.

    rank          0 for lr_star, with all its seeds, 1, 2, 3 for the next above what is as good,
                  −1 for all others
    steps, loss   updates done before the loss was measured, and the loss
    typical_steps, typical_loss   its running median; empty if training is short
    """

    number: int
    rank: int
    infeasible: bool
    feasible: bool
    base_lr: float
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    typical_steps: tuple[int, ...]
    typical_loss: tuple[float, ...]
    hover: str


@dataclass(frozen=True)
class CurvesPanel:
    """The curves of one group; `missing` lists its trials without one, by number.

    `undrawn` counts the curves that are left out.
    """

    group: Group
    lr_star: float
    lines: tuple[Line, ...]
    missing: tuple[int, ...]
    undrawn: int = 0


@dataclass(frozen=True)
class CurvesInfo:
    """Training-loss curves as plain data. `loss_range` is common to all panels."""

    log_steps: bool
    log_loss: bool
    loss_range: tuple[float, float]
    panels: tuple[CurvesPanel, ...]

    def in_words(self) -> str:
        """The figure in a sentence: each panel's lr_star, and what became of those further up."""
        count = sum(len(panel.lines) + panel.undrawn for panel in self.panels)
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
    return star + (f", above what is as good {', '.join(told)}" if told else "")


def curves_info(
    trials: Iterable[Trial],
    objective: str,
    *,
    log_steps: bool = False,
    scientific: Sequence[str] = (),
) -> CurvesInfo:
    """Training curves as plain data: a panel per group, a line per trial with a curve (S3, R3)."""
    trials = list(trials)
    panels = tuple(
        _panel(group, own, objective, log_steps, MOST_LINES * len(own) // len(trials))
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


def _panel(
    group: Group, trials: list[Trial], objective: str, log_steps: bool, most: int
) -> CurvesPanel:
    """A panel of about `most` curves: all of those in colour, and the most informative others."""
    star = star_of(trials)
    used = star.trial.point.configuration if star else ()
    above = sorted({trial.point.base_lr for trial in just_above(trials)})

    def rank(trial: Trial) -> int:
        if trial.point.configuration == used:
            return 0
        base_lr = trial.point.base_lr
        return above.index(base_lr) + 1 if base_lr in above else -1

    having = [trial for trial in trials if len(trial.curve.loss)]
    few = set(map(id, most_informative(having, max(1, most))))
    drawn = [trial for trial in having if rank(trial) >= 0 or id(trial) in few]
    lines = [_line(trial, rank(trial), objective, log_steps) for trial in drawn]
    return CurvesPanel(
        group,
        lr_star=star.lr_star if star else math.nan,
        lines=tuple(lines),
        missing=tuple(trial.point.number for trial in trials if not len(trial.curve.loss)),
        undrawn=len(having) - len(drawn),
    )


def _line(trial: Trial, rank: int, objective: str, log_steps: bool) -> Line:
    curve = trial.curve
    places, loss = thin(curve.loss, log_steps)
    middle, median = typical(curve, log_steps, MOST_OF_A_MEDIAN)
    return Line(
        number=trial.point.number,
        rank=rank,
        infeasible=trial.verdict.infeasible,
        feasible=trial.feasible,
        base_lr=trial.point.base_lr,
        steps=tuple(map(curve.step_of, places)),
        loss=loss,
        typical_steps=tuple(map(curve.step_of, middle)),
        typical_loss=median,
        hover=hover(trial, objective) if rank >= 0 else brief(trial),
    )


# --- drawing --------------------------------------------------------------------------------------


def curves_figure(info: CurvesInfo) -> go.Figure:
    """The figure: pale feasible, vermillion infeasible, colours for lr_star and just above (R3).

    In colour every step is faint, and the running median bold; of the other feasible ones, the
    median alone.
    """
    places = in_grid(panel.group for panel in info.panels)
    titles = {
        places[panel.group]: panel_title(panel.group.label, _key(panel)) for panel in info.panels
    }
    figure = panel_figure(
        "Training loss: does it rise just above lr_star?",
        "in colour: lr_star and the next learning rates above what is as good" + _smoothing(info),
        titles,
    )
    shown: set[str] = set()
    for panel in info.panels:
        row, column = places[panel.group]
        ends = [line for line in panel.lines if line.infeasible and line.loss]
        lines = []
        for line in sorted(panel.lines, key=_depth):
            for trace in _traces(line, info):
                trace.meta = trial_id(panel.group.batch_size, line.number)
                lines.append(trace)
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
    notes = ["no curve: " + "; ".join(missing)] if missing else []
    undrawn = sum(panel.undrawn for panel in info.panels)
    if undrawn:
        count = undrawn + sum(len(panel.lines) for panel in info.panels)
        notes.append(
            f"{count - undrawn} of {count} curves drawn: those in colour, the best, those that "
            "failed just above lr_star, and some of the others"
        )
    footnote(figure, ". ".join(notes))
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


def _smoothing(info: CurvesInfo) -> str:
    """What is said of the running median, if one is drawn."""
    if not any(line.typical_loss for panel in info.panels for line in panel.lines):
        return ""
    return (
        f"; bold: running median over {TYPICAL_SHARE:.0%} of the updates, faint: every step; of "
        "the other feasible trials, the median alone"
    )


def _traces(line: Line, info: CurvesInfo) -> list[go.Scatter]:
    """Every step, the running median, or both: what failed is drawn with every spike."""
    if line.rank >= 0 and line.typical_loss:
        return [_trace(line, info, False, 0.35, 1), _trace(line, info, True, 1.0, 2.2)]
    if line.rank >= 0:
        return [_trace(line, info, False, 1.0, 1.6)]
    smooth = bool(line.typical_loss) and not line.infeasible
    return [_trace(line, info, smooth, 0.5 if line.infeasible else 0.8, 1.2)]


def _trace(line: Line, info: CurvesInfo, smooth: bool, opacity: float, width: float) -> go.Scatter:
    """The curve, or its running median if `smooth`."""
    steps, loss = (line.typical_steps, line.typical_loss) if smooth else (line.steps, line.loss)
    kind = "infeasible" if line.infeasible else "feasible" if line.feasible else "unfinished"
    what = "running median of the loss" if smooth else "loss"
    return go.Scatter(
        x=np.array(steps) + info.log_steps,
        y=in_frame(loss, info.log_loss, info.loss_range).astype(np.float32),
        mode="lines",
        line={"color": _colour(line), "width": width},
        opacity=opacity,
        name="" if line.rank >= 0 else kind,
        hovertemplate=f"step %{{x}}, {what} %{{y:.3g}}<br>{line.hover}<extra></extra>",
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
