"""What a study may give in place of a hyperparameter, so that it means the same at each batch size.

    half_life_examples  h   x = 2^(−B / h): an average has forgotten half after h examples
    one_minus           u   x = 1 − u: evenly spread on a log axis where x is close to 1
    timescale_epochs    τ   λ = B / (τ N base_lr): 1 / (base_lr λ) updates, counted in epochs

for a hyperparameter x or a weight decay λ, batch size B and N training examples. Sources: Marek et
al. 2025, "Small Batch Size Training for Language Models", arXiv 2507.07101 (half-life in tokens);
Wang & Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size", arXiv
2405.13698.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# relative: of what is read back from a value, a float near 1 keeps fewer digits than it has
READ_BACK = 1e-6


@dataclass(frozen=True)
class Training:
    """What a tie depends on. `train_examples` is nan where a study does not say it."""

    batch_size: int
    base_lr: float
    train_examples: float = math.nan

    @property
    def updates_per_epoch(self) -> float:
        return self.train_examples / self.batch_size


@dataclass(frozen=True)
class Tie:
    """A quantity that a study gives in place of a hyperparameter.

    rule, holds    what it must be, in words and as a test
    value          the hyperparameter, from the quantity and the training
    quantity       the inverse
    by_batch_size  whether the hyperparameter differs by batch size
    by_epochs      whether it does by base_lr and the number of training examples, too
    """

    name: str
    rule: str
    holds: Callable[[Any], bool]
    value: Callable[[float, Training], float]
    quantity: Callable[[float, Training], float]
    description: str
    example: Any
    by_batch_size: bool = True
    by_epochs: bool = False

    def is_read_back(self, quantity: float, training: Training) -> bool:
        """Whether the hyperparameter, as a float, still tells the quantity."""
        value = self.value(quantity, training)
        return math.isclose(self.quantity(value, training), quantity, rel_tol=READ_BACK)


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return _is_positive(value) and value <= 1


def _of_half_life(examples: float, training: Training) -> float:
    return float(0.5 ** (training.batch_size / examples))


def _half_life(share: float, training: Training) -> float:
    if not 0 < share < 1:
        return 0.0 if share <= 0 else math.inf
    return -training.batch_size * math.log(2) / math.log(share)


def _one_minus(value: float, training: Training) -> float:
    return 1.0 - value


def _of_timescale(epochs: float, training: Training) -> float:
    return 1.0 / (epochs * training.updates_per_epoch * training.base_lr)


def _timescale(decay: float, training: Training) -> float:
    if decay == 0:
        return math.inf
    return 1.0 / (decay * training.updates_per_epoch * training.base_lr)


TIES: dict[str, Tie] = {
    tie.name: tie
    for tie in (
        Tie(
            "half_life_examples",
            "a number > 0",
            _is_positive,
            _of_half_life,
            _half_life,
            description="Of a share that is kept, the examples after which half is forgotten: "
            "0.5 ** (batch_size / half_life_examples) at each batch size",
            example={"low": 1e4, "high": 1e6, "log": True},
        ),
        Tie(
            "one_minus",
            "a number in (0, 1]",
            _is_share,
            _one_minus,
            _one_minus,
            description="Of a share that is kept, what is not: 1 − one_minus",
            example={"low": 0.01, "high": 0.5, "log": True},
            by_batch_size=False,
        ),
        Tie(
            "timescale_epochs",
            "a number > 0",
            _is_positive,
            _of_timescale,
            _timescale,
            description="Of weight decay, 1 / (base_lr × weight_decay) updates, counted in epochs "
            "of `train_examples`",
            example=[1, 10],
            by_epochs=True,
        ),
    )
}
