"""How near a training is to the edge of stability: its learning rate over the one at which its
update rule becomes unstable, by the sharpest direction of the loss.

A ratio of 1 is the edge of descent with the full gradient on a quadratic. With minibatches training
may break at less, because the noise kicks it out; a network may also pass 1 for a while, because
the loss is no quadratic: it is thrown to where the loss is flatter, and goes on. So a ratio is an
early sign, and no verdict. Source: Cohen et al. 2021 (arXiv 2103.00065), 2022 (arXiv 2207.14484).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..rules.optimizers import second_moment_of
from ..trial import Outcome
from ..words import readable

# Updates before which the second moment is of so few gradients that the ratio of Adam's kin starts
# at 1 to 10,000 in trainings that are sound.
SETTLED = 10
# measured by tests/benchmarks/predicted_edge.py, with momentum on ten networks
MISSED = "off by a factor of 1.7 in the median, and of 12 at worst"
CLOSE = 0.5  # a ratio from which on a training is called near the edge
FAR_BEYOND = 10.0  # a ratio beyond which its number says no more


@dataclass(frozen=True)
class EdgeRatio:
    """A look at a training after `step` updates.

    rate        the learning rate of the next update
    eigenvalue  λ₁ of the Hessian, preconditioned for a rule that divides its steps
    ratio       rate over the learning rate at which the rule becomes unstable there
                (`curvature.stability_limit`); 0 if λ₁ ≤ 0
    """

    step: int
    rate: float
    eigenvalue: float
    ratio: float


@dataclass(frozen=True)
class EdgeRun:
    """One training that was followed.

    outcome  unfinished if it was not followed to its end
    looks    ascending; none after it was no longer finite
    """

    base_lr: float
    optimizer: str
    outcome: Outcome
    looks: tuple[EdgeRatio, ...]

    @property
    def settled(self) -> tuple[EdgeRatio, ...]:
        """The looks that count: from SETTLED on, where steps are divided by a second moment."""
        first = SETTLED if second_moment_of(self.optimizer) else 0
        return tuple(look for look in self.looks if look.step >= first)

    @property
    def highest(self) -> EdgeRatio | None:
        """The look with the highest ratio of those that count; None if none does."""
        return max(self.settled, key=lambda look: look.ratio, default=None)

    @property
    def predicted_edge(self) -> float:
        """The base LR at which the highest ratio would be 1, if λ₁ stayed as it is here.

        inf if no curvature bounds it, nan if nothing was seen.
        """
        highest = self.highest
        if highest is None or math.isnan(highest.ratio):
            return math.nan
        return self.base_lr / highest.ratio if highest.ratio > 0 else math.inf

    @property
    def words(self) -> str:
        """What it did, as "is at 0.97 of the edge at step 120"; without a full stop."""
        highest = self.highest
        if highest is None:
            return "was not seen: it broke or ended too early"
        if highest.ratio > FAR_BEYOND:
            first = next(look.step for look in self.settled if look.ratio > FAR_BEYOND)
            return f"is beyond {FAR_BEYOND:g} times the edge at step {first}"
        return f"is at {readable(highest.ratio)} of the edge at step {highest.step}"


def ratio_sentences(runs: Sequence[EdgeRun], found: float) -> list[str]:
    """What a diagnosis says of the runs that it followed, the first of which is at lr_star.

    `found` is the edge that trainings showed; inf if they showed none.
    """
    if not runs:
        return []
    star, *others = runs
    told = [f"Plain training at base_lr {readable(star.base_lr)} {star.words}."]
    ratio = star.highest.ratio if star.highest else math.nan
    if ratio >= CLOSE:
        where = "near the edge" if ratio < 1 else "beyond the edge for a while"
        told.append(
            f"That is {where}: a longer warmup, a flatter architecture or clipping may allow for "
            "more."
        )
    if others:
        each = [f"at {readable(run.base_lr)} ({run.outcome}) it {run.words}" for run in others]
        told.append(f"For comparison: {'; '.join(each)}.")
    # Adam's kin change what they divide by with the learning rate: no prediction of theirs holds.
    if 0 < ratio <= FAR_BEYOND and second_moment_of(star.optimizer) is None:
        seen = f"trainings break at {readable(found)}" if math.isfinite(found) else "none was found"
        told.append(
            f"If the curvature did not change with base_lr, the edge would be at "
            f"{readable(star.predicted_edge)} (such predictions are {MISSED}); {seen}."
        )
    told.append(
        "The edge, 1, is that of the full gradient: noise of minibatches may break training at "
        "less, and a training that passes 1 may be thrown to where the loss is flatter, and go on."
    )
    return told
