"""`tunewright diagnose` on a real study, small: what it leaves behind, and that it goes on where it
stopped.
"""

import csv
import math
import re
import sys
import tomllib
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from counted import Reads
from examples import FRAGILE
from simulated import Simulated, follow, steps_asked, study_of

from tunewright.search.cli import main
from tunewright.search.diagnose import _with_curvature as curved
from tunewright.search.diagnose import diagnose, plan_of, updates_of
from tunewright.search.errors import UserError
from tunewright.search.pool.in_process import InProcess
from tunewright.search.procedure.group import diagnosis_of
from tunewright.search.rules.optimizers import counterpart
from tunewright.search.run import run_study
from tunewright.search.show.chapter import DRAWN
from tunewright.search.show.report import write_report
from tunewright.search.show.tables import diagnosis_plan_table, diagnosis_table, remedy_rows
from tunewright.search.store.results import Results, read_diagnosis
from tunewright.search.store.storage import create_store, open_store, read_trials
from tunewright.search.study.sampling import plan
from tunewright.search.study.study import load_study, parse_study
from tunewright.search.train.curvature import follow_edge
from tunewright.search.words import readable

QUIET = {"backend": InProcess(), "slots": 12, "progress": False}
TINY = """
workload = "tunewright.models.digits:mlp"
workload_args = { width = 16 }
objective = "val_loss"
max_train_steps = 40
batch_sizes = [32]
sampler = "grid"
evaluations = 4
keep_checkpoints = 1
[space.optimizer.momentum]
base_lr = [0.01, 0.1, 1.0, 10.0]
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "tiny.toml"
    path.write_text(TINY)
    return load_study(path)


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """The results of a whole diagnosis: in 40 updates this model needs a base LR so high that it
    stands at the edge.
    """
    results = tmp_path_factory.mktemp("results")
    said = []
    result = diagnose(study, results, seeds=2, say=said.append, **QUIET)
    return results / "tiny", result, said


def trained_files(folder):
    """Every curve with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("curves/*.npz")}


# --- what it leaves behind ------------------------------------------------------------------------


def test_it_comes_to_a_verdict_and_the_file_holds_all_of_it(whole):
    folder, result, _ = whole
    (found,) = result.groups
    assert found.kind == "early"
    assert found.lr_star == 0.1
    assert found.edge.found
    assert found.remedies[0].name == "plain"
    assert found.adopted in {one.name for one in found.remedies if one.values}
    assert repr(read_diagnosis(folder)) == repr(result)
    assert (result.skipped, result.budget, result.seeds) == ((), math.inf, 2)


def test_updates_are_those_of_all_its_studies(whole):
    folder, result, _ = whole
    homes = [folder, *(folder / "steps").iterdir()]
    assert result.updates == sum(updates_of(open_store(home).study) for home in homes)


def test_every_step_is_an_ordinary_study_in_the_one_database(whole):
    folder, result, said = whole
    named = {name for step in result.groups[0].steps for name in step.studies}
    homes = {path.name: open_store(path) for path in (folder / "steps").iterdir()}
    assert named <= homes.keys() | {"tiny"}
    for home in homes.values():
        assert len(read_trials(home)) == len(plan(home.study))
        assert not (home.folder / "study.db").exists()
    url = f"sqlite:///{folder / 'study.db'}"
    stored = set(optuna.get_all_study_names(url))
    assert stored == {f"{name}/batch_size=32" for name in [*homes, "tiny"]}
    assert all(any(name in words for words in said) for name in homes)


def test_the_recipe_is_a_study_that_trains_what_was_adopted(whole, tmp_path):
    folder, result, _ = whole
    assert result.recipes == {"32": "recipe.toml"}
    recipe = load_study(folder / "recipe.toml")
    winner = result.groups[0].winner
    (trial,) = run_study(recipe, results=tmp_path, **QUIET)
    assert trial.point.configuration == winner.point.configuration
    assert recipe.updates(trial.point) == winner.updates
    first, *lines = (folder / "recipe.toml").read_text().splitlines()
    own = counterpart(winner.point.optimizer, winner.point.settings, winner.point.base_lr)
    assert f"# {own.call}" in lines
    assert f"# {own.distance}" in lines
    assert first.startswith("# val_loss ")
    assert "fresh seeds" in first
    assert tomllib.loads((folder / "recipe.toml").read_text())["question"] == (
        f"Adopted for batch size 32, momentum: {winner.name}"
    )


def test_tracking_has_a_row_per_group(whole):
    folder, result, _ = whole
    with (folder / "tracking.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    found = result.groups[0]
    assert (row["study"], row["batch_size"], row["optimizer"]) == ("tiny", "32", "momentum")
    assert row["notes"] == found.summary
    assert float(row["best"]) == found.winner.mean
    homes = [folder, *(folder / "steps").iterdir()]  # the sweep, and every step
    assert int(row["trials"]) == sum(len(read_trials(open_store(home))) for home in homes)


def test_curvature_is_a_step_after_the_kind(whole):
    _, result, _ = whole
    (found,) = result.groups
    names = [step.name for step in found.steps]
    assert names.index("curvature") == names.index("kind") + 1
    assert 0 < found.curvature.eigenvalue_at_start < math.inf
    assert found.curvature.limit_at_start == pytest.approx(
        (2 + 2 * 0.9) / found.curvature.eigenvalue_at_start
    )


def test_plain_training_is_followed_at_lr_star_and_at_both_ends_of_the_edge(whole):
    _, result, _ = whole
    (found,) = result.groups
    base_lrs = dict.fromkeys([found.lr_star, *found.edge.interval])
    assert [run.base_lr for run in found.edge_runs] == list(base_lrs)
    star = found.edge_runs[0]
    assert star.outcome == "feasible"
    assert star.looks[-1].step == 40
    for run in found.edge_runs:
        for look in run.looks:
            assert look.rate == run.base_lr
            expected = look.rate * look.eigenvalue / 3.8
            assert look.ratio == pytest.approx(max(expected, 0.0))
    (step,) = [step for step in found.steps if step.name == "curvature"]
    assert any(star.words in sentence for sentence in step.sentences)
    first, *others = remedy_rows(found)
    assert first["of the edge"] == readable(star.highest.ratio)
    assert not any(row["of the edge"] for row in others)


SILENT = SimpleNamespace(say=lambda text: None)  # of what a diagnosis trains


def without_curvature(found):
    steps = tuple(step for step in found.steps if step.name != "curvature")
    return replace(found, steps=steps, curvature=None, edge_runs=())


@pytest.mark.parametrize(("command", "kind"), [([], "function"), (["python3"], "command")])
def test_what_trains_in_place_of_a_workload_has_a_sentence_and_no_curvature(whole, command, kind):
    before = without_curvature(whole[1].groups[0])
    found = curved(SimpleNamespace(workload="", command=command), SILENT, before)
    (step,) = [step for step in found.steps if step.name == "curvature"]
    assert step.sentences == (f"λ₁ is not known: a {kind} has no loss that can be called.",)
    assert (found.curvature, found.edge_runs) == (None, ())


def test_a_loss_that_cannot_be_differentiated_twice_becomes_a_sentence(study, whole, monkeypatch):
    def refuse(*arguments):
        raise ValueError("the training loss cannot be differentiated twice: so it is")

    own = sys.modules[curved.__module__]  # the package has a function of its name
    monkeypatch.setattr(own, "_curvature", lambda *arguments: (None, ()))
    monkeypatch.setattr(own, "follow_edge", refuse)
    found = curved(study, SILENT, without_curvature(whole[1].groups[0]))
    (step,) = [step for step in found.steps if step.name == "curvature"]
    (sentence,) = step.sentences
    assert sentence == (
        "How near to the edge is not known: the training loss cannot be differentiated twice: so "
        "it is."
    )
    monkeypatch.setattr(own, "_curvature", refuse)
    found = curved(study, SILENT, without_curvature(whole[1].groups[0]))
    (step,) = [step for step in found.steps if step.name == "curvature"]
    assert step.sentences[0].startswith("λ₁ is not known: the training loss")


def test_the_report_has_the_chapter_with_a_figure_per_step(whole):
    folder, result, _ = whole
    text = write_report(Results.read(open_store(folder))).read_text(encoding="utf-8")
    assert "Diagnosis: batch size 32, momentum" in text
    for step in result.groups[0].steps:
        drawn = step.name in DRAWN
        assert text.count(f'id="diagnosis_momentum-32_{step.name}"') == drawn
        assert all(name in text for name in step.studies)


def test_tables_have_a_row_per_remedy_and_per_step_of_the_plan(study, whole):
    _, result, _ = whole
    (found,) = result.groups
    assert diagnosis_table(found, "val_loss").row_count == len(found.remedies)
    planned = plan_of(study, 2)
    assert diagnosis_plan_table(planned, {32: 0.001}).row_count == sum(map(len, planned.values()))


# --- going on -------------------------------------------------------------------------------------


def test_run_again_it_trains_nothing_and_says_the_same(study, whole):
    folder, result, _ = whole
    before, written = trained_files(folder), (folder / "diagnosis.json").read_bytes()
    again = diagnose(study, folder.parent, seeds=2, **QUIET)
    assert repr(again) == repr(result)
    assert trained_files(folder) == before
    assert (folder / "diagnosis.json").read_bytes() == written


def test_once_all_is_trained_everything_is_read_once(study, whole, monkeypatch, capsys):
    """Report and chapter included."""
    folder, _, _ = whole
    homes = [folder, *(folder / "steps").iterdir()]
    trials = sum(len(read_trials(open_store(home))) for home in homes)
    (folder.parent / "tiny.toml").write_text(TINY)
    reads = Reads.counted(monkeypatch)
    command(folder.parent)
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert reads.all_once(trials), reads


BUDGET = 40  # trainings: the sweep, a first look, and not all of what comes after


@pytest.fixture(scope="module")
def short(study, tmp_path_factory):
    results = tmp_path_factory.mktemp("short")
    return results / "tiny", diagnose(study, results, seeds=2, budget=BUDGET, **QUIET)


def test_interrupted_between_any_two_steps_it_comes_to_the_same_end(study, short, tmp_path):
    folder, _ = short

    def interrupt(words):
        if not words.startswith("tiny"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(study, tmp_path, seeds=2, budget=BUDGET, say=interrupt, **QUIET)
    assert not (tmp_path / "tiny" / "diagnosis.json").exists()
    swept = trained_files(tmp_path / "tiny")
    assert len(swept) == 4
    diagnose(study, tmp_path, seeds=2, budget=BUDGET, **QUIET)
    after = trained_files(tmp_path / "tiny")
    assert {path: after[path] for path in swept} == swept
    for name in ("diagnosis.json", "recipe.toml"):
        assert (tmp_path / "tiny" / name).read_bytes() == (folder / name).read_bytes()


def test_what_the_budget_left_out_is_named_and_the_rest_is_told(short):
    folder, result = short
    (found,) = result.groups
    assert found.left_out
    assert result.skipped == (f"{found.group.label}: {found.budget_in_words}",)
    assert result.updates <= BUDGET * 40
    text = write_report(Results.read(open_store(folder))).read_text(encoding="utf-8")
    assert "Diagnosis: batch size 32, momentum" in text
    assert result.groups[0].summary


def test_with_a_larger_budget_it_goes_on_from_there(study, short):
    folder, result = short
    before = trained_files(folder)
    more = diagnose(study, folder.parent, seeds=2, budget=BUDGET + 30, **QUIET)
    assert more.updates > result.updates
    after = trained_files(folder)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)


# --- the plan -------------------------------------------------------------------------------------

ROWS = {
    "simulated": "sweep",
    "above": "boundary",
    "below": "boundary",
    "close": "close",
    "edge": "edge",
    "probe": "probe",
    "confirm": "confirm",
    "clipping": "clipping",
    "tune": "tuning",
    "rerun": "tournament",
    "look": "more base LRs",
}


def row_of(name):
    """The row of the plan that a step is counted in."""
    if name.startswith("warmup"):
        return f"warmup {name.split('-')[1]}" if "-screen-" in name else "warmup, confirmed"
    if re.fullmatch(r"look-[A-Za-z_]+(-norm)?", name):
        return "first look"
    if name.endswith("-as-found"):
        return "tuning"
    return "safety on the edge" if name.endswith("-more") else ROWS[name.split("-")[0]]


@pytest.mark.parametrize(
    "model",
    [
        Simulated(5.0, curved=0.001, noise=0.02),
        Simulated(),
        Simulated(3e-4, best_base_lr=1.0, blow_up="mid_training"),
        Simulated(
            0.08, best_base_lr=1.0, raised=lambda point: 200.0 if point.warmup_steps >= 40 else 1.0
        ),
        Simulated(
            0.08,
            best_base_lr=1.0,
            raised=lambda p: 13.0 if p.warmup_steps or p.clip_norm < 2 else 1.0,
        ),
        Simulated(1e-9),
    ],
)
def test_no_step_takes_more_trainings_than_was_planned(model):
    study = study_of(workload="tunewright.models.digits:mlp", seeds=2)
    (group,) = study.groups(32)
    planned = {row: trainings for row, trainings, _ in plan_of(study, 4)[group]}
    _, asked = follow(diagnosis_of(study, group, 4, {}), model.trials_of)
    taken = Counter()
    for name, own in zip(steps_asked(asked), asked, strict=True):
        taken[row_of(name)] += len(plan(own))
    assert {row: count for row, count in taken.items() if count > planned[row]} == {}


def test_results_of_before_decay_vectors_go_on_as_they_began_in_every_step(tmp_path, monkeypatch):
    document = tomllib.loads(TINY)
    document["space"]["optimizer"] = {
        "adamw": {"base_lr": [1e-3, 1e-2, 0.1, 1.0], "weight_decay": 0.5}
    }
    study = parse_study(document, "old", place="old.toml")
    (began,) = create_store(study, tmp_path).optuna_studies.values()
    known = dict(began.user_attrs["study"])
    del known["decay_vectors"]
    began.set_user_attr("study", known)
    followed = []
    monkeypatch.setattr(
        sys.modules[diagnose.__module__],
        "follow_edge",
        lambda study, *more: followed.append(study) or follow_edge(study, *more),
    )
    diagnose(study, tmp_path, seeds=2, budget=60, **QUIET)
    homes = [tmp_path / "old", *(tmp_path / "old" / "steps").iterdir()]
    assert len(homes) > 1
    assert {open_store(home).study.decay_vectors for home in homes} == {True}
    assert {one.decay_vectors for one in followed} == {True}
    recipe = (tmp_path / "old" / "recipe.toml").read_text()
    assert load_study(tmp_path / "old" / "recipe.toml").decay_vectors is True
    assert "# torch.optim.AdamW(params," in recipe


# --- mistakes -------------------------------------------------------------------------------------


LEAST = 29  # the sweep of 4, eight ways to train at three base LRs, two of them with 4 steps more


def test_a_budget_below_the_first_look_is_refused_before_anything_is_trained(study, tmp_path):
    words = (
        f"--budget: must be at least {LEAST} trainings, the sweep and a first look at every remedy"
    )
    with pytest.raises(UserError, match=f"{words}, got {LEAST - 1}"):
        diagnose(study, tmp_path, budget=LEAST - 1, **QUIET)
    assert not list(tmp_path.iterdir())


def test_a_sweep_in_the_steps_counts_without_its_warmup(tmp_path):
    """Four base LRs, three clip thresholds: twelve trials, of which the sweep is four."""
    document = tomllib.loads(TINY)
    document["space"]["clip_norm"] = [math.inf, 1.0, 0.1]
    study = parse_study(document, "clipped", place="clipped.toml")
    diagnose(study, tmp_path, seeds=2, budget=LEAST, **QUIET)
    assert len(read_trials(open_store(tmp_path / "clipped" / "steps" / "sweep"))) == 4
    assert read_trials(create_store(study, tmp_path)) == []
    assert read_diagnosis(tmp_path / "clipped").groups[0].summary


def test_a_file_will_do_and_folders_as_texts(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    result = diagnose(str(tmp_path / "tiny.toml"), str(tmp_path), seeds=2, budget=LEAST, **QUIET)
    assert read_diagnosis(tmp_path / "tiny").groups[0].summary == result.groups[0].summary


def command(tmp_path, *options):
    (tmp_path / "tiny.toml").write_text(TINY)
    own = ["--results", str(tmp_path), "--in-process", "--slots", "12", "--seeds", "2"]
    return main(["diagnose", str(tmp_path / "tiny.toml"), *own, *options])


def test_the_command_prints_plan_verdict_and_recipe_and_ends_with_0(tmp_path, capsys):
    assert command(tmp_path, "--budget", str(LEAST)) == 0
    out = capsys.readouterr().out
    assert "At most" in out
    assert "batch size 32, momentum: " in out
    assert re.search(r"The budget left out [^.]*\. About --budget \d+ would do\.", out)
    assert f"report: {tmp_path / 'tiny' / 'report.html'}" in out
    assert f"recipe: tunewright run {tmp_path / 'tiny' / 'recipe.toml'}" in out
    assert (tmp_path / "tiny" / "report.html").exists()


def test_trials_of_all_steps_go_to_the_storage_that_is_named(tmp_path, capsys):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    assert command(tmp_path, "--budget", str(LEAST), "--storage", url) == 0
    stored = set(optuna.get_all_study_names(url))
    steps = [path.name for path in (tmp_path / "tiny" / "steps").iterdir()]
    assert stored == {f"{name}/batch_size=32" for name in [*steps, "tiny"]}
    out = capsys.readouterr().out.partition("batch size 32, momentum: ")[2]
    assert command(tmp_path, "--budget", str(LEAST), "--storage", url) == 0
    assert capsys.readouterr().out.partition("batch size 32, momentum: ")[2] == out


def test_too_small_a_budget_is_status_2_with_the_number_that_it_takes(tmp_path, capsys):
    assert command(tmp_path, "--budget", "3") == 2
    err = capsys.readouterr().err
    assert f"--budget: must be at least {LEAST} trainings" in err
    assert "Traceback" not in err
    assert not (tmp_path / "tiny").exists()


def test_interrupted_the_command_ends_with_1_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[diagnose.__module__], "run_studies", interrupted)
    assert command(tmp_path) == 1
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such.toml"], "no/such.toml: cannot be read"),
        (["pyproject.toml"], "workload: is required"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(arguments, message, capsys, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    path = arguments[0] if arguments[0].startswith("no/") else str(tmp_path / arguments[0])
    assert main(["diagnose", path]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--seeds", "1"], ["--budget", "0"], ["--budgets", "9"], []])
def test_a_wrong_option_is_status_2(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["diagnose", *(["s.toml"] if options else []), *options])
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["diagnose", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for option in (
        "--seeds",
        "--budget",
        "--workers",
        "--threads",
        "--device",
        "--slots",
        "--no-compile",
        "--results",
        "--storage",
    ):
        assert option in out


def test_a_crashed_training_is_status_1_and_the_same_command_tries_it_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fragile", raising=False)
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "s.toml").write_text(
        'workload = "fragile:Fragile"\nobjective = "val_loss"\nmax_train_steps = '
        "9\nbatch_sizes = [4]\n"
        'sampler = "grid"\n[space.optimizer.sgd]\nbase_lr = [0.01, 0.3, 3.0]\n'
    )

    def run():
        own = ["--seeds", "2", "--budget", "25", "--in-process", "--slots", "1"]
        return main(["diagnose", "s.toml", *own]), capsys.readouterr().err

    status, err = run()
    assert status == 1
    assert "is unlucky" in err
    assert "The same command tries again." in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs" / "s" / "diagnosis.json").exists()
    (tmp_path / "mended").touch()
    status, err = run()
    assert status == 0, err
    assert (tmp_path / "runs" / "s" / "diagnosis.json").exists()
