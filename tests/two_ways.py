"""Workloads whose objective may be maximized, in a file of their own: what a module of a workload
imports is looked through at each start of a trial.
"""

import functools
import itertools

import torch

from tunewright.models.digits import load
from tunewright.models.feedforward import MLP
from tunewright.models.supervised import Classification


class TwoWays:
    """The same metric as it is, and its negative."""

    def build_model(self, seed):
        torch.manual_seed(seed)
        return torch.nn.Linear(4, 1)

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in itertools.count():
            x = torch.randn(batch_size, 4, generator=generator)
            yield x, x.sum(1, keepdim=True) + torch.randn(batch_size, 1, generator=generator)

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, model):
        x = torch.eye(4)
        value = (model(x) - 1.3).square().mean()
        return {"val_loss": value, "negative_val_loss": -value}

    def test(self, model):
        return {"test_loss": self.evaluate(model)["val_loss"]}


class Accuracy(Classification):
    """Digits by how many are recognized."""

    def measure(self, model, batch):
        return {"accuracy": 1 - super().measure(model, batch)["error"]}


def accurate_digits():
    return Accuracy(load, functools.partial(MLP, 64, 10, 16, 2))
