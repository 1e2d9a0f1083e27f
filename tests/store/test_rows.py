"""The number of a trial in Optuna is that of its point, whatever came first, on both databases."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import psycopg2
import pytest
from optuna.trial import FrozenTrial, TrialState
from stored import diverged, feasible, point, small_study

from tunewright.search.judge.comparison import Checkpoint
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_studies
from tunewright.search.store import rows
from tunewright.search.store.baseline import tell_baseline
from tunewright.search.store.rows import stored_trials
from tunewright.search.store.shown import ShownStorage
from tunewright.search.store.storage import (
    Store,
    _as_frozen,
    create_store,
    exclusive,
    read_records,
    tell,
    tell_all,
)
from tunewright.search.train.checkpoints import sha256
from tunewright.search.trial import Trial

TRIALS = [
    feasible(0, 0.1, 0.05),
    feasible(1, 0.01, 0.2),
    diverged(2, 5.0, onset_step=3),
    feasible(3, 0.3, 0.07),
]
CRASHED = Trial.from_crash(point(1, 0.01), "out of memory")
AS_FINISHED = [TRIALS[3], CRASHED, TRIALS[0], TRIALS[2]]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'some.db'}"
        return
    server = request.getfixturevalue("postgresql")
    connection = psycopg2.connect(server)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    connection.close()
    yield server


@pytest.fixture
def store(tmp_path: Path, url: str) -> Store:
    return create_store(small_study(), tmp_path, url)


OPENED: list[optuna.storages.RDBStorage] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPENED:
        storage = OPENED.pop()
        storage.remove_session()
        storage.engine.dispose()


def plain(store: Store, batch_size: int = 32) -> optuna.Study:
    """As whoever has the database and nothing of ours opens it."""
    own = store.optuna_studies[batch_size]
    url = own._storage._backend.engine.url.render_as_string(hide_password=False)
    OPENED.append(optuna.storages.RDBStorage(url))
    return optuna.load_study(study_name=own.study_name, storage=OPENED[-1])


def numbers(trials: list[FrozenTrial]) -> list[tuple[int, str]]:
    """Of each trial its number, and what it is in the study."""
    return [(t.number, t.user_attrs.get("verdict", "somebody's")) for t in trials]


OURS = [(0, "feasible"), (1, "feasible"), (2, "non_finite"), (3, "feasible")]


def test_numbers_are_those_of_the_plan_whatever_is_finished_first(store: Store) -> None:
    for trial in AS_FINISHED:
        tell(store, trial)
    found = plain(store).trials
    assert numbers(found) == [OURS[0], (1, "crashed"), *OURS[2:]]
    assert [trial.params.get("base_lr") for trial in found] == [0.1, None, 5.0, 0.3]


def test_numbers_have_gaps_while_a_run_is_going_on_and_optuna_reads_on(store: Store) -> None:
    tell(store, TRIALS[3])
    study = plain(store)
    assert numbers(study.trials) == OURS[3:]
    tell(store, TRIALS[0])
    assert numbers(study.trials) == [OURS[0], OURS[3]]
    assert study.best_trial.number == 0


def test_a_later_try_takes_the_place_of_a_crash(store: Store) -> None:
    """Also for a reader that has seen the crash, which is the last row of the database."""
    tell(store, CRASHED)
    reader = plain(store)
    assert numbers(reader.trials) == [(1, "crashed")]
    tell(store, TRIALS[1])
    assert numbers(reader.trials) == numbers(plain(store).trials) == [OURS[1]]
    assert [trial.verdict.outcome for trial in read_records(store)] == ["feasible"]
    tell(store, CRASHED)  # which no run does: what is there stays
    assert numbers(plain(store).trials) == [OURS[1], (4, "crashed")]


def test_nothing_of_a_crash_is_left_in_any_table(store: Store) -> None:
    backend = store.optuna_studies[32]._storage._backend
    tell(store, TRIALS[1])
    with backend.engine.connect() as connection:
        before = contents(connection)
    (row,) = stored_trials(store.optuna_studies[32])
    tell(store, replace(CRASHED, point=TRIALS[0].point))
    tell(store, TRIALS[0])
    tell(store, replace(CRASHED, point=TRIALS[2].point))
    with backend.engine.connect() as connection:
        after = contents(connection)
    assert set(before) == set(after)
    assert after["trials"] == 3
    assert after["trial_user_attributes"] == 3 * before["trial_user_attributes"]
    assert after["trial_intermediate_values"] == 2 * before["trial_intermediate_values"]
    assert len(row.intermediate_values) == before["trial_intermediate_values"]


def contents(connection) -> dict[str, int]:
    tables = ("trials", "trial_params", "trial_values", "trial_user_attributes")
    return {
        name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar()
        for name in (*tables, "trial_system_attributes", "trial_intermediate_values")
    }


def baseline(store: Store, tmp_path: Path) -> None:
    (tmp_path / "b.pt").write_bytes(b"weights")
    tell_baseline(store, Checkpoint(str(tmp_path / "b.pt"), sha256(tmp_path / "b.pt"), 0.04))


@pytest.mark.parametrize("finished", [2, 4])
def test_the_baseline_comes_after_all_that_is_planned(
    store: Store, tmp_path: Path, finished: int
) -> None:
    tell_all(store, TRIALS[:finished])
    baseline(store, tmp_path)
    assert numbers(plain(store).trials) == [*OURS[:finished], (4, "baseline")]
    tell_all(store, TRIALS[finished:])
    assert numbers(plain(store).trials) == [*OURS, (4, "baseline")]


def test_a_study_that_grows_numbers_on_and_its_baseline_moves_behind(
    store: Store, tmp_path: Path, url: str
) -> None:
    tell_all(store, TRIALS)
    baseline(store, tmp_path)
    grown = create_store(small_study(trials=8), tmp_path, url)
    with exclusive(grown):
        assert numbers(plain(grown).trials) == [*OURS, (8, "baseline")]
        tell(grown, feasible(5, 0.2, 0.1))
        tell(grown, feasible(4, 0.2, 0.1))
    assert numbers(plain(grown).trials) == [
        *OURS, (4, "feasible"), (5, "feasible"), (8, "baseline")
    ]  # fmt: skip
    baseline(grown, tmp_path)  # the same: it is there
    assert len(plain(grown).trials) == 7


def test_what_somebody_added_during_a_run_gives_way_to_ours(store: Store) -> None:
    """By plain Optuna, which counts rows: it gets a number that is another trial's."""
    tell(store, TRIALS[1])
    plain(store).add_trial(optuna.trial.create_trial(value=0.0))
    tell(store, TRIALS[3])
    assert len(read_records(store)) == 2
    tell(store, TRIALS[0])
    with exclusive(store):
        found = numbers(plain(store).trials)
    assert found == [OURS[0], OURS[1], OURS[3], (4, "somebody's")]


def as_before(store: Store) -> None:
    """Tell trials as earlier versions did: Optuna numbered them as they came."""
    for trial in [*AS_FINISHED, TRIALS[1]]:
        plain(store).add_trial(_as_frozen(store.study, trial))


def test_databases_of_earlier_versions_read_as_before_and_are_shown_by_our_numbers(
    store: Store, tmp_path: Path
) -> None:
    as_before(store)
    assert [t.number for t in plain(store).trials] == [0, 1, 2, 3, 4]
    assert [(t.point.number, t.verdict.outcome) for t in read_records(store)] == OURS
    shown = ShownStorage(store.optuna_studies[32]._storage)
    study_id = store.optuna_studies[32]._study_id
    expected = [*OURS, (4, "crashed")]
    assert numbers(shown.get_all_trials(study_id)) == expected
    assert shown.get_best_trial(study_id).number == 0
    # Their next run numbers them, for plain Optuna, too.
    with exclusive(store):
        assert numbers(plain(store).trials) == expected
    assert numbers(shown.get_all_trials(study_id)) == expected
    assert [(t.point.number, t.verdict.outcome) for t in read_records(store)] == OURS


def test_the_next_run_of_an_earlier_database_tells_what_was_missing(
    store: Store, tmp_path: Path, url: str
) -> None:
    plain(store).add_trial(_as_frozen(store.study, TRIALS[3]))
    plain(store).add_trial(_as_frozen(store.study, CRASHED))
    with exclusive(store):
        tell(store, TRIALS[0])
        tell(store, TRIALS[1])
        tell(store, TRIALS[2])
    assert numbers(plain(store).trials) == OURS


def test_a_trial_that_is_interrupted_while_it_is_told_is_not_there_and_nothing_else_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(store, CRASHED)

    def fail(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rows, "_give_way", fail)
        with pytest.raises(KeyboardInterrupt):
            tell(store, TRIALS[1])
    assert numbers(plain(store).trials) == [(1, "crashed")]
    tell(store, TRIALS[1])
    assert numbers(plain(store).trials) == [OURS[1]]


def test_a_page_sees_a_trial_that_is_missing_between_others_as_waiting(store: Store) -> None:
    """So that an open page asks again for all that comes after it."""
    tell(store, TRIALS[0])
    tell(store, TRIALS[3])
    shown = ShownStorage(store.optuna_studies[32]._storage)
    study_id = store.optuna_studies[32]._study_id
    found = shown.get_all_trials(study_id)
    states = [TrialState.COMPLETE, TrialState.WAITING, TrialState.WAITING, TrialState.COMPLETE]
    assert [(t.number, t.state) for t in found] == list(enumerate(states))
    ids = [trial._trial_id for trial in found]
    assert len(set(ids)) == 4
    assert [shown.has_trial(id) for id in ids] == [True, False, False, True]
    tell(store, TRIALS[1])
    tell(store, TRIALS[2])
    assert {t.state for t in shown.get_all_trials(study_id)} == {TrialState.COMPLETE}


def test_report_table_optuna_and_dashboard_call_a_trial_by_the_same_number(
    tmp_path: Path, url: str
) -> None:
    study = small_study(max_train_steps=20, trials=6, batch_sizes=[32, 64])
    run_studies([study], tmp_path, storage=url, progress=False, backend=InProcess())
    store = create_store(study, tmp_path, url)
    told = {trial.point.base_lr: trial.point.number for trial in read_records(store)}
    assert len(told) == 12
    for batch_size, own in store.optuna_studies.items():
        study_id = own._study_id
        found = plain(store, batch_size).trials
        shown = ShownStorage(own._storage).get_all_trials(study_id)
        for trials in (found, shown):
            assert [trial.number for trial in trials] == list(range(6))
            assert [told[trial.params["base_lr"]] for trial in trials] == list(range(6))
