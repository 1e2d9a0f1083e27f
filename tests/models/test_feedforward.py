"""The MLP is its equation; the small convolutional network has the stated shapes."""

import pytest
import torch

from tunewright.models.feedforward import MLP, ConvNet


@pytest.fixture(autouse=True)
def fixed_random_numbers() -> None:
    torch.manual_seed(0)


def test_the_mlp_is_its_equation() -> None:
    model, x_B122 = MLP(inputs=4, outputs=3, width=5, depth=2), torch.randn(6, 1, 2, 2)
    w1, b1, w2, b2, w3, b3 = model.parameters()
    hidden_BD = (x_B122.reshape(6, 4) @ w1.T + b1).clamp(min=0)
    hidden_BD = (hidden_BD @ w2.T + b2).clamp(min=0)
    torch.testing.assert_close(model(x_B122), hidden_BD @ w3.T + b3)


def test_an_mlp_of_depth_0_is_linear() -> None:
    assert (
        sum(p.numel() for p in MLP(inputs=4, outputs=3, width=5, depth=0).parameters()) == 4 * 3 + 3
    )


def test_the_convolutional_network_halves_the_resolution_twice() -> None:
    model, x_BCHW = ConvNet(channels=3, classes=7, width=4), torch.randn(2, 3, 8, 8)
    assert model.features(x_BCHW).shape == (2, 8, 2, 2)
    assert model(x_BCHW).shape == (2, 7)
