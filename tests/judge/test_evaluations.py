"""The objective's evaluations as evidence: what the training loss does not tell, and where it is no
measure.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scripted import curve_of

from tunewright.search.judge.evaluations import summarize_evaluations
from tunewright.search.judge.verdict import hopeless, judge
from tunewright.search.train.recorder import Recorder
from tunewright.search.trial import Curve

STEPS = 400
GOOD = np.geomspace(2.3, 0.3, 21)
RNG = np.random.default_rng(0)
FALLS = 0.1 + 2.2 * np.exp(-np.arange(STEPS) / 60) + 0.02 * RNG.standard_normal(STEPS)
SLOW = 2.3 - 0.4 * (1 - np.exp(-np.arange(STEPS) / 30))
RETURNS = np.concatenate([FALLS[:200], np.full(200, 2.3)])


def of(loss, values, chance=2.3):
    return curve_of(loss, chance, values=np.asarray(values, float))


def test_a_loss_at_chance_is_no_collapse_where_the_objective_was_learned_and_kept():
    """Schedule-free optimizers take the training loss at other weights than those that are
    evaluated.
    """
    assert judge(of(RETURNS, np.full(21, 2.3))).outcome == "collapsed"
    verdict = judge(of(RETURNS, GOOD))
    assert (verdict.outcome, verdict.instability) == ("feasible", "mid_training")
    assert "the objective was learned (2.3 to 0.332), though loss stays at 2.3" in verdict.evidence
    assert "divergence = false" in verdict.evidence


def test_a_loss_of_other_weights_than_the_average_is_told_as_that():
    verdict, averaged = (judge(of(RETURNS, GOOD), averaged=one) for one in (False, True))
    assert averaged.evidence.endswith(
        "the loss is of other weights than the average that is evaluated"
    )
    assert replace(averaged, evidence=verdict.evidence) == verdict
    recorder = Recorder(STEPS, "values", averaged=True)
    recorder.report({"values": 2.3})
    recorder.record_block(RETURNS, np.ones(STEPS))
    recorder.report({"values": 0.3})
    assert "divergence = false" not in recorder.verdict().evidence


def test_a_healthy_loss_is_no_training_where_the_objective_lost_half_of_what_it_had_learned():
    verdict = judge(of(SLOW, [*GOOD[:11], *np.linspace(0.8, 2.0, 10)]))
    assert verdict.outcome == "collapsed"
    assert "lost more than half" in verdict.evidence
    verdict = judge(of(SLOW, [*GOOD[:11], *np.linspace(0.8, 7.0, 10)]))
    assert verdict.outcome == "diverged"
    assert "ended worse than the untrained model" in verdict.evidence


def test_overfitting_is_no_divergence():
    """The training loss goes on to fall: its best checkpoint is kept, and the curve has a flag
    (S6).
    """
    memorized = 2.3 * np.exp(-np.arange(STEPS) / 60)
    values = [*np.linspace(2.3, 1.5, 6), *np.linspace(1.6, 6.0, 15)]
    assert judge(of(memorized, values)).feasible


@pytest.mark.parametrize("first_bad", [0, 1, 10, 20])
def test_an_objective_that_ends_as_nan_is_said_and_counts(first_bad):
    values = GOOD.copy()
    values[first_bad:] = math.nan
    verdict = judge(of(FALLS, values))
    assert verdict.outcome == "non_finite"
    assert verdict.onset_step == first_bad * 20
    assert f"the objective is nan or infinite from step {first_bad * 20} on" in verdict.evidence


def test_an_objective_that_was_nan_for_a_while_is_said():
    values = GOOD.copy()
    values[[4, 5]] = math.nan, math.inf
    verdict = judge(of(FALLS, values))
    assert (verdict.outcome, verdict.instability) == ("feasible", "none")
    assert "2 evaluations were nan or infinite" in verdict.evidence


def test_an_objective_may_be_maximized():
    accuracy = np.linspace(0.1, 0.9, 21)
    assert summarize_evaluations(of(FALLS, accuracy), maximize=True).state == "learned"
    assert judge(of(RETURNS, accuracy), maximize=True).feasible
    assert judge(of(RETURNS, accuracy)).outcome == "collapsed"
    falls = [*accuracy, *np.linspace(0.85, 0.1, 20)]
    verdict = judge(of(SLOW, falls), maximize=True)
    assert verdict.outcome == "collapsed"
    assert "0.1 untrained, 0.86 at its best" in verdict.evidence


def test_the_objective_is_named_or_the_only_metric():
    curve = of(RETURNS, GOOD)
    two = replace(curve, metrics={"value": GOOD, "other": np.full(21, 2.3)})
    assert judge(curve).feasible
    assert judge(two).outcome == "collapsed"
    assert judge(two, "value").feasible
    assert judge(two, "other").outcome == "collapsed"


@pytest.mark.parametrize(
    "values", [[0.9], [0.9, 0.88], 0.9 + 0.02 * RNG.standard_normal(50), np.full(50, 0.9)]
)
def test_evaluations_that_hardly_change_are_no_evidence(values):
    assert summarize_evaluations(of(FALLS, values)).state == "unknown"
    assert judge(of(FALLS, values)).feasible
    assert judge(of(RETURNS, values)).outcome == "collapsed"


def test_a_curve_that_was_logged_rarely_is_judged_with_the_steps_of_its_evaluations():
    curve = of(RETURNS, GOOD)
    assert judge(logged_every(100, curve)).feasible


def logged_every(spacing: int, curve: Curve) -> Curve:
    """The same losses, as those of updates that are so far apart."""
    return replace(
        curve,
        loss_step=spacing * np.arange(len(curve.loss)),
        eval_step=spacing * curve.eval_step,
        total_steps=spacing * curve.total_steps,
    )


@pytest.mark.parametrize("loss", [FALLS, RETURNS], ids=["falls", "returns"])
@pytest.mark.parametrize("values", [GOOD, np.full(21, 0.9)], ids=["good", "nothing"])
def test_losses_that_are_logged_rarely_have_the_same_verdict_at_steps_as_far_apart(loss, values):
    every, rarely = judge(of(loss, values)), judge(logged_every(100, of(loss, values)))
    assert (every.outcome, every.instability) == (rarely.outcome, rarely.instability)
    assert rarely.onset_step == 100 * every.onset_step
    if every.infeasible:
        told = every.evidence.replace(f"step {every.onset_step}", f"step {rarely.onset_step}")
        assert rarely.evidence == told


def test_a_log_says_at_which_step_a_loss_was_nan():
    loss = FALLS.copy()
    loss[300] = math.nan
    verdict = judge(logged_every(50, of(loss, GOOD)))
    assert verdict.onset_step == 15_000
    assert verdict.evidence.startswith("loss became non-finite at step 15000 from")


def later(values: ArrayLike) -> Curve:
    """Evaluations alone, of which the first is no untrained model's."""
    values = np.asarray(values)
    steps = 100 * np.arange(1, len(values) + 1)
    return Curve(np.empty(0), np.empty(0), steps, {"v": values}, 100 * len(values))


@pytest.mark.parametrize(
    ("values", "outcome", "said"),
    [
        ([1.0, 0.5, 0.4, 0.3], "feasible", "the objective was learned: 1 to 0.3; without"),
        ([0.4, 0.35, 0.5], "feasible", "evaluations tell little: 0.4 to 0.5; without"),
        ([1.0, 0.5, 0.9], "feasible", "evaluations tell little: 1 to 0.9; without"),  # how much?
        ([1.0, 0.5, 7.0], "diverged", "the objective ended worse than it began: 1 at its first "),
        ([1.0, 0.5, math.nan], "non_finite", "the objective is nan or infinite from step 300 on"),
        ([1.0, math.nan, 0.3], "feasible", "the objective was learned: 1 to 0.3; 1 evaluation was"),
    ],
)
def test_evaluations_alone_of_a_model_that_has_learned_before(values, outcome, said):
    verdict = judge(later(values))
    assert verdict.outcome == outcome
    assert verdict.evidence.startswith(said)
    assert verdict.instability == "none"


def test_evaluations_alone_from_the_untrained_model_on():
    curve = later([2.3, 0.5, 0.4, 1.9])
    assert judge(replace(curve, eval_step=curve.eval_step - 100)).outcome == "collapsed"
    assert judge(curve).feasible


def test_a_first_evaluation_that_is_late_makes_no_overfitted_run_worse_than_untrained():
    """By a third, with a training loss that stands still: nobody knows what was learned before."""
    rises = np.linspace(0.3, 0.4, 20)
    curve = of(np.full(STEPS, 0.2), np.append(0.3, rises), math.nan)
    assert judge(curve).outcome == "diverged"
    late = replace(curve, metrics={"value": rises}, eval_step=curve.eval_step[1:])
    assert judge(late).feasible


def test_a_log_without_gradient_norms_is_judged():
    assert judge(replace(of(FALLS, GOOD), grad_norm=np.empty(0))).feasible
    assert (
        judge(replace(of(RETURNS, np.full(21, 2.3)), grad_norm=np.empty(0))).outcome == "collapsed"
    )


def test_without_divergence_a_loss_may_grow_by_design():
    """Annealed KL: the loss starts near 0 and grows while the model learns."""
    grows = np.concatenate([np.full(20, 0.01), np.linspace(0.01, 12, 180), np.full(200, 12.0)])
    flat = np.full(21, 0.9)
    assert judge(of(grows, flat, math.nan)).outcome == "diverged"
    assert not judge(of(grows, flat, math.nan), divergence=False).infeasible
    assert judge(of(grows, flat, math.nan), divergence=False).instability == "none"
    assert not hopeless(of(grows, flat, math.nan), divergence=False)
    assert (
        judge(of(grows, [*GOOD[:10], *np.full(11, math.nan)]), divergence=False).outcome
        == "non_finite"
    )
    assert judge(of(np.append(grows, math.nan), flat), divergence=False).outcome == "non_finite"


# --- online ---------------------------------------------------------------------------------------

levels = st.sampled_from([0.1, 1.0, 2.0, 2.3, 2.6, 5.0, 40.0, 1e4])
parts = st.lists(st.tuples(levels, st.integers(5, 250)), min_size=1, max_size=5)


@st.composite
def trainings(draw):
    """Losses that stay at a few levels one after the other, and evaluations of their own."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    level = np.concatenate([np.full(count, value) for value, count in draw(parts)])
    loss = level * np.exp(draw(st.sampled_from([0.01, 0.1, 0.5])) * rng.standard_normal(len(level)))
    ends = draw(st.sampled_from([0.1, 0.85, 0.9, 2.0, math.nan]))
    every = draw(st.sampled_from([10, 50, 1000]))
    eval_step = np.unique([*range(0, len(loss), every), len(loss)])
    values = np.concatenate([[0.9], np.full(len(eval_step) - 1, ends)])
    chance = draw(st.sampled_from([2.3, math.nan]))
    return Curve(loss, np.ones_like(loss), eval_step, {"value": values}, len(loss), chance)


def until(curve, step):
    done = curve.eval_step <= step
    metrics = {name: values[done] for name, values in curve.metrics.items()}
    return replace(
        curve,
        loss=curve.loss[:step],
        grad_norm=curve.grad_norm[:step],
        eval_step=curve.eval_step[done],
        metrics=metrics,
    )


@settings(max_examples=150, deadline=None)
@given(trainings())
def test_whatever_is_stopped_is_judged_infeasible_and_was_not_learned(curve):
    for step in range(20, len(curve.loss) + 1, 20):
        stopped = until(curve, step)
        if hopeless(stopped):
            assert judge(stopped).infeasible
            assert summarize_evaluations(stopped).state != "learned"
            break


def test_nothing_is_stopped_before_an_evaluation_agrees():
    blown = np.concatenate([FALLS[:100], np.full(300, 50.0)])
    once = of(blown, [2.3, 2.3])
    assert not any(hopeless(until(once, step)) for step in range(20, STEPS, 20))
    often = of(blown, np.full(21, 2.3))
    assert any(hopeless(until(often, step)) for step in range(20, STEPS, 20))
    learned = of(blown, GOOD)
    assert not any(hopeless(until(learned, step)) for step in range(20, STEPS + 1, 20))


@pytest.mark.parametrize("steps", [12, 40, 100, 400])
@pytest.mark.parametrize("nudge", [-0.002, 0.0, 0.002])
@pytest.mark.parametrize("ended", [1.1, 1.5, 3.0])
def test_a_loss_that_falls_while_validation_only_rises_is_overfitting_in_runs_of_any_length(
    steps, nudge, ended
):
    """Whether the first evaluation is a little better than the untrained model, or a little worse,
    decides nothing.
    """
    noise = np.random.default_rng(0).chisquare(8, steps) / 8  # squared errors of a batch of 8
    loss = 1.4 * np.geomspace(1.0, 0.3, steps) * noise
    values = np.array([1.0, 1.0 + nudge, *np.linspace(1.0, ended, 4)[1:]])
    at = np.linspace(0, steps, len(values)).astype(np.int64)
    verdict = judge(Curve(loss, np.ones(steps), at, {"val": values}, steps, 1.4))
    assert verdict.outcome == "feasible", verdict


@pytest.mark.parametrize("steps", [12, 40, 100, 400])
def test_a_loss_that_stands_still_while_validation_rises_is_no_overfitting(steps):
    values = np.array([1.0, 1.0, 1.5, 2.0, 2.5, 3.0])
    at = np.linspace(0, steps, len(values)).astype(np.int64)
    verdict = judge(Curve(np.full(steps, 1.4), np.ones(steps), at, {"val": values}, steps, 1.4))
    assert verdict.outcome == "diverged", verdict


def test_an_onset_among_the_first_losses_of_a_log_is_not_early_if_they_declined():
    """Early is said of updates, and 15 losses may be 1,500 of them."""
    loss = np.concatenate([np.geomspace(2.3, 0.3, 15), np.full(15, 9.0)])
    curve = Curve(loss, np.empty(0), np.empty(0, np.int64), {}, 30)
    assert judge(curve).instability == "early"
    verdict = judge(replace(curve, loss_step=100 * np.arange(30), total_steps=3000))
    assert (verdict.instability, verdict.onset_step) == ("mid_training", 1500)
    flat = replace(curve, loss=np.where(loss < 9, 2.3, 9.0), loss_step=100 * np.arange(30))
    assert judge(flat).instability == "early"


@pytest.mark.parametrize("height", [1e2, 1e6, 1e10])
def test_what_has_blown_up_and_bounces_is_worse(height):
    """As differences its evaluations scatter by as much as they have risen."""
    bounces = np.exp(np.random.default_rng(0).normal(0.0, 0.7, 40))
    curve = of(FALLS, [3.75, *(height * bounces)])
    assert summarize_evaluations(curve).state == "worse"


def test_evaluations_that_scatter_as_ratios_about_the_untrained_value_say_nothing():
    states = set()
    for seed in range(200):
        scattered = np.exp(np.random.default_rng(seed).normal(0.0, 0.7, 41))
        states.add(summarize_evaluations(of(FALLS, scattered)).state)
    assert "worse" not in states
