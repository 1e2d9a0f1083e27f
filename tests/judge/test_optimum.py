"""Optima of smooth curves: where they are, how well they are known, and where they are bounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scaled

from tunewright.search.judge.comparison import Interval
from tunewright.search.judge.optimum import Measured, Optimum, configurations, find_optima

RATES = np.logspace(-3, 0, 13)  # four a decade


def sweep(
    best: float,
    noise: float = 0.0,
    seeds: int = 1,
    seed: int = 0,
    rates: np.ndarray = RATES,
    untrained: float = 0.9,
) -> list[Measured]:
    """0.1 + 0.2 d² at d decades from the best."""
    rng = np.random.default_rng(seed)
    return [
        Measured(
            float(rate),
            {
                number: 0.1 + 0.2 * math.log10(rate / best) ** 2 + noise * rng.standard_normal()
                for number in range(seeds)
            },
            untrained,
        )
        for rate in rates
    ]


def only(own: list[Measured], tried: list[float] | None = None) -> Optimum:
    return find_optima({64: own}, {64: tried or [one.base_lr for one in own]})[64]


def test_a_quadratic_without_noise_is_found_exactly() -> None:
    found = only(sweep(0.0345))
    assert found.where == "inside"
    assert found.base_lr == pytest.approx(0.0345, rel=1e-6)
    assert found.value == pytest.approx(0.1, abs=1e-6)
    assert found.interval == pytest.approx((0.0345, 0.0345), rel=1e-3)
    assert found.note == ""


def t_of(found: Optimum, x: float) -> float:
    (b, c), (vb, vbc, vc) = found.slope, found.variance
    return (b + 2 * c * x) / math.sqrt(vb + 4 * x * vbc + 4 * x**2 * vc)


def test_the_slope_is_that_of_a_least_squares_curve() -> None:
    """Student's t of its slope anywhere, and the interval, where |t| is its quantile."""
    own = sweep(0.03, noise=0.01, rates=np.logspace(-2, -1, 9))
    found = only(own)
    assert found.base_lrs == 9
    assert found.freedom == 6
    x = np.log10([one.base_lr for one in own])
    y = np.array([one.mean for one in own])
    for at in (-2.0, -1.4, 0.3):
        design = np.vander(x - at, 3, increasing=True)
        beta, (squares,) = np.linalg.lstsq(design, y, rcond=None)[:2]
        error = math.sqrt(squares / 6 * np.linalg.inv(design.T @ design)[1, 1])
        assert t_of(found, at) == pytest.approx(beta[1] / error, rel=1e-6)
    for end in found.interval:
        assert abs(t_of(found, math.log10(end))) == pytest.approx(2.4469, abs=1e-3)
    assert t_of(found, math.log10(found.base_lr)) == pytest.approx(0, abs=1e-9)


def test_the_interval_covers_the_optimum_however_much_noise_there_is() -> None:
    for noise in (0.003, 0.03, 0.1):
        held = 0
        for seed in range(100):
            rates = np.logspace(-2.2, -0.8, 9)
            low, high = only(sweep(0.03, noise, seed=seed, rates=rates, untrained=9)).interval
            held += low <= 0.03 <= high
        assert held >= 88, noise


def test_flat_values_have_no_bounded_interval() -> None:
    rng = np.random.default_rng(1)
    ends: list[Interval] = []
    for _ in range(40):
        own = [Measured(float(rate), {0: 0.1 + 0.01 * rng.standard_normal()}) for rate in RATES]
        ends.append(only(own).interval)
    assert sum(low == 0 and math.isinf(high) for low, high in ends) >= 30


def test_fewer_than_five_base_lrs_say_so() -> None:
    for count, words in ((0, "no base LR trains"), (1, "one base LR trains"), (4, "4 base LRs")):
        found = only(sweep(0.03)[:count])
        assert found.where == "unknown"
        assert math.isnan(found.base_lr)
        assert words in found.note
    assert only(sweep(0.03)[3:8]).where == "inside"


def test_an_optimum_at_the_border_of_what_was_tried_is_a_bound() -> None:
    above = only(sweep(1.0, rates=RATES[:9]))
    assert above.where == "above"
    assert above.base_lr == pytest.approx(RATES[8])
    assert above.interval == (pytest.approx(RATES[8], rel=1e-3), math.inf)
    below = only(sweep(1e-3, rates=RATES[4:]))
    assert below.where == "below"
    assert below.interval == (0.0, pytest.approx(RATES[4], rel=1e-3))
    assert "is best: a bound" in below.note


def test_an_optimum_at_a_cliff_lies_between_two_base_lrs() -> None:
    """The next one diverges, or trains badly: either way the optimum lies before it."""
    good, cliff = sweep(0.2, rates=RATES[:9]), float(RATES[9])
    tried = [one.base_lr for one in good] + [cliff]
    for own in (good, [*good, Measured(cliff, {0: 0.8}, 0.9)]):
        found = only(own, tried)
        assert found.where == "cliff"
        assert found.interval == (pytest.approx(RATES[8]), pytest.approx(cliff))
        assert found.base_lr == pytest.approx(math.sqrt(RATES[8] * cliff))
        assert "lies between" in found.note


def test_a_cliff_beside_the_optimum_does_not_move_it() -> None:
    own = sweep(0.03)
    fallen = [
        replace(one, costs={0: 0.7}) if one.base_lr > 0.2 or one.base_lr < 3e-3 else one
        for one in own
    ]
    assert only(fallen).base_lr == pytest.approx(0.03, rel=1e-6)


def test_seeds_that_differ_in_their_optima_count_and_those_that_do_not_narrow() -> None:
    def spread(shifts: tuple[float, ...]) -> float:
        own = [
            Measured(float(rate), {n: 0.1 + 0.2 * (math.log10(rate / 0.03) - by) ** 2
                                   for n, by in enumerate(shifts)}, 9.0)
            for rate in RATES
        ]  # fmt: skip
        return only(own).spread

    assert spread((-0.2, 0.0, 0.2)) == pytest.approx(0.2 / math.sqrt(3), rel=0.05)
    one, nine = (
        np.median([only(sweep(0.03, 0.02, seeds, seed)).spread for seed in range(30)])
        for seeds in (1, 9)
    )
    assert one / nine == pytest.approx(3, rel=0.3)


def test_a_noisy_batch_size_does_not_borrow_all_of_its_noise() -> None:
    """Two batch sizes of noise 0.001 and one of 0.1 keep theirs; alike ones share it."""
    noises = {8: 0.001, 16: 0.001, 32: 0.001, 64: 0.1}
    found = find_optima({size: sweep(0.03, noise, seed=size) for size, noise in noises.items()})
    assert found[64].spread > 10 * found[8].spread
    alike = find_optima({size: sweep(0.03, 0.01, seed=size) for size in noises})
    spreads = [one.spread for one in alike.values()]
    assert max(spreads) < 2.5 * min(spreads)


def test_configurations_are_those_that_train_with_every_seed() -> None:
    trials = scaled.Scaled(seeds=2, count=6).trials([64])
    broken = next(one for one in trials if one.feasible and one.point.seed == 1)
    trials = [scaled.failed(one) if one is broken else one for one in trials]
    own = configurations(trials)
    feasible = {one.point.base_lr for one in trials if one.feasible}
    assert {one.base_lr for one in own} == feasible - {broken.point.base_lr}
    assert all(one.costs.keys() == {0, 1} for one in own)
    assert all(one.untrained == pytest.approx(0.9) for one in own)
    provisional = [replace(one, provisional=True) for one in trials]
    assert configurations(provisional) == own


def test_a_maximized_objective_is_turned_round() -> None:
    low = configurations(scaled.Scaled().trials([64]))
    high = configurations(scaled.Scaled(maximize=True).trials([64]))
    assert [one.mean for one in high] == pytest.approx([one.mean for one in low])
    assert [one.untrained for one in high] == pytest.approx([0.9] * len(high))
