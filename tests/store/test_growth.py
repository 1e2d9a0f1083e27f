"""A study file may grow after its first run: what was trained stays, the rest is trained."""

import csv
from pathlib import Path

import optuna
import pytest
from stored import feasible, small_study

from tunewright.search.errors import UserError
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.show.tables import missing_in_words
from tunewright.search.store.results import Results
from tunewright.search.store.storage import (
    Store,
    continued_by,
    create_store,
    exclusive,
    open_store,
    read_records,
    tell_all,
)
from tunewright.search.study.sampling import next_points, plan
from tunewright.search.study.study import Study
from tunewright.search.trial import as_told

ADAM = {"base_lr": {"low": 1e-4, "high": 0.1, "log": True}}


def wider(high: float = 100.0, **changes: object) -> Study:
    base_lr = {"low": 1e-3, "high": high, "log": True}
    return small_study(**{"space": {"optimizer": {"momentum": {"base_lr": base_lr}}}} | changes)


@pytest.fixture
def trained(tmp_path: Path) -> Store:
    """All four trials of a small study, told."""
    with exclusive(create_store(small_study(), tmp_path)) as store:
        trials = [feasible(p.number, p.base_lr, 0.1 + p.base_lr / 100) for p in plan(store.study)]
        tell_all(store, trials)
    return store


def grown(study: Study, trained: Store) -> Store:
    with exclusive(create_store(study, trained.folder.parent)) as store:
        return store


def to_train(store: Store) -> list[float]:
    """Base LRs of the points that a run would train."""
    done = read_records(store)
    numbers = {trial.point.number for trial in done}
    points = next_points(store.study, [as_told(trial) for trial in done])
    return [point.base_lr for point in points if point.number not in numbers]


def optuna_study(store: Store) -> optuna.Study:
    url = f"sqlite:///{store.folder / 'study.db'}"
    return optuna.load_study(study_name="small/batch_size=32", storage=url)


def test_a_wider_range_keeps_every_trial_and_adds_its_new_part(trained):
    store = grown(wider(), trained)
    assert len(read_records(store)) == 4
    assert to_train(store)
    assert min(to_train(store)) > 10.0
    assert to_train(open_store(store.folder)) == to_train(store)
    assert to_train(grown(wider(), trained)) == to_train(store)  # the same file, again


def test_nothing_is_written_before_the_results_are_held_by_a_run(trained):
    text = (trained.folder / "study.toml").read_text()
    attributes = dict(optuna_study(trained).user_attrs)
    store = create_store(wider(), trained.folder.parent)
    assert len(to_train(store)) > 0
    assert (trained.folder / "study.toml").read_text() == text
    assert optuna_study(trained).user_attrs == attributes
    with exclusive(store):
        assert (trained.folder / "study.toml").read_text() == wider().source
        assert optuna_study(trained).user_attrs["grown"][0]["end"] == 4


def test_optuna_knows_all_trials_in_the_space_as_it_is_now(trained):
    both = wider(space={"optimizer": {**wider().document["space"]["optimizer"], "adam": ADAM}})
    store = grown(both, trained)
    for trial in optuna_study(store).trials:
        assert set(trial.params) == {"optimizer", "momentum.base_lr"}
        assert trial.distributions["momentum.base_lr"].high == 100.0
    tell_all(store, [feasible(5, 50.0, 0.3)])
    assert len(optuna_study(store).trials) == 5


def test_a_narrower_range_leaves_trials_out_without_losing_them(trained):
    most = max(trial.point.base_lr for trial in read_records(trained))
    store = grown(wider(high=most / 2, trials=3), trained)
    assert len(read_records(store)) == 3
    assert len(optuna_study(store).trials) == 4
    assert "1 configurations of before lie outside" in missing_in_words(
        store.study, Results.read(store).trials
    )
    assert len(read_records(grown(small_study(), trained))) == 4


def test_a_study_that_grew_may_grow_again_by_trials_alone(trained):
    first = to_train(grown(wider(), trained))
    again = to_train(grown(wider(trials=20), trained))
    assert len(again) > len(first)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_train_steps": 200}, "max_train_steps: was 100, is 200"),
        ({"objective": "val_loss"}, "objective: was val_error, is val_loss"),
        ({"seeds": 3}, "seeds: was (absent), is 3"),
        ({"seeds": {"finalists": 3}}, "seeds.finalists: was (absent), is 3"),
        ({"workload": "a.b:c"}, "workload: was tunewright.models.digits:mlp, is a.b:c"),
    ],
)
def test_what_would_make_it_another_study_is_refused(trained, changes, line):
    study = wider(**changes)
    with pytest.raises(UserError) as refused:
        create_store(study, trained.folder.parent)
    assert line in str(refused.value)
    assert "what was trained stays" in str(refused.value)
    assert continued_by(trained, study) is None


def test_a_log_axis_stays_one(trained):
    space = {"optimizer": {"momentum": {"base_lr": {"low": 1e-3, "high": 100.0}}}}
    with pytest.raises(UserError, match=r"momentum\.base_lr\.log: was true, is false"):
        create_store(small_study(space=space), trained.folder.parent)


def test_a_run_trains_the_new_part_only_and_prints_one_table(tmp_path):
    options = {"results": tmp_path, "backend": InProcess(), "progress": False}
    study = small_study(max_train_steps=20, trials=3)
    before = run_study(study, **options)
    again = wider(max_train_steps=20, trials=3, batch_sizes=[32, 64])
    after = run_study(again, **options)
    assert [t.record() for t in after if t.point.number < 3 and t.point.batch_size == 32] == [
        t.record() for t in before
    ]
    new = [t.point for t in after if t.point.batch_size == 32 and t.point.number >= 3]
    assert new
    assert min(point.base_lr for point in new) > 10.0
    assert sum(trial.point.batch_size == 64 for trial in after) == 3
    with (tmp_path / "small" / "trials.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(after)
    assert run_study(again, **options) == after
    narrow = run_study(study, **options)
    assert [t.point.batch_size for t in narrow] == 3 * [32]
    with (tmp_path / "small" / "trials.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
