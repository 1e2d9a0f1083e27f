"""Laws of batch sizes whose truth is known: coverage, claims, what cannot be told, bounds."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import scaled

from tunewright.search.judge.laws import (
    CONSTANT,
    FORMS,
    POWER,
    SATURATING,
    SURGE,
    Compared,
    Evidence,
    compare,
    evidence_of,
    evidence_of_edges,
    fit,
    leave_one_out,
)
from tunewright.search.judge.optimum import Measured, find_optima, quantile

TRUTHS = {
    "constant": (scaled.power(0.0), CONSTANT),
    "square root": (scaled.power(0.5), POWER),
    "linear": (scaled.power(1.0), POWER),
    "saturating": (scaled.saturating(), SATURATING),
    "surge": (scaled.surge(), SURGE),
}


def evidence(sweeps: dict[int, list[Measured]]) -> Evidence:
    return evidence_of(sorted(find_optima(sweeps).items()))


def points(law: scaled.Law, spread: float, sizes: tuple[int, ...] = scaled.SIZES) -> Evidence:
    y = [law(math.log10(size)) for size in sizes]
    return Evidence.of_points(sizes, y, [spread] * len(sizes))


# --- exact points ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRUTHS)
def test_exact_points_of_each_law_give_it_back(name: str) -> None:
    law, form = TRUTHS[name]
    found = fit(form, points(law, 0.01))
    assert found.misfit < 1e-3
    assert not found.fails
    assert found.scatter == 0
    for size in (4, 8, 100, 512, 4096):
        y, (low, high) = found.predicted(size)
        assert y == pytest.approx(law(math.log10(size)), abs=2e-3)
        assert low < y < high
    if form is POWER:
        assert found.shape == pytest.approx(law(1) - law(0), abs=2e-3)
    if form.is_size:
        assert 10**found.shape == pytest.approx(64, rel=0.02)


def test_a_power_law_is_the_weighted_least_squares_line() -> None:
    """Where errors are known and nothing is missed: by the textbook."""
    rng = np.random.default_rng(1)
    x = np.log10(scaled.SIZES)
    spread = np.array([0.05, 0.1, 0.05, 0.2, 0.05, 0.1, 0.3])
    y = -1 + 0.4 * x + 0.3 * spread * rng.standard_normal(7)
    found = fit(POWER, Evidence.of_points(scaled.SIZES, y.tolist(), spread.tolist(), 20))
    design, weight = np.stack([np.ones(7), x], 1), np.diag(spread**-2)
    covariance = np.linalg.inv(design.T @ weight @ design)
    _, slope = covariance @ design.T @ weight @ y
    reach = quantile(20) * math.sqrt(covariance[1, 1])
    assert found.scatter == 0
    assert found.shape == pytest.approx(slope, abs=1e-3)
    assert found.interval == pytest.approx((slope - reach, slope + reach), abs=2e-3)
    at = np.array([1, math.log10(2048)])
    predicted, ends = found.predicted(2048)
    half = quantile(20) * math.sqrt(at @ covariance @ at)
    middle = at @ covariance @ design.T @ weight @ y
    assert predicted == pytest.approx(middle, abs=2e-3)
    assert ends == pytest.approx((middle - half, middle + half), abs=4e-3)


def test_what_points_miss_beyond_their_noise_is_scatter_of_optima() -> None:
    """Points with an error far below what they scatter: the interval is that of their residuals."""
    rng = np.random.default_rng(2)
    x = np.log10(scaled.SIZES)
    y = -1 + 0.4 * x + 0.1 * rng.standard_normal(7)
    found = fit(POWER, Evidence.of_points(scaled.SIZES, y.tolist(), [1e-3] * 7, 50))
    assert found.fails
    assert 0.03 < found.scatter < 0.25
    assert found.freedom == pytest.approx(5, abs=0.05)
    slope, level = np.polyfit(x, y, 1)
    error = math.sqrt(((y - level - slope * x) ** 2).sum() / 5 / ((x - x.mean()) ** 2).sum())
    low, high = found.interval
    assert found.shape == pytest.approx(slope, abs=2e-3)
    assert (high - low) / 2 == pytest.approx(quantile(5) * error, rel=0.02)


def test_a_bound_counts_on_its_wrong_side_alone() -> None:
    law = scaled.power(0.5)
    y = [law(math.log10(size)) for size in scaled.SIZES]
    low_bound = [*y[:-1], y[-1] - 0.5]  # at least: and it is more
    both = {}
    for side in (1, -1):
        one = Evidence.of_points(scaled.SIZES, low_bound, [0.05] * 7)
        sides = np.array([0] * 6 + [side])
        both[side] = fit(
            POWER, Evidence(one.batch_sizes, one.slope, one.variance, sides, one.y, 20.0)
        )
    assert both[1].shape == pytest.approx(0.5, abs=2e-3)
    assert both[1].misfit < 1e-3
    assert both[-1].shape < 0.45
    assert both[1].left == 4


# --- edges ----------------------------------------------------------------------------------------


def test_the_slope_of_edges_in_a_first_look() -> None:
    """10^-0.86, -0.52, -0.19, 0.14 at B = 8 ... 512, each the middle of two base LRs."""
    middles = {8: -0.86, 32: -0.52, 128: -0.19, 512: 0.14}
    edges = [(size, (10 ** (y - 0.1), 10 ** (y + 0.1))) for size, y in middles.items()]
    found = fit(POWER, evidence_of_edges(edges))
    assert found.shape == pytest.approx(0.55, abs=0.01)
    assert 0.4 < found.interval[0] < 0.55 < found.interval[1] < 0.7


def test_an_edge_without_an_upper_end_is_a_bound_and_without_both_nothing() -> None:
    edges = [(8, (0.01, 0.02)), (32, (0.02, math.inf)), (64, (0.0, math.inf)), (128, (0.0, 0.3))]
    found = evidence_of_edges(edges)
    assert found.batch_sizes == (8, 32, 128)
    assert found.side.tolist() == [0, 1, -1]
    assert found.points == 1
    assert 10**found.y == pytest.approx([math.sqrt(2e-4), 0.02, 0.3])
    assert found.spread == pytest.approx([math.log10(2) / math.sqrt(12)] * 3)


def edge_coverage(exponent: float, scatter: float, sizes: tuple[int, ...], count: int) -> float:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        edges = []
        for size in sizes:
            edge = scaled.power(exponent, -0.8)(math.log10(size))
            edge += scatter * rng.standard_normal()
            x = scaled.base_lrs(count, rng)
            low, high = x[x < edge].max(initial=-math.inf), x[x >= edge].min(initial=math.inf)
            edges.append((size, (float(10**low), float(10**high))))
        low, high = fit(POWER, evidence_of_edges(edges)).interval
        held += low <= exponent <= high
    return held / 200


@pytest.mark.slow
@pytest.mark.parametrize("scatter", [0.0, 0.05])
@pytest.mark.parametrize("sizes", [scaled.SIZES, (8, 32, 128, 512)], ids=len)
def test_the_interval_of_the_edges_exponent_covers_it(
    scatter: float, sizes: tuple[int, ...]
) -> None:
    assert 0.90 <= edge_coverage(0.5, scatter, sizes, 16) <= 0.995


# --- laws of the optimum --------------------------------------------------------------------------


def test_one_sweep_tells_a_saturating_law_and_a_surge() -> None:
    for name in ("saturating", "surge"):
        law, form = TRUTHS[name]
        rng = np.random.default_rng(5)
        found = compare(evidence(scaled.measured(law, rng, 0.002)))
        assert found.claimed is form
        for one in found.fits:
            assert one.fails or one.form is form
        low, high = found.fits[FORMS.index(form)].interval
        assert low < math.log10(64) < high
        far = found.predict(4096)
        assert far.extrapolated
        assert far.interval[0] < 10 ** law(math.log10(4096)) < far.interval[1]
        assert not found.predict(100).extrapolated


def test_two_optima_are_a_ratio_and_compare_nothing() -> None:
    found = compare(points(scaled.power(0.5), 0.02, (8, 512)))
    assert not found.are_comparable
    assert found.claimed is None
    assert found.power.shape == pytest.approx(0.5, abs=2e-3)
    assert [name for name, _ in found.predict(64).rests_on] == ["power"]


def test_a_constant_is_claimed_by_evidence_and_not_by_its_few_parameters() -> None:
    sizes = (8, 32, 128, 512)
    vague = compare(points(scaled.power(0.0), 0.4, sizes))
    assert vague.power.interval[1] > 0.5
    assert vague.claimed is None
    clear = compare(points(scaled.power(0.0), 0.02, scaled.SIZES))
    assert clear.claimed in (None, CONSTANT)
    assert clear.power.interval[1] < 0.25


def test_weights_do_not_prefer_a_law_to_those_that_it_contains() -> None:
    """A linear law is a saturating one far below its knee: that cannot be told."""
    found = compare(points(scaled.power(1.0), 0.05))
    weights = dict(zip(FORMS, found.weights, strict=True))
    assert math.fsum(found.weights) == pytest.approx(1)
    assert weights[POWER] == pytest.approx(weights[SATURATING], rel=0.1)
    assert found.claimed is None
    assert weights[CONSTANT] < 1e-6


def test_each_law_predicts_the_batch_size_that_is_left_out() -> None:
    """A knee at 64: the saturating law alone says what comes at 512."""
    y = [scaled.saturating()(math.log10(size)) for size in scaled.SIZES]
    found = leave_one_out(Evidence.of_points(scaled.SIZES, y, [0.02] * 7, 30))
    assert {one.batch_size for one in found} == set(scaled.SIZES)
    largest = {one.law: one for one in found if one.batch_size == 512}
    assert largest.keys() == {"averaged", *(form.name for form in FORMS)}
    assert abs(largest["saturating"].miss) < 0.02
    assert largest["constant"].miss > 0.3
    assert largest["power"].miss < -0.1
    assert largest["averaged"].fails is False
    own = largest["saturating"]
    assert math.log10(own.measured / own.predicted) == pytest.approx(own.miss)


def test_a_law_that_misses_by_more_than_its_interval_fails() -> None:
    """A square root up to 256, and half a decade less at 512."""
    y = [scaled.power(0.5)(math.log10(size)) for size in scaled.SIZES]
    y[-1] -= 0.5
    found = leave_one_out(Evidence.of_points(scaled.SIZES, y, [0.03] * 7, 30))
    power = {one.batch_size: one for one in found if one.law == "power"}
    assert power[512].fails
    assert power[512].miss == pytest.approx(-0.5, abs=0.01)
    assert 0.06 < power[512].reach < 0.2


def test_one_batch_size_is_left_out_of_three_and_of_no_fewer() -> None:
    assert leave_one_out(points(scaled.power(0.5), 0.05, (8, 64))) == []
    found = leave_one_out(points(scaled.power(0.5), 0.05, (8, 64, 512)))
    assert [one.batch_size for one in found if one.law == "power"] == [8, 64, 512]
    assert all(abs(one.miss) < 5e-3 and not one.fails for one in found)


# --- how often ------------------------------------------------------------------------------------


def repeated(
    law: scaled.Law, repetitions: int, noise: float, seeds: int, **more: object
) -> list[Compared]:
    rng = np.random.default_rng(7)
    return [
        compare(evidence(scaled.measured(law, rng, noise, seeds, **more)))
        for _ in range(repetitions)
    ]


def off(shape: scaled.Valley) -> float:
    """How far from the best base LR the optimum of a smooth curve is, in decades, without noise."""
    rng = np.random.default_rng(8)
    sweeps = scaled.measured(scaled.power(0.0), rng, 1e-6, count=200, shape=shape)
    return math.log10(find_optima(sweeps)[64].base_lr) - scaled.power(0.0)(1.0)


def covered(found: list[Compared], exponent: float) -> float:
    held = [one.power.interval[0] <= exponent <= one.power.interval[1] for one in found]
    return sum(held) / len(held)


def test_few_repetitions_cover_the_exponent() -> None:
    found = repeated(scaled.power(0.5), 12, 0.02, 1, shape=scaled.steep)
    assert covered(found, 0.5) >= 0.75
    assert sum(one.claimed not in (None, POWER) for one in found) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "seeds", "shape"), [(0.02, 1, scaled.steep)])
@pytest.mark.parametrize("name", TRUTHS)
def test_200_repetitions_keep_the_promises(
    name: str, noise: float, seeds: int, shape: scaled.Valley
) -> None:
    law, form = TRUTHS[name]
    count = 200 if form in (CONSTANT, POWER) else 60
    found = repeated(law, count, noise, seeds, shape=shape)
    claims = Counter(one.claimed for one in found)
    wrong = sum(number for claimed, number in claims.items() if claimed not in (None, form))
    assert wrong <= 0.05 * count
    if form in (CONSTANT, POWER):
        exponent = law(1) - law(0)
        assert 0.90 <= covered(found, exponent) <= 0.99
    fails = sum(one.fits[FORMS.index(form)].fails for one in found)
    assert fails <= 0.12 * count
    inside = [one.predict(2048) for one in found]
    truth = 10 ** (law(math.log10(2048)) + off(shape))
    assert sum(one.interval[0] <= truth <= one.interval[1] for one in inside) >= 0.85 * count


@pytest.mark.slow
def test_where_the_budget_cannot_tell_the_square_root_from_linear_it_says_so() -> None:
    found = repeated(scaled.power(0.5), 50, 0.08, 1, sizes=(16, 32, 64), count=12)
    untold = [one for one in found if one.power.interval[1] >= 1 or one.power.interval[0] <= 0]
    assert len(untold) >= 40
    assert covered(found, 0.5) >= 0.9


def test_a_constant_that_outweighs_all_leaves_the_power_law_to_predict() -> None:
    """Weights of the others may be 0 in floating point."""
    found = compare(points(scaled.power(0.0), 0.05))
    weights = tuple(1.0 if form is CONSTANT else 0.0 for form in FORMS)
    assert [name for name, _ in replace(found, weights=weights).predict(4096).rests_on] == ["power"]


def test_laws_are_not_compared_where_the_noise_is_hardly_known() -> None:
    y = [scaled.power(0.0)(math.log10(size)) for size in scaled.SIZES]
    hardly = compare(Evidence.of_points(scaled.SIZES, y, [0.05] * 7, 2.01))
    assert not hardly.are_comparable
    assert compare(Evidence.of_points(scaled.SIZES, y, [0.05] * 7, 4)).are_comparable
