"""The random numbers of a process (Python, NumPy, torch), seeded per trial and given back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMPY_SEEDS = 2**32  # as many as numpy.random.seed takes


@dataclass(frozen=True, eq=False)
class RandomState:
    """Where all global generators of a process stand."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all() if started else ()
        numpy = np.random.get_state()  # noqa: NPY002
        return cls(random.getstate(), numpy, torch.get_rng_state(), tuple(cuda))

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors by name, for a file; `from_tensors` is the inverse."""
        kind, keys, *rest = self.numpy
        plain = json.dumps([self.python, [kind, keys.tolist(), *rest]]).encode()
        found = {
            "random/plain": torch.tensor(list(plain), dtype=torch.uint8),
            "random/torch": self.torch,
        }
        return found | {f"random/cuda{i}": state for i, state in enumerate(self.cuda)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RandomState:
        """Raises KeyError or ValueError where a file lacks it."""
        python, (kind, keys, *rest) = json.loads(bytes(tensors["random/plain"].tolist()))
        version, numbers, gauss = python
        cuda = sorted(name for name in tensors if name.startswith("random/cuda"))
        return cls(
            (version, tuple(numbers), gauss),
            (kind, np.array(keys, np.uint32), *rest),
            tensors["random/torch"],
            tuple(tensors[name] for name in cuda),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        pairs = zip((self.torch, *self.cuda), (other.torch, *other.cuda), strict=False)
        numpy = zip(self.numpy, other.numpy, strict=True)
        return (
            self.python == other.python
            and all(np.array_equal(one, another) for one, another in numpy)
            and all(torch.equal(one, another) for one, another in pairs)
        )

    __hash__ = None  # type: ignore[assignment]  # states are compared, never hashed


def seed_all(seed: int) -> None:
    """Seed every global generator, those of accelerators included."""
    random.seed(seed)
    np.random.seed(seed % NUMPY_SEEDS)  # noqa: NPY002  # the global one is what workloads use
    torch.manual_seed(seed)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Give the caller's random numbers back at the end of a block, however it ends."""
    before = RandomState.now()
    try:
        yield
    finally:
        before.restore()
