"""lr_star of groups whose truth is known: valleys, basins, luck, cliffs, and too little to say."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tunewright.search.judge.analysis import GroupSummary, summarize
from tunewright.search.judge.answer import answers
from tunewright.search.judge.plateau import (
    NOWHERE,
    Noise,
    Runs,
    find_plateau,
    headroom_base,
    is_basin,
    noise_of,
)
from tunewright.search.trial import EMPTY_CURVE, Outcome, Point, Trial, Verdict

RATES = np.logspace(-3, 1, 33)  # eight a decade
Truth = Callable[[float], float]  # the cost of log10 of a base LR


def runs(values: dict[float, Sequence[float]]) -> list[Runs]:
    return [Runs(rate, dict(enumerate(own))) for rate, own in values.items()]


def drawn(
    truth: Truth, sigma: float, seeds: int, rng: np.random.Generator, rates: np.ndarray = RATES
) -> list[Runs]:
    return runs({r: truth(math.log10(r)) + sigma * rng.standard_normal(seeds) for r in rates})


def found(measured: Sequence[Runs], infeasible: Sequence[float] = ()) -> tuple[float, float, float]:
    """lr_star, the highest that is as good, and the best."""
    one = find_plateau(measured, infeasible)
    star, best = measured[one.star].base_lr, measured[one.best].base_lr
    assert math.isnan(one.as_good[0]) or one.as_good[0] == star
    return star, one.as_good[1], best


def valley(x: float) -> float:
    """The best base LR is 0.1."""
    return 0.1 + 0.2 * (x + 1) ** 2


def basin(x: float) -> float:
    """Flat from 0.01 to 1, with walls."""
    return 0.1 + 2 * max(abs(x + 1) - 1, 0)


# --- what is known --------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_noise_a_v_has_one_best_and_a_basin_has_all_of_its_floor(seeds: int) -> None:
    rng = np.random.default_rng(0)
    v = drawn(lambda x: 0.1 + 0.2 * abs(x + 1), 0.0, seeds, rng)
    assert found(v) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    floor = drawn(basin, 0.0, seeds, rng)
    assert found(floor) == (pytest.approx(0.01), pytest.approx(1.0), pytest.approx(0.01))


@pytest.mark.parametrize(("seeds", "least"), [(1, 0.5), (3, 0.85), (10, 0.85)])
def test_the_true_best_is_as_good_and_lr_star_is_no_farther_than_the_noise(
    seeds: int, least: float
) -> None:
    """With one seed the interval is what scatters, with more it is a test."""
    rng, hits, worse = np.random.default_rng(1), 0, []
    for _ in range(200):
        low, high, best = found(drawn(valley, 0.02, seeds, rng))
        hits += low <= 0.1 * 1.001 and high * 1.001 >= 0.1
        worse.append(valley(math.log10(low)) - 0.1)
        assert low <= best <= high
    assert hits / 200 >= least
    assert np.quantile(worse, 0.9) <= 3 * 0.02 / math.sqrt(seeds)


def test_more_seeds_make_the_interval_narrower() -> None:
    widths = []
    for seeds in (3, 10, 30):
        rng = np.random.default_rng(2)
        ends = [found(drawn(valley, 0.02, seeds, rng)) for _ in range(50)]
        widths.append(np.mean([math.log10(high / low) for low, high, _ in ends]))
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize(("seeds", "least"), [(1, 1.0), (3, 1.6)])
def test_a_flat_floor_is_told_as_a_basin_and_never_its_walls(seeds: int, least: float) -> None:
    rng = np.random.default_rng(3)
    ends = [found(drawn(basin, 0.02, seeds, rng)) for _ in range(100)]
    assert np.mean([math.log10(high / low) for low, high, _ in ends]) >= least
    walls = [low < 0.01 / 1.4 or high > 1.4 for low, high, _ in ends]
    assert np.mean(walls) <= 0.05


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("lucky", [0.004, 3.0])
def test_luck_far_from_the_plateau_does_not_move_it(seeds: int, lucky: float) -> None:
    """One configuration that is as good between ones that are far worse, at either side."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        measured = drawn(lambda x: 0.1 + 0.3 * abs(x + 1), 0.01, seeds, rng)
        place = int(np.argmin(np.abs(np.log(RATES / lucky))))
        best = min(one.mean for one in measured)
        measured[place] = replace(measured[place], costs=dict.fromkeys(range(seeds), best + 0.001))
        low, high, _ = found(measured)
        assert 0.03 < low <= high < 0.3


@pytest.mark.parametrize("seeds", [1, 3])
def test_bad_luck_on_the_plateau_does_not_end_it(seeds: int) -> None:
    rng = np.random.default_rng(5)
    measured = drawn(basin, 0.0, seeds, rng)
    place = int(np.argmin(np.abs(np.log(RATES / 0.1))))
    whole = found(measured)
    measured[place] = replace(measured[place], costs=dict.fromkeys(range(seeds), 0.3))
    low, high, _ = found(measured)
    assert (low, high) == whole[:2]


def test_a_cliff_beside_the_best_is_no_noise() -> None:
    """The next base LR trains badly: that is the edge, not the scatter of runs."""
    costs = [2.893, 2.787, 2.724, 2.666, 2.629, 2.627, 3.072]
    coarse = runs({10 ** (-2 + i / 4): [cost] for i, cost in enumerate(costs)})
    star, _, best = found(coarse)
    assert star == best == pytest.approx(10 ** (-2 + 5 / 4))
    fine = [0.5, 0.4, 0.3, 0.22, 0.18, 0.17, 0.165, 0.16, 0.9, 0.95]
    star, highest, _ = found(runs({10 ** (i / 8): [cost] for i, cost in enumerate(fine)}))
    assert star >= 10 ** (4 / 8)
    assert highest == pytest.approx(10 ** (7 / 8))


def test_runs_that_fail_at_the_edge_do_not_make_everything_as_good() -> None:
    """Seeds of a configuration that hardly trains differ far more than those of good ones."""
    values = {
        0.03: [2.724, 2.743, 2.715],
        0.06: [2.666, 2.696, 2.663],
        0.1: [2.629, 2.666, 2.620],
        0.18: [2.628, 2.655, 2.619],
        0.32: [2.724, 3.234, 3.191],
    }
    assert found(runs(values)) == (0.1, 0.18, 0.18)


def test_a_seed_that_is_hard_for_all_is_no_noise() -> None:
    easy = {
        rate: [0.1 + abs(math.log10(rate)), 0.11 + abs(math.log10(rate))] for rate in (0.5, 1, 2)
    }
    hard = {rate: [one, other + 5] for rate, (one, other) in easy.items()}
    assert noise_of(runs(hard)).sigma == pytest.approx(noise_of(runs(easy)).sigma, abs=1e-12)
    assert found(runs(hard)) == (1, 1, 1)
    alone = [Runs(0.5, {0: 0.2, 1: 0.4}), Runs(1, {2: 0.1, 3: 0.3})]  # seeds of their own
    assert noise_of(alone) == Noise(pytest.approx(math.sqrt(0.02)), 2)


def test_a_plateau_holds_no_base_lr_at_which_training_fails() -> None:
    floor = drawn(basin, 0.0, 3, np.random.default_rng(6))
    assert found(floor, [0.05, 0.3])[:2] == (pytest.approx(0.01), pytest.approx(RATES[13]))
    moved = [
        replace(one, costs={0: 0.09, 1: 0.09, 2: 0.09}) if one.base_lr == RATES[16] else one
        for one in floor
    ]
    low, high, best = found(moved, [0.05, 0.3])
    assert best == RATES[16]
    assert 0.05 < low <= best <= high < 0.3


def test_where_configurations_share_a_base_lr_the_best_of_them_stands_for_it() -> None:
    """Half of them have a warmup that is too long."""
    rng = np.random.default_rng(7)
    good = drawn(valley, 0.01, 3, rng)
    bad = [
        replace(one, costs={seed: cost + 0.5 for seed, cost in one.costs.items()}) for one in good
    ]
    mixed = [one for pair in zip(bad, good, strict=True) for one in pair]
    one, same = find_plateau(mixed), find_plateau(good)
    assert mixed[one.star] is good[same.star]
    assert mixed[one.best] is good[same.best]
    assert one.as_good[0] >= 0.03


@pytest.mark.parametrize(
    "measured",
    [
        runs({0.1: [0.5]}),
        runs({0.1: [0.5, 0.6, 0.4]}),
        runs({0.1: [0.5], 0.2: [0.4]}),
        runs({0.1: [0.5], 0.2: [0.4], 0.3: [0.6]}),
        runs({0.001: [0.5], 0.1: [0.4], 10.0: [0.6], 100.0: [0.7]}),
    ],
)
def test_too_few_runs_say_nothing_and_the_best_is_taken(measured: list[Runs]) -> None:
    one = find_plateau(measured)
    assert one.star == one.best
    assert all(map(math.isnan, one.as_good))
    assert not is_basin(one.as_good)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_noise_between_runs_is_found_by_seeds_or_else_by_neighbours(seeds: int) -> None:
    rng = np.random.default_rng(8)
    sigmas = [noise_of(drawn(valley, 0.02, seeds, rng)).sigma for _ in range(200)]
    assert math.sqrt(np.mean(np.square(sigmas))) == pytest.approx(0.02, rel=0.15)
    assert math.isnan(noise_of([]).sigma)
    assert math.isnan(Noise().limit(1, 1))


def test_headroom_is_relative_to_the_best_or_to_the_upper_end_of_a_basin() -> None:
    assert headroom_base(0.1, (0.05, 0.2)) == 0.1
    assert headroom_base(0.1, (0.02, 0.2)) == 0.1  # a decade and no more
    assert headroom_base(0.1, (0.01, 0.2)) == 0.2
    assert headroom_base(0.1, NOWHERE) == 0.1


# --- in summaries and answers ---------------------------------------------------------------------


def trials_of(
    measured: Sequence[Runs], failed: Sequence[float] = (), maximize: bool = False
) -> list[Trial]:
    sign = -1.0 if maximize else 1.0

    def one(rate: float, value: float, seed: int, number: int, outcome: Outcome) -> Trial:
        point, verdict = (
            Point(number, 32, "momentum", rate, seed=seed),
            Verdict(outcome, "none", math.inf, ""),
        )
        return Trial(
            point, verdict, EMPTY_CURVE, sign * value, 10, sign * 0.9, 0.1, 0.0, 1.0, "", maximize
        )

    kept = [
        one(own.base_lr, cost, seed, 1000 * seed + place, "feasible")
        for place, own in enumerate(measured)
        for seed, cost in own.costs.items()
    ]
    return kept + [
        one(rate, 0.9, 0, 10_000 + place, "diverged") for place, rate in enumerate(failed)
    ]


def summary(
    measured: Sequence[Runs], failed: Sequence[float] = (), maximize: bool = False
) -> GroupSummary:
    [row] = summarize(trials_of(measured, failed, maximize))
    return row


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_answer_is_one_configuration_that_was_trained_at_lr_star(
    seeds: int, maximize: bool
) -> None:
    measured = drawn(basin, 0.01, seeds, np.random.default_rng(10))
    trials = trials_of(measured, [3.0, 4.0], maximize)
    [row] = summarize(trials)
    [answer] = answers(trials, [row])
    own = [one for one in trials if one.point.base_lr == row.lr_star]
    assert row.lr_star < row.best_base_lr
    assert answer.point.base_lr == row.lr_star == answer.as_good[0]
    assert answer.values == row.best_values == tuple(one.best_value for one in own)
    assert (-row.best_mean if maximize else row.best_mean) <= row.cost
    assert answer.record()["lr_star"] == answer.record()["point"]["base_lr"]
    assert row.record()["as_good"] == row.as_good
    mirrored = summary(measured, [3.0, 4.0], not maximize)
    assert (mirrored.lr_star, mirrored.as_good) == (row.lr_star, row.as_good)


def test_a_basin_is_stable_with_headroom_from_its_upper_end() -> None:
    row = summary(drawn(basin, 0.0, 3, np.random.default_rng(0)), [2.0, 3.0])
    assert row.is_basin
    assert row.as_good == pytest.approx((0.01, 1.0))
    assert (row.verdict, row.headroom) == ("stable", pytest.approx(2.0))
    narrow = summary(
        drawn(lambda x: 0.1 + 0.2 * abs(x), 0.0, 3, np.random.default_rng(0)), [2.0, 3.0]
    )
    assert not narrow.is_basin
    assert (narrow.verdict, narrow.headroom) == ("on the edge", pytest.approx(2.0))


@pytest.mark.parametrize("floor", [valley, basin])
def test_without_two_trials_above_what_is_as_good_the_edge_is_not_reached(floor: Truth) -> None:
    own = [
        one
        for one in drawn(floor, 0.0, 1, np.random.default_rng(0))
        if floor(math.log10(one.base_lr)) <= 0.1 + 1e-9 or one.base_lr < 0.1
    ]
    highest = max(one.base_lr for one in own)
    words = [
        summary(own, [highest * factor for factor in factors]).verdict
        for factors in ((), (2.0,), (100.0,))
    ]
    assert words == ["edge not reached"] * 3
    assert summary(own, [20 * highest, 30 * highest]).verdict == "stable"
    tried = [
        summary(own, [highest * factor for factor in factors]).tried_above
        for factors in ((), (2.0,), (2.0, 3.0))
    ]
    assert tried == [0, 1, 2]


def test_where_nothing_trains_there_is_no_lr_star_and_no_interval() -> None:
    row = summary([], [0.1, 0.2, 0.3])
    assert math.isnan(row.lr_star)
    assert all(map(math.isnan, row.as_good))
    assert (row.point, row.verdict, row.best_mean) == (None, "unstable", math.inf)
