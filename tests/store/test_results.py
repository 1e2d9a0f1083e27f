"""What a results folder holds is read once, and passed down."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compared import comparison
from counted import Reads
from stored import diverged, feasible, small_study

from tunewright.search import run
from tunewright.search.cli import main
from tunewright.search.errors import UserError
from tunewright.search.show.publish import write_results
from tunewright.search.show.report import write_report
from tunewright.search.store.files import curve_path, write_curve
from tunewright.search.store.places import STEPS
from tunewright.search.store.provenance import environment, write_environment
from tunewright.search.store.results import Results, write_comparison
from tunewright.search.store.storage import Store, create_store, read_records, tell
from tunewright.search.study.study import load_study
from tunewright.search.trial import Trial

STUDY = """
workload = "tunewright.models.digits:mlp"
workload_args = { width = 8 }
objective = "val_error"
max_train_steps = 5
batch_sizes = [32, 64]
trials = 3
evaluations = 2
[space.optimizer.momentum]
base_lr = { low = 1e-3, high = 10.0, log = true }
"""
TRIALS = [feasible(0, 0.1, 0.05), diverged(1, 5.0, onset_step=30), feasible(2, 0.2, 0.04)]


def stored(store: Store, trials: Sequence[Trial] = TRIALS) -> Store:
    for trial in trials:
        write_curve(curve_path(store.folder, trial.point), trial.curve)
        tell(store, trial)
    return store


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A study whose trials are all in its results."""
    path = tmp_path / "one.toml"
    path.write_text(STUDY)
    run.run_study(load_study(path), results=tmp_path, workers=1, slots=1, progress=False)
    return path


def test_run_on_a_finished_folder_reads_everything_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads.counted(monkeypatch)
    assert main(["run", str(finished), "--results", str(finished.parent), "--workers", "1"]) == 0
    assert reads.all_once(6), reads


def test_report_reads_everything_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads.counted(monkeypatch)
    assert main(["report", str(finished.with_suffix(""))]) == 0
    assert reads.all_once(6), reads


def test_after_a_run_no_record_is_parsed_and_every_curve_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records were parsed as they came over the wire, and as they were stored; curves do not stay
    in memory while others train.
    """
    (tmp_path / "one.toml").write_text(STUDY)
    reads = Reads.counted(monkeypatch)
    assert (
        main(["run", str(tmp_path / "one.toml"), "--results", str(tmp_path), "--workers", "1"]) == 0
    )
    opened = {path: n for path, n in reads.curves.items() if path.parent.name == "curves"}
    assert set(reads.records.values()) == {2}
    assert list(opened.values()) == [1] * 6


def test_of_several_studies_one_is_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(STUDY)
    order = []
    read = Results.read

    def reading(store: Store, records: Sequence[Trial]) -> Results:
        order.append(f"read {store.study.name}")
        return read(store, records)

    monkeypatch.setattr(Results, "read", staticmethod(reading))
    studies = [load_study(tmp_path / f"{name}.toml") for name in ("a", "b")]
    run.run_studies(
        studies,
        results=tmp_path,
        workers=1,
        slots=1,
        progress=False,
        then=lambda results: order.append(f"use {results.study.name}"),
    )
    assert order == ["read a", "use a", "read b", "use b"]


def test_tables_report_and_notes_are_made_of_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(create_store(small_study(), tmp_path))
    write_comparison(store.folder, comparison([[0.2, 0.3]], None))
    write_environment(store.folder, environment(["tunewright", "run"]))
    results = Results.read(store)
    reads = Reads.counted(monkeypatch)
    write_results(results)
    write_report(results)
    assert not reads.records
    assert not reads.curves


def test_records_in_memory_need_not_be_parsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(create_store(small_study(), tmp_path))
    records, whole = read_records(store), Results.read(store)
    reads = Reads.counted(monkeypatch)
    assert Results.read(store, reversed(records)).trials == whole.trials
    assert not reads.records
    assert len(reads.curves) == len(TRIALS)


def test_a_lost_curve_is_what_optuna_was_told_whichever_way_it_is_read(tmp_path: Path) -> None:
    store = stored(create_store(small_study(), tmp_path))
    for path in (store.folder / "curves").iterdir():
        path.unlink()
    for results in (Results.read(store), Results.read(store, read_records(store))):
        for trial, own in zip(results.trials, TRIALS, strict=True):
            assert not len(trial.curve.loss)
            assert trial.curve.eval_step.tolist() == own.curve.eval_step.tolist()
            told, known = (one.curve.metrics["val_error"] for one in (trial, own))
            assert np.array_equal(told, known, equal_nan=True)


def test_a_crash_has_no_curve_and_gives_way_to_a_later_try(tmp_path: Path) -> None:
    store = create_store(small_study(), tmp_path)
    tell(store, Trial.from_crash(TRIALS[0].point, "out of memory"))
    assert [trial.verdict.outcome for trial in Results.read(store).trials] == ["crashed"]
    assert not Results.read(store).trials[0].curve.metrics
    stored(store, TRIALS[:1])
    assert Results.read(store).trials == TRIALS[:1]


def test_a_step_is_read_when_first_asked_for_and_once(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(create_store(small_study(), tmp_path))
    steps = store.folder / STEPS
    run.run_study(load_study(finished), results=steps, workers=1, slots=1, progress=False)
    results = Results.read(store)
    reads = Reads.counted(monkeypatch)
    assert results.trials_of("small") is results.trials
    with pytest.raises(UserError, match="is not a results folder"):
        results.trials_of("no-such-step")
    assert not reads.records
    assert len(results.trials_of("one")) == 6
    assert results.trials_of("one") is results.trials_of("one")
    assert reads.all_once(6), reads


def test_steps_that_are_known_are_not_read(tmp_path: Path) -> None:
    store = create_store(small_study(), tmp_path)
    results = replace(Results.read(store), steps={"sweep": TRIALS})
    assert results.trials_of("sweep") is TRIALS
