"""A trial with an optimizer of torch equals a plain loop with it, whatever else is in the study."""

import io
import re

import numpy as np
import pytest
import torch
import zoo
from examples import parse
from own_optimizers import Counting, Decoupled, Signs
from test_resume import Interrupted, Memory

from tunewright.search.errors import UserError
from tunewright.search.rules.schedule import learning_rates
from tunewright.search.train import loop
from tunewright.search.train.choose import choose
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.train.loop import train
from tunewright.search.trainers.tryout import check_studies
from tunewright.search.trial import Point

STEPS = 40
optim = torch.optim
# name, settings, what makes the same by hand, base_lr
ALL = [
    ("torch.optim.SGD", {"momentum": 0.9, "nesterov": True}, optim.SGD, 0.03),
    ("torch.optim.SGD", {}, optim.SGD, 0.1),
    ("torch.optim:AdamW", {"beta1": 0.8, "weight_decay": 0.1, "eps": 1e-6}, optim.AdamW, 0.02),
    ("torch.optim.Adam", {"beta2": 0.9, "amsgrad": True}, optim.Adam, 0.02),
    ("torch.optim.NAdam", {"momentum_decay": 0.01}, optim.NAdam, 0.02),
    ("torch.optim.RMSprop", {"alpha": 0.9, "momentum": 0.5, "centered": True}, optim.RMSprop, 0.01),
    ("torch.optim.Adagrad", {"initial_accumulator_value": 0.1}, optim.Adagrad, 0.1),
    ("torch.optim.Rprop", {"eta1": 0.6}, optim.Rprop, 0.01),
    ("torch.optim.Adafactor", {"eps2": 0.01}, optim.Adafactor, 0.1),
    ("torch.optim.ASGD", {"lambd": 0.01}, optim.ASGD, 0.1),
    ("own_optimizers:Signs", {"beta1": 0.7, "steps": 2}, Signs, 0.005),
    ("own_optimizers.Decoupled", {"weight_decay": 0.2}, Decoupled, 0.02),
    ("own_optimizers.Counting", {"period": 2}, Counting, 0.1),
]
# settings that are members of a pair, as a plain loop gives them
PAIRS = {
    "torch.optim:AdamW": {"betas": (0.8, 0.999)},
    "torch.optim.Adam": {"betas": (0.9, 0.9)},
    "torch.optim.Rprop": {"etas": (0.6, 1.2)},
    "torch.optim.Adafactor": {"eps": (None, 0.01)},
    "own_optimizers:Signs": {"betas": (0.7, 0.99)},
}
MEMBERS = ("beta1", "beta2", "eta1", "eps2")
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(ALL)]


def point_of(name, settings, base_lr, number=0, clip_norm=0.3):
    return Point(
        *(number, 24, name, base_lr),
        warmup_steps=4,
        clip_norm=clip_norm,
        decay="cosine",
        settings=settings,
    )


def study(**changes):
    space = {"space__warmup_steps": 0, "batch_sizes": [24]}
    return parse(max_train_steps=STEPS, objective="val_loss", evaluations=4, **space, **changes)


def study_with(name, settings):
    return study(
        space__optimizer={name: {"base_lr": 0.1, **settings}},
        workload="zoo:make",
        workload_args={"entry": "Mlp"},
        trials=1,
    )


def by_hand(point, kind):
    """Losses, unclipped norms and parameters of a plain loop."""
    work = zoo.make("Mlp")
    zoo.seed_all(point.seed)
    model = work.build_model(point.seed)
    own = {name: value for name, value in point.settings.items() if name not in MEMBERS}
    optimizer = kind(model.parameters(), lr=point.base_lr, **own, **PAIRS.get(point.optimizer, {}))
    batches = iter(work.train_batches(point.batch_size, point.seed))
    losses, norms = [], []
    for rate in learning_rates(point, STEPS):
        optimizer.zero_grad()
        loss = work.loss(model, next(batches))
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
        for g in gradients:  # clip_grad_norm_ divides by the norm + 1e-6
            g.mul_((point.clip_norm / norm).clamp(max=1.0))
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, torch.cat([p.detach().flatten() for p in model.parameters()])


def check_equal(one, point, kind):
    losses, norms, parameters = by_hand(point, kind)
    curve = one.trial.curve
    np.testing.assert_allclose(curve.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(curve.grad_norm, norms, rtol=1e-12)
    torch.testing.assert_close(one.state["theta"], parameters, rtol=1e-12, atol=1e-13)
    assert one.trial.clip_fraction > 0.1


@pytest.mark.parametrize(("name", "settings", "kind", "base_lr"), ALL, ids=IDS)
def test_a_trial_equals_a_plain_loop_with_the_same_optimizer(name, settings, kind, base_lr):
    point = point_of(name, settings, base_lr)
    (one,) = train(study(), zoo.make("Mlp"), [point], with_state=True)
    check_equal(one, point, kind)
    losses = one.trial.curve.loss
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()  # it trains


def test_trials_of_torch_and_of_rules_share_a_study_and_a_stack_is_none():
    """Whatever engine is asked for: one after the other, each with a fresh optimizer."""
    entries = [ALL[2], ALL[0]]
    points = [point_of(*entry[:2], entry[3], i) for i, entry in enumerate(entries)]
    points.insert(1, point_of("adam", {}, 0.01, 2))
    stack = Engine(stacked=True, slots=3)
    found = list(train(study(), zoo.make("Mlp"), points, stack, with_state=True))
    found.sort(key=lambda one: one.trial.point.number)
    for one, point, entry in zip(found, [points[0], points[2]], entries, strict=False):
        check_equal(one, point, entry[2])
    (alone,) = train(study(), zoo.make("Mlp"), points[1:2])
    assert alone.trial.curve == found[2].trial.curve


def test_the_engine_says_why_it_does_not_stack():
    points = [point_of("adam", {}, 0.01, 0), point_of("torch.optim.AdamW", {}, 0.01, 1)]
    reason = "torch.optim.AdamW is an optimizer of torch, which updates one model at a time"
    both = study(space__optimizer={"adam": {"base_lr": 0.1}, "torch.optim.AdamW": {"base_lr": 0.1}})
    assert choose(both, zoo.make("Mlp"), points, workers=1) == Engine(False, 1, reason)
    assert choose(both, zoo.make("Mlp"), points[:1], workers=1) == Engine(False, 1, reason)
    forced = choose(both, zoo.make("Mlp"), points, workers=1, slots=2)
    assert not forced.stacked
    assert forced.reason == f"2 slots were wanted, {reason}"
    stack = Engine(stacked=True, slots=4, threads=2)
    assert stack.fit_for(["adam"]) is stack
    assert not stack.fit_for(["adam", "torch.optim.AdamW"]).stacked
    assert ALONE.fit_for(["torch.optim.AdamW"]) is ALONE


@pytest.mark.parametrize(("name", "settings", "kind", "base_lr"), ALL, ids=IDS)
def test_an_interrupted_trial_ends_as_if_it_had_not_been(
    name, settings, kind, base_lr, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    point, memory = point_of(name, settings, base_lr), Memory(savings=2)

    def trained():
        return list(train(study(), zoo.make("Mlp"), [point], keeper=memory, with_state=True))

    if kind is Counting:
        (one,) = trained()
        assert not memory.states  # it counts in Python: from its start again
    else:
        with pytest.raises(Interrupted):
            trained()
        (one,) = trained()
        assert memory.restored == 1
        assert not memory.again
    check_equal(one, point, kind)


def test_a_state_that_cannot_be_put_back_is_named_and_the_trial_begins_anew(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    first, other = point_of("torch.optim.SGD", {"momentum": 0.9}, 0.03), io.BytesIO()
    torch.save({"state": {}, "param_groups": [{}, {}]}, other)
    for damage, reason in [
        (b"nothing", "its optimizer's state cannot be put back"),
        (other.getvalue(), "loaded state dict has a different number of parameter groups"),
        (None, "optimizer"),  # as it was saved by a rule
    ]:
        memory = Memory(savings=2)
        with pytest.raises(Interrupted):
            list(train(study(), zoo.make("Mlp"), [first], keeper=memory))
        if damage is None:
            del memory.states[0]["optimizer"]
        else:
            memory.states[0]["optimizer"] = torch.frombuffer(bytearray(damage), dtype=torch.uint8)
        (one,) = train(study(), zoo.make("Mlp"), [first], keeper=memory, with_state=True)
        assert reason in memory.again[0]
        check_equal(one, first, optim.SGD)


REFUSED = [
    ("torch.optim.Adm", {}, "torch.optim has no Adm; did you mean Adam?"),
    ("torch.optm.Adam", {}, "cannot import 'torch.optm': No module named 'torch.optm'"),
    ("torch.nn.Linear", {}, "optimizer torch.nn.Linear: is no subclass of torch.optim.Optimizer"),
    ("torch.optim.Optimizer", {}, "is no subclass of torch.optim.Optimizer"),
    ("own_optimizers:NoOptimizer", {}, "is no subclass of torch.optim.Optimizer"),
    ("own_optimizers:Several", {}, "needs a closure"),
    ("own_optimizers:Needy", {"scale": 1.0}, "has no lr in its param_groups"),
    ("own_optimizers:Needy", {}, "scale: is required"),
    ("own_optimizers:Open", {"momentun": 0.9}, "unexpected keyword argument 'momentun'"),
    ("own_optimizers:Failing", {}, "its update raised RuntimeError: it never worked"),
    (
        "torch.optim.SGD",
        {"nesterov": True},
        "torch.optim.SGD(params, lr=0.1, nesterov=True) raised ValueError: Nesterov momentum",
    ),
    ("torch.optim.Muon", {}, "Muon only supports 2D parameters"),
    (
        "torch.optim.Muon",
        {"ns_step": 3},
        "ns_step is no argument of it; known are weight_decay, momentum, nesterov, ns_coefficient1",
    ),
]


@pytest.mark.parametrize(("name", "settings", "reason"), REFUSED)
def test_what_cannot_train_is_refused_before_the_first_trial(name, settings, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        check_studies([study_with(name, settings)])


def test_what_can_train_is_not():
    check_studies([study_with(name, settings) for name, settings, *_ in ALL])
