"""Arms of the tournament, tuned alike: at equally many base LRs, on the same seeds (R18, S9)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from ..judge.analysis import mean_value, rank_configurations, repetitions
from ..judge.diagnosis import Remedy, Step
from ..judge.sensitivity import lr_sensitivity, usable_decades
from ..rules.optimizers import RULES, is_of_torch, optimizer_of
from ..study.study import DECAY_SETTINGS, Study, ends
from ..trial import COMMON, Point, Trial
from ..words import readable
from .ladder import LADDER, Reference
from .steps import SCREENING_SEEDS, Asking, Case, train_all

TUNED = 10  # base LRs of each arm
BELOW_STAR = 3.0  # the lowest of them is lr_star divided by this, the highest 10 × unstable_base_lr


@dataclass(frozen=True)
class Arm:
    """A remedy before it is tuned.

    point      has its settings
    base_lrs   to tune it at
    highest    of them that may be chosen: plain training that was lucky on the edge is no baseline
    """

    name: str
    point: Point
    base_lrs: tuple[float, ...]
    highest: float = math.inf


def base_lrs_of(case: Case, reference: Reference) -> tuple[float, ...]:
    """The base LRs of each arm: from lr_star / BELOW_STAR to the top of LADDER, evenly in decades.

    lr_star replaces the nearest of them. Without it, plain training would be tuned worse than by
    the sweep where the edge is far and the base LRs are coarse.
    """
    star = case.point.base_lr
    rates = np.geomspace(star / BELOW_STAR, LADDER[0] * reference.base_lr, TUNED)
    rates[np.argmin(np.abs(np.log(rates / star)))] = star
    return tuple(float(rate) for rate in rates)


def other_optimizers(case: Case) -> list[Arm]:
    """The study's other optimizers, in their own ranges; another one where it has none.

    A command may not have that: then there is no arm.
    """
    study, own = case.study, case.point.optimizer
    ranges = {name: ends(study.axes(name)["base_lr"]) for name in study.optimizers if name != own}
    if not ranges and not study.log:
        alternative = optimizer_of(own).alternative
        ranges[alternative.optimizer] = alternative.base_lrs
    arms = []
    for name, (low, high) in ranges.items():
        point = replace(case.point, optimizer=name, settings=_settings(study, name))
        rates = tuple(float(rate) for rate in np.geomspace(low, high, TUNED))
        arms.append(Arm(name, point, rates))
    return arms


def _settings(study: Study, optimizer: str) -> Mapping[str, Any]:
    """An optimizer's own hyperparameters: what the study fixes of them, and the rule's defaults.

    The defaults of an optimizer of torch are left to it.
    """
    axes = study.axes(optimizer) if optimizer in study.optimizers else {}
    fixed = {
        name: study.convert(optimizer, name, axis[0])
        for name, axis in axes.items()
        if isinstance(axis, tuple) and len(axis) == 1
    }
    of_all = (*COMMON, *DECAY_SETTINGS)
    if is_of_torch(optimizer):
        return {name: value for name, value in fixed.items() if name not in of_all}
    return {
        name: float(fixed.get(name, default)) for name, default in RULES[optimizer].defaults.items()
    }


def architectures(case: Case, base_lrs: tuple[float, ...]) -> list[Arm]:
    """An arm for each other architecture that the workload declares."""
    arms = []
    for name, changed in case.architectures.items():
        arguments = {**case.point.workload_args, **changed}
        if arguments != dict(case.point.workload_args):
            arms.append(Arm(name, replace(case.point, workload_args=arguments), base_lrs))
    return arms


def arms_step(case: Case, arms: Sequence[Arm], tuned: Sequence[Tuned]) -> Step:
    """What the tuning of other optimizers and architectures found, for the report."""
    sentences = []
    for arm, one in zip(arms, tuned, strict=True):
        if one.remedy:
            value, base_lr = readable(one.remedy.tuned_value), readable(one.remedy.point.base_lr)
            sentences.append(f"{arm.name}: {case.study.objective} {value} at base_lr {base_lr}.")
        elif one.study:
            low, high = readable(arm.base_lrs[0]), readable(arm.base_lrs[-1])
            sentences.append(f"{arm.name}: no base LR from {low} to {high} trains.")
        else:
            sentences.append(f"{arm.name}: left out for budget.")
    return Step("arms", ("R18",), tuple(sentences), tuple(one.study for one in tuned if one.study))


@dataclass(frozen=True)
class Tuned:
    """An arm after it was tuned.

    remedy    at its best base LR; None if it trains at none
    at_star   at lr_star; None if it does not train there
    study     the name of the study that tuned it; "" if the budget left it out
    """

    remedy: Remedy | None
    at_star: Remedy | None
    study: str


def tune(case: Case, arm: Arm) -> Asking[Tuned]:
    """Train an arm at its base LRs, and choose the best."""
    asked = case.ask(f"tune-{arm.name}", arm.base_lrs, SCREENING_SEEDS, point=arm.point)
    (found,) = yield from train_all(asked)
    trials = case.judged(found)
    ranking = [trial for trial in rank_configurations(trials) if trial.point.base_lr <= arm.highest]
    if not ranking:
        return Tuned(None, None, asked.name if trials else "")
    best, star = ranking[0].point, case.point.base_lr
    at_star = [trial.point for trial in ranking if trial.point.base_lr == star]
    first, second = (
        remedy_of(arm.name, asked, trials, asked.name, point) if point else None
        for point in (best, at_star[0] if at_star else None)
    )
    return Tuned(first, second, asked.name)


def remedy_of(
    name: str, study: Study, trials: Sequence[Trial], tuned_in: str, best: Point
) -> Remedy:
    """A remedy at the configuration that its sweep chose."""
    seeds = next(
        own for own in repetitions(trials) if own[0].point.configuration == best.configuration
    )
    return Remedy(
        name=name,
        point=best,
        updates=study.updates(best),
        highest_base_lr=_highest(trials, best.base_lr),
        fails_from=_fails_from(trials, best.base_lr),
        usable_decades=usable_decades(trials),
        lr_sensitivity=lr_sensitivity(trials),
        clip_fraction=fmean(trial.clip_fraction for trial in seeds),
        tuned_value=mean_value(seeds),
        tuned_in=tuned_in,
    )


def _highest(trials: Sequence[Trial], best: float) -> float:
    """The highest base LR up to which every seed trains, from the best one on."""
    by_rate: dict[float, bool] = {}
    for trial in trials:
        by_rate[trial.point.base_lr] = by_rate.get(trial.point.base_lr, True) and trial.feasible
    highest = best
    for rate in sorted(rate for rate in by_rate if rate > best):
        if not by_rate[rate]:
            break
        highest = rate
    return highest


def _fails_from(trials: Sequence[Trial], best: float) -> float:
    """The lowest base LR from the best one on at which a seed is infeasible; inf if none is."""
    failed = [t.point.base_lr for t in trials if t.verdict.infeasible and t.point.base_lr >= best]
    return min(failed, default=math.inf)
