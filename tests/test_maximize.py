"""A maximized objective is the mirror image of its negative, minimized; every value shown is the
metric's own.
"""

import dataclasses
import itertools
import math

import numpy as np
import optuna
import pytest
import torch
from examples import parse
from stored import diverged, feasible, small_study

from tunewright.search.cli import main
from tunewright.search.compare import compare
from tunewright.search.errors import UserError
from tunewright.search.judge.analysis import boundary_checks, rank_configurations, summarize
from tunewright.search.judge.flags import checkpoint_note, curve_flags
from tunewright.search.show.advice import advise
from tunewright.search.show.plots import axis_figure, axis_info, overlay_figure, overlay_info
from tunewright.search.show.publish import write_results
from tunewright.search.store.results import Results
from tunewright.search.store.shown import ShownStorage
from tunewright.search.store.storage import create_store, drop_checkpoints, read_trials, tell
from tunewright.search.study.sampling import next_points, plan
from tunewright.search.study.study import parse_study
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Curve, Told, Trial, as_told

OBJECTIVE = {False: "val_loss", True: "negative_val_loss"}


class TwoWays:
    """The same metric as it is, and its negative."""

    def build_model(self, seed):
        torch.manual_seed(seed)
        return torch.nn.Linear(4, 1)

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in itertools.count():
            x = torch.randn(batch_size, 4, generator=generator)
            yield x, x.sum(1, keepdim=True) + torch.randn(batch_size, 1, generator=generator)

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, model):
        x = torch.eye(4)
        value = (model(x) - 1.3).square().mean()
        return {"val_loss": value, "negative_val_loss": -value}


def study_of(maximize):
    document = {
        "workload": "a:b",
        "objective": OBJECTIVE[maximize],
        "maximize": maximize,
        "max_train_steps": 60,
        "batch_sizes": [4],
        "trials": 12,
        "evaluations": 20,
        "space": {"optimizer": {"sgd": {"base_lr": {"low": 1e-3, "high": 10.0, "log": True}}}},
    }
    return parse_study(document, "two", "two.toml")


@pytest.fixture(scope="module")
def pair():
    """Trials and checkpoints of the study minimized and maximized."""
    found = {}
    for maximize in (False, True):
        study = study_of(maximize)
        engine = Engine(stacked=True, slots=4)
        done = list(train(study, TwoWays(), plan(study), engine))
        found[maximize] = sorted(done, key=lambda one: one.trial.point.number)
    return found


@pytest.fixture(scope="module")
def trials(pair):
    return {maximize: [one.trial for one in done] for maximize, done in pair.items()}


def outcome(one):
    """A verdict but for its evidence, which has the metric's own values."""
    return dataclasses.replace(one.trial.verdict, evidence="")


def test_best_value_step_and_checkpoint_turn_round(pair):
    assert any(one.trial.feasible and 0 < one.trial.best_step < 60 for one in pair[True])
    for low, high in zip(pair[False], pair[True], strict=True):
        if low.trial.feasible:
            assert high.trial.best_value == -low.trial.best_value
        assert high.trial.best_step == low.trial.best_step
        assert outcome(high) == outcome(low)
        assert all(
            torch.equal(high.checkpoint[name], low.checkpoint[name]) for name in low.checkpoint
        )


def test_summaries_and_boundaries_turn_round(trials):
    space = study_of(True).ranges
    (low,), (high,) = (summarize(trials[maximize], (), space) for maximize in (False, True))
    assert 0 < low.infeasible < low.trials
    assert high.best_value == -low.best_value > low.best_value * -1.01
    for name in (
        "lr_star",
        "unstable_base_lr",
        "best_step",
        "best_point",
        "good_region",
        "verdict",
    ):
        assert getattr(high, name) == getattr(low, name)
    assert boundary_checks(trials[True], space) == boundary_checks(trials[False], space)
    assert [t.point.number for t in rank_configurations(trials[True])] == [
        t.point.number for t in rank_configurations(trials[False])
    ]


def test_flags_turn_round_and_name_the_metrics_own_values():
    rng = np.random.default_rng(0)
    improving = np.linspace(1.0, 0.2, 40)
    curves = {
        "overfitting": np.concatenate([improving, np.linspace(0.2, 0.6, 40)]),
        "late variance": np.concatenate([improving, 0.3 + 0.1 * rng.standard_normal(40)]),
        "still improving": np.linspace(1.0, 0.2, 80),
        "saturated": np.concatenate([np.linspace(1.0, 0.2, 30), np.full(50, 0.2)]),
    }
    for name, values in curves.items():
        low, high = _trial_of(values, False), _trial_of(1 - values, True)
        names = [flag.name for flag in curve_flags(low, "m")]
        assert name in names
        assert [flag.name for flag in curve_flags(high, "m")] == names
        assert checkpoint_note([high], "m") == checkpoint_note([low], "m")
    found = curve_flags(_trial_of(1 - curves["overfitting"], True), "m")
    sentences = [flag.sentence for flag in found if flag.name == "overfitting"]
    assert sentences == ["validation ended 0.344 below its best of 0.779: overfitting (S6)"]


def _trial_of(values, maximize):
    steps = np.arange(len(values)) * 10
    curve = Curve(
        np.full(len(values) * 10, 0.5),
        np.ones(len(values) * 10),
        steps,
        {"m": values},
        len(values) * 10,
    )
    example = feasible(0, 0.1, 0.1)
    return Trial.from_curve(example.point, example.verdict, curve, "m", 1.0, maximize)


def accurate(number, base_lr, accuracy):
    """A trial of an accuracy that rises from 0.1."""
    base = feasible(number, base_lr, 0.5)
    values = np.linspace(0.1, accuracy, 51)
    curve = Curve(
        base.curve.loss, base.curve.grad_norm, base.curve.eval_step, {"val_acc": values}, 100
    )
    return Trial.from_curve(base.point, base.verdict, curve, "val_acc", 1.0, maximize=True)


def broken(number, base_lr):
    base = diverged(number, base_lr, 50)
    values = np.full(51, math.nan)
    values[:2] = 0.1, 0.99  # better than any, before it diverged
    curve = Curve(
        base.curve.loss, base.curve.grad_norm, base.curve.eval_step, {"val_acc": values}, 100
    )
    return Trial.from_curve(base.point, base.verdict, curve, "val_acc", 1.0, maximize=True)


ACCURACIES = [accurate(0, 0.01, 0.6), accurate(1, 0.1, 0.9), accurate(2, 0.3, 0.7), broken(3, 5.0)]


@pytest.fixture
def store(tmp_path):
    """The four trials in a results folder."""
    study = small_study(objective="val_acc", maximize=True, keep_checkpoints=1)
    made = create_store(study, tmp_path)
    for trial in ACCURACIES:
        tell(made, trial)
    return made


def test_optuna_is_told_the_direction_and_the_values_as_they_are(store):
    (own,) = store.optuna_studies.values()
    assert own.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [trial.value for trial in own.trials] == [0.6, 0.9, 0.7, 0.1]
    assert own.best_trial.number == 1
    shown = ShownStorage(own._storage)
    assert shown.get_best_trial(own._study_id).number == 1
    assert as_told(broken(3, 5.0)) == Told(broken(3, 5.0).point, 0.1, 0.5)


def test_trials_come_back_as_they_were_and_old_records_are_minimized(store):
    assert [trial.record() for trial in read_trials(store)] == [
        trial.record() for trial in ACCURACIES
    ]
    assert all(trial.maximize for trial in read_trials(store))
    record = feasible(0, 0.1, 0.05).record()
    assert "maximize" not in record
    assert not Trial.from_record(record, feasible(0, 0.1, 0.05).curve).maximize


def test_only_the_best_checkpoint_is_kept(store):
    for trial in ACCURACIES:
        (
            store.folder / "checkpoints" / f"batch_size=32-{trial.point.number:05d}.safetensors"
        ).touch()
    drop_checkpoints(store, ACCURACIES)
    assert [path.stem for path in (store.folder / "checkpoints").iterdir()] == [
        "batch_size=32-00001"
    ]


def test_tables_show_the_metrics_own_values(store):
    write_results(Results.read(store))
    rows = (store.folder / "trials.csv").read_text().splitlines()
    column = rows[0].split(",").index("best_value")
    assert [row.split(",")[column] for row in rows[1:4]] == ["0.6", "0.9", "0.7"]
    assert '"best_value": 0.9' in (store.folder / "summary.json").read_text()


def test_a_plot_has_its_star_at_the_top_and_what_did_not_train_below():
    info = axis_info(ACCURACIES, "base_lr", "val_acc", log=True)
    marks = {mark.number: mark for mark in info.panels[0].marks}
    assert [number for number, mark in marks.items() if mark.kind == "best"] == [1]
    assert marks[1].y == 0.9 == max(mark.y for mark in marks.values())
    assert marks[3].kind == "infeasible"
    assert marks[3].y < 0.6
    figure = axis_figure(info)
    low, high = figure.layout.yaxis.range
    assert low < marks[3].y < 0.6 < 0.9 < high
    (band,) = figure.layout.shapes
    assert min(band.y0, band.y1) == pytest.approx(0)
    assert "stands below the range" in figure.layout.title.text


def test_an_overlay_has_its_rail_below():
    """Two depths at the same base LRs, of which one breaks at the highest."""

    def deep(trial, depth, number):
        args = {"workload_args": {"depth": depth}, "number": number}
        return Trial(
            **{**vars(trial), "point": type(trial.point)(**{**trial.point.record(), **args})}
        )

    both = [deep(trial, 1, i) for i, trial in enumerate(ACCURACIES)]
    both += [deep(trial, 2, 4 + i) for i, trial in enumerate(ACCURACIES)]
    info = overlay_info(both, "val_acc", ("depth",))
    assert info.y_range == (0.9, 0.6)
    assert {line.lr_star for line in info.lines} == {0.1}
    figure = overlay_figure(info)
    low, high = figure.layout.yaxis.range
    assert low < 0.6 < 0.9 < high
    crosses = [trace for trace in figure.data if trace.marker.symbol == "x-thin"]
    assert crosses
    assert all(low < y < 0.6 for trace in crosses for y in trace.y)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_learn_in_the_other_direction(sampler):
    """Of the same trials, told as they are and negated, they propose the same next points."""

    def proposed(maximize):
        study = small_study(sampler=sampler, trials=16, maximize=maximize)
        sign = -1 if maximize else 1
        first = next_points(study, [])
        told = [Told(p, sign * abs(math.log10(p.base_lr)), -1.0) for p in first]
        return [point.base_lr for point in next_points(study, told)[len(first) :]]

    assert len(proposed(True)) == 8
    assert proposed(True) == pytest.approx(proposed(False))


# --- what is not said -----------------------------------------------------------------------------

HIGHER = [
    "acc",
    "val_acc",
    "val_accuracy",
    "top1_accuracy",
    "acc1",
    "valAcc",
    "AUC",
    "roc_auc",
    "f1",
    "val_f1",
    "macro_f1",
    "bleu",
    "bleu4",
    "precision",
    "recall",
    "r2",
    "r2_score",
    "miou",
    "mean_iou",
    "reward",
    "episode_return",
    "mAP",
    "MAP",
    "accuracy@5",
    "Accuracy",
    "test/acc",
    "elbo",
]
LOWER = [
    "val_loss",
    "loss",
    "val_error",
    "top1_error",
    "nll",
    "negative_elbo",
    "neg_return",
    "acc_loss",
    "perplexity",
    "rmse",
    "regret",
    "wer",
    "fid",
    "accel",
    "recall_error",
    "mse",
    "mapped",
    "excess_risk",
]


@pytest.mark.parametrize("name", HIGHER)
def test_an_objective_that_sounds_better_when_higher_is_warned_of_unless_the_file_says(name):
    (advice,) = [one for one in advise(parse(objective=name)) if one.place == "objective"]
    assert repr(name) in advice.sentence
    assert "maximize = true" in advice.sentence
    for said in (True, False):
        assert not [
            one for one in advise(parse(objective=name, maximize=said)) if one.place == "objective"
        ]


@pytest.mark.parametrize("name", LOWER)
def test_an_objective_that_sounds_better_when_lower_is_not(name):
    assert not [one for one in advise(parse(objective=name)) if one.place == "objective"]


def test_run_warns_too(tmp_path, monkeypatch, capsys):
    path = tmp_path / "s.toml"
    path.write_text(
        'workload = "a:b"\nobjective = "val_acc"\nmax_train_steps = 10\nbatch_sizes = '
        "[8]\ntrials = 2\n"
        "[space.optimizer.sgd]\nbase_lr = { low = 1e-3, high = 1.0, log = true }\n"
    )

    def stopped(*args, **options):
        raise UserError("not trained")

    monkeypatch.setattr("tunewright.search.run.run_studies", stopped)
    assert main(["run", str(path), "--results", str(tmp_path)]) == 2
    assert f"warning: {path}: objective: 'val_acc' is minimized" in capsys.readouterr().err


def test_compare_and_diagnose_refuse_what_is_maximized(store, tmp_path, capsys):
    path = tmp_path / "s.toml"
    path.write_text(
        'workload = "a:b"\nobjective = "val_acc"\nmaximize = true\nmax_train_steps = '
        "10\nbatch_sizes = [8]\n"
        "trials = 1\n[space.optimizer.sgd]\nbase_lr = 0.1\n"
    )
    before = sorted(tmp_path.rglob("*"))
    for command in (["diagnose", str(path)], ["compare", str(path), "--baseline", "b.pt"]):
        assert main([*command, "--results", str(tmp_path)]) == 2
        assert f"s: maximize: `tunewright {command[0]}` cannot do" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="small: maximize: `tunewright compare`"):
        compare(Results.read(store), tmp_path / "b.pt")
