"""The edge of stability as a probability: laws of the fit and of the bracket, then numbers."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunewright.search.judge.stability_edge import (
    CONTRADICTED,
    Tried,
    bracket,
    confidence_interval,
    contradiction,
    interval,
    probability,
    tries,
)
from tunewright.search.trial import EMPTY_CURVE, Outcome, Point, Trial, Verdict


def trial(base_lr: float, outcome: Outcome = "feasible", number: int = 0) -> Trial:
    return Trial(
        point=Point(number=number, batch_size=32, optimizer="momentum", base_lr=base_lr),
        verdict=Verdict(outcome, "none", math.inf, ""),
        curve=EMPTY_CURVE,
        best_value=0.1,
        best_step=90,
        initial_value=0.9,
        last_loss=1.0,
        clip_fraction=0.0,
        seconds=1.0,
    )


rates = st.sampled_from([10.0 ** (k / 2) for k in range(-8, 3)])  # few, so that many are repeated
outcomes = st.sampled_from(["feasible", "non_finite", "diverged", "collapsed", "crashed"])
trials = st.lists(st.builds(trial, rates, outcomes), max_size=60)
judged = st.lists(
    st.builds(trial, rates, outcomes.filter(lambda outcome: outcome != "crashed")), min_size=1
)


@given(trials)
def test_every_judged_trial_is_counted_once_and_crashed_ones_never(some: list[Trial]) -> None:
    tried = tries(some)
    assert sum(one.trials for one in tried) == sum(not one.verdict.crashed for one in some)
    assert sum(one.infeasible for one in tried) == sum(one.verdict.infeasible for one in some)
    assert [one.base_lr for one in tried] == sorted(
        {one.point.base_lr for one in some if not one.verdict.crashed}
    )


@given(trials)
def test_the_probability_is_one_and_never_decreases(some: list[Trial]) -> None:
    tried = tries(some)
    fitted = probability(tried)
    assert len(fitted) == len(tried)
    assert all(0 <= p <= 1 for p in fitted)
    assert all(low <= high for low, high in pairwise(fitted))


@given(trials)
def test_the_fit_keeps_the_number_of_divergences(some: list[Trial]) -> None:
    tried = tries(some)
    expected = sum(p * one.trials for p, one in zip(probability(tried), tried, strict=True))
    assert expected == pytest.approx(sum(one.infeasible for one in tried))


@given(trials, rates, st.randoms(use_true_random=False))
def test_the_bracket_does_not_depend_on_the_order_of_trials(
    some: list[Trial], above: float, random
) -> None:
    shuffled = random.sample(some, len(some))
    assert tries(shuffled) == tries(some)
    assert bracket(tries(shuffled), above) == bracket(tries(some), above)


@given(trials, st.lists(st.builds(trial, rates)))
def test_more_feasible_trials_never_move_the_bracket_down(
    some: list[Trial], more: list[Trial]
) -> None:
    low, high = bracket(tries(some))
    after_low, after_high = bracket(tries([*some, *more]))
    assert after_low >= low
    assert after_high >= high


@given(
    trials,
    st.lists(st.builds(trial, rates, outcomes.filter(lambda outcome: outcome != "feasible"))),
)
def test_more_infeasible_trials_never_move_the_bracket_up(
    some: list[Trial], more: list[Trial]
) -> None:
    assert bracket(tries([*some, *more]))[1] <= bracket(tries(some))[1]


@given(judged)
def test_the_ends_of_the_bracket_are_neighbours_among_the_tried(some: list[Trial]) -> None:
    tried = tries(some)
    ends = [0.0, *(one.base_lr for one in tried), math.inf]
    assert bracket(tried) in list(pairwise(ends))


@given(trials, rates)
def test_trials_below_the_floor_do_not_count(some: list[Trial], above: float) -> None:
    counted = [one for one in some if one.point.base_lr >= above]
    assert bracket(tries(some), above) == bracket(tries(counted))


def test_one_unlucky_seed_far_below_does_not_make_the_edge() -> None:
    tried = [Tried(0.01, 1, 5), Tried(0.1, 0, 5), Tried(1.0, 2, 5), Tried(10.0, 5, 5)]
    assert probability(tried) == pytest.approx([0.1, 0.1, 0.4, 1.0])
    assert bracket(tried) == (1.0, 10.0)


def test_half_is_beyond_the_edge_however_the_fit_rounds() -> None:
    # fitted: 0.49999999999999994
    assert bracket([Tried(0.1, 13, 23), Tried(1.0, 0, 3)]) == (0.0, 0.1)
    assert bracket([Tried(0.1, 7, 11), Tried(0.2, 3, 7), Tried(0.4, 1, 4)]) == (0.0, 0.1)
    assert bracket([Tried(0.1, 0, 4), Tried(1.0, 2, 4)]) == (0.1, 1.0)


def test_a_bracket_that_the_trials_do_not_close_is_open() -> None:
    assert bracket([Tried(0.1, 0, 3), Tried(1.0, 1, 3)]) == (1.0, math.inf)
    assert bracket([Tried(0.1, 3, 3), Tried(1.0, 3, 3)]) == (0.0, 0.1)
    assert bracket([]) == (0.0, math.inf)


def test_what_is_too_slow_to_train_is_not_the_edge() -> None:
    tried = [Tried(1e-6, 3, 3), Tried(0.1, 0, 3), Tried(1.0, 3, 3)]
    assert bracket(tried)[0] == 0.0
    assert bracket(tried, above=0.1) == (0.1, 1.0)


@pytest.mark.parametrize(
    ("infeasible", "of", "low", "high"),
    [(0, 5, 0.0, 1 - 0.025 ** (1 / 5)), (5, 5, 0.025 ** (1 / 5), 1.0), (1, 1, 0.025, 1.0)],
)
def test_the_interval_is_that_of_clopper_and_pearson(
    infeasible: int, of: int, low: float, high: float
) -> None:
    assert interval(infeasible, of) == pytest.approx((low, high))


@given(st.integers(1, 200).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_the_interval_holds_the_share_and_mirrors_that_of_the_feasible(
    counts: tuple[int, int],
) -> None:
    infeasible, of = counts
    low, high = interval(infeasible, of)
    assert 0 <= low <= infeasible / of <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(interval(of - infeasible, of))


# --- confidence, and data that contradict the fit -------------------------------------------------


@given(trials)
def test_the_confidence_interval_holds_the_bracket(some: list[Trial]) -> None:
    tried = tries(some)
    low, high = bracket(tried)
    widest_low, widest_high = confidence_interval(tried)
    assert widest_low <= low
    assert high <= widest_high


@pytest.mark.parametrize("width", [0.02, 0.1, 0.3])
def test_the_confidence_interval_holds_the_edge_as_often_as_it_says(width: float) -> None:
    """Five seeds at base LRs 0.15 decades apart, around the base LR at which half diverge."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        edge = rng.uniform(-0.1, 0.1)
        places = np.arange(-1.2, 1.21, 0.15)
        infeasible = rng.binomial(5, stats.norm.cdf((places - edge) / width))
        counts = zip(places, infeasible, strict=True)
        low, high = confidence_interval(
            [Tried(10**place, int(count), 5) for place, count in counts]
        )
        held += low <= 10**edge <= high
    assert held >= stats.binom.ppf(0.001, 200, 0.95)


def test_far_from_one_half_the_neighbours_are_the_interval_near_it_they_are_not() -> None:
    assert confidence_interval([Tried(0.1, 0, 5), Tried(0.2, 5, 5)]) == (0.1, 0.2)
    assert confidence_interval(
        [Tried(0.1, 0, 5), Tried(0.2, 2, 5), Tried(0.4, 3, 5), Tried(0.8, 5, 5)]
    ) == (0.1, 0.8)
    assert confidence_interval([]) == (0.0, math.inf)


def test_trials_that_contradict_a_rising_probability_are_told_from_luck() -> None:
    rates = (0.1, 0.2, 0.4, 0.8)
    backwards = [Tried(rate, count, 5) for rate, count in zip(rates, (5, 0, 5, 0), strict=True)]
    unlucky = [Tried(rate, count, 5) for rate, count in zip(rates, (1, 0, 2, 5), strict=True)]
    assert contradiction(backwards) <= CONTRADICTED
    assert contradiction(unlucky) > 0.1
    assert contradiction([]) == contradiction([Tried(0.1, 0, 3), Tried(0.2, 3, 3)]) == 1.0


def test_what_rises_is_seldom_called_contradictory() -> None:
    rng = np.random.default_rng(1)
    chances = (0.0, 0.1, 0.4, 0.5, 0.6, 1.0)
    called = 0
    for _ in range(100):
        counts = zip((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), rng.binomial(5, chances), strict=True)
        called += (
            contradiction([Tried(rate, int(count), 5) for rate, count in counts]) <= CONTRADICTED
        )
    assert called <= stats.binom.ppf(0.999, 100, CONTRADICTED)
