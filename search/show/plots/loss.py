"""Training loss of groups in which nothing is tuned, one colour each (R5).

It shows which group blows up, when, and whether rare evaluation would show that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ...judge.analysis import group_trials, repetitions
from ...trial import Group, Trial
from .arrange import settled
from .curves import frame, in_frame, loss_axis, step_axis
from .style import (
    MUTED,
    SEPARATOR,
    colours,
    escape,
    footnote,
    in_one_sentence,
    linear_ticks,
    panel_figure,
    panel_title,
    right_legend,
    scientific_label,
)
from .thin import TYPICAL_SHARE, thin, typical


@dataclass(frozen=True)
class LossLine:
    """One trial: its losses (thinned), their running median, and every `sparse_every`-th loss.

    The median is empty if training is short.
    """

    seed: int
    infeasible: bool
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    typical_steps: tuple[int, ...]
    typical_loss: tuple[float, ...]
    sparse_steps: tuple[int, ...]
    sparse_loss: tuple[float, ...]


@dataclass(frozen=True)
class LossGroup:
    """The seeds of one group; `missing` counts its trials without a curve."""

    group: Group
    lines: tuple[LossLine, ...]
    missing: int


@dataclass(frozen=True)
class LossInfo:
    """Training losses as plain data.

    chance_loss   of a constant predictor; nan where the workload does not state it
    sparse_every  updates between two evaluations of somebody who does not look at every step; 0:
                  not drawn
    """

    log_steps: bool
    log_loss: bool
    loss_range: tuple[float, float]
    chance_loss: float
    sparse_every: int
    groups: tuple[LossGroup, ...]

    def in_words(self) -> str:
        """The figure in a sentence: how many runs of each group did not train."""
        parts = []
        for one in self.groups:
            failed = sum(line.infeasible for line in one.lines)
            parts.append(f"{one.group.label}, {failed} of {len(one.lines)} infeasible")
        return in_one_sentence("training loss against step", parts)


def is_untuned(trials: Iterable[Trial], scientific: Sequence[str]) -> bool:
    """Whether there are several groups with one configuration each, to be drawn in one plot."""
    groups = group_trials(trials, scientific).values()
    return (
        bool(scientific) and len(groups) > 1 and all(len(repetitions(own)) <= 1 for own in groups)
    )


def loss_info(
    trials: Iterable[Trial],
    scientific: Sequence[str],
    *,
    log_steps: bool = False,
    sparse_every: int = 0,
) -> LossInfo:
    """What the picture shows: a line per trial that has a curve."""
    trials = list(trials)
    groups = []
    for group, own in group_trials(trials, scientific).items():
        drawn = [trial for trial in own if len(trial.curve.loss)]
        lines = tuple(_line(trial, log_steps, sparse_every) for trial in drawn)
        groups.append(LossGroup(group, lines, len(own) - len(drawn)))
    log_loss, low, high = frame(
        [line.loss for group in groups for line in group.lines if line.loss]
    )
    chances = {trial.curve.chance_loss for trial in trials if len(trial.curve.loss)}
    chance = chances.pop() if len(chances) == 1 else math.nan
    return LossInfo(log_steps, log_loss, (low, high), chance, sparse_every, tuple(groups))


def _line(trial: Trial, log_steps: bool, sparse_every: int) -> LossLine:
    loss = trial.curve.loss
    seen = np.arange(0, len(loss), sparse_every) if sparse_every else np.arange(0)
    seen = seen[np.isfinite(loss[seen])]
    return LossLine(
        trial.point.seed,
        trial.verdict.infeasible,
        *thin(loss, log_steps),
        *typical(trial.curve, log_steps),
        tuple(seen.tolist()),
        tuple(loss[seen].tolist()),
    )


# --- drawing --------------------------------------------------------------------------------------


def loss_figure(info: LossInfo) -> go.Figure:
    """The figure: a panel per batch size and optimizer.

    Beside it stands what rare evaluation shows of the same runs.
    """
    rows = list(dict.fromkeys((one.group.batch_size, one.group.optimizer) for one in info.groups))
    titles = {}
    for row, (batch_size, optimizer) in enumerate(rows, start=1):
        label = f"batch size {batch_size}, {optimizer}"
        titles[row, 1] = panel_title(label, "every step")
        if info.sparse_every:
            titles[row, 2] = panel_title("", f"the same runs, every {info.sparse_every}th step")
    names = SEPARATOR.join(name for name, _ in info.groups[0].group.scientific)
    long = any(line.typical_steps for one in info.groups for line in one.lines)
    figure = panel_figure(
        f"Training loss, by {escape(names)}",
        (
            f"thin: every step of every seed; bold: running median over {TYPICAL_SHARE:.0%} of the "
            "updates; "
            if long
            else "one line per seed; "
        )
        + "a cross: the end of a run that did not train; dashed: a constant predictor",
        titles,
    )
    styles = list(dict.fromkeys(one.group.scientific for one in info.groups))
    shades = dict(zip(styles, colours([dict(scientific) for scientific in styles]), strict=True))
    named: set[str] = set()
    for one in info.groups:
        row = rows.index((one.group.batch_size, one.group.optimizer)) + 1
        name = escape(scientific_label(one.group.scientific))
        for line in one.lines:
            for column in (1, 2) if info.sparse_every else (1,):
                for trace in _traces(line, info, shades[one.group.scientific], sparse=column == 2):
                    trace.update(name=name, legendgroup=name, showlegend=name not in named)
                    named.add(name)
                    figure.add_trace(trace, row=row, col=column)
    _draw_axes(figure, info)
    seeds = max((len({line.seed for line in one.lines}) for one in info.groups), default=0)
    missing = sum(one.missing for one in info.groups)
    footnote(
        figure,
        (
            f"{sum(len(one.lines) for one in info.groups)} trials, {seeds} "
            f"seed{'s' * (seeds != 1)} per colour"
        )
        + (f"; no curve of {missing} more" if missing else ""),
    )
    right_legend(figure, names)
    return settled(figure)


def _traces(line: LossLine, info: LossInfo, colour: str, sparse: bool) -> list[go.Scatter]:
    low, high = info.loss_range
    steps, loss = (line.sparse_steps, line.sparse_loss) if sparse else (line.steps, line.loss)
    x = np.array(steps) + info.log_steps
    y = in_frame(loss, info.log_loss, info.loss_range)
    long = bool(line.typical_steps) and not sparse
    traces = [
        go.Scatter(
            x=x,
            y=y,
            mode="lines+markers" if sparse else "lines",
            line={"color": colour, "width": 1 if long else 1.5},
            marker={"size": 6},
            opacity=0.3 if long else 0.85,
            hovertemplate=f"seed {line.seed}, step %{{x}}, loss %{{y:.3g}}<extra></extra>",
        )
    ]
    if long:
        typical = go.Scatter(
            x=np.array(line.typical_steps) + info.log_steps,
            y=in_frame(line.typical_loss, info.log_loss, info.loss_range),
            mode="lines",
            line={"color": colour, "width": 2.5},
            hoverinfo="skip",
        )
        traces.insert(0, typical)  # first: the legend shows it
    if line.infeasible and len(x):
        traces.append(
            go.Scatter(
                x=x[-1:],
                y=np.clip(y[-1:], low, high),
                mode="markers",
                marker={"symbol": "x-thin", "size": 11, "line": {"width": 2.5, "color": colour}},
                cliponaxis=False,
                hoverinfo="skip",
            )
        )
    return traces


def _draw_axes(figure: go.Figure, info: LossInfo) -> None:
    low, high = info.loss_range
    ticks = {} if info.log_loss else {"tickvals": linear_ticks(low, high)}
    figure.update_yaxes(**loss_axis(info.log_loss, info.loss_range), **ticks)
    last = max(
        (line.steps[-1] for one in info.groups for line in one.lines if line.steps), default=1
    )
    figure.update_xaxes(**step_axis(info.log_steps, last, start=0.95))
    if low <= info.chance_loss <= high:
        figure.add_hline(
            y=info.chance_loss, line={"color": MUTED, "width": 1, "dash": "dash"}, layer="below"
        )
    figure.update_yaxes(title_text="training loss (one minibatch)")
    figure.update_xaxes(title_text="step + 1" if info.log_steps else "step")
