import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.search.judge.analysis import is_rankable
from tunewright.search.judge.isolation import MOST_BUCKETS, isolate
from tunewright.search.trial import EMPTY_CURVE, Point, Trial, Verdict


def trial(number: int, warmup_steps: int, value: float, feasible: bool = True) -> Trial:
    verdict = Verdict("feasible" if feasible else "diverged", "none", math.inf, "")
    point = Point(number, 32, "momentum", 0.1 + number, warmup_steps=warmup_steps)
    made = Trial.from_curve(point, verdict, EMPTY_CURVE, "val_error", seconds=1.0)
    return replace(made, best_value=value)


found = st.lists(
    st.tuples(st.integers(1, 1000), st.floats(0.01, 10), st.booleans()), min_size=1, max_size=80
)


@given(found, st.booleans(), st.booleans())
def test_each_trial_is_in_one_bucket_whose_best_is_no_worse(
    drawn: list[tuple[int, float, bool]], choices: bool, log: bool
) -> None:
    trials = [trial(number, *one) for number, one in enumerate(drawn)]
    buckets = isolate(trials, "warmup_steps", choices=choices, log=log)
    held = [one.point.number for bucket in buckets for one in bucket.trials]
    assert sorted(held) == list(range(len(trials)))
    assert choices or len(buckets) <= MOST_BUCKETS
    for bucket, following in itertools.pairwise(buckets):
        assert bucket.high < following.low
    for bucket in buckets:
        usable = [one.best_value for one in bucket.trials if is_rankable(one)]
        assert all(bucket.low <= one.point.warmup_steps <= bucket.high for one in bucket.trials)
        if bucket.best is None:
            assert not usable
        else:
            assert bucket.best.best_value == min(usable)
        assert not choices or bucket.low == bucket.high


def test_buckets_are_equal_parts_of_the_range_or_of_its_logarithm() -> None:
    trials = [trial(n, steps, 0.1) for n, steps in enumerate((1, 9, 11, 99, 101, 1000, 1, 1, 1))]
    ends = [(one.low, one.high) for one in isolate(trials, "warmup_steps", choices=False, log=True)]
    assert ends == [(1, 9), (11, 99), (101, 1000)]
    ends = [(one.low, one.high) for one in isolate(trials, "warmup_steps", choices=False)]
    assert ends == [(1, 101), (1000, 1000)]


def test_a_scale_needs_finite_values() -> None:
    trials = [replace(trial(n, 0, 0.1), point=replace(trial(n, 0, 0.1).point, clip_norm=clip))
              for n, clip in enumerate((1.0, math.inf))]  # fmt: skip
    with pytest.raises(ValueError, match="clip_norm: a scale needs finite values"):
        isolate(trials, "clip_norm", choices=False)
    assert [one.low for one in isolate(trials, "clip_norm", choices=True)] == [1.0, math.inf]
