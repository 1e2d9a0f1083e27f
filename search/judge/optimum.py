"""The optimum of a smooth curve through the values by base LR, at each of several batch sizes.

lr_star (`plateau`) is the lowest base LR that is not shown to be worse than the best: it is what to
use, and depends on how much was tried. A law of the batch size needs a quantity that more trials
only make more precise: the base LR at which the expected value is best. Its estimate is the lowest
point of a quadratic in x = log10 base LR,

    y = a + b (x − x₀) + c (x − x₀)²,

fitted by least squares to the feasible base LRs within REACH decades of it, at least five, whose
value is not worse than the best by more than a tenth of what that learned: no quadratic follows a
cliff. Each counts by its number of trainings; other hyperparameters that differ are averaged over.
The fit is repeated around its own optimum until it stands still. REACH is the smallest of REACHES
at which as many batch sizes as possible show a curve that bends. It is the same for all of them: a
curve is steeper above the optimum than below, which moves the optimum of every fit down, by as
much where the reach is as wide.

What an x says against being the optimum is the slope of the curve there, in standard errors,

    t(x) = (b + 2 c (x − x₀)) / √Var(b + 2 c (x − x₀)),

which has Student's distribution at the optimum however flat the curve is; where |t| is small
enough, there the interval lies (Fieller 1954). A bootstrap over seeds is not used: of one to four
seeds it gives intervals that are far too short. The variance is that of residuals, which hold
seeds, other hyperparameters and the misfit of the curve alike. From few base LRs it is not well
known, so each batch size's is moderated by those of the others (Smyth 2004, "Linear models and
empirical Bayes methods for assessing differential expression"). What all base LRs of a seed have in
common moves the optimum and is no residual: where seeds differ in their optima by more than the
residuals say, their difference counts.

Where the curve falls to an end of these base LRs, the optimum lies between that and the next one
that was tried, every place as likely: the cliff limits it. If none was tried beyond, that end is a
bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

from ..trial import Array, Trial, cost
from ..words import readable
from .analysis import has_value, repetitions
from .comparison import CONFIDENCE, Interval

REACHES = (0.75, 1.0, 1.25, 1.5)  # decades on either side of the optimum
# of what the best one learns, beyond which a base LR is on a cliff or has hardly begun
WORSE = 0.1
FEWEST = 5  # base LRs that a curve rests on
ROUNDS = 8  # of fitting around the last optimum; most stand still after three
BENDS = 2.0  # standard errors that the curvature of a curve is above 0
MANY = 1e6  # degrees of freedom that stand for infinitely many
EXACT, ROUNDING = 1e-6, 1e-12  # of the range of values, and of values: less noise is rounding

# inside: of the base LRs that train well. cliff: between one that does and the next, which does
# not. below, above: at or beyond the lowest, highest that was tried, so base_lr is a bound.
# unknown: fewer than five train, or their values are flat
Where = Literal["inside", "cliff", "below", "above", "unknown"]


@dataclass(frozen=True)
class Optimum:
    """Where the smooth curve of values by base LR is lowest at one batch size.

    base_lr    the optimum; where it is a bound, that; nan if unknown
    interval   that holds it with 95 % confidence; an end is 0 or inf where nothing bounds it
    spread     its standard error, in decades; inf if unknown
    value      of the smooth curve at base_lr, lower is better (`Trial.cost`); nan if unknown
    value_spread   its standard error
    base_lrs   how many base LRs the curve rests on
    freedom    degrees of freedom of its noise
    slope      (b, c): the curve's slope is b + 2 c x at x = log10 base LR
    variance   of b, covariance of b and c, variance of c
    note       why it is a bound or unknown, in a sentence; empty if it is inside
    """

    where: Where
    base_lr: float = math.nan
    interval: Interval = (0.0, math.inf)
    spread: float = math.inf
    value: float = math.nan
    value_spread: float = math.nan
    base_lrs: int = 0
    freedom: float = 0.0
    slope: tuple[float, float] = (math.nan, math.nan)
    variance: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What one configuration is worth: costs by seed, lower is better, and that before training."""

    base_lr: float
    costs: Mapping[int, float]
    untrained: float = math.nan

    @property
    def mean(self) -> float:
        return fmean(self.costs.values())


@dataclass(frozen=True, eq=False)
class _Curve:
    """A quadratic in x − at, fitted to n base LRs.

    beta        [3] a, b, c;  inverse  [3, 3] their covariance over σ², with σ of one training
    variance    σ², by its residuals, of `freedom` degrees of freedom
    between     [seeds] optimum of each seed alone less that of all, in decades; empty unless all
                base LRs share two seeds or more
    low, high   the base LRs that train, in x
    """

    at: float
    beta: Array
    inverse: Array
    variance: float
    freedom: int
    base_lrs: int
    between: Array
    low: float
    high: float

    @property
    def bends(self) -> bool:
        noise = math.sqrt(self.variance * self.inverse[2, 2])
        return bool(self.beta[2] > BENDS * noise)

    @property
    def lowest(self) -> float:
        """Where it is lowest, in x; at an end of the base LRs that train if it falls there."""
        if self.beta[2] > 0:
            return self.at - float(self.beta[1] / (2 * self.beta[2]))
        return math.inf if self.beta[1] < 0 else -math.inf


def configurations(trials: Sequence[Trial]) -> list[Measured]:
    """What each feasible configuration is worth, also where more of its seeds are to come.

    One that fails with any seed is left out: a base LR that trains only with luck is no optimum.
    """
    feasible = [own for own in repetitions(trials) if all(map(has_value, own))]
    return [
        Measured(
            own[0].point.base_lr,
            {trial.point.seed: trial.cost for trial in own},
            fmean(_untrained(trial) for trial in own),
        )
        for own in feasible
    ]


def _untrained(trial: Trial) -> float:
    known = math.isfinite(trial.initial_value)
    return cost(trial.initial_value, trial.maximize) if known else math.nan


def find_optima(
    measured: Mapping[int, Sequence[Measured]], tried: Mapping[int, Sequence[float]] | None = None
) -> dict[int, Optimum]:
    """The optimum at each batch size, from the feasible configurations of one optimizer.

    `tried` are all base LRs that were tried, feasible or not.
    """
    optima = {size: _too_few(own) for size, own in measured.items()}
    enough = {size: _good(own) for size, own in measured.items() if not optima[size].note}
    fitted = _with_common_reach(enough)
    if not fitted:
        return optima
    variances, freedom = _moderated([*fitted.values()])
    inflation = _between_seeds([*fitted.values()], variances)
    for (size, curve), variance in zip(fitted.items(), variances, strict=True):
        optima[size] = _optimum(curve, variance * inflation, freedom)
        if tried and optima[size].where in ("above", "below"):
            optima[size] = _at_cliff(optima[size], tried[size])
    return optima


def _too_few(own: Sequence[Measured]) -> Optimum:
    rates = len({one.base_lr for one in own})
    if rates >= FEWEST:
        return Optimum("unknown")
    few = f"{rates} base LRs train" if rates != 1 else "one base LR trains"
    note = f"{few if rates else 'no base LR trains'}, and a smooth curve needs {FEWEST}"
    return Optimum("unknown", base_lrs=rates, note=note)


def _good(own: Sequence[Measured]) -> list[Measured]:
    """Those that learn nearly what the best does; the best at FEWEST base LRs at least."""
    ranking = sorted(own, key=lambda one: (one.mean, one.base_lr))
    best, untrained = ranking[0].mean, fmean(one.untrained for one in own)
    limit = math.inf if math.isnan(untrained) else best + WORSE * max(untrained - best, 0.0)
    good: list[Measured] = []
    for one in ranking:
        if one.mean > limit and len({other.base_lr for other in good}) >= FEWEST:
            break
        good.append(one)
    return good


# --- the curve ------------------------------------------------------------------------------------


def _with_common_reach(measured: Mapping[int, Sequence[Measured]]) -> dict[int, _Curve]:
    """The curves at the smallest reach at which the most of them bend."""
    best: dict[int, _Curve] = {}
    most = -1
    for reach in REACHES:
        fitted = {size: _fit(own, reach) for size, own in measured.items()}
        bent = sum(curve.bends for curve in fitted.values())
        if bent > most:
            best, most = fitted, bent
        if bent == len(fitted):
            break
    return best


def _fit(own: Sequence[Measured], reach: float) -> _Curve:
    x = np.log10([one.base_lr for one in own])
    y = np.array([one.mean for one in own])
    weight = np.array([len(one.costs) for one in own], float)
    low, high = float(x.min()), float(x.max())
    at = float(np.median(x[np.argsort(y, kind="stable")[:FEWEST]]))
    near = _near(x, at, reach)
    for _ in range(ROUNDS):
        curve = _quadratic(x[near], y[near], weight[near], at, (low, high))
        at = min(max(curve.lowest, low), high)
        moved = _near(x, at, reach)
        if np.array_equal(moved, near):
            break
        near = moved
    return _with_seeds(curve, [one for one, is_near in zip(own, near, strict=True) if is_near])


def _near(x: Array, at: float, reach: float) -> Array:
    """Those within reach; if they are at fewer than FEWEST base LRs, the next ones, too."""
    away = np.abs(x - at)
    fewest = np.sort(away[np.unique(x, return_index=True)[1]])[FEWEST - 1]
    return np.asarray(away <= max(reach, fewest))


def _quadratic(x: Array, y: Array, weight: Array, at: float, ends: Interval) -> _Curve:
    design: Array = np.vander(x - at, 3, increasing=True)
    inverse: Array = np.asarray(np.linalg.inv(design.T @ (weight[:, None] * design)), float)
    beta = inverse @ (design.T @ (weight * y))
    freedom = len(x) - 3
    squares = float((weight * (y - design @ beta) ** 2).sum())
    rounding = EXACT * float(np.ptp(y)) + ROUNDING * float(np.abs(y).max())
    variance = max(squares / freedom, rounding**2, np.finfo(float).tiny)
    return _Curve(at, beta, inverse, variance, freedom, len(x), np.empty(0), *ends)


def _with_seeds(curve: _Curve, own: Sequence[Measured]) -> _Curve:
    """The curve with the optimum that each seed has alone, to first order."""
    seeds = sorted(own[0].costs)
    if len(seeds) < 2 or any(sorted(one.costs) != seeds for one in own) or curve.beta[2] <= 0:
        return curve
    x = np.log10([one.base_lr for one in own]) - curve.at
    design = np.vander(x, 3, increasing=True)
    costs = np.array([[one.costs[seed] for seed in seeds] for one in own])
    betas = np.linalg.pinv(design) @ costs  # [3, seeds]
    lowest = curve.lowest - curve.at
    off = betas - betas.mean(1, keepdims=True)
    between = -(off[1] + 2 * lowest * off[2]) / (2 * curve.beta[2])
    return replace(curve, between=between)


# --- its noise ------------------------------------------------------------------------------------


def _moderated(curves: Sequence[_Curve]) -> tuple[Array, float]:
    """The variance of each curve, drawn towards what they have in common, and its freedom.

    All have that in common if they differ by chance alone (Smyth 2004).
    """
    variance = np.array([curve.variance for curve in curves])
    freedom = np.array([curve.freedom for curve in curves], float)
    if len(curves) < 2:
        return variance, float(freedom[0])
    logs = np.log(variance) - scipy.special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(np.var(logs, ddof=1) - _trigamma(freedom / 2).mean())
    if excess <= _trigamma(MANY):
        pooled = np.average(variance, weights=freedom)
        return np.full(len(curves), pooled), float(freedom.sum())
    prior = 2 * float(scipy.optimize.brentq(lambda at: _trigamma(at) - excess, 1 / MANY, MANY))
    common = math.exp(
        float(logs.mean()) + float(scipy.special.digamma(prior / 2)) - math.log(prior / 2)
    )
    moderated = (prior * common + freedom * variance) / (prior + freedom)
    return moderated, min(float(freedom.sum()), prior + float(freedom.mean()))


def _trigamma(at: ArrayLike) -> Array:
    return np.asarray(scipy.special.polygamma(1, at))


def _between_seeds(curves: Sequence[_Curve], variances: Array) -> float:
    """By how much the optima of seeds differ more than residuals say, as a factor of variances.

    At least 1: where they differ less, it is residuals that seeds have in common.
    """
    shown = [
        float(curve.between.var(ddof=1))
        / len(curve.between)
        / _spread(curve, variance, curve.lowest) ** 2
        for curve, variance in zip(curves, variances, strict=True)
        if len(curve.between)
    ]
    return max(1.0, fmean(shown)) if shown else 1.0


def _spread(curve: _Curve, variance: float, lowest: float) -> float:
    """The standard error of an optimum to first order, in decades."""
    gradient = np.array([1.0, 2 * (lowest - curve.at)]) / (2 * curve.beta[2])
    return math.sqrt(float(gradient @ (variance * curve.inverse[1:, 1:]) @ gradient))


# --- the optimum ----------------------------------------------------------------------------------


def _optimum(curve: _Curve, variance: float, freedom: float) -> Optimum:
    where, lowest = _place(curve, variance)
    if where == "unknown":
        note = "the values are flat: no smooth curve through them has a best point"
        return Optimum(where, base_lrs=curve.base_lrs, freedom=freedom, note=note)
    spread = _spread(curve, variance, lowest) if curve.beta[2] > 0 else math.inf
    found: dict[str, Any] = {
        "base_lr": 10**lowest,
        "spread": spread,
        "base_lrs": curve.base_lrs,
        "freedom": freedom,
        **_value(curve, variance, lowest),
    }
    if where != "inside":
        side = "highest" if where == "above" else "lowest"
        note = f"the {side} base LR that trains well, {readable(10**lowest)}, is best: a bound"
        reach = quantile(freedom) * spread if math.isfinite(spread) else 0.0
        interval = (_power(lowest - reach), math.inf)
        if where == "below":
            interval = (0.0, _power(lowest + reach))
        return Optimum(where, interval=interval, note=note, **found)
    slope, covariance = _slope(curve, variance)
    interval = _fieller(slope, covariance, freedom)
    return Optimum(where, interval=interval, slope=slope, variance=covariance, **found)


def _place(curve: _Curve, variance: float) -> tuple[Where, float]:
    """Where the optimum is, in x: an end of the base LRs that train if the curve falls to it.

    A curve that bends downwards has an optimum there only if it falls by more than its noise.
    """
    where: Where = "above" if curve.lowest >= curve.high else "below"
    end = curve.high if where == "above" else curve.low
    if curve.low < curve.lowest < curve.high:
        return "inside", curve.lowest
    away = np.array([1.0, 2 * (end - curve.at)])
    falls = abs(float(away @ curve.beta[1:]))
    noise = math.sqrt(variance * float(away @ curve.inverse[1:, 1:] @ away))
    if curve.beta[2] <= 0 and falls <= BENDS * noise:
        return "unknown", math.nan
    return where, end


def _at_cliff(bound: Optimum, tried: Sequence[float]) -> Optimum:
    """The optimum between a bound and the next base LR beyond it, if there is one."""
    last = bound.base_lr
    if bound.where == "above":
        beside = min((rate for rate in tried if rate > last * (1 + EXACT)), default=None)
    else:
        beside = max((rate for rate in tried if rate < last * (1 - EXACT)), default=None)
    if beside is None:
        return bound
    low, high = sorted((last, beside))
    width = math.log10(high / low) / math.sqrt(12)
    spread = math.hypot(width, bound.spread) if math.isfinite(bound.spread) else width
    return replace(
        bound,
        where="cliff",
        base_lr=math.sqrt(low * high),
        interval=(low, high),
        spread=spread,
        note=f"{readable(last)} is best, and beside it {readable(beside)} does not train well: the "
        "optimum lies between them",
    )


def _value(curve: _Curve, variance: float, lowest: float) -> dict[str, float]:
    """The curve's value at its optimum, and its standard error."""
    powers = (lowest - curve.at) ** np.arange(3)
    spread = math.sqrt(float(variance * powers @ curve.inverse @ powers))
    return {"value": float(powers @ curve.beta), "value_spread": spread}


def _slope(curve: _Curve, variance: float) -> tuple[Interval, tuple[float, float, float]]:
    """(b, c) of the slope b + 2 c x, and their (co)variances, in x itself."""
    _, b, c = curve.beta
    vb, vbc, vc = variance * curve.inverse[[1, 1, 2], [1, 2, 2]]
    at = curve.at
    slope = float(b - 2 * c * at), float(c)
    return slope, (float(vb - 4 * at * vbc + 4 * at**2 * vc), float(vbc - 2 * at * vc), float(vc))


def _fieller(
    slope: Interval, covariance: tuple[float, float, float], freedom: float
) -> tuple[float, float]:
    """The base LRs at which the slope may be 0: an end is 0 or inf where it may be flat beyond."""
    squared_t = quantile(freedom) ** 2
    (b, c), (vb, vbc, vc) = slope, covariance
    squared, linear, constant = (
        4 * (c**2 - squared_t * vc),
        4 * (b * c - squared_t * vbc),
        b**2 - squared_t * vb,
    )
    if squared <= 0:
        return 0.0, math.inf
    root = math.sqrt(max(linear**2 - 4 * squared * constant, 0.0))
    return _power((-linear - root) / (2 * squared)), _power((-linear + root) / (2 * squared))


def quantile(freedom: float) -> float:
    """Of Student's distribution, for a 95 % interval."""
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _power(x: float) -> float:
    """10^x, 0 or inf where that is no float."""
    return float(10 ** min(max(x, -300.0), 300.0))
