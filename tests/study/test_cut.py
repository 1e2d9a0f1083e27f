"""Who goes on at a cut, by what all trials of a group had reached: by hand, from results alone."""

import math
from dataclasses import replace

import pytest
from stored import small_study

from tunewright.search.errors import UserError
from tunewright.search.study.cut import FEWEST, decide, most_saved, stop
from tunewright.search.study.sampling import next_points
from tunewright.search.trial import Curve, Told, Trial, Verdict, as_told

CUT = {"at": 0.25, "keep": 0.5}


def cut_study(**changes):
    return small_study(**{"cut": CUT, "max_train_steps": 100, "evaluations": 50} | changes)


def at_cut(point, value, outcome="feasible"):
    """A trial as it stood at its cut."""
    verdict = Verdict(outcome, "none", math.inf, "seen")
    curve = Curve([1.0] * 26, [1.0] * 26, [0, 26], {"val_error": [0.9, value]}, total_steps=100)
    return Trial(point, verdict, curve, value, 26, 0.9, 1.0, 0.0, 1.0)


def key(point):
    return point.batch_size, point.number


def decided(study, values, told=(), given_up=(), infeasible=()):
    """The decision on a study whose points reached these values, in their order."""
    points = next_points(study, [])
    firsts = [point for point in points if point.seed == study.seed]
    reached = {
        key(point): at_cut(point, value, "diverged" if i in infeasible else "feasible")
        for i, (point, value) in enumerate(zip(firsts, values, strict=True))
        if value is not None
    }
    crashed = {key(firsts[i]) for i in given_up}
    finished = {key(firsts[i]) for i in told}
    return decide(study, points, finished, lambda p: reached.get(key(p)), crashed)


def numbers(points):
    return [point.number for point in points]


def test_nobody_is_decided_before_all_of_the_group_have_come_to_the_cut():
    found = decided(cut_study(trials=8), [0.1, None, 0.3, None, 0.5, 0.6, 0.7, 0.8])
    assert (numbers(found.to_cut), found.stopped, found.to_end) == ([1, 3], [], [])


def test_the_better_half_goes_on():
    found = decided(cut_study(trials=8), [0.8, 0.1, 0.7, 0.2, 0.6, 0.3, 0.5, 0.4])
    assert numbers(found.to_end) == [1, 3, 5, 7]
    assert [(point.number, bar.kept, bar.of) for point, bar in found.stopped] == [
        (0, 4, 8),
        (2, 4, 8),
        (4, 4, 8),
        (6, 4, 8),
    ]


def test_of_a_maximized_objective_the_higher_half_goes_on():
    study = cut_study(trials=8, maximize=True)
    points = next_points(study, [])
    reached = {key(p): replace(at_cut(p, p.number / 10), maximize=True) for p in points}
    found = decide(study, points, (), lambda p: reached[key(p)])
    assert numbers(found.to_end) == [4, 5, 6, 7]


@pytest.mark.parametrize("trials", range(1, 12))
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_never_fewer_than_three_go_on(trials, keep):
    study = cut_study(trials=trials, cut={"at": 0.25, "keep": keep})
    found = decided(study, [i / 10 for i in range(trials)])
    assert len(found.to_end) == min(trials, max(FEWEST, math.ceil(keep * trials)))
    assert len(found.to_end) + len(found.stopped) == trials


def test_what_is_infeasible_at_the_cut_takes_nobodys_place_and_is_told_as_infeasible():
    values = [0.9, 0.1, 0.9, 0.2, 0.9, 0.3, 0.9, 0.4]
    found = decided(cut_study(trials=8), values, infeasible={0, 2, 4, 6})
    assert numbers(found.to_end) == [1, 3, 5]
    study = cut_study(trials=8)
    told = {
        point.number: stop(
            study, at_cut(point, 0.9, "diverged" if point.number < 7 else "feasible"), bar
        )
        for point, bar in found.stopped
    }
    assert {number: trial.verdict.outcome for number, trial in told.items()} == {
        **dict.fromkeys((0, 2, 4, 6), "diverged"),
        7: "unfinished",
    }
    assert told[7].is_cut
    assert not told[0].is_cut
    assert told[7].verdict.evidence == (
        "cut at step 26 of 100: val_error 0.9, where the best 3 of 4 had reached 0.3"
    )


def test_an_infeasible_one_that_was_as_good_goes_on():
    """It may be in the middle of a spike."""
    found = decided(cut_study(trials=4), [0.1, 0.2, 0.3, 0.15], infeasible={3})
    assert numbers(found.to_end) == [0, 1, 2, 3]


def test_equal_trials_go_on_together():
    found = decided(cut_study(trials=8), [0.1, 0.1, 0.2, 0.2, 0.2, 0.9, 0.9, 0.9])
    assert numbers(found.to_end) == [0, 1, 2, 3, 4]


def test_each_group_is_decided_by_its_own_values():
    study = cut_study(
        trials=12,
        space={
            "optimizer": {name: {"base_lr": {"low": 1e-3, "high": 1.0}} for name in ("sgd", "adam")}
        },
    )
    values = [i / 100 if i % 2 else 1 + i / 100 for i in range(12)]  # one optimizer is far better
    found = decided(study, values)
    assert numbers(found.to_end) == [0, 2, 4, 1, 3, 5]


def test_the_same_is_decided_whoever_was_told_before():
    """As after a kill in the middle of telling, or of training on."""
    values = [0.8, 0.1, 0.7, 0.2, 0.6, 0.3, 0.5, 0.4]
    for told in ([0, 2], [0, 2, 4, 6], [0, 2, 4, 6, 1, 5]):
        found = decided(cut_study(trials=8), values, told=told)
        assert numbers(found.to_end) == [one for one in (1, 3, 5, 7) if one not in told]
        assert [point.number for point, _ in found.stopped] == [
            one for one in (0, 2, 4, 6) if one not in told
        ]


def test_nobody_waits_for_a_crashed_trial():
    found = decided(cut_study(trials=5), [0.1, 0.2, None, 0.3, 0.4], given_up={2})
    assert numbers(found.to_end) == [0, 1, 3]
    assert not found.to_cut


def test_the_first_seed_decides_for_its_configuration():
    study = cut_study(trials=8, seeds=3)
    points = next_points(study, [])
    values = [0.8, 0.1, 0.7, 0.2, 0.6, 0.3, 0.5, 0.4]
    found = decided(study, [None] * 8)
    assert numbers(found.to_cut) == [3 * i for i in range(8)]
    found = decided(study, values)
    assert numbers(found.to_end) == [3 * i + seed for i in (1, 3, 5, 7) for seed in range(3)]
    assert [point.number for point, _ in found.stopped] == [0, 6, 12, 18]
    told = [as_told(stop(study, at_cut(point, 0.8), bar)) for point, bar in found.stopped]
    assert {one.cut for one in told} == {True}
    assert numbers(next_points(study, told)) == [
        p.number for p in points if p.number // 3 not in (0, 2, 4, 6) or p.number % 3 == 0
    ]


@pytest.mark.parametrize("sampler", ["tpe", "halton+tpe"])
def test_each_round_of_a_learner_is_cut_on_its_own(sampler):
    study = cut_study(trials=32, sampler=sampler)
    told = {}

    def reached(point):
        return at_cut(point, abs(math.log10(point.base_lr)) + 0.01)

    asked = []
    while fresh := [p for p in next_points(study, list(told.values())) if key(p) not in told]:
        asked.append(len(fresh))
        points = next_points(study, list(told.values()))
        assert (
            decide(
                study, points, told, lambda p, known=told: reached(p) if key(p) in known else None
            ).to_cut
            == fresh
        )
        found = decide(study, points, told, reached)
        told |= {key(p): as_told(stop(study, reached(p), bar)) for p, bar in found.stopped}
        told |= {key(p): as_told(reached(p)) for p in found.to_end}
        assert len(found.to_end) == len(found.stopped) == asked[-1] // 2
    assert asked == ([8] * 4 if sampler == "tpe" else [16, 8, 8])


def test_a_sampler_is_told_the_value_that_a_cut_trial_had():
    study = cut_study()
    (point, *_) = next_points(study, [])
    verdict = Verdict("unfinished", "none", math.inf, "cut at step 26 of 100: ...")
    trial = replace(at_cut(point, 0.4), verdict=verdict)
    assert as_told(trial) == Told(point, 0.4, -1.0, cut=True)


# --- where it is cut ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "evaluations", "warmup", "prepend", "step"),
    [
        (0.25, 50, 0, False, 26),  # every 2 updates: the first evaluation from 25 on
        (0.25, 4, 0, False, 25),
        (0.26, 4, 0, False, 50),
        (0.02, 50, 10, False, 10),  # never before warmup has ended
        (0.02, 50, [0, 10], False, 10),  # for all of the group alike
        (0.25, 50, 10, True, 36),
    ],
)
def test_the_cut_is_at_the_first_evaluation_after_its_share_and_warmup(
    at, evaluations, warmup, prepend, step
):
    study = cut_study(
        cut={"at": at, "keep": 0.5},
        evaluations=evaluations,
        prepend_warmup=prepend,
        space={"warmup_steps": warmup, "optimizer": {"sgd": {"base_lr": [0.1, 0.2, 0.3]}}},
    )
    assert {study.cut_step(point) for point in next_points(study, [])} == {step}


def test_the_share_is_of_what_stop_after_allows():
    study = cut_study(stop_after=40)
    assert study.cut_step(next_points(study, [])[0]) == 10


def test_what_is_saved_at_most():
    assert most_saved(cut_study(trials=8)) == 4 * 74
    assert most_saved(cut_study(trials=8, seeds=3)) == 4 * (74 + 200)
    assert most_saved(cut_study(trials=3)) == 0
    assert most_saved(cut_study(trials=12, sampler="tpe")) == (4 + 1) * 74


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cut": {"at": 0.0, "keep": 0.5}}, "cut.at: should be greater than 0, got 0.0"),
        ({"cut": {"at": 1, "keep": 0.5}}, "cut.at: should be less than 1, got 1"),
        ({"cut": {"at": 0.5, "keep": 1.5}}, "cut.keep: should be less than 1, got 1.5"),
        ({"cut": {"at": 0.5, "keep": -1}}, "cut.keep: should be greater than 0, got -1"),
        ({"cut": {"at": 0.5}}, "cut.keep: is required"),
        ({"cut": {"at": "0.5", "keep": 0.5}}, "cut.at: must be a number, got '0.5'"),
        ({"cut": {"at": 0.5, "keep": 0.5, "from": 3}}, "cut.from: unknown key; known are at, keep"),
        ({"evaluations": 1}, "cut.at: there is no evaluation between 0.25 of a training"),
        ({"cut": {"at": 0.99, "keep": 0.5}, "evaluations": 50}, "cut.at: there is no evaluation"),
        (
            {"space": {"decay": "cosine", "optimizer": {"sgd": {"base_lr": [0.1, 1.0]}}}},
            "cut: cannot stand beside decay = 'cosine': a high learning rate shows its worth",
        ),
        (
            {"space": {"optimizer": {"sgd": {"decay": ["constant", "wsd"], "base_lr": 0.1}}}},
            "cut: cannot stand beside decay = 'wsd'",
        ),
        (
            {"workload": None, "train": "module:main"},
            "cut: is for a `workload`: trials of `train` cannot be stopped and go on",
        ),
        (
            {"workload": None, "command": ["train.sh", "{base_lr}", "{run_dir}"]},
            "cut: is for a `workload`: trials of `command` cannot be stopped and go on",
        ),
        (
            {"workload": None, "imported": "sqlite:///mine.db"},
            "cut: is for a `workload`: trials of `imported` cannot be stopped and go on",
        ),
    ],
)
def test_what_cannot_be_cut_is_one_sentence(changes, said):
    document = {
        key: value
        for key, value in {**cut_study().document, "trials": 4, **changes}.items()
        if value is not None
    }
    with pytest.raises(UserError) as caught:
        type(cut_study())(name="small", **document)
    (line,) = [one for one in str(caught.value).splitlines() if "cut" in one]
    assert line.startswith(f"small: {said}")
