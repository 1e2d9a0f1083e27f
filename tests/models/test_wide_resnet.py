"""The Wide-ResNet: strides set the resolution, blocks are their equation, arguments are checked."""

import pytest
import torch
from torch import nn

from tunewright.models import wide_resnet
from tunewright.models.wide_resnet import Block, parse_strides


@pytest.fixture(autouse=True)
def fixed_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("strides", "image_size", "side"),
    [("1,2,2", 8, 2), ("1,1,1", 8, 8), ("2,2,2", 8, 1), ("1,2,1", 8, 4), ("1,2,2", 16, 4)],
)
def test_strides_set_the_resolution(strides: str, image_size: int, side: int) -> None:
    workload = wide_resnet.digits(strides=strides, image_size=image_size)
    model = workload.build_model(0)
    x_BCHW, _ = next(workload.train_batches(2, seed=0))
    assert model.features(x_BCHW).shape == (2, 64, side, side)
    assert model(x_BCHW).shape == (2, 10)


def test_strides_do_not_change_the_number_of_parameters() -> None:
    counts = {
        sum(p.numel() for p in wide_resnet.digits(strides=strides).build_model(0).parameters())
        for strides in ("1,2,2", "1,1,1")
    }
    assert counts == {77562}


def test_depth_and_width_are_the_papers() -> None:
    model = wide_resnet.digits(depth=16, width=2).build_model(0)
    convolutions = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    # the paper counts the linear layer and two 1×1 shortcuts too
    assert len(convolutions) == 16 - 3
    assert [c.out_channels for c in convolutions] == [16, *[32] * 4, *[64] * 4, *[128] * 4]


def test_a_block_without_normalization_is_its_equation() -> None:
    block, x_BCHW = Block(3, 3, 1, "none"), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        block.before[0].weight.fill_(2.0)
        block.before[0].bias.fill_(-0.5)
    h_BCHW = (2 * x_BCHW - 0.5).clamp(min=0)
    first, _, _, second = block.branch
    torch.testing.assert_close(block(x_BCHW), x_BCHW + second(first(h_BCHW).clamp(min=0)))


def test_batch_normalization_can_be_left_out() -> None:
    kinds = [
        any(
            isinstance(m, nn.BatchNorm2d)
            for m in wide_resnet.digits(normalization=n).build_model(0).modules()
        )
        for n in ("batch", "none")
    ]
    assert kinds == [True, False]


@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_it_starts_near_chance_and_learns(normalization: str) -> None:
    workload = wide_resnet.digits(normalization=normalization)
    model = workload.build_model(0)
    assert workload.evaluate(model)["val_loss"].item() == pytest.approx(
        workload.chance_loss, abs=0.2
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = workload.train_batches(32, seed=0)
    for _ in range(100):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        optimizer.step()
    assert workload.evaluate(model)["val_error"] < 0.5


def test_strides_are_read_with_or_without_spaces() -> None:
    assert parse_strides("1, 2,1") == (1, 2, 1)


@pytest.mark.parametrize("strides", ["", "1,2", "1,2,2,2", "1,0,2", "1,2,3", "a,b,c", 122])
def test_wrong_strides_are_refused(strides: str) -> None:
    with pytest.raises(ValueError, match="strides: must be three numbers, each 1 or 2"):
        wide_resnet.digits(strides=strides)


@pytest.mark.parametrize(
    "arguments",
    [{"depth": 9}, {"depth": 12}, {"width": 0}, {"normalization": "pre"}, {"image_size": 12}],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        wide_resnet.digits(**arguments)  # type: ignore[arg-type]
