"""A study may begin with trials of earlier studies of the same workload."""

from dataclasses import replace
from pathlib import Path

import pytest
from stored import feasible, point, small_study

from tunewright.search.errors import UserError
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.store.files import curve_path, write_curve
from tunewright.search.store.storage import (
    Store,
    create_store,
    exclusive,
    read_records,
    read_trials,
    tell_all,
)
from tunewright.search.store.warm import as_earlier, gather, warm_start
from tunewright.search.study.sampling import next_points, plan
from tunewright.search.study.study import Study, parse_study
from tunewright.search.trial import as_told


def named(name: str, high: float = 100.0, sources: tuple[Path, ...] = (), **changes) -> Study:
    document = {
        "workload": "tunewright.models.digits:mlp",
        "objective": "val_error",
        "max_train_steps": 100,
        "batch_sizes": [32],
        "trials": 4,
        "seed": 1,
        "space": {"optimizer": {"momentum": {"base_lr": {"low": 1e-3, "high": high, "log": True}}}},
    }
    if sources:
        document["warm_start"] = {"from": [str(folder) for folder in sources]}
    return parse_study(document | changes, name=name, place=f"{name}.toml")


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """Four trials from 1e-3 to 10, with their curves."""
    with exclusive(create_store(small_study(), tmp_path)) as store:
        trials = [feasible(p.number, p.base_lr, 0.1 + p.base_lr / 100) for p in plan(store.study)]
        for trial in trials:
            write_curve(curve_path(store.folder, trial.point), trial.curve)
        tell_all(store, trials)
    return store


def begun(study: Study, results: Path) -> tuple[Store, list[str]]:
    with exclusive(create_store(study, results)) as store:
        return warm_start(store)


def to_train(store: Store) -> list[float]:
    done = read_records(store)
    numbers = {trial.point.number for trial in done}
    points = next_points(store.study, [as_told(trial) for trial in done])
    return [point.base_lr for point in points if point.number not in numbers]


def test_trials_in_the_space_count_and_only_the_rest_is_trained(old, tmp_path):
    store, said = begun(named("new", sources=(old.folder,)), tmp_path)
    assert said == [f"{old.folder}: 4 of its 4 trials count"]
    assert [t.best_value for t in read_trials(store)] == [t.best_value for t in read_trials(old)]
    assert all(len(trial.curve.loss) for trial in read_trials(store))
    assert to_train(store)
    assert min(to_train(store)) > 10.0
    again, said = begun(named("new", sources=(old.folder,)), tmp_path)
    assert (said, to_train(again)) == ([], to_train(store))


def test_those_outside_do_not_and_it_is_said_why(old, tmp_path):
    most = max(trial.point.base_lr for trial in read_records(old))
    store, said = begun(named("new", high=most / 2, sources=(old.folder,)), tmp_path)
    (sentence,) = said
    assert "3 of its 4 trials count; not 1 with base_lr" in sentence
    assert len(read_records(store)) == 3


def test_several_folders_add_up_and_the_same_training_counts_once(old, tmp_path):
    first, _ = begun(named("first", sources=(old.folder,)), tmp_path)
    last = plan(first.study)[-1]
    tell_all(first, [feasible(last.number, last.base_lr, 0.2)])
    second, said = begun(named("second", sources=(old.folder, first.folder)), tmp_path)
    assert said[0].endswith("4 of its 4 trials count")
    assert said[1].endswith("1 of its 5 trials count; not 4 with a training that counts already")
    assert len(read_records(second)) == 4 + 1
    assert len({trial.point.configuration for trial in read_records(second)}) == 5


def test_what_it_would_do_is_known_before_anything_is_written(old, tmp_path):
    study = named("new", sources=(old.folder,))
    planned = study.grown_from(as_earlier(study, gather(study)))
    store, _ = begun(study, tmp_path)
    assert plan(planned) == plan(store.study)


@pytest.mark.parametrize("killed_before", ["told", "marked"])
def test_killed_in_between_it_ends_as_if_it_had_not_been(old, tmp_path, monkeypatch, killed_before):
    study = named("new", sources=(old.folder,))
    expected = plan(begun(named("other", sources=(old.folder,)), tmp_path)[0].study)
    module = "tunewright.search.store.warm."

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        name = "tell_all" if killed_before == "told" else "grow"
        patch.setattr(module + name, die)
        with pytest.raises(KeyboardInterrupt):
            begun(study, tmp_path)
    store, _ = begun(study, tmp_path)
    assert plan(store.study) == expected
    assert len(read_records(store)) == 4


def test_a_study_with_results_may_take_those_of_another(old, tmp_path):
    options = {"results": tmp_path, "backend": InProcess(), "progress": False}
    before = run_study(named("new", high=0.5, trials=2), **options)
    after = run_study(named("new", high=100.0, trials=2, sources=(old.folder,)), **options)
    assert [t.record() for t in after[:2]] == [t.record() for t in before]
    copied = [trial.best_value for trial in read_records(old)]
    assert [trial.best_value for trial in after[2:6]] == copied
    assert len({trial.point.number for trial in after}) == len(after)


def test_seeds_of_one_configuration_from_two_folders_are_one_configuration(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        with exclusive(create_store(named(name, seed=seed), tmp_path)) as store:
            own = replace(feasible(0, 0.5, 0.1), point=replace(point(0, 0.5), seed=seed))
            tell_all(store, [own])
    sources = (tmp_path / "one", tmp_path / "two")
    store, _ = begun(named("both", sources=sources, seeds=2), tmp_path)
    assert [(t.point.number, t.point.seed) for t in read_records(store)] == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"workload": "a.b:c"}, "workload: was tunewright.models.digits:mlp, is a.b:c"),
        ({"objective": "val_loss"}, "objective: was val_error, is val_loss"),
        ({"max_train_steps": 200}, "max_train_steps: was 100, is 200"),
    ],
)
def test_results_of_something_else_are_refused(old, tmp_path, changes, line):
    with pytest.raises(UserError) as refused:
        begun(named("new", sources=(old.folder,), **changes), tmp_path)
    assert str(refused.value).startswith(f"new: warm_start.from: {old.folder}: its trials say")
    assert line in str(refused.value)


def test_nothing_is_written_where_a_warm_start_is_refused(tmp_path):
    study = named("new", sources=(tmp_path / "nowhere",))
    with pytest.raises(UserError, match="is not a results folder"):
        run_study(study, results=tmp_path / "results", backend=InProcess(), progress=False)
    assert not (tmp_path / "results").exists()


def test_a_folder_without_results_and_a_damaged_one_are_refused(old, tmp_path):
    with pytest.raises(UserError, match=r"warm_start\.from: .*has no study\.toml"):
        begun(named("new", sources=(tmp_path / "nowhere",)), tmp_path)
    (old.folder / "study.db").write_bytes(b"no database, but long enough to look like one" * 100)
    with pytest.raises(UserError, match=r"newer: warm_start\.from: storage: cannot open"):
        begun(named("newer", sources=(old.folder,)), tmp_path)
