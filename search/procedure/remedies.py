"""The playbook's remedies (R8–R19): what is looked at, tuned, and rerun against plain training.

A first look takes each remedy at its strongest: the longest warmup, the tightest clip threshold
that clips no more than half of the updates. What the rounds leave gets its own search, by which a
warmup becomes as short and a threshold as large as they may be. `tournament` decides on fresh
seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..judge.diagnosis import PLAIN, Edge, Remedy, Step
from ..judge.sensitivity import lr_sensitivity
from ..study.command import is_passed_on
from ..trial import Trial
from .arms import (
    FIRST_LOOK,
    MOST_CLIMBED,
    Arm,
    architectures,
    base_lrs_of,
    first_gradient_twin,
    first_places,
    look_study,
    other_optimizers,
    remedy_of,
    tune_anew,
)
from .asking import Asking, together
from .clipping import cost_of_clipping, find_clip_norm, strongest_clip_norm
from .ladder import Reference, reference_of
from .rounds import NEIGHBOURHOOD, Rounds, first_look, rounds_step, tune_best
from .steps import OFF, SCREENING_SEEDS, Case
from .tournament import Found, cost_of_reruns, hold_tournament, in_words, rerun_control
from .warmup import cost_of_warmup, find_warmup, warmup_lengths

# running standard deviations above the running mean; Kumar et al. 2025, arXiv 2504.02507
ADAPTIVE_Z = 2.5
# times the usual norm of each tensor; Wang et al. 2025, arXiv 2502.11034
TENSOR_MULTIPLE = 1.05
NO_NORMS = "clipping: not tried, for the norms of the runs at lr_star are not known."
ANEW = NEIGHBOURHOOD * SCREENING_SEEDS + FIRST_LOOK  # trainings of `tune_anew`, at most


def own_arms(
    case: Case,
    base_lrs: tuple[float, ...],
    warmup_steps: int,
    clip_norm: float,
) -> list[Arm]:
    """Plain training and its remedies, in order of what they cost to keep.

    Without those of a warmup of 0, of a threshold of inf, and what a command does not pass on.
    """
    point, study = case.point, case.study
    points = {PLAIN: point}
    twin = first_gradient_twin(study, point.optimizer)
    if twin not in ("", *study.optimizers):  # where it is one of these, it has a range of its own
        points[twin] = replace(point, optimizer=twin)
    if warmup_steps:
        points["warmup"] = replace(point, warmup_steps=warmup_steps)
    if clip_norm < math.inf:
        points["clipping"] = replace(point, clip_norm=clip_norm)
    if is_passed_on(study, "clip_z"):
        points["adaptive clipping"] = replace(point, clip_z=ADAPTIVE_Z)
    if not study.log:  # which does not say what was clipped
        points["tensor clipping"] = replace(point, clip_tensor=TENSOR_MULTIPLE)
    if warmup_steps and clip_norm < math.inf:  # R19
        joint = replace(point, warmup_steps=warmup_steps, clip_norm=clip_norm)
        points["warmup and clipping"] = joint
    first = first_places(case, base_lrs)
    return [Arm(name, own, base_lrs, first) for name, own in points.items()]


def arms_of(case: Case, reference: Reference, best: float, clip_norm: float) -> list[Arm]:
    """Every arm of a group, plain training first. `best`: the base LR of its best mean."""
    base_lrs = base_lrs_of(case, reference, best)
    longest = max(warmup_lengths(case.steps), default=0)
    own = own_arms(case, base_lrs, longest, clip_norm)
    return [*own, *other_optimizers(case), *architectures(case, base_lrs)]


def most_arms(case: Case) -> list[Arm]:
    """Every arm that a group may have: what a budget must count on."""
    star = case.point.base_lr
    return arms_of(case, Reference("any", star), star, clip_norm=1.0)


def least_of(case: Case) -> tuple[float, float]:
    """Updates of the first look at every arm, and at most of the smallest decision after it."""
    arms = most_arms(case)
    longest = max(arms, key=lambda arm: arm.updates(case))
    looks = sum(len(arm.first) * arm.updates(case) for arm in arms)
    decision = MOST_CLIMBED * case.steps + cost_of_reruns(case, [longest.point])
    return looks, decision


def rerun_plain(case: Case, sweep: Sequence[Trial], swept_in: str) -> Asking[Found]:
    """Rerun plain training on fresh seeds, where nothing needs a remedy, for an honest value."""
    remedy = yield from rerun_control(case, as_swept(case, sweep, swept_in))
    studies = (remedy.rerun_in,) if remedy.rerun_in else ()
    step = Step("outcome", ("S9",), tuple(in_words(remedy)), studies)
    return Found([remedy], PLAIN, [step])


def as_swept(case: Case, sweep: Sequence[Trial], swept_in: str) -> Remedy:
    """Plain training at lr_star, by the trials of the sweep."""
    steps, sensitivity = case.steps, lr_sensitivity(sweep)
    return remedy_of(PLAIN, steps, sweep, case.point, tuned_in=swept_in, lr_sensitivity=sensitivity)


def find_remedies(
    case: Case, edge: Edge, sweep: Sequence[Trial], swept_in: str, best: float
) -> Asking[Found]:
    """All remedies for an unstable group, and the one to adopt.

    `best` is the base LR of the best mean of plain training, which is the group's own.
    """
    control = as_swept(case, sweep, swept_in)
    if edge.interval[0] < case.point.base_lr:  # what trains on lucky seeds is no baseline
        return Found([], "", [])
    reference = reference_of(case, edge)
    clip_norm = strongest_clip_norm(case, sweep)
    arms = arms_of(case, reference, best, clip_norm)
    looks = [look_study(case, arm) for arm in arms]
    if not case.pays("the first look at every remedy", *looks):
        return Found([control], PLAIN, [])
    rounds = yield from first_look(case, arms)
    control = replace(control, lr_sensitivity=lr_sensitivity(rounds.plain.looked))
    yield from tune_best(case, edge, rounds)
    searched = yield from _search(case, reference, sweep, rounds)
    remedies = [one.remedy() for one in rounds.remedies if one.best]
    plains = [control, *([rounds.plain.remedy()] if rounds.plain.best else [])]
    told = yield from hold_tournament(case, edge, plains, remedies, rounds.running)
    step = rounds_step(case, rounds)
    if math.isinf(clip_norm):
        step = replace(step, sentences=(*step.sentences, NO_NORMS))
    return Found(told.remedies, told.adopted, [step, *searched, *told.steps])


def _search(
    case: Case, reference: Reference, sweep: Sequence[Trial], rounds: Rounds
) -> Asking[list[Step]]:
    """Search the warmup and the clip threshold of the arms that are in the running.

    These are then trained anew with what was found. A search that finds nothing takes them out.
    """
    running = [rounds.tried[name] for name in rounds.running]
    warmed = [one for one in running if one.arm.point.warmup_steps]
    clipped = [one for one in running if one.arm.point.clip_norm < math.inf]
    if not (warmed or clipped):
        return []
    reserve = cost_of_reruns(case, [one.arm.point for one in running])
    reserve += sum(ANEW * one.arm.updates(case) for one in running)
    steps = []
    found: dict[str, Any] = {}
    what = "the search of warmup lengths"
    if warmed and case.purse.grants(what, cost_of_warmup(case), reserve):
        found["warmup_steps"], step = yield from find_warmup(case, reference)
        steps.append(step)
    what = "the search of clip thresholds"
    if clipped and case.purse.grants(what, cost_of_clipping(case), reserve):
        found["clip_norm"], step = yield from find_clip_norm(case, reference, sweep)
        steps.append(step)
    yield from _tune_as_found(case, rounds, found)
    return steps


def _tune_as_found(case: Case, rounds: Rounds, found: Mapping[str, Any]) -> Asking[None]:
    """Train arms in the running with settings that a search found; without any they are dropped."""
    anew = []
    for name in list(rounds.running):
        one = rounds.tried[name]
        own = {
            key: value for key, value in found.items() if getattr(one.arm.point, key) != OFF[key]
        }
        if any(value == OFF[key] for key, value in own.items()):
            rounds.drop([name], "dropped: its search found nothing that works")
        elif (point := replace(one.arm.point, **own)) != one.arm.point:
            anew.append(tune_anew(case, one, point))
    for one in (yield from together(*anew)):
        rounds.tried[one.name] = one
        if not one.best:
            rounds.drop([one.name], "dropped: it does not train with what its search found")
    rounds.rank()
