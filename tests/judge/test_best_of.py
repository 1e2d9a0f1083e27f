"""The closed form is the bootstrap that it replaces."""

import math

import numpy as np
import pytest

from tunewright.search.judge.best_of import BAND, best_of


def test_best_of_n_is_the_bootstrap_it_replaces():
    values = np.random.default_rng(2).lognormal(size=12)
    curve = best_of(values)
    assert curve.mean[0] == pytest.approx(values.mean())
    assert list(curve.mean) == sorted(curve.mean, reverse=True)
    drawn = np.random.default_rng(3).choice(values, (100_000, 4)).min(1)
    assert curve.mean[3] == pytest.approx(drawn.mean(), rel=0.01)
    low, high = np.quantile(drawn, BAND, method="inverted_cdf")
    assert (curve.low[3], curve.high[3]) == (low, high)


@pytest.mark.parametrize("values", [[], [1.0, math.inf]])
def test_values_must_be_there_and_finite(values):
    with pytest.raises(ValueError, match="finite values"):
        best_of(values)
