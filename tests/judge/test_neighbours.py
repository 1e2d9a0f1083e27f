"""A trial that learns nothing has collapsed where a lower base LR learns, and only there."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tunewright.search.judge.analysis import summarize
from tunewright.search.judge.neighbours import (
    NEXT_TO_NOTHING,
    is_collapsed_by_neighbours,
    judge_beside_neighbours,
)
from tunewright.search.judge.verdict import judge
from tunewright.search.show.publish import write_results
from tunewright.search.show.report import write_report
from tunewright.search.store.files import curve_path, write_curve
from tunewright.search.store.results import Results
from tunewright.search.store.storage import create_store, read_records, read_trials, tell
from tunewright.search.study.study import parse_study
from tunewright.search.trial import Curve, Point, Trial

CHANCE = 2.3
STEPS = 400


def trial(number, base_lr, ends, value=None, steps=STEPS, chance=CHANCE, scatter=0.02, **changes):
    """A training whose loss falls to `ends`, and its objective to `value`; by itself it is
    feasible.
    """
    point = Point(number, 32, "momentum", base_lr, **{"settings": {"momentum": 0.9}, **changes})
    rng = np.random.default_rng(number)
    loss = (
        ends
        + (CHANCE - ends) * np.exp(-np.arange(steps) / 40)
        + scatter * rng.standard_normal(steps)
    )
    values = np.full(21, 0.9)
    values[1:] = 0.9 * ends / CHANCE if value is None else value
    eval_step = np.linspace(0, steps, 21).astype(np.int64)
    curve = Curve(loss, np.ones(steps), eval_step, {"val_error": values}, steps, chance)
    found = Trial.from_curve(point, judge(curve, "val_error"), curve, "val_error", 0.1)
    assert found.feasible
    return found


def outcomes(trials):
    return [one.verdict.outcome for one in judge_beside_neighbours(trials)]


LOW, STAR, HIGH = trial(0, 1e-6, CHANCE), trial(1, 0.1, 0.2), trial(2, 1.0, CHANCE)


def test_above_lr_star_what_learns_nothing_has_collapsed_and_below_it_is_too_slow():
    low, star, high = judge_beside_neighbours([LOW, STAR, HIGH])
    assert (low, star) == (LOW, STAR)
    assert high.verdict.outcome == "collapsed"
    assert high.verdict.evidence == f"{HIGH.verdict.evidence}; {NEXT_TO_NOTHING}"
    assert [is_collapsed_by_neighbours(one) for one in (low, star, high)] == [False, False, True]


def test_it_is_said_once_and_in_the_order_of_the_trials():
    once = judge_beside_neighbours([HIGH, LOW, STAR])
    assert [one.point.number for one in once] == [2, 0, 1]
    assert judge_beside_neighbours(once) == once


@pytest.mark.parametrize("chance", [CHANCE, math.nan])
@pytest.mark.parametrize(
    ("ends", "outcome"), [(2.25, "collapsed"), (1.9, "collapsed"), (1.5, "feasible")]
)
def test_next_to_nothing_is_less_than_a_quarter_of_what_is_learned(ends, outcome, chance):
    trials = [trial(1, 0.1, 0.2, chance=chance), trial(2, 1.0, ends, chance=chance)]
    assert outcomes(trials) == ["feasible", outcome]


def test_a_group_that_learns_a_tenth_of_chance_is_judged_beside_its_neighbours_too():
    assert outcomes([trial(1, 0.1, 2.07), trial(2, 1.0, CHANCE)]) == ["feasible", "collapsed"]
    # but what scatter alone may have done is no learning
    noisy = [trial(1, 0.1, 2.25, 0.5, scatter=0.3), trial(2, 1.0, CHANCE, scatter=0.3)]
    assert outcomes(noisy) == ["feasible", "feasible"]


def test_where_the_objective_was_learned_the_loss_says_nothing():
    assert outcomes([STAR, trial(2, 1.0, CHANCE, value=0.2)]) == ["feasible", "feasible"]


@pytest.mark.parametrize(
    "slower",
    [
        {"settings": {"momentum": 0.0}},
        {"warmup_steps": 100},
        {"clip_norm": 1e-3},
        {"decay": "cosine"},
        {"decay_settings": {"restarts": 2}},
        {"workload_args": {"depth": 2}},
    ],
)
def test_only_shorter_steps_tell_that_steps_are_too_long(slower):
    """A trial with less momentum, more warmup or tighter clipping may be too slow in spite of its
    base LR.
    """
    assert outcomes([STAR, trial(2, 1.0, CHANCE, **slower)]) == ["feasible", "feasible"]
    faster = trial(1, 0.1, 0.2, **slower)
    same = slower.keys() & {"decay", "decay_settings", "workload_args"}
    assert outcomes([faster, HIGH]) == ["feasible", "feasible" if same else "collapsed"]


def test_a_training_that_ended_earlier_is_not_compared():
    assert outcomes([STAR, trial(2, 1.0, CHANCE, steps=200)]) == ["feasible", "feasible"]


def test_other_groups_are_no_neighbours():
    other = replace(STAR, point=replace(STAR.point, batch_size=64))
    assert outcomes([other, HIGH]) == ["feasible", "feasible"]


def test_the_edge_is_where_the_neighbours_place_it():
    (alone,), (seen,) = (
        summarize(trials)
        for trials in ([LOW, STAR, HIGH], judge_beside_neighbours([LOW, STAR, HIGH]))
    )
    assert alone.unstable_base_lr[1] == math.inf
    assert seen.unstable_base_lr == (0.1, 1.0)
    assert seen.infeasible == 1


def test_without_curves_there_is_nothing_to_compare():
    bare = [
        replace(one, curve=replace(one.curve, loss=np.empty(0), grad_norm=np.empty(0)))
        for one in (STAR, HIGH)
    ]
    assert judge_beside_neighbours(bare) == bare


def study_of(**changes):
    document = {
        "workload": "nowhere:to_be_found",
        "objective": "val_error",
        "max_train_steps": STEPS,
        "batch_sizes": [32],
        "sampler": "grid",
        "space": {"optimizer": {"momentum": {"base_lr": [1e-6, 0.1, 1.0], "momentum": 0.9}}},
    }
    return parse_study({**document, **changes}, name="beside", place="beside.toml")


def test_tables_summary_and_report_agree_and_the_store_keeps_the_own_verdict(tmp_path):
    store = create_store(study_of(), tmp_path)
    for one in (LOW, STAR, HIGH):
        tell(store, one)
    store_curves(store, [LOW, STAR, HIGH])
    assert [one.verdict.outcome for one in read_records(store)] == ["feasible"] * 3
    assert [one.verdict.outcome for one in read_trials(store)] == [
        "feasible",
        "feasible",
        "collapsed",
    ]
    write_results(Results.read(store))
    table = (store.folder / "trials.csv").read_text()
    assert table.count("collapsed") == 1
    assert '"infeasible": 1' in (store.folder / "summary.json").read_text()
    assert "2 feasible, 1 infeasible" in write_report(Results.read(store)).read_text()


def test_a_loss_that_is_no_measure_is_not_compared(tmp_path):
    store = create_store(study_of(divergence=False), tmp_path)
    for one in (LOW, STAR, HIGH):
        tell(store, one)
    store_curves(store, [LOW, STAR, HIGH])
    assert [one.verdict.outcome for one in read_trials(store)] == ["feasible"] * 3


def store_curves(store, trials):
    for one in trials:
        write_curve(curve_path(store.folder, one.point), one.curve)
