"""Trials at several batch sizes whose laws are known: optimum, edge and updates to a target."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunewright.search.judge.optimum import Measured
from tunewright.search.trial import Array, Curve, Outcome, Point, Trial, Verdict

SIZES = (8, 16, 32, 64, 128, 256, 512)
LOW, HIGH = -3.2, 0.8  # log10 of the base LRs that are tried
BEST, UNTRAINED = 0.1, 0.9
Law = Callable[[float], float]  # log10 of a base LR, by log10 of the batch size
Valley = Callable[[Array], Array]  # what a base LR costs, by decades above the optimum


def power(exponent: float, at_64: float = -1.6) -> Law:
    return lambda x: at_64 + exponent * (x - math.log10(64))


def saturating(knee: float = 64, most: float = -1.2) -> Law:
    return lambda x: most - math.log10(1 + knee / 10**x)


def surge(knee: float = 64, most: float = -1.3) -> Law:
    return lambda x: most - math.log10(0.5 * (math.sqrt(knee / 10**x) + math.sqrt(10**x / knee)))


def valley(u: Array) -> Array:
    return np.asarray(0.2 * u**2)


def steep(u: Array) -> Array:
    """Steeper above the optimum than below, as trainings near their edge are."""
    return np.asarray(0.4 / 1.5**2 * (np.exp(1.5 * u) - 1.5 * u - 1))


def base_lrs(count: int, rng: np.random.Generator) -> Array:
    """log10 of them, spread as a quasi-random sampler does: one in each part of the range."""
    return np.asarray(LOW + (np.arange(count) + rng.uniform(0, 1, count)) * (HIGH - LOW) / count)


def measured(
    law: Law,
    rng: np.random.Generator,
    noise: float,
    seeds: int = 1,
    count: int = 12,
    shape: Valley = valley,
    sizes: Sequence[int] = SIZES,
    edge: float = 1.0,
) -> dict[int, list[Measured]]:
    """The feasible configurations of a sweep of each batch size; a decade above, all diverge."""
    found = {}
    for size in sizes:
        x = base_lrs(count, rng)
        away = x - law(math.log10(size))
        x, away = x[away < edge], away[away < edge]
        costs = BEST + shape(away)[:, None] + noise * rng.standard_normal((len(x), seeds))
        found[size] = [
            Measured(10**at, dict(enumerate(own.tolist())), UNTRAINED)
            for at, own in zip(x.tolist(), costs, strict=True)
        ]
    return found


SQUARE_ROOT = power(0.5)


@dataclass(frozen=True)
class Scaled:
    """A model whose scaling is known. Its trainings end where `edge` decades above the optimum.

    critical   batch size at which twice the fewest updates are needed
    fewest     time constant, in updates, of the largest batches
    """

    law: Law = SQUARE_ROOT
    edge: float = 1.0
    noise: float = 0.003
    critical: float = 64.0
    fewest: float = 20.0
    seeds: int = 1
    count: int = 16
    updates: int = 1000
    evaluations: int = 100
    maximize: bool = False

    def trials(self, sizes: Sequence[int] = SIZES, seed: int = 0) -> list[Trial]:
        rng = np.random.default_rng(seed)
        found = []
        for size in sizes:
            rates = 10 ** base_lrs(self.count, rng)
            for number, rate in enumerate(np.repeat(rates, self.seeds).tolist()):
                point = Point(number, size, "momentum", rate, seed=number % self.seeds)
                found.append(self._trial(point, rng))
        return found

    def _trial(self, point: Point, rng: np.random.Generator) -> Trial:
        away = math.log10(point.base_lr) - self.law(math.log10(point.batch_size))
        outcome: Outcome = "feasible" if away < self.edge else "diverged"
        steps = np.linspace(0, self.updates, self.evaluations + 1).astype(np.int64)
        slower = self.fewest * (1 + self.critical / point.batch_size) * 10 ** (away**2)
        best = BEST + float(valley(np.array(away))) + self.noise * rng.standard_normal()
        values = best + (UNTRAINED - best) * np.exp(-steps / slower)
        values = -values if self.maximize else values
        curve = Curve(np.empty(0), np.empty(0), steps, {"val_error": values}, self.updates)
        verdict = Verdict(outcome, "none", math.inf, "as invented")
        return Trial.from_curve(point, verdict, curve, "val_error", 1.0, self.maximize)


def without(trials: Sequence[Trial], keep: Mapping[int, Callable[[Trial], bool]]) -> list[Trial]:
    """Trials, those of some batch sizes only where a test holds."""
    always: Callable[[Trial], bool] = lambda trial: True  # noqa: E731
    return [one for one in trials if keep.get(one.point.batch_size, always)(one)]


def failed(trial: Trial) -> Trial:
    return replace(trial, verdict=Verdict("diverged", "early", 1.0, "as invented"))
