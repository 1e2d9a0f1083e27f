"""A rule as an optimizer of torch is the rule of the training loop, to the last bits."""

import copy
import dataclasses
import io
import pickle
import re

import numpy as np
import pytest
import torch
import zoo
from examples import parse

from tunewright.search.errors import UserError
from tunewright.search.rules.optimizers import RULES
from tunewright.search.rules.schedule import learning_rates
from tunewright.search.rules.torch_optimizers import make, why_another
from tunewright.search.train.loop import train
from tunewright.search.trial import Point

STEPS = 50
# none of them a default, so that a setting that goes astray shows
OWN = {
    "momentum": 0.7,
    "rho": 0.8,
    "beta1": 0.6,
    "beta2": 0.95,
    "epsilon": 1e-4,
    "weight_decay": 0.1,
}
# at which training is well under way after STEPS
RATES = {"sgd": 0.3, "momentum": 0.1, "nesterov": 0.1}


class Cast(torch.nn.Module):
    """Lets a model of any dtype take inputs of another."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, inputs):
        return inputs.to(self.dtype)


class Narrow:
    """A workload whose model has another dtype."""

    def __init__(self, dtype):
        self.workload, self.dtype = zoo.make("Mlp"), dtype

    def __getattr__(self, name):
        return getattr(self.workload, name)

    def build_model(self, seed):
        return torch.nn.Sequential(Cast(self.dtype), self.workload.build_model(seed)).to(self.dtype)


def settings(rule):
    return {name: OWN[name] for name in RULES[rule].defaults}


def point_of(rule, clip_norm=np.inf):
    return Point(
        *(0, 24, rule, RATES.get(rule, 0.01)),
        warmup_steps=5,
        clip_norm=clip_norm,
        decay="cosine",
        settings=settings(rule),
    )


def by_the_loop(work, point):
    """Losses of each update, and the model after the last one."""
    study = parse(max_train_steps=STEPS, objective="val_loss", batch_sizes=[24], evaluations=1)
    (one,) = train(study, work, [point], with_state=True)
    return one.trial.curve.loss, one.state["theta"]


def clip_(model, clip_norm):
    """As the loop does; torch's clip_grad_norm_ divides by the norm + 1e-6."""
    gradients = [p.grad for p in model.parameters()]
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    flat = torch.cat([g.flatten() for g in gradients])
    factor = (clip_norm / torch.linalg.vector_norm(flat, dtype=wide)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor)


def by_hand(work, point, interrupt=lambda optimizer: None):
    """The same, by a plain loop with `make`."""
    zoo.seed_all(point.seed)
    model = work.build_model(point.seed)
    optimizer = make(point.optimizer, model.parameters(), point.settings, lr=1.0)
    batches = iter(work.train_batches(point.batch_size, point.seed))
    losses = []
    for rate in learning_rates(point, STEPS):
        optimizer.zero_grad()
        loss = work.loss(model, next(batches))
        loss.backward()
        clip_(model, point.clip_norm)
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
        losses.append(loss.item())
        optimizer = interrupt(optimizer) or optimizer
    return np.array(losses), torch.cat([p.detach().flatten() for p in model.parameters()])


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("rule", RULES)
def test_a_plain_loop_with_a_rule_is_the_training_loop(rule, dtype):
    work, point = Narrow(dtype), point_of(rule)
    losses, theta = by_the_loop(work, point)
    found, parameters = by_hand(work, point)
    assert losses[-10:].mean() < 0.9 * losses[:10].mean()  # it trains
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    np.testing.assert_allclose(found, losses, rtol=rtol)
    torch.testing.assert_close(parameters, theta, rtol=rtol, atol=rtol)


@DTYPES
@pytest.mark.parametrize("rule", RULES)
def test_its_state_dict_is_all_that_it_holds(rule, dtype):
    """Saved and loaded into another one after every update, and copied, training is the same."""

    def saved_and_loaded(optimizer):
        content = io.BytesIO()
        torch.save(optimizer.state_dict(), content)
        content.seek(0)
        fresh = make(rule, optimizer.param_groups[0]["params"], {}, lr=1.0)
        fresh.load_state_dict(torch.load(content, weights_only=True))
        return fresh

    work, point = Narrow(dtype), point_of(rule)
    losses, parameters = by_hand(work, point)
    again, others = by_hand(work, point, saved_and_loaded)
    np.testing.assert_array_equal(again, losses)
    assert torch.equal(others, parameters)


def test_a_copy_updates_by_the_same_rule():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make("lion", [parameter], {}, lr=0.1)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (own,) = copied.param_groups[0]["params"]
        own.grad = torch.ones(3)
        copied.step()
        torch.testing.assert_close(own.detach(), torch.full((3,), 0.9))
    assert torch.equal(parameter, torch.ones(3))


def test_groups_have_learning_rates_and_settings_of_their_own():
    first, second = (torch.nn.Parameter(torch.ones(1, 2)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second], "lr": 1.0, "weight_decay": 0.5}]
    optimizer = make("adamw", groups, {"weight_decay": 0.0}, lr=0.1)
    for parameter in (first, second):
        parameter.grad = torch.full((1, 2), 3.0)
    optimizer.step()
    # the first update of Adam is ± η
    torch.testing.assert_close(first.detach(), torch.full((1, 2), 0.9))
    torch.testing.assert_close(second.detach(), torch.full((1, 2), -0.5))


def test_a_group_says_for_itself_whether_vectors_decay():
    one, other, matrix = (torch.nn.Parameter(torch.ones(shape)) for shape in (2, 2, (1, 2)))
    groups = [{"params": [one, matrix]}, {"params": [other], "decay_vectors": True}]
    optimizer = make("lion", groups, {"weight_decay": 0.5}, lr=0.1)
    for parameter in (one, other, matrix):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(one, torch.ones(2))
    torch.testing.assert_close(other.detach(), torch.full((2,), 0.95))
    torch.testing.assert_close(matrix.detach(), torch.full((1, 2), 0.95))


def test_a_state_of_before_there_was_the_choice_goes_on_decaying_all():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make("lion", [parameter], {"weight_decay": 0.5}, lr=0.1)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["decay_vectors"]
    optimizer.load_state_dict(saved)
    parameter.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((2,), 0.95))


def test_a_parameter_without_gradient_rests_and_another_layout_is_no_matter():
    still, across = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3, 2).T)
    scalar = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = make("momentum", [still, across, scalar], {"momentum": 0.5}, lr=0.1)
    gradient = torch.arange(6.0).view(2, 3)
    for _ in range(2):
        across.grad, scalar.grad = gradient.clone(), torch.tensor(2.0)
        optimizer.step()
    assert torch.equal(still, torch.ones(2))
    assert not optimizer.state[still]
    torch.testing.assert_close(across.detach(), 1 - 0.1 * (1 + 1.5) * gradient)
    torch.testing.assert_close(scalar.detach(), torch.tensor(1 - 0.1 * (1 + 1.5) * 2.0))


def clears_one(parameters, groups, update):
    parameters[update % 3].grad = None


def rebinds(parameters, groups, update):
    parameters[0].data = parameters[0].data.clone()


def is_moved_to_double_precision(parameters, groups, update):
    if update == 2:
        for parameter in parameters:
            parameter.data, parameter.grad = parameter.data.double(), parameter.grad.double()


def has_two_dtypes(parameters, groups, update):
    if update == 0:
        half = parameters[1].data.bfloat16()
        parameters[1].data, parameters[1].grad = half, parameters[1].grad.bfloat16()


def lies_across(parameters, groups, update):
    parameters[2].data = parameters[2].data.T.contiguous().T


def is_replaced(parameters, groups, update):
    if update == 2:
        new = torch.nn.Parameter(parameters[1].detach() + 1)
        new.grad = parameters[1].grad
        for group in groups:
            group["params"] = [new if one is parameters[1] else one for one in group["params"]]
        parameters[1] = new


def shares_memory(parameters, groups, update):
    if update == 1:
        parameters[0].data = torch.ones(2, 3)
        parameters[2].data = parameters[0].data.view(3, 2)
        parameters[2].grad = None
    elif update > 1:
        parameters[2].grad = None


def is_frozen(parameters, groups, update):
    if update > 1:
        parameters[0].requires_grad_(False).grad = None


def accumulates(parameters, groups, update):
    for parameter in parameters:
        parameter.grad += parameter.grad


HABITS = [
    *(clears_one, rebinds, is_moved_to_double_precision, has_two_dtypes, lies_across),
    *(is_replaced, shares_memory, is_frozen, accumulates),
]


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_parameters_together_are_updated_as_each_alone(rule, habit):
    """Whatever a user does to them between updates; gradients stay the user's own."""

    def trained(alone):
        generator = torch.Generator().manual_seed(0)
        shapes = [(2, 3), (5,), (3, 2)]
        parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes
        ]
        given = [[one] for one in parameters] if alone else [parameters]
        optimizers = [make(rule, some, settings(rule), lr=0.1) for some in given]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        kept = []
        for update in range(5):
            for one in parameters:
                one.grad = torch.randn(one.shape, generator=generator).to(one.dtype)
            habit(parameters, groups, update)
            gradients = [one.grad for one in parameters if one.grad is not None]
            kept += [(one, one.clone()) for one in gradients]
            for optimizer in optimizers:
                optimizer.step()
        assert all(torch.equal(one, before) for one, before in kept)
        return parameters

    for one, other in zip(trained(False), trained(True), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_it_takes_a_closure():
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make("sgd", [parameter], {}, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4.0
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.6]))


def test_a_schedule_of_torch_sets_its_learning_rate():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = make("sgd", [parameter], {}, lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    for _ in range(3):
        parameter.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([1 - 0.111]))


AVERAGED = [name for name, rule in RULES.items() if rule.average]


def with_average(rule, dtype, updates=5):
    """An optimizer after some updates, its parameters, and what makes their next gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 9), (300, 301), (3,)]  # some together, one alone
    parameters = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes
    ]
    optimizer = make(rule, parameters, settings(rule), lr=0.1)

    def step(given):
        for one in parameters:
            one.grad = torch.randn(one.shape, generator=generator).to(dtype)
        given.step()

    for _ in range(updates):
        step(optimizer)
    return optimizer, parameters, step


def copies(parameters):
    return [one.detach().clone() for one in parameters]


def all_equal(some, others):
    return all(map(torch.equal, some, others))


@DTYPES
@pytest.mark.parametrize("rule", AVERAGED)
def test_the_average_is_lent_to_the_parameters_which_come_back_to_the_last_bit(rule, dtype):
    optimizer, parameters, step = with_average(rule, dtype)
    plain, others, plain_step = with_average(rule, dtype)
    before = copies(parameters)
    name = RULES[rule].average.state
    average = [optimizer.state[one][name].to(dtype) for one in parameters]
    assert not any(map(torch.equal, before, average))
    assert optimizer.holds_average is False
    for _ in range(2):  # twice is once
        optimizer.eval()
        assert optimizer.holds_average
        assert all_equal(copies(parameters), average)
    for _ in range(2):
        optimizer.train()
        assert all_equal(copies(parameters), before)
    step(optimizer)
    plain_step(plain)
    assert all_equal(copies(parameters), copies(others))
    assert str(optimizer.state_dict()) == str(plain.state_dict())


@DTYPES
@pytest.mark.parametrize("is_evaluating", [False, True])
@pytest.mark.parametrize("rule", AVERAGED)
def test_what_was_saved_in_either_mode_goes_on(rule, is_evaluating, dtype):
    optimizer, parameters, step = with_average(rule, dtype)
    if is_evaluating:
        optimizer.eval()
    saved = copy.deepcopy(optimizer.state_dict())
    fresh_parameters = [torch.nn.Parameter(one.detach().clone()) for one in parameters]
    fresh = make(rule, fresh_parameters, {}, lr=1.0)
    fresh.load_state_dict(saved)
    assert fresh.holds_average is is_evaluating
    for one in (optimizer, fresh):
        one.train()
    assert all_equal(copies(parameters), copies(fresh_parameters))
    step(optimizer)
    for one, other in zip(fresh_parameters, parameters, strict=True):
        one.grad = other.grad.clone()
    fresh.step()
    assert all_equal(copies(parameters), copies(fresh_parameters))
    assert fresh.param_groups[0]["weights"] == optimizer.param_groups[0]["weights"]


@pytest.mark.parametrize("rule", AVERAGED)
def test_an_update_while_the_parameters_hold_the_average_is_refused(rule):
    optimizer, _, step = with_average(rule, torch.float32)
    optimizer.eval()
    with pytest.raises(UserError, match=rf"optimizer {rule}: .* call optimizer.train\(\)"):
        step(optimizer)


@pytest.mark.parametrize("rule", RULES)
def test_before_the_first_update_and_without_an_average_nothing_is_lent(rule):
    updates = 3 if rule not in AVERAGED else 0
    optimizer, parameters, _ = with_average(rule, torch.float32, updates)
    before, saved = copies(parameters), str(optimizer.state_dict())
    optimizer.eval()
    assert all_equal(copies(parameters), before)
    optimizer.train()
    assert all_equal(copies(parameters), before)
    assert str(optimizer.state_dict()) == saved


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_schedule_free_equals_its_authors(weight_decay):
    """Where the learning rate never falls: there theirs weighs by the highest so far."""
    schedulefree = pytest.importorskip("schedulefree")
    start = torch.linspace(-1, 1, 7, dtype=torch.float64).view(1, 7)
    own = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-4, "weight_decay": weight_decay}
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = make("schedule_free_adamw", [ours], own, lr=0.1)
    reference = schedulefree.AdamWScheduleFree(
        [theirs], 0.1, (0.8, 0.95), 1e-4, weight_decay, warmup_steps=5
    )
    reference.train()
    for update in range(40):
        optimizer.param_groups[0]["lr"] = 0.1 * min(1.0, (update + 1) / 5)
        for parameter, one in ((ours, optimizer), (theirs, reference)):
            parameter.grad = torch.cos(parameter.detach() * torch.arange(1, 8) + update)
            one.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        for one in (optimizer, reference):
            one.eval()
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        for one in (optimizer, reference):
            one.train()
    assert not torch.equal(ours.detach(), start)


PARAMETERS = [torch.nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize(
    ("name", "own", "reason"),
    [
        ("adm", {}, "optimizer: must be one of sgd, momentum"),
        (
            "adam",
            {"momentum": 0.9},
            "optimizer adam: has no setting momentum; known are: beta1, beta2, epsilon",
        ),
        ("sgd", {"momentum": 0.9}, "optimizer sgd: has no setting momentum; known are: none"),
        ("adam", {"beta1": 1.0}, "optimizer adam: beta1 must be a number in [0, 1), got 1.0"),
        ("adam", {"beta1": "a"}, "optimizer adam: beta1 must be a number in [0, 1), got 'a'"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(name, own, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        make(name, PARAMETERS, own, lr=0.1)


def test_complex_parameters_and_sparse_gradients_are_refused():
    with pytest.raises(UserError, match="sgd: has no update for parameters of"):
        make("sgd", [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], {}, lr=0.1)
    layer = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = make("sgd", layer.parameters(), {}, lr=0.1)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="optimizer sgd: takes no sparse gradients"):
        optimizer.step()


def test_an_optimizer_is_that_of_a_rule_if_its_class_is_the_closest_one(monkeypatch):
    """Also of a rule that somebody added, whose counterpart names the class."""
    monkeypatch.setitem(RULES, "mine", dataclasses.replace(RULES["adam"], name="mine"))
    adam = torch.optim.Adam(PARAMETERS)
    own = type("Own", (torch.optim.Optimizer,), {})(PARAMETERS, {"lr": 0.1})
    for name in ("adam", "mine"):
        assert why_another(adam, name) == ""
        assert why_another(torch.optim.AdamW(PARAMETERS), name) != ""
    for name in RULES:
        assert why_another(make(name, PARAMETERS, {}, lr=0.1), name) == ""
        assert why_another(own, name) == ""
    assert why_another(adam, "lion") != ""  # none of torch is
    assert why_another(type("Lion", (torch.optim.Adam,), {})(PARAMETERS), "lion") == ""
