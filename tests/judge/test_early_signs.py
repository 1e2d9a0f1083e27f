"""Early signs on curves whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tunewright.search.judge.early_signs import ATTENTION_LOGIT, attention_sign, early_signs
from tunewright.search.trial import SPIKE_WINDOW, Curve, Point, Trial, Verdict

UPDATES = 1128


def trial(loss, logits=(), outcome="feasible", onset=math.inf, number=0, near_epsilon=math.nan):
    evaluations = len(logits)
    curve = Curve(
        loss=np.asarray(loss, float),
        grad_norm=np.ones(len(loss)),
        eval_step=np.arange(evaluations) * 100,
        metrics={ATTENTION_LOGIT: np.asarray(logits, float)} if evaluations else {},
        total_steps=len(loss),
    )
    point = Point(number, 32, "adam", 0.1 * (1 + number))
    verdict = Verdict(outcome, "none" if math.isinf(onset) else "mid_training", onset, "")
    found = Trial.from_curve(point, verdict, curve, "val_loss", 1.0)
    return replace(found, near_epsilon=near_epsilon)


def noise(seed=0, updates=UPDATES):
    return np.random.default_rng(seed).normal(2.0, 0.1, updates)


def with_spikes(places, height=10.0):
    loss = noise()
    loss[list(places)] += height
    return loss


def test_the_spike_score_is_the_share_of_losses_that_have_a_window_and_spike():
    places = [300, 600, 900]
    curve = trial(with_spikes(places)).curve
    assert curve.spikes.tolist() == places
    assert curve.spike_score == 3 / (UPDATES - SPIKE_WINDOW)


def test_it_is_written_down_as_its_definition_says():
    loss = with_spikes([200, 210, 400], height=0.75) + np.linspace(1, 0, UPDATES)
    plain = [
        t
        for t in range(SPIKE_WINDOW, len(loss))
        if loss[t] > loss[t - SPIKE_WINDOW : t].mean() + 6 * loss[t - SPIKE_WINDOW : t].std()
    ]
    assert plain
    assert trial(loss).curve.spikes.tolist() == plain


def test_windows_reach_over_the_blocks_that_are_looked_at_together():
    loss = noise(updates=12_000)
    places = [127, 128, 4223, 4224, 4225, 11_999]
    loss[places] += np.array([0, 5, 5, 50, 500, 5])
    assert trial(loss).curve.spikes.tolist() == places[1:]


def test_a_spike_hides_those_in_its_window_that_are_not_far_above_it():
    loss = with_spikes([300])
    loss[350] += 3
    assert trial(loss).curve.spikes.tolist() == [300]
    loss[300] -= 10
    assert trial(loss).curve.spikes.tolist() == [350]


@pytest.mark.parametrize("seed", range(5))
def test_normal_noise_and_a_falling_loss_do_not_spike(seed):
    assert trial(noise(seed)).spike_score == 0
    assert trial(noise(seed) + np.linspace(3, 0, UPDATES)).spike_score == 0


@pytest.mark.parametrize("loss", [np.empty(0), np.ones(SPIKE_WINDOW)])
def test_a_short_curve_has_no_score(loss):
    assert math.isnan(trial(loss).spike_score)
    assert not early_signs(trial(loss))


def test_equal_losses_and_losses_that_overflow_are_no_spikes_and_no_warning():
    level = np.ones(300)
    level[200:] = 1.0 + 1e-12
    assert trial(level).spike_score == 0
    with np.errstate(all="raise"):
        assert trial(np.geomspace(1, 1e300, 300)).spike_score >= 0


def test_spikes_are_told_where_they_are_more_than_one_or_two():
    (told,) = early_signs(trial(with_spikes([300, 600, 900])))
    assert "spiked 3 times, first at step 300: spike score 0.30%" in told
    assert not early_signs(trial(with_spikes([300, 600])))


def test_epsilon_is_told_where_it_outweighs_many_second_moments():
    (told,) = early_signs(trial(noise(), near_epsilon=0.4))
    assert told == (
        "at the end √v of 40% of the parameters was below 10 ε: adam is nearly SGD there. Lower "
        "epsilon"
    )
    for few in (0.05, 0.0, math.nan):
        assert not early_signs(trial(noise(), near_epsilon=few))


def test_an_attention_logit_that_grows_before_a_blow_up_is_told():
    sound = trial(noise(), [3, 20, 90])
    grown = trial(noise(), [3, 5e3, 2e4, 1e9], "diverged", onset=250, number=1)
    higher = trial(noise(), [3, 3e4, 2e4], "diverged", onset=150, number=2)
    told = attention_sign([sound, higher, grown])
    assert told == (
        "the largest attention logit of 2 trainings, of which 2 did not train, passed 10,000 "
        "before any blow-up: trial 1, base_lr 0.2, had 20000 at step 200, and blew up at step 250. "
        "Query-key normalization bounds it"
    )


def test_one_that_grows_only_after_a_blow_up_or_is_not_returned_is_no_sign():
    after = trial(noise(), [3, 5e3, 2e4, 1e9], "diverged", onset=150)
    assert attention_sign([after, trial(noise(), [3, 1e4]), trial(noise())]) == ""


def test_a_training_that_goes_on_above_the_bound_is_told_without_a_blow_up():
    told = attention_sign([trial(noise(), [3, math.inf])])
    assert "attention logit of a training passed 10,000 before any blow-up: trial 0" in told
    assert "blew up at" not in told
