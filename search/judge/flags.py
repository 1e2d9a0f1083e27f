"""What the shape of one curve says (S6), and where in training the best checkpoints lie (S8).

The playbook names the flags; their numbers are ours. Most are shares of the *improvement*: the
value of the untrained model minus the best value, or the other way round if the objective is
maximized. A change counts only if it also stands out of the late noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..rules.optimizers import average_of
from ..trial import Array, Trial
from .analysis import best_few

WORSENING = 0.02  # S6: the end is worse than the best by more than this share of the improvement
# S6: the last tenth of training gained more than this share of the improvement
STILL_IMPROVING = 0.01
# S6: step-to-step standard deviation late in training, as a share of the improvement
LATE_NOISE = 0.05
SATURATED = 0.01  # S6: the second half of training gained less than this share of the improvement
# a change is real beyond this many standard errors: < 2 % false alarms at 50 evaluations
NOISE_SIGMAS = 4.0
FAR_TOO_LONG = 0.10  # S8: best checkpoint in the first 10 %: training was far too long
LATE = 0.25  # S8: best checkpoints in the last 25 %: training was too short
ENOUGH = 10  # fewer values than this say nothing about a shape
BLOCK = 20  # steps per median when the noisy training loss is read, at least

FlagName = Literal[
    "overfitting", "late variance", "still improving", "saturated", "training loss rising"
]


@dataclass(frozen=True)
class CurveFlag:
    """A shape worth looking at, in one sentence with its numbers."""

    name: FlagName
    sentence: str


@dataclass(frozen=True)
class Shape:
    """Numbers behind the flags of one sequence of values.

    nan if unknown: it passes no comparison.

    improvement  first value − lowest value; nan if nothing improved or there are too few values
    best, half, before_end, end  means over a tenth of the values: the lowest, that of the tenth
                 before half of training, the last but one, the last
    noise        standard deviation from one value to the next in the second half, drift removed
    error        standard deviation of the difference of two such means: √2 · noise / √(values in a
                 tenth)
    """

    improvement: float
    best: float
    half: float
    before_end: float
    end: float
    noise: float
    error: float


def shape(values: Array) -> Shape:
    """The shape of validation values in the order of training, non-finite ones left out."""
    values = values[np.isfinite(values)]
    if len(values) < ENOUGH or values.min() >= values[0]:
        return Shape(*[math.nan] * 7)
    tenth = max(3, len(values) // 10)
    means = np.convolve(values, np.full(tenth, 1 / tenth), mode="valid")
    late = values[len(values) // 2 :]
    noise = float(np.std(np.diff(late))) / math.sqrt(2)
    return Shape(
        improvement=float(values[0] - values.min()),
        best=float(means.min()),
        half=float(means[max(0, len(values) // 2 - tenth)]),
        before_end=float(means[-1 - tenth]),
        end=float(means[-1]),
        noise=noise,
        error=math.sqrt(2) * noise / math.sqrt(tenth),
    )


def curve_flags(trial: Trial, objective: str) -> list[CurveFlag]:
    """The flags of a feasible trial (S6).

    None if the trial is infeasible or crashed, or if its curve is missing.
    """
    curve = trial.curve
    values = curve.metrics.get(objective)
    if not trial.feasible or values is None:
        return []
    flags = (
        overfitting(values, trial.maximize),
        late_variance(values, trial.maximize),
        still_improving(values, trial.maximize),
        saturated(values, trial.maximize),
        # where an average is evaluated, the loss is of other weights, and may well rise
        None if average_of(trial.point.optimizer) else training_loss_rising(curve.loss),
    )
    return [flag for flag in flags if flag]


def overfitting(values: Array, maximize: bool = False) -> CurveFlag | None:
    """Validation worsens: end − best > 2 % of the improvement, and beyond the noise (S6)."""
    it = shape(-values if maximize else values)
    rise = it.end - it.best
    if rise > WORSENING * it.improvement and rise > NOISE_SIGMAS * it.error:
        best, side = (-it.best, "below") if maximize else (it.best, "above")
        return CurveFlag(
            "overfitting",
            f"validation ended {rise:.3g} {side} its best of {best:.3g}: overfitting (S6)",
        )
    return None


def late_variance(values: Array, maximize: bool = False) -> CurveFlag | None:
    """Validation jumps between evaluations in the second half by > 5 % of the improvement (S6)."""
    it = shape(-values if maximize else values)
    if it.noise > LATE_NOISE * it.improvement:
        return CurveFlag(
            "late variance",
            f"validation varied by ±{it.noise:.3g} from one evaluation to the next at the end (S6)",
        )
    return None


def still_improving(values: Array, maximize: bool = False) -> CurveFlag | None:
    """The last tenth of training gained > 1 % of the improvement, and beyond the noise (S6)."""
    it = shape(-values if maximize else values)
    gain = it.before_end - it.end
    if gain > STILL_IMPROVING * it.improvement and gain > NOISE_SIGMAS * it.error:
        return CurveFlag(
            "still improving", f"still improving: the last tenth of training gained {gain:.3g} (S6)"
        )
    return None


def saturated(values: Array, maximize: bool = False) -> CurveFlag | None:
    """The second half of training gained less than 1 % of the improvement, up to the noise (S6)."""
    it = shape(-values if maximize else values)
    gain = it.half - it.end
    if gain <= SATURATED * it.improvement + it.error:
        best = -it.best if maximize else it.best
        return CurveFlag(
            "saturated", f"saturated at {best:.3g}: the second half of training gained nothing (S6)"
        )
    return None


def training_loss_rising(loss: Array) -> CurveFlag | None:
    """The training loss ends > 2 % of its fall above its lowest, and beyond the noise (S6, R3).

    Batches differ, so the loss is read as medians of blocks of at least 20 steps.
    """
    if not len(loss):  # the curve's file is missing
        return None
    medians = np.array(
        [np.median(block) for block in np.array_split(loss, max(1, min(50, len(loss) // BLOCK)))]
    )
    it = shape(medians)
    rise = it.end - it.best
    if rise > WORSENING * it.improvement and rise > NOISE_SIGMAS * it.error:
        return CurveFlag(
            "training loss rising",
            f"the training loss ended {rise:.3g} above its lowest level of {it.best:.3g} (S6)",
        )
    return None


def checkpoint_note(trials: Iterable[Trial], objective: str) -> str:
    """A sentence if one group trained for too long or too short (S8).

    Empty if neither, or if curves are missing. Too long: the best trial's checkpoint lies in the
    first 10 % of training. Too short: the checkpoints of all of the best few lie in the last 25 %,
    and the best trial was not saturated by then.
    """
    few = [trial for trial in best_few(trials) if trial.curve.total_steps]
    places = [trial.best_step / trial.curve.total_steps for trial in few]
    if places and places[0] <= FAR_TOO_LONG:
        return (
            f"the best checkpoint lies at {places[0]:.0%} of training: max_train_steps is far too "
            "large (S8)"
        )
    if (
        len(places) < 2
        or min(places) < 1 - LATE
        or saturated(few[0].curve.metrics[objective], few[0].maximize)
    ):
        return ""
    return (
        f"all {len(places)} best checkpoints lie in the last {LATE:.0%} of training: "
        f"train longer and retune the decay (S8)"
    )
