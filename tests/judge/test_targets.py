"""Updates to a target, and the critical batch size of trainings that have one."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scaled

from tunewright.search.judge.analysis import group_trials
from tunewright.search.judge.targets import (
    StepsToTarget,
    critical_in_words,
    steps_to_target,
    updates_to,
)
from tunewright.search.trial import Curve, Point, Trial, Verdict


def trial(values: Sequence[float], steps: Sequence[int], maximize: bool = False) -> Trial:
    curve = Curve(np.empty(0), np.empty(0), np.array(steps), {"v": np.array(values)}, steps[-1])
    point = Point(0, 8, "momentum", 0.1)
    verdict = Verdict("feasible", "none", math.inf, "")
    return Trial.from_curve(point, verdict, curve, "v", 1.0, maximize)


def found(
    model: scaled.Scaled, target: float | None = None, sizes: Sequence[int] = scaled.SIZES
) -> StepsToTarget:
    by_size = {group.batch_size: own for group, own in group_trials(model.trials(sizes)).items()}
    one = steps_to_target(by_size, "val_error", target)
    assert one is not None
    return one


def test_updates_are_interpolated_between_evaluations_of_the_best_so_far() -> None:
    one = trial([1.0, 0.6, 0.8, 0.4, math.nan, 0.1], [0, 10, 20, 30, 40, 50])
    assert updates_to(one, "v", 0.8) == pytest.approx(5)
    assert updates_to(one, "v", 0.6) == pytest.approx(10)
    assert updates_to(one, "v", 0.5) == pytest.approx(25)  # 0.6 stood until 20
    assert updates_to(one, "v", 0.25) == pytest.approx(40)  # nan says nothing
    assert updates_to(one, "v", 0.1) == pytest.approx(50)
    assert updates_to(one, "v", 0.05) == math.inf
    assert updates_to(one, "v", 1.5) == 0
    assert updates_to(one, "no such metric", 0.5) == math.inf
    up = trial([0.0, 0.4, 0.2, 0.6], [0, 10, 20, 30], maximize=True)
    assert updates_to(up, "v", 0.5) == pytest.approx(25)


@pytest.mark.parametrize("critical", [32.0, 128.0])
def test_the_critical_batch_size_of_trainings_that_have_one(critical: float) -> None:
    one = found(scaled.Scaled(critical=critical))
    low, high = one.interval
    assert one.critical == pytest.approx(critical, rel=0.2)
    assert low < critical < high < 4 * low
    assert one.fewest_examples == pytest.approx(one.critical * one.fewest_updates)
    for reached in one.reached:
        assert one.updates_at(reached.batch_size) == pytest.approx(reached.updates, rel=0.2)
        assert reached.examples == reached.updates * reached.batch_size
        assert reached.interval[0] < reached.updates < reached.interval[1]
    assert "critical batch size" in one.words
    assert "next to no gain beyond" in one.words or "still some gain" in one.words


def test_a_critical_batch_size_outside_of_what_was_tried_is_no_number() -> None:
    beyond = found(scaled.Scaled(critical=1e5, fewest=0.5), sizes=(8, 16, 32, 64))
    assert beyond.critical == math.inf
    assert math.isnan(beyond.fewest_updates)
    assert math.isnan(beyond.updates_at(64))
    assert beyond.words.startswith("critical batch size beyond 64")
    assert "halves the updates" in beyond.words
    below = found(scaled.Scaled(critical=0.01, fewest=40))
    assert below.critical == 0
    assert "below 8" in below.words
    assert "hardly lowers" in below.words


def test_its_words() -> None:
    assert critical_in_words(214, (93, 402), 8, 512) == "210 (93 to 400)"
    assert critical_in_words(214, (93, math.inf), 8, 512) == "210 (93 to beyond 512)"
    assert critical_in_words(math.inf, (93, math.inf), 8, 512) == "beyond 512 (93 to beyond 512)"
    assert critical_in_words(math.inf, (math.inf, math.inf), 8, 512) == "beyond 512"
    assert critical_in_words(0.0, (0.0, 0.0), 8, 512) == "below 8"


def test_the_target_that_is_chosen_is_reached_by_five_base_lrs_of_each_batch_size() -> None:
    for maximize in (False, True):
        one = found(scaled.Scaled(maximize=maximize))
        assert not one.is_given
        assert min(reached.trainings for reached in one.reached) == 5
        assert (one.target < 0) is maximize
        assert not one.notes
    given = found(scaled.Scaled(), target=0.3)
    assert given.is_given
    assert given.target == 0.3


def test_a_target_that_nobody_reaches() -> None:
    one = found(scaled.Scaled(), target=0.01)
    assert math.isnan(one.critical)
    assert all(math.isinf(reached.updates) for reached in one.reached)
    assert one.words == ""
    assert "0.01 is not reached at B = 8, 16, 32, 64, 128, 256, 512" in one.notes[0]


def test_a_batch_size_that_does_not_reach_it_is_left_out_and_named() -> None:
    trials = scaled.Scaled(critical=64).trials()
    trials = [scaled.failed(one) if one.point.batch_size == 8 else one for one in trials]
    by_size = {group.batch_size: own for group, own in group_trials(trials).items()}
    one = steps_to_target(by_size, "val_error", 0.3)
    assert one is not None
    assert "not reached at B = 8" in one.notes[0]
    assert one.critical == pytest.approx(64, rel=0.3)
    chosen = steps_to_target(by_size, "val_error")
    assert chosen is not None
    assert math.isinf(chosen.reached[0].updates)


def test_few_base_lrs_are_known_by_the_fastest_and_have_no_interval() -> None:
    one = found(scaled.Scaled(count=5), target=0.3)
    assert any("the fastest training counts" in note for note in one.notes)
    fast = [reached for reached in one.reached if math.isnan(reached.interval[0])]
    assert fast
    assert all(reached.updates < math.inf for reached in fast)


def test_a_target_before_the_first_evaluation_is_known_roughly() -> None:
    one = found(scaled.Scaled(evaluations=2, fewest=5, updates=4000), target=0.6)
    assert any("before the first evaluation" in note for note in one.notes)


def test_nothing_that_trains_or_learns_has_no_target() -> None:
    trials = [scaled.failed(one) for one in scaled.Scaled().trials((8, 16))]
    assert steps_to_target({8: trials}, "val_error") is None
    learns = scaled.Scaled(noise=0.0).trials((8,))
    nothing = [replace(one, initial_value=0.05) for one in learns]
    assert steps_to_target({8: nothing}, "val_error") is None


@pytest.mark.slow
def test_the_interval_of_the_critical_batch_size_covers_it() -> None:
    held = 0
    sizes = (8, 32, 128, 512)
    for seed in range(60):
        model = scaled.Scaled(critical=64, noise=0.01, count=12)
        trials = model.trials(sizes, seed)
        by_size = {group.batch_size: own for group, own in group_trials(trials).items()}
        one = steps_to_target(by_size, "val_error", 0.35)
        assert one is not None
        held += one.interval[0] <= 64 <= one.interval[1]
    assert held >= 54


def test_rare_evaluations_widen_the_interval() -> None:
    """The same trainings, evaluated 100 and 10 times."""
    often, rarely = (found(scaled.Scaled(evaluations=count), 0.35) for count in (100, 10))
    for fine, coarse in zip(often.reached, rarely.reached, strict=True):
        assert coarse.interval[1] / coarse.interval[0] > fine.interval[1] / fine.interval[0]
        width = math.log10(1 + 10 / fine.updates) / math.sqrt(12)
        assert math.log10(fine.interval[1] / fine.updates) > 1.96 * width
