"""What differs only later in training ends stacking, and no wrong number is handed out."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import parse
from posted import why_alone, work
from torch import nn

from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.inbox import read_inbox
from tunewright.search.pool.worker import Task
from tunewright.search.run import run_study
from tunewright.search.train.audit import StackingError, relative_difference
from tunewright.search.train.choose import choose, why_not_stacked
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Point

STACKED = Engine(stacked=True, slots=2)
STEPS, TURN = 60, 30
HIDDEN = "_turned"  # state that no look at workload, model or modules can find


class Turns:
    """From batch TURN on, the loss is another: what was recorded before is wrong then."""

    def build_model(self, seed):
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        setattr(sys, HIDDEN, "0")
        for drawn in range(10**6):
            if drawn == TURN:
                setattr(sys, HIDDEN, "1")
            yield torch.randn(batch_size, 2, generator=generator)

    def loss(self, model, batch):
        return (model(batch) ** 2).mean() * (0.9 if getattr(sys, HIDDEN) == "1" else 1.0)

    def evaluate(self, model):
        return {"val_loss": (model(torch.ones(4, 2)) ** 2).mean()}


def turns():
    return Turns()


def study(**changes):
    return parse(
        objective="val_loss", max_train_steps=STEPS, space__warmup_steps=0, evaluations=3, **changes
    )


def points(count=3):
    return [Point(i, 8, "sgd", 1e-2, seed=i) for i in range(count)]


def alone():
    return [next(train(study(), Turns(), [point])).trial.curve for point in points()]


def test_a_few_updates_do_not_show_it_and_an_audit_does():
    assert why_not_stacked(study(), Turns(), points(), "cpu") == ""
    with pytest.raises(
        StackingError, match=r"later in training the loss differs by 1.* from the model alone"
    ):
        list(train(study(), Turns(), points(), STACKED))


def test_the_trials_are_trained_again_alone_and_the_reason_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tunewright.search.pool.worker.load_workload", lambda *_: Turns())
    monkeypatch.setattr("tunewright.search.pool.worker._KNOWN", {})
    work(Task(study(), tmp_path, points(), STACKED))
    found = {trial.point.number: trial.curve for trial, _ in read_inbox(tmp_path)}
    assert [found[point.number] for point in points()] == alone()
    assert "the loss differs" in why_alone(tmp_path, points()[0])


def test_other_workers_end_stacking_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tunewright.search.pool.worker.load_workload", lambda *_: Turns())
    monkeypatch.setattr("tunewright.search.pool.worker._KNOWN", {})
    work(Task(study(), tmp_path, points(2), STACKED))
    short = study().model_copy(update={"max_train_steps": TURN // 2})  # stays equal to the last
    used = []
    monkeypatch.setattr(
        "tunewright.search.pool.worker.train",
        lambda study, workload, some, engine, *rest, **named: (
            used.append(engine) or train(study, workload, some, engine, *rest, **named)
        ),
    )
    work(Task(short, tmp_path, points(3), STACKED))
    assert used[0] == STACKED
    assert not used[-1].stacked


@pytest.mark.slow
def test_a_run_says_that_stacking_ended_and_has_the_numbers_of_one_after_the_other(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(Path(__file__).parent)
    space = {"sgd": {"base_lr": [0.01, 0.02, 0.03, 0.04]}}
    a_study = study(
        workload="test_audit:turns",
        sampler="grid",
        trials=...,
        batch_sizes=[8],
        space={"optimizer": space},
    )
    trials = run_study(
        a_study, results=tmp_path / "a", backend=InProcess(), slots=2, progress=False
    )
    wanted = run_study(
        a_study, results=tmp_path / "b", backend=InProcess(), slots=1, progress=False
    )
    assert [trial.curve for trial in trials] == [trial.curve for trial in wanted]
    # the first check passed
    assert "trained one after the other: 2 slots were wanted" not in caplog.text
    text = (tmp_path / "a" / a_study.name / "environment.json").read_text()
    assert '"reason": "later in training the loss differs' in text


def test_what_is_equal_passes_every_audit(monkeypatch):
    checked = []
    original = train.__globals__["Audit"].check
    monkeypatch.setattr(
        train.__globals__["Audit"], "check", lambda *args: checked.append(args) or original(*args)
    )

    class Still(Turns):
        def loss(self, model, batch):
            return (model(batch) ** 2).mean()

    trained = list(train(study(), Still(), points(5), STACKED))
    assert len(trained) == 5
    assert len(checked) >= 3


@pytest.mark.parametrize("forced", [2, 4])
def test_slots_that_are_wanted_are_refused_where_they_would_change_numbers(forced):
    chosen = choose(study(), counting(), points(), workers=1, slots=forced)
    assert not chosen.stacked
    assert chosen.reason.startswith(
        f"{forced} slots were wanted, cannot be stacked: workload or model keeps state"
    )
    assert choose(study(), Turns(), points(), workers=1, slots=forced).slots == forced
    accumulating = study(accumulation=2)
    assert "accumulated" in choose(accumulating, Turns(), points(), workers=1, slots=forced).reason
    assert choose(study(), counting(), points(), workers=1, slots=1).slots == ALONE.slots


@pytest.mark.parametrize(
    ("ours", "others", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.2], 0.1),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.inf, 2.0], [np.inf, 3.0], 0.5),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_a_relative_difference_is_that_of_the_largest(ours, others, difference):
    assert relative_difference(ours, others) == pytest.approx(difference)


def counting():
    class Counts(Turns):
        calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch)

    return Counts()


def test_a_run_with_slots_that_cannot_be_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(Path(__file__).parent)
    space = {"sgd": {"base_lr": [0.01, 0.02]}}
    a_study = study(
        workload="test_audit:counting",
        sampler="grid",
        trials=...,
        batch_sizes=[8],
        space={"optimizer": space},
    )
    trials = run_study(a_study, results=tmp_path, backend=InProcess(), slots=2, progress=False)
    assert all(trial.feasible for trial in trials)
    assert (
        "batch size 8: trained one after the other: 2 slots were wanted, cannot be stacked"
        in caplog.text
    )
