"""Handwritten digits, 8×8 pixels, 10 classes: the smallest real image task, bundled with
scikit-learn.

1,797 images, cut 60/20/20 into train, validation and test with equal class frequencies. Pixels are
standardized with the mean and the standard deviation of all training pixels.

Source: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
Learning Repository (its test part, as `sklearn.datasets.load_digits` carries it).
"""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from .arguments import at_least
from .batches import Split, three_parts
from .feedforward import MLP, ConvNet, output_weight
from .supervised import Classification

SIDE = 8
CLASSES = 10


@functools.cache
def load(image_size: int = SIDE) -> Split:
    """The digits as (x_N1HW float32, y_N int64); enlarged by bilinear interpolation if `image_size`
    > 8.
    """
    flat_NF, y_N = load_digits(return_X_y=True)
    parts = three_parts(len(y_N), y_N)
    mean, deviation = flat_NF[parts[0]].mean(), flat_NF[parts[0]].std()
    x_N1HW = torch.tensor((flat_NF - mean) / deviation, dtype=torch.float32).reshape(
        -1, 1, SIDE, SIDE
    )
    if image_size != SIDE:
        x_N1HW = functional.interpolate(x_N1HW, size=(image_size, image_size), mode="bilinear")
    return Split(*((x_N1HW[rows], torch.tensor(y_N[rows])) for rows in parts))


def mlp(width: int = 64, depth: int = 2) -> Classification:
    """Digits with a plain MLP of `depth` hidden layers. Raises ValueError unless width ≥ 1, depth ≥
    0.
    """
    at_least(1, width=width)
    at_least(0, depth=depth)
    network = functools.partial(MLP, SIDE * SIDE, CLASSES, width, depth)
    return Classification(load, network, not_matrices=(output_weight(depth),))


def conv(width: int = 16) -> Classification:
    """Digits with a small convolutional network of `width` first channels. Raises ValueError unless
    ≥ 1.
    """
    at_least(1, width=width)
    network = functools.partial(ConvNet, 1, CLASSES, width)
    return Classification(load, network, not_matrices=("head.weight",))
