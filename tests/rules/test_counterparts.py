"""What is said of torch's optimizers is run, and measured against the rules."""

import numpy as np
import pytest
import torch

from tunewright.search.rules import counterparts
from tunewright.search.rules.optimizers import RULES, counterpart
from tunewright.search.rules.torch_optimizers import RuleOptimizer, make
from tunewright.search.workload.workload import load_workload

SETTINGS = [  # none a default; and none at all
    {
        "momentum": 0.7,
        "rho": 0.8,
        "beta1": 0.6,
        "beta2": 0.95,
        "epsilon": 1e-3,
        "weight_decay": 0.1,
    },
    {"momentum": 0.0, "rho": 0.5, "beta1": 0.0, "beta2": 0.5, "epsilon": 0.1, "weight_decay": 0.0},
    {},
]
SAME = "The same as what trained here, but for rounding."
INEXACT = ("rmsprop", "nadam")
NOT_IN_TORCH = ("lion", "gi_adam", "gi_adamw", "muon", "schedule_free_adamw")


def by_text(found, params, with_statements=True):
    """An optimizer as its code makes it; the statements are run where they are said to be."""
    names = {"torch": torch, "params": params}
    names |= {"tunewright": __import__("tunewright.search.rules.torch_optimizers")}
    optimizer = names["optimizer"] = eval(found.call, names)
    if found.once and with_statements:
        exec(found.once, names)
    numbers = iter(range(1, 10_000))

    def before_each(*_):
        exec(found.each, names | {"n": next(numbers)})

    if found.each and with_statements:
        optimizer.register_step_pre_hook(before_each)
    return optimizer


def smooth(optimizer_of, updates):
    """A vector and a matrix after some updates on a smooth problem, with a schedule."""
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    parameters = [torch.nn.Parameter(one) for one in (start, torch.stack([start + 1, start]))]
    optimizer = optimizer_of(parameters)
    for t in range(updates):
        optimizer.zero_grad()
        for one in parameters:
            (torch.cos(one * torch.arange(1, 8)) + 0.1 * t * one).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (t + 1) / updates
        optimizer.step()
    return np.concatenate([one.detach().numpy().ravel() for one in parameters])


def settings_of(rule, given):
    return {name: value for name, value in given.items() if name in RULES[rule].defaults}


@pytest.mark.parametrize("decay_vectors", [False, True])
@pytest.mark.parametrize("given", SETTINGS)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in INEXACT])
def test_what_is_said_to_be_equal_is(rule, given, decay_vectors):
    own = settings_of(rule, given)
    found = counterpart(rule, own, 0.01, decay_vectors)
    assert found.away == 0
    assert ("torch.optim." in found.call) == (rule not in NOT_IN_TORCH)
    torchs = smooth(lambda params: by_text(found, params), 40)
    ours = smooth(lambda params: make(rule, params, own, 0.01, decay_vectors), 40)
    np.testing.assert_allclose(torchs, ours, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("given", SETTINGS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_itself_is_always_equal(rule, given):
    found = counterparts.ours(rule, settings_of(rule, given), 0.01)
    (parameter,) = [torch.nn.Parameter(torch.ones(2))]
    optimizer = by_text(found, [parameter])
    assert isinstance(optimizer, RuleOptimizer)
    assert optimizer.defaults["lr"] == 0.01
    own = {**RULES[rule].defaults, **settings_of(rule, given)}
    assert own.items() <= optimizer.defaults.items()


@pytest.mark.parametrize("epsilon", [1e-10, 1e-4, 0.1])
def test_no_denominator_of_rmsprop_is_more_than_a_quarter_off(epsilon):
    own = {**RULES["rmsprop"].defaults, "epsilon": epsilon}
    parameter = torch.nn.Parameter(torch.ones(1))
    eps = by_text(counterpart("rmsprop", own, 0.1), [parameter]).param_groups[0]["eps"]
    v = np.concatenate([[0.0], np.geomspace(epsilon * 1e-12, epsilon * 1e12, 1001)])
    share = (np.sqrt(v) + eps) / np.sqrt(v + epsilon)
    assert share.min() == pytest.approx(0.75)
    assert share.max() == pytest.approx(1.25, rel=1e-4)


def test_momentum_of_rmsprop_is_equal_at_a_constant_learning_rate():
    """Where ε is small and v begins at 1, all that differs is the learning rate in the buffer."""
    own = {"rho": 0.9, "momentum": 0.8, "epsilon": 1e-24}

    def trained(optimizer_of, final):
        parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = optimizer_of([parameter])
        for t in range(20):
            parameter.grad = torch.cos(parameter.detach() * (t + 1))
            optimizer.param_groups[0]["lr"] = 0.01 if t < 10 else final
            optimizer.step()
        return parameter.detach().numpy()

    found = counterpart("rmsprop", own, 0.01)
    assert "while lr changes" in found.difference
    for final, is_equal in ((0.01, True), (0.001, False)):
        torchs = trained(lambda params: by_text(found, params), final)
        ours = trained(lambda params: make("rmsprop", params, own, 0.01), final)
        assert np.allclose(torchs, ours, rtol=1e-9) == is_equal


def way(optimizer_of, updates=100):
    """The way from the start, [P], as `counterparts` measures it."""
    work = load_workload("tunewright.models.digits:mlp", {"width": 16})
    torch.manual_seed(0)
    model = work.build_model(0).double()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer, batches = optimizer_of(list(model.parameters())), iter(work.train_batches(64, 0))
    for _ in range(updates):
        inputs, labels = next(batches)
        optimizer.zero_grad()
        work.loss(model, (inputs.double(), labels)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - start


@pytest.mark.parametrize("rule", ["adam", *INEXACT])
def test_what_is_said_of_the_distance_is_measured(rule):
    found = counterpart(rule, {}, 0.001)
    ours = way(lambda params: make(rule, params, {}, 0.001))
    for with_statements, said in ((True, found.away), (False, found.without)):
        theirs = way(lambda params, on=with_statements: by_text(found, params, on))
        away = float((ours - theirs).norm() / ours.norm())
        assert away == pytest.approx(said, rel=0.05, abs=1e-12)


def test_the_sentences_say_what_the_fields_do():
    found = counterpart("adam", {}, 0.003)
    assert found.call == "torch.optim.Adam(params, lr=0.003, betas=(0.9, 0.999), eps=1e-08)"
    assert found.sentences == [
        "torch corrects ε for bias: in early updates its is smaller, √(1 − β₂ⁿ) ε.",
        "Before update n = 1, 2, …: "
        "optimizer.param_groups[0]['eps'] = 1e-08 / (1 - 0.999 ** n) ** 0.5",
        "With this line: the same as what trained here, but for rounding; without it: 0.6% away "
        "from what trained here after 100 updates of a small network, at the rule's defaults.",
    ]
    assert counterpart("adamw", {}, 0.1).sentences == [
        "The same as what trained here, but for rounding."
    ]
    assert counterpart("lion", {"beta1": 0.8}, 0.1).call == (
        "tunewright.search.rules.torch_optimizers.make('lion', params, "
        "{'beta1': 0.8, 'beta2': 0.99, 'weight_decay': 0.0}, lr=0.1)"
    )


@pytest.mark.parametrize(
    ("name", "settings", "call"),
    [
        (
            "torch.optim:AdamW",
            {"beta2": 0.9, "eps": 1e-6, "amsgrad": True},
            "torch.optim.AdamW(params, lr=0.1, betas=(0.9, 0.9), eps=1e-06, amsgrad=True)",
        ),
        (
            "own_optimizers.Open",
            {"momentum": 0.5},
            "own_optimizers.Open(params, lr=0.1, momentum=0.5)",
        ),
        ("nowhere:Own", {"beta1": 0.5}, "nowhere.Own(params, lr=0.1, beta1=0.5)"),
    ],
)
def test_an_optimizer_of_torch_is_its_own_call(name, settings, call):
    found = counterpart(name, settings, 0.1)
    assert found.call == call
    assert found.sentences == [SAME]
