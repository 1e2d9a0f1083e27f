"""What a curve says about its point: feasible or infeasible, and when training became unstable.

Training starts at L₀ = max(loss of the first minibatch, chance_loss); a loss is *far above* it beyond
`ceiling` = L₀ + DIVERGED_FACTOR · |L₀|. Rules, in this order:

    non_finite   a loss or gradient norm is nan or inf
    diverged     the loss is far above L₀, and stays there
    collapsed    the loss is at the level of a constant predictor (`chance_loss`, else L₀), and stays there:
                 after it had learned and lost most of that again, after it had risen above the start, or with
                 a vanished gradient. A run whose learning rate is too low to learn shows none of the three,
                 and stays feasible.
    feasible     everything else. A blow-up that training recovered from is its `instability`.

"Stays" means: for the last `patience` updates. The same rules decide online when to stop (`hopeless`) and
at the end what to report (`judge`), so a stopped run is always judged infeasible. A run that blows up early
and recovers (R5) is not stopped unless it takes longer than that.
Source: Tuning Playbook, "How can optimization failures be debugged and mitigated?" (R2, R3, R5, R6).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import median_filter

from .trial import Array, Curve, Instability, Verdict

DIVERGED_FACTOR = 2.0  # three times the initial loss: above any loss seen on the way of runs that recovered
PATIENCE_FRACTION = 0.25  # of the planned updates: early blow-ups recovered within a tenth in every run seen
MIN_PATIENCE = 100  # updates: four times the span in which early blow-ups happen (R5)
CHANCE_TOLERANCE = 0.05  # a constant predictor's minibatch losses scatter by a few percent
LOST_FRACTION = 0.75  # of what had been learned: a rise that never recovers (R7)
LEARNED_FRACTION = 0.20  # the loss had fallen this far from chance: a steady decline (R2)
RISEN_FACTOR = 0.5  # half the initial loss above it: not minibatch noise of an untrained model
VANISHED_FRACTION = 0.1  # gradient norm against its initial value: dead units, saturated outputs
EARLY_STEPS = 25  # "the first 25 or so" (R5)
WINDOW = 25  # updates over which a typical loss is taken
RISE_STEPS = 5  # a rise counts if it lasts: the median over this many updates
RISE_FRACTION = 0.25  # of what had been learned so far (loss at the start minus lowest typical loss)
SCATTER_DEVIATIONS = 6.0  # and of the scatter, 1.4826 · median absolute deviation: not minibatch noise


def patience(total_steps: int) -> int:
    """Updates that a loss must stay far above the start, or at chance, before training is given up.

    A quarter of the run, at least MIN_PATIENCE, and never more than half of a short run.
    """
    return min(max(MIN_PATIENCE, math.ceil(PATIENCE_FRACTION * total_steps)), math.ceil(total_steps / 2))


def judge(curve: Curve) -> Verdict:
    """The verdict of a finished or stopped training, from the loss and gradient norm of every step."""
    loss, grad_norm = curve.loss, curve.grad_norm
    if len(loss) == 0:
        return Verdict("feasible", "none", math.inf, "no training step was taken")
    (start, chance), steps = _levels(loss, curve.chance_loss), patience(curve.total_steps)
    finite = np.isfinite(loss) & np.isfinite(grad_norm)
    if not finite.all():
        step = int(np.argmin(finite))
        what = "gradient norm" if np.isfinite(loss[step]) else "loss"
        evidence = f"{what} became non-finite at step {step}{_before(loss, step)}"
        return Verdict("non_finite", _kind(loss[:step], start), step, evidence)
    last = float(np.median(loss[-steps:]))
    rise = _first_rise(loss, start)
    if len(loss) >= steps and last > ceiling(start):
        step = int(rise if math.isfinite(rise) else _last_below(loss, ceiling(start)))
        evidence = f"loss far above its start since step {step}: {loss[0]:.3g} to {last:.3g}"
        return Verdict("diverged", _kind(loss[:step], start), step, evidence)
    if len(loss) >= steps and (because := _collapse(loss, grad_norm, chance, steps)):
        step = int(rise if math.isfinite(rise) else _last_below(_typical(loss), _floor(chance, float(loss.min()))))
        evidence = f"loss stays at {last:.3g}, a constant predictor's ({chance:.3g}), {because}"
        return Verdict("collapsed", _kind(loss[:step], start), step, evidence)
    ended = float(np.median(loss[-WINDOW:]))
    if math.isinf(rise):
        return Verdict("feasible", "none", rise, f"stable: loss {loss[0]:.3g} to {ended:.3g}")
    step = int(rise)
    evidence = f"blew up at step {step}{_before(loss, step)} to {loss[step:].max():.3g}, ended at {ended:.3g}"
    return Verdict("feasible", _kind(loss[:step], start), step, evidence)


def hopeless(loss: Array, grad_norm: Array, total_steps: int, chance_loss: float) -> bool:
    """Whether training may stop here: the curve so far can only be judged infeasible.

    Stricter than `judge` at the end: every one of the last `patience` updates must agree, so that noise or a
    slow recovery keeps a run alive.
    """
    if not (np.isfinite(loss).all() and np.isfinite(grad_norm).all()):
        return True
    (start, chance), steps = _levels(loss, chance_loss), patience(total_steps)
    floor = _floor(chance, loss.min())
    if len(loss) <= steps or np.median(loss[-WINDOW:]) < floor:
        return False
    recent = loss[-steps:]
    if recent.min() > ceiling(start):
        return True
    window = min(WINDOW, steps)
    typical = np.median(recent[: steps // window * window].reshape(-1, window), axis=1)
    return bool(typical.min() > floor and _collapse(loss, grad_norm, chance, steps))


def rose(curve: Curve) -> bool:
    """Whether the loss blew up, or became non-finite: not so where it collapsed to chance at once, or slowly (R3)."""
    finite = np.isfinite(curve.loss) & np.isfinite(curve.grad_norm)
    start, _ = _levels(curve.loss, curve.chance_loss)
    return not finite.all() or math.isfinite(_first_rise(curve.loss, start))


def ceiling(start: float) -> float:
    """Above this a loss is far above its start."""
    return start + DIVERGED_FACTOR * abs(start)


def _levels(loss: Array, chance_loss: float) -> tuple[float, float]:
    """The loss that training starts from, and a constant predictor's.

    Both from the workload's `chance_loss` if it has one, because the first minibatch may be a lucky one.
    """
    chance = float(loss[0]) if math.isnan(chance_loss) else chance_loss
    return max(float(loss[0]), chance), chance


def _floor(chance: float, lowest: float) -> float:
    """At or above this a run is at chance, or has lost most of what it had learned."""
    return chance - max(CHANCE_TOLERANCE * abs(chance), (1.0 - LOST_FRACTION) * (chance - lowest))


def _collapse(loss: Array, grad_norm: Array, chance: float, steps: int) -> str:
    """Why the last `steps` losses are a collapse; empty if they are not."""
    typical = _typical(loss)
    lowest = float(typical.min())
    if np.median(loss[-steps:]) < _floor(chance, lowest):
        return ""
    if lowest < chance - max(LEARNED_FRACTION * abs(chance), _luck(loss, typical)):
        return f"after it had fallen to {lowest:.3g}"
    highest = float(median_filter(loss, 3, mode="mirror").max())
    start = max(float(loss[0]), chance)
    if highest > start + max(RISEN_FACTOR * abs(start), SCATTER_DEVIATIONS * _scatter(loss, typical)):
        return f"after it had risen to {highest:.3g}"
    norm = float(np.median(grad_norm[-steps:]))
    if norm < VANISHED_FRACTION * grad_norm[0]:
        return f"with a vanished gradient ({grad_norm[0]:.3g} to {norm:.3g})"
    return ""


def _typical(loss: Array) -> Array:
    """The median over WINDOW updates around each."""
    return np.asarray(median_filter(loss, min(WINDOW, len(loss)), mode="mirror"))


def _scatter(loss: Array, typical: Array) -> float:
    """The standard deviation of the losses around the typical ones, were they normally distributed."""
    return 1.4826 * float(np.median(np.abs(loss - typical)))


def _luck(loss: Array, typical: Array) -> float:
    """How far a median of WINDOW losses strays by chance, in one run of thousands."""
    return SCATTER_DEVIATIONS * _scatter(loss, typical) / math.sqrt(WINDOW)


def _last_below(loss: Array, level: float) -> int:
    """The first update after which the loss never again falls below a level."""
    below = np.flatnonzero(loss < level)
    return min(int(below[-1]) + 1, len(loss) - 1) if len(below) else 0


def _first_rise(loss: Array, start: float) -> float:
    """The first update at which the loss blew up; inf if it never did.

    In the first steps: two updates in a row above the start by RISEN_FACTOR. Later: the median over the next
    RISE_STEPS exceeds the median over the WINDOW before by RISE_FRACTION of what had been learned and by
    SCATTER_DEVIATIONS of the scatter; or, too slow for that, the typical loss ends LOST_FRACTION / 2 above its
    lowest.
    """
    high = loss[1 : EARLY_STEPS + 1] > start + RISEN_FACTOR * abs(start)
    early = np.flatnonzero(high[:-1] & high[1:])
    if len(early):
        return int(early[0]) + 1
    if len(loss) < WINDOW + RISE_STEPS:
        return math.inf
    before = sliding_window_view(loss, WINDOW)[:-RISE_STEPS]
    level = np.median(before, axis=1)
    scatter = 1.4826 * np.median(np.abs(before - level[:, None]), axis=1)
    after = np.median(sliding_window_view(loss, RISE_STEPS)[WINDOW:], axis=1)
    learned = np.maximum(start - np.minimum.accumulate(level), CHANCE_TOLERANCE * abs(start))
    bar = level + np.maximum(RISE_FRACTION * learned, SCATTER_DEVIATIONS * scatter)
    rises = np.flatnonzero(after > bar)
    if not len(rises):
        typical = _typical(loss)
        lowest = float(typical.min())
        # Of a run that has learned nothing, the typical loss still wanders by as much as minibatches differ.
        noise = max(CHANCE_TOLERANCE * abs(start), _luck(loss, typical))
        learned_most = max(start - lowest, noise / RISE_FRACTION)
        if np.median(loss[-WINDOW:]) > lowest + LOST_FRACTION / 2 * learned_most:
            return _last_below(typical, lowest + RISE_FRACTION * learned_most)
        return math.inf
    # The rise starts within the window that shows it: at the first update above what was typical before.
    first = int(rises[0])
    return first + WINDOW + int(np.argmax(loss[first + WINDOW :] > bar[first]))


def _kind(before: Array, start: float) -> Instability:
    """Mid-training if the loss had steadily declined before the onset, early otherwise (R2)."""
    if len(before) <= EARLY_STEPS:
        return "early"
    declined = _typical(before).min() < start - LEARNED_FRACTION * abs(start)
    return "mid_training" if declined else "early"


def _before(loss: Array, step: int) -> str:
    if step < 1:
        return ""
    return f" from {np.median(loss[max(0, step - WINDOW) : step]):.3g}"
