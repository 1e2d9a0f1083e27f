"""A study that has grown keeps its points, and fills what is missing at an equal density."""

import math
from collections import Counter

import pytest
from examples import parse

from tunewright.search.study.earlier import Earlier, Generation, completed, why_outside
from tunewright.search.study.sampling import next_number, next_points, plan, shares
from tunewright.search.study.study import Study
from tunewright.search.trial import Point, Told

ONE = {"batch_sizes": [32], "space__optimizer__adam": ..., "space__warmup_steps": 0}
BASE_LR = "space__optimizer__momentum__base_lr"


def study_of(low=1e-3, high=1.0, trials=30, **changes) -> Study:
    """One optimizer; three decades of base LR and two clip thresholds."""
    base_lr = {"low": low, "high": high, "log": True}
    return parse(**{**ONE, BASE_LR: base_lr, "trials": trials, **changes})


def grown(before: Study, now: Study, points: list[Point] | None = None) -> Study:
    """`now` as it goes on from what `before` trained: all of its plan, or these points."""
    points = plan(before) if points is None else points
    known = before.earlier.get(32)
    generations = known.generations if known else ()
    generations += (Generation(before, next_number(before, 32)),)
    configurations = {p.number // now.most_seeds: p for p in points}
    kept = [
        completed(now, p).with_number(number, now.seed)
        for number, p in sorted(configurations.items())
    ]
    return now.grown_from({32: Earlier(generations, tuple(kept))})


def decades(points: list[Point], low: float, high: float) -> float:
    """Points per decade of base LR."""
    inside = [point for point in points if low <= point.base_lr < high]
    return len(inside) / math.log10(high / low)


def new_points(study: Study, before: Study) -> list[Point]:
    there = {point.number for point in plan(before)}
    return [point for point in plan(study) if point.number not in there]


def test_a_wider_range_adds_points_in_its_new_part_alone_and_as_densely():
    before = study_of(trials=60)
    now = grown(before, study_of(high=10.0, trials=60))
    kept, new = plan(before), new_points(now, before)
    assert plan(now) == [*kept, *new]
    assert [point.number for point in new] == list(range(60, 60 + len(new)))
    assert all(1.0 <= point.base_lr <= 10.0 for point in new)
    assert decades(new, 1.0, 10.0) == pytest.approx(decades(kept, 1e-3, 1.0), abs=1)
    assert min(Counter(point.clip_norm for point in new).values()) >= 8


def test_more_trials_fill_the_old_part_and_the_new_one():
    before = study_of(trials=30)
    now = grown(before, study_of(high=10.0, trials=100))
    points = plan(now)
    assert len(points) == 100
    assert points[:30] == plan(before)
    assert decades(points, 1.0, 10.0) == pytest.approx(decades(points, 1e-3, 1.0), rel=0.1)


def test_it_may_grow_again_and_to_both_sides():
    first = study_of(trials=40)
    second = grown(first, study_of(high=10.0, trials=40))
    third = grown(second, study_of(low=1e-4, high=10.0, trials=40))
    points = plan(third)
    assert points[: len(plan(second))] == plan(second)
    new = new_points(third, second)
    assert all(point.base_lr <= 1e-3 for point in new)
    assert len({point.number for point in points}) == len(points)
    assert decades(new, 1e-4, 1e-3) == pytest.approx(40 / 3, abs=2)


def test_a_narrower_range_hides_points_and_a_wider_one_shows_them_again():
    before = study_of(trials=30)
    narrow = grown(before, study_of(high=0.1, trials=20))
    inside = [point for point in plan(before) if point.base_lr <= 0.1]
    assert plan(narrow) == inside
    again = grown(narrow, study_of(trials=30), plan(before))
    assert plan(again) == plan(before)


def test_new_values_of_a_list_are_filled_and_the_old_ones_are_not():
    before = study_of(trials=30)
    now = grown(before, study_of(trials=30, space__clip_norm=[math.inf, 1.0, 0.1]))
    new = new_points(now, before)
    assert {point.clip_norm for point in new} == {0.1}
    assert len(new) == pytest.approx(15, abs=1)


def test_a_value_that_becomes_a_range_is_one_slice_of_it():
    before = study_of(trials=20)
    momentum = {"low": 0.5, "high": 0.99}
    now = grown(before, study_of(trials=20, space__optimizer__momentum__momentum=momentum))
    new = new_points(now, before)
    assert plan(now)[:20] == [completed(now, point) for point in plan(before)]
    assert {point.settings["momentum"] for point in plan(now)[:20]} == {0.9}
    assert len(new) == 20
    assert len({point.settings["momentum"] for point in new}) == 20


def test_an_optimizer_that_is_added_gets_as_many_points_as_those_that_are_there():
    before = study_of(trials=30)
    adam = {"base_lr": {"low": 1e-5, "high": 0.1, "log": True}}
    now = grown(before, study_of(trials=30, space__optimizer__adam=adam))
    assert list(shares(now, 32).values()) == [30, 30]
    assert {point.optimizer for point in new_points(now, before)} == {"adam"}


def test_a_batch_size_that_is_added_is_planned_as_if_it_had_been_there():
    before = study_of(trials=10)
    both = study_of(trials=10, batch_sizes=[32, 64])
    assert plan(grown(before, both)) == plan(both)


def test_what_was_not_trained_before_is_filled_again():
    before = study_of(trials=30)
    trained = plan(before)[:12]
    now = grown(before, study_of(trials=30), trained)
    values = [(point.base_lr, point.clip_norm) for point in plan(now)]
    assert values == [(point.base_lr, point.clip_norm) for point in plan(before)]
    assert [point.number for point in plan(now)] == [*range(12), *range(30, 48)]


def test_each_seed_of_a_kept_configuration_is_in_the_plan():
    before = study_of(trials=10, seeds=3)
    now = grown(before, study_of(high=10.0, trials=10, seeds=3))
    assert plan(now)[:30] == plan(before)
    assert {point.seed for point in new_points(now, before)} == {0, 1, 2}
    numbers = [point.number for point in plan(now)]
    assert numbers == list(range(len(numbers)))


def test_a_grid_keeps_the_points_that_it_still_has():
    axis = {"low": 0.01, "high": 1.0, "log": True, "points": 3}
    grid = {"sampler": "grid", "trials": ..., "space__clip_norm": 1.0, BASE_LR: axis}
    before = parse(**{**ONE, **grid})
    now = parse(**{**ONE, **grid, BASE_LR: {**axis, "high": 10.0, "points": 4}})
    points = plan(grown(before, now))
    assert [point.base_lr for point in points] == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert points[:3] == plan(before)


@pytest.mark.parametrize("sampler", ["tpe", "halton+tpe"])
def test_a_learner_goes_on_from_all_that_is_kept(sampler):
    def told(points):
        return [Told(p, abs(math.log10(p.base_lr / 3)), -1.0) for p in points]

    before = study_of(trials=24)
    now = grown(before, study_of(high=10.0, trials=60, sampler=sampler))
    kept = plan(before)
    first = next_points(now, told(kept))
    drawn = [point for point in first if point.number >= 24]
    assert drawn
    every = first
    while len(more := next_points(now, told(every))) > len(every):
        assert more[: len(kept)] == kept
        every = more
    assert len(every) == 60 == len({point.number for point in every})
    assert sum(point.base_lr > 1.0 for point in every[24:]) > 18  # where it is best


def test_why_a_point_lies_outside_is_said_by_its_value():
    study = study_of()
    point = plan(study)[0]
    assert why_outside(study, point) == ""
    for changes, reason in [
        ({"high": point.base_lr / 2}, f"base_lr {point.base_lr:.3g}"),
        ({"space__clip_norm": 7.0}, "clip_norm "),
        ({"batch_sizes": [64]}, "batch size 32"),
        ({"seed": 1}, "seed 0"),
        ({"workload_args": {"depth": 2}}, "depth missing"),
    ]:
        assert why_outside(study_of(**changes), point).startswith(reason)
