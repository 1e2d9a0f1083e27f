"""Importance is computed within an optimizer, from feasible trials."""

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from tunewright.search.show.importance import FEWEST, importances


def trials(count: int, verdict: str = "feasible") -> list[FrozenTrial]:
    """The value follows x alone; y is noise without effect."""
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0, 1, (count, 2))
    axis = FloatDistribution(0, 1)
    return [
        create_trial(
            value=float(x) ** 2 if verdict == "feasible" else 1e6 * float(y),
            params={"x": float(x), "y": float(y)},
            distributions={"x": axis, "y": axis},
            user_attrs={"verdict": verdict},
        )
        for x, y in drawn
    ]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_what_the_value_follows_is_important_and_infeasible_trials_do_not_count(
    direction: str,
) -> None:
    found = importances([*trials(60), *trials(60, "diverged")], direction)
    assert list(found) == ["x", "y"]
    assert found["x"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert found == importances([*trials(60), *trials(60, "diverged")], direction)


def test_too_few_trials_or_one_hyperparameter_say_nothing() -> None:
    assert importances(trials(FEWEST - 1), "minimize") == {}
    same = [create_trial(value=1.0, user_attrs={"verdict": "feasible"}) for _ in range(20)]
    assert importances(same, "minimize") == {}
