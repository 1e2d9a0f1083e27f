"""Configurations that have not all their seeds are evidence, and are not ranked."""

import math
from dataclasses import replace

from tunewright.search.judge.analysis import rank_configurations, summarize, unstable_interval
from tunewright.search.judge.answer import answers
from tunewright.search.judge.seeds import mark_provisional
from tunewright.search.trial import EMPTY_CURVE, Point, Trial, Verdict


def trial(base_lr, value, outcome="feasible", number=0, seed=0) -> Trial:
    return Trial(
        point=Point(number=number, batch_size=32, optimizer="momentum", base_lr=base_lr, seed=seed),
        verdict=Verdict(outcome, "none", math.inf, ""),
        curve=EMPTY_CURVE,
        best_value=value,
        best_step=90,
        initial_value=0.9,
        last_loss=1.0,
        clip_fraction=0.0,
        seconds=1.0,
    )


def with_seeds(base_lr: float, *values: float) -> list[Trial]:
    return [trial(base_lr, value, number=i, seed=i) for i, value in enumerate(values)]


LUCKY = with_seeds(0.1, 0.01)  # one seed, better than any mean
WHOLE = [*with_seeds(0.2, 0.11, 0.12, 0.13), *with_seeds(0.3, 0.14, 0.15, 0.16)]
BEYOND = trial(1.0, 0.9, "diverged")


def test_a_configuration_with_one_lucky_seed_is_not_the_best():
    marked = mark_provisional([*LUCKY, *WHOLE, BEYOND], seeds=3)
    assert [one.provisional for one in marked] == [True, *6 * [False], True]
    (row,) = summarize(marked)
    assert (row.lr_star, row.best_values) == (0.2, (0.11, 0.12, 0.13))
    assert {one.point.base_lr for one in rank_configurations(marked)} == {0.2, 0.3}
    (answer,) = answers(marked, [row])
    assert answer.value == sum(row.best_values) / 3


def test_it_still_shows_what_trains_and_what_does_not():
    above = with_seeds(0.5, 0.4)
    marked = mark_provisional([*WHOLE, *above, BEYOND], seeds=3)
    assert unstable_interval(marked) == (0.5, 1.0)
    (row,) = summarize(marked)
    assert (row.feasible, row.infeasible) == (7, 1)


def test_before_any_finalist_is_whole_the_best_so_far_is_ranked():
    assert mark_provisional([*LUCKY, BEYOND], seeds=3) == [*LUCKY, BEYOND]
    failed = [*with_seeds(0.2, 0.11, 0.12), trial(0.2, 0.9, "diverged", seed=2), *LUCKY]
    assert not any(one.provisional for one in mark_provisional(failed, seeds=3))


def test_each_group_is_looked_at_by_itself():
    other = [replace(one, point=replace(one.point, optimizer="adam")) for one in LUCKY]
    marked = mark_provisional([*WHOLE, *other], seeds=3)
    assert not any(one.provisional for one in marked)


def test_the_mark_is_no_part_of_the_record():
    (marked, *_) = mark_provisional([*LUCKY, *WHOLE], seeds=3)
    assert marked.record() == LUCKY[0].record()
    assert Trial.from_record(marked.record(), marked.curve) == LUCKY[0]
