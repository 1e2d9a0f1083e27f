"""Verdicts of real curves (tests/golden/make_curves.py) and of synthetic ones."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tunewright.search.judge.verdict import EARLY_STEPS, has_risen, hopeless, judge, patience
from tunewright.search.trial import Curve

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "curves.npz")
CHANCE = math.log(10)


def curve(loss, grad_norm=None, total_steps=None, chance=CHANCE, eval_step=(0,)):
    """A training of which only the loss tells: however often it was evaluated, the objective is the
    same.
    """
    loss = np.asarray(loss, float)
    grad_norm = np.ones_like(loss) if grad_norm is None else np.asarray(grad_norm, float)
    metrics = {"v": np.ones(len(eval_step))}
    return Curve(loss, grad_norm, np.array(eval_step), metrics, total_steps or len(loss), chance)


def real(name):
    total_steps, chance = GOLDEN[f"{name}/limits"]
    return curve(
        GOLDEN[f"{name}/loss"], GOLDEN[f"{name}/grad_norm"], int(total_steps), float(chance)
    )


def stopped_at(whole):
    """The update at which an online check every 20 updates stops a run; its length if none does."""
    for step in range(20, len(whole.loss), 20):
        if hopeless(
            curve(
                whole.loss[:step],
                whole.grad_norm[:step],
                whole.total_steps,
                whole.chance_loss,
                [0, step],
            )
        ):
            return step
    return len(whole.loss)


@pytest.mark.parametrize(
    ("name", "outcome", "instability", "onset", "tolerance"),
    [
        ("mlp_lr_star", "feasible", "none", math.inf, 0),
        ("mlp_too_low_to_learn", "feasible", "none", math.inf, 0),
        ("mlp_slow_collapse", "collapsed", "mid_training", 160, 60),
        ("mlp_collapse_at_once", "collapsed", "early", 5, 2),
        ("mlp_adam_early_spike_recovers", "feasible", "early", 1, 1),
        ("residual_no_norm_non_finite", "non_finite", "early", 10, 0),
        ("residual_post_norm_diverged", "diverged", "early", 8, 3),
        ("branch_out_early_blow_up_recovers", "feasible", "early", 4, 2),
        ("wide_resnet_noisy_but_stable", "feasible", "none", math.inf, 0),
        ("cue_late_blow_up", "diverged", "mid_training", 150, 5),
        ("cue_late_spike_recovers", "feasible", "mid_training", 200, 1),
        ("cue_nan_late", "non_finite", "mid_training", 300, 0),
    ],
)
def test_real_runs(name, outcome, instability, onset, tolerance):
    verdict = judge(real(name))
    assert (verdict.outcome, verdict.instability) == (outcome, instability)
    assert verdict.onset_step == onset or abs(verdict.onset_step - onset) <= tolerance
    assert verdict.evidence


@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in GOLDEN}))
def test_a_run_is_stopped_exactly_if_it_is_infeasible(name):
    whole = real(name)
    step = stopped_at(whole)
    stopped = curve(whole.loss[:step], whole.grad_norm[:step], whole.total_steps, whole.chance_loss)
    assert judge(stopped).infeasible == judge(whole).infeasible
    if judge(whole).feasible:
        assert step == len(whole.loss)
    elif judge(whole).outcome != "non_finite":
        onset = judge(whole).onset_step
        assert step <= max(onset, 100) + 2 * patience(whole.total_steps) + 40 or step == len(
            whole.loss
        )


def decline(steps, low=0.1, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    return low + (CHANCE - low) * np.exp(-np.arange(steps) / 60) * (
        1 + noise * rng.standard_normal(steps)
    )


def test_nan_late_is_non_finite_at_that_step():
    loss = decline(500)
    loss[400:] = np.nan
    verdict = judge(curve(loss[:401], total_steps=500))
    assert (verdict.outcome, verdict.instability, verdict.onset_step) == (
        "non_finite",
        "mid_training",
        400,
    )


def test_an_infinite_gradient_counts_as_non_finite_though_the_loss_is_finite():
    grad_norm = np.ones(50)
    grad_norm[7] = np.inf
    verdict = judge(curve(decline(50), grad_norm))
    assert (verdict.outcome, verdict.instability, verdict.onset_step) == ("non_finite", "early", 7)
    assert "gradient norm" in verdict.evidence


def test_slow_growth_that_loses_what_was_learned_is_a_collapse():
    loss = np.concatenate([decline(300), np.linspace(0.1, 2.3, 300), np.full(300, 2.3)])
    verdict = judge(curve(loss))
    assert (verdict.outcome, verdict.instability) == ("collapsed", "mid_training")
    assert 300 <= verdict.onset_step <= 450


def test_slow_growth_without_bound_is_divergence():
    loss = np.concatenate([decline(300), 0.1 * np.exp(np.arange(300) / 30)])
    verdict = judge(curve(loss))
    assert (verdict.outcome, verdict.instability) == ("diverged", "mid_training")


@pytest.mark.parametrize("losses", [30, 40, 60, 120, 200, 400])
@pytest.mark.parametrize("share", [0.75, 0.8])
def test_a_loss_that_ends_blown_up_is_divergence_however_few_losses_tell_so(losses, share):
    """As of a log with a loss every so many updates, that ends soon after the blow-up."""
    steps = np.linspace(0, 2000, losses).astype(int)
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(losses)
    sound = (0.1 + 2.2 * np.exp(-steps / 800)) * noise
    began = 2000 * share
    loss = np.where(steps > began, sound * 1.05 ** (steps - began), sound)
    verdict = judge(replace(curve(loss), loss_step=steps, total_steps=2000))
    assert (verdict.outcome, verdict.instability) == ("diverged", "mid_training")
    assert began <= verdict.onset_step <= began + 2 * 2000 / losses + 20


def test_a_spike_at_the_very_end_is_no_divergence():
    loss = decline(500)
    loss[-4:] = 100.0
    assert judge(curve(loss)).feasible
    loss[-5:] = 100.0
    assert judge(curve(loss)).outcome == "diverged"


@pytest.mark.parametrize("height", [10.0, 1e4])
def test_early_spike_that_recovers_is_feasible_and_never_stopped(height):
    loss = decline(1000)
    loss[3:60] = np.geomspace(height, CHANCE, 57)
    whole = curve(loss)
    verdict = judge(whole)
    assert (verdict.outcome, verdict.instability) == ("feasible", "early")
    assert verdict.onset_step <= EARLY_STEPS
    assert stopped_at(whole) == 1000


def test_late_spike_that_recovers_is_feasible_mid_training():
    loss = decline(600)
    loss[400:410] = 5.0
    verdict = judge(curve(loss))
    assert (verdict.outcome, verdict.instability, verdict.onset_step) == (
        "feasible",
        "mid_training",
        400,
    )


def test_late_spike_that_does_not_recover_is_infeasible():
    loss = decline(600)
    loss[300:] = 2.4
    assert judge(curve(loss)).outcome == "collapsed"
    loss[300:] = 40.0
    verdict = judge(curve(loss))
    assert (verdict.outcome, verdict.instability, verdict.onset_step) == (
        "diverged",
        "mid_training",
        300,
    )


@pytest.mark.parametrize("seed", range(5))
def test_noisy_but_stable(seed):
    rng = np.random.default_rng(seed)
    loss = decline(1000) * np.exp(0.3 * rng.standard_normal(1000))
    verdict = judge(curve(loss))
    assert (verdict.outcome, verdict.instability) == ("feasible", "none")


@pytest.mark.parametrize("scatter", [0.03, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_learns_nothing_does_not_blow_up_when_its_minibatches_differ(scatter, seed):
    loss = CHANCE + scatter * np.random.default_rng(seed).standard_normal(400)
    verdict = judge(curve(loss))
    assert (verdict.outcome, verdict.instability) == ("feasible", "none")


def test_a_plateau_at_chance_before_learning_is_feasible_and_not_stopped():
    rng = np.random.default_rng(0)
    loss = np.concatenate([CHANCE + 0.03 * rng.standard_normal(600), decline(400)])
    whole = curve(loss)
    assert judge(whole).feasible
    assert stopped_at(whole) == 1000


def test_a_gradient_that_vanished_at_chance_is_a_collapse():
    rng = np.random.default_rng(0)
    loss = CHANCE + 0.03 * rng.standard_normal(400)
    grad_norm = np.concatenate([np.full(5, 2.0), np.full(395, 0.01)])
    verdict = judge(curve(loss, grad_norm))
    assert verdict.outcome == "collapsed"
    assert "vanished gradient" in verdict.evidence


def test_what_blew_up_rose_and_what_collapsed_at_once_or_trained_did_not():
    assert not has_risen(curve(decline(400)))
    flat = CHANCE + 0.03 * np.random.default_rng(0).standard_normal(400)
    vanished = curve(flat, np.concatenate([np.full(5, 2.0), np.full(395, 0.01)]))
    assert judge(vanished).outcome == "collapsed"
    assert not has_risen(vanished)
    for name in (
        "mlp_slow_collapse",
        "mlp_collapse_at_once",
        "cue_nan_late",
        "branch_out_early_blow_up_recovers",
    ):
        assert has_risen(real(name))


def test_losses_below_zero_are_judged_by_the_same_rules():
    loss = -5.0 - 3.0 * (1 - np.exp(-np.arange(400) / 60))
    assert judge(curve(loss, chance=math.nan)).feasible
    loss[200:] = 100.0
    assert judge(curve(loss, chance=math.nan)).outcome == "diverged"
