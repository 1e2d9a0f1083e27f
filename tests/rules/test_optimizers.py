"""Every rule against a float64 transcription of its formula, and against torch where torch's is the
same.
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tunewright.search.rules.hyperparameters import by_name
from tunewright.search.rules.optimizers import (
    PARAMETERS,
    RULES,
    Alternative,
    Average,
    acting,
    add,
    check_others,
    coefficients,
)
from tunewright.search.rules.pieces import DECAYS, pieces_of

T, P = 30, 5
ETAS = 0.05 * (1 + np.arange(T)) / T
(ROW,) = pieces_of([(1, P)], (), P)  # which decays, and is updated as numbers


def gradients(theta, step):
    """A gradient that depends on the parameters, so that an error anywhere is carried on."""
    return np.sin(theta * (1 + np.arange(P))) + 0.1 * step * np.cos(theta)


def formula(name, own, theta):
    """Playbook, "What are the update rules …" (R21), one parameter vector, plain NumPy."""
    v = np.ones(P) if name == "rmsprop" else np.zeros(P)
    m, z, x = np.zeros(P), theta, theta
    for t, eta in enumerate(ETAS):
        g = gradients(theta, t)
        if name == "schedule_free_adamw":  # Defazio et al. 2024, θ is their y
            v = own["beta2"] * v + (1 - own["beta2"]) * g**2
            v_hat = v / (1 - own["beta2"] ** (t + 1))
            z = z - eta * (g / (np.sqrt(v_hat) + own["epsilon"]) + own["weight_decay"] * theta)
            c = eta**2 / np.sum(ETAS[: t + 1] ** 2)
            x = (1 - c) * x + c * z
            theta = (1 - own["beta1"]) * z + own["beta1"] * x
        elif name == "sgd":
            theta = theta - eta * g
        elif name in ("momentum", "nesterov"):
            v = own["momentum"] * v + g
            theta = theta - eta * (v if name == "momentum" else own["momentum"] * v + g)
        elif name == "rmsprop":
            v = own["rho"] * v + (1 - own["rho"]) * g**2
            m = own["momentum"] * m + eta * g / np.sqrt(v + own["epsilon"])
            theta = theta - m
        elif name == "lion":
            towards = own["beta1"] * m + (1 - own["beta1"]) * g
            m = own["beta2"] * m + (1 - own["beta2"]) * g
            theta = theta - eta * (np.sign(towards) + own["weight_decay"] * theta)
        else:
            b1, b2, epsilon = own["beta1"], own["beta2"], own["epsilon"]
            if name.startswith("gi_") and t == 0:
                v = g**2  # v₀, Kalra & Barkeshli 2024
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            b = math.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
            if name in ("adam", "gi_adam"):
                theta = theta - eta * m / (np.sqrt(v) + epsilon) * b
            elif name == "nadam":
                theta = theta - eta * (b1 * m + (1 - b1) * g) / (np.sqrt(v) + epsilon) * b
            else:
                m_hat, v_hat = m / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))
                theta = theta - eta * own["weight_decay"] * theta
                theta = theta - eta * m_hat / (np.sqrt(v_hat) + epsilon)
    return theta


def state_at(theta, name):
    """A rule's state before its first update."""
    return {
        key: theta.clone() if start == PARAMETERS else torch.full_like(theta, start)
        for key, start in RULES[name].state.items()
    }


def stacked(name, owns, starts):
    """The rule of the library on several rows at once, each with its own hyperparameters."""
    theta = torch.tensor(np.stack(starts))
    state = state_at(theta, name)
    tables = [coefficients(name, own, ETAS) for own in owns]
    for t in range(T):
        g = torch.tensor(np.stack([gradients(row, t) for row in theta.numpy()]))
        columns = {key: torch.tensor([[table[key][t]] for table in tables]) for key in tables[0]}
        RULES[name].apply(ROW, theta, g, state, columns)
    return theta.numpy()


OWN = {
    "sgd": [{}, {}],
    "momentum": [{"momentum": 0.9}, {"momentum": 0.3}],
    "nesterov": [{"momentum": 0.9}, {"momentum": 0.3}],
    "rmsprop": [
        {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-10},
        {"rho": 0.99, "momentum": 0.8, "epsilon": 1e-3},
    ],
    "adam": [
        {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        {"beta1": 0.5, "beta2": 0.9, "epsilon": 0.1},
    ],
}
OWN["nadam"] = OWN["adam"]
OWN["adamw"] = [
    own | {"weight_decay": decay} for own, decay in zip(OWN["adam"], (0.01, 0.3), strict=True)
]
OWN["lion"] = [
    {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    {"beta1": 0.5, "beta2": 0.9, "weight_decay": 0.3},
]
OWN["gi_adam"], OWN["gi_adamw"] = OWN["adam"], OWN["adamw"]
OWN["muon"] = [
    own | {"momentum": momentum, "weight_decay": decay}
    for own, momentum, decay in zip(OWN["adam"], (0.95, 0.7), (0.1, 0.3), strict=True)
]
OWN["schedule_free_adamw"] = [
    OWN["adam"][0] | {"weight_decay": 0.0},
    OWN["adam"][1] | {"weight_decay": 0.3, "beta1": 0.0},
]


@pytest.mark.parametrize("name", RULES)
def test_rule_equals_its_formula_row_by_row(name):
    starts = [np.linspace(-1, 1, P), np.linspace(2, -0.5, P)]
    rows = stacked(name, OWN[name], starts)
    for row, own, start in zip(rows, OWN[name], starts, strict=True):
        np.testing.assert_allclose(row, formula(name, own, start), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", RULES)
def test_a_row_does_not_depend_on_its_neighbours(name):
    start = np.linspace(-1, 1, P)
    alone = stacked(name, OWN[name][:1], [start])[0]
    np.testing.assert_array_equal(stacked(name, OWN[name], [start, np.full(P, np.nan)])[0], alone)


def test_defaults_are_complete():
    for name, rule in RULES.items():
        assert set(OWN[name][0]) == set(rule.defaults)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD([p], lr=1.0)),
        ("momentum", lambda p: torch.optim.SGD([p], lr=1.0, momentum=0.9)),
        ("nesterov", lambda p: torch.optim.SGD([p], lr=1.0, momentum=0.9, nesterov=True)),
        ("adamw", lambda p: torch.optim.AdamW([p], lr=1.0, weight_decay=0.01)),
    ],
)
def test_rules_that_torch_shares_equal_torch(name, make):
    # A constant learning rate: torch's momentum buffer holds gradients, as the playbook's does.
    start = np.linspace(-1, 1, P)
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = make(parameter)
    for t, eta in enumerate(ETAS):
        optimizer.param_groups[0]["lr"] = float(eta)
        parameter.grad = torch.tensor(gradients(parameter.detach().numpy(), t))
        optimizer.step()
    np.testing.assert_allclose(
        stacked(name, OWN[name][:1], [start])[0], parameter.detach().numpy(), rtol=1e-12
    )


INCOMPLETE = [
    ({"defaults": {"friction": 0.1}}, "no row of HYPERPARAMETERS for friction, of kind optimizer"),
    ({"defaults": {"clip_norm": 1.0}}, "no row of HYPERPARAMETERS for clip_norm, of kind"),
    ({"defaults": {"momentum": 1.0}}, "its default momentum must be a number in [0, 1), got 1.0"),
    ({"family": ""}, "its family must have a name"),
    (
        {"alternative": Alternative("adam", (1.0, 0.1))},
        "the base LRs of its alternative must be two numbers > 0, the lowest first, got (1.0, 0.1)",
    ),
    ({"alternative": Alternative("adam", (0.0, 0.1))}, "the base LRs of its alternative must be"),
    ({"alternative": Alternative("adam", (0.1, math.inf))}, "the base LRs of its alternative"),
    ({"state": {"v": math.nan}}, "its state v must begin at a finite number, got nan"),
    ({"state": {"v": "zero"}}, "its state v must begin at a finite number, got 'zero'"),
    ({"decayed": "z"}, "its decayed, 'z', is no state of it"),
    ({"average": Average("x", np.square)}, "its average, 'x', is no state that begins at them"),
    ({"average": Average("v", np.square)}, "its average, 'v', is no state that begins at them"),
    (
        {"coefficients": RULES["adam"].coefficients},
        "its coefficients need 'beta2', which has no default",
    ),
    (
        {"coefficients": lambda own, eta, number: {"lr": eta}},
        "its coefficients must be eta and others",
    ),
    (
        {"coefficients": lambda own, eta, number: {"eta": eta, **own}},
        "its coefficients must be eta and others, a number for each update",
    ),
]


@pytest.mark.parametrize(("change", "reason"), INCOMPLETE)
def test_an_incomplete_rule_is_refused_by_name(change, reason):
    with pytest.raises(TypeError, match=re.escape(f"optimizer 'momentum': {reason}")):
        replace(RULES["momentum"], **change)


def test_a_rule_whose_alternative_is_no_other_rule_is_refused():
    for name in ("amd", "adam"):
        stranger = replace(RULES["adam"], alternative=Alternative(name, (0.1, 1.0)))
        with pytest.raises(TypeError, match=rf"optimizer 'adam': its alternative, '{name}', is no"):
            check_others(RULES | {"adam": stranger})


def test_a_rule_names_one_that_starts_from_the_first_gradient_and_is_else_the_same():
    for name, reason in (
        ("gi_amd", "'gi_amd', is no other row"),
        ("adam", "'adam', is no other row"),
        ("gi_adamw", "'gi_adamw', has other defaults"),
        ("momentum", "'momentum', has other defaults"),
    ):
        stranger = replace(RULES["adam"], from_first_gradient=name)
        with pytest.raises(TypeError, match=f"optimizer 'adam': its from_first_gradient, {reason}"):
            check_others(RULES | {"adam": stranger})


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.from_first_gradient])
def test_from_the_first_gradient_a_rule_is_warmed_up_as_its_source_says(name):
    """By gradients that do not change it is the rule with learning rates η √(1−β₂ⁿ)."""
    beta2 = RULES[name].defaults["beta2"]
    warmed_up = ETAS * np.sqrt(1 - beta2 ** np.arange(1, T + 1))
    own = {"weight_decay": 0.0} if "weight_decay" in RULES[name].defaults else {}

    def steps(rule, etas):
        start, g = torch.ones(1, 3, dtype=torch.float64), torch.tensor([[0.1, -3.0, 20.0]]).double()
        theta, table = start.clone(), coefficients(rule, own, etas)
        state = state_at(theta, rule)
        for t in range(T):
            columns = {key: torch.tensor([[values[t]]]) for key, values in table.items()}
            RULES[rule].update(theta, g, state, columns)
        return (theta - start).numpy()

    given = steps(RULES[name].from_first_gradient, ETAS)
    np.testing.assert_allclose(given, steps(name, warmed_up), rtol=1e-5)
    assert np.abs(given).max() < 0.5 * np.abs(steps(name, ETAS)).min()


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(TypeError, match="rule 'adam': two rows have this name"):
        by_name([RULES["adam"], RULES["adam"]])


def test_a_rule_is_added_under_its_name(monkeypatch):
    rules = dict(RULES)
    monkeypatch.setattr("tunewright.search.rules.optimizers.RULES", rules)
    mine = replace(RULES["adam"], name="mine", alternative=Alternative("lion", (0.1, 1.0)))
    assert add(mine) is mine
    assert list(rules) == [*RULES, "mine"]
    assert rules["mine"] is mine


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "rule 'adam': two rows have this name"),
        (
            {"name": "mine", "alternative": Alternative("mine", (0.1, 1.0))},
            "optimizer 'mine': its alternative, 'mine', is no other row",
        ),
    ],
)
def test_a_rule_that_does_not_fit_is_not_added(change, reason):
    before = dict(RULES)
    with pytest.raises(TypeError, match=reason):
        add(replace(RULES["adam"], **change))
    assert before == RULES


class Seen(dict):
    """A mapping that remembers which of its keys were read."""

    def __init__(self, *values):
        super().__init__(*values)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("name", RULES)
def test_an_update_uses_its_state_and_its_coefficients_and_all_of_them(name):
    rule, read = RULES[name], set()
    table = coefficients(name, {}, ETAS)
    updates = [(rule.update, (2, P)), (rule.update_matrix, (2, P, 3))]
    for update, shape in updates:
        if update is None:
            continue
        theta, ones = torch.ones(shape), (1,) * (len(shape) - 1)
        state = Seen(state_at(theta, name))
        columns = Seen({key: torch.full((2, *ones), one[0]) for key, one in table.items()})
        update(theta, torch.ones(shape), state, columns)
        assert not columns.read & set(DECAYS)
        read |= state.read | columns.read
    assert read == {*rule.state, *table} - set(DECAYS)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.decays])
def test_weight_decay_is_of_two_dimensions_or_more_unless_vectors_decay_too(name):
    """By gradients of 0, under which nothing else moves."""
    shapes = [(3,), (2, 5), (), (2, 1, 3, 1), (4,)]
    sizes = [math.prod(shape) for shape in shapes]
    pieces = pieces_of(shapes, (), 7)
    for decay_vectors in (False, True):
        table = coefficients(name, {"weight_decay": 0.5}, ETAS, decay_vectors)
        columns = {key: torch.tensor([[one[-1]]] * 2) for key, one in acting(table).items()}
        theta = torch.ones(2, sum(sizes), dtype=torch.float64)
        state = state_at(theta, name)
        for piece in pieces:
            own = {key: one[:, piece.where] for key, one in state.items()}
            g = torch.zeros_like(theta[:, piece.where])
            RULES[name].apply(piece, theta[:, piece.where], g, own, columns)
        decayed, kept = 1 - 0.5 * ETAS[-1], 1.0
        moved = state.get(RULES[name].decayed, theta)
        for shape, part in zip(shapes, torch.split(moved, sizes, dim=1), strict=True):
            want = decayed if len(shape) > 1 or decay_vectors else kept
            np.testing.assert_allclose(part, want, rtol=1e-15)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.decays])
def test_without_weight_decay_nothing_is_multiplied(name):
    table = coefficients(name, {"weight_decay": 0.0}, ETAS, decay_vectors=True)
    assert set(DECAYS) <= set(table)
    assert not set(DECAYS) & set(acting(table))
