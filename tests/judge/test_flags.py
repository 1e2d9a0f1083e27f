import math
from dataclasses import replace

import numpy as np

from tunewright.search.judge.flags import checkpoint_note, curve_flags, shape
from tunewright.search.trial import (
    Array,
    Curve,
    Point,
    Trial,
    Verdict,
)

POINT = Point(number=0, batch_size=32, optimizer="momentum", base_lr=0.1)
STEPS, EVALUATIONS = 1000, 51
STABLE = Verdict("feasible", "none", math.inf, "")
DECLINE = np.exp(-np.linspace(0, 8, EVALUATIONS))  # from 1 to 0.0003: flat well before the end


def run(values: Array, loss: Array | None = None, verdict: Verdict = STABLE) -> Trial:
    loss = np.exp(-np.linspace(0, 4, STEPS)) if loss is None else loss
    steps = np.linspace(0, STEPS, len(values)).astype(np.int64)
    curve = Curve(loss, np.ones(len(loss)), steps, {"val_error": values}, STEPS)
    return Trial.from_curve(POINT, verdict, curve, "val_error", seconds=1.0)


def names(trial: Trial) -> list[str]:
    return [flag.name for flag in curve_flags(trial, "val_error")]


def three_of(trial: Trial) -> list[Trial]:
    """The same curve at three learning rates."""
    return [replace(trial, point=replace(trial.point, base_lr=lr)) for lr in (0.1, 0.2, 0.3)]


def noise(scale: float, count: int = EVALUATIONS, seed: int = 1) -> Array:
    return scale * np.random.default_rng(seed).standard_normal(count)


def test_a_curve_that_is_still_falling_is_still_improving() -> None:
    assert names(run(np.linspace(1, 0.5, EVALUATIONS))) == ["still improving"]


def test_a_flat_end_is_saturated() -> None:
    assert names(run(np.exp(-np.linspace(0, 20, EVALUATIONS)))) == ["saturated"]


def test_a_rising_end_is_overfitting() -> None:
    flags = curve_flags(run(DECLINE + np.linspace(-0.2, 0.2, EVALUATIONS).clip(0)), "val_error")
    assert [flag.name for flag in flags] == ["overfitting", "saturated"]
    assert flags[0].sentence.endswith("overfitting (S6)")


def test_jumps_at_the_end_are_late_variance() -> None:
    assert "late variance" in names(run(DECLINE + noise(0.1)))
    assert "late variance" not in names(run(DECLINE + noise(0.01)))


def test_noise_alone_is_hardly_ever_a_rise_or_a_fall() -> None:
    level = np.concatenate([[2.0], np.ones(EVALUATIONS - 1)])
    flags = [name for seed in range(100) for name in names(run(level + noise(0.01, seed=seed)))]
    assert flags.count("overfitting") + flags.count("still improving") <= 2


def test_a_training_loss_that_rises_again_is_flagged() -> None:
    loss = np.concatenate([np.linspace(2.0, 0.5, 800), np.linspace(0.5, 0.8, 200)]) + noise(
        0.05, STEPS
    )
    assert "training loss rising" in names(run(DECLINE, loss))
    assert "training loss rising" not in names(
        run(DECLINE, np.linspace(2.0, 0.5, STEPS) + noise(0.05, STEPS))
    )


def test_a_training_loss_of_other_weights_than_the_average_may_rise() -> None:
    trial = run(DECLINE, np.concatenate([np.linspace(2.0, 0.5, 800), np.linspace(0.5, 0.8, 200)]))
    assert "training loss rising" in names(trial)
    averaged = replace(trial, point=replace(POINT, optimizer="schedule_free_adamw"))
    assert names(averaged) == [name for name in names(trial) if name != "training loss rising"]


def test_only_feasible_trials_with_a_curve_are_flagged() -> None:
    assert names(run(np.linspace(1, 0.5, 51), verdict=Verdict("diverged", "early", 3, ""))) == []
    assert names(Trial.from_crash(POINT, "out of memory")) == []


def test_too_few_values_or_no_improvement_have_no_shape() -> None:
    assert math.isnan(shape(np.linspace(1, 0, 5)).improvement)
    assert math.isnan(shape(np.linspace(0, 1, 50)).improvement)
    assert names(run(np.linspace(0, 1, 50))) == []


def test_non_finite_values_are_left_out_of_the_shape() -> None:
    values = DECLINE.copy()
    values[10] = math.inf
    assert shape(values) == shape(np.delete(DECLINE, 10))


def test_a_best_checkpoint_in_the_first_tenth_means_far_too_long() -> None:
    values = np.ones(EVALUATIONS)
    values[5] = 0.1
    assert checkpoint_note([run(values)], "val_error").endswith(
        "max_train_steps is far too large (S8)"
    )


def test_best_checkpoints_in_the_last_quarter_mean_too_short() -> None:
    late = run(np.linspace(1, 0.5, EVALUATIONS))
    assert checkpoint_note(three_of(late), "val_error").endswith(
        "train longer and retune the decay (S8)"
    )
    assert checkpoint_note([late], "val_error") == ""  # one is not "consistently"


def test_a_saturated_run_is_not_told_to_train_longer() -> None:
    flat = run(np.exp(-np.linspace(0, 20, EVALUATIONS)))
    assert flat.best_step == STEPS
    assert checkpoint_note(three_of(flat), "val_error") == ""


def test_without_curves_there_is_no_note() -> None:
    assert checkpoint_note([Trial.from_crash(POINT, "killed")], "val_error") == ""
