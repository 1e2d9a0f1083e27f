"""The share of parameters whose second moment is not above ε, where it is known: the gradient of a
loss that is linear in the parameters never changes.
"""

import math
from itertools import repeat

import numpy as np
import pytest
import torch
from examples import parse
from torch import nn

from tunewright.search.rules.optimizers import PARAMETERS, RULES, SecondMoment, coefficients
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Point, Trial

EPSILON = 1e-3
# |g| is √v: two of four are below 10 ε. The last never has a gradient, and does not count.
GRADIENTS = (1e-4, 5e-3, -2e-2, 1.0, 0.0)
# but for RMSProp, whose v starts at 1: it does not show what never had a gradient
ADAPTIVE = [name for name, rule in RULES.items() if rule.second_moment and rule.state["v"] == 0]


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(GRADIENTS)))


class Slope:
    """Loss gᵀ θ."""

    def build_model(self, seed):
        return Weights()

    def train_batches(self, batch_size, seed):
        return repeat(torch.tensor(GRADIENTS).repeat(batch_size, 1))

    def loss(self, model, batch):
        return (batch @ model.theta).mean()

    def evaluate(self, model):
        return {"val_loss": model.theta.sum()}


def study_of(optimizer, steps):
    return parse(
        objective="val_loss",
        max_train_steps=steps,
        batch_sizes=[4],
        divergence=False,
        space={"optimizer": {optimizer: {"base_lr": [1e-3]}}},
    )


def trained(optimizer, steps=40, engine=ALONE, points=1):
    asked = [Point(i, 4, optimizer, 1e-3, settings={"epsilon": EPSILON}) for i in range(points)]
    return list(train(study_of(optimizer, steps), Slope(), asked, engine))


@pytest.mark.parametrize("engine", [ALONE, Engine(stacked=True, slots=3)])
@pytest.mark.parametrize("steps", [1, 40])
def test_adamw_corrects_v_and_epsilon_alike_so_that_the_share_is_known_at_any_step(engine, steps):
    for one in trained("adamw", steps, engine, points=3):
        assert one.trial.near_epsilon == 0.5


@pytest.mark.parametrize("optimizer", ADAPTIVE)
def test_the_share_is_of_the_numbers_that_the_rule_adds(optimizer):
    """By the rule's own arithmetic on the same gradients."""
    steps, rule = 30, RULES[optimizer]
    g = torch.tensor([GRADIENTS], dtype=torch.float64)
    theta, own = torch.zeros_like(g), {"epsilon": EPSILON}
    starts = {name: 0.0 if start == PARAMETERS else start for name, start in rule.state.items()}
    state = {name: torch.full_like(g, start) for name, start in starts.items()}
    tables = coefficients(optimizer, own, np.full(steps, 1e-3))
    for i in range(steps):
        rule.update(theta, g, state, {name: torch.tensor([[t[i]]]) for name, t in tables.items()})
    root = state["v"].sqrt()[0, :4]
    epsilon = tables["epsilon"][-1]
    assert state["v"][0, 4] == 0  # never had a gradient
    (one,) = trained(optimizer, steps)
    assert one.trial.near_epsilon == pytest.approx(float((root < 10 * epsilon).double().mean()))


@pytest.mark.parametrize("optimizer", [name for name in RULES if name not in ADAPTIVE])
def test_a_rule_without_a_second_moment_has_no_share(optimizer):
    study = study_of(optimizer, 5)
    (one,) = train(study, Slope(), [Point(0, 4, optimizer, 1e-3)])
    assert math.isnan(one.trial.near_epsilon)
    assert "near_epsilon" not in one.trial.record()


def test_it_is_recorded_and_read_again():
    (one,) = trained("adam")
    record = one.trial.record()
    assert record["near_epsilon"] == one.trial.near_epsilon
    assert Trial.from_record(record, one.trial.curve).near_epsilon == one.trial.near_epsilon
    del record["near_epsilon"]
    assert math.isnan(Trial.from_record(record, one.trial.curve).near_epsilon)


def test_a_second_moment_that_is_not_finite_or_saw_no_gradient_says_nothing():
    columns = {"epsilon": EPSILON, "eta": 1.0}
    for v in ([0.0, 0.0], [1.0, math.nan], [1.0, math.inf]):
        assert math.isnan(SecondMoment().share_near_epsilon({"v": torch.tensor(v)}, columns))


def test_what_had_no_gradient_rests_and_other_steps_are_divided_as_the_rule_says():
    state = {"v": torch.tensor([0.0, 4.0])}
    columns = {"epsilon": 0.5, "eta": 0.25}
    outside = SecondMoment().divisor(state, columns).tolist()
    inside = SecondMoment(inside=True).divisor(state, columns).tolist()
    assert outside == [math.inf, 4 * 2.5]
    assert inside == pytest.approx([math.inf, 4 * math.sqrt(4.5)])
