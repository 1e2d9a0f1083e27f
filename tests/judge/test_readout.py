import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scripted import curve_of, healthy

from tunewright.search.judge.readout import norm_percentile, read_out
from tunewright.search.judge.verdict import judge
from tunewright.search.trial import SPIKE_WINDOW, Array, Curve, Verdict

STABLE = Verdict("feasible", "none", math.inf, "stable: loss 2 to 0.1")
STEPS = 1000


def curve(norms: Array) -> Curve:
    loss = np.geomspace(2.0, 0.1, STEPS)
    return Curve(loss, norms, np.array([0]), {}, STEPS)


def noisy_norms(seed: int = 0) -> Array:
    return np.exp(0.3 * np.random.default_rng(seed).standard_normal(STEPS))


def test_a_stable_run_that_nothing_clips_is_told_where_a_threshold_starts():
    norms = noisy_norms()
    found = read_out(curve(norms), STABLE)
    assert found.headline == "feasible, no instability"
    assert found.clip_start == np.percentile(norms, 90)
    assert math.isnan(found.clip_fraction)
    assert found.sentences == (
        "feasible, no instability: stable: loss 2 to 0.1.",
        f"The 90th percentile of the gradient norms is {found.clip_start:.3g}: a clip threshold "
        "starts there (R16).",
    )


@pytest.mark.parametrize(("share", "too_much"), [(0.12, False), (0.5, False), (0.83, True)])
def test_the_share_of_updates_that_clipping_acts_on(share, too_much):
    norms = np.where(np.arange(STEPS) < share * STEPS, 2.0, 0.5) * noisy_norms() ** 0.01
    found = read_out(curve(norms), STABLE, clip_norm=1.0)
    assert found.clip_fraction == share
    said = f"Clipping acts on {share:.0%} of the updates: "
    said += "it is a learning rate." if too_much else "no more than half (R17)."
    assert sum(sentence.startswith(said) for sentence in found.sentences) == 1
    assert found.clips_too_much == too_much


def test_a_threshold_that_follows_the_norms_clips_what_training_clipped():
    norms = noisy_norms()
    norms[500] = 100.0
    found = read_out(curve(norms), STABLE, clip_z=10.0)
    assert found.clip_fraction == 1 / STEPS


def test_norms_that_were_clipped_before_they_were_seen():
    """As torch clips: the norm that is left is λ · norm / (norm + 1e-6)."""
    norms = 1.0 + 4.0 * noisy_norms()
    found = read_out(curve(norms / (norms + 1e-6)), STABLE)
    assert found.seen_clipped == pytest.approx(1.0, abs=1e-5)
    assert found.clip_fraction == 1.0
    assert math.isnan(found.clip_start)
    (said,) = (one for one in found.sentences if "before it was seen" in one)
    assert said.startswith("The norm is 1.000 at every step: it was clipped before it was seen.")
    assert any("acts on 100% of the updates: it is a learning rate" in s for s in found.sentences)
    assert not any("percentile" in sentence for sentence in found.sentences)


def test_norms_of_which_some_were_clipped_before_they_were_seen():
    norms = noisy_norms()
    share = float(np.mean(norms > 1.2))
    for clip_norm in (math.inf, 1.2):  # known, the threshold is at the norms and never below them
        found = read_out(curve(np.minimum(norms, 1.2)), STABLE, clip_norm)
        assert found.clip_fraction == share
        (said,) = (one for one in found.sentences if "before it was seen" in one)
        assert said.startswith(f"The norm is 1.200 at {share:.0%} of the steps, and never above it")


@pytest.mark.parametrize("seed", range(20))
def test_norms_that_nobody_clipped_are_not_said_to_be(seed):
    assert math.isnan(read_out(curve(noisy_norms(seed)), STABLE).seen_clipped)


def test_norms_of_few_digits_are_not_said_to_be_clipped():
    norms = np.round(0.05 * noisy_norms(), 2)
    assert np.mean(norms == norms.max()) < 0.05
    few = np.minimum(norms, 0.1) + 0.01 * (norms > 0.06)
    for own in (norms, np.round(norms, 1), np.tile([0.1, 0.2, 0.3], 100), few):
        assert math.isnan(read_out(curve(own), STABLE).seen_clipped)


def test_norms_above_a_known_threshold_were_seen_before_it_clipped_them():
    norms = np.where(np.arange(STEPS) < 140, 1.9, noisy_norms().clip(max=1.8))
    found = read_out(curve(norms), STABLE, clip_norm=1.2)
    assert math.isnan(found.seen_clipped)
    assert found.clip_fraction == np.mean(norms > 1.2)


def test_a_vanished_gradient_is_not_clipped():
    assert math.isnan(read_out(curve(np.zeros(STEPS)), STABLE).seen_clipped)


def test_the_threshold_of_a_run_that_blew_up_is_of_the_norms_before():
    sound = noisy_norms()
    norms = np.where(np.arange(STEPS) < 700, sound, 1e6 * sound)
    verdict = Verdict("diverged", "mid_training", 700, "loss far above its start since step 700")
    found = read_out(curve(norms), verdict)
    assert found.clip_start == np.percentile(sound[:700], 90)
    assert found.sentences[0] == (
        "diverged, mid-training instability since step 700: loss far above its start since step "
        "700."
    )
    assert "90th percentile of the gradient norms before step 700 is" in found.sentences[1]


def test_a_run_that_blew_up_at_once_has_no_norms_to_start_from():
    verdict = Verdict("diverged", "early", 5, "loss far above its start since step 5")
    found = read_out(curve(noisy_norms()), verdict)
    assert math.isnan(found.clip_start)
    assert "take them from a run at a lower learning rate (R16)" in found.sentences[-1]


def test_a_stable_run_with_few_norms_is_sent_to_no_lower_learning_rate():
    for norms in (np.ones(5), np.zeros(STEPS)):
        said = read_out(curve(norms), STABLE).sentences[-1]
        assert said.startswith("Too few gradient norms above 0 are there")


def test_a_blow_up_that_training_recovered_from():
    verdict = Verdict("feasible", "early", 12, "blew up at step 12 to 9, ended at 0.1")
    found = read_out(curve(noisy_norms()), verdict)
    assert found.headline == "feasible, early instability at step 12"


def test_without_norms_nothing_is_said_of_clipping():
    found = read_out(curve(np.empty(0)), STABLE, clip_norm=1.0)
    assert found.norms == 0
    assert math.isnan(found.clip_fraction)
    assert found.sentences[1].startswith("No gradient norms are there")


def test_a_record_is_strict_json():
    own = healthy("cross-entropy", "normal", 0, True)
    for norms in (own.grad_norm, np.empty(0), np.full(len(own.loss), math.nan)):
        read = Curve(own.loss, norms, own.eval_step, own.metrics, own.total_steps)
        record = read_out(read, judge(read)).record()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["onset_step"] is None or record["onset_step"] >= 0


def test_a_percentile_is_of_norms_above_0_that_are_finite():
    norms = np.array([0.0, 1.0, 2.0, 3.0, math.inf, math.nan])
    assert norm_percentile(norms, 50) == 2.0
    assert math.isnan(norm_percentile(np.zeros(3)))


@pytest.mark.parametrize("growth", [1.05, 1.5, 4.0])
def test_norms_of_a_loss_that_explodes_until_it_is_nan_give_no_threshold(growth):
    """Those before it began to grow do."""
    sound = np.full(200, 1.0) + 0.1 * np.random.default_rng(0).standard_normal(200)
    blown = growth ** np.arange(1, math.floor(80 / math.log(growth)))
    loss = np.concatenate([sound, blown, [np.nan]])
    curve = curve_of(loss, grad_norm=np.abs(loss))
    found = read_out(curve, judge(curve))
    assert found.verdict.outcome == "non_finite"
    assert found.clip_start == pytest.approx(np.percentile(sound, 90), rel=0.1)


def test_norms_that_are_logged_more_rarely_are_those_of_the_same_updates():
    sound = 1.0 + 0.1 * np.random.default_rng(0).standard_normal(500)
    loss = np.concatenate([sound, 1.3 ** np.arange(1, 200), [np.nan]])
    rarely = np.arange(0, len(loss), 10)
    curve = replace(curve_of(loss), grad_norm=np.abs(loss[rarely]))
    found = read_out(curve, judge(curve_of(loss)), norm_step=rarely)
    assert found.verdict.outcome == "non_finite"
    assert found.clip_start == pytest.approx(np.percentile(sound, 90), rel=0.1)


def test_spikes_are_told_at_the_steps_of_a_log():
    loss = 1.0 + 0.01 * np.random.default_rng(0).standard_normal(900)
    loss[[300, 500, 700]] += 1.0
    steps = 10 * np.arange(900)
    quiet = replace(curve_of(np.ones(900)), loss_step=steps)
    curve = replace(quiet, loss=loss)
    found = read_out(curve, STABLE)
    assert found.record()["spike_score"] == 3 / (900 - SPIKE_WINDOW)
    (told,) = [one for one in found.sentences if "spiked" in one]
    assert told.startswith(
        "The training loss spiked 3 times, first at step 3000: spike score 0.39%"
    )
    assert not any("spiked" in one for one in read_out(quiet, STABLE).sentences)


@pytest.mark.parametrize("end", ["nan", "a plateau"])
def test_a_loss_that_blows_up_has_not_spiked(end):
    sound = 1.0 + 0.01 * np.random.default_rng(0).standard_normal(900)
    after = [*1.3 ** np.arange(1, 200), np.nan] if end == "nan" else [1e3] * 400
    for spikes in ([], [300, 500, 700]):
        sound[spikes] += 0.1
        curve = replace(curve_of(np.concatenate([sound, after])), loss_step=None)
        found = read_out(curve, judge(curve))
        assert found.verdict.infeasible
        assert found.spikes.startswith("the training loss spiked 3 times") == bool(spikes)
        assert (found.spike_score > 0) == bool(spikes)
