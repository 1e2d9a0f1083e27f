"""Records survive a round trip, nan and inf included."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tunewright.search.trial import (
    Curve,
    Point,
    Trial,
    Verdict,
    group_of,
)


def test_point_values_name_every_hyperparameter():
    point = Point(3, 32, "adam", 0.1, settings={"beta1": 0.9}, workload_args={"depth": 2})
    assert point.values == {
        "batch_size": 32,
        "optimizer": "adam",
        "base_lr": 0.1,
        "warmup_steps": 0,
        "clip_norm": math.inf,
        "clip_z": math.inf,
        "clip_tensor": math.inf,
        "decay": "constant",
        "seed": 0,
        "beta1": 0.9,
        "depth": 2,
    }
    assert group_of(point, ["depth"]).label == "batch size 32, adam, depth=2"


@pytest.mark.parametrize("name", ["clip_z", "clip_tensor"])
def test_a_point_that_leaves_a_threshold_off_is_shown_and_recorded_as_before_there_was_one(name):
    point = Point(
        3, 32, "adam", 0.1, clip_norm=1.0, settings={"beta1": 0.9}, workload_args={"depth": 2}
    )
    before = {
        "number": 3,
        "batch_size": 32,
        "optimizer": "adam",
        "base_lr": 0.1,
        "warmup_steps": 0,
        "clip_norm": 1.0,
        "decay": "constant",
        "seed": 0,
        "settings": {"beta1": 0.9},
        "workload_args": {"depth": 2},
    }
    assert point.record() == before
    assert list(point.record()) == list(before)
    assert Point(**before) == point
    assert name not in point.shown
    on = replace(point, **{name: 2.5})
    assert Point(**on.record()) == on
    assert on.record() == before | {name: 2.5}
    assert on.shown == {key: on.values[key] for key in on.values if key in {*point.shown, name}}
    assert on.configuration != point.configuration


def test_settings_of_a_decay_are_values_and_part_of_the_record_where_there_are_any():
    point = Point(3, 32, "adam", 0.1, decay="wsd", settings={"beta1": 0.9})
    given = replace(point, decay_settings={"decay_fraction": 0.1})
    assert given.record() == point.record() | {"decay_settings": {"decay_fraction": 0.1}}
    assert Point(**json.loads(json.dumps(given.record()))) == given
    assert given.values == point.values | {"decay_fraction": 0.1}
    assert given.configuration != point.configuration
    assert group_of(given, ["decay_fraction"]).label == "batch size 32, adam, decay_fraction=0.1"


def test_a_configuration_is_a_point_without_its_number_and_seed():
    point = Point(3, 32, "adam", 0.1, settings={"beta1": 0.9}, workload_args={"depth": 2})
    assert replace(point, number=4, seed=1).configuration == point.configuration
    others = [
        replace(point, clip_norm=1.0),
        replace(point, settings={}),
        replace(point, workload_args={"depth": 3}),
    ]
    assert all(other.configuration != point.configuration for other in others)


def example(values=(1.0, math.nan, 0.5)):
    loss = np.array([2.0, math.inf, math.nan, 0.25])
    curve = Curve(
        loss, np.array([1.0, 3.0, 5.0, 2.0]), np.arange(3), {"v": np.array(values)}, 10, math.nan
    )
    point = Point(0, 8, "sgd", 0.1, clip_norm=2.0)
    return Trial.from_curve(
        point, Verdict("feasible", "none", math.inf, "because"), curve, "v", 1.5
    )


def test_scalars_come_from_the_finite_part_of_the_curve():
    trial = example()
    assert (trial.best_value, trial.best_step, trial.initial_value) == (0.5, 2, 1.0)
    assert trial.last_loss == 0.25
    # 3 and 5 exceed 2; a norm equal to the threshold is not clipped
    assert trial.clip_fraction == 0.5
    nothing = example(values=(math.nan, math.nan, math.nan))
    assert (nothing.best_value, nothing.best_step) == (math.inf, 0)


def test_clipped_by_either_threshold_counts_once():
    norms = np.where(np.arange(400) % 2, 1.0, 1.1)
    norms[[3, 200, 300]] = 5.0, 5.0, 2.0  # the first updates are clipped by clip_norm alone
    curve = Curve(norms, norms, np.arange(1), {"v": np.ones(1)}, 400, math.nan)
    verdict = Verdict("feasible", "none", math.inf, "because")
    shares = [
        Trial.from_curve(
            Point(0, 8, "sgd", 0.1, clip_norm=clip_norm, clip_z=clip_z), verdict, curve, "v", 1.0
        ).clip_fraction
        for clip_norm in (math.inf, 3.0)
        for clip_z in (math.inf, 4.0)
    ]
    assert shares == [0.0, 2 / 400, 2 / 400, 3 / 400]


def test_what_each_tensor_was_clipped_counts_beside_the_global_norm():
    norms = np.array([1.0, 3.0, 1.0, 3.0])
    shares = np.array([0.0, 0.5, 0.25, 0.0])
    curve = Curve(norms, norms, np.arange(1), {"v": np.ones(1)}, 4, tensors_clipped=shares)
    assert curve.clipped(math.inf, math.inf).tolist() == shares.tolist()
    assert curve.clipped(2.0, math.inf).tolist() == [0.0, 1.0, 0.25, 1.0]  # of all tensors, or none
    verdict = Verdict("feasible", "none", math.inf, "because")
    point = Point(0, 8, "sgd", 0.1, clip_norm=2.0, clip_tensor=1.05)
    assert Trial.from_curve(point, verdict, curve, "v", 1.0).clip_fraction == 2.25 / 4


def test_a_curve_has_the_arrays_it_had_before_there_were_shares_of_tensors():
    curve = example().curve
    assert "tensors_clipped" not in curve.arrays()
    shares = replace(curve, tensors_clipped=np.zeros(4))
    assert Curve.from_arrays(shares.arrays()) == shares != curve


def test_record_and_curve_round_trip():
    trial = example()
    record = json.loads(json.dumps(trial.record()))
    arrays = trial.curve.arrays()
    assert Trial.from_record(record, Curve.from_arrays(arrays)) == trial
    failed = Trial.from_crash(trial.point, "RuntimeError: no", "Traceback …")
    again = Trial.from_record(json.loads(json.dumps(failed.record())), failed.curve)
    assert again.verdict.crashed
    assert again.traceback == "Traceback …"


def test_curves_differ_if_any_array_does():
    trial = example()
    arrays = trial.curve.arrays()
    assert Curve.from_arrays(arrays | {"loss": arrays["loss"] + 1}) != trial.curve
    assert Curve.from_arrays(arrays | {"total_steps": np.array(11)}) != trial.curve


def test_a_curve_of_a_log_survives_a_round_trip_with_its_steps(tmp_path):
    from tunewright.search.store.files import read_curve, write_curve

    steps = np.array([0, 50, 100, 150])
    curve = Curve(np.ones(4), np.empty(0), np.array([160]), {"v": np.ones(1)}, 400, 2.3, steps)
    write_curve(tmp_path / "curve.npz", curve)
    assert read_curve(tmp_path / "curve.npz") == curve
    assert curve != replace(curve, loss_step=None)
    assert "loss_step" not in replace(curve, loss_step=None).arrays()


def test_a_curve_of_a_log_counts_losses_and_says_steps():
    curve = Curve(
        np.ones(4), np.empty(0), np.empty(0), {}, 400, loss_step=np.array([49, 99, 149, 199])
    )
    assert curve.planned_losses == 8
    assert [curve.losses_before(step) for step in (0, 49, 50, 100, 1000)] == [0, 0, 1, 2, 4]
    assert [curve.step_of(place) for place in (0, 3, 4)] == [49, 199, 199]
    every = replace(curve, loss_step=None)
    assert (every.planned_losses, every.losses_before(7), every.step_of(3)) == (400, 7, 3)
