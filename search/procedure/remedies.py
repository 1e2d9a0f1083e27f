"""The playbook's remedies (R8–R19), tuned alike, then rerun against plain training.

Each is found by its own procedure. Every remedy is tuned at equally many base LRs on the same seeds
(`arms`), and at the same base LRs if it has the optimizer of plain training. Then `tournament`
decides on fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..judge.diagnosis import PLAIN, Edge, Remedy, Step
from ..trial import Point, Trial
from .arms import Arm, architectures, arms_step, base_lrs_of, other_optimizers, remedy_of, tune
from .clipping import find_clip_norm
from .ladder import reference_of
from .steps import Asking, Case, both, together, train_all
from .tournament import Found, hold_tournament, in_words, rerun_study, with_runs
from .warmup import find_warmup

# running standard deviations above the running mean; Kumar et al. 2025, arXiv 2504.02507
ADAPTIVE_Z = 2.5


def own_arms(
    point: Point,
    base_lrs: tuple[float, ...],
    highest: float,
    warmup_steps: int,
    clip_norm: float,
) -> list[Arm]:
    """Plain training and its remedies at the same base LRs; one that was not found is left out.

    `highest` bounds the base LR of plain training alone. A warmup of 0 steps and a clip threshold
    of inf were not found.
    """
    arms = [Arm(PLAIN, point, base_lrs, highest)]
    if warmup_steps:
        arms.append(Arm("warmup", replace(point, warmup_steps=warmup_steps), base_lrs))
    if clip_norm < math.inf:
        arms.append(Arm("clipping", replace(point, clip_norm=clip_norm), base_lrs))
    arms.append(Arm("adaptive clipping", replace(point, clip_z=ADAPTIVE_Z), base_lrs))
    if warmup_steps and clip_norm < math.inf:  # R19
        joint = replace(point, warmup_steps=warmup_steps, clip_norm=clip_norm)
        arms.append(Arm("warmup and clipping", joint, base_lrs))
    return arms


# at most: what a budget must count on
OWN_ARMS = len(own_arms(Point(0, 1, "sgd", 1.0), (), math.inf, warmup_steps=1, clip_norm=1.0))


def rerun_plain(case: Case, sweep: Sequence[Trial], swept_in: str) -> Asking[Found]:
    """Rerun plain training on fresh seeds, where nothing needs a remedy, for an honest value."""
    asked = rerun_study(case, PLAIN, case.point, case.seeds)
    (trials,) = yield from train_all(asked)
    remedy = with_runs(as_swept(case, sweep, swept_in), asked, trials)
    step = Step("outcome", ("S9",), tuple(in_words(remedy)), (asked.name,) if trials else ())
    return Found([remedy], PLAIN, [step], [] if trials else [f"the rerun of {PLAIN}"])


def as_swept(case: Case, sweep: Sequence[Trial], swept_in: str) -> Remedy:
    """Plain training at lr_star, by the trials of the sweep."""
    return remedy_of(PLAIN, case.study, sweep, swept_in, case.point)


def find_remedies(case: Case, edge: Edge, sweep: Sequence[Trial]) -> Asking[Found]:
    """All remedies for an unstable group, and the one to adopt."""
    reference = reference_of(case, edge)
    base_lrs = base_lrs_of(case, reference)
    searches = both(find_warmup(case, reference), find_clip_norm(case, reference, sweep))
    (
        (warmup, warmup_step, whole_warmup),
        (clip_norm, clip_step, whole_clipping),
    ) = yield from searches
    left_out = [] if whole_warmup else ["the search of warmup lengths"]
    left_out += [] if whole_clipping else ["the search of clip thresholds"]
    highest = edge.interval[0] if edge.found else math.inf
    own = own_arms(case.point, base_lrs, highest, warmup, clip_norm)
    others = [*other_optimizers(case), *architectures(case, base_lrs)]
    tuned = yield from together(*(tune(case, arm) for arm in [*own, *others]))
    remedies = [one.remedy for one in tuned if one.remedy]
    for arm, one in zip([*own, *others], tuned, strict=True):
        left_out += [] if one.study else [f"the tuning of {arm.name}"]
    steps = [warmup_step, clip_step, arms_step(case, others, tuned[len(own) :])]
    if not remedies or remedies[0].name != PLAIN:
        left_out += [] if tuned[0].study else [f"the rerun of {one.name}" for one in remedies]
        return Found(remedies, "", steps, left_out)
    told = yield from hold_tournament(case, edge, remedies, tuned[0].at_star)
    return Found(told.remedies, told.adopted, steps + told.steps, left_out + told.left_out)
