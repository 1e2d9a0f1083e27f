"""Usable decades and LR sensitivity of sweeps that can be done by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import UNTRAINED, diverged, feasible

from tunewright.search.judge.sensitivity import (
    TOLERANCE,
    lr_sensitivity,
    usable_decades,
    usable_in_words,
    usable_range,
)
from tunewright.search.trial import Trial

# UNTRAINED is 0.9: of a best value 0.1 the tolerance is 0.05 × 0.8 = 0.04, so that 0.14 is as good.
WIDE = [feasible(0, 0.01, 0.5), feasible(1, 0.1, 0.1), feasible(2, 1.0, 0.13), diverged(3, 10.0, 5)]
PEAK = [feasible(0, 0.01, 0.3), feasible(1, 0.1, 0.1), feasible(2, 1.0, 0.5)]
OPEN = [feasible(0, 0.01, 0.5), feasible(1, 0.1, 0.12), feasible(2, 1.0, 0.1)]


@pytest.mark.parametrize(
    ("sweep", "decades", "sensitivity"),
    [
        (WIDE, 2.0, (0.4 + 0.0 + 0.03 + 0.8) / 0.8 / 4),  # √(0.01·0.1) to √(1·10)
        (PEAK, 1.0, (0.2 + 0.0 + 0.4) / 0.8 / 3),
        (OPEN, 1.5, (0.4 + 0.02 + 0.0) / 0.8 / 3),  # to the last base LR tried, not beyond
    ],
)
def test_sweeps_by_hand(sweep, decades, sensitivity):
    assert usable_decades(sweep) == pytest.approx(decades)
    assert lr_sensitivity(sweep) == pytest.approx(sensitivity)


def test_the_mean_over_seeds_counts_an_infeasible_one_as_its_untrained_model():
    """At 1.0 the mean of 0.1 and 0.9 is 0.5, though one of its seeds was the best of all."""
    sweep = [
        feasible(0, 0.1, 0.2),
        feasible(1, 0.1, 0.2),
        feasible(2, 1.0, 0.1),
        diverged(3, 1.0, 5),
    ]
    assert lr_sensitivity(sweep) == pytest.approx(0.3 / 0.7 / 2)
    assert usable_decades(sweep) == pytest.approx(0.5)


def test_a_value_worse_than_untrained_is_worth_the_untrained_model():
    assert lr_sensitivity([feasible(0, 0.1, 0.1), feasible(1, 1.0, UNTRAINED)]) == pytest.approx(
        0.5
    )


def test_usable_base_lrs_end_at_the_first_that_is_not():
    beyond = [*PEAK, feasible(3, 10.0, 0.1)]
    assert usable_decades(beyond) == pytest.approx(1.0)


def test_usable_base_lrs_are_those_that_were_tried():
    assert usable_range(WIDE) == (0.1, 1.0)
    assert usable_range([*PEAK, feasible(3, 10.0, 0.1)]) == (0.1, 0.1)
    assert usable_in_words((0.1, 1.0)) == "flat from 0.1 to 1, within 5 % of what is learned"


def test_without_trials_or_where_nothing_learns_there_is_no_number():
    nothing = [diverged(0, 0.1, 5), diverged(1, 1.0, 5)]
    assert math.isnan(usable_decades([]))
    assert all(map(math.isnan, usable_range([])))
    assert math.isnan(lr_sensitivity([]))
    assert math.isnan(lr_sensitivity(nothing))


values = st.floats(0.01, 0.89)
sweeps = st.lists(values, min_size=1, max_size=8).map(
    lambda own: [feasible(i, 10.0 ** (i - 4), value) for i, value in enumerate(own)]
)


@given(sweeps)
def test_sensitivity_is_between_0_and_1_and_usable_decades_within_the_sweep(sweep):
    assert 0 <= lr_sensitivity(sweep) <= 1
    assert 0 <= usable_decades(sweep) <= len(sweep) - 1 + 1e-9


@given(sweeps, st.randoms(use_true_random=False))
def test_neither_the_order_of_trials_nor_crashes_matter(sweep, random):
    shuffled = [*random.sample(sweep, len(sweep)), Trial.from_crash(sweep[0].point, "killed")]
    assert lr_sensitivity(shuffled) == pytest.approx(lr_sensitivity(sweep))
    assert usable_decades(shuffled) == pytest.approx(usable_decades(sweep))


@given(values)
def test_a_flat_sweep_is_all_usable_and_not_sensitive(value):
    flat = [feasible(i, 10.0 ** (i - 3), value) for i in range(5)]
    assert usable_decades(flat) == pytest.approx(4.0)
    assert lr_sensitivity(flat) == pytest.approx(0.0, abs=1e-9)


def test_as_good_is_within_a_twentieth_of_what_was_learned():
    limit = 0.1 + TOLERANCE * (UNTRAINED - 0.1)
    inside = [feasible(0, 0.1, 0.1), feasible(1, 1.0, limit - 1e-6), feasible(2, 10.0, 0.8)]
    outside = [feasible(0, 0.1, 0.1), feasible(1, 1.0, limit + 1e-6), feasible(2, 10.0, 0.8)]
    assert (usable_decades(inside), usable_decades(outside)) == pytest.approx((1.5, 0.5))
