"""What is kept between calls is seen, wherever it is; what is not, is not."""

import copy
import threading

import kept
import numpy as np
import pytest
import torch
from posted import work
from test_habits import Line, plainly, study
from torch import nn

from tunewright.search.pool.inbox import read_inbox
from tunewright.search.pool.worker import Task
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.train.python_state import python_state
from tunewright.search.trial import Point

LARGE = 2**21  # numbers: not hashed at a quick look


class Keeps(Line):
    def __init__(self, place=kept.in_no_place):
        self.place, self.lock = place, threading.Lock()

    def loss(self, model, batch):
        self.place()
        return super().loss(model, batch)


def changed(workload, change, quick):
    model = workload.build_model(0)
    before = python_state(workload, model, quick)
    assert python_state(workload, model, quick) == before
    change(workload, model)
    return python_state(workload, model, quick) != before


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("place", range(len(kept.PLACES)))
def test_state_is_seen_wherever_it_is_kept(monkeypatch, place, quick):
    monkeypatch.setenv("CALLS", "")
    assert changed(Keeps(), lambda *_: kept.PLACES[place](), quick)


@pytest.mark.parametrize("quick", [True, False])
def test_a_call_that_keeps_nothing_changes_nothing(quick):
    kept.in_no_place()
    assert not changed(Keeps(), lambda *_: kept.in_no_place(), quick)


class Holds(Keeps):
    """Tensors that belong to no model in training."""

    def build_model(self, seed):
        model = super().build_model(seed)
        self.average = copy.deepcopy(model)
        self.tensors = {"small": torch.ones(3), "large": torch.ones(LARGE)}
        self.array = np.ones(LARGE)
        model.hidden = [copy.deepcopy(model[0])]  # from parameters()
        return model


CHANGES = {
    "a module of the workload": lambda work, _: work.average[0].weight.data.mul_(0.9),
    "a module in a list": lambda _, model: model.hidden[0].bias.data.mul_(0.9),
    "a small tensor": lambda work, _: work.tensors["small"].data.mul_(0.9),
    "a large tensor": lambda work, _: work.tensors["large"].data[7:].mul_(0.9),
    "a large array": lambda work, _: work.array.__setitem__(5, 2.0),
}


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("what", CHANGES)
def test_tensors_are_seen_to_change_by_data_too(what, quick):
    assert changed(Holds(), CHANGES[what], quick)


def test_what_holds_itself_can_be_seen():
    def own(workload, model):
        model.parent, model[0].parent = [model], [model]

    assert changed(Keeps(), own, False)
    assert changed(Keeps(), own, True)


EPOCH = 64  # batches


class Epochs(Line):
    """Counts its epochs where they end, and has another loss in one of them."""

    epoch = 0

    def train_batches(self, batch_size, seed):
        for i, batch in enumerate(super().train_batches(batch_size, seed)):
            self.epoch = i // EPOCH
            yield batch

    def loss(self, model, batch):
        return super().loss(model, batch) * (0.1 if self.epoch == 1 else 1.0)


@pytest.mark.parametrize("engine", [Engine(True, 2), Engine(False, 1, compiled=True)])
def test_what_counts_epochs_is_trained_alone(monkeypatch, tmp_path, engine):
    """What a stack recorded in the first epoch holds in the last one, too, but not in between."""
    monkeypatch.setattr("tunewright.search.pool.worker.load_workload", lambda *_: Epochs())
    monkeypatch.setattr("tunewright.search.pool.worker._KNOWN", {})
    points = [Point(i, 8, "sgd", 0.01, seed=3) for i in range(2)]
    work(Task(study(3 * EPOCH), tmp_path, points, engine))
    want, _ = plainly(Epochs(), points[0], 3 * EPOCH)
    got = [trial.curve.loss for trial, _ in read_inbox(tmp_path)]
    assert len(got) == len(points)
    np.testing.assert_allclose(got, [want, want], rtol=1e-9)


class Heads(Line):
    """The names in a batch choose a head; a batch of the second comes late."""

    def build_model(self, seed):
        return nn.ModuleDict({name: nn.Linear(8, 1) for name in "ab"}).double()

    def train_batches(self, batch_size, seed):
        for i, (x, y) in enumerate(super().train_batches(batch_size, seed)):
            yield {"b" if i == 10 else "a": x, "y": y}

    def loss(self, model, batch):
        (name,) = batch.keys() - {"y"}
        return nn.functional.mse_loss(model[name](batch[name]), batch["y"])

    def evaluate(self, model):
        return {"val_loss": sum(head.weight.square().sum() for head in model.values())}


def test_batches_of_other_names_are_recorded_apart():
    points = [Point(i, 8, "sgd", 0.01, seed=3) for i in range(2)]
    got = [one.trial.curve.loss for one in train(study(), Heads(), points, Engine(True, 2))]
    want, _ = plainly(Heads(), points[0])
    np.testing.assert_allclose(got, [want, want], rtol=1e-9)
