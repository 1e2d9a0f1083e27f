"""The choice of how points are trained, as it is stored, and the objects that it becomes."""

from dataclasses import asdict, replace

import pytest
import torch
from examples import parse
from torch import nn
from torch.func import functional_call, vmap

from tunewright.search.train.execution import (
    ALONE,
    Compiled,
    CompiledAlone,
    Eager,
    Engine,
    Recorded,
)
from tunewright.search.train.loop import train
from tunewright.search.trial import Point
from tunewright.search.workload.workload import load_workload

STACK = Engine(stacked=True, slots=5)
COMPILED = replace(STACK, compiled=True)
COMPILED_ALONE = replace(ALONE, compiled=True)
EXECUTIONS = {
    ALONE: Eager,
    STACK: Recorded,
    COMPILED: Compiled,
    COMPILED_ALONE: CompiledAlone,
}


@pytest.mark.parametrize("engine", EXECUTIONS)
def test_every_engine_has_its_execution_and_a_record_that_is_read_again(engine):
    assert engine.execution is EXECUTIONS[engine]
    stored = asdict(engine)
    assert list(stored) == ["stacked", "slots", "reason", "threads", "compiled"]
    assert Engine.from_record(stored) == engine


@pytest.mark.parametrize(
    "more",
    [{}, {"threads": 1, "measured": True}, {"threads": 1, "measured": False, "compiled": False}],
    ids=["before threads", "before the compiler", "when a clock decided"],
)
def test_a_record_of_earlier_versions_is_read(more):
    record = {"stacked": True, "slots": 4, "reason": "fast", **more}
    assert Engine.from_record(record) == Engine(stacked=True, slots=4, reason="fast")


def test_what_failed_is_tried_in_simpler_and_simpler_ways_and_at_last_alone():
    tried, engine = [], COMPILED
    while engine:
        tried.append((engine.execution, engine.slots))
        engine = engine.simpler
    assert tried == [
        (Compiled, 5),
        (Recorded, 5),
        (Recorded, 2),
        (Recorded, 1),  # the same numbers as in a stack
        (Eager, 1),
    ]
    assert COMPILED_ALONE.simpler == ALONE


@pytest.mark.parametrize(
    ("engine", "capacity"), [(ALONE, 1), (COMPILED_ALONE, 1), (STACK, 3), (COMPILED, 5)]
)
def test_only_what_may_shrink_takes_fewer_rows_where_there_are_fewer_points(engine, capacity):
    assert engine.capacity(points=3) == capacity


@pytest.mark.parametrize(
    ("execution", "rows"), [(Eager, 1), (CompiledAlone, 1), (Recorded, 2), (Compiled, 2)]
)
def test_a_lone_slot_has_one_row_and_a_stack_an_idle_neighbour(execution, rows):
    assert execution.rows_for(1) == rows


class Unrecorded(Recorded):
    """K models at once under vmap, run anew at each update."""

    def gradients(self, rows, batch):
        def loss_of(values, buffers, batch):
            own = {f"model.{name}": tensor for name, tensor in (values | buffers).items()}
            return functional_call(self._call, own, ("loss", batch))

        leaves = {name: value.detach().requires_grad_() for name, value in rows.values.items()}
        loss_K = vmap(loss_of)(leaves, dict(rows.buffers), batch)
        found = torch.autograd.grad(loss_K.sum(), list(leaves.values()))
        for gradient, into in zip(found, rows.gradients.values(), strict=True):
            into.copy_(gradient)
        return loss_K.detach(), []


class WithBatchNorm:
    """The digits and a model with buffers."""

    def __init__(self):
        self._digits = load_workload("tunewright.models.digits:mlp", {})

    def __getattr__(self, name):
        return getattr(self._digits, name)

    def build_model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def test_another_execution_fits_behind_the_same_interface(monkeypatch):
    """One class is all that a new one takes: rows, updates, loop and audit do not ask which it is.

    With refills, a divergent neighbour and a stack that shrinks.
    """
    study = parse(objective="val_loss", max_train_steps=30, space__warmup_steps=0, evaluations=3)
    rates = (1e-2, 1e12, 1e-3, 3e-2, 1e-1)
    points = [Point(i, 16, "adam", rate, seed=i % 2) for i, rate in enumerate(rates)]

    def trained():
        traces = {}
        engine = Engine(stacked=True, slots=3)
        found = train(study, WithBatchNorm(), points, engine, traces=traces)
        by_number = {one.trial.point.number: one for one in found}
        return by_number, {method for method, *_ in traces}

    recorded, methods = trained()
    assert methods == {"loss", "evaluate"}
    monkeypatch.setattr(Engine, "execution", Unrecorded)
    other, methods = trained()
    assert methods == {"evaluate"}
    assert other.keys() == recorded.keys()
    for number, one in other.items():
        assert one.trial.curve == recorded[number].trial.curve
        for name, tensor in one.checkpoint.items():
            assert torch.equal(tensor, recorded[number].checkpoint[name])
