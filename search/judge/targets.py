"""Updates until the objective reaches a target, against the batch size.

A training reaches a target when its best value so far does: between two evaluations that is taken
to fall linearly. At each batch size the base LR counts that reaches the target soonest, as in
Shallue et al. 2019, "Measuring the effects of data parallelism on neural network training": what is
best at the end need not be soonest. So that no single lucky training decides, the fewest updates
are those at the lowest point of a smooth curve of log10 updates by log10 base LR (`optimum`); with
fewer base LRs than that needs, those of the fastest configuration. Between two evaluations every
update is as likely: the way from one to the next, over √12, is a standard error of its own.

With S updates and E = B S examples at batch size B,

    (S / S_min − 1) (E / E_min − 1) = 1,    that is    S = S_min (1 + B_crit / B),

where B_crit = E_min / S_min (McCandlish et al. 2018, arXiv 1812.06162). It is fitted in log10 S as
a law (`laws`), and B_crit is known only where it lies within the batch sizes that were tried: there
alone updates are seen to stop halving. At B_crit / 4 trainings see 25 % more examples than E_min:
below, scaling is called perfect. At 4 B_crit they need 25 % more updates than S_min: beyond, a
larger batch gains next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..trial import Trial, cost
from ..words import readable
from .analysis import has_value, repetitions
from .comparison import Interval
from .laws import FEWEST_SIZES, SATURATING, Evidence, Fit, Form, fit, power_of_ten
from .optimum import FEWEST, MANY, Measured, Optimum, find_optima, quantile

SLACK = 4.0  # factor to B_crit within which returns diminish: at its ends 25 % are lost
UNKNOWN_SPREAD = 1e-3  # decades, where nothing says how updates scatter: then the law's misfit does

UPDATES = Form(
    "updates", "S = S_min (1 + B_crit / B)", lambda x, knee: -SATURATING.form(x, knee), "B", True
)


@dataclass(frozen=True)
class Reached:
    """How soon a target is reached at one batch size, at the base LR that reaches it soonest.

    updates    until then, interpolated between evaluations; inf if no training reaches it
    interval   that holds `updates` with 95 % confidence; (nan, nan) if not known
    base_lr    at which it is reached soonest; nan if it is not reached
    trainings  that reach it
    """

    batch_size: int
    updates: float
    interval: Interval
    base_lr: float
    trainings: int

    @property
    def examples(self) -> float:
        return self.updates * self.batch_size


@dataclass(frozen=True)
class StepsToTarget:
    """Updates to a target against the batch size: (S/S_min − 1)(E/E_min − 1) = 1.

    target          of the objective; is_given: whether it was asked for, else chosen
    reached         by batch size, ascending
    critical        B_crit = E_min / S_min: at that batch size twice S_min updates are needed; nan
                    if not fitted, 0 or inf if it lies below or beyond the batch sizes
    interval        that holds it with 95 % confidence; an end is 0 or inf where it lies below or
                    beyond the batch sizes; (nan, nan) if not fitted
    fewest_updates, fewest_examples   S_min and E_min; nan where B_crit is not known
    words           the regimes in a sentence
    notes           what keeps more from being said
    """

    target: float
    is_given: bool
    reached: tuple[Reached, ...]
    critical: float
    interval: Interval
    fewest_updates: float
    fewest_examples: float
    words: str
    notes: tuple[str, ...]

    @property
    def is_known(self) -> bool:
        """Whether B_crit lies within the batch sizes."""
        return 0 < self.critical < math.inf

    def updates_at(self, batch_size: float) -> float:
        """S by the fit; nan where B_crit is not known."""
        return self.fewest_updates * (1 + self.critical / batch_size)


def updates_to(trial: Trial, objective: str, target: float) -> float:
    """Updates until the best value so far reaches a target; inf if it does not.

    Those of the first evaluation, if that reaches it: how much sooner it was, nobody knows.
    """
    values = trial.curve.metrics.get(objective, np.empty(0))
    finite = np.isfinite(values)
    sign = -1.0 if trial.maximize else 1.0
    best = np.minimum.accumulate(sign * values[finite])
    steps, goal = trial.curve.eval_step[finite], cost(target, trial.maximize)
    there = np.flatnonzero(best <= goal)
    if not len(there):
        return math.inf
    first = int(there[0])
    if first == 0:
        return float(steps[0])
    share = (best[first - 1] - goal) / (best[first - 1] - best[first])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


def steps_to_target(
    trials: Mapping[int, Sequence[Trial]], objective: str, target: float | None = None
) -> StepsToTarget | None:
    """Of the trials of one optimizer by batch size.

    Without a target it is the best value that FEWEST base LRs of every batch size reach, or all
    that train where they are fewer. None if none can be chosen: no batch size trains, or one of
    them has no such value that is better than that of its untrained model.
    """
    sizes = {size: _feasible(own) for size, own in sorted(trials.items())}
    chosen = target if target is not None else _chosen(sizes)
    if chosen is None:
        return None
    soonest = {size: _updates(own, objective, chosen) for size, own in sizes.items()}
    optima = {
        size: _between_evaluations(one, _first(sizes[size]))
        for size, one in find_optima(soonest).items()
    }
    reached = tuple(_reached(size, soonest[size], optima[size]) for size in sizes)
    there = [one for one in reached if 0 < one.updates < math.inf]
    notes = _notes(reached, sizes, objective, chosen)
    known = {one.batch_size: optima[one.batch_size] for one in there}
    found = fit(UPDATES, _evidence(there, known)) if len(there) >= FEWEST_SIZES else None
    if found is None:
        notes.append(f"the critical batch size needs {FEWEST_SIZES} batch sizes that reach it")
    elif found.fails:
        notes.append("updates do not follow S = S_min (1 + B_crit / B) within their noise")
    critical, interval = _critical(found)
    fewest = math.nan
    if found is not None and 0 < critical < math.inf:
        middle = 10**found.middle
        fewest = power_of_ten(found.predicted(middle)[0]) / (1 + critical / middle)
    return StepsToTarget(
        target=chosen,
        is_given=target is not None,
        reached=reached,
        critical=critical,
        interval=interval,
        fewest_updates=fewest,
        fewest_examples=fewest * critical if math.isfinite(fewest) else math.nan,
        words=_words(there, critical, interval),
        notes=tuple(notes),
    )


def _feasible(trials: Sequence[Trial]) -> list[list[Trial]]:
    return [own for own in repetitions(trials) if all(map(has_value, own))]


def _chosen(sizes: Mapping[int, Sequence[Sequence[Trial]]]) -> float | None:
    trained = [own for own in sizes.values() if own]
    if not trained:
        return None
    worst = []
    for own in trained:
        by_rate: dict[float, float] = {}
        for seeds in own:
            value, rate = max(trial.cost for trial in seeds), seeds[0].point.base_lr
            by_rate[rate] = min(value, by_rate.get(rate, math.inf))
        values = sorted(by_rate.values())
        worst.append(values[min(FEWEST, len(values)) - 1])
    goal = max(worst)
    every = [trial for own in trained for seeds in own for trial in seeds]
    known = [trial for trial in every if math.isfinite(trial.initial_value)]
    untrained = min((cost(one.initial_value, one.maximize) for one in known), default=math.inf)
    if goal >= untrained:
        return None
    return -goal if every[0].maximize else goal


def _updates(own: Sequence[Sequence[Trial]], objective: str, target: float) -> list[Measured]:
    """log10 of the updates of each configuration all of whose seeds reach a target."""
    found = []
    for seeds in own:
        updates = {trial.point.seed: updates_to(trial, objective, target) for trial in seeds}
        if all(0 < value < math.inf for value in updates.values()):
            logs = {seed: math.log10(value) for seed, value in updates.items()}
            found.append(Measured(seeds[0].point.base_lr, logs))
    return found


def _between_evaluations(optimum: Optimum, spacing: float) -> Optimum:
    """With the error of interpolation: the way to the next evaluation over √12, as a log10."""
    if not (math.isfinite(optimum.value_spread) and spacing > 0):
        return optimum
    width = math.log10(1 + spacing / 10**optimum.value)
    spread = math.hypot(optimum.value_spread, width / math.sqrt(12))
    return replace(optimum, value_spread=spread)


def _reached(size: int, soonest: Sequence[Measured], optimum: Optimum) -> Reached:
    trainings = sum(len(one.costs) for one in soonest)
    if not soonest:
        return Reached(size, math.inf, (math.nan, math.nan), math.nan, 0)
    if optimum.where == "unknown":
        fastest = min(soonest, key=lambda one: one.mean)
        updates, rate = power_of_ten(fastest.mean), fastest.base_lr
        return Reached(size, updates, (math.nan, math.nan), rate, trainings)
    reach = quantile(optimum.freedom) * optimum.value_spread
    ends = power_of_ten(optimum.value - reach), power_of_ten(optimum.value + reach)
    return Reached(size, power_of_ten(optimum.value), ends, optimum.base_lr, trainings)


def _evidence(there: Sequence[Reached], optima: Mapping[int, Optimum]) -> Evidence:
    spreads = {
        size: one.value_spread for size, one in optima.items() if math.isfinite(one.value_spread)
    }
    usual = float(np.median([*spreads.values()])) if spreads else UNKNOWN_SPREAD
    freedom = max((optima[size].freedom for size in spreads), default=MANY)
    sizes = [one.batch_size for one in there]
    return Evidence.of_points(
        sizes,
        [math.log10(one.updates) for one in there],
        [spreads.get(size, usual) for size in sizes],
        freedom,
    )


def _critical(found: Fit | None) -> tuple[float, Interval]:
    """B_crit and its interval; 0 or inf where it is not within the batch sizes."""
    if found is None:
        return math.nan, (math.nan, math.nan)
    low, high = float(found.evidence.x[0]), float(found.evidence.x[-1])

    def within(x: float) -> float:
        if x < low:
            return 0.0
        return math.inf if x > high else power_of_ten(x)

    return within(found.shape), (within(found.interval[0]), within(found.interval[1]))


# --- in words -------------------------------------------------------------------------------------


def _notes(
    reached: Sequence[Reached],
    sizes: Mapping[int, Sequence[Sequence[Trial]]],
    objective: str,
    target: float,
) -> list[str]:
    notes = []
    missing = [str(one.batch_size) for one in reached if math.isinf(one.updates)]
    if missing:
        notes.append(f"{objective} {readable(target)} is not reached at B = {', '.join(missing)}")
    few = [str(one.batch_size) for one in reached if one.trainings and math.isnan(one.interval[0])]
    if few:
        notes.append(
            f"at B = {', '.join(few)} the fastest training counts: too few base LRs reach the "
            "target for a smooth curve"
        )
    coarse = [
        str(one.batch_size) for one in reached if one.updates <= _first(sizes[one.batch_size])
    ]
    if coarse:
        notes.append(
            f"at B = {', '.join(coarse)} the target is reached before the first evaluation: "
            "updates are known roughly"
        )
    return notes


def _first(own: Sequence[Sequence[Trial]]) -> float:
    """The first evaluation after an update, of any training."""
    steps = [trial.curve.eval_step for seeds in own for trial in seeds]
    later = np.concatenate([each[each > 0] for each in steps]) if steps else np.empty(0)
    return float(later.min()) if len(later) else -math.inf


def critical_in_words(critical: float, interval: Interval, smallest: int, largest: int) -> str:
    """B_crit: "210 (90 to 400)", "beyond 512", "below 8", with its interval if that is bounded."""

    def known(batch_size: float) -> str:
        if batch_size == 0:
            return f"below {smallest}"
        return f"beyond {largest}" if math.isinf(batch_size) else _size(batch_size)

    at, low, high = map(known, (critical, *interval))
    return at if low == high else f"{at} ({low} to {high})"


def _size(batch_size: float) -> str:
    return readable(float(f"{batch_size:.2g}"))


def _words(there: Sequence[Reached], critical: float, interval: Interval) -> str:
    if math.isnan(critical):
        return ""
    smallest, largest = there[0].batch_size, there[-1].batch_size
    known = critical_in_words(critical, interval, smallest, largest)
    parts = [f"critical batch size {known}"]
    if not 0 < critical < math.inf:
        halve = "halves" if critical else "hardly lowers"
        parts.append(
            f"from B = {smallest} to {largest} doubling the batch size {halve} the updates"
        )
        return ": ".join(parts)
    perfect, useless = critical / SLACK, critical * SLACK
    first = f"perfect scaling up to about B = {_size(perfect)}"
    if perfect < smallest:
        first = f"no perfect scaling from B = {smallest} on"
    last = f"next to no gain beyond about B = {_size(useless)}"
    if useless > largest:
        last = f"still some gain at B = {largest}"
    return f"{parts[0]}: {first}, then diminishing returns, {last}"
