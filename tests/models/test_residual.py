"""Every placement is its equation, with and without ReZero."""

import pytest
import torch
from torch import Tensor, nn

from tunewright.models.residual import PLACEMENTS, Residual, last_norm


def norm(x: Tensor) -> Tensor:
    """Layer normalization of a fresh layer: scale 1, shift 0."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


EQUATIONS = {
    "pre": lambda x, f, a: x + a * f(norm(x)),
    "branch_out": lambda x, f, a: x + a * norm(f(x)),
    "post": lambda x, f, a: norm(x + a * f(x)),
    "none": lambda x, f, a: x + a * f(x),
}
F = nn.Tanh()
X = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 0.5, 0.0]])


def test_every_placement_has_its_equation() -> None:
    assert set(EQUATIONS) == set(PLACEMENTS)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_block_is_its_equation(placement: str) -> None:
    block = Residual(F, 3, placement, rezero=False)
    torch.testing.assert_close(block(X), EQUATIONS[placement](X, F, 1.0))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_rezero_starts_without_the_branch_and_scales_it(placement: str) -> None:
    block = Residual(F, 3, placement, rezero=True)
    torch.testing.assert_close(block(X), norm(X) if placement == "post" else X)
    with torch.no_grad():
        block.scale.a.fill_(0.5)
    torch.testing.assert_close(block(X), EQUATIONS[placement](X, F, 0.5))


def test_rezeros_scale_is_learned_from_the_first_step() -> None:
    block = Residual(F, 3, "none", rezero=True)
    block(X).square().sum().backward()
    assert block.scale.a.grad != 0


def test_only_pre_has_a_last_normalization() -> None:
    assert [type(last_norm(3, placement)) is nn.LayerNorm for placement in PLACEMENTS] == [
        placement == "pre" for placement in PLACEMENTS
    ]
