"""A study file is accepted whole or refused with every mistake named."""

import json
import math
from pathlib import Path

import pytest
from examples import parse
from stored import feasible

from tunewright.search.errors import UserError
from tunewright.search.rules.optimizers import RULES
from tunewright.search.rules.schedule import SHAPES
from tunewright.search.store.table import write_table
from tunewright.search.study.study import (
    RESULT_COLUMNS,
    Range,
    Study,
    load_study,
    schema,
)

STUDIES = Path(__file__).parents[2] / "studies"


def mistakes(**changes):
    with pytest.raises(UserError) as refused:
        parse(**changes)
    return str(refused.value).splitlines()


def test_axes_are_conditional_on_the_optimizer_and_its_own_table_wins():
    study = parse()
    assert study.optimizers == ["momentum", "adam"]
    assert study.axes("momentum")["warmup_steps"] == (0, 10, 100)
    assert study.axes("adam")["warmup_steps"] == (0,)
    assert study.axes("adam")["clip_norm"] == (math.inf, 1.0)
    assert study.axes("adam")["base_lr"] == Range(low=1e-5, high=0.1, log=True)
    assert study.axes("momentum")["decay"] == ("constant",)


def test_clip_z_is_an_axis_as_clip_norm_is_and_off_by_default():
    assert parse().axes("adam")["clip_z"] == (math.inf,)
    assert parse(space__clip_z=2.5).axes("adam")["clip_z"] == (2.5,)
    assert parse(space__clip_z=[math.inf, 2.5]).axes("adam")["clip_z"] == (math.inf, 2.5)
    study = parse(space__optimizer__adam__clip_z={"low": 1.5, "high": 4.0})
    assert study.axes("adam")["clip_z"] == Range(low=1.5, high=4.0)
    assert study.axes("momentum")["clip_z"] == (math.inf,)


def test_groups_are_optimizers_times_scientific_values():
    study = parse(scientific=["clip_norm"], workload_args={"depth": [2, 4], "width": 8})
    labels = [group.label for group in study.groups(32)]
    assert len(labels) == 2 * 2 * 2
    assert labels[0] == "batch size 32, momentum, clip_norm=inf, depth=2"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective": 3}, "s.toml: objective: should be a valid string, got 3"),
        ({"objectve": "x"}, "s.toml: objectve: unknown key; did you mean 'objective'?"),
        ({"workload": ...}, "s.toml: workload: is required"),
        (
            {"sampler": "haltn"},
            "'halton', 'sobol', 'grid', 'random', 'tpe', 'gp' or 'halton+tpe', got 'haltn'",
        ),
        (
            {"figure__sparse_every": 1},
            "figure.sparse_every: should be greater than or equal to 2, got 1",
        ),
        ({"figure__log_step": True}, "figure.log_step: unknown key; did you mean 'log_steps'?"),
        ({"seeds": 0}, "seeds: should be greater than 0, got 0"),
        ({"seeds": [0, 1]}, "seeds: is never an axis (S8)"),
        ({"max_train_steps": [10, 100]}, "max_train_steps: is never an axis (S8)"),
        ({"space__seed": 1}, "space.seed: is never an axis (S8)"),
        ({"space__batch_size": [1]}, "every batch size is tuned on its own (R20)"),
        (
            {"space__clip_norm": [0, 1]},
            "space.clip_norm: must be a number > 0 (inf = never clip), got 0",
        ),
        ({"space__clip_norm": [1.0, 1.0]}, "values must differ"),
        (
            {"space__clip_z": 0},
            "space.clip_z: must be a number > 0 (inf = no threshold that follows the norms), got 0",
        ),
        ({"space__clip_z": [2.5, -1.0]}, "space.clip_z: must be a number > 0"),
        (
            {"space__clip_tensor": 0},
            "space.clip_tensor: must be a number > 0 (inf = no threshold for each tensor), got 0",
        ),
        (
            {"space__optimizer__adam__clip_z": {"low": 0.0, "high": 3.0}},
            "space.optimizer.adam.clip_z: must be a number",
        ),
        (
            {"space__clip_z": {"orders_of_magnitude": True}},
            "space.clip_z: orders_of_magnitude is for warmup_steps",
        ),
        ({"space__warmup_stps": 3}, "space.warmup_stps: unknown key; did you mean 'warmup_steps'?"),
        (
            {"space__decay": "step"},
            f"space.decay: must be one of {', '.join(SHAPES)}, got",
        ),
        (
            {"space__optimizer__signsgd": {}},
            "space.optimizer.signsgd: unknown key; did you mean 'sgd'? (known are "
            f"{', '.join(RULES)}; one of your own must be imported before study files are read, "
            'and one of torch stands in quotes, as "torch.optim.AdamW")',
        ),
        (
            {"space__optimizer__shampoo": {}},
            f"space.optimizer.shampoo: unknown key; known are {', '.join(RULES)}; one of your own "
            "must be imported before study files are read",
        ),
        (
            {"space__optimizer__adam__base_lr": {"low": 0, "high": 1, "log": True}},
            "space.optimizer.adam.base_lr: low > 0 must hold on a log axis, got low=0.0",
        ),
        (
            {"space__optimizer__adam__base_lr": {"low": 2, "high": 1}},
            "space.optimizer.adam.base_lr: low < high < inf must hold, got low=2.0, high=1.0",
        ),
        (
            {"space__optimizer__adam__base_lr": -1.0},
            "space.optimizer.adam.base_lr: must be a number > 0, got -1.0",
        ),
        ({"space__optimizer__adam__base_lr": ...}, "space.optimizer.adam.base_lr: is required"),
        ({"space__optimizer__adam__beta1": 1.0}, "beta1: must be a number in [0, 1), got 1.0"),
        ({"space__optimizer__adam__momentum": 0.9}, "space.optimizer.adam.momentum: unknown key"),
        (
            {"space__warmup_steps": [0, 200]},
            "space.warmup_steps: must be at most 100, 10 % of max_train_steps = 1000 (R10); "
            "got 200",
        ),
        ({"batch_sizes": [8, 8]}, "batch_sizes: must differ from one another"),
        ({"accumulation": 3}, "accumulation: must divide every batch size, got 3 for [32, 256]"),
        (
            {"workload_args": {"width": 8, "seed": 1}},
            (
                "workload_args.seed: is also a hyperparameter of this study; rename the "
                "factory's argument"
            ),
        ),
        ({"trials": 1}, "trials: must be at least the number of groups per batch size, 2, got 1"),
        ({"trials": ...}, "trials: is required"),
        ({"sampler": "grid"}, "trials: the grid sampler counts its own points"),
        (
            {"sampler": "grid", "trials": ...},
            "base_lr: the grid sampler needs the number of points of a range",
        ),
        (
            {"scientific": ["base_lr"]},
            "scientific: 'base_lr' must be a list of values for momentum",
        ),
        (
            {"space__restarts": 2},
            "space.restarts: applies only to decay = 'cosine_restarts', which this study does not "
            "use",
        ),
        (
            {"space__optimizer__adam__decay": "wsd", "space__optimizer__momentum__restarts": 2},
            "space.optimizer.momentum.restarts: applies only to decay = 'cosine_restarts', which "
            "momentum does not use",
        ),
        (
            {"space__decay": "wsd", "space__decay_fraction": [0.1, 0]},
            "space.decay_fraction: must be a number in (0, 1], got 0",
        ),
        (
            {"space__decay": "cosine_restarts", "space__restarts": 1.5},
            "space.restarts: must be an integer ≥ 0, got 1.5",
        ),
        (
            {"space__decay": "cosine_restarts", "space__restarts": 10**18},
            "space.restarts: must be from 0 to ",
        ),
        (
            {"space__decay": "wsd", "space__decay_fraction": [0.5, 1e-9]},
            "updates after warmup; got 1e-09",
        ),
        (
            {"space__decay": "wsd", "max_train_steps": 5},
            "decay_fraction: must be from 0.4 to 1 for the 5 updates after warmup; got 0.2",
        ),
        (
            {"space__decay": ["wsd", "linear"], "space__decay_fraction": [0.1, 0.2]},
            (
                "space.decay_fraction: varies, which decay = 'linear' does not "
                "have: give one value, or add 'decay' to scientific"
            ),
        ),
        (
            {
                "space__decay": ["wsd", "linear"],
                "space__decay_fraction": [0.1, 0.2],
                "scientific": ["decay", "decay_fraction"],
            },
            "scientific: 'decay_fraction' is a setting which decay = 'linear' does not have",
        ),
        ({"space__decay_fractoin": 0.1}, "unknown key; did you mean 'decay_fraction'?"),
        ({"name": "x"}, "name: unknown key; the file's name is the study's name"),
    ],
)
def test_a_mistake_is_named_with_place_rule_and_value(changes, expected):
    lines = mistakes(**changes)
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("s.toml: ") for line in lines)


def test_all_mistakes_are_reported_at_once():
    assert len(mistakes(objective=3, batch_sizes=[], seed="x", space__clip_norm=0)) == 4


def test_a_mistake_at_a_key_that_optimizers_share_is_reported_once_and_at_that_key():
    long, sgd = {"space__warmup_steps": [0, 200]}, {"space__optimizer__sgd__base_lr": 0.1}
    assert mistakes(**long, **sgd) == [
        "s.toml: space.warmup_steps: must be at most 100, 10 % of max_train_steps = 1000 (R10); "
        "got 200"
    ]
    (line,) = mistakes(space__optimizer__adam__warmup_steps=300, **sgd)
    assert line.startswith("s.toml: space.optimizer.adam.warmup_steps: must be at most 100")
    lines = mistakes(
        sampler="grid",
        trials=...,
        space__clip_norm={"low": 0.1, "high": 1.0},
        space__optimizer__adam__base_lr=0.1,
        space__optimizer__momentum__base_lr=0.1,
    )
    assert [line.split(": ")[1] for line in lines] == ["space.clip_norm"]
    lines = mistakes(space__decay=["wsd", "linear"], space__decay_fraction=[0.1, 0.2])
    assert [line.split(": ")[1] for line in lines] == ["space.decay_fraction"]


def test_missing_and_broken_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: cannot be read: No such file"):
        load_study(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("objective = \n")
    with pytest.raises(UserError, match=r"broken\.toml: is not valid TOML: .*line 1"):
        load_study(broken)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid_and_keep_their_text(path):
    study = load_study(path)
    assert study.name == path.stem
    assert study.source == path.read_text(encoding="utf-8")


def test_the_committed_schema_is_the_generated_one():
    committed = json.loads((STUDIES / "study.schema.json").read_text(encoding="utf-8"))
    assert committed == schema()
    assert "momentum" in json.dumps(committed)


WHERE_KNOWN = {"gain", "spike_score", "near_epsilon"}


def test_the_columns_that_no_argument_may_be_named_like_are_those_of_the_table(tmp_path):
    write_table(tmp_path / "trials.csv", [feasible(0, 0.1, 0.05)])
    header = (tmp_path / "trials.csv").read_text().splitlines()[0].split(",")
    assert (
        set(header) - set(feasible(0, 0.1, 0.05).point.values) == set(RESULT_COLUMNS) - WHERE_KNOWN
    )


def test_settings_of_a_decay_are_axes_where_it_is_tried_and_fixed_ones_suit_every_decay():
    study = parse(space__decay=["constant", "wsd"], space__decay_fraction=0.1)
    assert study.axes("adam")["decay_fraction"] == (0.1,)
    own = parse(
        space__optimizer__adam__decay="cosine_restarts",
        space__optimizer__adam__restarts={"low": 0, "high": 3},
    )
    assert own.axes("adam")["restarts"] == Range(low=0, high=3)
    assert "restarts" not in own.axes("momentum")
    assert "restarts" not in parse(space__decay="cosine_restarts").axes("adam")


def test_a_factory_may_have_an_argument_named_like_a_setting_of_a_decay_that_is_not_tried():
    assert parse(workload_args={"restarts": 3}).workload_args == {"restarts": 3}
    lines = mistakes(
        workload_args={"restarts": 3}, space__decay="cosine_restarts", space__restarts=1
    )
    assert "workload_args.restarts: is also a hyperparameter of this study" in lines[0]


# --- made in Python -------------------------------------------------------------------------------

MADE = {
    "name": "made",
    "workload": "a.b:c",
    "objective": "val_error",
    "max_train_steps": 100,
    "batch_sizes": [64],
    "trials": 4,
    "space": {
        "clip_norm": (math.inf, 1.0),
        "optimizer": {
            "sgd": {"base_lr": Range(low=1e-3, high=1.0, log=True)},
            "torch.optim.RAdam": {"base_lr": [0.1, 0.2], "eps": 1e-8},
        },
    },
}


def test_a_study_made_in_python_is_that_of_its_file(tmp_path):
    study = Study(**MADE)
    (tmp_path / "made.toml").write_text(study.source)
    assert load_study(tmp_path / "made.toml") == study
    assert "inf" in study.source


def test_its_mistakes_are_all_told_in_one_user_error():
    with pytest.raises(UserError) as error:
        Study(**{**MADE, "name": "a/b", "trials": 0, "objectives": "x"})
    assert str(error.value).splitlines() == [
        "a/b: name: must not have a /, got 'a/b': it names the results folder",
        "a/b: trials: should be greater than 0, got 0",
        "a/b: objectives: unknown key; did you mean 'objective'?",
    ]
    with pytest.raises(UserError, match=r"made: space\.optimizer: needs at least one of sgd"):
        Study(**{**MADE, "space": {"optimizer": {}}})
    with pytest.raises(UserError, match="Study: workload: is required"):
        Study()


def test_with_changes_a_copy_and_keeps_the_rest(tmp_path):
    path = tmp_path / "kept.toml"
    path.write_text(parse().source)
    study = load_study(path)
    changed = study.with_(batch_sizes=[8], trials=40, question="Why?")
    assert (changed.name, changed.batch_sizes, changed.trials) == ("kept", (8,), 40)
    assert changed.space == study.space
    assert study.batch_sizes == (32, 256)
    path.write_text(changed.source)
    assert load_study(path) == changed


def test_with_another_name_alone_keeps_comments(tmp_path):
    path = tmp_path / "kept.toml"
    path.write_text(f"# why\n{parse().source}")
    renamed = load_study(path).with_(name="other")
    assert renamed.name == "other"
    assert renamed.source.startswith("# why\n")


def test_with_none_a_key_goes_and_a_trainer_takes_the_place_of_another():
    study = parse(seeds=3)
    assert study.with_(seeds=None).seeds == 1
    assert study.with_(train="d.e:f").source_key == "train"
    assert study.with_(sampler="random").with_(sampler=None).sampler == "halton"


def test_with_a_mistake_is_refused():
    with pytest.raises(UserError, match="s: trials: is required"):
        parse().with_(trials=None)
    with pytest.raises(UserError, match="s: batchsize: unknown key"):
        parse().with_(batchsize=[3])
