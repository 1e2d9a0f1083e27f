"""A model whose training goes wrong on cue, for tests of whatever has to notice it.

A linear classifier of two easy classes counts its own training steps t and, from `cue_step` on,
adds a push s(t) to its first logit, up and down in turn so that no bias can learn to cancel it:

    nan      s = nan                                          the loss stays non-finite
    blow_up  s = (−1)^u 2^min(u, 10), u = t − cue_step ≥ 0    the loss rises to ~500 and stays there
    spike    s = (−1)^u 50 for 0 ≤ u < 4                      the loss is ~25 for four steps, then
             recovers

The count is a buffer of the model, so it is saved, stacked and restored with the rest of its state.
An evaluation after t updates meets the push of step t, and does not count.

  B  batch size    N  examples    F  features
"""

from __future__ import annotations

import functools
import math
import sys

import torch
from torch import Tensor, nn

from .arguments import at_least, one_of
from .batches import Split, three_parts
from .supervised import Classification

KINDS = ("nan", "blow_up", "spike")
DOUBLINGS = 10  # of the blow-up: 2^10 is far above any sound logit, and far from overflow
SPIKE_SIZE = 50.0
SPIKE_STEPS = 4  # an even number: the pushes up and down then cancel in the bias
EXAMPLES = 640
FEATURES = 8


class OnCue(nn.Module):
    """x_BF → logits_B2; the loss first goes wrong at training step `cue_step`, counted from 0."""

    step: Tensor

    def __init__(self, cue_step: int, kind: str) -> None:
        super().__init__()
        self.cue_step = cue_step
        self.kind = kind
        self.linear = nn.Linear(FEATURES, 2)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BF: Tensor) -> Tensor:
        logits_B2 = self.linear(x_BF)
        push = self.push(self.step - self.cue_step).to(logits_B2.dtype)
        if self.training:
            self.step.add_(1)
        return torch.stack([logits_B2[:, 0] + push, logits_B2[:, 1]], dim=1)

    def push(self, since: Tensor) -> Tensor:
        """s(t) for u = `since`, without a branch on its value, so that stacked models may run as
        one.
        """
        u = since.clamp(min=0)
        if self.kind == "nan":
            size = u * math.nan
        elif self.kind == "blow_up":
            size = 2.0 ** u.clamp(max=DOUBLINGS)
        else:
            size = SPIKE_SIZE * (u < SPIKE_STEPS)
        return torch.where(since >= 0, (1 - 2 * (u % 2)) * size, 0.0)


@functools.cache
def load() -> Split:
    """Two normal distributions, four standard deviations apart, as (x_NF float32, y_N int64)."""
    generator = torch.Generator().manual_seed(0)
    y_N = torch.arange(EXAMPLES) % 2
    x_NF = torch.randn(EXAMPLES, FEATURES, generator=generator)
    x_NF[:, 0] += 4.0 * y_N - 2.0
    return Split(*((x_NF[rows], y_N[rows]) for rows in three_parts(EXAMPLES, y_N.numpy())))


def linear(cue_step: int = 50, kind: str = "nan") -> Classification:
    """The classifier that goes wrong at training step `cue_step`.

    Raises ValueError unless cue_step ≥ 0 and kind is "nan", "blow_up" or "spike".
    """
    at_least(0, most=sys.maxsize, cue_step=cue_step)
    one_of(KINDS, kind=kind)
    network = functools.partial(OnCue, cue_step, kind)
    return Classification(load, network, not_matrices=("linear.weight",))
