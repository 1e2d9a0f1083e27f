"""Rules that train at one point and evaluate an average: what is measured and kept."""

import math
from dataclasses import replace

import pytest
import torch
import zoo
from examples import parse
from test_resume import Interrupted, Memory
from torch import nn

from tunewright.search.train import loop
from tunewright.search.train.audit import StackingError
from tunewright.search.train.execution import ALONE, Engine, Recorded
from tunewright.search.train.loop import train
from tunewright.search.train.rows import Stack
from tunewright.search.trial import Point

STACKED = Engine(stacked=True, slots=3)
ENGINES = pytest.mark.parametrize("engine", [ALONE, STACKED], ids=["alone", "stacked"])
RULE = "schedule_free_adamw"
OWN = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-4, "weight_decay": 0.1}
FIRST = Point(0, 24, RULE, 0.05, warmup_steps=4, settings=OWN, seed=1)
POINTS = [
    FIRST,
    Point(1, 24, "momentum", 0.02, warmup_steps=4, seed=1),
    replace(FIRST, number=2, base_lr=0.01),
    Point(3, 24, "adamw", 0.02, seed=1),
    replace(FIRST, number=4, seed=2),
    Point(5, 24, "sgd", 0.1, seed=3),
]


def study(**changes):
    return parse(
        max_train_steps=zoo.STEPS,
        objective="val_loss",
        batch_sizes=[24],
        evaluations=zoo.STEPS // zoo.EVERY,
        **changes,
    )


def trained(points=POINTS, engine=STACKED, work=None, **options):
    some = train(study(), work or zoo.make("Mlp"), points, engine, **options)
    return {one.trial.point.number: one for one in some}


@ENGINES
@pytest.mark.parametrize("name", ["Mlp", "BatchNorm"])
def test_losses_are_of_training_and_evaluations_and_checkpoints_of_the_average(name, engine):
    """Among neighbours of other rules, and with slots that refill."""
    found = trained(engine=engine, work=zoo.make(name))
    for point in POINTS:
        if point.optimizer != RULE:
            continue
        one, wanted = found[point.number], zoo.train(name, point)
        curve = one.trial.curve
        assert curve.loss == pytest.approx(wanted.losses, rel=1e-9)
        assert curve.metrics["val_loss"] == pytest.approx(wanted.metrics["val_loss"], rel=1e-9)
        best = wanted.states[wanted.metrics["val_loss"].index(min(wanted.metrics["val_loss"]))]
        assert one.checkpoint.keys() == best.keys()
        for key, tensor in best.items():
            torch.testing.assert_close(one.checkpoint[key], tensor, rtol=1e-9, atol=1e-12)


@ENGINES
def test_a_checkpoint_in_an_ordinary_model_has_the_reported_value(engine):
    work = zoo.make("Mlp")
    for one in trained(engine=engine).values():
        model = work.build_model(0)
        model.load_state_dict(one.checkpoint)
        with torch.no_grad():
            value = float(work.evaluate(model.eval())["val_loss"])
        assert value == pytest.approx(one.trial.best_value, rel=1e-12)


@ENGINES
def test_evaluations_do_not_move_training(engine):
    """To the last bit, of the rule and of its neighbours."""
    every = trained(engine=engine)
    seldom_study = study().model_copy(update={"evaluations": 1})
    seldom = {
        one.trial.point.number: one for one in train(seldom_study, zoo.make("Mlp"), POINTS, engine)
    }
    for number, one in every.items():
        assert one.trial.curve.loss.tolist() == seldom[number].trial.curve.loss.tolist()


def test_a_slot_evaluates_its_own_average_wherever_it_moves():
    work = zoo.make("Mlp")
    stack = Stack(Recorded(work, work.build_model(0)), 4, [RULE, "sgd"])
    models = [zoo.mlp() for _ in range(4)]
    rules = [RULE, "sgd", RULE, "sgd"]
    for k, (model, rule) in enumerate(zip(models, rules, strict=True)):
        stack.load(k, dict(model.named_parameters()), rule)
    averages = [zoo.mlp() for _ in range(4)]
    for k, average in enumerate(averages):
        saved = stack.state(k)
        row = torch.cat([p.detach().flatten() for p in average.parameters()])
        stack.restore(k, saved | {"state/x": row}, rules[k])

    def values():
        return [work.evaluate(nn.Module.eval(one))["val_loss"].item() for one in models]

    for model, average, rule in zip(models, averages, rules, strict=True):
        if rule == RULE:
            model.load_state_dict(average.state_dict())
    before = [stack.state(k)["theta"] for k in range(4)]
    assert stack.evaluate([0] * 4)["val_loss"] == pytest.approx(values(), rel=1e-12)
    assert all(torch.equal(stack.state(k)["theta"], row) for k, row in enumerate(before))
    order = [3, 0, 2]
    stack.arrange(order, shrink=False)
    moved = stack.evaluate([0] * 4)["val_loss"][:3]
    assert moved == pytest.approx([values()[k] for k in order], rel=1e-12)


@ENGINES
def test_an_interrupted_trial_goes_on_to_the_last_bit(engine, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    whole, memory = trained(POINTS[:3], engine), Memory(savings=3 * (3 if engine.stacked else 1))
    with pytest.raises(Interrupted):
        trained(POINTS[:3], engine, keeper=memory)
    got = trained(POINTS[:3], engine, keeper=memory)
    assert memory.restored
    assert memory.again == []
    for number, one in got.items():
        assert one.trial.curve == whole[number].trial.curve
        assert all(
            torch.equal(one.checkpoint[key], tensor)
            for key, tensor in whole[number].checkpoint.items()
        )


@ENGINES
def test_a_trial_that_stops_at_its_cut_goes_on_to_the_last_bit(engine):
    class Keeps(Memory):
        def save(self, point, state):
            self.states[point.number] = {name: one.clone() for name, one in state.items()}

    cut = study(cut={"at": 0.4, "keep": 0.5}, space__optimizer={RULE: {"base_lr": [0.01, 0.05]}})
    memory = Keeps(savings=math.inf)
    points = [FIRST, POINTS[2]]
    first = list(train(cut, zoo.make("Mlp"), points, engine, keeper=memory, to_cut=True))
    assert all(one.trial.verdict.outcome == "unfinished" for one in first)
    whole = trained(points, engine)
    for one in train(cut, zoo.make("Mlp"), points, engine, keeper=memory):
        assert one.trial.curve == whole[one.trial.point.number].trial.curve
    assert memory.restored == len(points)


def test_the_audit_computes_the_evaluation_of_the_average(monkeypatch):
    """It agrees; and where evaluations are of the parameters in training, it does not."""
    trained()
    monkeypatch.setattr(
        Stack, "evaluate", lambda stack, seeds: stack._execution.evaluate(stack._tensors, seeds)
    )
    with pytest.raises(StackingError, match="metric 'val_loss' differs"):
        trained([FIRST, POINTS[2]])
