"""A study file may grow after its first run: what was trained stays, the rest is trained."""

import csv
import math
from dataclasses import replace
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
from tunewright.search.trial import Point, as_told

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


HALF_LIFE = {"half_life_examples": {"low": 1e3, "high": 1e4, "log": True}}


def of_adam(beta2: object = None, weight_decay: object = None, **changes: object) -> Study:
    """A study whose axes of AdamW are tied."""
    own = {"base_lr": {"low": 1e-3, "high": 1.0, "log": True}, "beta2": beta2 or HALF_LIFE}
    own |= {"weight_decay": weight_decay or {"timescale_epochs": [1, 10]}}
    keys = {"train_examples": 1400, "space": {"optimizer": {"adamw": own}}, "trials": 8}
    return small_study(**keys | changes)


def trained_as(study: Study, results: Path) -> Store:
    """All trials of a study, told."""
    with exclusive(create_store(study, results)) as store:
        like = feasible(0, 0.1, 0.2)
        tell_all(store, [replace(like, point=point) for point in plan(store.study)])
    return store


def missing(store: Store) -> list[Point]:
    done = read_records(store)
    told = {(trial.point.batch_size, trial.point.number) for trial in done}
    points = next_points(store.study, [as_told(trial) for trial in done])
    return [point for point in points if (point.batch_size, point.number) not in told]


def half_lives(points: list[Point]) -> list[float]:
    return [-32 * math.log(2) / math.log(point.settings["beta2"]) for point in points]


def test_a_tied_axis_grows_and_adds_its_new_part_alone(tmp_path):
    store = trained_as(of_adam(), tmp_path)
    wider = {"half_life_examples": {"low": 1e3, "high": 1e5, "log": True}}
    with exclusive(create_store(of_adam(wider, trials=16), tmp_path)) as grown_store:
        assert len(read_records(grown_store)) == 8
        new = half_lives(missing(grown_store))
    assert len(new) == 8
    assert all(1e4 < half_life <= 1e5 for half_life in new)
    narrow = {"half_life_examples": {"low": 1e3, "high": 3e3, "log": True}}
    with exclusive(create_store(of_adam(narrow), tmp_path)) as narrower:
        kept = half_lives([trial.point for trial in read_records(narrower)])
    before = half_lives(plan(store.study))
    assert kept == pytest.approx([one for one in before if one <= 3e3], rel=1e-9)


def test_the_same_file_and_more_trials_keep_every_point_of_a_tied_axis(tmp_path):
    trained_as(of_adam(), tmp_path)
    for changes, count in [({}, 0), ({"trials": 12}, 4)]:
        with exclusive(create_store(of_adam(**changes), tmp_path)) as store:
            assert len(read_records(store)) == 8
            assert len(missing(store)) == count


def test_a_tied_study_that_grew_before_its_end_trains_what_was_missing_and_nothing_twice(tmp_path):
    study = of_adam()
    left_out = plan(study)[2]
    with exclusive(create_store(study, tmp_path)) as store:
        told = [point for point in plan(study) if point.number != left_out.number]
        tell_all(store, [replace(feasible(0, 0.1, 0.2), point=point) for point in told])
    tables = study.document["space"]["optimizer"]
    both = study.with_(space={"optimizer": tables | {"sgd": {"base_lr": [0.1, 1.0]}}}, trials=16)
    with exclusive(create_store(both, tmp_path)) as store:
        (new,) = [point for point in missing(store) if point.optimizer == "adamw"]
    assert new.configuration == left_out.configuration


def test_a_value_that_was_fixed_lies_on_a_tied_axis_that_holds_it(tmp_path):
    fixed = of_adam(beta2=0.99)
    trained_as(fixed, tmp_path)  # a half-life of 2207 examples
    with exclusive(create_store(of_adam(), tmp_path)) as store:
        assert len(read_records(store)) == 8
    beyond = {"half_life_examples": {"low": 3e3, "high": 1e4, "log": True}}
    with exclusive(create_store(of_adam(beyond), tmp_path)) as store:
        assert read_records(store) == []


def test_a_range_of_another_quantity_is_another_kind_of_axis(tmp_path):
    trained_as(of_adam(), tmp_path)
    for beta2, now in [
        ({"low": 0.9, "high": 0.999}, "beta2"),
        ({"one_minus": {"low": 0.01, "high": 0.1, "log": True}}, "beta2.one_minus"),
    ]:
        with pytest.raises(UserError) as refused:
            create_store(of_adam(beta2), tmp_path)
        line = f"adamw.beta2: was a range of beta2.half_life_examples, is one of {now}"
        assert line in str(refused.value)
    linear = {"half_life_examples": {"low": 1e3, "high": 1e4}}
    with pytest.raises(UserError, match=r"half_life_examples\.log: was true, is false"):
        create_store(of_adam(linear), tmp_path)


def test_the_number_of_training_examples_may_come_and_go_but_not_change(tmp_path):
    plain = of_adam(weight_decay=0.1, train_examples=2000)
    space, document = plain.document["space"], plain.document
    del document["train_examples"]
    trained_as(Study(name="small", **document), tmp_path)
    for examples in (1400, 1400):
        with exclusive(create_store(plain.with_(train_examples=examples, trials=9), tmp_path)):
            pass
    with pytest.raises(UserError, match="train_examples: was 1400, is 1500"):
        create_store(plain.with_(train_examples=1500, space=space, trials=9), tmp_path)


def test_trainings_as_long_in_examples_stay_so(tmp_path):
    long = {"max_train_steps": None, "max_train_examples": 3200}
    trained_as(of_adam().with_(**long), tmp_path)
    grown_by_size = of_adam().with_(**long, batch_sizes=[32, 64])
    with exclusive(create_store(grown_by_size, tmp_path)) as store:
        assert {store.study.updates(point) for point in missing(store)} == {50}
    with pytest.raises(UserError, match="max_train_examples: was 3200, is 6400"):
        create_store(grown_by_size.with_(max_train_examples=6400), tmp_path)


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


def test_a_cut_decides_over_new_trials_alone(tmp_path):
    options = {"results": tmp_path, "backend": InProcess(), "progress": False}
    before = run_study(small_study(max_train_steps=40, trials=6), **options)
    study = wider(max_train_steps=40, trials=30, cut={"at": 0.25, "keep": 0.5})
    with pytest.raises(UserError, match="cut"):  # how trials are trained cannot change
        run_study(study, **options)
    cut = small_study(max_train_steps=40, trials=8, cut={"at": 0.25, "keep": 0.5}).with_(name="cut")
    first = run_study(cut, **options)
    after = run_study(study.with_(name="cut"), **options)
    assert [t.record() for t in after if t.point.number < 8] == [t.record() for t in first]
    new = [trial for trial in after if trial.point.number >= 8]
    ended = [trial for trial in new if trial.is_cut]
    going_on = [trial for trial in new if trial.feasible]
    assert len(ended) >= 3
    assert len(going_on) >= 3
    assert len(before) == 6
