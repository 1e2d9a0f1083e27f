"""Studies that are tried before they run: what is said of them, and once."""

import pytest
from examples import parse
from torch import nn

from tunewright.search.trainers import function as function_module
from tunewright.search.trainers.tryout import seconds_per_step
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
