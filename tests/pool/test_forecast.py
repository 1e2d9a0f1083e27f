"""The time left is right within a factor of 1.5 from a fifth of a run on, in nine of ten simulated
looks: what is left at the very end depends on which trials end early.
"""

from collections import Counter, deque

import numpy as np
import pytest

from tunewright.search.pool.forecast import Forecast

STEPS = 1000
# seconds per update of each batch size
PACES = {
    "alike": {32: 1e-3, 64: 1e-3},
    "by batch size": {8: 1e-3, 64: 2e-3, 512: 9e-3},
    "one": {128: 5e-3},
}


def durations(rng, size, ends_early):
    """Updates that a batch size's trials take: some of them diverge, which ends them early."""
    diverge = rng.random(size) < ends_early
    return np.where(diverge, rng.integers(20, STEPS // 2, size), STEPS)


def simulate(paces, ends_early, workers, slots, seed):
    """(share of the run, forecast, truth) after each trial of a run with stacks that refill.

    Batch sizes come one after the other; of the trials of a stack, each takes an update in turn.
    """
    rng = np.random.default_rng(seed)
    trials = 96
    queue = deque(
        (size, int(updates)) for size in paces for updates in durations(rng, trials, ends_early)
    )
    stacks = [[] for _ in range(workers)]  # of [batch size, updates, updates left]
    ends, now = [], 0.0
    while queue or any(stacks):
        for stack in stacks:
            while queue and len(stack) < slots:
                size, updates = queue.popleft()
                stack.append([size, updates, updates])
        rounds = [sum(paces[size] for size, _, _ in stack) for stack in stacks]
        seconds = min(
            each * min(left for _, _, left in stack)
            for each, stack in zip(rounds, stacks, strict=True)
            if stack
        )
        now += seconds
        for each, stack in zip(rounds, stacks, strict=True):
            for one in stack:
                one[2] -= seconds / each
        in_training = Counter(
            ("study", one[0]) for stack in stacks for one in stack if one[2] > 0.1
        )
        for stack in stacks:
            for one in [one for one in stack if one[2] <= 0.1]:
                stack.remove(one)
                ends.append((now, one[0], one[1], in_training))
    forecast = Forecast()
    forecast.plan("study", dict.fromkeys(paces, trials * STEPS))
    found = []
    for end, size, updates, in_training in ends:
        forecast.finish("study", size, STEPS, updates, updates * paces[size])
        left = forecast.seconds_left(workers, in_training, end * workers)
        found.append((end / now, left, now - end))
    return found


@pytest.mark.parametrize("name", PACES)
@pytest.mark.parametrize("ends_early", [0.0, 0.2, 0.4])
@pytest.mark.parametrize(("workers", "slots"), [(1, 1), (2, 8), (4, 4)])
def test_the_time_left_is_right_from_a_fifth_of_the_run_on(name, ends_early, workers, slots):
    off = []
    for seed in range(20):
        for share, left, truth in simulate(PACES[name], ends_early, workers, slots, seed):
            if 0.2 <= share <= 0.8:
                off.append(left / truth)
    low, high = np.quantile(off, [0.05, 0.95])
    assert low > 1 / 1.5
    assert high < 1.5


def test_nothing_is_said_before_a_trial_is_finished():
    forecast = Forecast()
    forecast.plan("study", {32: 1000})
    assert forecast.seconds_left(1, {}, 4.0) is None
    forecast.finish("study", 32, 100, 100, 5.0)
    assert forecast.seconds_left(1, {}, 5.0) == pytest.approx(45.0)
    assert forecast.seconds_left(3, {}, 5.0) == pytest.approx(15.0)
    one = {("study", 32): 1}  # is in training, since 3 seconds
    assert forecast.seconds_left(1, one, 8.0) == pytest.approx(42.0)
    assert forecast.seconds_left(1, one, 80.0) == pytest.approx(40.0)  # of those not begun


def test_what_an_earlier_run_finished_counts_as_done_without_a_pace():
    forecast = Forecast()
    forecast.plan("study", {32: 1000})
    forecast.finish("study", 32, 500, None, 3.0)
    assert forecast.seconds_left(1, {}, 0.0) is None
    forecast.finish("study", 32, 100, 100, 5.0)
    assert forecast.seconds_left(1, {}, 5.0) == pytest.approx(20.0)


def test_the_pace_of_an_unknown_batch_size_is_on_the_line_of_the_others():
    forecast = Forecast()
    forecast.plan("study", {8: 10, 16: 10, 32: 10})
    forecast.finish("study", 8, 10, 10, 1.0)
    forecast.finish("study", 16, 10, 10, 2.0)
    assert forecast.seconds_left(1, {}, 3.0) == pytest.approx(4.0)
