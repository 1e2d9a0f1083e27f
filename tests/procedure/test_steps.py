"""Studies that a procedure asks for, and procedures that run side by side."""

import math
import re
import tomllib
from dataclasses import replace

import pytest
from examples import parse
from simulated import Simulated, diagnosed, follow, steps_asked, study_of

from tunewright.search.procedure.asking import both, together, train_all
from tunewright.search.procedure.steps import Case, label, plain, sweep_of
from tunewright.search.study.sampling import plan
from tunewright.search.study.study import parse_study
from tunewright.search.trial import Group, Point

POINT = Point(4, 32, "momentum", 0.1, settings={"momentum": 0.9})
MODEL = Simulated()


def case(**changes):
    return Case(study_of(**changes), Group(32, "momentum"), 5, POINT)


# --- studies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        {},
        {"stop_after": 60, "every_step": True},
        {"max_train_steps": 440, "first_seed": 1000},
        {"clip_norm": [0.5, math.inf], "warmup_steps": [10, 40]},
        {
            "point": replace(
                POINT, optimizer="adam", settings={"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}
            )
        },
        {
            "point": replace(
                POINT, clip_z=2.5, decay="cosine", workload_args={"depth": 3, "norm": "pre"}
            )
        },
        {"point": replace(POINT, clip_tensor=1.05)},
    ],
)
def test_what_is_asked_for_is_a_valid_study_file(ask):
    study = case().ask("step", [0.1, 0.2, 0.1], 3, **ask)
    again = parse_study(tomllib.loads(study.source), study.name, place="again", source=study.source)
    assert again == study
    assert plan(again) == plan(study)
    assert {point.base_lr for point in plan(study)} == {0.1, 0.2}


def test_every_study_of_a_diagnosis_can_be_read_again_from_its_own_file():
    _, asked = diagnosed(
        Simulated(0.25, best_base_lr=1.0, raised=lambda point: 20.0 if point.warmup_steps else 1.0)
    )
    for study in asked[1:]:
        assert (
            parse_study(tomllib.loads(study.source), study.name, place="again", source=study.source)
            == study
        )


@pytest.mark.parametrize(
    ("decay", "own"), [("cosine", {}), ("wsd", {}), ("cosine_restarts", {"restarts": 3})]
)
def test_a_point_of_a_step_differs_from_that_of_the_case_only_in_what_was_asked_for(decay, own):
    point = replace(POINT, settings={"momentum": 0.8}, workload_args={"depth": 3}, decay=decay)
    point = replace(point, decay_settings=own)
    study = replace(case(), point=point).ask("step", [0.3], 2, clip_norm=[1.0])
    assert plan(study) == [
        replace(point, number=i, base_lr=0.3, clip_norm=1.0, seed=study_of().seeds + i)
        for i in range(2)
    ]


def test_no_seed_of_the_sweep_is_trained_again():
    origin = study_of(seed=3, seeds=2)
    own = Case(origin, Group(32, "momentum"), 5, POINT)
    seeds = [point.seed for point in plan(own.ask("step", [0.1], 4))]
    assert seeds == [5, 6, 7, 8]
    assert not set(seeds) & {point.seed for point in plan(origin)}


def test_a_step_is_evaluated_as_often_as_the_study_or_at_every_update():
    origin = study_of()
    assert case().ask("step", [0.1], 1).evaluate_every(32) == origin.evaluate_every(32) == 20
    assert case().ask("step", [0.1], 1, max_train_steps=410).evaluate_every(32) == 20
    assert case().ask("step", [0.1], 1, every_step=True).evaluate_every(32) == 1


def test_warmup_is_prepended():
    study = case().ask("step", [0.1], 1, warmup_steps=[40])
    assert study.updates(plan(study)[0]) == study_of().max_train_steps + 40


def test_a_label_is_a_part_of_a_file_name():
    group = Group(32, "adam", (("norm", "x + f(x)/2"), ("depth", 3)))
    assert re.fullmatch(r"[\w.=+-]+", label(group))
    assert label(Group(32, "momentum")) == "momentum-32"


def test_a_step_may_have_any_name_and_still_is_a_file():
    assert case().ask("tune-pre/post norm", [0.1], 1).name == "momentum-32-tune-pre_post_norm"


def test_plain_is_without_warmup_and_clipping_and_else_the_same():
    clips = {"clip_norm": 1.0, "clip_z": 2.5, "clip_tensor": 1.05}
    assert plain(replace(POINT, warmup_steps=10, **clips)) == POINT


# --- the sweep ------------------------------------------------------------------------------------


def test_a_study_without_warmup_and_clipping_is_its_own_sweep():
    study = study_of()
    assert sweep_of(study) is study
    same = study_of(
        space={"warmup_steps": 0, "clip_norm": math.inf, "optimizer": {"sgd": {"base_lr": 0.1}}}
    )
    assert sweep_of(same) is same


@pytest.mark.parametrize(
    "axis",
    [
        {"warmup_steps": [0, 10]},
        {"clip_norm": 1.0},
        {"clip_z": [2.5, math.inf]},
        {"clip_tensor": [1.05, math.inf]},
        {"warmup_steps": 10},
    ],
)
def test_a_sweep_has_neither_warmup_nor_clipping_and_all_else_of_the_study(axis):
    optimizers = {
        "momentum": {"base_lr": [0.1, 1.0], "momentum": 0.8},
        "adam": {"base_lr": [0.01], **axis},
    }
    for space in (
        {"optimizer": optimizers},
        {"optimizer": {"momentum": optimizers["momentum"]}, **axis},
    ):
        study = study_of(space=space, seeds=2)
        sweep = sweep_of(study)
        assert sweep.name != study.name
        assert trained_points(plan(study)) == trained_points(plan(sweep))
        assert len(plan(sweep)) == len(trained_points(plan(sweep)))
        assert sweep_of(sweep) is sweep
        again = parse_study(
            tomllib.loads(sweep.source), sweep.name, place="again", source=sweep.source
        )
        assert again == sweep


def trained_points(points):
    return {(plain(point).configuration, point.seed) for point in points}


def test_groups_by_warmup_or_clipping_are_one_in_the_sweep():
    study = parse(scientific=["clip_norm", "warmup_steps"])
    sweep = sweep_of(study)
    assert sweep.scientific == ()
    assert [len(study.groups(32)), len(sweep.groups(32))] == [2 * 3 + 2, 2]


@pytest.mark.parametrize(
    ("sampler", "explores"), [("tpe", "halton"), ("gp", "halton"), ("sobol", "sobol")]
)
def test_a_sweep_explores(sampler, explores):
    assert sweep_of(parse(sampler=sampler)).sampler == explores


def test_a_sweep_never_has_the_name_of_its_study():
    space = {"clip_norm": 1.0, "optimizer": {"sgd": {"base_lr": 0.1}}}
    document = study_of(space=space).model_dump(exclude={"name", "source"}, exclude_defaults=True)
    study = parse_study(document, "sweep", place="sweep")
    assert sweep_of(study).name != "sweep"


# --- procedures -----------------------------------------------------------------------------------


def asks(*names, result):
    """A procedure that asks for one study after the other, and returns how many trials each had."""
    counts = []
    for name in names:
        (trials,) = yield from train_all(case().ask(name, [0.1], len(name)))
        counts.append(len(trials))
    return result, counts


def test_together_asks_for_everything_at_once_and_keeps_results_in_order():
    procedure = together(asks("a", "bb", "ccc", result=1), asks(result=2), asks("dddd", result=3))
    rounds = []
    asked = next(procedure)
    for _ in range(2):
        rounds.append(steps_asked(asked))
        asked = procedure.send({study.name: MODEL.trials_of(study) for study in asked})
    assert [*rounds, steps_asked(asked)] == [["a", "dddd"], ["bb"], ["ccc"]]
    with pytest.raises(StopIteration) as done:
        procedure.send({study.name: MODEL.trials_of(study) for study in asked})
    assert done.value.value == [(1, [1, 2, 3]), (2, []), (3, [4])]


def test_what_two_procedures_ask_for_at_once_is_trained_once():
    (found, others), asked = follow(
        both(asks("a", "bb", result="x"), asks("a", result="y")), MODEL.trials_of
    )
    assert (found, others) == (("x", [1, 2]), ("y", [1]))
    assert [study.name for study in asked] == ["momentum-32-a", "momentum-32-bb"]
