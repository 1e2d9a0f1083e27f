"""Wide residual networks for images, of any size and stride.

  B  batch size    C  channels    H, W  height, width    K  classes

Source: Zagoruyko & Komodakis 2016, "Wide Residual Networks" (arXiv 1605.07146):
WRN-`depth`-`width`. The strides are the ones that figure 4 of the Tuning Playbook changes from 2 to
1.
"""

from __future__ import annotations

import functools
from typing import cast

import torch
from torch import Tensor, nn

from .arguments import at_least, one_of
from .digits import CLASSES, load
from .supervised import Classification

CHANNELS = (16, 32, 64)  # of the three groups, at width 1
NORMALIZATIONS = ("batch", "none")
STRIDES = ("1", "2")
STANDARD_STRIDES = "1,2,2"


class WideResNet(nn.Module):
    """3×3 convolution, three groups of (depth − 4)/6 blocks, mean over positions, linear layer.

    x_BCHW → logits_BK; the first block of group i divides the resolution by strides[i].
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        depth: int,
        width: int,
        strides: tuple[int, ...],
        normalization: str,
    ) -> None:
        super().__init__()
        sizes = [CHANNELS[0], *(width * size for size in CHANNELS)]
        blocks = [
            Block(
                sizes[group + (i > 0)],
                sizes[group + 1],
                strides[group] if i == 0 else 1,
                normalization,
            )
            for group in range(len(CHANNELS))
            for i in range((depth - 4) // 6)
        ]
        self.features = nn.Sequential(
            _convolution(channels, sizes[0], 1), *blocks, _norm(sizes[-1], normalization), nn.ReLU()
        )
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(x_BCHW).mean((2, 3))))


class Block(nn.Module):
    """Pre-activation block: x + f(h), h = relu(Norm(x)), f = convolution, Norm, relu, convolution.

    x_BCHW → x_BC'H'W'. Where the shape changes, a 1×1 convolution of h stands in for x.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, normalization: str) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(inputs, normalization), nn.ReLU())
        self.branch = nn.Sequential(
            _convolution(inputs, outputs, stride),
            _norm(outputs, normalization),
            nn.ReLU(),
            _convolution(outputs, outputs, 1),
        )
        self.reshapes = inputs != outputs or stride != 1
        if self.reshapes:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.before(x_BCHW)
        carried = self.shortcut(h_BCHW) if self.reshapes else x_BCHW
        return cast(Tensor, carried + self.branch(h_BCHW))


class ChannelScale(nn.Module):
    """γ_c x + β_c: what is left of batch normalization when its statistics are taken away."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.weight * x_BCHW + self.bias


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    # No bias: a normalization or a channel scale, which has one, follows before any nonlinearity.
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _norm(channels: int, normalization: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if normalization == "batch" else ChannelScale(channels)


def parse_strides(strides: str) -> tuple[int, ...]:
    """ "1,2,2" → (1, 2, 2): one stride per group. Raises ValueError for anything but three times 1
    or 2.
    """
    parts = [part.strip() for part in str(strides).split(",")]
    if len(parts) != len(CHANNELS) or any(part not in STRIDES for part in parts):
        raise ValueError(
            f'strides: must be three numbers, each 1 or 2, such as "1,2,2", got {strides!r}'
        )
    return tuple(int(part) for part in parts)


def check_depth(depth: int) -> int:
    """The depth, if three groups of equal length can have it; else ValueError."""
    at_least(10, depth=depth)
    if depth % 6 != 4:
        raise ValueError(
            f"depth: must be 6 n + 4 with n ≥ 1 blocks per group (10, 16, 22, …), got {depth}"
        )
    return depth


def digits(
    depth: int = 10,
    width: int = 1,
    strides: str = STANDARD_STRIDES,
    normalization: str = "batch",
    image_size: int = 8,
) -> Classification:
    """Digits, 8×8 or enlarged to 16×16, with WRN-`depth`-`width`.

    Raises ValueError unless depth = 6 n + 4 ≥ 10, width ≥ 1, strides are three times 1 or 2,
    normalization is "batch" or "none", and image_size is 8 or 16.
    """
    at_least(1, width=width)
    one_of(NORMALIZATIONS, normalization=normalization)
    one_of((8, 16), image_size=image_size)
    network = functools.partial(
        WideResNet, 1, CLASSES, check_depth(depth), width, parse_strides(strides), normalization
    )
    standard = parse_strides(strides) == parse_strides(STANDARD_STRIDES)
    other = {} if standard else {"standard strides": {"strides": STANDARD_STRIDES}}
    return Classification(
        functools.partial(load, image_size), network, other, not_matrices=("head.weight",)
    )
