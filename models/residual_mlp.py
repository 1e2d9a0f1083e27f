"""Residual multilayer perceptron: the smallest model on which the placement of normalization
matters.

B  batch size    F  inputs    D  width    K  classes or outputs
"""

from __future__ import annotations

import functools
from typing import cast

from torch import Tensor, nn

from .arguments import at_least, one_of
from .digits import CLASSES, SIDE, load
from .residual import PLACEMENTS, Residual, last_norm, other_architectures
from .supervised import Classification


class ResidualMLP(nn.Module):
    """x ← W x + b, then `depth` residual blocks with f(x) = W₂ relu(W₁ x + b₁) + b₂, then a linear
    layer.

    inputs of any shape x_B… with `inputs` numbers each → outputs_BK
    Placements of the normalization and ReZero: see `residual`.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, depth: int, normalization: str, rezero: bool
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width))
        self.blocks = nn.Sequential(
            *(Residual(_branch(width), width, normalization, rezero) for _ in range(depth))
        )
        self.head = nn.Sequential(last_norm(width, normalization), nn.Linear(width, outputs))

    def forward(self, x_BF: Tensor) -> Tensor:
        x_BD = self.blocks(self.first(x_BF))
        return cast(Tensor, self.head(x_BD))


def _branch(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def digits(
    width: int = 64, depth: int = 4, normalization: str = "pre", rezero: bool = False
) -> Classification:
    """Digits with a residual MLP of `depth` blocks.

    Raises ValueError unless width ≥ 1, depth ≥ 0, normalization is a placement and rezero a
    boolean.
    """
    at_least(1, width=width)
    at_least(0, depth=depth)
    one_of(PLACEMENTS, normalization=normalization)
    one_of((False, True), rezero=rezero)
    return Classification(
        load,
        functools.partial(ResidualMLP, SIDE * SIDE, CLASSES, width, depth, normalization, rezero),
        other_architectures(normalization, rezero),
        not_matrices=("head.1.weight",),
    )
