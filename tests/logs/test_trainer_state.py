"""Losses of 0 that stand for nan, and the rest of a trainer_state.json."""

import json
import math

import numpy as np
import pytest

from tunewright.search.errors import UserError
from tunewright.search.judge.verdict import judge
from tunewright.search.logs.log import read_log

EVERY = 10


def state(path, losses, norms=None, **more):
    history = []
    for place, loss in enumerate(losses):
        entry = {"step": EVERY * (place + 1), "loss": loss, "learning_rate": 1e-3}
        if norms is not None:
            entry["grad_norm"] = norms[place]
        history.append(entry)
    history.append({"step": EVERY * len(losses), "train_loss": 0.5, "train_runtime": 3.0})
    content = {"best_metric": None, "logging_steps": EVERY, "log_history": history}
    path.write_text(json.dumps(content | more, indent=2))
    return path


FALLS = [2.0 * 0.97**place for place in range(60)]


def test_a_healthy_one(tmp_path):
    path = state(tmp_path / "trainer_state.json", FALLS, max_steps=800, trial_params={"lr": 0.1})
    log = read_log(path)
    assert log.format == "Transformers' trainer_state.json"
    assert log.step.tolist() == [EVERY * place for place in range(1, 61)]
    assert log.loss.tolist() == FALLS
    assert log.total_steps == 800
    assert log.curve().planned_losses == 80
    assert log.hyperparameters == {"max_steps": 800, "logging_steps": EVERY, "lr": 0.1}
    assert log.notes[0].startswith("Each loss is the mean of the updates since the one before")
    assert judge(log.curve()).feasible


def test_a_loss_of_0_with_a_norm_that_is_nan_is_nan(tmp_path):
    losses, norms = [*FALLS[:40], 0.0], [1.0] * 40 + [math.nan]
    log = read_log(state(tmp_path / "trainer_state.json", losses, norms))
    verdict = judge(log.curve())
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 410)
    assert any(
        "1 loss is exactly 0, and taken as nan: logging_nan_inf_filter" in n for n in log.notes
    )


def test_losses_that_fall_to_0_at_once_and_stay_are_nan(tmp_path):
    log = read_log(state(tmp_path / "trainer_state.json", [*FALLS[:40], *[0.0] * 20]))
    assert np.isnan(log.loss[40:]).all()
    assert any("20 losses are exactly 0, and taken as nan" in note for note in log.notes)


@pytest.mark.parametrize(
    "losses",
    [[*FALLS[:40], 0.0], [*FALLS[:10], 0.0, *FALLS[10:]], [1.0, 1e-4, 0.0, 0.0, 0.0]],
    ids=["the last one", "one between", "rounded"],
)
def test_a_loss_of_0_that_may_be_one_is_kept_and_said(tmp_path, losses):
    log = read_log(state(tmp_path / "trainer_state.json", losses))
    assert log.loss.tolist() == losses
    assert any("so they may be no losses. Set it to False." in note for note in log.notes)


def test_a_norm_that_is_nan_though_the_loss_is_not_0(tmp_path):
    """Some updates of the mean were nan, and none after: they were skipped; at the end they were
    not.
    """
    norms = [1.0] * 60
    norms[30] = math.nan
    path = state(tmp_path / "trainer_state.json", FALLS, norms)
    assert judge(read_log(path).curve()).feasible
    norms[-1] = math.nan
    path = state(tmp_path / "trainer_state.json", FALLS, norms)
    assert judge(read_log(path).curve()).outcome == "non_finite"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"log_history": [{"step": 1, "lo', "is damaged: "),
        ('{"log_history": 3}', "has no log_history"),
        ('{"log_history": [3]}', "has no log_history"),
        ('{"log_history": []}', "has no rows"),
        ('[{"log_history": []}]', "has no log_history"),
    ],
)
def test_what_is_no_state_is_refused(tmp_path, content, sentence):
    path = tmp_path / "trainer_state.json"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_log(path)
