"""Which column of a log is which, by the names that are usual: what is guessed is said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Words = frozenset[str]


def _all(*names: str) -> tuple[Words, ...]:
    return tuple(frozenset(name.split()) for name in names)


# Names as sets of words, the best first: `train/loss`, `loss_train` and `Loss/train` are the same.
STEPS = _all(
    *("global step", "trainer global step", "train global step", "step", "steps"),
    *("train step", "training step", "iteration", "iterations", "iter", "update", "updates"),
    *("num updates", "num steps"),
)
LOSSES = _all(
    *("train loss step", "training loss step", "loss step", "loss", "train loss"),
    *("training loss", "train batch loss", "batch loss", "train total loss", "total loss"),
    *("train loss epoch", "training loss epoch", "loss epoch"),
)
GRAD_NORMS = _all(
    *("unclipped grad norm", "grad norm unclipped", "grad norm", "gradient norm"),
    *("train grad norm", "training grad norm", "train gradient norm", "grad norm step"),
    *("total grad norm", "global grad norm", "grad 2 0 norm total", "gnorm", "train gnorm"),
)
# of the names of evaluations; test sets are a last resort
VALIDATION = frozenset(("val", "valid", "validation", "eval", "evaluation", "dev"))
TEST = frozenset(("test",))
# of evaluations that are no measure of a model
# fmt: off
NO_MEASURE = frozenset((
    "step", "steps", "epoch", "epochs", "runtime", "time", "duration", "second", "seconds", "sec",
    "samples", "per", "num", "count", "lr", "memory", "speed", "rate", "iteration", "iter", "size",
))
# fmt: on
# W&B's chart exports: the lowest and highest of what a point stands for
BOUNDS = ("__MIN", "__MAX")


@dataclass(frozen=True)
class GivenColumns:
    """Names of columns that the user has given; None: guess."""

    step: str | None = None
    loss: str | None = None
    grad_norm: str | None = None
    objective: str | None = None

    def given(self) -> dict[str, str]:
        return {role: name for role, name in vars(self).items() if name is not None}


def guess(lengths: Mapping[str, int], roles: Iterable[str]) -> dict[str, str]:
    """The column of each role that one is found for, given how many numbers each column holds."""
    usable = [name for name in lengths if lengths[name] and not name.endswith(BOUNDS)]
    own = {name: words(name) for name in usable}
    found = {
        "step": _by_name(own, lengths, STEPS),
        "loss": _by_name(own, lengths, LOSSES),
        "grad_norm": _by_name(own, lengths, GRAD_NORMS),
        "objective": _objective(own),
    }
    return {role: name for role in roles if (name := found[role])}


def words(name: str) -> Words:
    """The words of a name: of `run-1 - train/loss`, as W&B exports a chart, those of the metric."""
    _, _, metric = name.rpartition(" - ")
    return frozenset([word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", metric)])


def _by_name(own: Mapping[str, Words], lengths: Mapping[str, int], best: tuple[Words, ...]) -> str:
    """The column of the best name; of several, the one that holds most, and then the first."""
    found = [name for name in own if own[name] in best]
    return min(found, key=lambda one: (best.index(own[one]), -lengths[one]), default="")


def _objective(own: Mapping[str, Words]) -> str:
    """A loss on validation data before any other measure, and on test data where there is none."""
    for data in (VALIDATION, TEST):
        found = [name for name in own if own[name] & data and not own[name] & NO_MEASURE]
        if found:
            return min(found, key=lambda one: ("loss" not in own[one], len(own[one])))
    return ""
