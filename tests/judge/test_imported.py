"""The verdict of a training of which somebody else kept the record."""

import math
from typing import Any

import numpy as np
import pytest

from tunewright.search.judge.imported import imported_trial
from tunewright.search.trial import EMPTY_CURVE, Curve, Point, Trial

POINT = Point(3, 32, "adam", 0.1)


def evaluated(values: list[float], first_step: int = 1) -> Curve:
    steps = np.arange(first_step, first_step + len(values), dtype=np.int64)
    return Curve(np.empty(0), np.empty(0), steps, {"loss": np.array(values)}, 0)


def trial(value: float | None, ended: Any, curve: Curve = EMPTY_CURVE, **options: Any) -> Trial:
    return imported_trial(POINT, curve, "loss", name="run 3", value=value, ended=ended, **options)


@pytest.mark.parametrize(
    ("value", "ended", "reported", "outcome"),
    [
        (0.3, "finished", [], "feasible"),
        (0.3, "", [], "feasible"),
        (0.3, "finished", [2.0, 1.0, 0.3], "feasible"),
        (math.nan, "finished", [], "non_finite"),
        (math.inf, "failed", [], "non_finite"),
        (None, "failed", [2.0, math.nan], "non_finite"),
        (None, "stopped", [2.0, math.nan], "non_finite"),
        (0.3, "finished", [2.0, 0.3, math.nan], "non_finite"),
        (90.0, "finished", [2.0, 1.0, 90.0], "diverged"),
        (None, "stopped", [2.0, 7.0], "diverged"),
        (2.9, "finished", [2.0, 1.0, 2.9], "feasible"),
        (None, "failed", [], "crashed"),
        (0.3, "failed", [2.0, 0.3], "crashed"),
        (None, "stopped", [2.0, 1.9], "unfinished"),
        (1.9, "stopped", [], "unfinished"),
        (None, "running", [], "unfinished"),
        (None, "finished", [], "unfinished"),
        (None, "", [], "unfinished"),
        (None, "finished", [2.0, 1.0], "feasible"),
    ],
)
def test_every_run_has_its_place(
    value: float | None, ended: str, reported: list[float], outcome: str
) -> None:
    curve = evaluated(reported) if reported else EMPTY_CURVE
    found = trial(value, ended, curve)
    assert found.verdict.outcome == outcome
    assert found.verdict.evidence.startswith("run 3: ")
    assert found.verdict.judged == (outcome not in ("crashed", "unfinished"))


def test_an_objective_that_is_maximized_may_fall_as_it_likes() -> None:
    """To a tenth of what it was is bad luck of a metric, not a loss that blew up."""
    assert trial(0.1, "finished", evaluated([0.3, 0.9, 0.1]), maximize=True).feasible


def test_the_value_that_the_source_states_is_the_best_value() -> None:
    found = trial(0.5, "finished", evaluated([2.0, 0.4, 0.5]))
    assert (found.best_value, found.best_step) == (0.5, 3)
    without = trial(None, "finished", evaluated([2.0, 0.4, 0.5]))
    assert (without.best_value, without.best_step) == (0.4, 2)
    alone = trial(0.5, "finished")
    assert alone.best_value == 0.5
    assert math.isnan(alone.best_step)


def test_only_an_evaluation_before_training_is_of_the_untrained_model() -> None:
    assert math.isnan(trial(0.5, "finished", evaluated([2.0, 0.5])).initial_value)
    assert trial(0.5, "finished", evaluated([2.0, 0.5], first_step=0)).initial_value == 2.0


def test_failed_runs_are_diverged_where_the_user_says_so() -> None:
    found = trial(None, "failed", failed_is_infeasible=True)
    assert found.verdict.outcome == "diverged"
    assert "taken for diverged" in found.verdict.evidence
    assert trial(None, "stopped", failed_is_infeasible=True).verdict.unfinished


def test_a_log_of_losses_is_judged_as_any_other() -> None:
    loss = np.concatenate([np.geomspace(2.0, 0.1, 200), [math.nan]])
    steps = np.arange(201) * 10
    curve = Curve(loss, np.empty(0), np.empty(0, np.int64), {}, 2010, loss_step=steps)
    found = trial(None, "running", curve)
    assert (found.verdict.outcome, found.verdict.onset_step) == ("non_finite", 2000)
    assert math.isnan(found.clip_fraction)
