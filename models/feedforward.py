"""The two plainest networks for images: a multilayer perceptron and a small convolutional network.

B  batch size    C  channels    H, W  height, width    F  features    K  classes or outputs
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class MLP(nn.Module):
    """`depth` hidden layers h ← relu(W h + b) of `width` units, then a linear layer.

    inputs of any shape x_B… with `inputs` numbers each → outputs_BK
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth]
        hidden = [
            layer for i in range(depth) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())
        ]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x_BCHW))


def output_weight(depth: int) -> str:
    """The name of the weight of an MLP's output layer."""
    return f"layers.{2 * depth + 1}.weight"


class ConvNet(nn.Module):
    """Three 3×3 convolutions (the last two halve the resolution), mean over positions, a linear
    layer.

    x_BCHW → logits_BK; channels `width`, 2 `width`, 2 `width`; no normalization
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(x_BCHW).mean((2, 3))))
