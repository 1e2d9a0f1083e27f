"""Examples in three parts, and the endless batches drawn from one of them.

Examples are a tuple of tensors with one example per row, for instance (x_NCHW, y_N).

  N  examples      B  batch size
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

Examples: TypeAlias = tuple[Tensor, ...]
Rows: TypeAlias = NDArray[np.int64]
Part = Literal["train", "validation", "test"]


# Compared and hashed by identity: a data set is loaded once per process, and tensors have no one
# `==`.
@dataclass(frozen=True, eq=False)
class Split:
    """The three parts of a data set, on the CPU. `test` is never touched while tuning."""

    train: Examples
    validation: Examples
    test: Examples

    @functools.cache  # noqa: B019  # splits live as long as the process
    def part(self, name: Part, device: torch.device) -> Examples:
        """One part on `device`, copied there the first time only."""
        return tuple(tensor.to(device) for tensor in getattr(self, name))


def three_parts(
    count: int, labels_N: NDArray[Any] | None = None, fraction: float = 0.2
) -> tuple[Rows, Rows, Rows]:
    """Rows 0 … count − 1 cut at random, always in the same way, into train, validation and test.

    Validation and test get `fraction` of the rows each. With `labels_N` the cut is stratified: the
    classes have the same frequencies in each part.
    """
    rest, test = _held_out(np.arange(count), fraction, labels_N)
    train, validation = _held_out(rest, fraction / (1 - fraction), labels_N)
    return train, validation, test


def _held_out(
    rows: Rows, fraction: float, labels_N: NDArray[Any] | None = None
) -> tuple[Rows, Rows]:
    strata = None if labels_N is None else labels_N[rows]
    kept, out = train_test_split(rows, test_size=fraction, stratify=strata, random_state=0)
    return kept, out


def endless_batches(examples: Examples, batch_size: int, seed: int) -> Iterator[Examples]:
    """Endless batches of exactly `batch_size` examples, on the CPU, the same for the same seed.

    The batches, laid end to end, are one random permutation of the examples after the other; so a
    batch may cross the border of two epochs, and every batch size sees the examples in one order.

    Raises ValueError at once if `batch_size` is not between 1 and the number of examples.
    """
    count = len(examples[0])
    if not 1 <= batch_size <= count:
        raise ValueError(
            f"batch_size: must be between 1 and the {count} training examples, got {batch_size}"
        )
    return (
        tuple(tensor[rows_B] for tensor in examples) for rows_B in _rows(count, batch_size, seed)
    )


def _rows(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pending = torch.empty(0, dtype=torch.int64)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator)])
        yield pending[:batch_size]
        pending = pending[batch_size:]
