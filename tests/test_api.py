"""The library as a notebook uses it."""

import csv
import importlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas
import pytest
from compared import comparison
from examples import WORKLOAD, parse
from stored import feasible

import tunewright
import tunewright.search
from tunewright.search import (
    InProcess,
    axis_figure,
    axis_info,
    load_study,
    open_store,
    read_trials,
    run_study,
    summarize,
)
from tunewright.search.errors import UserError
from tunewright.search.judge.answer import answers
from tunewright.search.show.tables import plan_table, summary_table
from tunewright.search.store.results import read_diagnosis

ROOT = Path(__file__).parents[1]
WITH_ARGUMENTS = ("build_report", "compare", "diagnose", "read_results", "trials_frame")


@pytest.mark.parametrize("package", [tunewright, tunewright.search])
@pytest.mark.parametrize("name", tunewright.search.__all__)
def test_every_public_name_is_a_function_or_class_with_a_docstring(package, name):
    """Also after the modules that have such a name, as compare, were imported."""
    for module in ("compare", "diagnose", "judge.verdict", "train.loop"):
        importlib.import_module(f"tunewright.search.{module}")
    found = getattr(package, name)
    assert callable(found)
    assert found.__doc__
    assert "Args:" in found.__doc__ or name not in WITH_ARGUMENTS


def test_both_packages_list_the_same_names():
    assert set(tunewright.__all__) == set(tunewright.search.__all__)
    assert set(tunewright.__all__) <= set(dir(tunewright))


@pytest.mark.parametrize("package", [tunewright, tunewright.search])
def test_unknown_names_are_attribute_errors(package):
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_a_study_in_five_lines(tmp_path):
    (tmp_path / "tiny.toml").write_text(
        'workload = "tunewright.models.digits:mlp"\nobjective = "val_error"\nmax_train_steps = 20\n'
        "batch_sizes = [64]\ntrials = 3\n[space.optimizer.sgd]\nbase_lr = { low = 1e-3, high "
        "= 1.0, log = true }\n"
    )
    study = load_study(tmp_path / "tiny.toml")
    trials = run_study(study, results=tmp_path, backend=InProcess(), progress=False)
    figure = axis_figure(axis_info(trials, "base_lr", study.objective, log=True))
    assert sum(len(trace.x) for trace in figure.data if trace.x[0] is not None) == len(trials) == 3
    assert read_trials(open_store(tmp_path / "tiny")) == trials
    with (tmp_path / "tiny" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["best_value"]) for row in rows] == [trial.best_value for trial in trials]
    assert summary_table(answers(trials, summarize(trials))).row_count == 1


def test_the_plan_has_a_row_per_group():
    assert plan_table(parse(), {32: 0.001, 256: 0.002}).row_count == 4


# --- what is shown --------------------------------------------------------------------------------

TINY = {
    "name": "<tiny>",
    "objective": "val_loss",
    "max_train_steps": 10,
    "batch_sizes": [4, 8],
    "trials": 2,
    "space": {"optimizer": {"sgd": {"base_lr": [0.01, 0.1]}}},
}
QUIET = {"backend": InProcess(), "progress": False}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    names = {"__name__": "__main__"}
    exec(WORKLOAD, names)
    folder = tmp_path_factory.mktemp("results")
    study = tunewright.Study(**TINY, workload=names["Line"]({}))
    run_study(study, results=str(folder), **QUIET)
    return tunewright.read_results(str(folder / "<tiny>"))


def shown(results):
    """Everything that a notebook may end a cell with."""
    diagnosis = read_diagnosis(ROOT / "results" / "diagnose_post_norm")
    trial = results.trials[0]
    compared = comparison([[0.2, 0.21, 0.2]] * 2, None)
    return [results, results.study, *results.summaries, trial, trial.curve, compared, diagnosis]


def test_each_is_shown_in_three_lines_at_most(results):
    for one in shown(results):
        lines = repr(one).splitlines()
        assert 1 <= len(lines) <= 3, one
        assert max(map(len, lines)) <= 250
    assert "Results of '<tiny>': 4 trials, 0 infeasible" in repr(results)
    assert repr(min(results.trials, key=lambda trial: trial.cost)) in repr(results)
    assert "Study '<tiny>': sgd at batch sizes 4, 8\n4 trials of 10 updates" in repr(results.study)


def test_a_trial_that_is_not_evidence_is_shown_too():
    crashed = tunewright.Trial.from_crash(feasible(1, 0.1, 0.2).point, "why")
    assert repr(crashed).endswith("\ncrashed: why")
    assert repr(replace(feasible(1, 0.1, 0.2), best_step=np.nan)).count("\n") == 1


def test_results_and_studies_are_tables_in_a_notebook_and_texts_stay_texts(results):
    tables = [one for one in shown(results) if hasattr(one, "_repr_html_")]
    assert len(tables) == 4
    for one in tables:
        html = one._repr_html_()
        assert html.startswith("<table>")
        assert "<tiny>" not in html
        assert "color" not in html  # the notebook's own, light or dark
    rows = results._repr_html_().count("<tr>")
    assert rows == 1 + len(results.summaries)
    assert "&lt;tiny&gt;" in results.study._repr_html_()


def test_no_stored_record_depends_on_what_is_shown(results, monkeypatch):
    trial = results.trials[0]
    before = (trial.record(), trial.point.configuration, results.study.document)
    for kind in (tunewright.Trial, tunewright.Study, tunewright.Curve):
        monkeypatch.setattr(kind, "__repr__", lambda self: "other")
    assert (trial.record(), trial.point.configuration, results.study.document) == before


# --- functions ------------------------------------------------------------------------------------


def test_the_report_of_results_or_their_folder(results):
    path = tunewright.build_report(results)
    first = path.read_bytes()
    assert tunewright.build_report(str(results.folder)) == path
    assert path.read_bytes() == first
    assert path.is_absolute()
    with pytest.raises(UserError, match="is not a results folder"):
        tunewright.build_report(results.folder / "curves")


def test_optuna_says_nothing_of_our_studies_and_all_of_the_users_own(tmp_path, results, caplog):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.INFO):
            study = results.study.with_(workload="tunewright.models.digits:mlp", sampler="tpe")
            run_study(study, results=tmp_path, **QUIET)
            assert not [one for one in caplog.records if one.name.startswith("optuna")]
            assert optuna.logging.get_verbosity() == optuna.logging.INFO
            optuna.create_study()
            assert "A new study created in memory" in caplog.text
    finally:
        optuna.logging.disable_propagation()


# --- data frames ----------------------------------------------------------------------------------


def trials_of_two_optimizers():
    first, second = feasible(0, 0.1, 0.2), feasible(1, 1.0, 0.1)
    arguments = {"depth": 2, "norm": "layer", "tied": True}
    point = replace(first.point, settings={}, workload_args=arguments)
    return [second, replace(first, point=point)]


def test_a_frame_has_the_columns_of_the_table_and_their_types(results):
    frame = tunewright.trials_frame(results.trials)
    table = pandas.read_csv(results.folder / "trials.csv")
    assert list(frame.columns) == list(table.columns)
    assert frame.best_value.tolist() == table.best_value.tolist()
    kinds = {
        name: frame[name].dtype.kind for name in ("number", "base_lr", "onset_step", "verdict")
    }
    assert kinds["number"] == "i"
    assert kinds["base_lr"] == kinds["onset_step"] == "f"
    assert pandas.api.types.is_string_dtype(frame.verdict)
    assert np.isinf(frame.onset_step).all()


def test_what_a_trial_does_not_have_is_missing():
    frame = tunewright.trials_frame(trials_of_two_optimizers(), "pandas")
    assert frame.depth.tolist() == [pandas.NA, 2]
    assert frame.depth.dtype == "Int64"
    assert frame.tied.dtype == "boolean"
    assert frame.momentum.dtype == "float64"
    assert frame.momentum.isna().tolist() == [False, True]
    assert frame.norm.isna().tolist() == [True, False]
    assert len(tunewright.trials_frame([])) == 0


def test_polars_if_it_is_asked_for():
    polars = pytest.importorskip("polars")
    frame = tunewright.trials_frame(trials_of_two_optimizers(), "polars")
    assert frame["depth"].to_list() == [None, 2]
    assert frame.schema["tied"] == polars.Boolean
    assert frame.schema["base_lr"] == polars.Float64
    assert frame["verdict"].to_list() == ["feasible", "feasible"]


@pytest.mark.parametrize(
    ("library", "sentence"),
    [
        (None, r"needs pandas or polars, not installed here: pip install pandas"),
        ("polars", "needs polars, not installed here: pip install polars"),
        ("numpy", "library: must be one of pandas, polars, got 'numpy'"),
    ],
)
def test_without_a_library_what_to_install_is_said(library, sentence, monkeypatch):
    monkeypatch.setattr("tunewright.search.store.frame.find_spec", lambda name: None)
    with pytest.raises(UserError, match=sentence):
        tunewright.trials_frame([], library)
