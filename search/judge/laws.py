"""Laws of the base LR η against the batch size B: fitted, compared, asked for other batch sizes.

    constant     η = η₁
    power        η = η₁ B^p                            p = 1: linear scaling; p = ½: square root
    saturating   η = η_max / (1 + B_noise / B)         McCandlish et al. 2018, arXiv 1812.06162
    surge        η = η_max / (½ (√(B_n/B) + √(B/B_n)))   Li et al. 2024, arXiv 2405.14578

What is known of η at one batch size is a deviance over y = log10 η: how much it speaks against y,
in squared standard errors. That of an optimum is t(y)² (`optimum`); that of a point y₀ with
standard error s is ((y − y₀) / s)²; a bound's is that on the wrong side, and 0 on the right one. A
law minimizes its misfit Q, their sum. If Q is more than n − k, with n points and k parameters, it
misses more than the noise explains: then every variance gets the same τ² more, in squared decades,
such that Q = n − k (Paule & Mandel 1982).

The 95 % interval of a parameter, or of η at some batch size, is where Q, minimized over all else,
is at most Q_min + t², t the quantile of Student's distribution. Its degrees of freedom are ν, those
of the noise, if τ is 0, and n − k if it is large (Satterthwaite 1946): with r the mean of
(s² + τ²) / s²,

    r² / (1 / ν + (r − 1)² / (n − k)).

Laws are compared by AICc, Q / ĉ + 2 k + 2 K (K + 1) / (m − K − 1), with Q for τ = 0, ĉ the least
Q / (n − k) of them, if that is above 1, and K = k + 1, as the variance is estimated, too. With few
batch sizes the correction decides, so it counts what the variance is known from: m − k are the
degrees of freedom above, those of the law that fits best. Weights are exp(−AICc / 2), normalized
(Burnham & Anderson 2002). There are none unless n > k for all laws and m ≥ K + 2. One law is
claimed if its weight is CLAIMED and it does not miss by more than the noise explains; the constant,
which has the fewest parameters, only if the power law's exponent is nearer to 0 than to ±½.

Predictions are averaged by the weights of all but the constant, which the others contain: an end of
their interval is where the tail areas of the laws, weighted, are 2.5 % (Turek & Fletcher 2012,
"Model-averaged Wald confidence intervals"). How often each promise is kept, and how far they miss
in public tables: tests/benchmarks/scaling_laws.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from ..trial import Array
from .comparison import ALPHA, CONFIDENCE, Interval
from .optimum import MANY, Optimum, quantile

FEWEST_SIZES = 3  # batch sizes that a law is fitted to
EXPONENTS = (0.0, 0.5, 1.0)  # that rules of thumb claim
CLAIMED = 0.95  # weight from which one law is said to hold
NEAR_CONSTANT = 0.25  # exponents nearer to 0 than to ½
POWERS = (-2.0, 3.0)  # exponents that are tried
BEYOND = 2.0  # decades beyond the batch sizes, in which a knee is looked for
AROUND = 2.0  # decades around the measured base LRs, in which a law may lie
COARSE, FINE = (41, 81), (41, 81)  # shapes and base LRs that a fit looks at, at first and then
DENSE = 1001  # shapes among which only the best is asked for
MARGIN = 1.3  # of what an interval holds, that the next look sees
LOOKS = 3  # at most, each closer, until what is held fills WIDE of the base LRs
WIDE = 0.2
ALL_LAWS = "averaged"  # the law of a prediction that is all laws, by their weights
FLAT = 0.05  # deviances that hardly differ
AVERAGED = 601  # values of y at which tail areas are averaged
NEGLIGIBLE = 1e-3  # a weight below which a law counts nothing


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of y = log10 η at n batch sizes, ascending.

    slope     [n, 2] b and c, variance [n, 3] of b, of both, and of c: t(y)² is (b + 2 c y)² over
              its variance, v_b + 4 y v_bc + 4 y² v_c
    side      [n] 0: a point; 1: at least; −1: at most, where t(y)² counts on the wrong side alone
    y         [n] the point or bound
    freedom   degrees of freedom of the noise that the variances are known with
    """

    batch_sizes: tuple[int, ...]
    slope: Array
    variance: Array
    side: Array
    y: Array
    freedom: float

    @classmethod
    def of_points(
        cls,
        batch_sizes: Sequence[int],
        y: Sequence[float],
        spread: Sequence[float],
        freedom: float = MANY,
    ) -> Evidence:
        """Points with standard errors, which are above 0."""
        n, at = len(batch_sizes), np.asarray(y, float)
        variance = np.zeros((n, 3))
        variance[:, 0] = np.square(spread)
        slope = np.stack([-at, np.full(n, 0.5)], axis=1)
        return cls(tuple(batch_sizes), slope, variance, np.zeros(n), at, freedom)

    @property
    def x(self) -> Array:
        """[n] log10 of the batch sizes."""
        return np.log10(self.batch_sizes)

    @property
    def points(self) -> int:
        """How many are no bounds."""
        return int((self.side == 0).sum())

    def deviance(self, y: Array) -> Array:
        """t(y)² of y [n, K, Y]."""
        b, c = self.slope.T[..., None, None]
        vb, vbc, vc = self.variance.T[..., None, None]
        squares = (b + 2 * c * y) ** 2 / (vb + 4 * y * (vbc + y * vc))
        if self.points == len(self.y):
            return np.asarray(squares)
        side, bound = self.side[:, None, None], self.y[:, None, None]
        return np.where(side * (bound - y) >= 0, squares, 0.0)

    @cached_property
    def spread(self) -> Array:
        """[n] standard error of each point, in decades, to first order."""
        _, c = self.slope.T
        vb, vbc, vc = self.variance.T
        return np.asarray(np.sqrt(vb + 4 * self.y * (vbc + self.y * vc)) / (2 * c))

    def widened(self, scatter: float) -> Evidence:
        """The same, where each optimum lies off the law by this standard deviation, in decades."""
        variance = self.variance.copy()
        variance[:, 0] += (2 * self.slope[:, 1] * scatter) ** 2
        return replace(self, variance=variance)

    def without(self, place: int) -> Evidence:
        """All but one batch size."""
        keep = np.arange(len(self.y)) != place
        sizes = tuple(np.asarray(self.batch_sizes)[keep].tolist())
        return Evidence(
            sizes,
            self.slope[keep],
            self.variance[keep],
            self.side[keep],
            self.y[keep],
            self.freedom,
        )


def evidence_of(optima: Sequence[tuple[int, Optimum]]) -> Evidence:
    """What optima say, by batch size, ascending; unknown ones are left out.

    A bound without a spread of its own has the median one of the points.
    """
    known = [(size, one) for size, one in optima if one.where != "unknown"]
    spreads = [one.spread for _, one in known if one.where in ("inside", "cliff")]
    usual = float(np.median(spreads)) if spreads else math.nan
    y = np.log10([one.base_lr for _, one in known])
    points = np.array([one.where == "inside" for _, one in known], bool)
    own = [one.spread if math.isfinite(one.spread) else usual for _, one in known]
    as_points = Evidence.of_points([size for size, _ in known], y.tolist(), own)
    slope = np.where(points[:, None], [one.slope for _, one in known], as_points.slope)
    variance = np.where(points[:, None], [one.variance for _, one in known], as_points.variance)
    side = np.array([{"above": 1, "below": -1}.get(one.where, 0) for _, one in known])
    freedom = max((one.freedom for _, one in known), default=0)
    return Evidence(as_points.batch_sizes, slope, variance, side, y, freedom)


def evidence_of_edges(edges: Sequence[tuple[int, Interval]]) -> Evidence:
    """What intervals (largest base LR that trains, smallest that does not) say of the edge.

    By batch size, ascending. In an interval [l, u] of log10 base LR every place is as likely: the
    edge is at its middle, with a standard error of (u − l) / √12. An end of 0 or inf makes it a
    bound, with the median standard error. One without any end is left out.
    """
    known = [(size, ends) for size, ends in edges if ends != (0.0, math.inf)]
    with np.errstate(divide="ignore"):
        low, high = np.log10(np.array([ends for _, ends in known]).reshape(-1, 2).T)
    side = np.where(np.isinf(high), 1, np.where(np.isinf(low), -1, 0))
    width = (high - low)[side == 0]
    usual = float(np.median(width)) if len(width) else math.nan
    bounds = np.where(side > 0, low, high)
    with np.errstate(invalid="ignore"):
        y = np.where(side == 0, (low + high) / 2, bounds)
        spread = np.where(side == 0, high - low, usual) / math.sqrt(12)
    points = Evidence.of_points([size for size, _ in known], y.tolist(), spread.tolist())
    return replace(points, side=side)


# --- the laws -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """One law: log10 η = y₁ + form(x, shape), with x = log10 B.

    shape        what its shape is called; empty if it has none
    is_size      whether that is log10 of a batch size
    """

    name: str
    equation: str
    form: Callable[[Array, Array], Array]
    shape: str = ""
    is_size: bool = False

    @property
    def parameters(self) -> int:
        return 2 if self.shape else 1


def _saturating(x: Array, knee: Array) -> Array:
    return -np.logaddexp(0.0, math.log(10) * (knee - x)) / math.log(10)


def _surge(x: Array, knee: Array) -> Array:
    away = math.log(10) * (knee - x) / 2
    return np.asarray((math.log(2) - np.logaddexp(away, -away)) / math.log(10))


CONSTANT = Form("constant", "η = η₁", lambda x, none: np.zeros_like(x + none))
POWER = Form("power", "η = η₁ B^p", lambda x, p: p * x, "p")
SATURATING = Form("saturating", "η = η_max / (1 + B_noise / B)", _saturating, "B_noise", True)
SURGE = Form("surge", "η = η_max / (½ (√(B_n/B) + √(B/B_n)))", _surge, "B_n", True)
FORMS = (CONSTANT, POWER, SATURATING, SURGE)


@dataclass(frozen=True, eq=False)
class Surface:
    """The misfit of a law over its shapes and over y at a middle batch size.

    middle   log10 of that batch size
    shapes   [K] p, or log10 of the knee; one 0 where there is none
    levels   [Y] y at `middle`
    table    [K, Y] misfit, a deviance
    """

    form: Form
    middle: float
    shapes: Array
    levels: Array
    table: Array

    @property
    def misfit(self) -> float:
        return float(self.table.min())

    @property
    def reach(self) -> float:
        """How far above its least the misfit is at the ends of a 95 % interval."""
        raise NotImplementedError

    @property
    def held(self) -> NDArray[np.bool_]:
        """[K, Y] what a 95 % interval may hold, and some more."""
        return np.asarray(self.table <= self.misfit + MARGIN * self.reach + 1)

    @cached_property
    def shape(self) -> float:
        return _least(self.shapes, self.table.min(1))

    @cached_property
    def interval(self) -> Interval:
        """Of the shape; an end is −inf or inf where the data do not bound it."""
        return _ends(self.shapes, self.table.min(1), self.reach)

    def profile(self, batch_size: float) -> tuple[Array, Array]:
        """y at a batch size, and the least misfit of a law that passes there."""
        at, middle = np.array([math.log10(batch_size)]), np.array([self.middle])
        moved = self.form.form(at, self.shapes) - self.form.form(middle, self.shapes)
        held = self.held.any(1)
        low, high = float(moved[held].min()), float(moved[held].max())
        y = np.linspace(self.levels[0] + low, self.levels[-1] + high, 2 * len(self.levels))
        rows = [
            np.interp(y - by, self.levels, row, left=math.inf, right=math.inf)
            for by, row in zip(moved[held], self.table[held], strict=True)
        ]
        return y, np.min(rows, axis=0)

    def predicted(self, batch_size: float) -> tuple[float, Interval]:
        """y at a batch size, and its 95 % interval."""
        y, misfit = self.profile(batch_size)
        return _least(y, misfit), _ends(y, misfit, self.reach)


@dataclass(frozen=True, eq=False)
class Fit(Surface):
    """One law, fitted to evidence.

    scatter  τ, in decades
    missed   Q for τ = 0
    """

    evidence: Evidence
    scatter: float
    missed: float

    @property
    def left(self) -> int:
        """n − k: bounds count nothing."""
        return _left(self.form, self.evidence)

    @property
    def ratio(self) -> float:
        """Q / (n − k) for τ = 0: at 1 the law misses as the noise explains; 1 if n = k."""
        return self.missed / self.left if self.left else 1.0

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of its intervals."""
        if not self.scatter:
            return self.evidence.freedom
        grown = float(np.mean(1 + (self.scatter / self.evidence.spread) ** 2))
        return grown**2 / (1 / self.evidence.freedom + (grown - 1) ** 2 / self.left)

    @property
    def reach(self) -> float:
        return quantile(self.freedom) ** 2

    @property
    def fails(self) -> bool:
        """Whether it misses by more than the noise explains, p < ALPHA."""
        freedom = self.evidence.freedom
        return bool(self.left and scipy.stats.f.sf(self.ratio, self.left, freedom) < ALPHA)

    def tail(self, batch_size: float, y: Array) -> Array:
        """What lies below each y, were η at a batch size distributed as this law says."""
        at, misfit = self.profile(batch_size)
        place = int(misfit.argmin())
        away = np.sqrt(np.minimum(misfit - misfit[place], MANY))
        signed = np.where(np.arange(len(at)) < place, -away, away)
        area = scipy.stats.t.cdf(signed, self.freedom)
        return np.interp(y, at, np.maximum.accumulate(area))


def fit(form: Form, evidence: Evidence) -> Fit:
    """A law, fitted to at least one batch size."""
    found = _fit(form, evidence, 0.0)
    left = _left(form, evidence)
    if not left or found.misfit <= left:
        return found
    scatter = _scatter(form, evidence)
    return replace(_fit(form, evidence, scatter), missed=found.misfit)


def _left(form: Form, evidence: Evidence) -> int:
    return max(evidence.points - form.parameters, 0)


def _fit(form: Form, evidence: Evidence, scatter: float) -> Fit:
    middle = float(evidence.x.mean())
    widened = evidence.widened(scatter)

    def look(shapes: Array, levels: Array) -> Fit:
        moved_nK = form.form(evidence.x[:, None], shapes)
        moved_nK = moved_nK - form.form(np.array([middle]), shapes)
        misfit_KY = widened.deviance(moved_nK[..., None] + levels).sum(0)
        missed = float(misfit_KY.min())
        return Fit(form, middle, shapes, levels, misfit_KY, evidence, scatter, missed)

    return closer(look, shapes_of(form, evidence.x), levels_around(evidence.y))


def _scatter(form: Form, evidence: Evidence) -> float:
    """τ in decades, by the points alone: with it their squared distances add up to n − k."""
    points = evidence.side == 0
    x, y, spread = evidence.x[points], evidence.y[points], evidence.spread[points]
    off_Kn = y - form.form(x[:, None], shapes_of(form, x, DENSE)).T

    def missed(scatter: float) -> float:
        weight = 1 / (spread**2 + scatter**2)
        level_K = off_Kn @ weight / weight.sum()
        squares_K = (off_Kn - level_K[:, None]) ** 2 @ weight
        return float(squares_K.min()) - _left(form, evidence)

    most = float(np.ptp(off_Kn, axis=1).max()) * len(y)
    if missed(0.0) <= 0:  # the bounds are missed, not the points
        return 0.0
    return float(scipy.optimize.brentq(missed, 0.0, most))


def shapes_of(form: Form, x: Array, count: int = COARSE[0]) -> Array:
    """What a law's shape may be, given log10 of the batch sizes."""
    if not form.shape:
        return np.zeros(1)
    low, high = (x.min() - BEYOND, x.max() + BEYOND) if form.is_size else POWERS
    return np.linspace(low, high, count)


def levels_around(y: Array) -> Array:
    return np.linspace(float(y.min()) - AROUND, float(y.max()) + AROUND, COARSE[1])


S = TypeVar("S", bound=Surface)


def closer(look: Callable[[Array, Array], S], shapes: Array, levels: Array) -> S:
    """A surface of shapes and levels, looked at closer and closer where its misfit is least."""
    found = look(shapes, levels)
    for _ in range(LOOKS):
        held = found.held
        if len(shapes) > 1:
            shapes = _around(found.shapes, np.any(held, axis=1), FINE[0])
        levels = _around(found.levels, np.any(held, axis=0), FINE[1])
        found = look(shapes, levels)
        if held.any(0).mean() > WIDE:
            break
    return found


# --- compared, and asked --------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """A base LR at one batch size by the laws: `base_lr`, and its 95 % interval.

    interval       an end is 0 or inf where the data do not bound it
    extrapolated   whether the batch size lies outside those that the laws were fitted to
    rests_on       the laws that it is averaged over, with their weights
    """

    batch_size: float
    base_lr: float
    interval: Interval
    extrapolated: bool
    rests_on: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Compared:
    """Laws fitted to the same evidence, with their AICc weights.

    weights   nan where there are too few batch sizes to compare them; predictions then rest on the
              power law alone
    """

    fits: tuple[Fit, ...]
    weights: tuple[float, ...]

    @property
    def evidence(self) -> Evidence:
        return self.fits[0].evidence

    @property
    def are_comparable(self) -> bool:
        return not math.isnan(self.weights[0])

    @property
    def power(self) -> Fit:
        return next(fit for fit in self.fits if fit.form is POWER)

    @property
    def used(self) -> list[tuple[Fit, float]]:
        """Laws that predictions rest on, and their weights, which sum to 1.

        Not the constant, which the others contain: it would draw each of them to it once more.
        """
        pairs = zip(self.fits, self.weights, strict=True)
        bent = [(fit, weight) for fit, weight in pairs if fit.form is not CONSTANT]
        total = sum(weight for _, weight in bent)
        if not total > 0:  # nan: they cannot be compared
            return [(self.power, 1.0)]
        return [(fit, weight / total) for fit, weight in bent if weight >= NEGLIGIBLE * total]

    @property
    def claimed(self) -> Form | None:
        """The law that holds, if its weight leaves the others next to nothing, and it fits."""
        if not self.are_comparable:
            return None
        best = int(np.argmax(self.weights))
        if self.weights[best] < CLAIMED or self.fits[best].fails:
            return None
        form, (low, high) = self.fits[best].form, self.power.interval
        return None if form is CONSTANT and max(-low, high) >= NEAR_CONSTANT else form

    def predict(self, batch_size: float) -> Prediction:
        """The base LR at a batch size, averaged over the laws."""
        y, (low, high) = self.averaged(batch_size)
        sizes = self.evidence.batch_sizes
        return Prediction(
            batch_size,
            power_of_ten(y),
            (power_of_ten(low), power_of_ten(high)),
            not sizes[0] <= batch_size <= sizes[-1],
            tuple((fit.form.name, weight) for fit, weight in self.used),
        )

    def averaged(self, batch_size: float) -> tuple[float, Interval]:
        """y at a batch size and its interval, by the weighted tail areas of the laws."""
        used = self.used
        if len(used) == 1:
            return used[0][0].predicted(batch_size)
        profiles = [fit.profile(batch_size)[0] for fit, _ in used]
        y = np.linspace(min(at[0] for at in profiles), max(at[-1] for at in profiles), AVERAGED)
        area = np.sum([weight * fit.tail(batch_size, y) for fit, weight in used], axis=0)
        tail = (1 - CONFIDENCE) / 2
        low, middle, high = np.interp([tail, 0.5, 1 - tail], area, y)
        ends = low if area[0] <= tail else -math.inf, high if area[-1] >= 1 - tail else math.inf
        return float(middle), (float(ends[0]), float(ends[1]))


def compare(evidence: Evidence) -> Compared:
    """All laws, fitted to at least two points."""
    fits = tuple(fit(form, evidence) for form in FORMS)
    return Compared(fits, _weights(fits, evidence.points))


def _weights(fits: Sequence[Fit], n: int) -> tuple[float, ...]:
    best = min(fits, key=lambda fit: fit.ratio)
    k = np.array([fit.form.parameters for fit in fits])
    m = best.freedom + best.form.parameters
    if n <= k.max() or m < k.max() + 3:
        return (math.nan,) * len(fits)
    misfits = np.array([fit.missed for fit in fits])
    penalty = 2 * k + 2 * (k + 1) * (k + 2) / (m - k - 2)
    criterion = misfits / max(1.0, best.ratio) + penalty
    weights = np.exp((criterion.min() - criterion) / 2)
    return tuple(float(weight) for weight in weights / weights.sum())


@dataclass(frozen=True)
class LeftOut:
    """What is predicted of a batch size from the others alone.

    law        its name, or ALL_LAWS
    measured   base LR
    miss       log10 of the measured base LR less that of the predicted one, in decades
    reach      half width of the 95 % prediction interval on that side, in decades: what is not
               known of the prediction and of the measured one; inf where nothing bounds it
    """

    batch_size: int
    law: str
    predicted: float
    measured: float
    miss: float
    reach: float

    @property
    def fails(self) -> bool:
        """Whether the law misses by more than its interval."""
        return abs(self.miss) > self.reach


def leave_one_out(evidence: Evidence) -> list[LeftOut]:
    """Each batch size with a point, from all others: of each law, and of all, averaged.

    Empty unless the others have two points at least. Where laws cannot be compared, the power law
    alone predicts.
    """
    found = []
    for place in np.flatnonzero(evidence.side == 0).tolist():
        others = evidence.without(place)
        if others.points < 2:
            continue
        compared = compare(others)
        size, y = evidence.batch_sizes[place], float(evidence.y[place])
        own, t = float(evidence.spread[place]), quantile(evidence.freedom)
        best = min(fit.scatter for fit, _ in compared.used)
        predictions = {ALL_LAWS: (compared.averaged(size), best)}
        for law in compared.fits if compared.are_comparable else [compared.power]:
            predictions[law.form.name] = (law.predicted(size), law.scatter)
        for name, ((at, ends), scatter) in predictions.items():
            side = ends[1] - at if y > at else at - ends[0]
            reach = math.hypot(side, t * own, t * scatter)
            found.append(LeftOut(size, name, power_of_ten(at), power_of_ten(y), y - at, reach))
    return found


def _around(values: Array, held: NDArray[np.bool_], count: int) -> Array:
    """A finer grid of the values that are held, and the next ones."""
    places = np.flatnonzero(held)
    low, high = max(places[0] - 1, 0), min(places[-1] + 1, len(values) - 1)
    return np.linspace(values[low], values[high], count)


def _least(values: Array, misfit: Array) -> float:
    """Where the misfit is least: the middle of where it hardly differs."""
    low, high = _ends(values, misfit, FLAT)
    middle = (low + high) / 2
    return middle if math.isfinite(middle) else float(values[misfit.argmin()])


def _ends(values: Array, misfit: Array, reach: float) -> Interval:
    """The outermost values whose misfit is within reach of the least; ±inf at an end of them."""
    over = misfit - misfit.min() - reach
    held = np.flatnonzero(over <= 0)
    return _crossing(values, over, int(held[0]), -1), _crossing(values, over, int(held[-1]), 1)


def _crossing(values: Array, over: Array, place: int, step: int) -> float:
    beside = place + step
    if not 0 <= beside < len(values):
        return step * math.inf
    if not math.isfinite(over[beside]):
        return float(values[place])
    share = -over[place] / (over[beside] - over[place])
    return float(values[place] + share * (values[beside] - values[place]))


def power_of_ten(y: float) -> float:
    """10^y, 0 or inf where that is no float."""
    return (
        float(10 ** min(max(y, -300.0), 300.0))
        if math.isfinite(y)
        else (math.inf if y > 0 else 0.0)
    )
