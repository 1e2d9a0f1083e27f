"""Optimizers of torch in study files: how they are named, and what is refused."""

import importlib
import re
import subprocess
import sys

import cloudpickle
import pytest
from examples import WORKLOAD, parse

from tunewright.search.errors import UserError
from tunewright.search.procedure.arms import other_optimizers
from tunewright.search.procedure.steps import as_file, sweep_of
from tunewright.search.show.advice import advise
from tunewright.search.study.pinned import pin
from tunewright.search.study.sampling import next_points, plan
from tunewright.search.study.study import Range, schema
from tunewright.search.trainers.tryout import check_studies

ADAMW, OWN = "torch.optim.AdamW", "own_optimizers:Signs"
LR = {"low": 1e-4, "high": 0.1, "log": True}


def study(tables, **changes):
    """A study whose optimizers have these tables."""
    plain = {"batch_sizes": [32], "space__warmup_steps": 0}
    return parse(**plain, space__optimizer=tables, **changes)


def mistakes(table, name=ADAMW):
    with pytest.raises(UserError) as error:
        study({name: {"base_lr": 0.1, **table}})
    return str(error.value).splitlines()


def test_settings_are_axes_named_as_arguments_and_members_of_pairs():
    own = {"base_lr": LR, "beta1": {"low": 0.8, "high": 0.95}, "amsgrad": [True, False], "eps": 1}
    some = study({ADAMW: own, "sgd": {"base_lr": LR}, OWN: {"base_lr": LR, "kind": "sign"}})
    assert some.optimizers == ["sgd", ADAMW, OWN]
    axes = some.axes(ADAMW)
    assert axes["beta1"] == Range(low=0.8, high=0.95)
    assert axes["amsgrad"] == (True, False)
    assert axes["eps"] == (1,)
    assert axes["warmup_steps"] == (0,)
    points = {point.optimizer: point for point in plan(some)}
    assert points[ADAMW].settings.keys() == {"beta1", "amsgrad", "eps"}
    assert points[ADAMW].settings["amsgrad"] in (True, False)
    assert type(points[ADAMW].settings["eps"]) is float
    assert points[OWN].settings == {"kind": "sign"}
    assert some.key_of(ADAMW, "eps") == 'space.optimizer."torch.optim.AdamW".eps'
    assert some.key_of(ADAMW, "warmup_steps") == "space.warmup_steps"


def test_a_study_with_one_survives_a_dump_a_pickle_and_a_pin():
    some = study({ADAMW: {"base_lr": LR, "amsgrad": True, "clip_norm": 1.0}})
    assert cloudpickle.loads(cloudpickle.dumps(some)).axes(ADAMW) == some.axes(ADAMW)
    point = plan(some)[0]
    pinned = pin(some, point, "again", trials=1)
    assert [one.record() for one in next_points(pinned, [])] == [point.record()]
    swept = sweep_of(some)
    assert swept.axes(ADAMW)["clip_norm"] != some.axes(ADAMW)["clip_norm"]
    assert swept.axes(ADAMW)["amsgrad"] == (True,)


@pytest.mark.parametrize("sampler", ["grid", "tpe", "halton"])
def test_every_sampler_takes_settings_that_are_no_numbers(sampler):
    own = {"base_lr": {**LR, "points": 3}, "amsgrad": [True, False]}
    trials = {"trials": ...} if sampler == "grid" else {}
    points = next_points(study({ADAMW: own}, sampler=sampler, **trials), [])
    assert {point.settings["amsgrad"] for point in points} == {True, False}


@pytest.mark.parametrize(
    ("name", "table", "line"),
    [
        (ADAMW, {"lr": 0.1}, ".lr: is no setting: the learning rate is base_lr"),
        (ADAMW, {"betas": [0.9, 0.9]}, ".betas: "),
        (ADAMW, {"momentum": 0.9}, ".momentum: is no argument of it; known are beta1, beta2, eps,"),
        (ADAMW, {"amsgrad": 1}, ".amsgrad: must be true or false, got 1"),
        (ADAMW, {"amsgrad": {"low": 0, "high": 1}}, ".amsgrad: must be true or false, got 0.0"),
        (ADAMW, {"eps": "small"}, ".eps: must be a number, got 'small'"),
        (ADAMW, {"eps": 1e-40}, ".eps: must lie between 1e-30 and 1e+30, got 1e-40"),
        (ADAMW, {"beta1": {"orders_of_magnitude": True}}, ".beta1: must be a number, got"),
        (ADAMW, {"beta1": {"low": 1, "high": 0}}, ".beta1: low < high < inf must hold"),
        (ADAMW, {"base_lr": -1}, ".base_lr: must be a number > 0, got -1"),
        ("torch.optim.LBFGS", {}, ": needs a closure, which computes the loss several times"),
        ("torch.optim.SparseAdam", {}, ": is for sparse gradients alone"),
        ("own_optimizers:Needy", {}, ".scale: is required"),
        ("nowhere:Own", {"lr": 0.1}, ".lr: is no setting: the learning rate is base_lr"),
        ("nowhere:Own", {"momentum": "heavy"}, ".momentum: must be a number, got 'heavy'"),
        ("nowhere..Own", {}, ": must be an import path, package.module.Class or package.module:C"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(name, table, line):
    (found,) = mistakes(table, name)
    assert f's.toml: space.optimizer."{name}"{line}' in found


def test_what_the_source_does_not_show_is_taken_as_it_is():
    some = study({"nowhere:Own": {"base_lr": 0.1, "power": 2, "kind": ["a", "b"]}})
    assert {point.settings["kind"] for point in plan(some)} == {"a", "b"}
    assert plan(some)[0].settings["power"] == 2


def test_a_path_without_quotes_is_told_how_to_stand():
    with pytest.raises(UserError, match=r'one of torch stands in quotes, as "torch\.optim\.AdamW"'):
        study({"torch": {"optim": {"AdamW": {"base_lr": 0.1}}}})


def test_the_schema_knows_import_paths_and_refuses_other_names():
    tables = schema()["$defs"]["Optimizers"]
    (pattern,) = tables["patternProperties"]
    assert re.search(pattern, ADAMW)
    assert re.search(pattern, OWN)
    assert not re.search(pattern, "adm")
    assert tables["additionalProperties"] is False
    own = schema()["$defs"]["AxesOfTorch"]
    assert tables["patternProperties"][pattern] == {"$ref": "#/$defs/AxesOfTorch"}
    assert own["additionalProperties"] == own["properties"]["base_lr"]["anyOf"][0]


def test_advice_knows_what_hyperparameters_do_and_says_nothing_of_others():
    own = {
        "base_lr": LR,
        "beta1": {"low": 0.8, "high": 0.9},
        "momentum_decay": {"low": 0, "high": 1},
    }
    places = {one.place: one.rule for one in advise(study({"torch.optim.NAdam": own}), [])}
    key = 'space.optimizer."torch.optim.NAdam"'
    assert places[f"{key}.beta1"] == "S11"
    assert f"{key}.momentum_decay" not in places


def test_a_base_lr_that_is_shared_with_another_family_is_told():
    shared = {"space__base_lr": LR}
    rules = [one.rule for one in advise(study({ADAMW: {}, "adam": {}}, **shared), [])]
    assert "S1" not in rules
    rules = [one.rule for one in advise(study({OWN: {}, "adam": {}}, **shared), [])]
    assert "S1" in rules


def test_diagnose_tries_a_rule_beside_one_and_one_beside_a_rule():
    class Case:
        study = study({"torch.optim.SGD": {"base_lr": LR, "momentum": 0.9, "nesterov": True}})
        point = plan(study)[0]

    arms = other_optimizers(Case)
    assert [(arm.name, arm.point.settings["beta1"]) for arm in arms] == [
        ("adam", 0.9),
        ("gi_adam", 0.9),
    ]

    class Reverse:
        study = study({"sgd": {"base_lr": LR}, ADAMW: {"base_lr": LR, "eps": 1, "decay": "linear"}})
        point = plan(study)[0]

    (arm,) = other_optimizers(Reverse)
    assert arm.name == ADAMW
    assert arm.point.settings == {"eps": 1.0}
    assert re.fullmatch(r"[\w.=+-]+", as_file(OWN))


def test_a_study_with_one_is_read_without_torch():
    program = (
        "import sys; from examples import WORKLOAD, parse; "
        f"parse(space__optimizer={{{ADAMW!r}: {{'base_lr': 0.1, 'eps': 0.1}}}}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd="tests")


def test_a_class_that_was_edited_is_imported_anew(tmp_path, monkeypatch):
    """In one process, as in a notebook: the next run takes the class as it is now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "line.py").write_text(WORKLOAD)
    source = (
        "import torch\nclass Own(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.1, {}=1):\n        super().__init__(params, lr=lr)\n"
    )
    for name in ("first", "second_one"):
        (tmp_path / "edited_optimizer.py").write_text(source.format(name))
        importlib.invalidate_caches()
        own = {"edited_optimizer.Own": {"base_lr": 0.1, name: 3}}
        check_studies([study(own, workload="line:make", objective="val_loss")])
