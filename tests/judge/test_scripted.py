"""Verdicts of drawn curves: noise is no instability, and a blow-up is one (benchmarks/verdicts.py
has more of them).
"""

import math
from collections.abc import Iterable

import numpy as np
import pytest
from scripted import (
    BATCH_SIZES,
    HEALTHY,
    NOTHING_LEARNED,
    SCRIPTS,
    SHAPES,
    curve_of,
    healthy,
    nothing_learned,
    scripted,
)

from tunewright.search.judge.verdict import judge
from tunewright.search.trial import Curve

ALLOWED = 0.01  # of curves without a blow-up may be called unstable or infeasible
KNOWN = [pytest.param(True, id="chance_loss"), pytest.param(False, id="no_chance_loss")]


def alarmed(curves: Iterable[Curve]) -> float:
    verdicts = [judge(curve) for curve in curves]
    return sum(one.infeasible or one.instability != "none" for one in verdicts) / len(verdicts)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("kind", NOTHING_LEARNED)
def test_noise_alone_is_no_instability_at_any_batch_size(kind: str, known: bool) -> None:
    curves = (
        nothing_learned(kind, batch, seed, known) for batch in BATCH_SIZES for seed in range(15)
    )
    assert alarmed(curves) <= ALLOWED


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("kind", HEALTHY)
def test_a_steady_decline_is_stable_whatever_the_noise_and_the_scale(
    kind: str, known: bool
) -> None:
    assert (
        alarmed(healthy(shape, kind, seed, known) for shape in SHAPES for seed in range(100, 112))
        <= ALLOWED
    )


@pytest.mark.parametrize("script", [pytest.param(one, id=one.name) for one in scripted(0)])
def test_a_script_has_the_verdict_of_a_practitioner(script) -> None:  # type: ignore[no-untyped-def]
    verdict = judge(script.curve)
    assert (verdict.outcome, verdict.instability) == (script.outcome, script.instability), (
        verdict.evidence
    )
    onset = verdict.onset_step
    assert onset == script.onset_step or abs(onset - script.onset_step) <= script.tolerance, (
        verdict.evidence
    )


def evidence_of(name: str) -> str:
    loss, chance, *_ = SCRIPTS[name](np.random.default_rng([0, 2]))
    return judge(curve_of(loss, chance)).evidence


def test_what_stays_far_above_chance_is_not_said_to_be_at_a_constant_predictors_loss() -> None:
    assert (
        evidence_of("stays at twice chance") == "loss far above its start: 2.27 to 5 since step 3"
    )
    assert "far above a constant predictor's 2.3" in evidence_of("starts at 117, goes on at 30")
    assert "fallen to 2.9 (a constant predictor has 10.8)" in evidence_of(
        "language model that loses half"
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_learns_nothing_is_feasible_but_not_said_to_be_stable(known: bool) -> None:
    """A constant model: base LR 1e-12."""
    verdict = judge(nothing_learned("squared errors", 8, 0, known))
    assert verdict.feasible
    assert verdict.evidence.startswith(
        "learned nothing that stands out from minibatch noise: loss "
    )


@pytest.mark.parametrize("chance", [0.5, 2.0, 10.0])
def test_a_wrong_chance_loss_makes_no_healthy_run_unstable(chance: float) -> None:
    curves = (healthy(shape, "normal", seed, True) for shape in SHAPES for seed in range(3))
    wrong = (
        Curve(
            one.loss,
            one.grad_norm,
            one.eval_step,
            one.metrics,
            one.total_steps,
            chance * one.chance_loss,
        )
        for one in curves
    )
    assert alarmed(wrong) == 0


def test_a_very_long_curve_is_judged_in_time_and_memory_that_grow_with_it() -> None:
    steps = 300_000
    loss = 2.3 * np.exp(0.1 * np.random.default_rng(0).standard_normal(steps))
    loss[200_000:] = 50.0
    verdict = judge(curve_of(loss, math.nan))
    assert (verdict.outcome, verdict.onset_step) == ("diverged", 200_000)


@pytest.mark.parametrize("scatter", [0.01, 0.03])
def test_a_loss_far_above_chance_that_never_moved_has_too_low_a_base_lr(scatter: float) -> None:
    """An unnormalized model may start at 117, whatever a constant predictor has."""
    loss = 117 * (1 + scatter * np.random.default_rng(0).standard_normal(400))
    assert judge(curve_of(loss, 2.3)).feasible
    loss[1:] -= 87
    verdict = judge(curve_of(loss, 2.3))
    assert (verdict.outcome, verdict.instability) == ("diverged", "early")


def test_losses_at_the_end_of_floating_point_are_judged() -> None:
    loss = np.concatenate([2.3 * np.exp(-np.arange(200) / 60), np.full(200, 1.7e308)])
    verdict = judge(curve_of(loss, 2.3))
    assert (verdict.outcome, verdict.instability, verdict.onset_step) == (
        "diverged",
        "mid_training",
        200,
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12, 30])
def test_a_curve_may_be_as_short_as_it_likes(steps: int) -> None:
    assert judge(curve_of(np.linspace(2.3, 2.2, steps), math.nan)).feasible
    assert judge(curve_of(np.zeros(steps), math.nan)).feasible
