"""What "any PyTorch model" means: an entry of the zoo trains as a plain loop, or says why not."""

import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from examples import parse
from posted import work
from safetensors.torch import load_file

from tunewright.search.errors import UserError
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.inbox import read_inbox
from tunewright.search.pool.worker import Task
from tunewright.search.run import run_study
from tunewright.search.store.files import checkpoint_path, name_of
from tunewright.search.train.choose import why_not_stacked
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.trial import Point
from tunewright.search.workload.workload import check_workload, load_workload

pytestmark = pytest.mark.filterwarnings("ignore")  # of users' habits

RELATIVE = 1e-9
NOTHING = 1e-14  # of a loss or a norm: rounding of what is 0
BATCH_SIZE = 24
LR = {
    "adam": 1e-2,
    "adamw": 1e-2,
    "momentum": 1e-2,
    "sgd": 5e-2,
    "lion": 1e-3,
    "muon": 1e-2,
    "schedule_free_adamw": 1e-2,
}
STACKED = Engine(stacked=True, slots=3)  # fewer than points: a slot is refilled
RECORDED = Engine(stacked=False, slots=1, compiled=True)


def study(name):
    return parse(
        workload="zoo:make",
        workload_args={"entry": name},
        objective="val_loss",
        max_train_steps=zoo.STEPS,
        evaluations=zoo.STEPS // zoo.EVERY,
        batch_sizes=[BATCH_SIZE],
        space__warmup_steps=0,
    )


def points(name):
    """Rules, seeds, warmup, clipping and decay differ."""
    rules = itertools.cycle(zoo.ZOO[name].optimizers)
    return [
        Point(
            i, BATCH_SIZE, rule, LR[rule], seed=seed,
            warmup_steps=(0, 3)[i % 2], clip_norm=(np.inf, 0.5)[i // 2 % 2],
            decay=("constant", "cosine")[seed],
            workload_args={"entry": name},
        )
        for i, (rule, seed) in enumerate(zip(rules, (0, 1, 0, 1, 0), strict=False))
    ]  # fmt: skip


@functools.cache
def plainly(name, number):
    """The plain loop at a point; its model and batches are its own."""
    return zoo.train(name, points(name)[number])


def trained(name, some, engine, inbox):
    """(trial, checkpoint) of points by number, as a worker process leaves them."""
    inbox.mkdir()
    work(Task(study(name), inbox, some, engine))
    found = {}
    for trial, _ in read_inbox(inbox):
        path = inbox / f"{name_of(trial.point)}.safetensors"
        found[trial.point.number] = trial, {} if trial.verdict.crashed else load_file(path)
    assert found.keys() == {point.number for point in some}
    return found


def equals(got, want, place):
    np.testing.assert_allclose(got, want, rtol=RELATIVE, atol=NOTHING, err_msg=place)


def is_plain(name, want, trial, checkpoint):
    """Losses, norms, metrics, best step and checkpoint are those of the plain loop."""
    curve = trial.curve
    equals(curve.loss, want.losses, "loss")
    equals(curve.grad_norm, want.norms, "gradient norm")
    assert curve.eval_step.tolist() == list(range(0, zoo.STEPS + 1, zoo.EVERY))
    values = want.metrics["val_loss"]
    if zoo.ZOO[name].seeded:
        values = curve.metrics["val_loss"].tolist()
        assert len(set(values)) == len(values)
    else:
        assert curve.metrics.keys() == want.metrics.keys()
        for metric in want.metrics:
            equals(curve.metrics[metric], want.metrics[metric], metric)
    best = min(range(len(values)), key=values.__getitem__)
    assert trial.best_step == best * zoo.EVERY
    state = want.states[best]
    assert checkpoint.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_allclose(checkpoint[key], tensor, rtol=1e-8, atol=1e-12, err_msg=key)


def is_right(name, number, trial, checkpoint):
    """A trial equals the plain loop, or says why it could not be trained."""
    if not trial.verdict.crashed:
        return is_plain(name, plainly(name, number), trial, checkpoint)
    return is_refusal(name, trial.verdict.evidence)


def is_refusal(name, sentence):
    pattern = zoo.ZOO[name].refusal
    assert pattern, f"must train: {sentence}"
    assert re.search(pattern, sentence), sentence
    assert "\n" not in sentence


@functools.cache
def refusal(name):
    """The sentence by which a run refuses an entry before it trains; empty if it does not."""
    try:
        check_workload(load_workload("zoo:make", {"entry": name}), "val_loss", [BATCH_SIZE])
    except UserError as error:
        return str(error)
    return ""


@functools.cache
def why_alone(name):
    """Why an entry is neither stacked nor recorded; empty if it may be."""
    try:
        workload = load_workload("zoo:make", {"entry": name})
        return why_not_stacked(study(name), workload, points(name), "cpu")
    except Exception as error:  # as in `worker.measure`
        return f"not measured: {type(error).__name__}: {error}"


@pytest.mark.parametrize("name", zoo.ZOO)
def test_alone_it_equals_a_plain_loop_or_is_refused(name, tmp_path):
    if refusal(name):
        is_refusal(name, refusal(name))
        return
    for point in points(name):
        (found,) = trained(name, [point], ALONE, tmp_path / str(point.number)).values()
        is_right(name, point.number, *found)


def interpreted(module, compile=torch.compile, **options):
    """What the engine compiles is run as it was recorded; what a user compiles is compiled."""
    if isinstance(module, torch.fx.GraphModule):
        return module.forward
    return compile(module, **options)


@pytest.mark.parametrize("engine", [STACKED, RECORDED], ids=["stacked", "recorded"])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_what_may_be_stacked_or_recorded_equals_a_plain_loop(name, engine, tmp_path, monkeypatch):
    if refusal(name) or why_alone(name):
        return  # it trains alone
    monkeypatch.setattr(torch, "compile", interpreted)
    for number, found in trained(name, points(name), engine, tmp_path / "inbox").items():
        is_right(name, number, *found)


@pytest.mark.parametrize("name", [name for name, entry in zoo.ZOO.items() if entry.seeded])
def test_random_evaluations_depend_neither_on_slots_nor_on_neighbours(name, tmp_path):
    some = points(name)
    alone = {}
    for point in some:
        alone |= trained(name, [point], ALONE, tmp_path / str(point.number))
    engines = [ALONE] if why_alone(name) else [ALONE, STACKED, Engine(stacked=True, slots=2)]
    for i, engine in enumerate(engines):
        together = trained(name, some[::-1], engine, tmp_path / f"together {i}")
        for number, (trial, _) in together.items():
            want = alone[number][0].curve.metrics["val_loss"]
            equals(trial.curve.metrics["val_loss"], want, f"{engine}")


def test_the_zoo_has_every_kind_and_some_of_them_are_stacked():
    assert len(zoo.ZOO) >= 35
    stacked = {name for name in zoo.ZOO if not refusal(name) and not why_alone(name)}
    assert {"Mlp", "BatchNorm", "TeacherInTheModel", "WeightNorm", "DictOfInputs"} <= stacked
    assert sum(not entry.refusal for entry in zoo.ZOO.values()) > len(zoo.ZOO) / 2


@pytest.mark.parametrize(
    ("name", "slots"),
    [("Mlp", None), ("ZeroGradInLoss", None), ("AnnealsLate", 4), ("CountsInTheWorkload", 1)],
)
def test_a_run_equals_a_plain_loop(name, slots, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    space = {
        "momentum": {"base_lr": [0.01, 0.02], "clip_norm": 0.5},
        "adam": {"base_lr": 0.01, "warmup_steps": 3},
    }
    a_study = parse(
        **{"workload": "zoo:make", "workload_args": {"entry": name}, "objective": "val_loss"},
        max_train_steps=zoo.STEPS, evaluations=zoo.STEPS // zoo.EVERY, batch_sizes=[BATCH_SIZE],
        sampler="grid", trials=..., seeds=2, space={"optimizer": space},
    )  # fmt: skip
    trials = run_study(a_study, results=tmp_path, backend=InProcess(), slots=slots, progress=False)
    assert len(trials) == 6
    for trial in trials:
        checkpoint = load_file(checkpoint_path(tmp_path / a_study.name, trial.point))
        is_plain(name, zoo.train(name, trial.point), trial, checkpoint)
