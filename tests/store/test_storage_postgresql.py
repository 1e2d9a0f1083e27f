"""A study in PostgreSQL: the same results as in the results folder's own database."""

import csv
from pathlib import Path

import optuna
import pytest
from stored import small_study

from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_studies
from tunewright.search.store.storage import read_trials

pytestmark = pytest.mark.slow

STUDY = small_study(max_train_steps=20, trials=4)


def table(results: Path) -> list[dict[str, str]]:
    """trials.csv without the one column that never repeats."""
    with (results / STUDY.name / "trials.csv").open(newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]


def test_postgresql_and_sqlite_give_the_same_results(postgresql: str, tmp_path: Path) -> None:
    for results, storage in (("sqlite", None), ("postgresql", postgresql)):
        run_studies(
            [STUDY], tmp_path / results, storage=storage, progress=False, backend=InProcess()
        )
    assert len(table(tmp_path / "sqlite")) == 4
    assert table(tmp_path / "postgresql") == table(tmp_path / "sqlite")
    assert not (tmp_path / "postgresql" / "small" / "study.db").exists()

    # A second run finds everything done, and trains nothing.
    curves = tmp_path / "postgresql" / "small" / "curves"
    written = {path.name: path.stat().st_mtime_ns for path in curves.iterdir()}
    (store,) = run_studies(
        [STUDY], tmp_path / "postgresql", storage=postgresql, progress=False, backend=InProcess()
    )
    trials = store.optuna_studies[32].trials
    assert len(written) == len(trials) == len(read_trials(store)) == 4
    assert {path.name: path.stat().st_mtime_ns for path in curves.iterdir()} == written

    # The study is an ordinary one: Optuna needs nothing of ours to read it.
    storage = optuna.storages.RDBStorage(postgresql)
    plain = optuna.load_study(study_name="small/batch_size=32", storage=storage)
    assert [trial.params for trial in plain.trials] == [trial.params for trial in trials]
    assert plain.best_trial.user_attrs["verdict"] == "feasible"
    storage.engine.dispose()
