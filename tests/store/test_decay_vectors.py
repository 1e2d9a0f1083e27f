"""Results of before there was `decay_vectors` go on with weight decay of all parameters."""

import csv
import math
import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w
from stored import small_study

from tunewright.search.compare import baseline_of_study
from tunewright.search.errors import UserError
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.store.storage import create_store, exclusive, open_store, read_trials
from tunewright.search.store.warm import gather
from tunewright.search.study.pinned import pin
from tunewright.search.study.study import Study, parse_study

ADAMW = {"adamw": {"base_lr": [1e-3, 1e-2], "weight_decay": 10.0}}
MOMENTUM = {"momentum": {"base_lr": [1e-3, 1e-2]}}


def of(optimizers=ADAMW, **changes: object) -> Study:
    keys = {"max_train_steps": 20, "sampler": "grid", "evaluations": 2, "trials": None}
    return small_study(**{**keys, "space": {"optimizer": optimizers}, **changes})


def run(study: Study, results: Path) -> dict[int, float]:
    """The last loss of each point."""
    trials = run_study(study, results=results, backend=InProcess(), progress=False, workers=1)
    return {trial.point.number: trial.last_loss for trial in trials}


def forget(folder: Path) -> None:
    """Make a results folder what an earlier version left behind."""
    with exclusive(open_store(folder)) as store:
        for kept in store.optuna_studies.values():
            document = dict(kept.user_attrs["study"])
            del document["decay_vectors"]
            kept.set_user_attr("study", document)
    text = (folder / "study.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("decay_vectors")]
    (folder / "study.toml").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def all_decay(tmp_path_factory) -> dict[int, float]:
    return run(of(decay_vectors=True), tmp_path_factory.mktemp("all"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """One of two trials, trained before there was the key."""
    first = of({"adamw": {**ADAMW["adamw"], "base_lr": [1e-3]}}, decay_vectors=True)
    run(first, tmp_path)
    forget(tmp_path / "small")
    return tmp_path / "small"


def test_a_new_study_leaves_out_biases_and_says_so_in_its_folder(tmp_path, all_decay):
    found = run(of(), tmp_path)
    assert found.keys() == all_decay.keys()
    assert not any(math.isclose(found[number], all_decay[number]) for number in found)
    assert tomllib.loads((tmp_path / "small/study.toml").read_text())["decay_vectors"] is False
    again = create_store(of(), tmp_path)
    assert again.study.decay_vectors is False
    assert not again.grown


def test_an_old_folder_goes_on_as_it_began(old, all_decay, caplog):
    caplog.set_level("INFO", "tunewright")
    assert run(of(), old.parent) == all_decay
    assert (
        "began with weight decay of all parameters (decay_vectors = true), and goes on so"
        in caplog.text
    )
    assert tomllib.loads((old / "study.toml").read_text())["decay_vectors"] is True
    assert open_store(old).study.decay_vectors is True


def test_a_batch_size_that_is_named_no_more_says_how_its_results_began(old):
    with exclusive(create_store(of(batch_sizes=[16]), old.parent)) as store:
        assert store.study.decay_vectors is True
    both = create_store(of(batch_sizes=[16, 32]), old.parent)
    assert both.study.decay_vectors is True
    with pytest.raises(UserError, match="decay_vectors: was True, is False"):
        create_store(of(batch_sizes=[64], decay_vectors=False), old.parent)


def test_a_key_that_was_taken_out_says_so_for_a_new_batch_size(tmp_path, caplog):
    create_store(of(decay_vectors=True), tmp_path)
    caplog.set_level("INFO", "tunewright")
    assert create_store(of(batch_sizes=[16]), tmp_path).study.decay_vectors is True
    assert "began with weight decay of all parameters (decay_vectors = true)" in caplog.text


def test_a_rule_that_was_taken_out_and_comes_back_decays_as_it_did(old):
    with exclusive(open_store(old)) as store:  # an earlier version went on with another rule
        (kept,) = store.optuna_studies.values()
        known = kept.user_attrs["study"]
        without = {key: value for key, value in known.items() if key != "decay_vectors"}
        kept.set_user_attr("grown", [{"study": without, "end": 1}])
        kept.set_user_attr("study", {**without, "space": {"optimizer": MOMENTUM}})
    assert create_store(of({**MOMENTUM, **ADAMW}), old.parent).study.decay_vectors is True
    with pytest.raises(UserError, match="decay_vectors: was True, is False"):
        create_store(of({**MOMENTUM, **ADAMW}, decay_vectors=False), old.parent)


def test_other_studies_in_the_database_say_nothing(old):
    other = of().model_copy(update={"name": "small-2"})
    url = f"sqlite:///{old / 'study.db'}"
    assert create_store(other, old.parent, url).study.decay_vectors is False


def test_trials_of_a_warm_start_say_nothing_of_what_is_trained_here(old, tmp_path):
    both = of({**MOMENTUM, **ADAMW}, decay_vectors=True)
    run(both.model_copy(update={"name": "both"}), tmp_path)
    study = of(MOMENTUM, warm_start={"from": [str(tmp_path / "both")]})
    study = study.model_copy(update={"name": "new"})
    run(study, tmp_path)
    assert create_store(study, tmp_path).study.decay_vectors is False


@pytest.mark.parametrize(
    "changes",
    [
        {
            "command": ["python", "train.py", "{base_lr}"],
            "log": {"path": "{run_dir}/log", "loss": "loss"},
        },
        {"imported": "sqlite:///mine.db", "trials": 2, "sampler": "random"},
    ],
)
def test_what_trained_elsewhere_decays_as_it_did_there(tmp_path, changes):
    """The key acts on nothing there: no file says it, and no document of before makes it so."""
    document = {**of({"adamw": {"base_lr": [1e-3, 1e-2]}}).document, **changes}
    del document["workload"]
    study = parse_study(document, "small", place="small", source=tomli_w.dumps(document))
    create_store(study, tmp_path)
    assert "decay_vectors" not in (tmp_path / "small/study.toml").read_text()
    forget(tmp_path / "small")
    store = create_store(study, tmp_path)
    assert store.study.decay_vectors is False
    assert not store.grown
    with pytest.raises(UserError, match="decay_vectors: is for optimizers that are made here"):
        parse_study({**document, "decay_vectors": True}, "small", place="small")


def test_an_old_folder_opens_as_it_began_and_writes_nothing(old):
    text = (old / "study.toml").read_text()
    assert open_store(old).study.decay_vectors is True
    assert (old / "study.toml").read_text() == text


def test_what_the_file_says_is_not_overruled_but_refused(old):
    with pytest.raises(UserError, match="decay_vectors: was True, is False"):
        create_store(of(decay_vectors=False), old.parent)


@pytest.mark.parametrize(("stated", "expected"), [(True, False), (False, True)])
def test_a_folder_from_git_says_it_by_its_study_file(tmp_path, stated, expected):
    run(of(), tmp_path)
    folder = tmp_path / "small"
    if not stated:
        forget(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("study.toml", "trials.csv"):
        shutil.copy(folder / name, copy)
    store = open_store(copy)
    assert store.study.decay_vectors is expected
    assert len(read_trials(store)) == 2
    with (copy / "trials.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_rules_without_weight_decay_have_nothing_to_say(tmp_path):
    run(of(MOMENTUM), tmp_path)
    assert "decay_vectors" not in (tmp_path / "small/study.toml").read_text()
    forget(tmp_path / "small")
    store = create_store(of({**MOMENTUM, **ADAMW}), tmp_path)  # it has grown by a rule with decay
    assert store.study.decay_vectors is False
    assert store.grown


def test_trials_that_decayed_otherwise_do_not_count(old, tmp_path):
    new = of(warm_start={"from": [str(old)]}).model_copy(update={"name": "new"})
    with pytest.raises(UserError, match="decay_vectors: was True, is False"):
        gather(new)
    alike = of(decay_vectors=True, warm_start={"from": [str(old)]})
    assert [len(source.trials) for source in gather(alike)] == [1]
    other = of(MOMENTUM, warm_start={"from": [str(old)]})
    assert [len(source.trials) for source in gather(other)] == [0]


def test_what_reruns_a_point_decays_as_its_study_does(old):
    study = open_store(old).study
    point = read_trials(open_store(old))[0].point
    assert pin(study, point, "again", trials=1, sampler="halton").decay_vectors is True
    assert pin(of(), point, "again", trials=1, sampler="halton").decay_vectors is False


def test_a_baseline_of_one_configuration_decays_as_its_results_do(old):
    study = of({"adamw": {**ADAMW["adamw"], "base_lr": [1e-3]}})
    text = (old / "study.toml").read_text()
    for given in (study, old / "study.toml"):
        assert baseline_of_study(given, old.parent).study.decay_vectors is True
    assert baseline_of_study(study, old.parent / "elsewhere").study.decay_vectors is False
    longer = study.with_(max_train_steps=30)  # another study, which has the same name
    assert baseline_of_study(longer, old.parent).study.decay_vectors is False
    assert (old / "study.toml").read_text() == text


def test_the_line_stands_after_the_comments_at_the_top(tmp_path):
    text = "#:schema study.schema.json\n# of mine\n" + of().source
    document = tomllib.loads(text)
    create_store(parse_study(document, "small", place="small", source=text), tmp_path)
    lines = (tmp_path / "small/study.toml").read_text().splitlines()
    assert lines[:3] == [*text.splitlines()[:2], "decay_vectors = false  # of all trials here"]
