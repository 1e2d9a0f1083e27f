"""The search of a clip threshold (R14–R17), from percentiles of the norms at lr_star."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from ..judge.analysis import CLIP_TOO_MUCH
from ..judge.diagnosis import Step
from ..judge.readout import CLIP_PERCENTILE, norm_percentile
from ..trial import Array, Trial, as_told
from ..words import readable
from .asking import Asking, train_all
from .ladder import LADDER, Reference, all_train
from .steps import SCREENING_SEEDS, Case

# of the norms: where a clip threshold starts, and goes on while unstable (R16)
PERCENTILES = (CLIP_PERCENTILE, 75, 50, 25)


def strongest_clip_norm(case: Case, sweep: Sequence[Trial]) -> float:
    """The threshold that clips half of the updates at lr_star; inf if their norms are not known."""
    norms = _norms(case, sweep)
    return norm_percentile(norms, 100 * CLIP_TOO_MUCH) if len(norms) else math.inf


def cost_of_clipping(case: Case) -> float:
    """Updates that the search takes at most."""
    trainings = SCREENING_SEEDS * (len(PERCENTILES) * len(LADDER) + 1)
    return trainings * case.steps


def find_clip_norm(
    case: Case, reference: Reference, sweep: Sequence[Trial]
) -> Asking[tuple[float, Step]]:
    """Find the threshold with which training reaches the highest multiple of the reference.

    Returns the largest if several do, inf if none does better than plain training. Norms of the
    runs at lr_star must be known.
    """
    norms = _norms(case, sweep)
    thresholds = [norm_percentile(norms, percentile) for percentile in PERCENTILES]
    asked = case.ask(
        "clipping",
        [multiple * reference.base_lr for multiple in LADDER],
        SCREENING_SEEDS,
        clip_norm=thresholds,
    )
    (trials,) = yield from train_all(asked)
    sentences = [
        f"Norms at lr_star: 90th percentile {readable(thresholds[0])} over the whole run, "
        f"{readable(norm_percentile(_norms(case, sweep, last_half=True)))} over its last "
        "half."
    ]
    step = Step("clipping", ("R14", "R15", "R16", "R17"), tuple(sentences), (asked.name,))
    clipped = [_reach(case, trials, reference, threshold) for threshold in thresholds]
    works = [one for one in clipped if one.reached]
    if not works:
        words = ", ".join(readable(threshold) for threshold in thresholds)
        sentences.append(
            f"None of the thresholds {words} trains at 1 × {reference.name} on every seed."
        )
        return math.inf, replace(step, sentences=tuple(sentences))
    # Thresholds that clip at most half of the updates come first (R17); of equals, the largest.
    chosen = max(
        [one for one in works if one.fraction <= CLIP_TOO_MUCH] or works,
        key=lambda one: one.reached,
    )
    percentile = PERCENTILES[thresholds.index(chosen.threshold)]
    sentences.append(
        f"Clipped at {readable(chosen.threshold)}, their {percentile}th percentile, training "
        f"reaches {chosen.reached:g} × {reference.name} on every seed; there "
        f"{chosen.fraction:.0%} of the updates are clipped, measured again."
    )
    furthest = max(works, key=lambda one: one.reached)
    if furthest.reached > chosen.reached:
        sentences.append(
            f"At {readable(furthest.threshold)} it would reach {furthest.reached:g} ×, by clipping "
            f"{furthest.fraction:.0%}."
        )
    studies = [asked.name]
    if chosen.fraction > CLIP_TOO_MUCH:
        base_lr = _cut(chosen.trials, chosen.threshold)
        control = case.ask("clipping-control", [base_lr], SCREENING_SEEDS)
        (cut,) = yield from train_all(control)
        sentences.append("More than half: a strange way of cutting the learning rate (R17).")
        studies.append(control.name)
        sentences.append(
            f"With the base LR cut to {readable(base_lr)} instead, by the mean factor that "
            f"clipping leaves of an update, {case.study.objective} is {_mean_words(cut)}; "
            f"clipped it is {_mean_words(chosen.trials)}."
        )
    return chosen.threshold, replace(step, sentences=tuple(sentences), studies=tuple(studies))


@dataclass(frozen=True)
class _Threshold:
    """How far the base LR can go with a clip threshold.

    reached    the highest multiple of the reference up to which every seed trains; 0: none
    fraction   the mean share of updates that are clipped there
    trials     those at `reached`
    """

    threshold: float
    reached: float
    fraction: float
    trials: tuple[Trial, ...]


def _reach(
    case: Case, trials: Sequence[Trial], reference: Reference, threshold: float
) -> _Threshold:
    found = _Threshold(threshold, 0.0, 0.0, ())
    for multiple in sorted(LADDER):
        base_lr = multiple * reference.base_lr
        own = tuple(
            t for t in trials if (t.point.clip_norm, t.point.base_lr) == (threshold, base_lr)
        )
        if not all_train(case, own):
            break
        found = _Threshold(threshold, multiple, fmean(trial.clip_fraction for trial in own), own)
    return found


def _norms(case: Case, sweep: Sequence[Trial], last_half: bool = False) -> Array:
    """Unclipped norms of the runs at lr_star, all seeds together."""
    own = [t.curve.grad_norm for t in sweep if t.feasible and t.point.base_lr == case.point.base_lr]
    parts = [norms[len(norms) // 2 :] if last_half else norms for norms in own]
    norms = np.concatenate(parts) if parts else np.empty(0)
    return np.asarray(norms[np.isfinite(norms) & (norms > 0)])


def _cut(clipped: Sequence[Trial], threshold: float) -> float:
    """The base LR times the mean factor that clipping leaves of the updates."""
    norms = np.concatenate([trial.curve.grad_norm for trial in clipped])
    return float(clipped[0].point.base_lr * np.minimum(1.0, threshold / norms[norms > 0]).mean())


def _mean_words(trials: Sequence[Trial]) -> str:
    return readable(fmean(as_told(trial).value for trial in trials))
