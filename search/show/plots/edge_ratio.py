"""How near trainings are to the edge of stability: λ₁ · η over the threshold against step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from ...judge.edge_ratio import FAR_BEYOND, SETTLED, EdgeRun
from ...rules.optimizers import second_moment_of
from ...trial import Group, Outcome
from ...words import readable
from .arrange import settled
from .style import (
    BLUE,
    INK,
    ORANGE,
    VERMILLION,
    footnote,
    in_one_sentence,
    log_axis,
    panel_figure,
    panel_title,
    right_legend,
)

LEAST = 1e-4  # of the ratio axis: what is below is far from any edge
MOST = 1e4  # what is above has long passed it
# the run at lr_star, another that trains, and one that does not
STAR, OTHER, FAILED = (BLUE, "circle"), (ORANGE, "square"), (VERMILLION, "x")
DASHES = ("solid", "dash", "dot")


@dataclass(frozen=True)
class RatioLine:
    """One training: the ratio at each look, those that are 0 left out.

    counts   whether a look counts (`EdgeRun.settled`)
    highest  the ratio of the highest look that counts; nan if none does
    """

    base_lr: float
    outcome: Outcome
    steps: tuple[int, ...]
    ratios: tuple[float, ...]
    counts: tuple[bool, ...]
    highest: float


@dataclass(frozen=True)
class RatioInfo:
    """The runs of one group as plain data."""

    group: Group
    lines: tuple[RatioLine, ...]

    def in_words(self) -> str:
        """The figure in a sentence: each training's highest ratio."""
        parts = [
            f"base_lr {readable(line.base_lr)} ({line.outcome}) {_highest(line)}"
            for line in self.lines
        ]
        return in_one_sentence("λ₁ times learning rate over its threshold against step", parts)


def ratio_info(group: Group, runs: Sequence[EdgeRun]) -> RatioInfo:
    """What the figure shows: a line per training, if one was seen at least once."""
    was_seen = any(run.looks for run in runs)
    return RatioInfo(group, tuple(map(_line, runs)) if was_seen else ())


def _line(run: EdgeRun) -> RatioLine:
    shown = [look for look in run.looks if look.ratio > 0]
    counted = {look.step for look in run.settled}
    counts = tuple(look.step in counted for look in shown)
    highest = run.highest
    return RatioLine(
        base_lr=run.base_lr,
        outcome=run.outcome,
        steps=tuple(look.step for look in shown),
        ratios=tuple(look.ratio for look in shown),
        counts=counts,
        highest=highest.ratio if highest else math.nan,
    )


def _highest(line: RatioLine) -> str:
    if math.isnan(line.highest):
        return "not seen"
    if line.highest > FAR_BEYOND:
        return f"beyond {FAR_BEYOND:g} times the edge"
    return f"at most {readable(line.highest)} of the edge"


# --- drawing --------------------------------------------------------------------------------------


def ratio_figure(info: RatioInfo) -> go.Figure:
    """The figure: a line per training, and the edge at 1."""
    star = info.lines[0] if info.lines else None
    note = f"base_lr = {readable(star.base_lr)}: {_highest(star)}" if star else "nothing was seen"
    figure = panel_figure(
        "How near training is to the edge of stability",
        "λ₁ · learning rate / threshold of the rule: 1 is the edge with the full gradient",
        {(1, 1): panel_title(info.group.label, note)},
    )
    for number, line in enumerate(info.lines):
        figure.add_trace(_trace(line, number), row=1, col=1)
    drawn = [min(max(ratio, LEAST), MOST) for line in info.lines for ratio in line.ratios]
    steps = [step for line in info.lines for step in line.steps]
    low, high = min([*drawn, 0.5]) / 1.5, max([*drawn, 2.0]) * 1.5
    figure.add_hline(y=1.0, line={"color": INK, "width": 1.5, "dash": "dash"}, row=1, col=1)
    figure.update_yaxes(title_text="ratio to the edge", **log_axis(low, high))
    figure.update_xaxes(title_text="step", **log_axis(0.9, 1.1 * max(steps, default=2)))
    notes = []
    if second_moment_of(info.group.optimizer):
        notes.append(f"Hollow: before step {SETTLED} the second moment is of few gradients")
    if any(ratio > MOST for line in info.lines for ratio in line.ratios):
        notes.append(f"What is above {MOST:,.0f} leaves the frame")
    footnote(figure, ". ".join([*notes, ""]).strip())
    right_legend(figure, "")
    return settled(figure)


def _trace(line: RatioLine, number: int) -> go.Scatter:
    failed = line.outcome not in ("feasible", "unfinished")
    colour, symbol = FAILED if failed else (OTHER if number else STAR)
    return go.Scatter(
        x=line.steps,
        y=line.ratios,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": DASHES[number % len(DASHES)]},
        marker={
            "size": 9,
            "symbol": [symbol if counts else f"{symbol}-open" for counts in line.counts],
        },
        name=f"base_lr {readable(line.base_lr)}, {line.outcome}",
        hovertemplate="step %{x}: %{y:.3g} of the edge<extra></extra>",
    )
