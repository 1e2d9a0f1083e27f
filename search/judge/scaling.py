"""How learning rate, stability and time to a target change with the batch size.

Pure functions of trials: of each optimizer and scientific value, the trials of several batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..trial import Trial
from .analysis import GroupSummary
from .comparison import Interval
from .laws import Exponent, Law, LeftOut, Prediction
from .optimum import Optimum
from .targets import StepsToTarget


@dataclass(frozen=True)
class AtBatchSize:
    """What the trials of one batch size say.

    summary          lr_star, as_good, best value, headroom, ... as everywhere
    edge             (largest base LR that trains, lowest that does not), with seeds by halves
                     (`stability_edge.bracket`); an end is 0 or inf where nothing bounds it
    optimum          of the smooth curve: what laws are fitted to
    usable_decades   nan if the value of the untrained model is not known
    max_train_steps  updates that its trainings were planned for, ascending
    """

    batch_size: int
    summary: GroupSummary
    edge: Interval
    optimum: Optimum
    usable_decades: float
    max_train_steps: tuple[int, ...]


@dataclass(frozen=True)
class Trend:
    """Whether a quantity changes with the batch size: slope per decade of it.

    name      usable decades, best value, or headroom (of its log10)
    values    by batch size, those that are known
    interval  of the slope, 95 %
    answer    rises, falls (its interval leaves out 0), not shown, or unknown (fewer than three)
    words     the answer in a sentence
    """

    name: str
    values: tuple[tuple[int, float], ...]
    slope: float
    interval: Interval
    answer: Literal["rises", "falls", "not shown", "unknown"]
    words: str


@dataclass(frozen=True)
class Scaling:
    """All that the trials of one optimizer and scientific value say across batch sizes.

    sizes           ascending
    edge            exponent of unstable_base_lr; None if fewer than three batch sizes have an edge
    exponent        of the optimal base LR, by the power law; None likewise
    laws            of the optimal base LR; empty likewise
    left_out        each batch size predicted from the others, the largest last
    targets         steps to target; None if nothing can be said
    trends          usable decades, best value, headroom
    predictions     base LRs for the batch sizes that were asked for
    edge_band, optimum_band   fit and 95 % interval at batch sizes from the smallest to the largest
                    one, for figures
    settles         what would tell the exponents apart, in a sentence; empty if they are told apart
    sentence        the answer
    notes           what could not be said, and why
    """

    optimizer: str
    scientific: tuple[tuple[str, Any], ...]
    sizes: tuple[AtBatchSize, ...]
    edge: Exponent | None
    exponent: Exponent | None
    laws: tuple[Law, ...]
    left_out: tuple[LeftOut, ...]
    targets: StepsToTarget | None
    trends: tuple[Trend, ...]
    predictions: tuple[Prediction, ...]
    edge_band: tuple[Prediction, ...]
    optimum_band: tuple[Prediction, ...]
    settles: str
    sentence: str
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The optimizer and its scientific values, as in a group's label."""
        return self.optimizer + "".join(f", {name}={value}" for name, value in self.scientific)

    def record(self) -> dict[str, Any]:
        """Plain values for scaling.json; numbers that are not known are nan."""
        raise NotImplementedError


def scalings(
    trials: Iterable[Trial],
    objective: str,
    scientific: Sequence[str] = (),
    target: float | None = None,
    predict: Sequence[int] = (),
) -> list[Scaling]:
    """One per optimizer and values of the scientific hyperparameters, in the groups' order.

    objective   its name, as a curve's metric
    target      of the objective, for steps to target; by default the best value that every batch
                size reaches at five base LRs
    predict     batch sizes to recommend a base LR for
    """
    raise NotImplementedError
