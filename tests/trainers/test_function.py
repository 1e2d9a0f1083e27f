"""A study of a user's own function: the numbers of a workload, and every way to misuse it."""

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from doubled import Double
from examples import parse
from followed import assert_same
from torch import nn

from tunewright.search.cli import main as command
from tunewright.search.errors import UserError, warn_once
from tunewright.search.rules.optimizers import RULES
from tunewright.search.rules.torch_optimizers import RuleOptimizer
from tunewright.search.rules.torch_optimizers import make as rule_optimizer
from tunewright.search.store.storage import open_store, read_trials
from tunewright.search.train.loop import train
from tunewright.search.trainers import function as function_module
from tunewright.search.trainers import run as run_module
from tunewright.search.trainers.function import (
    load_function,
    measure_by_function,
    train_by_function,
)
from tunewright.search.trainers.watched import MisuseError
from tunewright.search.trial import Point

STEPS, EVERY = 120, 20
POINT = Point(0, 16, "momentum", 0.05, warmup_steps=9, clip_norm=0.5, decay="cosine", seed=1)


WORKLOAD = Double()


def study(**changes):
    source = {} if "workload" in changes else {"workload": ..., "train": "script:main"}
    known = {
        **source,
        "objective": "val_loss",
        "max_train_steps": STEPS,
        "evaluations": STEPS // EVERY,
    }
    return parse(**known | changes)


@torch.no_grad()
def evaluate(model):
    model.eval()
    found = WORKLOAD.evaluate(model)
    model.train()
    return found


def report_all(run, model, optimizer):
    """As code does that is for any rule."""
    if isinstance(optimizer, RuleOptimizer):
        optimizer.eval()
    run.report(**evaluate(model), model=model)
    if isinstance(optimizer, RuleOptimizer):
        optimizer.train()


def main(
    run,
    make=lambda run, model: run.optimizer(model),
    parts=1,
    clip_norm=math.inf,
    report=report_all,
):
    run.chance_loss = WORKLOAD.chance_loss
    model = WORKLOAD.build_model(run.seed)
    optimizer = make(run, model)
    report(run, model, optimizer)
    batches = WORKLOAD.train_batches(run.batch_size, run.seed)
    for i, batch in enumerate(run.steps(batches)):
        loss = WORKLOAD.loss(model, batch)
        run.loss(loss)
        (loss / parts).backward()
        if clip_norm < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        if i % parts == parts - 1:
            optimizer.step()
            optimizer.zero_grad()
        if run.evaluation_due:
            report(run, model, optimizer)


@pytest.fixture
def trained(monkeypatch):
    """Train a point by a function."""

    def call(function, point=POINT, keeper=None, **changes):
        monkeypatch.setattr(function_module, "load_function", lambda study: function)
        (found,) = train_by_function(study(**changes), [point], keeper=keeper)
        return found

    return call


def by_the_study(point, **changes):
    own = study(**changes, workload="a.b:c")
    (found,) = train(own, WORKLOAD, [point])
    return found


def assert_equal(one, other, tolerance=1e-9):
    assert_same(one, other, tolerance, checkpoint_rtol=1e-6)


@pytest.mark.parametrize("optimizer", RULES)
@pytest.mark.parametrize(
    "clipping",
    [
        {"clip_norm": 0.5},
        {"clip_norm": math.inf, "clip_z": 1.0},
        {"clip_norm": 0.5, "clip_tensor": 1.05},
    ],
)
def test_a_function_trains_as_a_workload_does(optimizer, clipping, trained):
    base_lr = 0.01 if RULES[optimizer].family == "adam" else 0.05
    point = dataclasses.replace(POINT, optimizer=optimizer, base_lr=base_lr, **clipping)
    assert_equal(trained(main, point), by_the_study(point))


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("torch.optim.AdamW", {"beta1": 0.8, "amsgrad": True}),
        ("torch.optim:SGD", {"momentum": 0.9, "nesterov": True}),
        ("own_optimizers.Signs", {"steps": 2}),
    ],
)
def test_a_function_trains_with_an_optimizer_of_torch_as_a_workload_does(
    optimizer, settings, trained
):
    point = dataclasses.replace(POINT, optimizer=optimizer, base_lr=0.01, settings=settings)
    assert_equal(trained(main, point), by_the_study(point))


AVERAGED = dataclasses.replace(POINT, optimizer="schedule_free_adamw", base_lr=0.01)


def test_what_is_not_evaluated_at_the_average_is_refused(trained):
    def forgets_all(run, model, optimizer):
        run.report(**evaluate(model), model=model)

    def forgets_once_trained(run, model, optimizer):
        if run.step == 0:
            report_all(run, model, optimizer)
        else:
            forgets_all(run, model, optimizer)

    for report in (forgets_all, forgets_once_trained):
        with pytest.raises(
            MisuseError, match=r"schedule_free_adamw evaluates an average .* call optimizer.eval()"
        ):
            trained(lambda run, report=report: main(run, report=report), AVERAGED)


def test_an_update_of_the_average_is_refused(trained):
    def stays(run, model, optimizer):
        optimizer.eval()
        run.report(**evaluate(model), model=model)

    with pytest.raises(MisuseError, match=r"steps: an update .* call optimizer.train()"):
        trained(lambda run: main(run, report=stays), AVERAGED)


def test_a_torch_optimizer_of_the_users_own_trains_as_the_rule_it_is(trained):
    def own(run, model):
        return run.watch(torch.optim.SGD(model.parameters(), lr=17.0, momentum=0.9))

    assert_equal(trained(lambda run: main(run, own)), by_the_study(POINT))


def test_gradient_accumulation_is_one_update_with_the_mean_loss(trained):
    found = trained(lambda run: main(run, parts=2))
    assert len(found.trial.curve.loss) == STEPS
    batches = WORKLOAD.train_batches(16, 1)
    model = WORKLOAD.build_model(1)
    losses = [float(WORKLOAD.loss(model, batch).detach()) for batch in itertools.islice(batches, 2)]
    assert found.trial.curve.loss[0] == pytest.approx(sum(losses) / 2, rel=1e-12)


def test_norms_that_somebody_else_clips_are_told(trained):
    clipped = "the norm is 0.125 at every step: it was clipped before it was seen"
    assert clipped in trained(lambda run: main(run, clip_norm=0.125)).trial.verdict.evidence
    assert "clipped before" not in trained(main).trial.verdict.evidence


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", torch.optim.AdamW),
        ("lion", None),
        ("torch.optim.RAdam", torch.optim.SGD),
    ],
)
def test_an_optimizer_that_the_study_does_not_name_is_refused(name, make, trained):
    def other(run, model):
        made = rule_optimizer("sgd", model.parameters(), {}, 0.1)
        return run.watch(make(model.parameters(), lr=0.1) if make else made)

    point = dataclasses.replace(POINT, optimizer=name)
    with pytest.raises(MisuseError, match=f"the study names the optimizer {name}, and this is"):
        trained(lambda run: main(run, other), point)


def test_a_scheduler_beside_the_studys_schedule_is_told(trained, caplog):
    warn_once.cache_clear()

    def scheduled(run, model):
        optimizer = run.watch(torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    assert_equal(trained(lambda run: main(run, scheduled)), by_the_study(POINT))
    assert "something else, a scheduler say, sets the learning rate" in caplog.text
    caplog.clear()
    warn_once.cache_clear()
    trained(main)
    assert "scheduler" not in caplog.text


def test_a_state_without_the_optimizer_is_refused(trained):
    def forgets(run):
        model = WORKLOAD.build_model(run.seed)
        run.optimizer(model)
        run.state(model)

    with pytest.raises(MisuseError, match="state: must be given every optimizer that is watched"):
        trained(forgets)


def test_the_second_optimizer_keeps_its_ratio_and_counts_no_updates(trained):
    seen = []

    def two(run):
        model = WORKLOAD.build_model(run.seed)
        first, second = model.parameters(), nn.Parameter(torch.ones(3).double())
        optimizer = run.watch(torch.optim.SGD(first, lr=0.2))
        other = run.watch(torch.optim.SGD([second], lr=0.1), main=False)
        for batch in run.steps(WORKLOAD.train_batches(run.batch_size, run.seed)):
            loss = WORKLOAD.loss(model, batch)
            run.loss(loss)
            loss.backward()
            second.square().sum().backward()
            for one in (optimizer, other):
                one.step()
                one.zero_grad()
            seen.append([one.param_groups[0]["lr"] for one in (optimizer, other)])
            if run.evaluation_due:
                run.report(**evaluate(model))

    trained(two)
    assert len(seen) == STEPS
    assert all(own == pytest.approx(main / 2, rel=1e-12) for main, own in seen)


def test_updates_that_a_scaler_skips_count_neither_as_updates_nor_as_losses(trained):
    def scaled(run):
        model = WORKLOAD.build_model(run.seed)
        optimizer = run.optimizer(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=10**6)
        for i, batch in enumerate(run.steps(WORKLOAD.train_batches(run.batch_size, run.seed))):
            loss = WORKLOAD.loss(model, batch)
            if i == 3:
                loss = loss * math.inf
            run.loss(loss)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if run.evaluation_due:
                run.report(**evaluate(model))

    found = trained(scaled)
    assert found.trial.feasible
    assert len(found.trial.curve.loss) == STEPS
    assert np.isfinite(found.trial.curve.loss).all()
    plain = by_the_study(POINT).trial.curve.grad_norm
    assert np.allclose(found.trial.curve.grad_norm[:3], plain[:3], rtol=1e-9)


@pytest.mark.parametrize("base_lr", [100.0, 1e200])
def test_a_hopeless_training_ends_and_is_infeasible(base_lr, trained):
    point = dataclasses.replace(POINT, base_lr=base_lr, clip_norm=math.inf, warmup_steps=0)
    found = trained(main, point, max_train_steps=1000)
    assert found.trial.verdict.infeasible
    assert len(found.trial.curve.loss) < 1000
    theirs = by_the_study(point, max_train_steps=1000).trial
    assert found.trial.verdict.outcome == theirs.verdict.outcome


def test_of_a_maximized_metric_the_largest_is_best(trained):
    def report(run, model, optimizer):
        if run.step:
            run.report(accuracy=1 - evaluate(model)["val_error"], model=model)

    function = functools.partial(main, report=report)
    found = trained(function, objective="accuracy", maximize=True).trial
    values = found.curve.metrics["accuracy"]
    assert found.best_value == np.nanmax(values) > np.nanmin(values)
    assert np.isnan(values[0])
    assert found.verdict.evidence.endswith("the untrained model was not evaluated")


def test_every_hyperparameter_is_an_attribute(trained):
    seen = {}

    def look(run):
        names = ("base_lr", "warmup_steps", "clip_norm", "optimizer", "batch_size", "seed", "depth")
        seen.update({name: getattr(run, name) for name in (*names, "momentum", "total_steps")})
        with pytest.raises(AttributeError, match="run has no 'depht'; hyperparameters are"):
            run.depht  # noqa: B018
        main(run)

    point = dataclasses.replace(POINT, workload_args={"depth": 3}, settings={"momentum": 0.8})
    trained(look, point)
    assert seen == {
        "base_lr": 0.05,
        "warmup_steps": 9,
        "clip_norm": 0.5,
        "optimizer": "momentum",
        "batch_size": 16,
        "seed": 1,
        "depth": 3,
        "momentum": 0.8,
        "total_steps": STEPS,
    }


# --- misuse ---------------------------------------------------------------------------------------


def loop(run, data=None, tell=True, report=True, metric="val_loss", step=True, watch=True):
    """A training of one weight, with something left out."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    if watch:
        run.watch(optimizer)
    for batch in run.steps([1.0, 2.0] if data is None else data):
        loss = (weight * batch).square().sum()
        if tell:
            run.loss(loss)
        loss.backward()
        if step:
            optimizer.step()
            optimizer.zero_grad()
        if report and run.evaluation_due:
            run.report(**{metric: float(weight.detach())})


def quiet(run):
    """A training that passes over whatever its reports raise."""
    report = run.report

    def tell(**metrics):
        with contextlib.suppress(Exception):
            report(**dict.fromkeys(metrics, "high"))

    vars(run)["report"] = tell
    loop(run)


@pytest.mark.parametrize(
    "name", ["base_lr", "clip_norm", "batch_size", "seed", "optimizer", "momentum", "depth"]
)
def test_a_hyperparameter_cannot_be_set(name, trained):
    """It would be recorded as the one that the study chose."""
    point = dataclasses.replace(POINT, workload_args={"depth": 3}, settings={"momentum": 0.8})
    with pytest.raises(MisuseError, match=f"run.{name}: cannot be set: it is .* in this trial"):
        trained(lambda run: setattr(run, name, 1.0), point)


@pytest.mark.parametrize("name", ["total_steps", "point", "settings", "device", "study"])
def test_what_a_trial_is_made_of_cannot_be_set(name, trained):
    with pytest.raises(MisuseError, match=f"run.{name}: cannot be set"):
        trained(lambda run: setattr(run, name, 1.0))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda run: loop(run, tell=False), r"loss: none was told before optimizer.step\(\)"),
        (lambda run: loop(run, report=False), r"'val_loss' was never reported; call run.report"),
        (lambda run: loop(run, metric="error"), r"'val_loss' was never reported; what was: error"),
        (lambda run: loop(run, watch=False), "no optimizer is watched"),
        (lambda run: None, "no optimizer was watched"),
        (lambda run: loop(run, step=False), "10000 batches went by without a step"),
        (lambda run: (loop(run), loop(run)), "one optimizer is the main one"),
        (lambda run: run.watch(None, main=False), "main optimizer must be watched before"),
        (lambda run: quiet(run), "report: got 'high' as 'val_loss'"),
    ],
)
def test_what_every_trial_would_repeat_ends_the_study(function, message, trained):
    with pytest.raises(MisuseError, match=f"s: script:main: .*{message}"):
        trained(function)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda run: loop(run, data=[]), "the data has no batch"),
        (lambda run: loop(run, data=iter([1.0] * 7)), "ended after 7 batches and cannot be iter"),
        (lambda run: loop(run, data=[0.0]), "the gradient is exactly 0 at each of the first 20"),
    ],
)
def test_data_that_will_not_do_is_the_trials_fault(function, message, trained):
    with pytest.raises(UserError, match=message) as caught:
        trained(function)
    assert not isinstance(caught.value, MisuseError)


def test_a_function_that_leaves_the_loop_ended_early(trained):
    def leave(run):
        weight = nn.Parameter(torch.ones(1))
        optimizer = run.watch(torch.optim.SGD([weight], 0.1))
        for _ in run.steps([1.0]):
            run.loss(weight.square().sum())
            weight.square().sum().backward()
            optimizer.step()
            if run.step == 5:
                break

    with pytest.raises(UserError, match=f"ended after 5 of {STEPS} updates"):
        trained(leave)


def test_an_update_after_the_last_is_refused(trained):
    def go_on(run):
        weight = nn.Parameter(torch.ones(1))
        optimizer = run.watch(torch.optim.SGD([weight], 0.1))
        while True:
            run.loss(weight.square().sum())
            weight.square().sum().backward()
            optimizer.step()

    with pytest.raises(MisuseError, match=f"an update after the last one of {STEPS}"):
        trained(go_on)


def test_metrics_after_one_update_are_one_evaluation_and_none_comes_twice(trained):
    def twice(run, again):
        loop(run)
        run.report(**{again: 3.0})

    found = trained(lambda run: twice(run, "other"))
    assert found.trial.curve.metrics["other"][-1] == 3.0
    assert len(found.trial.curve.eval_step) == 1 + STEPS // EVERY
    with pytest.raises(MisuseError, match=f"val_loss: reported twice after update {STEPS}"):
        trained(lambda run: twice(run, "val_loss"))


def test_a_metric_that_is_no_number_is_refused(trained):
    with pytest.raises(UserError, match=r"report: got an array of shape \(2,\) as 'v'"):
        trained(lambda run: run.report(v=torch.ones(2)))


def test_the_optimizers_are_left_alone_afterwards(trained):
    kept = []

    def keep(run):
        kept.append(run)
        raise RuntimeError("no luck")

    def own(run):
        weight = nn.Parameter(torch.ones(1))
        kept.append((weight, run.watch(torch.optim.SGD([weight], 0.1))))
        keep(run)

    with pytest.raises(RuntimeError, match="no luck"):
        trained(own)
    weight, optimizer = kept[0]
    weight.square().sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1


# --- interrupted ----------------------------------------------------------------------------------


class Kept:
    """A keeper of one state; `after` states it pulls the plug."""

    def __init__(self, after):
        self.after, self.state, self.reasons = after, None, []

    def begin(self, point):
        return self.state

    def save(self, point, state):
        self.state = {name: tensor.clone() for name, tensor in state.items()}
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt

    is_leaving = False

    def all_saved(self):
        """Nothing: it stays."""

    def start_again(self, point, reason):
        self.reasons.append(reason)
        self.state = None


def resumable(run, shuffled=True):
    model = WORKLOAD.build_model(run.seed)
    noise = nn.Dropout(0.1)  # draws from the process's random numbers
    optimizer = run.optimizer(model)
    if not run.restore(model, optimizer):
        run.report(**evaluate(model), model=model)
    generator = torch.Generator().manual_seed(run.seed if shuffled else torch.seed() % 1000)
    data = torch.utils.data.DataLoader(list(range(50)), 10, shuffle=True, generator=generator)
    images = next(iter(WORKLOAD.train_batches(50, 0)))
    for batch in run.steps(data):
        inputs, labels = (tensor[batch] for tensor in images)
        loss = WORKLOAD.loss(model, (noise(inputs), labels))
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            run.report(**evaluate(model), model=model)
        run.state(model, optimizer)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_z": 1.0, "optimizer": "adam", "base_lr": 0.01},
        {"clip_z": 2.5, "clip_tensor": 1.05},
    ],
)
def test_an_interrupted_training_ends_as_if_it_had_not_been(changes, trained, monkeypatch):
    monkeypatch.setattr(run_module, "SAVE_SECONDS", 0.0)
    point = dataclasses.replace(POINT, **changes)
    whole = trained(resumable, point)
    keeper = Kept(after=33)
    with pytest.raises(KeyboardInterrupt):
        trained(resumable, point, keeper)
    assert len(keeper.state["loss"]) == 33
    keeper.after = math.inf
    resumed = trained(resumable, point, keeper)
    assert_equal(resumed, whole, tolerance=1e-15)
    assert not keeper.reasons


def test_what_draws_other_batches_begins_anew(trained, monkeypatch):
    monkeypatch.setattr(run_module, "SAVE_SECONDS", 0.0)
    keeper = Kept(after=33)
    with pytest.raises(KeyboardInterrupt):
        trained(lambda run: resumable(run, shuffled=False), keeper=keeper)
    keeper.after = math.inf
    found = trained(lambda run: resumable(run, shuffled=False), keeper=keeper)
    assert len(found.trial.curve.loss) == STEPS
    (reason,) = keeper.reasons
    assert "another order" in reason


# --- a checkpoint ---------------------------------------------------------------------------------


def measured(function, monkeypatch, tensors):
    monkeypatch.setattr(function_module, "load_function", lambda study: function)
    return measure_by_function(study(), POINT, Path("best.pt"), tensors)


def test_a_checkpoint_is_measured_by_the_function_that_trains(trained, monkeypatch):
    found = trained(resumable)
    metrics = measured(resumable, monkeypatch, found.checkpoint)
    assert metrics["val_loss"] == pytest.approx(found.trial.best_value, rel=1e-12)


def test_a_checkpoint_that_does_not_fit_or_cannot_be_put_in_is_refused(trained, monkeypatch):
    found = trained(resumable)
    with pytest.raises(UserError, match=r"best.pt: does not fit the model"):
        measured(resumable, monkeypatch, {"strange": torch.ones(1)})
    for function in (main, lambda run: None):
        with pytest.raises(UserError, match="does not let a checkpoint be measured"):
            measured(function, monkeypatch, found.checkpoint)


# --- from the study file --------------------------------------------------------------------------

SCRIPT = """
import torch

def main(run):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = run.optimizer([weight])
    for batch in run.steps([1.0, 2.0, 3.0]):
        loss = (weight * batch).square().sum()
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            run.report(error=loss, model=torch.nn.ParameterList([weight]))

def unlucky(run):
    if run.base_lr > 0.05:
        raise RuntimeError("no luck")
    main(run)

def mute(run):
    pass

def two(run, more):
    pass
"""
STUDY = """
train = "NAME"
objective = "error"
max_train_steps = 40
evaluations = 4
batch_sizes = [8]
sampler = "grid"
[space.optimizer.sgd]
base_lr = [0.01, 0.02, 0.1, 10.0]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_script.py").write_text(SCRIPT)
    yield tmp_path
    sys.modules.pop("own_script", None)


def write(folder, function):
    (folder / "own.toml").write_text(STUDY.replace("NAME", f"own_script:{function}"))


def test_a_study_of_a_function_runs_and_has_its_results(folder, capsys):
    write(folder, "main")
    assert command(["check", "own.toml"]) == 0
    assert command(["run", "own.toml", "--in-process"]) == 0
    assert "4/4: 3 feasible, 1 infeasible" in capsys.readouterr().err
    trials = read_trials(open_store(folder / "runs" / "own"))
    assert [trial.feasible for trial in trials] == [True, True, True, False]
    assert {path.suffix for path in (folder / "runs/own/checkpoints").iterdir()}
    assert command(["report", "runs/own"]) == 0
    assert command(["check", "own.toml", "--time"]) == 0


def test_a_trial_that_raises_is_crashed_and_the_others_go_on(folder, capsys):
    write(folder, "unlucky")
    assert command(["run", "own.toml", "--in-process"]) == 1
    assert "RuntimeError: no luck" in capsys.readouterr().err
    trials = read_trials(open_store(folder / "runs" / "own"))
    assert [trial.verdict.crashed for trial in trials] == [False, False, True, True]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("mute", "own: own_script:mute: watch: no optimizer was watched"),
        ("two", "own: train: own_script:two must be a function of one argument, `run`"),
        ("absent", "own: train: 'own_script' has no 'absent'"),
    ],
)
@pytest.mark.parametrize("options", [["--in-process"], ["--workers", "1"]])
def test_a_function_that_will_not_do_is_one_message_and_status_2(
    function, message, options, folder, capsys
):
    write(folder, function)
    assert command(["run", "own.toml", *options]) == 2
    assert message in capsys.readouterr().err


def test_an_argument_that_run_hides_is_refused(folder):
    write(folder, "main")
    wrong = study(train="own_script:main", workload_args={"steps": 3})
    with pytest.raises(UserError, match=r"workload_args.steps: is also an attribute of `run`"):
        load_function(wrong)
