"""A study file and a workload that several tests use."""

import copy
import tomllib

from tunewright.search.study.study import Study, parse_study

GOOD = tomllib.loads(
    """
    workload = "a.b:c"
    objective = "val_error"
    max_train_steps = 1000
    batch_sizes = [32, 256]
    trials = 8
    [space]
    warmup_steps = { orders_of_magnitude = true }
    clip_norm = [inf, 1.0]
    [space.optimizer.momentum]
    base_lr = { low = 1e-3, high = 10.0, log = true }
    [space.optimizer.adam]
    base_lr = { low = 1e-5, high = 0.1, log = true }
    warmup_steps = 0
    """
)
# a linear model without a chance_loss, which trains in no time
WORKLOAD = """
import torch

class Line:
    def __init__(self, arguments):
        self.arguments = arguments

    def build_model(self, seed):
        return torch.nn.Linear(1, 1)

    def train_batches(self, batch_size, seed):
        while True:
            yield torch.ones(batch_size, 1)

    def loss(self, model, batch):
        return (model(batch) - 1).square().mean()

    def evaluate(self, model):
        return {"val_loss": self.loss(model, torch.ones(1, 1))}

def make(**arguments):
    return Line(arguments)
"""


def parse(**changes) -> Study:
    """GOOD with keys changed; a dotted key reaches into tables, ... removes a key."""
    document = copy.deepcopy(GOOD)
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        table = document
        for parent in parents:
            table = table.setdefault(parent, {})
        if value is ...:
            del table[key]
        else:
            table[key] = value
    return parse_study(document, name="s", place="s.toml")


# A module whose workload crashes with every seed but 0, until a file named "mended" is there.
FRAGILE = """
import itertools
import os

import torch


class Fragile:
    def build_model(self, seed):
        if seed > 0 and not os.path.exists("mended"):
            raise RuntimeError(f"seed {seed} is unlucky")
        torch.manual_seed(seed)
        return torch.nn.Linear(1, 1)

    def train_batches(self, batch_size, seed):
        return itertools.repeat(torch.ones(batch_size, 1))

    def loss(self, model, batch):
        return ((model(batch) - 1) ** 2).mean()

    def evaluate(self, model):
        return {"val_loss": self.loss(model, torch.ones(1, 1))}
"""
