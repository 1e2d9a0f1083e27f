"""Configurations that have not all their seeds are evidence, and are not ranked."""

from dataclasses import replace

from stored import diverged, feasible

from tunewright.search.judge.analysis import rank_configurations, summarize, unstable_interval
from tunewright.search.judge.answer import answers
from tunewright.search.judge.seeds import mark_provisional
from tunewright.search.trial import Trial


def with_seed(one: Trial, seed: int) -> Trial:
    return replace(one, point=replace(one.point, seed=seed))


def with_seeds(base_lr: float, *values: float) -> list[Trial]:
    return [with_seed(feasible(i, base_lr, value), i) for i, value in enumerate(values)]


LUCKY = with_seeds(0.1, 0.01)  # one seed, better than any mean
WHOLE = [*with_seeds(0.2, 0.11, 0.12, 0.13), *with_seeds(0.3, 0.14, 0.15, 0.16)]
BEYOND = diverged(9, 1.0, onset_step=9)


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
    failed = [*with_seeds(0.2, 0.11, 0.12), with_seed(diverged(2, 0.2, 9), 2), *LUCKY]
    assert not any(one.provisional for one in mark_provisional(failed, seeds=3))


def test_each_group_is_looked_at_by_itself():
    other = [replace(one, point=replace(one.point, optimizer="adam")) for one in LUCKY]
    marked = mark_provisional([*WHOLE, *other], seeds=3)
    assert not any(one.provisional for one in marked)


def test_the_mark_is_no_part_of_the_record():
    (marked, *_) = mark_provisional([*LUCKY, *WHOLE], seeds=3)
    assert marked.record() == LUCKY[0].record()
    assert Trial.from_record(marked.record(), marked.curve) == LUCKY[0]
