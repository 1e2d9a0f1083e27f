"""Axes that mean the same at every batch size: what is trained follows by plain arithmetic."""

import csv
import importlib
import math
import sys

import cloudpickle
import optuna
import pytest
from examples import GOOD, parse

from tunewright.search import InProcess, read_results, run_study
from tunewright.search.errors import UserError
from tunewright.search.show.report import pictures
from tunewright.search.study.adaptive import propose
from tunewright.search.study.pinned import pin
from tunewright.search.study.sampling import free_axes, next_points, plan
from tunewright.search.study.study import schema
from tunewright.search.trial import Told

LR = {"low": 1e-3, "high": 0.1, "log": True}
HALF_LIFE = {"half_life_examples": {"low": 1e3, "high": 1e5, "log": True}}
SIZES = [8, 32, 128]


def tied(optimizer="adamw", axes=None, **changes):
    """A study of one optimizer at three batch sizes."""
    own = {"base_lr": LR, **({"beta2": HALF_LIFE} if axes is None else axes)}
    keys = {"batch_sizes": SIZES, "train_examples": 1400, "trials": 12}
    space = {"optimizer": {optimizer: own}}
    keys |= {"space": space, **changes}
    return parse(**{key: value for key, value in keys.items() if key in GOOD or value is not ...})


def mistakes(**changes):
    with pytest.raises(UserError) as refused:
        tied(**changes)
    return str(refused.value).splitlines()


# --- what a point gets ----------------------------------------------------------------------------


def test_the_same_half_life_in_examples_is_another_beta2_at_each_batch_size():
    study = tied(axes={"beta2": {"half_life_examples": [1000, 2e4]}})
    for point in plan(study):
        beta2 = point.settings["beta2"]
        values = [0.5 ** (point.batch_size / half_life) for half_life in (1000, 2e4)]
        assert beta2 in values
    assert len({point.settings["beta2"] for point in plan(study)}) == 2 * len(SIZES)


def test_a_range_of_half_lives_has_the_places_of_any_other_log_range():
    study = tied()
    plain = tied(axes={"beta2": {"low": 1e-2, "high": 0.9, "log": True}})
    for point, other in zip(plan(study), plan(plain), strict=True):
        u = math.log(other.settings["beta2"] / 1e-2) / math.log(0.9 / 1e-2)
        half_life = 1e3 * 100**u
        expected = 0.5 ** (point.batch_size / half_life)
        assert point.settings["beta2"] == pytest.approx(expected, rel=1e-12)
        assert point.base_lr == other.base_lr


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "torch.optim.AdamW"])
def test_weight_decay_follows_from_its_timescale_base_lr_and_batch_size(optimizer):
    study = tied(optimizer, {"weight_decay": {"timescale_epochs": 5}})
    for point in plan(study):
        updates_per_epoch = 1400 / point.batch_size
        expected = 1 / (5 * updates_per_epoch * point.base_lr)
        assert point.settings["weight_decay"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        ("momentum", "momentum"),
        ("rmsprop", "rho"),
        ("adam", "beta1"),
        ("torch.optim.Adam", "beta2"),
    ],
)
def test_every_share_that_is_kept_may_be_given_by_either_tie(optimizer, name):
    one_minus = {"low": 0.01, "high": 0.5, "log": True}
    points = plan(tied(optimizer, {name: {"one_minus": one_minus}}))
    assert all(0.5 <= point.settings[name] <= 0.99 for point in points)
    # about half of them below the middle of the log axis, which a linear one has at a seventh
    assert 14 <= sum(1 - point.settings[name] < math.sqrt(0.01 * 0.5) for point in points) <= 22
    points = plan(tied(optimizer, {name: {"half_life_examples": 1e4}}))
    assert {(p.batch_size, p.settings[name]) for p in points} == {
        (size, 0.5 ** (size / 1e4)) for size in SIZES
    }


@pytest.mark.parametrize("sampler", ["halton", "random", "grid", "tpe"])
def test_every_sampler_stays_on_the_axis(sampler):
    points = dict(HALF_LIFE["half_life_examples"], points=3)
    study = tied(
        axes={
            "base_lr": {**LR, "points": 2},
            "beta2": {"half_life_examples": points},
            "beta1": {"one_minus": [0.1, 0.05]},
            "weight_decay": {"timescale_epochs": {"low": 1, "high": 9, "points": 2}},
        },
        sampler=sampler,
        trials=... if sampler == "grid" else 12,
        batch_sizes=[8, 128],
    )
    told = []
    for _ in range(2 if study.sampling.is_adaptive else 1):  # a learner's second round, too
        told = [Told(point, point.base_lr, -1.0) for point in next_points(study, told)]
    assert len(told) == 2 * (24 if sampler == "grid" else 12)
    for one in told:
        quantities = {name: study.quantity(one.point, name) for name in ("beta1", "beta2")}
        assert quantities["beta1"] in (0.1, 0.05)
        assert 1e3 <= quantities["beta2"] <= 1e5
        assert 1 <= study.quantity(one.point, "weight_decay") <= 9


def test_a_learner_is_told_quantities_and_proposes_them():
    study = tied(sampler="tpe", trials=40, batch_sizes=[128])
    (group,) = study.groups(128)
    axes = free_axes(study, group)
    # the objective is best where the half-life is 5e4 examples
    told = [
        Told(point, abs(math.log10(study.quantity(point, "beta2") / 5e4)), -1.0)
        for point in plan(study.with_(sampler="halton"))
    ]
    proposed = [one["beta2"] for one in propose(study, axes, told, 20, seed=1)]
    assert sum(2.5e4 <= half_life <= 1e5 for half_life in proposed) >= 14


def test_a_point_tells_its_quantity_and_an_axis_has_its_name_in_the_file():
    study = tied(axes={"beta2": {"half_life_examples": [1000, 20_000]}, "weight_decay": 0.1})
    assert study.axis_name("adamw", "beta2") == "beta2.half_life_examples"
    assert study.axis_name("adamw", "weight_decay") == "weight_decay"
    assert study.axes("adamw")["beta2"] == (1000, 20_000)
    for point in plan(study):
        assert study.quantity(point, "beta2") in (1000, 20_000)
        assert study.quantity(point, "weight_decay") == 0.1
    assert tied().ranges["adamw"]["beta2.half_life_examples"] == (1e3, 1e5, True)


def test_a_study_with_ties_is_its_document_and_goes_to_workers():
    study = tied(max_train_steps=..., max_train_examples=64_000)
    again = study.with_()
    assert again.document == study.document
    assert plan(again) == plan(study) == plan(cloudpickle.loads(cloudpickle.dumps(study)))
    assert study.document["space"]["optimizer"]["adamw"]["beta2"] == HALF_LIFE


def test_a_point_that_is_pinned_has_its_values_and_number_of_updates():
    study = tied(max_train_steps=..., max_train_examples=64_000)
    point = plan(study)[-1]
    pinned = pin(study, point, "pinned", sampler="grid")
    assert (pinned.max_train_steps, pinned.max_train_examples) == (500, None)
    (only,) = next_points(pinned, [])
    assert only.settings == point.settings


# --- max_train_examples ---------------------------------------------------------------------------


def test_every_batch_size_sees_the_same_number_of_examples():
    study = parse(max_train_steps=..., max_train_examples=100_000, batch_sizes=[7, 32, 1000])
    steps = {7: round(100_000 / 7), 32: 3125, 1000: 100}
    assert {size: study.train_steps(size) for size in study.batch_sizes} == steps
    for point in plan(study):
        assert study.updates(point) == steps[point.batch_size]
    assert {size: study.evaluate_every(size) for size in steps} == {7: 286, 32: 63, 1000: 2}
    assert "100000 examples" in repr(study)


def test_warmups_are_orders_of_magnitude_of_each_batch_sizes_own_updates():
    study = parse(max_train_steps=..., max_train_examples=100_000, batch_sizes=[8, 100, 1000])
    warmups = {size: study.axes("momentum", size)["warmup_steps"] for size in study.batch_sizes}
    assert warmups == {8: (0, 10, 100, 1000), 100: (0, 10, 100), 1000: (0, 10)}
    assert study.axes("momentum")["warmup_steps"] == (0, 10, 100, 1000)
    for point in plan(study.with_(trials=40)):
        assert point.warmup_steps in warmups[point.batch_size]


def test_a_grid_counts_the_warmups_of_each_batch_size():
    space = {"warmup_steps": {"orders_of_magnitude": True}, "optimizer": {"sgd": {"base_lr": 0.1}}}
    changes = {"max_train_steps": ..., "trials": ..., "sampler": "grid", "space": space}
    study = parse(**changes, max_train_examples=100_000, batch_sizes=[8, 1000])
    assert study.planned_trials() == len(plan(study)) == 4 + 2


def test_a_warmup_is_at_most_a_tenth_of_the_shortest_training():
    keys = {"max_train_steps": ..., "max_train_examples": 100_000, "batch_sizes": [10, 1000]}
    parse(**keys, space__warmup_steps=[0, 10])
    with pytest.raises(UserError) as refused:
        parse(**keys, space__warmup_steps=[0, 11])
    assert str(refused.value).splitlines() == [
        "s.toml: space.warmup_steps: must be at most 10, 10 % of the 100 updates at batch size "
        "1000 (R10); got 11"
    ]


def test_prepended_warmup_stop_and_cut_go_by_the_batch_sizes_own_updates():
    keys = {"max_train_steps": ..., "max_train_examples": 32_000, "batch_sizes": [16, 160]}
    own = {"base_lr": LR, "warmup_steps": 20}
    study = parse(
        **keys, prepend_warmup=True, evaluations=20, space={"optimizer": {"sgd": own}},
        cut={"at": 0.5, "keep": 0.5}, stop_after=1500,
    )  # fmt: skip
    first, *_, last = plan(study)
    assert (study.schedule(first), study.updates(first)) == (2020, 1500)
    assert (study.schedule(last), study.updates(last)) == (220, 220)
    assert [study.evaluate_every(size) for size in (16, 160)] == [100, 10]
    # half of what trains after warmup, at the next evaluation: 20 + 750, and 20 + 100
    assert (study.cut_step(first), study.cut_step(last)) == (800, 120)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_train_examples": 1000}, "max_train_examples: cannot stand beside max_train_steps"),
        ({"max_train_steps": ...}, "max_train_steps: is required, or max_train_examples"),
        (
            {"max_train_steps": ..., "max_train_examples": 0},
            "max_train_examples: should be greater",
        ),
        ({"max_train_steps": ..., "max_train_examples": [1, 2]}, "max_train_examples: is never an"),
        ({"space__max_train_examples": 1}, "space.max_train_examples: is never an axis (S8)"),
        ({"train_examples": -1}, "train_examples: should be greater than 0"),
    ],
)
def test_a_study_says_once_how_long_it_trains(keys, message):
    with pytest.raises(UserError) as refused:
        parse(**keys)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"s.toml: {message}")


# --- mistakes -------------------------------------------------------------------------------------

BETA2 = "s.toml: space.optimizer.adamw.beta2"
DECAY = "s.toml: space.optimizer.adamw.weight_decay.timescale_epochs"


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        (
            {"beta2": {"half_life_examples": -5}},
            f"{BETA2}.half_life_examples: must be a number > 0",
        ),
        (
            {"beta2": {"half_life_examples": "x"}},
            f"{BETA2}.half_life_examples: must be a number > 0",
        ),
        ({"beta2": {"half_life_examples": []}}, f"{BETA2}.half_life_examples: must have 1 to"),
        ({"beta2": {"half_life_examples": {}}}, f"{BETA2}.half_life_examples.low: is required"),
        ({"beta2": {"half_live_examples": 5}}, f"{BETA2}.half_live_examples: unknown key; did you"),
        ({"beta2": {"half_life_examples": 9, "log": 1}}, f"{BETA2}.log: unknown key"),
        (
            {"beta2": {"half_life_examples": 9, "one_minus": 0.1}},
            f"{BETA2}: must have one of half_life_examples, one_minus, timescale_epochs, got half",
        ),
        ({"beta2": {"timescale_epochs": 9}}, f"{BETA2}: timescale_epochs is for weight_decay"),
        ({"beta2": {"one_minus": 1.5}}, f"{BETA2}.one_minus: must be a number in (0, 1], got 1.5"),
        ({"beta2": {"one_minus": 0}}, f"{BETA2}.one_minus: must be a number in (0, 1], got 0"),
        (
            {"beta2": {"half_life_examples": [1e4, 1e-3]}},
            f"{BETA2}.half_life_examples: 0.001 makes beta2 0 at batch size 8, too close to 0 or 1",
        ),
        (
            {"beta2": {"half_life_examples": 1e15}},
            f"{BETA2}.half_life_examples: 1e+15 makes beta2 1 at batch size 8, too close to 0 or 1",
        ),
        (
            {"weight_decay": {"half_life_examples": 9}},
            "s.toml: space.optimizer.adamw.weight_decay: half_life_examples is for momentum or "
            "rho or beta1 or beta2",
        ),
        (
            {"weight_decay": {"timescale_epochs": 0.05}},
            f"{DECAY}: must be at least one update, 0.0914286 epochs at batch size 128; got 0.05",
        ),
        (
            {"base_lr": {"half_life_examples": 1}},
            "s.toml: space.optimizer.adamw.base_lr: half_life_examples is for momentum",
        ),
    ],
)
def test_each_mistake_is_one_sentence_with_its_place(axes, line):
    found = mistakes(axes=axes)
    assert found[0].startswith(line)
    assert len(found) == (2 if line.endswith("low: is required") else 1)  # low, high


def test_a_timescale_needs_the_number_of_training_examples():
    (line,) = mistakes(axes={"weight_decay": {"timescale_epochs": 5}}, train_examples=...)
    assert line == (
        f"{DECAY}: needs train_examples at the top of the file: the number of training examples"
    )


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD", "torch.optim.Adam", "torch.optim.NAdam"])
def test_a_timescale_is_refused_where_weight_decay_is_part_of_the_gradient(optimizer):
    (line,) = mistakes(optimizer=optimizer, axes={"weight_decay": {"timescale_epochs": 5}})
    assert f"which {optimizer} is not known to have: give weight_decay itself" in line
    if optimizer != "torch.optim.SGD":
        own = {"weight_decay": {"timescale_epochs": 5}, "decoupled_weight_decay": True}
        assert plan(tied(optimizer, own))


def test_what_a_constructor_does_not_take_is_refused_with_a_tie_too():
    (line,) = mistakes(optimizer="torch.optim.Adam", axes={"momentum": {"one_minus": 0.1}})
    assert "is no argument of it" in line
    (line,) = mistakes(optimizer="torch.optim.Adam", axes={"eps": {"one_minus": 0.1}})
    assert line.endswith("eps.one_minus: one_minus is for momentum or rho or beta1 or beta2")


def test_what_is_tied_is_no_question_of_its_own():
    (line,) = mistakes(axes={"beta2": {"half_life_examples": [1e3, 1e4]}}, scientific=["beta2"])
    assert line.startswith("s.toml: scientific: 'beta2' is tied by half_life_examples")


def test_a_command_must_pass_on_what_follows_from_a_fixed_quantity():
    log = {"path": "{run_dir}/a.csv", "loss": "loss"}
    words = ["a", "{base_lr}", "{batch_size}"]
    (line,) = mistakes(
        axes={"beta2": {"half_life_examples": 1e4}}, command=words, log=log, workload=...
    )
    assert "no placeholder uses beta2, which varies" in line
    tied("adamw", {"beta2": {"one_minus": 0.1}}, command=words, log=log, workload=...)


def test_editors_are_told_of_ties():
    said = schema()
    assert said["oneOf"] == [
        {"required": ["max_train_steps"]},
        {"required": ["max_train_examples"]},
    ]
    assert set(said["$defs"]["Tied"]["properties"]) == {
        *("half_life_examples", "one_minus", "timescale_epochs"),
    }


# --- trained --------------------------------------------------------------------------------------

MODULE = '''
"""A workload of two numbers: one follows the batches, the other has a gradient of 0."""

import torch
from torch.utils.data import DataLoader, TensorDataset

EXAMPLES = torch.linspace(-1, 3, 1400)[torch.randperm(1400, generator=torch.manual_seed(0))]


class Numbers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.follows = torch.nn.Parameter(torch.ones(()))
        self.still = torch.nn.Parameter(torch.ones(()))


class Follow:
    def build_model(self, seed):
        return Numbers()

    def train_batches(self, batch_size, seed):
        return DataLoader(TensorDataset(EXAMPLES), batch_size)

    def loss(self, model, batch):
        return ((model.follows - batch[0]) ** 2 / 2 + 0 * model.still).mean()

    def evaluate(self, model):
        return {"follows": model.follows, "still": model.still}
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "follow.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "follow", raising=False)
    return importlib.import_module("follow")


def following(**changes):
    """At each batch size 2 epochs, with a timescale of 5."""
    axes = {"weight_decay": {"timescale_epochs": 5}, "beta2": {"half_life_examples": 700}}
    space = {"optimizer": {"adamw": {"base_lr": LR, **axes}}}
    keys = {"workload": "follow:Follow", "objective": "still", "max_train_steps": ..., "trials": 2}
    keys |= {"batch_sizes": [14, 56], "evaluations": 2, "max_train_examples": 2800}
    keys["decay_vectors"] = True  # its parameters are single numbers
    return parse(**{**keys, "train_examples": 1400, "space": space, **changes})


def by_hand(examples, batch_size, base_lr, steps):
    """AdamW on both numbers, in plain arithmetic: what they are after as many updates."""
    beta1, beta2 = 0.9, 2 ** (-batch_size / 700)
    decay = 1 / (5 * (1400 / batch_size) * base_lr)
    follows = still = 1.0
    m = v = 0.0
    batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    for step in range(steps):
        batch = batches[step % len(batches)]
        gradient = follows - sum(batch) / len(batch)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        corrected = m / (1 - beta1 ** (step + 1))
        root = math.sqrt(v / (1 - beta2 ** (step + 1)))
        follows *= 1 - base_lr * decay
        still *= 1 - base_lr * decay
        follows -= base_lr * corrected / (root + 1e-8)
    return follows, still


def test_each_batch_size_trains_with_the_decay_beta2_and_updates_that_follow(module, tmp_path):
    trials = run_study(following(), results=tmp_path, backend=InProcess(), progress=False)
    assert len(trials) == 4
    for trial in trials:
        point, curve = trial.point, trial.curve
        steps = {14: 200, 56: 50}[point.batch_size]
        assert curve.total_steps == len(curve.loss) == steps
        assert list(curve.eval_step) == [0, steps // 2, steps]
        expected = [
            by_hand(module.EXAMPLES.tolist(), point.batch_size, point.base_lr, step)
            for step in (0, steps // 2, steps)
        ]
        measured = zip(curve.metrics["follows"], curve.metrics["still"], strict=True)
        for one, other in zip(measured, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-3)
    with (tmp_path / "s" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["beta2"]) for row in rows] == [
        0.5 ** (size / 700) for size in (14, 14, 56, 56)
    ]
    # the same again trains nothing
    again = run_study(following(), results=tmp_path, backend=InProcess(), progress=False)
    assert [trial.seconds for trial in again] == [trial.seconds for trial in trials]


def test_a_loader_of_another_number_of_examples_is_refused(module, tmp_path):
    study = following(train_examples=1401)
    with pytest.raises(UserError) as refused:
        run_study(study, results=tmp_path, backend=InProcess(), progress=False)
    assert str(refused.value) == (
        "s: train_examples: 1401, but the DataLoader of train_batches(batch_size=14) has 1400 "
        "examples"
    )


def test_a_figure_is_drawn_over_the_quantity_and_tables_tell_the_hyperparameter(module, tmp_path):
    half_life = {"half_life_examples": {"low": 300, "high": 3000, "log": True}}
    space = {"optimizer": {"adamw": {"base_lr": 0.01, "beta2": half_life}}}
    study = following(space=space, trials=3)
    run_study(study, results=tmp_path, backend=InProcess(), progress=False)
    results = read_results(tmp_path / "s")
    drawn = {picture.name for picture in pictures(results)}
    assert "axis_beta2.half_life_examples" in drawn
    assert "axis_beta2" not in drawn
    for trial, other in zip(results.trials, results.on_axes, strict=True):
        on_axis = other.point.settings["beta2.half_life_examples"]
        assert 300 <= on_axis <= 3000
        assert trial.point.settings["beta2"] == pytest.approx(
            0.5 ** (trial.point.batch_size / on_axis), rel=1e-9
        )
        assert "beta2" not in other.point.settings
    # Optuna's parameters are the quantities, so that its samplers and plots see the axis
    url = f"sqlite:///{tmp_path / 's' / 'study.db'}"
    stored = optuna.load_study(study_name="s/batch_size=14", storage=url).trials
    assert all(300 <= one.params["beta2.half_life_examples"] <= 3000 for one in stored)
