"""MNIST, Fashion-MNIST and CIFAR-10 from openml.org, fetched the first time a study asks for them.

Nothing is downloaded by making a workload: only its first batch or evaluation reads the data.
OpenML states no test set, so the images are cut at random, stratified: 1/7 of them for validation
and 1/7 for test (10,000 each of the 70,000 of MNIST). Images stay bytes in memory; the models
standardize them.

  N  images    C  channels    H, W  height, width

Source: LeCun et al. 1998; Xiao, Rasul & Vollgraf 2017 (arXiv 1708.07747); Krizhevsky 2009.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import fetch_openml, get_data_home
from torch import Tensor, nn

from .arguments import at_least, one_of
from .batches import Split, three_parts
from .feedforward import MLP, output_weight
from .supervised import Classification
from .wide_resnet import NORMALIZATIONS, WideResNet, check_depth, parse_strides

CLASSES = 10
HELD_OUT = 1 / 7


@dataclass(frozen=True)
class Source:
    """A data set on openml.org; mean and deviation of its pixels per channel, as shares of 255."""

    name: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


MNIST = Source("mnist_784", (1, 28, 28), (0.1307,), (0.3081,))
FASHION_MNIST = Source("Fashion-MNIST", (1, 28, 28), (0.2860,), (0.3530,))
CIFAR_10 = Source("CIFAR_10", (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@functools.cache
def load(source: Source) -> Split:
    """The images as (x_NCHW uint8, y_N int64). Raises OSError, saying what to do, if they cannot be
    had.
    """
    cached = Path(get_data_home()) / "tunewright" / f"{source.name}.npz"
    if not cached.exists():
        _fetch(source, cached)
    with np.load(cached) as arrays:
        x_NCHW = torch.from_numpy(arrays["x"]).reshape(-1, *source.shape)
        y_N = torch.from_numpy(arrays["y"])
    parts = three_parts(len(y_N), y_N.numpy(), HELD_OUT)
    return Split(*((x_NCHW[rows], y_N[rows]) for rows in parts))


def _fetch(source: Source, cached: Path) -> None:
    """Download `source` and keep its images as bytes: parsing OpenML's text again would take
    minutes.
    """
    parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"
    try:
        table = fetch_openml(source.name, version=1, as_frame=False, parser=parser)
    except OSError as error:
        raise OSError(
            f"{source.name}: not on this machine, and openml.org could not be reached ({error}). "
            f"Run the study once where there is a network, then copy the file {cached} to the "
            "same place here"
        ) from error
    cached.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cached.with_suffix(f".{os.getpid()}.npz")
    np.savez(unfinished, x=table.data.astype(np.uint8), y=table.target.astype(np.int64))
    unfinished.replace(cached)  # whole or not at all, also when several workers fetch at once


class Standardize(nn.Module):
    """(x/255 − mean_C) / deviation_C for images of bytes; x_NCHW → x_NCHW."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(source.mean).reshape(-1, 1, 1))
        self.register_buffer("deviation", 255 * torch.tensor(source.deviation).reshape(-1, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return (x_NCHW - self.mean) / self.deviation


def mnist(width: int = 256, depth: int = 2) -> Classification:
    """MNIST with a plain MLP of `depth` hidden layers. Raises ValueError unless width ≥ 1, depth ≥
    0.
    """
    return _mlp(MNIST, width, depth)


def fashion_mnist(width: int = 256, depth: int = 2) -> Classification:
    """Fashion-MNIST with a plain MLP. Raises ValueError unless width ≥ 1, depth ≥ 0."""
    return _mlp(FASHION_MNIST, width, depth)


def cifar10(
    depth: int = 10, width: int = 1, strides: str = "1,2,2", normalization: str = "batch"
) -> Classification:
    """CIFAR-10 with WRN-`depth`-`width`, without augmentation. Raises ValueError as
    `wide_resnet.digits`.
    """
    at_least(1, width=width)
    one_of(NORMALIZATIONS, normalization=normalization)
    sizes = (CIFAR_10.shape[0], CLASSES, check_depth(depth), width, parse_strides(strides))
    return _workload(CIFAR_10, functools.partial(WideResNet, *sizes, normalization), "head.weight")


def _mlp(source: Source, width: int, depth: int) -> Classification:
    at_least(1, width=width)
    at_least(0, depth=depth)
    channels, height, side = source.shape
    network = functools.partial(MLP, channels * height * side, CLASSES, width, depth)
    return _workload(source, network, output_weight(depth))


def _workload(source: Source, network: Callable[[], nn.Module], output: str) -> Classification:
    """`output`: the name of the weight of the network's output layer."""
    architecture = functools.partial(_standardize, source, network)
    return Classification(
        functools.partial(load, source), architecture, not_matrices=(f"1.{output}",)
    )


def _standardize(source: Source, network: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(Standardize(source), network())
