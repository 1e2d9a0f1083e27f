"""One residual connection, with the normalization where the study wants it.

    pre         x + a f(Norm(x))     the playbook's current advice
    branch_out  x + a Norm(f(x))     its earlier advice
    post        Norm(x + a f(x))     known to cause trouble
    none        x + a f(x)

a = 1; with ReZero, a is one learnable number that starts at 0, so that the branch is absent at
first. Norm is layer normalization over the last axis, with learnable scale and shift.

Source: Tuning Playbook, on normalization and residual branches (R18); Bachlechner et al. 2020,
"ReZero is All You Need" (arXiv 2003.04887).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

PLACEMENTS = ("pre", "branch_out", "post", "none")


def other_architectures(normalization: str, rezero: bool) -> dict[str, dict[str, object]]:
    """What may mend an unstable network of residual branches, as arguments of its factory (R18)."""
    found: dict[str, dict[str, object]] = {}
    if normalization != "pre":
        found["pre-norm"] = {"normalization": "pre"}
    if not rezero:
        found["ReZero"] = {"rezero": True}
    return found


class Residual(nn.Module):
    """x_…F → x_…F, a residual branch `f` with its normalization and, if `rezero`, its scale."""

    def __init__(self, branch: nn.Module, width: int, normalization: str, rezero: bool) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width) if normalization == "pre" else nn.Identity()
        self.branch = branch
        self.inside = nn.LayerNorm(width) if normalization == "branch_out" else nn.Identity()
        self.scale = ZeroScale() if rezero else nn.Identity()
        self.after = nn.LayerNorm(width) if normalization == "post" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.inside(self.branch(self.before(x)))
        return cast(Tensor, self.after(x + self.scale(branch)))


class ZeroScale(nn.Module):
    """a x, with one learnable number a that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x


def last_norm(width: int, normalization: str) -> nn.Module:
    """What stands between the last block and the output layer: a normalization for `pre`, else
    nothing.

    It belongs to the usual pre-norm network, whose branches f are not normalized where they are
    added (Xiong et al. 2020, arXiv 2002.04745). With `branch_out` each block adds one unit of
    variance to x, so that the loss at initialization lies somewhat above that of a constant
    predictor.
    """
    return nn.LayerNorm(width) if normalization == "pre" else nn.Identity()
