"""The choice between one after the other and stacked: never a wrong number, the same whatever the
machine does meanwhile, and a sentence that says why.
"""

import itertools
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from examples import parse
from torch import nn

from tunewright.search.errors import UnfinishedError, UserError
from tunewright.search.train.choose import (
    COMPILED_SLOTS,
    CPU,
    FEWEST_SLOTS,
    MOST_SLOTS,
    choose,
    devices,
    why_not_stacked,
)
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.train.work import Work, count_work
from tunewright.search.trial import Point
from tunewright.search.workload.workload import load_workload

MODULE = sys.modules["tunewright.search.train.choose"]


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
def test_it_trains_one_after_the_other_all_the_same(workload):
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


SHIPPED = [
    ("digits:mlp", {}, 32, True),
    ("digits:mlp", {}, 256, True),
    ("digits:mlp", {"width": 1024}, 64, False),
    ("digits:conv", {}, 32, True),
    ("digits:conv", {"width": 64}, 32, False),
    ("diabetes:mlp", {}, 32, True),
    ("residual_mlp:digits", {}, 32, True),
    ("wide_resnet:digits", {}, 128, False),
    ("transformer:characters", {}, 16, False),
]


@pytest.mark.parametrize(("name", "arguments", "batch_size", "stacked"), SHIPPED)
def test_what_a_stack_trains_faster_is_stacked(name, arguments, batch_size, stacked, monkeypatch):
    """As measured: tests/benchmarks/README.md, "Stacked or alone"."""
    monkeypatch.setattr(MODULE, "why_not_stacked", lambda *arguments: "")  # slow, tested above
    workload = load_workload(f"tunewright.models.{name}", arguments)
    some = [Point(i, batch_size, "adam", 1e-3) for i in range(4)]
    chosen = choose(study(), workload, some, workers=1)
    assert chosen.stacked == stacked
    assert chosen.reason.startswith("by rule: an update is ")


def test_work_is_counted_as_it_is():
    """Of 8 inputs of 2 numbers, through 8 hidden units, to 1 output; 4 bytes a number."""
    before = torch.get_rng_state()
    work = count_work(Regression(), batch_size=8, seed=0, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    forward = 2 * 8 * (2 * 8 + 8 * 1)
    weights, hidden = 2 * 8 * (2 * 8 + 8 * 1), 2 * 8 * (8 * 1)
    assert work.flops == forward + weights + hidden
    assert work.parameters == 4 * (2 * 8 + 8 + 8 + 1)
    assert work.bytes > work.parameters
    assert 10 <= work.calls <= 30
    assert count_work(Regression(), batch_size=16, seed=3, device="cpu").calls == work.calls


def test_the_more_a_model_computes_the_less_a_stack_gains():
    gains, slots = [], []
    for flops in (1e5, 1e6, 1e7, 1e8, 1e9):
        work = Work(calls=20, flops=int(flops), bytes=int(flops / 20), parameters=10_000)
        slots.append(CPU.slots(work))
        gains.append(CPU.gain(work, slots[-1]))
    assert gains == sorted(gains, reverse=True)
    assert slots == sorted(slots, reverse=True)
    assert (slots[0], slots[-1]) == (MOST_SLOTS, FEWEST_SLOTS)


def a_choice(workers=1, count=64, **changes):
    """What a study of 64 points chooses whose last `count` are left."""
    digits = load_workload("tunewright.models.digits:mlp", {})
    some = [Point(i, 32, ("adam", "momentum")[i % 2], 1e-3, seed=i % 3) for i in range(64)]
    return choose(study(20_000), digits, some[-count:], workers=workers, **changes)


@contextmanager
def wild_clocks():
    """Every stopwatch jumps by anything from a microsecond to an hour at each look."""
    jumps = itertools.accumulate(itertools.cycle([1e-6, 3600.0, 1e-3, 1.0, 60.0]))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("perf_counter", "monotonic", "time", "process_time", "thread_time"):
            monkeypatch.setattr(time, name, lambda: next(jumps))
        yield


@contextmanager
def busy_cores():
    """Twice as many processes as cores, which do nothing but compute."""
    burn = [sys.executable, "-c", "import time\nwhile time.process_time() < 60: pass"]
    burning = [subprocess.Popen(burn) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


@pytest.mark.parametrize("load", [wild_clocks, busy_cores])
def test_the_choice_under_load_is_the_choice_without(load):
    idle = a_choice()
    with load():
        assert a_choice() == idle
    assert idle.stacked


@pytest.mark.parametrize(
    "changes", [{"workers": 2}, {"workers": 16}, {"count": 1}, {"count": 7, "workers": 2}]
)
def test_nothing_but_the_number_of_slots_depends_on_workers_and_on_the_points_that_are_left(
    changes,
):
    found, whole = a_choice(**changes), a_choice()
    assert replace(found, slots=0) == replace(whole, slots=0)
    assert 2 <= found.slots <= whole.slots


def test_nothing_but_the_number_of_slots_depends_on_free_memory(monkeypatch):
    whole = a_choice()
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    assert a_choice() == replace(whole, slots=2)


def test_one_optimizer_of_torch_is_enough_to_train_every_point_alone():
    """Whichever of the study's points are left, or are in this round."""
    of_torch = parse(
        objective="val_loss",
        max_train_steps=30,
        space__optimizer={
            "adam": {"base_lr": 1e-3},
            "torch.optim.RAdam": {"base_lr": 1e-3},
        },
    )
    chosen = choose(of_torch, Regression(), points(), workers=1)
    assert chosen.reason.startswith("torch.optim.RAdam is an optimizer of torch")


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, 1e9], ids=["stacked", "alone"])
def test_what_is_compiled_trains_the_same_and_its_slots_are_fixed(gain, monkeypatch):
    monkeypatch.setattr(MODULE, "WORTH_STACKING", gain)
    chosen = choose(study(60), Regression(), points(), workers=1, compiled=True)
    assert chosen.compiled
    assert chosen.reason.endswith("compiled, as was wanted")
    assert choose(study(60), Regression(), points(1), workers=9, compiled=True) == chosen
    assert chosen.slots == (COMPILED_SLOTS if chosen.stacked else 1)
    trained = {
        t.trial.point.number: t.trial for t in train(study(60), Regression(), points(), chosen)
    }
    for alone in train(study(60), Regression(), points()):
        loss = trained[alone.trial.point.number].curve.loss
        torch.testing.assert_close(loss, alone.trial.curve.loss, rtol=1e-3, atol=1e-6)


def no_compiler(module, **options):
    raise RuntimeError("No working C++ compiler found")


def other_numbers(module, **options):
    return lambda *arguments: [1.01 * tensor for tensor in module(*arguments)]


def test_what_cannot_be_compiled_is_trained_as_it_is_and_says_why(monkeypatch):
    monkeypatch.setattr(torch, "compile", other_numbers)
    chosen = choose(study(), Regression(), points(), workers=1, compiled=True)
    assert not chosen.compiled
    assert chosen.reason.endswith(
        "cannot be compiled: loss differs by 1.0e-02 from the model as it is"
    )
    chosen = choose(study(), Dropout(), points(), workers=1, compiled=True)
    assert not chosen.compiled
    assert chosen.reason.startswith("cannot be stacked: vmap: called random operation")


def test_a_machine_without_a_compiler_trains_nothing_that_is_to_be_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", no_compiler)
    place = "is to be trained compiled, which this machine cannot: No working C"
    with pytest.raises(UnfinishedError, match=place):
        choose(study(), Regression(), points(), workers=1, compiled=True)


@pytest.mark.parametrize("compiled", [None, False])
def test_nothing_is_compiled_that_nobody_wants_compiled(monkeypatch, compiled):
    monkeypatch.setattr(torch, "compile", None)
    assert not choose(study(), Regression(), points(), workers=1, compiled=compiled).compiled


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


@pytest.fixture
def _two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("_two_gpus")
def test_every_gpu_trains_by_default(monkeypatch):
    asked = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: asked.append(device) or ones(*shape))
    assert devices() == asked == ["cuda:0", "cuda:1"]
    assert devices("cpu") == ["cpu"]


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="its GPU works")
def test_a_gpu_that_does_not_work_is_no_silent_processor():
    with pytest.raises(UserError, match=r"device: 'cuda:0' is not there: .*; with --device cpu"):
        devices()


def test_without_a_gpu_the_processor_trains(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices() == ["cpu"]


def test_a_device_that_is_not_there_is_named():
    assert devices("cpu") == ["cpu"]
    with pytest.raises(UserError, match="device: 'cuda:7' is not there"):
        devices("cpu,cuda:7")
    with pytest.raises(UserError, match="device: 'gpu' is not there"):
        devices("gpu")
