"""A trial of a function, for those that train by a framework what others train by a plain loop."""

import re
import sys
from pathlib import Path

import numpy as np
import torch
from examples import parse

from tunewright.search.cli import main
from tunewright.search.trainers import function as function_module
from tunewright.search.trainers.function import measure_by_function, train_by_function

STEPS, EVALUATIONS = 40, 3  # the last of them after fewer updates than the others


def train_point(monkeypatch, function, point, objective):
    """Train a point of a study by a function."""
    monkeypatch.setattr(function_module, "load_function", lambda study: function)
    (found,) = train_by_function(study_of(objective), [point])
    return found


def study_of(objective):
    return parse(
        workload=...,
        train="script:main",
        objective=objective,
        max_train_steps=STEPS,
        evaluations=EVALUATIONS,
    )


def measure_checkpoint(monkeypatch, function, point, objective, tensors):
    """What a function reports of a checkpoint."""
    monkeypatch.setattr(function_module, "load_function", lambda study: function)
    study = study_of(objective)
    return measure_by_function(study, point, Path("best.safetensors"), tensors)


def train_by_loop(run, model, batches, loss_of, evaluate):
    """Train as a plain loop of torch does; `evaluate` returns the metrics."""
    optimizer = run.optimizer(model)

    def report():
        optimizer.eval()
        with torch.no_grad():
            run.report(**evaluate(), model=model)
        optimizer.train()

    report()
    for batch in run.steps(batches):
        loss = loss_of(batch)
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            report()


def assert_same(one, other, rtol=1e-5, checkpoint_rtol=1e-4):
    """Two trainings have the same curve, verdict and best checkpoint, up to rounding."""
    mine, theirs = one.trial.curve.arrays(), other.trial.curve.arrays()
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=rtol, err_msg=name)
    assert one.trial.verdict.outcome == other.trial.verdict.outcome
    assert one.trial.best_step == other.trial.best_step
    assert one.checkpoint.keys() == other.checkpoint.keys()
    for name, tensor in one.checkpoint.items():
        tolerance = {"rtol": checkpoint_rtol, "atol": checkpoint_rtol / 100}
        torch.testing.assert_close(tensor, other.checkpoint[name], **tolerance)


def assert_project_runs(kind, folder, monkeypatch, capsys):
    """A project of `new --from`, with fewer and shorter trials, is checked, tried and run; its
    report has an axis plot.
    """
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setitem(sys.modules, "train", None)  # put back as it was, at the end
    del sys.modules["train"]
    monkeypatch.chdir(folder)
    assert main(["new", ".", "--from", kind]) == 0
    assert {path.name for path in folder.iterdir()} == {
        "study.schema.json",
        "study.toml",
        "train.py",
    }
    text = Path("study.toml").read_text(encoding="utf-8")
    assert main(["check", "study.toml", "--time"]) == 0
    assert "warning" not in capsys.readouterr().out
    for key, value in {"max_train_steps": 60, "trials": 4}.items():
        text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
    text = re.sub(r"warmup_steps = .*", "warmup_steps = [0, 3]", text)
    Path("study.toml").write_text(text, encoding="utf-8")
    assert main(["run", "study.toml", "--in-process"]) == 0
    page = Path("runs/study/report.html").read_text(encoding="utf-8")
    assert 'id="axis_base_lr"' in page
