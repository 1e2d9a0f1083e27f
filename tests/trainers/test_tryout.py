"""Studies that are tried before they run: what is said of them, and once."""

from itertools import repeat
from types import SimpleNamespace

import pytest
import torch
import zoo
from examples import parse
from torch import nn

from tunewright.search.errors import warn_once
from tunewright.search.trainers import function as function_module
from tunewright.search.trainers import tryout
from tunewright.search.trainers.tryout import check_studies, seconds_per_step
from tunewright.search.trainers.watched import MisuseError


def never_watched(run):
    nn.Linear(2, 2)


def never_told(run):
    model = nn.Linear(2, 2)
    optimizer = run.optimizer(model)
    for batch in run.steps([nn.Parameter(model.weight.detach()[0])]):
        model(batch).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("function", [never_watched, never_told])
def test_a_misuse_that_timing_finds_names_its_study_once(function, monkeypatch):
    monkeypatch.setattr(function_module, "load_function", lambda study: function)
    study = parse(workload=..., train="script:main", max_train_steps=20, evaluations=2)
    with pytest.raises(MisuseError) as raised:
        seconds_per_step(study, steps=10)
    assert str(raised.value).startswith(f"{study.name}: {study.train}: ")


@pytest.mark.parametrize(
    ("name", "optimizer", "is_said"),
    [
        ("BatchNorm", "schedule_free_adamw", True),
        ("BatchNorm", "adamw", False),
        ("Mlp", "schedule_free_adamw", False),
    ],
)
def test_batch_normalization_beside_an_average_is_told(
    name, optimizer, is_said, monkeypatch, caplog
):
    warn_once.cache_clear()
    monkeypatch.setattr(tryout, "load_workload", lambda *_: zoo.make(name))
    space = {optimizer: {"base_lr": [0.1, 0.2]}}
    check_studies([parse(objective="val_loss", batch_sizes=[8], space__optimizer=space)])
    assert (f"{optimizer} evaluates an average" in caplog.text) is is_said


@pytest.mark.parametrize(
    ("optimizer", "named", "is_said"),
    [
        ("muon", None, True),
        ("muon", (), False),
        ("muon", ("2.weight",), False),
        ("adamw", None, False),
    ],
)
def test_an_output_layer_that_muon_is_not_told_of_is_asked_for(
    optimizer, named, is_said, monkeypatch, caplog
):
    warn_once.cache_clear()
    work = zoo.make("Mlp")
    if named is not None:
        monkeypatch.setattr(work, "not_matrices", named, raising=False)
    monkeypatch.setattr(tryout, "load_workload", lambda *_: work)
    space = {optimizer: {"base_lr": [0.1, 0.2]}}
    check_studies([parse(objective="val_loss", batch_sizes=[8], space__optimizer=space)])
    assert ("as not_matrices = ['2.weight']" in caplog.text) is is_said


class Words(nn.Module):
    """A model whose parameters stand in no order, with an output layer of its own or a tied one."""

    def __init__(self, output):
        super().__init__()
        self.head = nn.Linear(4, 7)
        self.inner = nn.Linear(4, 4)
        self.table = nn.Embedding(7, 4)
        if output != "own":
            self.head = nn.Linear(4, 7, bias=False) if output == "tied" else None
        if output == "tied":
            self.head.weight = self.table.weight

    def forward(self, tokens):
        found = self.table(tokens)
        found = found + self.inner(found).relu()
        return self.head(found) if self.head else found @ self.table.weight.T


@pytest.mark.parametrize(
    ("output", "said"), [("own", "['head.weight']"), ("tied", ""), ("the table's", "")]
)
def test_the_output_layer_is_the_one_that_is_nearest_to_the_loss(output, said, monkeypatch, caplog):
    warn_once.cache_clear()
    tokens = torch.arange(8) % 7
    work = SimpleNamespace(
        build_model=lambda generator: Words(output),
        train_batches=lambda batch_size, seed: repeat(tokens),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch), batch),
        evaluate=lambda model: {"val_loss": 1.0},
    )
    monkeypatch.setattr(tryout, "load_workload", lambda *_: work)
    space = {"muon": {"base_lr": [0.1, 0.2]}}
    check_studies([parse(objective="val_loss", batch_sizes=[8], space__optimizer=space)])
    assert caplog.text.count("not_matrices") == (2 if said else 0)
    assert said in caplog.text
