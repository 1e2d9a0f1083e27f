"""What a curve says about its point: feasible or infeasible, and when training became unstable.

Two kinds of evidence are read. The training loss is there at every update, so it tells when
something happened; but it is of one minibatch, may be taken at other weights than those that are
kept, and may be no measure of success. The evaluations are few, but of the model itself. So
evaluations decide how a run ended wherever they say anything (`evaluations`), and the loss where
they do not. Rules, in this order:

    non_finite   a loss, a gradient norm, or the objective's last evaluation is nan or inf
    diverged     the objective ended worse than that of the untrained model, though the training
                 loss is not simply overfitted; or the loss stays above the start, or above what a
                 constant predictor has, by more than half of what is learned (`curve_shape`)
    collapsed    the objective ended with less than half of what had been learned; or the loss stays
                 where it has lost as much, or at the start where it has learned nothing but blew
                 up, rose or has a vanished gradient. A run whose learning rate is too low to learn
                 shows none of these, and stays feasible.
    feasible     everything else, and whatever the loss does if the objective learned and kept that.
                 A blow-up that training recovered from is its `instability`.

"Stays" means: for the last `patience` updates; of a loss that blew up and ended at three times its
start, for the last LAST. Losses are compared as medians, in the scale of what was learned and
beyond what minibatches scatter, both as differences and as ratios; the first minibatch may be a
lucky one. Where a workload's loss grows by design, or is no measure, `divergence = false` leaves
only what is not finite and the evaluations. The same rules, more strictly, decide online when to
stop (`hopeless`): a stopped run is always judged infeasible, and none is stopped before an
evaluation agrees. A run that blows up early and recovers (R5) is not stopped unless it takes longer
than that. What only its neighbours tell of a run is said by `neighbours`.

Evaluations overrule the loss because of 261 public runs of other people (AlgoPerf): schedule-free
optimizers take the training loss at an extrapolated point, where it returned to the level of a
constant predictor in 9 runs whose validation was excellent, and in 2 runs it looked healthy while
validation had lost most of what it had learned. Half agrees with the labels of those runs. A rise
of the objective alone is no divergence where the training loss still falls: that is overfitting, a
flag of the curve (S6), and its best checkpoint is kept. Source: Tuning Playbook, "How can
optimization failures be debugged and mitigated?" (R2, R3, R5, R6).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy

from ..trial import Array, Curve, Instability, Outcome, Verdict
from .curve_shape import (
    EARLY_STEPS,
    LEARNED_FRACTION,
    WINDOW,
    Levels,
    first_rise,
    last_below,
    levels,
    references,
    typical,
)
from .evaluations import LEARNED_SHARE, Evaluations, summarize_evaluations

# of what is learned, above the start: minibatches of a constant predictor scatter less
DIVERGED_FRACTION = 0.5
# three times the initial loss: above any loss seen on the way of runs that recovered
STOPPED_FACTOR = 2.0
# so far above chance, a loss that never got there stands still; chance_loss is less wrong
STANDING_FACTOR = 2.0
# of the planned updates: early blow-ups recovered within a tenth in every run seen
PATIENCE_FRACTION = 0.25
MIN_PATIENCE = 100  # updates: four times the span in which early blow-ups happen (R5)
CHANCE_TOLERANCE = 0.05  # a constant predictor's minibatch losses scatter by a few percent
# of what had been learned: a rise that never recovers (R7); evaluations are held to the same
LOST_FRACTION = 0.5
# of what was learned, before training is stopped: a run that lost less may recover
STOPPED_FRACTION = 0.75
LAST = 5  # losses, at the end of training, that no single spike makes
LARGEST = 1e150  # losses are clipped to this size
LOOKS = 4  # times within the patience that a run which never learned is searched for a blow-up
VANISHED_FRACTION = 0.1  # gradient norm against its initial value: dead units, saturated outputs
# While the objective gets worse, memorizing lowers the training loss to less than half of itself,
# or by a fifth of what is learned. A loss taken at other weights than the evaluated ones goes on as
# before.
OVERFITTED_FRACTION, OVERFITTED_FACTOR = 0.2, 0.5
# Why a loss says otherwise than the evaluations of what was learned.
LOSS_NO_MEASURE = "if the loss is no measure of that, set divergence = false"
LOSS_AT_OTHER_WEIGHTS = "the loss is of other weights than the average that is evaluated"
# of the fall from the first loss: a loss that falls less from early to late stands still
STALLED_FRACTION = 0.05


def patience(planned: int) -> int:
    """Losses that must stay far above the start, or at chance, before training is given up.

    A quarter of those that are planned (`Curve.planned_losses`), at least MIN_PATIENCE, and never
    more than half of a short run.
    """
    return min(max(MIN_PATIENCE, math.ceil(PATIENCE_FRACTION * planned)), math.ceil(planned / 2))


def judge(
    curve: Curve,
    objective: str = "",
    *,
    maximize: bool = False,
    divergence: bool = True,
    averaged: bool = False,
) -> Verdict:
    """The verdict of a finished or stopped training.

    `objective` names the metric whose evaluations count, and `maximize` says that higher is better;
    by default that is the curve's only metric, if it has just one. Without `divergence` the loss
    counts only where it is not finite. `averaged`: the evaluations are of an average, as those of
    schedule-free rules, so that a loss that says otherwise is no sign of a mistake.
    """
    curve = _bound(curve)
    loss = curve.loss
    seen = summarize_evaluations(curve, objective, maximize)
    if len(loss) == 0:
        return _without_loss(seen)
    finite = np.isfinite(loss) & np.isfinite(curve.grad_norm)
    if not finite.all():
        return _non_finite(curve, int(np.argmin(finite)))
    level = levels(loss, curve.chance_loss)
    rise = first_rise(loss, level) if divergence else math.inf
    by_loss = _by_loss(curve, level, rise) if divergence else None
    if by_loss and not _is_learned_by_objective(curve, seen):
        return by_loss
    if verdict := _by_objective(curve, level, rise, seen):
        return verdict
    elsewhere = LOSS_AT_OTHER_WEIGHTS if averaged else LOSS_NO_MEASURE
    return _feasible(curve, level, rise, by_loss, seen, elsewhere)


def hopeless(
    curve: Curve, objective: str = "", *, maximize: bool = False, divergence: bool = True
) -> bool:
    """Whether training may stop here: the curve so far can only be judged infeasible.

    To be asked after every evaluation, and between them as often as one likes.
    Stricter than `judge` at the end: every one of the last `patience` updates must agree, so that
    noise or a slow recovery keeps a run alive; and the objective must have been evaluated since,
    and not have been learned. Where no objective is named and no metric there, the loss decides
    alone, as at the end.
    """
    curve = _bound(curve)
    loss, steps = curve.loss, patience(curve.planned_losses)
    if not (np.isfinite(loss).all() and np.isfinite(curve.grad_norm).all()):
        return True
    if not divergence or len(loss) <= steps:
        return False
    window = min(WINDOW, steps)
    recent = np.median(loss[-(steps // window * window) :].reshape(-1, window), axis=1).min()
    _, chance = references(loss, curve.chance_loss)
    # settles most runs at little cost
    if recent <= chance - (1.0 - STOPPED_FRACTION) * (chance - loss.min()):
        return False
    level = levels(loss, curve.chance_loss)
    if recent <= _floor(level, STOPPED_FRACTION):
        return False
    if not _agrees(curve, objective, maximize, steps):
        return False
    far = level.highest_start + STOPPED_FACTOR * abs(level.highest_start)
    last = float(np.median(loss[-steps:]))
    if recent > far and last > _ceiling(level) and level.above(last, level.highest_start):
        return True
    if not _looks_closely(curve, steps):
        return False
    rise = first_rise(loss, level)
    return bool(_by_loss(curve, level, rise) and _collapse(curve, level, rise, STOPPED_FRACTION))


def _agrees(curve: Curve, objective: str, maximize: bool, steps: int) -> bool:
    """Whether the evaluations leave the decision to the loss: one since, and nothing learned."""
    if not objective and not curve.metrics:
        return True
    learned = summarize_evaluations(curve, objective, maximize).state == "learned"
    return _is_evaluated_since(curve, steps) and not learned


def _looks_closely(curve: Curve, steps: int) -> bool:
    """Whether this is an evaluation at which to search the loss for a rise.

    It is if it is the first in a while: a search at each would cost as much as training. Where
    nothing is evaluated, the caller asks seldom enough.
    """
    if not curve.metrics:
        return True
    before, now = map(curve.losses_before, ([0, *curve.eval_step.tolist()])[-2:])
    every = max(1, steps // LOOKS)
    return bool(now == len(curve.loss) and now // every > before // every)


def has_risen(curve: Curve) -> bool:
    """Whether the loss blew up or became non-finite.

    It did neither where it collapsed to chance at once, or slowly (R3).
    """
    curve = _bound(curve)
    if not (np.isfinite(curve.loss) & np.isfinite(curve.grad_norm)).all():
        return True
    return math.isfinite(first_rise(curve.loss, levels(curve.loss, curve.chance_loss)))


def _bound(curve: Curve) -> Curve:
    """The curve with losses small enough for a finite mean, and norms of 1 if it has none."""
    loss, norms = curve.loss, curve.grad_norm
    if len(norms) < len(loss):  # of a log that has none
        norms = np.ones(len(loss))
    if (np.abs(loss) > LARGEST).any():
        loss = np.where(np.isfinite(loss), np.clip(loss, -LARGEST, LARGEST), loss)
    return replace(curve, loss=loss, grad_norm=norms)


# --- by the objective -----------------------------------------------------------------------------


def _by_objective(curve: Curve, level: Levels, rise: float, seen: Evaluations) -> Verdict | None:
    """The verdict where the evaluations alone make a run infeasible."""
    if seen.state == "non_finite":
        evidence = (
            f"the objective is nan or infinite from step {seen.step} on; {_ends(curve, level)}"
        )
        kind = _kind(curve, curve.losses_before(seen.step), level)
        return Verdict("non_finite", kind, seen.step, evidence)
    if seen.state not in ("lost", "worse") or _overfits(curve, level, seen):
        return None
    outcome: Outcome = "collapsed" if seen.state == "lost" else "diverged"
    evidence = f"{_course(seen)}; {_ends(curve, level)}"
    place = int(rise) if math.isfinite(rise) else curve.losses_before(seen.step)
    onset = curve.step_of(place)
    return Verdict(outcome, _kind(curve, place, level), onset, evidence)


def _overfits(curve: Curve, level: Levels, seen: Evaluations) -> bool:
    """Whether the training loss went on falling after the best evaluation.

    If no evaluation was much better than the untrained model: whether it fell at all. The two spans
    of losses that are compared never overlap, however short the run.
    """
    loss = curve.loss
    if abs(seen.first - seen.best) <= LEARNED_SHARE * abs(seen.first):  # its best step says nothing
        then, ended = (
            level.highest_start,
            float(np.median(loss[-min(WINDOW, max(1, len(loss) // 4)) :])),
        )
    else:
        best = max(curve.losses_before(seen.step), 1)
        span = min(WINDOW, max(1, (len(loss) - best) // 2))
        then = float(np.median(loss[max(0, best - span) : best]))
        ended = float(np.median(loss[-span:]))
    if 0 < ended < OVERFITTED_FACTOR * then:
        return True
    return then - ended > max(
        OVERFITTED_FRACTION * (level.highest_start - level.lowest), level.luck
    )


def _is_learned_by_objective(curve: Curve, seen: Evaluations) -> bool:
    """Whether the objective was learned, and evaluated since the loss has stayed where it is."""
    return seen.state == "learned" and _is_evaluated_since(curve, patience(curve.planned_losses))


def _is_evaluated_since(curve: Curve, steps: int) -> bool:
    """Whether the objective was evaluated within the last updates."""
    return (
        bool(len(curve.eval_step))
        and curve.losses_before(int(curve.eval_step[-1])) > len(curve.loss) - steps
    )


def _without_loss(seen: Evaluations) -> Verdict:
    """The verdict of a log that holds evaluations alone.

    Then nothing tells what is lost to overfitting, and nothing places an onset.
    """
    if not seen.step and not seen.ended_at:
        return Verdict("feasible", "none", math.inf, "no training step was taken")
    if seen.state == "non_finite":
        evidence = f"the objective is nan or infinite from step {seen.step} on"
        return Verdict("non_finite", "none", seen.step, evidence)
    told = "; without training losses overfitting is not told from instability"
    if seen.state == "lost":
        return Verdict("collapsed", "none", seen.step, _course(seen) + told)
    if seen.state == "worse":
        return Verdict("diverged", "none", seen.step, _course(seen) + told)
    said = ["the objective was learned" if seen.state == "learned" else "evaluations tell little"]
    said[0] += f": {seen.first:.3g} to {seen.ended:.3g}"
    return Verdict("feasible", "none", math.inf, "; ".join([*said, *_gaps(seen)]) + told)


def _course(seen: Evaluations) -> str:
    """What became of an objective that was lost, or got worse."""
    first = "untrained" if seen.is_untrained else "at its first evaluation"
    lost = "lost more than half of what it had learned"
    worse = f"ended worse than {'the untrained model' if seen.is_untrained else 'it began'}"
    return (
        f"the objective {lost if seen.state == 'lost' else worse}: {seen.first:.3g} {first}, "
        f"{seen.best:.3g} at its best at step {seen.step}, {seen.ended:.3g} at the end"
    )


# --- by the loss ----------------------------------------------------------------------------------


def _by_loss(curve: Curve, level: Levels, rise: float) -> Verdict | None:
    """The verdict where the training loss makes a run infeasible.

    None if it does not, or if it is too early to say.
    """
    loss, steps = curve.loss, patience(curve.planned_losses)
    if len(loss) < steps:
        return None
    last = float(np.median(loss[-steps:]))
    if why := _divergence(curve, level, rise, last):
        place = int(rise if math.isfinite(rise) else _since(loss, level, last))
        step = curve.step_of(place)
        evidence = f"loss {why} since step {step}"
        return Verdict("diverged", _kind(curve, place, level), step, evidence)
    if math.isfinite(rise) and _ends_far_above(loss, level):
        place = last_below(loss, level.highest_start)
        place = int(rise) if place - WINDOW < rise < place else place
        step = curve.step_of(place)
        evidence = f"loss blew up at step {step}{_before(loss, place)} and ended at {loss[-1]:.3g}"
        return Verdict("diverged", _kind(curve, place, level), step, evidence)
    if why := _collapse(curve, level, rise, LOST_FRACTION):
        floor = _floor(level, LOST_FRACTION)
        place = int(rise if math.isfinite(rise) else last_below(typical(loss), floor))
        evidence = f"loss stays at {last:.3g} {why} (a constant predictor has {level.chance:.3g})"
        return Verdict("collapsed", _kind(curve, place, level), curve.step_of(place), evidence)
    return None


def _divergence(curve: Curve, level: Levels, rise: float, last: float) -> str:
    """Why the last losses are far above the start, or above a constant predictor's.

    Empty if they are not.
    """
    if last > _ceiling(level) and level.above(last, level.highest_start):
        return f"far above its start: {curve.loss[0]:.3g} to {last:.3g}"
    far = last > level.chance + STANDING_FACTOR * level.scale_at_chance and level.above(
        last, level.chance
    )
    if far and (
        math.isfinite(rise) or _has_vanished_gradient(curve) or _is_stalled(curve.loss, level, last)
    ):
        return f"stands still at {last:.3g}, far above a constant predictor's {level.chance:.3g}"
    return ""


def _ends_far_above(loss: Array, level: Levels) -> bool:
    """Whether the last losses, too few to say that a loss stays there, are so far above the start
    that no run seen came back from there.
    """
    far = level.highest_start + STOPPED_FACTOR * abs(level.highest_start)
    return bool(loss[-LAST:].min() > far and level.above(loss[-LAST:].min(), level.highest_start))


def _since(loss: Array, level: Levels, last: float) -> int:
    """From where on a loss that did not rise all at once is as high as at the end."""
    if level.highest_start < last:
        smooth = typical(loss)
        # in the first steps a shorter window suffices
        smooth[:WINDOW] = scipy.ndimage.median_filter(loss, 5, mode="nearest")[:WINDOW]
        return last_below(smooth, (level.highest_start + last) / 2)
    return int(np.argmax(typical(loss) <= last + level.luck))


def _is_stalled(loss: Array, level: Levels, last: float) -> bool:
    """Whether a loss left its start in the first steps, and has not fallen since."""
    if len(loss) < 2 * EARLY_STEPS:
        return False
    early, moved = float(np.median(loss[EARLY_STEPS : 2 * EARLY_STEPS])), float(loss[0]) - last
    if moved < LEARNED_FRACTION * abs(loss[0]) or not level.above(float(loss[0]), last):
        return False
    return early - last < max(STALLED_FRACTION * moved, level.luck)


def _collapse(curve: Curve, level: Levels, rise: float, lost: float) -> str:
    """Why the last losses are a collapse; empty if they are not."""
    loss, steps = curve.loss, patience(curve.planned_losses)
    last = float(np.median(loss[-steps:]))
    if last < _floor(level, lost):
        return ""
    if math.isfinite(rise) and level.learned > LEARNED_FRACTION * level.scale_at_chance:
        return f"after it had fallen to {level.lowest:.3g}"
    if math.isfinite(rise):
        return f"after it had risen to {loss[int(rise) :].max():.3g}"
    if last - level.highest_start > CHANCE_TOLERANCE * level.scale and level.above(
        last, level.highest_start
    ):
        return f"above its start of {level.start:.3g}"
    if _has_vanished_gradient(curve):
        norm = float(np.median(curve.grad_norm[-steps:]))
        return f"with a vanished gradient ({curve.grad_norm[0]:.3g} to {norm:.3g})"
    return ""


def _has_vanished_gradient(curve: Curve) -> bool:
    """Whether the gradient has vanished since the first updates."""
    norm = curve.grad_norm
    return bool(
        np.median(norm[-patience(curve.planned_losses) :]) < VANISHED_FRACTION * np.median(norm[:3])
    )


def _ceiling(level: Levels) -> float:
    """Above this a loss is far above its start."""
    return level.highest_start + DIVERGED_FRACTION * level.scale


def _floor(level: Levels, lost: float) -> float:
    """At or above this a run is at chance, or has lost a share of what it had learned."""
    return level.chance - max(
        CHANCE_TOLERANCE * level.scale, (1.0 - lost) * (level.chance - level.lowest)
    )


# --- in words -------------------------------------------------------------------------------------


def _non_finite(curve: Curve, place: int) -> Verdict:
    loss, step = curve.loss, curve.step_of(place)
    what = "gradient norm" if np.isfinite(loss[place]) else "loss"
    evidence = f"{what} became non-finite at step {step}{_before(loss, place)}"
    kind = _kind(curve, place, levels(loss[:place], curve.chance_loss)) if place else "early"
    return Verdict("non_finite", kind, step, evidence)


def _feasible(
    curve: Curve,
    level: Levels,
    rise: float,
    by_loss: Verdict | None,
    seen: Evaluations,
    elsewhere: str,
) -> Verdict:
    """A run that is feasible, with all that a reader should know of it.

    `elsewhere`: what is said where the loss alone would have made it infeasible.
    """
    loss, onset = curve.loss, math.inf
    ended = _end_loss(loss)
    said = [f"stable: loss {loss[0]:.3g} to {ended:.3g}"]
    kind: Instability = "none"
    if math.isfinite(rise):
        place = int(rise)
        kind, onset = _kind(curve, place, level), curve.step_of(place)
        said = [
            (
                f"blew up at step {onset:.0f}{_before(loss, place)} to {loss[place:].max():.3g}, "
                f"ended at {ended:.3g}"
            )
        ]
    elif not level.learned and seen.state != "learned":
        said = [
            (
                f"learned nothing that stands out from minibatch noise: loss {loss[0]:.3g} to "
                f"{ended:.3g}"
            )
        ]
    if by_loss:
        said = [
            (
                f"the objective was learned ({seen.first:.3g} to {seen.ended:.3g}), though "
                f"{by_loss.evidence}; {elsewhere}"
            )
        ]
        kind, onset = by_loss.instability, by_loss.onset_step
    return Verdict("feasible", kind, onset, "; ".join([*said, *_gaps(seen)]))


def _gaps(seen: Evaluations) -> list[str]:
    what = "evaluation was" if seen.gaps == 1 else "evaluations were"
    return [f"{seen.gaps} {what} nan or infinite"] if seen.gaps else []


def _end_loss(loss: Array) -> float:
    """The typical loss at the end."""
    return float(np.median(loss[-WINDOW:]))


def _ends(curve: Curve, level: Levels) -> str:
    return f"training loss {level.start:.3g} to {_end_loss(curve.loss):.3g}"


def _kind(curve: Curve, place: int, level: Levels) -> Instability:
    """Mid-training if the loss had steadily declined before the onset, early otherwise (R2)."""
    if not place or curve.step_of(place) <= EARLY_STEPS:
        return "early"
    then = levels(curve.loss[:place], level.chance)
    declined = then.chance - then.lowest > max(
        LEARNED_FRACTION * level.scale_at_chance, then.luck / 2
    )
    return "mid_training" if declined else "early"


def _before(loss: Array, step: int) -> str:
    if step < 1:
        return ""
    return f" from {np.median(loss[max(0, step - WINDOW) : step]):.3g}"
