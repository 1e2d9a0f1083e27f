"""The residual MLP: blocks that ReZero turns off at first, and every placement learns."""

from itertools import islice

import pytest
import torch

from tunewright.models import residual_mlp
from tunewright.models.residual import PLACEMENTS


@pytest.mark.parametrize("placement", ["pre", "branch_out", "none"])
def test_the_blocks_of_a_rezero_network_are_the_identity_at_first(placement: str) -> None:
    model = residual_mlp.digits(width=8, depth=3, normalization=placement, rezero=True).build_model(
        0
    )
    x_BD = torch.randn(5, 8)
    assert torch.equal(model.blocks(x_BD), x_BD)


def test_depth_counts_blocks() -> None:
    assert len(residual_mlp.digits(depth=7).build_model(0).blocks) == 7


@pytest.mark.parametrize("rezero", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_starts_near_chance_and_learns(placement: str, rezero: bool) -> None:
    workload = residual_mlp.digits(width=32, depth=2, normalization=placement, rezero=rezero)
    model = workload.build_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    assert workload.evaluate(model)["val_loss"].item() == pytest.approx(
        workload.chance_loss, abs=0.4
    )
    for batch in islice(workload.train_batches(32, seed=0), 150):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    assert workload.evaluate(model)["val_error"] < 0.2


@pytest.mark.parametrize(
    "arguments",
    [
        {"normalization": "middle"},
        {"normalization": "batch"},
        {"rezero": "yes"},
        {"width": 0},
        {"depth": -1},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        residual_mlp.digits(**arguments)  # type: ignore[arg-type]
