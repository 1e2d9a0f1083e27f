"""Seeds where they matter: the best few of each group and the edge get all of them."""

import random
from collections import Counter

import pytest
from examples import parse

from tunewright.search.errors import UserError
from tunewright.search.study.sampling import (
    next_points,
    plan,
    shares,
    trials_of_finalists,
    with_seed,
    yet_to_plan,
)
from tunewright.search.study.study import Study
from tunewright.search.trial import Point, Told, group_of

SEEDS = {"all": 1, "finalists": 3, "of": 4}
EDGE = 0.03  # base LRs from here on diverge


def study_of(**changes) -> Study:
    return parse(**{"trials": 24, "batch_sizes": [32], "seeds": SEEDS, **changes})


def told(point: Point, unlucky=lambda point: False) -> Told:
    """The nearer to EDGE from below, the better."""
    failed = point.base_lr >= EDGE or unlucky(point)
    return Told(point, 1.0 if failed else 1 / (1 + point.base_lr), 0.5 if failed else -1.0)


def trained(study: Study, **how) -> list[Told]:
    """Train whatever is planned until nothing is added."""
    done: dict[int, Told] = {}
    while new := [p for p in next_points(study, list(done.values())) if p.number not in done]:
        done |= {point.number: told(point, **how) for point in new}
    return list(done.values())


def seeds_by_configuration(study: Study, done: list[Told], optimizer: str) -> dict[float, int]:
    """How many seeds each base LR of an optimizer got."""
    return Counter(one.point.base_lr for one in done if one.point.optimizer == optimizer)


def test_every_configuration_is_trained_once_and_the_best_of_each_group_with_every_seed():
    study = study_of()
    first = next_points(study, [])
    assert [point.number for point in first] == [3 * n for n in range(24)]
    assert {point.seed for point in first} == {study.seed}
    done = trained(study)
    for group, share in shares(study, 32).items():
        counts = seeds_by_configuration(study, done, group.optimizer)
        best = sorted((lr for lr in counts if lr < EDGE), reverse=True)[:4]
        edge = min(lr for lr in counts if lr >= EDGE)
        assert len(counts) == share
        assert {lr for lr, count in counts.items() if count == 3} == {*best, edge}
        assert set(counts.values()) == {1, 3}
        more = sum(counts.values()) - share
        assert more == 5 * 2 <= trials_of_finalists(study, share)


def test_they_are_points_of_the_plan_with_the_same_numbers_as_if_all_had_every_seed():
    study, every = study_of(), study_of(seeds=3)
    assert plan(study) == plan(every)
    assert {one.point.number for one in trained(study)} < {point.number for point in plan(every)}


@pytest.mark.parametrize("order", [0, 1, 2])
def test_who_is_a_finalist_does_not_depend_on_the_order_of_results(order):
    study = study_of()
    first = [told(point) for point in next_points(study, [])]
    expected = next_points(study, first)
    random.Random(order).shuffle(first)
    assert next_points(study, first) == expected
    assert next_points(study, first[1:]) != expected  # a group is not complete


def test_where_no_finalist_trains_with_every_seed_the_next_ones_are_tried():
    study = study_of()
    first = [told(point) for point in next_points(study, [])]
    ranked = sorted(
        (one for one in first if one.diverged < 0 and one.point.optimizer == "adam"),
        key=lambda one: one.value,
    )
    lost = {one.point.base_lr for one in ranked[:4]}
    done = trained(study, unlucky=lambda point: point.seed > 0 and point.base_lr in lost)
    counts = seeds_by_configuration(study, done, "adam")
    assert all(counts[one.point.base_lr] == 3 for one in ranked[:8])
    assert all(counts[one.point.base_lr] == 1 for one in ranked[8:])


def test_a_trial_that_was_cut_is_no_finalist_and_gets_no_further_seeds():
    study = study_of()
    first = [told(point) for point in next_points(study, [])]
    best = max((one for one in first if one.diverged < 0), key=lambda one: one.point.base_lr)
    cut = [Told(one.point, 0.0, -1.0, cut=True) if one is best else one for one in first]
    assert {p.base_lr for p in next_points(study, first) if p.seed} >= {best.point.base_lr}
    assert best.point.base_lr not in {p.base_lr for p in next_points(study, cut) if p.seed}


def test_a_learner_sees_the_first_seeds_alone_so_that_finalists_change_no_proposal():
    study = study_of(sampler="halton+tpe", trials=48)
    assert len(next_points(study, [])) == 2 * 16
    once = study_of(sampler="halton+tpe", trials=48, seeds=1)
    proposed = {(p.optimizer, p.base_lr) for p in (one.point for one in trained(study))}
    assert proposed == {(one.point.optimizer, one.point.base_lr) for one in trained(once)}
    groups = Counter(group_of(one.point) for one in trained(once))
    assert set(groups.values()) == {24}


def test_a_number_and_a_seed_say_which_configuration():
    study = study_of(seed=7)
    for point in next_points(study, [])[:3]:
        again = with_seed(study, point, 2)
        assert (again.number, again.seed) == (3 * point.number + 2, 9)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ({"finalists": 0}, "seeds.finalists: should be greater than 0, got 0"),
        ({"all": 3, "finalists": 3}, "seeds: finalists must be more than all, got finalists = 3"),
        ({"finalists": 3, "of": 0}, "seeds.of: should be greater than 0, got 0"),
        ({"finalists": 3, "off": 4}, "seeds.off: unknown key; did you mean 'of'?"),
        ({"low": 1, "high": 3}, "is never an axis (S8)"),
    ],
)
def test_what_is_wrong_with_a_table_of_seeds_is_one_sentence(seeds, expected):
    with pytest.raises(UserError) as refused:
        study_of(seeds=seeds)
    (line,) = str(refused.value).splitlines()
    assert expected in line


def test_what_may_still_be_planned_is_an_upper_bound_and_nothing_at_the_end():
    for study in (study_of(), study_of(sampler="halton+tpe", trials=48)):
        done: dict[int, Told] = {}
        bounds = []
        while True:
            points = next_points(study, list(done.values()))
            bounds.append(len(points) + sum(yet_to_plan(study, points).values()))
            if len(points) == len(done):
                break
            done |= {point.number: told(point) for point in points}
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[0] > bounds[-1] == len(done)
