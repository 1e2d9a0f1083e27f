"""The choice between one after the other and stacked: never a wrong number, and a sentence that
says why.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch
from examples import parse
from torch import nn

from tunewright.search.errors import UserError
from tunewright.search.train.choose import choose, devices, why_not_stacked
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Point
from tunewright.search.workload.workload import load_workload

MODULE = "tunewright.search.train.choose"


class Regression:
    """Fits a constant; subclasses do what cannot be stacked."""

    def build_model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(batch_size, 2, generator=generator)

    def loss(self, model, batch):
        return (model(batch.to(next(model.parameters()).dtype)) ** 2).mean()

    def evaluate(self, model):
        with torch.no_grad():
            return {"val_loss": self.loss(model, torch.ones(4, 2))}


class Dropout(Regression):
    def build_model(self, seed):
        return nn.Sequential(super().build_model(seed), nn.Dropout(0.5))


class ReadsALoss(Regression):
    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return loss * (2.0 if loss.item() > 1 else 1.0)


class CountsItsCalls(Regression):
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        return super().loss(model, batch)


class Float32Only(Regression):
    def loss(self, model, batch):
        return (model(batch) ** 2).mean()


class NumbersFromEvaluate(Regression):
    def evaluate(self, model):
        return {"val_loss": super().evaluate(model)["val_loss"].item()}


class FrozenPart(Regression):
    """Random features that differ from seed to seed and are never trained."""

    def build_model(self, seed):
        model = super().build_model(seed)
        model[0].weight.requires_grad_(False)
        return model


def study(steps=30):
    return parse(objective="val_loss", max_train_steps=steps, space__warmup_steps=0, evaluations=3)


def points(count=4, **changes):
    return [Point(i, 8, ("adam", "momentum")[i % 2], 1e-2, **changes) for i in range(count)]


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (Regression, ""),
        (Float32Only, ""),
        (NumbersFromEvaluate, ""),
        (FrozenPart, ""),
        (Dropout, "cannot be stacked: vmap: called random operation"),
        (ReadsALoss, "cannot be stacked: vmap: It looks like you're"),
        (CountsItsCalls, "cannot be stacked: workload or model keeps state in Python"),
    ],
)
def test_what_cannot_be_stacked_says_why(workload, reason):
    found = why_not_stacked(study(), workload(), points(), "cpu")
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_what_the_check_itself_remembers_is_no_state_of_the_workload():
    """Of some seeds the loss falls in the few updates, so that they are audited, too."""
    digits = load_workload("tunewright.models.digits:mlp", {"width": 16})
    for seed in range(4):
        some = [Point(i, 32, "adam", 1e-2, seed=seed) for i in range(2)]
        assert why_not_stacked(study(), digits, some, "cpu") == ""


@pytest.mark.parametrize("workload", [Dropout, ReadsALoss])
def test_it_trains_one_after_the_other_all_the_same(workload, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.WORTH_UPDATES", 0)
    monkeypatch.setattr(f"{MODULE}.WORTH_SECONDS", 0.0)
    chosen = choose(study(), workload(), points(), workers=1)
    assert not chosen.stacked
    assert chosen.reason.startswith("cannot be stacked")
    first = [t.trial for t in train(study(), workload(), points(), chosen)]
    again = [t.trial for t in train(study(), workload(), points()[::-1], chosen)]
    assert [t.curve for t in first] == [t.curve for t in again[::-1]]


@pytest.mark.parametrize("workload", [NumbersFromEvaluate, FrozenPart])
def test_seeds_and_metrics_of_their_own_survive_stacking(workload):
    some = [*points(2), *(Point(2 + i, 8, "adam", 1e-2, seed=7) for i in range(2))]
    stacked = {
        t.trial.point.number: t
        for t in train(study(), workload(), some, Engine(stacked=True, slots=4))
    }
    for point in some:
        (alone,) = train(study(), workload(), [point])
        got = stacked[point.number]
        torch.testing.assert_close(
            torch.tensor(got.trial.curve.loss),
            torch.tensor(alone.trial.curve.loss),
            rtol=1e-4,
            atol=1e-7,
        )
        for name, tensor in alone.checkpoint.items():
            torch.testing.assert_close(got.checkpoint[name], tensor, rtol=1e-3, atol=1e-5)


def clock(monkeypatch, seconds):
    """A stopwatch that has gone on by `seconds` at every look, however busy the machine is."""
    ticks = itertools.count(step=seconds)
    monkeypatch.setattr(f"{MODULE}.time", SimpleNamespace(perf_counter=lambda: next(ticks)))


def test_a_short_study_is_not_measured(monkeypatch):
    clock(monkeypatch, 0.001)
    for steps, reason in (
        (30, "only 120 updates in all: a choice would not pay"),
        (300, "1200 short updates in all: over before a choice has paid"),
    ):
        assert choose(study(steps), Regression(), points(), workers=1) == Engine(False, 1, reason)


@pytest.mark.parametrize(
    ("rates", "slots", "reason"),
    [
        ({1: 100, 4: 300, 16: 800, 24: 900}, 24, "900 updates/s stacked, 100 one after the other"),
        # too little gained to be wider yet
        ({1: 100, 4: 300, 16: 310, 24: 900}, 16, "310 updates/s stacked"),
        ({1: 100, 4: 109, 16: 108}, 1, "100 updates/s; the best stack is only 1.09 times as fast"),
    ],
)
def test_small_models_are_stacked_where_it_pays_and_never_wider_than_the_points(
    monkeypatch, rates, slots, reason
):
    clock(monkeypatch, 1.0)
    monkeypatch.setattr(
        f"{MODULE}._rate", lambda study, work, points, how, *more: float(rates[how.slots])
    )
    work = load_workload("tunewright.models.digits:mlp", {})
    chosen = choose(study(steps=20_000), work, points(24), workers=1)
    assert (chosen.stacked, chosen.slots) == (slots > 1, slots)
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("count", "rates", "threads", "tried"),
    [
        (4, {1: 500.0}, 1, [1]),  # a point for every worker: nothing but processes is tried
        (1, {1: 500.0, 4: 800.0}, 4, [1, 4]),  # three cores would be idle
        (2, {1: 500.0, 2: 700.0, 4: 900.0}, 2, [1, 2, 4]),  # 2 × 700 beats 1 × 900
        (2, {1: 500.0, 2: 520.0, 4: 900.0}, 1, [1, 2, 4]),
    ],
)
def test_threads_take_the_place_of_processes_where_these_are_slower(
    monkeypatch, count, rates, threads, tried
):
    seen = []

    def rate(study, workload, points, how, device, traces=None):
        seen.append(torch.get_num_threads())
        return rates[torch.get_num_threads()]

    monkeypatch.setattr(f"{MODULE}._rate", rate)
    monkeypatch.setattr(f"{MODULE}.why_not_stacked", lambda *arguments: "cannot be stacked: no")
    chosen = choose(study(steps=1_000_000), Regression(), points(count), workers=4, cores=4)
    assert (chosen.stacked, chosen.threads, seen) == (False, threads, tried)
    assert torch.get_num_threads() == 1


def long(monkeypatch):
    """Makes the choice as in a study that trains for long."""
    for name in ("WORTH_UPDATES", "WORTH_SECONDS", "COMPILED_SECONDS"):
        monkeypatch.setattr(f"{MODULE}.{name}", 0)


@pytest.mark.slow
def test_a_long_study_is_compiled_where_it_is_faster_and_trains_the_same(monkeypatch):
    long(monkeypatch)
    monkeypatch.setattr(f"{MODULE}.WORTH_COMPILING", 0.0)
    chosen = choose(study(60), Regression(), points(), workers=1)
    assert chosen.compiled
    assert chosen.reason.endswith(" compiled")
    trained = {
        t.trial.point.number: t.trial for t in train(study(60), Regression(), points(), chosen)
    }
    for alone in train(study(60), Regression(), points()):
        loss = trained[alone.trial.point.number].curve.loss
        torch.testing.assert_close(loss, alone.trial.curve.loss, rtol=1e-3, atol=1e-6)
    monkeypatch.setattr(f"{MODULE}.WORTH_COMPILING", 1e9)
    chosen = choose(study(60), Regression(), points(), workers=1)
    assert not chosen.compiled
    assert "compiled only" in chosen.reason


def no_compiler(module, **options):
    raise RuntimeError("No working C++ compiler found")


def other_numbers(module, **options):
    return lambda *arguments: [1.01 * tensor for tensor in module(*arguments)]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (no_compiler, "cannot be compiled: No working C++ compiler found"),
        (other_numbers, "cannot be compiled: loss differs by 1.0e-02 from the model as it is"),
    ],
)
def test_what_cannot_be_compiled_is_trained_as_it_is_and_says_why(monkeypatch, compiler, reason):
    long(monkeypatch)
    monkeypatch.setattr(torch, "compile", compiler)
    chosen = choose(study(), Regression(), points(), workers=1)
    assert not chosen.compiled
    assert chosen.reason.endswith(reason)


class Lengths(Regression):
    """Batches of four sizes in turn."""

    def train_batches(self, batch_size, seed):
        return itertools.cycle([torch.ones(batch_size + more, 2) for more in range(4)])


def test_every_batch_size_is_compiled_and_of_each_stack_two_kinds_of_batches_at_the_most(
    monkeypatch,
):
    compiled = []

    def compiler(module, **options):
        compiled.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", compiler)
    traces, chosen = {}, Engine(stacked=True, slots=2, compiled=True)
    for batch_size in (2, 3, 4, 5, 6):
        some = [Point(i, batch_size, "sgd", 1e-2) for i in range(2)]
        assert len(list(train(study(5), Regression(), some, chosen, traces=traces))) == 2
    assert len(compiled) == 5
    for traces in ({}, {}):
        assert len(list(train(study(9), Lengths(), points(2), chosen, traces=traces))) == 2
    assert len(compiled) == 9


@pytest.mark.parametrize("compiled", [None, False])
def test_a_short_study_is_not_compiled_and_nor_is_one_that_must_not_be(monkeypatch, compiled):
    long(monkeypatch)
    monkeypatch.setattr(f"{MODULE}.COMPILED_SECONDS", 0.0 if compiled is False else 1e9)
    monkeypatch.setattr(torch, "compile", None)
    assert not choose(study(), Regression(), points(), workers=1, compiled=compiled).compiled


def test_more_slots_than_points_and_none_of_them_lost():
    trained = list(train(study(), Regression(), points(3), Engine(stacked=True, slots=64)))
    assert sorted(t.trial.point.number for t in trained) == [0, 1, 2]


class Uneven(Regression):
    def train_batches(self, batch_size, seed):
        return itertools.cycle([torch.ones(batch_size, 2), torch.ones(batch_size - 1, 2)])


def test_batches_that_differ_in_size_train_alone_and_stacked_with_the_same_numbers():
    stacked = list(train(study(), Uneven(), points(2), Engine(stacked=True, slots=2)))
    for got in stacked:
        (alone,) = train(study(), Uneven(), [got.trial.point])
        torch.testing.assert_close(
            torch.tensor(got.trial.curve.loss),
            torch.tensor(alone.trial.curve.loss),
            rtol=1e-4,
            atol=1e-7,
        )


class TwoDtypes(Regression):
    def build_model(self, seed):
        return nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1).double())


def test_parameters_of_two_kinds_are_refused():
    with pytest.raises(
        UserError,
        match=r"must share one device and dtype; found torch\.float32 on cpu, torch\.float64",
    ):
        list(train(study(), TwoDtypes(), points(1)))


class Frozen(Regression):
    def build_model(self, seed):
        return super().build_model(seed).requires_grad_(False)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(UserError, match="returned a model without trainable parameters"):
        list(train(study(), Frozen(), points(1)))


def test_a_device_that_is_not_there_is_named():
    assert devices("cpu") == ["cpu"]
    with pytest.raises(UserError, match="device: 'cuda:7' is not there"):
        devices("cpu,cuda:7")
    with pytest.raises(UserError, match="device: 'gpu' is not there"):
        devices("gpu")
