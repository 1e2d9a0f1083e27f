"""A workload is checked by shape, before the first training, with messages that say what to do."""

import itertools
import re

import pytest
import torch

from tunewright.search.errors import UserError
from tunewright.search.workload.batches import examples
from tunewright.search.workload.workload import check_workload, load_workload


class Line:
    """Fits a line; each method can be broken by name."""

    def __init__(self, broken=""):
        self.broken = broken

    def build_model(self, seed):
        if self.broken == "no parameters":
            return torch.nn.Identity()
        return torch.nn.Linear(1, 1)

    def train_batches(self, batch_size, seed):
        if self.broken == "batch size":
            raise ValueError(f"batch_size {batch_size} > 10 training examples")
        rows = batch_size - 1 if self.broken == "short batch" else batch_size
        return itertools.repeat((torch.ones(rows, 1), torch.ones(rows, 1)))

    def loss(self, model, batch):
        squares = (model(batch[0]) - batch[1]) ** 2
        return squares if self.broken == "vector loss" else squares.mean()

    def evaluate(self, model):
        return {"val_loss": 1.0}


class Incomplete:
    def loss(self):
        return 0


def test_a_complete_workload_passes():
    check_workload(Line(), "val_loss", [4, 8])


@pytest.mark.parametrize(
    ("broken", "objective", "message"),
    [
        ("no parameters", "val_loss", "build_model returned a model without trainable parameters"),
        (
            "batch size",
            "val_loss",
            "train_batches(batch_size=4) raised ValueError: batch_size 4 > 10 training",
        ),
        ("short batch", "val_loss", "train_batches(batch_size=4) yielded a batch of 3 examples"),
        ("vector loss", "val_loss", "loss must return a scalar tensor"),
        ("", "val_eror", "objective: evaluate() returns val_loss; got 'val_eror'"),
    ],
)
def test_each_mistake_is_named(broken, objective, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_workload(Line(broken), objective, [4])


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        ("nonsense", {}, "must be package.module:factory, got 'nonsense'"),
        ("no_such_module_anywhere:f", {}, "cannot import 'no_such_module_anywhere'"),
        ("test_workload:Nothing", {}, "'test_workload' has no 'Nothing'"),
        (
            "test_workload:Line",
            {"depth": 3},
            "test_workload:Line(depth=3): got an unexpected keyword",
        ),
        ("test_workload:Incomplete", {}, "missing: build_model, train_batches, evaluate"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused(path, args, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_workload(path, args)


def test_examples_counts_the_leading_dimension_of_any_batch():
    for batch in (torch.ones(3, 2), (torch.ones(3), 1), {"x": torch.ones(3, 5)}):
        assert examples(batch, 4) == 3


class Weighted(Line):
    """The loss of a batch of n examples, by a rule of its own."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def loss(self, model, batch):
        squares = (model(batch[0]) - batch[1]) ** 2
        return {
            "mean": squares.mean(),
            "sum": squares.sum(),
            "spread": squares.mean() + squares.sum().sqrt(),
            "noisy sum": squares.sum() * torch.rand(()),
        }[self.rule]


@pytest.mark.parametrize(
    ("rule", "said"), [("mean", False), ("sum", True), ("spread", True), ("noisy sum", False)]
)
def test_a_loss_that_is_no_mean_over_examples_is_told_where_gradients_are_accumulated(
    rule, said, caplog
):
    """Of a loss that draws random numbers nothing is said: nobody can tell its noise from the
    parts.
    """
    check_workload(Weighted(rule), "val_loss", [8], accumulation=4)
    assert ("accumulation: the loss of a whole batch is" in caplog.text) is said
    caplog.clear()
    check_workload(Weighted(rule), "val_loss", [8])
    assert caplog.text == ""
