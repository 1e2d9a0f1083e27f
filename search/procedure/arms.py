"""Arms: ways to train whose base LR is searched, from a first look to a tuning (R18, S9).

All are looked at alike: at equally many base LRs of as many, on the same seed. What comes next is
for those that a round leaves in the running (`rounds`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import scipy

from ..judge.analysis import mean_cost, mean_value, rank_configurations, repetitions
from ..judge.comparison import ALPHA
from ..judge.diagnosis import Remedy
from ..judge.sensitivity import lr_sensitivity, usable_decades
from ..rules.optimizers import RULES, is_of_torch, optimizer_of
from ..study.study import DECAY_SETTINGS, Study, ends
from ..trial import COMMON, Point, Trial
from .asking import Asking, train_all
from .ladder import LADDER, Reference
from .steps import SCREENING_SEEDS, Case

TUNED = 10  # base LRs that an arm may be tried at
BELOW_STAR = 3.0  # the lowest of them is lr_star divided by this, the highest 10 × unstable_base_lr
FIRST_LOOK = 3  # of them in the first look
# their places: lr_star and every second above it; the range of another optimizer in three parts
APART, OF_ANOTHER = 2, range(2, TUNED, 3)
MOST_CLIMBED = 4  # base LRs beside the best one until neither neighbour is better


@dataclass(frozen=True)
class Arm:
    """A way to train before it is tried.

    point      has its settings
    base_lrs   that it may be tried at, ascending
    first      the places of those of the first look
    """

    name: str
    point: Point
    base_lrs: tuple[float, ...]
    first: tuple[int, ...] = tuple(OF_ANOTHER)

    def updates(self, case: Case) -> int:
        """Of one training, a prepended warmup included."""
        return case.steps + self.point.warmup_steps


def first_places(case: Case, base_lrs: Sequence[float]) -> tuple[int, ...]:
    """Where an arm with the optimizer of plain training is looked at first: lr_star and above."""
    star = base_lrs.index(case.point.base_lr)
    return tuple(range(star, TUNED, APART))[:FIRST_LOOK]


def base_lrs_of(case: Case, reference: Reference, best: float) -> tuple[float, ...]:
    """The base LRs of each arm: from lr_star / BELOW_STAR to the top of LADDER, evenly in decades.

    lr_star replaces the nearest of them, and so does the base LR of the best mean of the sweep, if
    that is another one. Without them, plain training would be tuned worse than by the sweep.
    """
    star = case.point.base_lr
    rates = np.geomspace(star / BELOW_STAR, LADDER[0] * reference.base_lr, TUNED)
    at_star, at_best = (np.argmin(np.abs(np.log(rates / rate))) for rate in (star, best))
    rates[at_star] = star
    if at_best != at_star:
        rates[at_best] = best
    return tuple(float(rate) for rate in rates)


def first_gradient_twin(study: Study, optimizer: str) -> str:
    """The optimizer whose second moment starts at the first gradient, else the same; "" for none.

    A command may not have it.
    """
    return "" if study.log else optimizer_of(optimizer).from_first_gradient


def other_optimizers(case: Case) -> list[Arm]:
    """The study's other optimizers, in their own ranges; another one where it has none, and that
    from its first gradient.

    A command may not have these: then there is no arm.
    """
    study, own = case.study, case.point.optimizer
    others = [name for name in study.optimizers if name != own]
    ranges = {name: ends(study.axes(name)["base_lr"]) for name in others}
    if not ranges and not study.log:
        alternative = optimizer_of(own).alternative
        twin = first_gradient_twin(study, alternative.optimizer)
        names = [alternative.optimizer, *filter(None, [twin])]
        ranges |= dict.fromkeys(names, alternative.base_lrs)
    arms = []
    for name, (low, high) in ranges.items():
        point = replace(case.point, optimizer=name, settings=_settings(case, name))
        rates = tuple(float(rate) for rate in np.geomspace(low, high, TUNED))
        arms.append(Arm(name, point, rates))
    return arms


def _settings(case: Case, optimizer: str) -> Mapping[str, Any]:
    """An optimizer's own hyperparameters: what the study fixes of them, and the rule's defaults.

    The defaults of an optimizer of torch are left to it.
    """
    fixed = _fixed(case, optimizer) if optimizer in case.study.optimizers else {}
    of_all = (*COMMON, *DECAY_SETTINGS)
    if is_of_torch(optimizer):
        return {name: value for name, value in fixed.items() if name not in of_all}
    return {
        name: float(fixed.get(name, default)) for name, default in RULES[optimizer].defaults.items()
    }


def _fixed(case: Case, optimizer: str) -> dict[str, Any]:
    """What the study fixes at the case's batch size: nothing that follows from base_lr, too."""
    study, batch_size = case.study, case.point.batch_size
    by_base_lr = [name for name, tie in study.ties[optimizer].items() if tie.by_epochs]
    fixed = {
        name: axis[0]
        for name, axis in study.axes(optimizer, batch_size).items()
        if isinstance(axis, tuple) and len(axis) == 1 and name not in by_base_lr
    }
    return study.hyperparameters(optimizer, batch_size, fixed)


def other_architectures(
    arguments: Mapping[str, Any], declared: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The arguments of each architecture that a workload declares, without what it is already."""
    changed = {name: {**arguments, **own} for name, own in declared.items()}
    return {name: own for name, own in changed.items() if own != dict(arguments)}


def architectures(case: Case, base_lrs: tuple[float, ...]) -> list[Arm]:
    """An arm for each other architecture that the workload declares."""
    others = other_architectures(case.point.workload_args, case.architectures)
    first = first_places(case, base_lrs)
    return [
        Arm(name, replace(case.point, workload_args=arguments), base_lrs, first)
        for name, arguments in others.items()
    ]


@dataclass(frozen=True)
class Tuning:
    """An arm as far as it was tried.

    trials    of all its base LRs so far, judged
    looked    those of the first look
    studies   that trained them
    """

    arm: Arm
    trials: tuple[Trial, ...] = ()
    looked: tuple[Trial, ...] = ()
    studies: tuple[Study, ...] = ()

    @property
    def name(self) -> str:
        return self.arm.name

    @cached_property
    def best(self) -> list[Trial]:
        """Trials of the best base LR of those with most seeds, by seed; none if none trains."""
        seeds = Counter(trial.point.base_lr for trial in self.trials)
        most = max(seeds.values(), default=0)
        own = [trial for trial in self.trials if seeds[trial.point.base_lr] == most]
        ranking = [trial.point.configuration for trial in rank_configurations(own)]
        by_configuration = {seeds[0].point.configuration: seeds for seeds in repetitions(own)}
        return by_configuration[ranking[0]] if ranking else []

    @property
    def cost(self) -> float:
        """The mean of the best base LR; inf if it trains at none."""
        return mean_cost(self.best) if self.best else math.inf

    def around(self) -> list[float]:
        """The best base LR and its neighbours."""
        place = self.arm.base_lrs.index(self.best[0].point.base_lr)
        return list(self.arm.base_lrs[max(0, place - 1) : place + 2])

    def plus(self, case: Case, asked: Study, found: Sequence[Trial]) -> Tuning:
        """It with the trials of one more study."""
        trials = (*self.trials, *case.judged(found))
        return replace(self, trials=trials, studies=(*self.studies, asked))

    def remedy(self) -> Remedy:
        """It as a remedy at its best base LR, which it must have."""
        *earlier, last = self.studies
        best = self.best[0].point
        return remedy_of(
            self.name,
            last.updates(best),
            self.trials,
            best,
            self.arm.base_lrs,
            tuned_in=last.name,
            looked_in=tuple(study.name for study in earlier),
            lr_sensitivity=lr_sensitivity(self.looked),
        )


def look_study(case: Case, arm: Arm) -> Study:
    """What the first look at an arm trains."""
    rates = [arm.base_lrs[place] for place in arm.first]
    return case.ask(f"look-{arm.name}", rates, 1, point=arm.point)


def look(case: Case, arm: Arm) -> Asking[Tuning]:
    """The first look at an arm."""
    (found,) = yield from train_all(asked := look_study(case, arm))
    if not found:
        return Tuning(arm)
    one = Tuning(arm).plus(case, asked, found)
    return replace(one, looked=one.trials)


def climb(case: Case, one: Tuning) -> Asking[Tuning]:
    """Try the neighbours of the best base LR, until it is better than both."""
    for number in range(2, TUNED):
        tried = {trial.point.base_lr for trial in one.trials}
        beside = [rate for rate in one.around() if rate not in tried]
        if not beside:
            break
        asked = case.ask(f"look-{one.name}-{number}", beside, 1, point=one.arm.point)
        (found,) = yield from train_all(asked)
        if not found:
            break
        one = one.plus(case, asked, found)
    return one


def tune(case: Case, one: Tuning) -> Asking[Tuning]:
    """Train the best base LR and its neighbours on the other seeds of a screening."""
    asked = case.ask(
        f"tune-{one.name}",
        one.around(),
        SCREENING_SEEDS - 1,
        point=one.arm.point,
        first_seed=case.first_seed + 1,
    )
    (found,) = yield from train_all(asked)
    return one.plus(case, asked, found) if found else one


def tune_anew(case: Case, one: Tuning, point: Point) -> Asking[Tuning]:
    """Train an arm with other settings around its best base LR, and where it was looked at first.

    As many base LRs as before, so that how much it depends on them can be compared.
    """
    arm, around = replace(one.arm, point=point), one.around()
    first = [arm.base_lrs[place] for place in arm.first]
    tuned = case.ask(f"tune-{one.name}-as-found", around, SCREENING_SEEDS, point=point)
    asked = [tuned]
    if others := [rate for rate in first if rate not in around]:
        asked.insert(0, case.ask(f"look-{one.name}-as-found", others, 1, point=point))
    anew = Tuning(arm)
    for study, found in zip(asked, (yield from train_all(*asked)), strict=True):
        anew = anew.plus(case, study, found)
    seed = case.first_seed
    looked = [t for t in anew.trials if t.point.base_lr in first and t.point.seed == seed]
    return replace(anew, looked=tuple(looked))


def is_beaten(one: Tuning, best: Tuning) -> bool:
    """Whether an arm is shown to be worse than the best, by Student's t of paired seeds."""
    above = np.subtract([trial.cost for trial in one.best], [trial.cost for trial in best.best])
    error = above.std(ddof=1) / math.sqrt(len(above))
    return bool(above.mean() > scipy.stats.t.ppf(1 - ALPHA, len(above) - 1) * error)


def remedy_of(
    name: str,
    updates: int,
    trials: Sequence[Trial],
    best: Point,
    base_lrs: Sequence[float] = (),
    **known: Any,
) -> Remedy:
    """A remedy at the best of the base LRs that it may be tried at; `known` are further fields."""
    seeds = next(
        own for own in repetitions(trials) if own[0].point.configuration == best.configuration
    )
    highest = _highest(trials, best.base_lr)
    return Remedy(
        name=name,
        point=best,
        updates=updates,
        highest_base_lr=highest,
        fails_from=_fails_from(trials, best.base_lr, highest, base_lrs),
        usable_decades=usable_decades(trials),
        clip_fraction=fmean(trial.clip_fraction for trial in seeds),
        tuned_value=mean_value(seeds),
        **known,
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


def _fails_from(
    trials: Sequence[Trial], best: float, highest: float, base_lrs: Sequence[float]
) -> float:
    """The lowest base LR from the best one on that is not known to train; inf if none fails.

    That is one at which a seed is infeasible, or one below it that was not tried.
    """
    failed = [t.point.base_lr for t in trials if t.verdict.infeasible and t.point.base_lr >= best]
    untried = [rate for rate in base_lrs if rate > highest]
    return min([*failed, *untried]) if failed else math.inf
