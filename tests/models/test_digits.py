"""Digits: a fixed stratified split, standardized pixels, and networks that learn it in seconds."""

import math
from itertools import islice

import pytest
import torch

from tunewright.models import digits
from tunewright.models.supervised import Classification


def trained_error(workload: Classification, base_lr: float, steps: int) -> float:
    model = workload.build_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=base_lr, momentum=0.9)
    for batch in islice(workload.train_batches(32, seed=0), steps):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    return workload.evaluate(model)["val_error"].item()


def test_the_split_is_disjoint_and_stratified() -> None:
    split = digits.load()
    parts = (split.train, split.validation, split.test)
    assert [len(y_N) for _, y_N in parts] == [1077, 360, 360]
    frequencies = torch.stack([y_N.bincount() / len(y_N) for _, y_N in parts])
    assert (frequencies.amax(0) - frequencies.amin(0)).max() < 1 / 360
    images = [{tuple(image.flatten().tolist()) for image in x_NCHW} for x_NCHW, _ in parts]
    assert len(set.union(*images)) == sum(map(len, images)) == 1797


def test_training_pixels_are_standardized() -> None:
    x_NCHW = digits.load().train[0]
    assert x_NCHW.dtype == torch.float32
    assert x_NCHW.shape[1:] == (1, 8, 8)
    assert x_NCHW.mean().item() == pytest.approx(0, abs=1e-5)
    assert x_NCHW.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_an_enlarged_image_keeps_its_label_and_its_mean() -> None:
    small, large = digits.load(), digits.load(16)
    assert large.train[0].shape[1:] == (1, 16, 16)
    assert torch.equal(small.train[1], large.train[1])
    torch.testing.assert_close(
        large.train[0].mean((2, 3)), small.train[0].mean((2, 3)), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("workload", [digits.mlp(), digits.conv()])
def test_loss_at_initialization_is_close_to_chance(workload: Classification) -> None:
    assert workload.chance_loss == pytest.approx(math.log(10), abs=0.001)
    losses = [workload.evaluate(workload.build_model(seed))["val_loss"].item() for seed in range(3)]
    assert losses == pytest.approx([workload.chance_loss] * 3, abs=0.1)


def test_the_mlp_learns() -> None:
    assert trained_error(digits.mlp(), base_lr=0.05, steps=300) < 0.06


def test_the_convolutional_network_learns() -> None:
    assert trained_error(digits.conv(), base_lr=0.05, steps=200) < 0.15


@pytest.mark.parametrize("arguments", [{"width": 0}, {"depth": -1}, {"width": 2.5}])
def test_wrong_sizes_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least"):
        digits.mlp(**arguments)
    with pytest.raises(ValueError, match="width: must be a whole number of at least 1, got 0"):
        digits.conv(width=0)
