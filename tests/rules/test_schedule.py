"""Laws of the schedule: the warmup reaches base_lr, the decay leaves it, nothing else depends on
the total.
"""

import numpy as np
import pytest

from tunewright.search.rules.schedule import (
    learning_rates,
    longest_warmup,
    orders_of_magnitude,
    total_steps,
)
from tunewright.search.trial import Point


def point(warmup_steps=0, decay="constant", base_lr=0.5):
    return Point(0, 8, "sgd", base_lr, warmup_steps=warmup_steps, decay=decay)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
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
