"""When a training loss rises by more than the scatter of minibatches: its first rise.

Losses of a minibatch scatter about a *typical* loss, the median over WINDOW updates. The scatter is
measured twice: by differences and, where all losses are positive, by ratios (of logarithms).
Additive noise shows in the first, multiplicative noise (a mean of few squared errors, a likelihood)
in the second; a rise must stand out of both. So a run that learns nothing does not rise at any
batch size, nor does one that learns with noisy minibatches.

Typical losses at the start, and what was learned since, set the scale; the loss itself does not,
because it may start near 0 or change its sign. Every pass over a curve takes time and memory in
proportion to its length. Source: Tuning Playbook, "How can optimization failures be debugged and
mitigated?" (R2, R3, R5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ..trial import Array

EARLY_STEPS = 25  # "the first 25 or so" (R5)
WINDOW = 25  # updates over which a typical loss is taken
# updates whose differences tell how minibatches scatter at the start: twice the early steps
FIRST = 51
# of the level at the start: a loss that fell this far had steadily declined (R2)
LEARNED_FRACTION = 0.20
UNLEARNED_FRACTION = 0.05  # of that level: a smaller fall does not count as learning
FEW = (1, 3, 5, 7)  # numbers of first losses, which may come before a blow-up
RISEN_FRACTION = 0.5  # an early rise is half of what is learned, or of the loss if nothing is
# a later rise is a tenth of what was learned (a language model's spike of 1.2 nats: 15 %)
RISE_FRACTION = 0.10
LASTING_FRACTION = 0.05  # half of that suffices if the loss never falls back
ONSET_FRACTION = 0.15  # of such a rise: where it begins to show
LUCK = 6.0  # deviations; under normal noise, typical losses differ by more once in 10⁹ times
# deviation of the difference of two medians of WINDOW normal losses
MEDIANS = math.sqrt(math.pi / WINDOW)
NORMAL = 1.4826  # standard deviation / median absolute deviation, of normal noise
# percentile of the scatter that shows heavy tails, and its place under normal noise
TAIL, TAIL_DEVIATIONS = 95, 1.645
TAIL_WINDOW = 101  # updates before a rise that tell how minibatches scatter

# How many updates a rise lasts, and how many deviations high it must be: by differences, by
# differences where there are no ratios, and by ratios. Of t₂ noise, the heaviest considered, 0.5 %
# of values lie beyond 8 deviations and 2 % beyond 4: two in a row, three of five or eight of
# fifteen occur less than once in a thousand runs of a thousand updates. The first steps say little
# about the scatter, so a rise must be higher there.
EARLY_RISES = ((2, 6.0, 12.0, 3.5), (5, 5.0, 8.0, 2.5))
RISES = ((5, 6.0, 6.0, 3.0), (15, 4.0, 4.0, 2.0))
# A single update counts only if it is beyond such noise: one t₂ value in 10⁶ lies beyond 1,000
# deviations.
EXCURSION_DEVIATIONS, EXCURSION_FACTOR = 1000.0, 10.0
SPIKE_DEVIATIONS = (25.0, 6.0)  # as differences and as ratios: one t₂ value in 2,000
SPIKE_SHARE, FEWEST_SPIKES = 0.003, 3  # three of them, also in 1,000 updates, are no noise
BLOCKS = 20  # typical losses by which a slow drift is seen


@dataclass(frozen=True)
class Levels:
    """The reference values of a loss curve.

    start    loss before training: the first minibatch's, corrected if that was an unlucky one or,
             where nothing else shows it, a lucky one
    chance   a constant predictor's: the workload's `chance_loss`, else `start`
    lowest   lowest typical loss
    scatter  standard deviation of minibatch losses, taken as normal, where it is low: a blow-up
             scatters more
    ratio    the same of their logarithms; 0 where a loss is not positive
    """

    start: float
    chance: float
    lowest: float
    scatter: float
    ratio: float

    @property
    def highest_start(self) -> float:
        """The higher one of start and chance: above it, training has made the model worse."""
        return max(self.start, self.chance)

    @property
    def learned(self) -> float:
        """The fall from chance to the lowest typical loss; 0 if luck may have done that."""
        fall = self.chance - self.lowest
        lucky = max(UNLEARNED_FRACTION * abs(self.chance), self.luck)
        return fall if fall > lucky else 0.0

    @property
    def scale(self) -> float:
        """What rises are measured by: what was learned, or the level itself where nothing was."""
        return self.learned or max(abs(self.chance), abs(self.start))

    @property
    def scale_at_chance(self) -> float:
        """The size of the level itself: that of chance, or of the start where chance is 0."""
        return abs(self.chance) or abs(self.start)

    @property
    def luck(self) -> float:
        """How far two typical losses differ by chance."""
        return LUCK * MEDIANS * self.scatter

    def above(self, loss: float, level: float) -> bool:
        """Whether a typical loss lies above a level by more than minibatches make them differ."""
        if loss <= level + self.luck:
            return False
        return not self.ratio or level <= 0 or math.log(loss / level) > LUCK * MEDIANS * self.ratio


def levels(loss: Array, chance_loss: float) -> Levels:
    """The levels of a curve of finite losses, one at least."""
    start, chance = references(loss, chance_loss)
    center = typical(loss)
    positive = bool(loss.min() > 0)
    return Levels(
        start=start,
        chance=chance,
        lowest=float(center.min()),
        scatter=_low_scatter(loss - center),
        ratio=_low_scatter(np.log(loss / center)) if positive else 0.0,
    )


def references(loss: Array, chance_loss: float) -> tuple[float, float]:
    """Loss of the untrained model and of a constant predictor (`Levels.start`, `Levels.chance`)."""
    if math.isnan(chance_loss):
        start = _start(loss)
        return start, start
    first = min(float(loss[0]), float(np.median(loss[:3])))
    # so far above chance, chance does not show whether the first minibatch was a lucky one
    far = first > chance_loss + RISEN_FRACTION * abs(chance_loss)
    return (_start(loss) if far else first), chance_loss


def _low_scatter(away: Array) -> float:
    """The lower quartile of the scatter over WINDOW updates."""
    return NORMAL * float(np.percentile(typical(np.abs(away)), 25))


def typical(loss: Array) -> Array:
    """The median over WINDOW updates around each."""
    return np.asarray(scipy.ndimage.median_filter(loss, min(WINDOW, len(loss)), mode="mirror"))


def _start(loss: Array) -> float:
    """The first minibatch's loss; or, if it was a lucky one, as much more as scatter explains.

    Only the next losses can show that, and they may have blown up. So the loss is raised to their
    median at most, and to at most LUCK deviations above the median of the first few, by differences
    and by ratios. If the first minibatch was an unlucky one, the next ones count.
    """
    scatter, ratio = _step_scatter(loss), _step_scatter(_logarithms(loss))
    highest = [float(np.median(loss[:WINDOW]))]
    for count in FEW:
        few = float(np.median(loss[:count]))
        highest.append(few + LUCK * scatter / math.sqrt(count))
        if ratio:
            highest.append(few * math.exp(LUCK * ratio / math.sqrt(count)))
    return max(min(highest), min(float(loss[0]), float(np.median(loss[:3]))))


def _logarithms(loss: Array) -> Array:
    """Of the first losses; empty where one is not positive."""
    first = loss[:FIRST]
    return np.log(first) if first.min() > 0 else first[:0]


def _step_scatter(values: Array) -> float:
    """The deviation of the first losses, from the differences of neighbours.

    A steady decline hardly changes those.
    """
    steps = np.diff(values[:FIRST])
    return _low_scatter(steps) / math.sqrt(2) if len(steps) else 0.0


def first_rise(loss: Array, level: Levels) -> float:
    """The first update at which the loss blew up; inf if it never did.

    A rise in the first steps above the start; a later one above the updates before it; one update
    out of all bounds, or spikes that repeat; a loss that drifted up and never made that good.
    """
    center = typical(loss)
    sudden = min(_early(loss, level), _later(loss, level, center), _single(loss, level, center))
    drift = _drift(loss, level, center)
    # typical losses place a sudden rise less well
    return drift if drift < sudden - WINDOW else sudden


def _early(loss: Array, level: Levels) -> float:
    start, scatter, ratio = (
        level.highest_start,
        _step_scatter(loss),
        _step_scatter(_logarithms(loss)),
    )
    floor = start + RISEN_FRACTION * level.scale
    first = loss[1 : EARLY_STEPS + 1]
    for lasting, deviations, without_ratio, ratios in EARLY_RISES:
        if len(first) < lasting:
            continue
        if ratio and start > 0:
            bar = max(start + deviations * scatter, start * math.exp(ratios * ratio))
        else:
            bar = start + without_ratio * scatter
        found = np.flatnonzero(_ahead(first, lasting) > max(floor, bar))
        if len(found):
            return 1 + _first_of(first > floor, int(found[0]))
    return math.inf


def _first_of(high: NDArray[np.bool_], at: int) -> int:
    """Where the unbroken stretch of high losses began that holds at a place, or soon after it."""
    place = at + int(np.argmax(high[at:]))
    before = np.flatnonzero(~high[:place])
    return int(before[-1]) + 1 if len(before) else 0


def _ahead(values: Array, count: int) -> Array:
    """For each place, the median of `count` values from it on; of two values, the lower one.

    The result is shorter by count − 1.
    """
    ends = len(values) - count + 1
    if count == 2:
        return np.minimum(values[:-1], values[1:])
    medians = np.asarray(scipy.ndimage.median_filter(values, count, mode="nearest"))
    return medians[count // 2 : count // 2 + ends]


def _later(loss: Array, level: Levels, center: Array) -> float:
    """Each update from WINDOW on against the WINDOW before it."""
    if len(loss) < WINDOW + RISES[0][0]:
        return math.inf
    before, scatter = _before(loss, center)
    floor = before + RISE_FRACTION * level.scale
    logs = _before_in_logarithms(loss) if level.ratio else None
    found = math.inf
    for lasting, deviations, _, ratios in RISES:
        after = _ahead(loss[WINDOW:], lasting)
        count = len(after)
        bar = np.maximum(floor, before + deviations * scatter)
        high = after > bar[:count]
        if logs is not None:
            high &= np.log(after) > (logs[0] + ratios * logs[1])[:count]
        rises = np.flatnonzero(high)
        if len(rises):
            at = int(rises[0])
            # It starts within the window that shows it: at the first update that stands out of
            # those before.
            found = min(found, at + WINDOW + int(np.argmax(loss[at + WINDOW :] > bar[at])))
    return found


def _medians_before(center: Array) -> Array:
    """For each update from WINDOW on: the median of the WINDOW before it.

    `center` holds the typical losses.
    """
    return center[WINDOW // 2 : len(center) - WINDOW // 2 - 1]


def _before(values: Array, center: Array) -> tuple[Array, Array]:
    """For each update from WINDOW on: the median of the WINDOW before it, and the scatter there.

    The scatter is over the TAIL_WINDOW updates before. It is the larger one of two: that of half of
    the values, and that of the high ones, which is larger if tails are heavy.
    """
    away = values - center
    last = WINDOW - 1
    half = NORMAL * _trailing(np.abs(away), 50)[last:-1]
    tail = _trailing(away, TAIL)[last:-1] / TAIL_DEVIATIONS
    return _medians_before(center), np.maximum(half, tail)


def _before_in_logarithms(loss: Array) -> tuple[Array, Array]:
    logarithms = np.log(loss)
    return _before(logarithms, typical(logarithms))


def _trailing(values: Array, percentile: float) -> Array:
    """A percentile of the TAIL_WINDOW values that end with each; the first ones are mirrored."""
    padded = np.pad(values, (TAIL_WINDOW - 1, 0), mode="symmetric")
    ranked = scipy.ndimage.percentile_filter(padded, percentile, TAIL_WINDOW, mode="nearest")
    middle = TAIL_WINDOW // 2  # the filter's windows lie around each place
    return np.asarray(ranked[middle : middle + len(values)])


def _single(loss: Array, level: Levels, around: Array) -> float:
    """One update beyond any noise, or too many spikes of one update even for heavy tails."""
    # in the first steps the start is what went before
    center = np.maximum(around, level.highest_start)
    center[WINDOW:] = np.maximum(around[WINDOW:], _medians_before(around))
    height, scatter = loss - center, _local_scatter(loss - around)
    high = height > RISE_FRACTION * level.scale
    far = high & (
        height > np.maximum(EXCURSION_DEVIATIONS * scatter, EXCURSION_FACTOR * level.scale)
    )
    spikes = high & (height > SPIKE_DEVIATIONS[0] * scatter)
    if level.ratio:
        spikes &= np.log(loss / center) > SPIKE_DEVIATIONS[1] * _local_scatter(
            np.log(loss / around)
        )
    count = int(spikes.sum())
    if count < max(FEWEST_SPIKES, SPIKE_SHARE * len(loss)):
        spikes = far
    found = np.flatnonzero(spikes)
    return int(found[0]) if len(found) else math.inf


def _local_scatter(away: Array) -> Array:
    """The scatter over the TAIL_WINDOW updates around each."""
    width = min(TAIL_WINDOW, len(away))
    return NORMAL * np.asarray(scipy.ndimage.median_filter(np.abs(away), width, mode="mirror"))


def _drift(loss: Array, level: Levels, center: Array) -> float:
    """A typical loss that ends above its lowest, too slow for a rise to be seen."""
    blocks = [
        np.median(part) for part in np.array_split(loss, max(1, min(BLOCKS, len(loss) // WINDOW)))
    ]
    lowest, ended = float(min(blocks)), float(min(blocks[-2:]))
    if ended - lowest < LASTING_FRACTION * level.scale or not level.above(ended, lowest):
        return math.inf
    return last_below(center, lowest + max(level.luck / 2, ONSET_FRACTION * (ended - lowest)))


def last_below(values: Array, bar: float) -> int:
    """The first update after which the values never again fall below a bar."""
    below = np.flatnonzero(values < bar)
    return min(int(below[-1]) + 1, len(values) - 1) if len(below) else 0
