"""Early signs of instability in what is recorded anyway, a sentence each where it matters.

Every function returns sentences without a full stop; none where there is nothing to tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..rules.optimizers import NEAR_EPSILON
from ..trial import SPIKE_DEVIATIONS, SPIKE_WINDOW, Curve, Trial
from ..words import readable

# One or two spikes in a few hundred updates may be unlucky minibatches, which scatter more than
# normal noise.
FEWEST_SPIKES = 3
SPIKY = 0.001  # share of spikes above which it is told
MANY_NEAR_EPSILON = 0.05  # share of parameters above which it is told
# the metric by which a workload returns its largest |attention logit|
ATTENTION_LOGIT = "val_attention_logit"
# All trainings of Wortsman et al. 2023 (arXiv 2309.14322) that came above it diverged.
MOST_ATTENTION_LOGIT = 1e4


def early_signs(trial: Trial) -> list[str]:
    """What one training shows: spikes, and a second moment that ε outweighs."""
    return [sentence for sentence in (spikes_sign(trial.curve), _near_epsilon(trial)) if sentence]


def spikes_sign(curve: Curve) -> str:
    """That the training loss spiked, how often and since when; empty if it hardly did."""
    places, score = curve.spikes, curve.spike_score
    if len(places) < FEWEST_SPIKES or score <= SPIKY:
        return ""
    return (
        f"the training loss spiked {len(places)} times, first at step "
        f"{curve.step_of(float(places[0]))}: spike score {score:.2%}, the share of losses more "
        f"than {SPIKE_DEVIATIONS:g} standard deviations above the mean of the {SPIKE_WINDOW} "
        "before. Clipping helps against spikes"
    )


def _near_epsilon(trial: Trial) -> str:
    if not trial.near_epsilon > MANY_NEAR_EPSILON:  # nor if it is nan
        return ""
    return (
        f"at the end √v of {trial.near_epsilon:.0%} of the parameters was below "
        f"{NEAR_EPSILON:g} ε: {trial.point.optimizer} is nearly SGD there. Lower epsilon"
    )


@dataclass(frozen=True)
class _Passed:
    """Where a training's attention logit first passed the bound, no later than it blew up."""

    trial: Trial
    step: int
    logit: float


def attention_sign(trials: Iterable[Trial]) -> str:
    """That the largest attention logit of trainings passed MOST_ATTENTION_LOGIT, before they blew
    up or without; empty if none did, or the workload does not return it.
    """
    passed = [found for trial in trials if (found := _passed(trial))]
    if not passed:
        return ""
    failed = [one for one in passed if one.trial.verdict.infeasible]
    first = min(failed or passed, key=lambda one: one.trial.point.base_lr)
    onset = first.trial.verdict.onset_step
    then = f", and blew up at step {onset:.0f}" if math.isfinite(onset) else ""
    if len(passed) == 1:
        which = "a training"
    else:
        which = f"{len(passed)} trainings, of which {len(failed)} did not train,"
    return (
        f"the largest attention logit of {which} passed {MOST_ATTENTION_LOGIT:,.0f} before any "
        "blow-up: "
        f"trial {first.trial.point.number}, base_lr {readable(first.trial.point.base_lr)}, had "
        f"{readable(first.logit)} at step {first.step}{then}. Query-key normalization bounds it"
    )


def _passed(trial: Trial) -> _Passed | None:
    logits = trial.curve.metrics.get(ATTENTION_LOGIT)
    if logits is None:
        return None
    before = trial.curve.eval_step <= trial.verdict.onset_step
    found = np.flatnonzero(before & (np.abs(logits) > MOST_ATTENTION_LOGIT))
    if not len(found):
        return None
    place = found[0]
    return _Passed(trial, int(trial.curve.eval_step[place]), float(logits[place]))
