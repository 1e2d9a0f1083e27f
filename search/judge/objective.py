"""Whether the objective can rank trainings at all, before any base LR is blamed.

What is wrong with it is said in a sentence. An objective that is nan, that never changes, or that
is taken the wrong way round does not rank trainings by how good they are: no conclusion from it is
a result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import median

import numpy as np
import scipy

from ..trial import Array, Trial
from ..words import readable
from .curve_shape import typical

MOVED = 0.05  # of the first losses: a training whose loss fell by more has begun to learn
SAME = 1e-6  # relative: float32 rounding, summed over a validation split, is a tenth of that
FEWEST_POINTS = 3  # evaluations that show a trend
# of the trainings that learn: if it is best before training in so many, it ranks nothing
NEARLY_ALL = 0.9
# rank correlation with the loss: above it an objective falls with the loss, below −FALLS it rises
FALLS = 0.5

# Words of an objective's name: metrics that are better when higher, and words that reverse that.
WORD = re.compile(r"[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*")
DIGITS = "0123456789"
# fmt: off
BETTER_WHEN_HIGHER = frozenset((
    "acc", "accuracy", "auc", "auroc", "auprc", "ap", "map", "f1", "fbeta", "bleu", "chrf",
    "rouge", "meteor", "precision", "recall", "sensitivity", "specificity", "r2", "iou",
    "miou", "dice", "jaccard", "ndcg", "mrr", "hits", "reward", "rewards", "return",
    "returns", "mcc", "kappa", "psnr", "ssim", "correlation", "pearson", "spearman", "elbo",
    "evidence", "winrate", "success", "fscore", "top1", "top5", "score",
))
# fmt: on
WORSE_WHEN_HIGHER = frozenset(
    [
        "loss",
        "error",
        "err",
        "nll",
        "perplexity",
        "regret",
        "neg",
        "negative",
        "minus",
        "distance",
        "cost",
    ]
)


def sounds_better_when_higher(objective: str) -> str:
    """The word by which a metric's name says that higher is better; empty if there is none.

    Also empty if another word reverses that, as in neg_accuracy.
    """
    words = [word.lower() for word in WORD.findall(objective)]
    higher = [word for word in words if {word, word.rstrip(DIGITS)} & BETTER_WHEN_HIGHER]
    return higher[0] if higher and not WORSE_WHEN_HIGHER & set(words) else ""


def fault_of(trials: Sequence[Trial], objective: str, said: bool = False) -> str:
    """What is wrong with the objective, in a sentence; empty if no fault is seen.

    Crashed trials do not count. The objective's name counts unless the study file has `said` which
    side is better.
    """
    own = [trial for trial in trials if objective in trial.curve.metrics]
    measured = [_finite(trial, objective) for trial in own]
    values = np.concatenate(measured) if own else np.empty(0)
    if not own:
        return ""
    if not len(values):
        return (
            f"{objective} is nan or inf in every evaluation of all {len(own)} trainings: look at "
            "`evaluate`, nothing can be concluded before it returns numbers."
        )
    if all(math.isnan(trial.initial_value) for trial in own):
        return (
            f"{objective} of the untrained model is not known: evaluate it before the first "
            "update; what a training gains is measured from there."
        )
    if not any(len(values) > 1 for values in measured):
        # training ended before the second look: a matter of the verdict, not of the objective
        return ""
    if np.ptp(values) <= SAME * np.abs(values).max():
        return _constant(own, objective, float(values[0]))
    return _wrong_way(own, objective, said)


def has_fallen(trial: Trial) -> bool:
    """Whether the loss ever fell, by more than the scatter of minibatches."""
    loss = trial.curve.loss[np.isfinite(trial.curve.loss)]
    if not len(loss):
        return False
    smooth = typical(loss)
    return bool(smooth.min() < smooth[0] - MOVED * abs(smooth[0]))


def _constant(trials: Sequence[Trial], objective: str, value: float) -> str:
    words = f"{objective} is {readable(value)} in every evaluation of all {len(trials)} trainings"
    if any(map(has_fallen, trials)):
        return (
            f"{words}, although the loss falls: look at `evaluate`, it does not depend on what is "
            "trained."
        )
    high = readable(max(trial.point.base_lr for trial in trials))
    return (
        f"{words}, and the loss does not fall: either base LRs up to {high} are too low to train "
        "anything, or `loss` and `evaluate` do not depend on the parameters."
    )


def _wrong_way(trials: Sequence[Trial], objective: str, said: bool) -> str:
    """A sentence if the objective is taken the wrong way round, by its name or by its trend.

    By its name, unless it falls with the loss; by its trend, if it gets worse as the loss falls.
    Without such a name it must also be best before training in nearly all trials: then there is
    nothing to search for.
    """
    learned = [trial for trial in trials if trial.feasible and has_fallen(trial)]
    maximize = any(trial.maximize for trial in trials)
    sign = -1 if maximize else 1
    trends = [
        sign * trend for trial in learned if not math.isnan(trend := _trend(trial, objective))
    ]
    named = not (maximize or said) and bool(sounds_better_when_higher(objective))
    if named and (not trends or median(trends) < FALLS):
        return (
            f"{objective} is minimized, but by its name higher is better, and it does not fall "
            "with the loss: set maximize = true, or maximize = false to say that lower is better."
        )
    untrained = [trial for trial in learned if trial.best_step == 0]
    if trends and median(trends) <= -FALLS and len(untrained) >= NEARLY_ALL * len(learned):
        done, moves, other, value = (
            ("maximized", "falls", "lower", "false")
            if maximize
            else ("minimized", "rises", "higher", "true")
        )
        return (
            f"{objective} is {done}, but is best before training in {len(untrained)} of "
            f"{len(learned)} trainings, and {moves} as the loss falls: if {other} is better, set "
            f"maximize = {value}."
        )
    return ""


def _trend(trial: Trial, objective: str) -> float:
    """Rank correlation of the objective with the typical training loss at its evaluations.

    nan if one of them is constant, or if there are too few evaluations.
    """
    curve = trial.curve
    before = [curve.losses_before(step) for step in curve.eval_step.tolist()]
    at = np.minimum(before, len(curve.loss) - 1)
    loss = typical(curve.loss)[at]
    values = curve.metrics[objective]
    known = np.isfinite(values) & np.isfinite(loss)
    if known.sum() < FEWEST_POINTS:
        return math.nan
    ranks = scipy.stats.rankdata(values[known]), scipy.stats.rankdata(loss[known])
    if min(np.ptp(own) for own in ranks) == 0:
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def _finite(trial: Trial, objective: str) -> Array:
    values = trial.curve.metrics[objective]
    return np.asarray(values[np.isfinite(values)], np.float64)
