"""A maximized objective is the mirror image of its negative, minimized; every value shown is the
metric's own.
"""

import csv
import dataclasses
import json
import math
from dataclasses import asdict, replace

import numpy as np
import optuna
import pytest
import torch
from examples import parse
from mirror import in_sizes, mirrored, unmirrored
from simulated import STEPS, Simulated, diagnosed
from simulated import study_of as study_of_simulated
from stored import diverged, feasible, small_study
from two_ways import TwoWays, accurate_digits

from tunewright.search.cli import main
from tunewright.search.compare import baseline_of_point, baseline_of_study, compare
from tunewright.search.diagnose import diagnose
from tunewright.search.errors import UserError
from tunewright.search.judge.analysis import boundary_checks, rank_configurations, summarize
from tunewright.search.judge.comparison import decide, evidence, settles
from tunewright.search.judge.diagnosis import Diagnosis
from tunewright.search.judge.flags import checkpoint_note, curve_flags
from tunewright.search.judge.sensitivity import lr_sensitivity, usable_decades
from tunewright.search.pool.in_process import InProcess
from tunewright.search.procedure.steps import Case
from tunewright.search.run import run_study
from tunewright.search.show.advice import advise
from tunewright.search.show.plots import (
    axis_figure,
    axis_info,
    overlay_figure,
    overlay_info,
    versus_figure,
    versus_info,
)
from tunewright.search.show.plots.axis import scale
from tunewright.search.show.publish import write_results
from tunewright.search.show.report import write_report
from tunewright.search.show.tables import comparison_rows, comparison_tables
from tunewright.search.store.results import Results, read_diagnosis
from tunewright.search.store.shown import ShownStorage
from tunewright.search.store.storage import (
    create_store,
    drop_checkpoints,
    open_store,
    read_trials,
    tell,
)
from tunewright.search.study.pinned import pin
from tunewright.search.study.sampling import next_points, plan
from tunewright.search.study.study import load_study, parse_study
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Curve, Group, Told, Trial, as_told
from tunewright.search.words import better_side

OBJECTIVE = {False: "val_loss", True: "negative_val_loss"}


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
    (low,), (high,) = (summarize(trials[maximize]) for maximize in (False, True))
    assert 0 < low.infeasible < low.trials
    assert high.best_value == -low.best_value > low.best_value * -1.01
    for name in (
        "lr_star",
        "unstable_base_lr",
        "best_step",
        "point",
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
    assert "stand below the range" in figure.layout.title.text


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


def test_a_recipe_says_what_its_study_says():
    point = feasible(0, 0.1, 0.5).point
    for said in (True, False):
        recipe = pin(small_study(objective="val_acc", maximize=said), point, "recipe", trials=1)
        assert recipe.maximize == said
        assert [one for one in advise(recipe) if one.place == "objective"] == []
    assert "maximize" not in pin(small_study(), point, "recipe", trials=1).source


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


# --- diagnose and compare -------------------------------------------------------------------------

# architectures that help more and more, besides warmup
HELPFUL = {f"deeper-{depth}": {"depth": depth} for depth in (1, 2, 3, 4)}


def _helps(point):
    return (point.warmup_steps > 0) + point.workload_args.get("depth", 0)


def _of_adam(point):
    """It reaches 0.05 at every base LR."""
    away = math.log10(point.base_lr)
    return min(0.1 + 0.2 * away**2, 0.85) - 0.05 if point.optimizer == "adam" else 0.0


PROBED = Simulated(0.25, best_base_lr=1.0)
WARMED = replace(PROBED, raised=lambda point: 30.0 if point.warmup_steps else 1.0)
CASES = {
    "healthy": Simulated(5.0),
    "flat": Simulated(20.0, curved=0.005, noise=0.02),
    "early": PROBED,
    "mid-training": replace(PROBED, blow_up="mid_training"),
    "collapse": replace(PROBED, blow_up="collapse"),
    "warmup": WARMED,
    "clipping": replace(PROBED, raised=lambda point: 12.0 if point.clip_norm < math.inf else 1.0),
    "other optimizer": replace(PROBED, better=lambda point, updates: _of_adam(point)),
    "several": replace(
        PROBED,
        raised=lambda point: 30.0 if _helps(point) else 1.0,
        better=lambda point, updates: 0.02 * _helps(point),
    ),
    "longer": replace(WARMED, better=lambda point, updates: 0.02 * (updates > STEPS)),
    "nothing learned": Simulated(learns=False),
    "nothing trains": Simulated(1e-7),
    "no noise": Simulated(0.25, best_base_lr=1.0, noise=0.0),
    "best at the bottom": Simulated(5.0, best_base_lr=3e-4),
}


def as_json(record):
    """A text that is the same for the same record, nan included."""
    return json.dumps(record, indent=1, sort_keys=True)


def _diagnosed(name, maximize=False, budget=math.inf):
    architectures = HELPFUL if name == "several" else {}
    study = study_of_simulated(maximize=maximize)
    return diagnosed(CASES[name], study, budget=budget, architectures=architectures)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("budget", [math.inf, 120 * STEPS])
def test_a_diagnosis_turns_round(name, budget):
    low, asked = _diagnosed(name, budget=budget)
    high, also_asked = _diagnosed(name, maximize=True, budget=budget)
    assert [study.name for study in also_asked] == [study.name for study in asked]
    assert as_json(unmirrored(asdict(high))) == as_json(mirrored(asdict(low)))


def test_the_cases_come_to_every_end():
    found = [_diagnosed(name, maximize=True)[0] for name in CASES]
    assert {one.kind for one in found} == {"none", "early", "mid_training", "edge", "unknown"}
    assert {one.adopted for one in found} == {"warmup", "clipping", "plain", "adam", "deeper-4", ""}
    gains = [one.winner.evidence.gain for one in found if one.winner and one.winner.evidence]
    assert min(gains) > 0


def test_the_best_group_of_a_batch_size_is_that_with_the_highest_value():
    models = {"momentum": Simulated(5.0), "adam": Simulated(5.0, better=lambda point, _: 0.05)}
    sweep = {"base_lr": {"low": 1e-3, "high": 10.0, "log": True, "points": 9}}
    groups = [
        diagnosed(model, study_of_simulated({optimizer: sweep}, maximize=True))[0]
        for optimizer, model in models.items()
    ]
    whole = Diagnosis("s", "m", 5, 0, math.inf, (), tuple(groups), {}, maximize=True)
    assert [one.winner.mean for one in groups] == pytest.approx([-0.1, -0.05], abs=0.01)
    assert whole.best(32).group.optimizer == "adam"
    assert replace(whole, maximize=False).best(32).group.optimizer == "momentum"


WHOLE = """
workload = "two_ways:{factory}"
objective = "{objective}"
maximize = {maximize}
max_train_steps = 60
batch_sizes = [4]
sampler = "grid"
evaluations = 20
[space.optimizer.sgd]
base_lr = [0.003, 0.03, 0.3, 3.0]
"""
QUIET = {"backend": InProcess(), "slots": 12, "progress": False}


def whole_study(top, maximize):
    words = {"objective": OBJECTIVE[maximize], "maximize": str(maximize).lower()}
    (top / "two.toml").write_text(WHOLE.format(factory="TwoWays", **words))
    return load_study(top / "two.toml")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Results folders of a study and of its mirror image, and how they compare with a baseline."""
    checkpoint = tmp_path_factory.mktemp("baseline") / "b.pt"
    torch.save(TwoWays().build_model(5).state_dict(), checkpoint)
    found = {}
    for maximize in (False, True):
        top = tmp_path_factory.mktemp("results")
        run_study(whole_study(top, maximize), results=top, **QUIET)
        results = Results.read(open_store(top / "two"))
        baseline = baseline_of_point(results, "0")
        found[maximize] = top / "two", compare(results, checkpoint, baseline, seeds=5, **QUIET)
    return found


def without_seconds(record):
    """A comparison's record without what the clock says."""
    seconds = ("search_seconds", "run_seconds")
    if isinstance(record, dict):
        return {name: without_seconds(one) for name, one in record.items() if name not in seconds}
    return [without_seconds(one) for one in record] if isinstance(record, list | tuple) else record


def test_a_comparison_turns_round_and_so_does_its_whole_file(compared):
    files = [folder / "comparison.json" for folder, _ in compared.values()]
    low, high = (json.loads(path.read_text()) for path in files)
    assert low["decision"] == "adopt"
    assert as_json(unmirrored(without_seconds(high))) == as_json(mirrored(without_seconds(low)))
    assert low["test"].keys() == {"baseline", "candidate"}  # the best run's
    (minimized,), (maximized,) = low["candidates"], high["candidates"]
    assert maximized["evidence"]["gain"] > 0
    assert max(maximized["side"]["values"]) < 0 < min(minimized["side"]["values"])


def test_tables_and_report_say_which_side_is_better(compared):
    for side, (folder, paired) in compared.items():
        text = write_report(Results.read(open_store(folder))).read_text(encoding="utf-8")
        gain = f"gain = {'value − baseline' if side else 'baseline − value'}: above 0 is better"
        words = {
            f"{OBJECTIVE[side]}</b>, {'maximized' if side else 'minimized'}.",
            gain,
        }
        assert [one for one in sorted(words) if one not in text] == []
        assert better_side(not side) not in text
        assert better_side(side) in versus_figure(versus_info(paired)).layout.title.text
        values = comparison_tables(paired)[0]
        assert better_side(side) in values.title
        assert gain in values.caption
        assert paired.gain(paired.checkpoint.value + 1) == (1 if side else -1)
    (low_row,), (high_row,) = (
        [row for row in comparison_rows(compared[side][1]) if row["decision"]] for side in OBJECTIVE
    )
    for column in ("gain", "P(better)", "p", "decision"):
        assert high_row[column] == low_row[column]
    assert high_row["mean"] == f"-{low_row['mean']}"


def test_the_figure_against_the_baseline_turns_round(compared):
    low, high = (versus_info(compared[side][1]) for side in OBJECTIVE)
    assert high.y_range == tuple(-value for value in low.y_range)
    assert high.checkpoint == -low.checkpoint
    for one, other in zip(low.sides, high.sides, strict=True):
        assert other.values == tuple(-value for value in one.values)
    figure = versus_figure(high)
    assert "higher is better" in figure.layout.title.text
    for axis, spanned in (("yaxis", high.runs_range), ("yaxis3", high.y_range)):
        bottom, top = figure.layout[axis].range
        assert bottom < min(spanned) < max(spanned) < top
    assert [one.gain for one in high.gains] == pytest.approx([one.gain for one in low.gains])


def test_a_baselines_study_must_have_the_same_direction(compared, tmp_path):
    folder = compared[True][0]
    one = WHOLE.replace("[0.003, 0.03, 0.3, 3.0]", "0.003")
    words = {"factory": "TwoWays", "objective": OBJECTIVE[True], "maximize": "false"}
    (tmp_path / "other.toml").write_text(one.format(**words))
    other = baseline_of_study(tmp_path / "other.toml", tmp_path)
    before = (folder / "comparison.json").read_bytes()
    with pytest.raises(UserError, match="other: maximize: must be true as that of the candidates"):
        compare(Results.read(open_store(folder)), tmp_path / "none.pt", other, **QUIET)
    assert (folder / "comparison.json").read_bytes() == before


@pytest.fixture(scope="module")
def both_diagnosed(tmp_path_factory):
    """Results folders of a diagnosis and of its mirror image."""
    found = {}
    for maximize in (False, True):
        top = tmp_path_factory.mktemp("results")
        diagnose(whole_study(top, maximize), top, seeds=2, **QUIET)
        found[maximize] = top / "two"
    return found


@pytest.mark.slow
def test_the_whole_file_of_a_diagnosis_turns_round(both_diagnosed):
    low, high = (
        json.loads((folder / "diagnosis.json").read_text()) for folder in both_diagnosed.values()
    )
    assert as_json(unmirrored(high)) == as_json(mirrored(low))
    rerun = [one for one in high["groups"][0]["remedies"] if one["values"]]
    assert len(rerun) > 1
    assert all(value < 0 for one in rerun for value in one["values"])


@pytest.mark.slow
def test_recipe_and_tracking_have_the_metrics_own_values(both_diagnosed):
    rows, recipes = {}, {}
    for side, folder in both_diagnosed.items():
        with (folder / "tracking.csv").open(newline="", encoding="utf-8") as file:
            (rows[side],) = csv.DictReader(file)
        recipes[side] = (folder / "recipe.toml").read_text(encoding="utf-8").splitlines()
    assert float(rows[True]["best"]) == -float(rows[False]["best"]) < 0
    for name in ("configuration", "trials"):
        assert rows[True][name] == rows[False][name]
    low, high = recipes[False], recipes[True]
    assert in_sizes(high[0]) == in_sizes(low[0])
    assert high[0].startswith("# negative_val_loss -")
    assert "maximize = true" in high
    turned = ("maximize", "objective")
    bare = [[line for line in own[1:] if not line.startswith(turned)] for own in (low, high)]
    assert bare[0] == bare[1]


# --- an accuracy ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_accuracy_is_tuned_diagnosed_and_compared_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = WHOLE.format(factory="accurate_digits", objective="val_accuracy", maximize="true")
    text = (
        text.replace("sgd", "momentum").replace("[4]", "[32]").replace("0.003, 0.03,", "0.03, 0.1,")
    )
    (tmp_path / "s.toml").write_text(text)
    torch.save(accurate_digits().build_model(9).state_dict(), tmp_path / "b.pt")
    quiet = ["--in-process", "--slots", "12"]
    assert main(["diagnose", "s.toml", "--seeds", "2", *quiet]) == 0
    out = capsys.readouterr().out
    assert "val_accuracy, higher is better" in out
    (found,) = read_diagnosis(tmp_path / "runs" / "s").groups
    values = {one.name: one.mean for one in found.remedies if one.values}
    assert len(values) > 1
    assert all(0.5 < value <= 1 for value in values.values())
    gains = {one.name: one.evidence.gain for one in found.remedies if one.evidence}
    for name, gain in gains.items():
        assert gain == pytest.approx(values[name] - values["plain"])
    words = ["--baseline", "b.pt", "--seeds", "19", "--require-better", *quiet]
    assert main(["compare", "runs/s/recipe.toml", "--results", "runs/s", *words]) == 0
    out = capsys.readouterr().out
    assert "decision: adopt" in out
    assert "gain = value − baseline" in out
    (trained,) = (tmp_path / "runs/s/recipe/checkpoints").iterdir()
    words[1] = str(trained)
    assert main(["compare", "runs/s/recipe", *words]) == 1
    assert "decision: not enough evidence" in capsys.readouterr().out


def test_all_that_reach_the_best_value_there_is_are_a_tie():
    """The smallest base LR is farthest from the edge; nobody gains, and nothing is divided by 0."""
    perfect = [accurate(i, base_lr, 1.0) for i, base_lr in enumerate((0.3, 0.03, 0.1))]
    (row,) = summarize(perfect)
    assert (row.lr_star, row.best_value) == (0.03, 1.0)
    assert usable_decades(perfect) == pytest.approx(1)
    assert lr_sensitivity(perfect) == 0
    low, high = sorted(axis_info(perfect, "base_lr", "val_acc", log=True).y_range)
    assert low < 1.0 < high
    for values, baseline in (([1.0] * 6, [1.0] * 6), ([1.0] * 19, [1.0])):
        found = evidence(values, baseline, maximize=True)
        assert decide([found]) == ["not enough evidence"]
        assert (found.gain, found.p_better, found.p_worse) == (0, 1, 1)
        assert settles(found, 1) == math.inf


def test_an_axis_of_what_is_maximized_is_never_logarithmic():
    """It would press the best values together."""
    values = [0.01, 0.5, 0.97, 0.98]
    assert scale(values, maximize=True) == (False, 0.98, 0.01)
    assert scale(values, maximize=False) == (True, 0.01, 0.98)


def test_what_a_case_reaches_is_a_cost():
    """Beside it, a training that is worse counts as one that learned nothing."""
    study = study_of_simulated(maximize=True)
    trials = Simulated(noise=0.0).trials_of(study)
    case = Case(study, Group(32, "momentum"), 2, trials[0].point)
    best = rank_configurations(trials)[0]
    assert case.at(best.point, trials).reached == best.cost == pytest.approx(0.1)
