"""Logs of trainings that went back, wrote a step twice, or wrote rows in no order."""

import numpy as np
import pytest
from logged import LOSS, csv_of, json_lines_of

from tunewright.search.logs.log import read_log

GOES_ON = [*range(80), *range(50, 100)]  # stopped at 79, resumed from a checkpoint at 50


def read(tmp_path, steps, losses):
    return read_log(csv_of(tmp_path / "log.csv", {"step": steps, "loss": losses}))


def test_after_a_restart_what_came_later_counts(tmp_path):
    first, second = [1.0] * 80, [2.0] * 50
    log = read(tmp_path, GOES_ON, first + second)
    assert log.step.tolist() == list(range(100))
    assert log.loss.tolist() == [1.0] * 50 + [2.0] * 50
    assert log.notes[0] == "Training went back once, to step 50: what was logged later counts."


def test_a_restart_at_other_steps_leaves_nothing_of_the_run_that_was_stopped(tmp_path):
    steps = [*range(0, 80, 10), *range(45, 95, 10)]
    log = read(tmp_path, steps, [1.0] * 8 + [2.0] * 5)
    assert log.step.tolist() == [0, 10, 20, 30, 40, 45, 55, 65, 75, 85]
    assert log.loss.tolist() == [1.0] * 5 + [2.0] * 5


def test_a_restart_that_ends_before_the_stopped_run_did(tmp_path):
    log = read(tmp_path, [*range(80), *range(50, 60)], [1.0] * 80 + [2.0] * 10)
    assert log.step.tolist() == list(range(60))
    assert log.loss[-1] == 2.0
    assert log.total_steps == 59


def test_evaluations_of_the_stopped_run_are_left_out_and_the_checkpoints_own_is_kept(tmp_path):
    records = [{"step": step, "loss": 1.0} for step in range(80)]
    records += [{"step": step, "val_loss": float(step)} for step in (25, 50, 75)]
    records += [{"step": step, "loss": 2.0} for step in range(50, 60)]
    log = read_log(json_lines_of(tmp_path / "log.jsonl", records))
    assert log.metrics["val_loss"][0].tolist() == [25, 50]


def test_a_run_that_began_again_in_the_same_file(tmp_path):
    log = read(tmp_path, [*range(80), *range(30)], [1.0] * 80 + [2.0] * 30)
    assert log.loss.tolist() == [2.0] * 30
    assert "to step 0: what was logged later counts" in log.notes[0]


def test_several_restarts(tmp_path):
    steps = [*range(40), *range(30, 50), *range(20, 60), *range(55, 70)]
    values = [1.0] * 40 + [2.0] * 20 + [3.0] * 40 + [4.0] * 15
    log = read(tmp_path, steps, values)
    assert log.step.tolist() == list(range(70))
    assert log.loss.tolist() == [1.0] * 20 + [3.0] * 35 + [4.0] * 15
    assert log.notes[0].startswith("Training went back 3 times, to step 30 at the first: ")


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_rows_in_no_order_are_sorted(tmp_path, order):
    places = (
        np.arange(200)[::-1] if order == "reversed" else np.random.default_rng(1).permutation(200)
    )
    log = read(tmp_path, places, LOSS[places])
    np.testing.assert_array_equal(log.step, np.arange(200))
    np.testing.assert_array_equal(log.loss, LOSS)
    assert log.notes[0] == "The rows are not in the order of their steps: they were sorted."


def test_two_rows_that_changed_places_are_no_restart(tmp_path):
    places = np.arange(200)
    places[[70, 71]] = places[[71, 70]]
    log = read(tmp_path, places, LOSS[places])
    np.testing.assert_array_equal(log.loss, LOSS)
    assert not any("step" in note for note in log.notes)


def test_of_a_step_that_was_logged_twice_the_later_counts(tmp_path):
    log = read(tmp_path, [0, 1, 1, 2, 2, 2, 3], [9, 8, 7, 6, 5, 4, 3])
    assert log.step.tolist() == [0, 1, 2, 3]
    assert log.loss.tolist() == [9, 7, 4, 3]
    assert log.notes[0] == "3 losses give way to a later one of the same step."


def test_a_restart_does_not_make_an_onset(tmp_path):
    """The loss of the stopped run had blown up; the run that went on did not."""
    from tunewright.search.judge.verdict import judge

    stopped = LOSS[:120].copy()
    stopped[100:] = np.nan
    log = read(tmp_path, [*range(120), *range(80, 200)], [*stopped, *LOSS[80:]])
    assert judge(log.curve()).evidence.startswith("stable")


@pytest.mark.parametrize(("every", "first"), [(1, 0), (1, 1), (5, 0), (10, 9)])
def test_steps_that_begin_anew_with_each_epoch_are_counted_on(tmp_path, every, first):
    length = 50
    records = [
        {"epoch": epoch, "step": step, "loss": float(LOSS[epoch])}
        for epoch in range(4)
        for step in range(first, length, every)
    ]
    log = read_log(json_lines_of(tmp_path / "log.jsonl", records))
    assert log.step.tolist() == [first + every * place for place in range(len(records))]
    note = "Steps begin anew with each epoch: they are counted on from one to the next."
    assert log.notes[0] == note


def test_a_restart_within_an_epoch_is_one(tmp_path):
    steps = [*range(60), *range(30, 100)]
    path = csv_of(
        tmp_path / "log.csv",
        {"epoch": [step // 50 for step in steps], "step": steps, "loss": [1.0] * 130},
    )
    log = read_log(path)
    assert log.step.tolist() == list(range(100))
    assert log.notes[0].startswith("Training went back once, to step 30")
