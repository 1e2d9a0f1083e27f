"""One training by itself: its loss at every step, and its gradient norms below (R4, R15)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go

from ...judge.readout import Readout
from ...trial import Group, Trial
from ...words import readable
from .arrange import settled
from .curves import frame, in_frame, loss_axis, step_axis
from .norms import HISTOGRAM_WIDTH, STEP_WIDTH, NormsPanel, draw_norms, norms_panel
from .style import BLUE, VERMILLION, footnote, in_one_sentence, panel_figure, panel_title
from .thin import thin


@dataclass(frozen=True)
class TrainingInfo:
    """A training as plain data, thinned.

    onset   the step at which its loss first blew up; inf: never
    norms   None if none is finite and above 0
    """

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    log_loss: bool
    loss_range: tuple[float, float]
    onset: float
    norms: NormsPanel | None

    def in_words(self) -> str:
        """The figure in a sentence: from what loss to what, and what the norms say."""
        ends = f"from {readable(self.loss[0])} to {readable(self.loss[-1])}" if self.loss else ""
        norms = f"gradient norm {_norm_note(self.norms)}" if self.norms else ""
        return in_one_sentence("training loss of one training", [ends, _onset_note(self), norms])


def training_info(trial: Trial, readout: Readout) -> TrainingInfo:
    """What the losses and norms of a training show, with the threshold that its readout names."""
    steps, loss = thin(trial.curve.loss)
    log_loss, low, high = frame([loss] if loss else [])
    norms = None
    norm = trial.curve.grad_norm
    if (np.isfinite(norm) & (norm > 0)).any():
        norms = replace(norms_panel(Group(0, ""), trial), percentile=readout.clip_start)
    return TrainingInfo(steps, loss, log_loss, (low, high), trial.verdict.onset_step, norms)


# --- drawing --------------------------------------------------------------------------------------


def training_figure(info: TrainingInfo) -> go.Figure:
    """The figure: the loss against step, with a line where it blew up; the norm against step, and
    its histogram on the same scale.
    """
    titles = {(1, 1): panel_title("Training loss", _onset_note(info))}
    if info.norms:
        titles[2, 1] = panel_title("Gradient norm, unclipped", _norm_note(info.norms))
        titles[2, 2] = panel_title("", "over all steps")
    figure = panel_figure(
        "One training",
        "every step",
        titles,
        column_widths=[STEP_WIDTH, HISTOGRAM_WIDTH] if info.norms else None,
    )
    figure.add_trace(_losses(info), row=1, col=1)
    if math.isfinite(info.onset):
        figure.add_vline(x=info.onset, line={"color": VERMILLION, "dash": "dot"}, row=1, col=1)
    figure.update_yaxes(
        row=1, col=1, title_text="loss", **loss_axis(info.log_loss, info.loss_range)
    )
    last = info.steps[-1] if info.steps else 1
    figure.update_xaxes(row=1, col=1, title_text="step", **step_axis(False, last))
    if info.norms:
        draw_norms(figure, 2, info.norms, set(), last=last)
        figure.update_yaxes(row=2, title_text="gradient norm")
        figure.update_xaxes(row=2, col=1, title_text="step")
        figure.update_xaxes(row=2, col=2, title_text="number of steps")
    else:
        footnote(figure, "no gradient norm is finite and above 0")
    return settled(figure)


def _losses(info: TrainingInfo) -> go.Scatter:
    return go.Scatter(
        x=np.array(info.steps),
        y=in_frame(info.loss, info.log_loss, info.loss_range),
        mode="lines",
        line={"color": BLUE, "width": 1},
        showlegend=False,
        hovertemplate="step %{x}, loss %{y:.3g}<extra></extra>",
    )


def _onset_note(info: TrainingInfo) -> str:
    if not math.isfinite(info.onset):
        return "at every step"
    return f"at every step; unstable from step {readable(info.onset)} on"


def _norm_note(panel: NormsPanel) -> str:
    notes = []
    if math.isfinite(panel.percentile):
        notes.append(f"90th percentile = {readable(panel.percentile)}")
    if math.isfinite(panel.clip_norm):
        notes.append(f"clip_norm = {readable(panel.clip_norm)}")
    if panel.unshown:
        notes.append(f"{panel.unshown} steps with norm 0 or non-finite not drawn")
    return ", ".join(notes) or "at every step"
