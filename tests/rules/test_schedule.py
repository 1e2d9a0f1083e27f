"""Laws of the schedule: the warmup reaches base_lr, the decay leaves it, nothing else depends on
the total.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from tunewright.search.rules.schedule import (
    SHAPES,
    add,
    learning_rates,
    longest_warmup,
    orders_of_magnitude,
    total_steps,
)
from tunewright.search.trial import Point


def point(warmup_steps=0, decay="constant", base_lr=0.5):
    return Point(0, 8, "sgd", base_lr, warmup_steps=warmup_steps, decay=decay)


@pytest.mark.parametrize("decay", SHAPES)
@pytest.mark.parametrize("warmup_steps", [0, 1, 4, 10])
def test_warmup_is_linear_from_zero_and_reaches_base_lr(decay, warmup_steps):
    rates = learning_rates(point(warmup_steps, decay), 10)
    assert len(rates) == 10
    expected = 0.5 * np.arange(1, warmup_steps + 1) / max(warmup_steps, 1)
    np.testing.assert_allclose(rates[:warmup_steps], expected)
    assert rates.max() == 0.5


def test_constant_holds_base_lr():
    assert (learning_rates(point(3), 10)[2:] == 0.5).all()


def test_linear_decay_falls_by_the_same_amount_every_step_towards_zero():
    rates = learning_rates(point(2, "linear"), 12)
    np.testing.assert_allclose(rates[2:], 0.5 * (1 - np.arange(10) / 10))


def test_cosine_decay_is_at_half_of_base_lr_half_way():
    rates = learning_rates(point(0, "cosine"), 100)
    assert rates[0] == 0.5
    assert rates[50] == pytest.approx(0.25)
    assert 0 < rates[-1] < 1e-3


def test_unknown_decay_is_refused():
    with pytest.raises(ValueError, match="decay must be one of"):
        learning_rates(point(0, "step"), 10)


def test_warmup_grid_spans_orders_of_magnitude_up_to_a_tenth():
    assert orders_of_magnitude(1000) == [0, 10, 100]
    assert orders_of_magnitude(99) == [0]
    assert orders_of_magnitude(100_000) == [0, 10, 100, 1000, 10_000]
    assert longest_warmup(999) == 99


def test_prepended_warmup_adds_to_the_baseline_schedule():
    assert total_steps(point(100), 1000, prepend_warmup=True) == 1100
    assert total_steps(point(100), 1000, prepend_warmup=False) == 1000


def with_settings(decay, warmup_steps=0, **settings):
    return replace(point(warmup_steps, decay), decay_settings=settings)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_wsd_holds_base_lr_until_its_last_share_and_then_falls_to_zero(fraction):
    rates = learning_rates(with_settings("wsd", 20, decay_fraction=fraction), 220)
    left = round(fraction * 200)
    assert (rates[19 : 220 - left] == 0.5).all()
    np.testing.assert_allclose(rates[220 - left :], 0.5 * (1 - np.arange(left) / left))


def test_restarts_begin_again_at_base_lr_each_a_cosine_of_its_own():
    rates = learning_rates(with_settings("cosine_restarts", 3, restarts=2), 3 + 3 * 40)
    cosine = 0.5 * 0.5 * (1 + np.cos(np.pi * np.arange(40) / 40))
    np.testing.assert_allclose(rates[3:], np.tile(cosine, 3), rtol=1e-12)
    assert list(np.flatnonzero(rates == 0.5)) == [2, 3, 43, 83]


@pytest.mark.parametrize("steps", [1, 7, 40, 333])
def test_shapes_with_settings_contain_those_without_to_the_last_bit(steps):
    whole = learning_rates(with_settings("wsd", decay_fraction=1.0), steps)
    np.testing.assert_array_equal(whole, learning_rates(point(0, "linear"), steps))
    once = learning_rates(with_settings("cosine_restarts", restarts=0), steps)
    np.testing.assert_array_equal(once, learning_rates(point(0, "cosine"), steps))


def test_a_setting_that_is_not_given_has_the_default_of_its_shape():
    given = with_settings("wsd", decay_fraction=0.2)
    np.testing.assert_array_equal(learning_rates(point(0, "wsd"), 50), learning_rates(given, 50))
    given = with_settings("cosine_restarts", restarts=1)
    rates = learning_rates(point(0, "cosine_restarts"), 51)
    np.testing.assert_array_equal(rates, learning_rates(given, 51))


INCOMPLETE = [
    ({"defaults": {"stairs": 3}}, "no row of HYPERPARAMETERS for stairs, of kind schedule"),
    ({"defaults": {"momentum": 0.5}}, "no row of HYPERPARAMETERS for momentum, of kind schedule"),
    (
        {"defaults": {"decay_fraction": 0.0}},
        "its default decay_fraction must be a number in (0, 1], got 0.0",
    ),
    ({"defaults": {}}, "its factor needs 'decay_fraction', which has no default"),
    ({"factor": lambda step, steps, own: 1.0}, "its factor must be a finite number for each"),
    ({"factor": lambda step, steps, own: 0 * step + np.inf}, "its factor must be a finite number"),
]


@pytest.mark.parametrize(("change", "reason"), INCOMPLETE)
def test_an_incomplete_shape_is_refused_by_name(change, reason):
    with pytest.raises(TypeError, match=re.escape(f"decay 'wsd': {reason}")):
        replace(SHAPES["wsd"], **change)


def test_a_shape_is_added_under_its_name_and_is_a_decay(monkeypatch):
    monkeypatch.setattr("tunewright.search.rules.schedule.SHAPES", dict(SHAPES))
    add(replace(SHAPES["linear"], name="mine"))
    np.testing.assert_array_equal(
        learning_rates(point(2, "mine"), 12), learning_rates(point(2, "linear"), 12)
    )


def test_a_shape_of_a_name_that_is_taken_is_not_added():
    before = dict(SHAPES)
    with pytest.raises(TypeError, match="shape 'wsd': two rows have this name"):
        add(SHAPES["wsd"])
    assert before == SHAPES
