"""The library as a notebook uses it."""

import csv

import pytest
from examples import parse

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
from tunewright.search.show.tables import plan_table, summary_table


@pytest.mark.parametrize("name", tunewright.search.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(tunewright.search, name) is not None


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        tunewright.search.nonsense  # noqa: B018


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
    assert summary_table(summarize(trials)).row_count == 1


def test_the_plan_has_a_row_per_group():
    assert plan_table(parse(), {32: 0.001, 256: 0.002}).row_count == 4
