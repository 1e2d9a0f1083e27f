"""What is wrong with an objective is said, and nothing is said of one that ranks trainings."""

import math

import numpy as np
import pytest

from tunewright.search.cli import main
from tunewright.search.judge.objective import fault_of
from tunewright.search.store.results import read_diagnosis
from tunewright.search.trial import Curve, Point, Trial, Verdict

STEPS = np.arange(0, 101, 10)
FALLING = np.geomspace(2.0, 0.2, 100)
FLAT = np.full(100, 2.0)
FEASIBLE = Verdict("feasible", "none", math.inf, "")

WORKLOAD = """
import torch
from torch import nn


class Signs:
    def __init__(self):
        self.x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
        self.y = self.x.sum(1, keepdim=True)

    def build_model(self, seed):
        torch.manual_seed(seed)
        return nn.Linear(8, 1)

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(0, 64, (batch_size,), generator=generator)
            yield self.x[chosen], self.y[chosen]

    def loss(self, model, batch):
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    def evaluate(self, model):
        right = (torch.sign(model(self.x)) == torch.sign(self.y)).float().mean()
        return {"val_accuracy": right}


make = Signs
"""
STUDY = """
workload = "signs:make"
objective = "val_accuracy"
max_train_steps = 30
batch_sizes = [8]
sampler = "grid"
evaluations = 10
[space.optimizer.sgd]
base_lr = [0.003, 0.01, 0.03]
"""


def trials(values, objective="val", loss=FALLING, count=4, maximize=False):
    """As many trainings of one loss, and these values of the objective."""
    curve = Curve(
        loss, np.ones(len(loss)), STEPS, {objective: np.asarray(values, float)}, len(loss)
    )
    points = [Point(i, 32, "sgd", 0.01 * 2**i) for i in range(count)]
    return [
        Trial.from_curve(point, FEASIBLE, curve, objective, seconds=0.1, maximize=maximize)
        for point in points
    ]


@pytest.mark.parametrize(
    "name", ["val_acc", "accuracy", "test/AUC", "f1", "bleu-4", "top1", "mean_reward"]
)
def test_a_metric_whose_name_says_that_larger_is_better_is_not_minimized(name):
    rising = np.linspace(0.1, 0.9, len(STEPS))
    assert "by its name higher is better" in fault_of(trials(rising, name), name)
    assert fault_of(trials(1 - rising, name), name) == ""  # it is 1 − accuracy under that name
    assert fault_of(trials(rising, name, maximize=True), name) == ""
    wandering = np.where(np.arange(len(STEPS)) % 2, 0.4, 0.5)
    assert "by its name" in fault_of(trials(wandering, name), name)
    assert fault_of(trials(wandering, name), name, said=True) == ""


def test_what_rises_as_the_loss_falls_is_told_whatever_its_name():
    rising = np.linspace(0.1, 0.9, len(STEPS))
    assert fault_of(trials(rising), "val") == (
        "val is minimized, but is best before training in 4 of 4 trainings, and rises as the loss "
        "falls: if higher is better, set maximize = true."
    )
    assert fault_of(trials(1 - rising, maximize=True), "val") == (
        "val is maximized, but is best before training in 4 of 4 trainings, and falls as the loss "
        "falls: if lower is better, set maximize = false."
    )
    assert fault_of(trials(rising, maximize=True), "val") == ""
    assert fault_of(trials(1 - rising), "val") == ""
    # some trainings improve it
    assert fault_of([*trials(rising), *trials(1 - rising)], "val") == ""


@pytest.mark.parametrize(
    "name", ["accuracy_loss", "map_error", "val_loss", "spaces", "accumulated"]
)
def test_a_name_that_only_looks_like_it_is_none(name):
    assert fault_of(trials(np.linspace(0.9, 0.89, len(STEPS)), name), name) == ""


def test_an_objective_that_never_changes_is_told_from_base_lrs_that_train_nothing():
    constant = np.full(len(STEPS), 0.25)
    assert "does not depend on what is trained" in fault_of(trials(constant), "val")
    assert "base LRs up to 0.08 are too low" in fault_of(trials(constant, loss=FLAT), "val")
    assert fault_of(trials(constant + 1e-3 * np.arange(len(STEPS))[::-1]), "val") == ""


def test_an_objective_that_is_never_a_number_is_said_to_be_and_one_that_is_for_once_is_not():
    nothing = np.full(len(STEPS), math.nan)
    assert "nan or inf in every evaluation of all 4" in fault_of(trials(nothing), "val")
    once = np.where(STEPS < 20, 1 - STEPS / 100, math.nan)
    assert fault_of(trials(once), "val") == ""
    assert fault_of([], "val") == ""


def test_diagnose_says_what_is_wrong_adopts_nothing_and_ends_with_2(tmp_path, monkeypatch, capsys):
    (tmp_path / "signs.py").write_text(WORKLOAD)
    (tmp_path / "s.toml").write_text(STUDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", "s.toml", "--workers", "1", "--slots", "1"]) == 2
    out = capsys.readouterr().out
    assert "by its name higher is better" in out
    assert "recipe:" not in out
    (found,) = read_diagnosis(tmp_path / "runs" / "s").groups
    assert (found.adopted, found.remedies) == ("", ())
    assert not (tmp_path / "runs" / "s" / "recipe.toml").exists()
