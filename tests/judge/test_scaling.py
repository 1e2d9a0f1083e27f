"""Scaling of whole sweeps: its answer, what it says where little is known, its record."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
import scaled

from tunewright.search.judge.scaled import told
from tunewright.search.judge.scaling import Scaling, scalings
from tunewright.search.judge.trends import trend
from tunewright.search.trial import Trial


def only(trials: Sequence[Trial], **more: object) -> Scaling:
    (one,) = scalings(trials, "val_error", **more)  # type: ignore[arg-type]
    return one


@pytest.fixture(scope="module")
def whole() -> Scaling:
    return only(scaled.Scaled().trials(), predict=(64, 4096))


def test_the_answer_of_a_square_root_with_a_knee(whole: Scaling) -> None:
    assert whole.exponent is not None
    assert whole.exponent.interval[0] < 0.5 < whole.exponent.interval[1]
    assert whole.exponent.excluded == (0.0, 1.0)
    assert "√B" not in whole.exponent.words
    assert "a constant base LR and linear are excluded" in whole.exponent.words
    assert whole.settles == ""
    assert whole.sentence.startswith("doubling the batch size: multiply base_lr by 1.4")
    assert "up to about B = " in whole.sentence
    assert whole.sentence.endswith(", no longer beyond")
    assert whole.notes == ("one seed: noise is what values scatter around a smooth curve",)


def test_the_edge_is_a_decade_above_and_scales_likewise(whole: Scaling) -> None:
    for one in whole.sizes:
        low, high = one.edge
        edge = 10 ** (scaled.SQUARE_ROOT(math.log10(one.batch_size)) + 1)
        assert low < edge < high or (math.isinf(high) and low < edge)
    assert whole.edge is not None
    assert whole.edge.interval[0] < 0.5 < whole.edge.interval[1]


def test_predictions_hold_the_truth_and_say_where_they_extrapolate(whole: Scaling) -> None:
    near, far = whole.predictions
    for one in (near, far):
        truth = 10 ** scaled.SQUARE_ROOT(math.log10(one.batch_size))
        assert one.interval[0] < truth < one.interval[1]
        assert math.fsum(weight for _, weight in one.rests_on) == pytest.approx(1, abs=0.01)
    assert (near.extrapolated, far.extrapolated) == (False, True)
    assert far.interval[1] / far.interval[0] > near.interval[1] / near.interval[0]


def test_bands_run_from_the_smallest_to_the_largest_batch_size(whole: Scaling) -> None:
    for band in (whole.optimum_band, whole.edge_band):
        assert band[0].batch_size == pytest.approx(8)
        assert band[-1].batch_size == pytest.approx(512)
        assert all(one.interval[0] < one.base_lr < one.interval[1] for one in band)


def test_the_record_is_plain_and_complete(whole: Scaling) -> None:
    record = json.loads(json.dumps(asdict(told(whole))))
    assert record["sentence"] == whole.sentence
    assert [one["batch_size"] for one in record["sizes"]] == list(scaled.SIZES)
    assert record["sizes"][0]["optimum"]["where"] == "inside"
    assert {law["name"] for law in record["laws"]} == {"constant", "power", "saturating", "surge"}
    assert record["targets"]["critical"] == whole.targets.critical  # type: ignore[union-attr]
    assert {one["law"] for one in record["left_out"]} >= {"averaged", "power"}
    assert len(record["trends"]) == 4


def test_groups_are_optimizers_and_scientific_values() -> None:
    trials = scaled.Scaled().trials((8, 64))
    other = [
        replace(one, point=replace(one.point, optimizer="adam", settings={"beta1": 0.5}))
        for one in trials
    ]
    found = scalings([*trials, *other], "val_error")
    assert [one.label for one in found] == ["adam", "momentum"]
    both = [
        replace(one, point=replace(one.point, settings={"momentum": value}))
        for one in trials
        for value in (0.9, 0.5)
    ]
    named = scalings(both, "val_error", scientific=["momentum"])
    assert [one.label for one in named] == ["momentum, momentum=0.5", "momentum, momentum=0.9"]


def test_a_law_that_is_no_power_law_is_told_by_its_first_and_last_doubling() -> None:
    model = scaled.Scaled(law=scaled.saturating(), noise=0.001, critical=1e5, fewest=0.5)
    one = only(model.trials())
    first = float(one.sentence.split("by ")[1].split(" ")[0])
    last = float(one.sentence.split("by ")[2].split(" ")[0])
    assert 1.6 < first < 2
    assert 1.0 < last < 1.3
    assert "at B = 8, by" in one.sentence


def test_too_little_to_tell_says_what_would() -> None:
    one = only(scaled.Scaled(noise=0.06, count=10).trials((16, 32, 64), seed=3))
    assert one.exponent is not None
    assert len(one.exponent.possible) >= 2
    assert one.settles.startswith("these data cannot tell")
    assert one.settles.endswith("would")


def test_the_trainings_that_would_tell_follow_from_the_error_budget() -> None:
    """SE(p) = σ / (√n sd(log10 B)): four times as many where the noise is twice as much."""
    needed = []
    for noise in (0.04, 0.08):
        counts = []
        for seed in range(12):
            model = scaled.Scaled(noise=noise, count=12, edge=9)
            words = only(model.trials((16, 32, 64), seed=seed)).settles
            if "about" in words:
                counts.append(int(words.split("about ")[1].split(" ")[0]))
        needed.append(float(np.median(counts)))
    assert 2 < needed[1] / needed[0] < 8


# --- little to say --------------------------------------------------------------------------------


def test_one_batch_size_has_no_law() -> None:
    one = only(scaled.Scaled().trials((64,)), predict=(128,))
    assert one.compared is None
    assert one.exponent is None
    assert one.predictions == ()
    assert one.sentence == "no law of the batch size: fewer than two batch sizes have an optimum"
    assert "a law needs 3" in one.notes[0]
    json.dumps(asdict(told(one)))


def test_two_batch_sizes_show_a_ratio() -> None:
    one = only(scaled.Scaled().trials((8, 512)))
    assert one.exponent is not None
    assert one.exponent.interval[0] < 0.5 < one.exponent.interval[1]
    assert one.left_out == ()
    assert all(math.isnan(law.weight) for law in one.laws)
    assert "2 batch sizes show a ratio at most" in one.notes[0]
    assert all(each.answer == "unknown" for each in one.trends)


def test_a_batch_size_that_does_not_train_is_named_and_left_out() -> None:
    trials = scaled.Scaled().trials()
    trials = [scaled.failed(one) if one.point.batch_size == 512 else one for one in trials]
    one = only(trials)
    assert "B = 512: no base LR trains, and a smooth curve needs 5" in one.notes
    assert one.exponent is not None
    assert one.exponent.excluded == (0.0, 1.0)
    last = one.sizes[-1]
    assert last.edge[0] == 0
    assert math.isinf(last.summary.best_value)


def test_an_optimum_at_the_border_is_a_bound_that_does_not_bend_the_law() -> None:
    trials = scaled.Scaled(count=24).trials()
    highest = 10 ** (scaled.SQUARE_ROOT(math.log10(512)) - 0.3)
    cut = [one for one in trials if one.point.batch_size < 512 or one.point.base_lr < highest]
    one = only(cut)
    assert one.sizes[-1].optimum.where == "above"
    assert any("B = 512" in note and "a bound" in note for note in one.notes)
    assert one.exponent is not None
    assert one.exponent.interval[0] < 0.5 < one.exponent.interval[1]
    assert 512 not in {each.batch_size for each in one.left_out}


def test_trainings_of_different_length_and_other_hyperparameters_are_named() -> None:
    trials = [
        replace(one, curve=replace(one.curve, total_steps=8000 // one.point.batch_size))
        for one in scaled.Scaled().trials((8, 64, 512))
    ]
    trials = [
        replace(one, point=replace(one.point, warmup_steps=10 * (one.point.number % 2)))
        for one in trials
    ]
    notes = only(trials).notes
    assert any("1000 at B = 8, 125 at B = 64, 15 at B = 512" in note for note in notes)
    assert "the optimum is that of the average over warmup_steps" in notes


def test_several_seeds_are_not_called_one() -> None:
    assert not any("one seed" in note for note in only(scaled.Scaled(seeds=2).trials()).notes)


# --- trends ---------------------------------------------------------------------------------------


def test_a_trend_is_students_line() -> None:
    values = {8: 1.0, 80: 2.1, 800: 2.9}
    found = trend("usable decades", values)
    assert found.slope == pytest.approx(0.95)
    error = math.sqrt((0.05**2 + 0.1**2 + 0.05**2) / 1 / 2)
    assert found.interval[1] - found.slope == pytest.approx(12.706 * error, rel=1e-4)
    assert found.answer == "not shown"
    assert "no change with the batch size is shown" in found.words
    clear = trend("usable decades", {8: 1.0, 80: 2.01, 800: 3.0, 8000: 4.0})
    assert clear.answer == "rises"
    assert clear.words.startswith("usable decades: rises with the batch size")
    assert trend("x", {8: 3.0, 80: 2.0, 800: 1.0, 8000: 0.01}).answer == "falls"


def test_values_that_are_not_known_are_left_out_of_a_trend() -> None:
    found = trend("headroom", {8: math.inf, 16: 1.0, 32: math.nan, 64: 2.0})
    assert found.values == ((16, 1.0), (64, 2.0))
    assert found.answer == "unknown"
    assert "fewer than 3" in found.words
