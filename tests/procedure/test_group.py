"""The playbook's procedure on simulated trainings whose illness is known."""

import math
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from simulated import CHANCE, STEPS, Simulated, diagnosed, follow, sentences, steps_asked, study_of

from tunewright.search.diagnose import updates_of
from tunewright.search.procedure.group import EDGE_DECADES, diagnosis_of
from tunewright.search.procedure.steps import sweep_of
from tunewright.search.trial import Trial, Verdict, as_told
from tunewright.search.words import readable

HEALTHY = Simulated(5.0)
FLAT = Simulated(20.0, curved=0.005, noise=0.02)  # base LRs around the best one are as good
EARLY = Simulated(0.25, best_base_lr=1.0)  # its best base LR is beyond the edge
MID = replace(EARLY, blow_up="mid_training")
COLLAPSE = replace(EARLY, blow_up="collapse")
of = cache(diagnosed)


# --- a group that needs nothing -------------------------------------------------------------------


def test_a_healthy_group_asks_for_no_remedy_and_says_none():
    found, asked = of(HEALTHY)
    assert found.kind == "none"
    kinds = {name.split("-")[0] for name in steps_asked(asked)}
    assert kinds <= {"simulated", "close", "edge", "probe", "confirm", "rerun"}
    assert [one.name for one in found.remedies] == ["plain"]
    assert found.summary.startswith("Stable: ")
    assert found.summary.endswith("no remedy is needed.")


def points(study):
    return [trial.point for trial in HEALTHY.trials_of(study)]


def test_a_stable_groups_recipe_is_at_lr_star_and_so_are_its_fresh_seeds():
    found, asked = of(FLAT)
    assert "close" in steps_asked(asked)
    assert found.winner.point.base_lr == found.lr_star
    (rerun,) = (study for study in asked if study.name == found.winner.rerun_in)
    trials = FLAT.trials_of(rerun)
    assert {trial.point.base_lr for trial in trials} == {found.lr_star}
    assert found.winner.values == tuple(as_told(trial).value for trial in trials)
    others = [study for study in asked if study is not rerun]
    used = {point.seed for study in others for point in points(study)}
    assert not used & {trial.point.seed for trial in trials}


# --- lr_star --------------------------------------------------------------------------------------


def test_of_base_lrs_that_are_as_good_lr_star_is_the_one_farthest_from_the_edge():
    """Five are, from 0.01 to 1: the best single run is at one of the lowest two in two studies of
    five.
    """
    plateau = Simulated(
        20.0, better=lambda point, updates: 0.2 * min(abs(math.log10(point.base_lr) + 1), 1) ** 2
    )
    stars = [diagnosed(plateau, study_of(seed=10 * i))[0].lr_star for i in range(20)]
    assert all(0.009 < star < 1.1 for star in stars)
    assert sum(star < 0.04 for star in stars) >= 15
    assert of(HEALTHY)[0].lr_star == pytest.approx(0.1)


def test_every_base_lr_that_came_close_is_trained_on_the_same_seeds():
    found, asked = of(FLAT)
    (close,) = (study for study in asked if study.name.endswith("-close"))
    seeds = {}
    for point in points(close):
        seeds.setdefault(point.base_lr, []).append(point.seed)
    assert len(seeds) > 1
    assert found.lr_star in seeds
    assert len({tuple(own) for own in seeds.values()}) == 1


# --- boundaries -----------------------------------------------------------------------------------


def test_where_nothing_diverges_the_range_is_extended_above_until_something_does():
    found, asked = of(Simulated(50.0, best_base_lr=8.0))
    assert [name for name in steps_asked(asked) if "above" in name] == ["above-1"]
    assert max(point.base_lr for point in points(asked[1])) == pytest.approx(100.0)
    assert found.edge.interval[0] <= 60
    assert found.edge.interval[1] >= 40
    assert "extended to 100 (S4)" in sentences(found, "boundary")


def test_the_range_is_extended_by_three_decades_at_most():
    found, asked = of(Simulated())
    assert [name for name in steps_asked(asked) if "above" in name] == [
        "above-1",
        "above-2",
        "above-3",
    ]
    assert not found.edge.found
    assert found.kind == "none"
    assert found.headroom == (math.inf, math.inf)
    assert "no edge to bracket" in sentences(found, "edge")


def test_a_best_base_lr_at_the_bottom_extends_the_range_below():
    found, asked = of(Simulated(5.0, best_base_lr=3e-4))
    assert [name for name in steps_asked(asked) if "below" in name] == ["below-1"]
    assert min(point.base_lr for point in points(asked[1])) == pytest.approx(1e-4)
    assert found.lr_star == pytest.approx(3e-4, rel=0.2)


def test_an_edge_below_the_range_is_found_by_extending_it():
    found, asked = of(Simulated(3e-4, best_base_lr=1.0))
    assert "below-1" in steps_asked(asked)
    assert found.kind == "early"
    assert found.edge.interval[0] <= 3.3e-4
    assert found.edge.interval[1] >= 2.7e-4


# --- nothing trains -------------------------------------------------------------------------------


def test_where_nothing_trains_it_says_what_was_seen_and_where_to_look():
    found, asked = of(Simulated(1e-9, blow_up="mid_training"))
    assert (found.kind, found.remedies, found.adopted) == ("unknown", (), "")
    assert math.isnan(found.lr_star)
    assert steps_asked(asked) == ["simulated", "below-1", "below-2", "below-3"]
    assert found.summary == (
        "No feasible trial from base_lr 1e-06 to 10 (21 diverged); training goes wrong at step "
        "300 whatever the base LR: look at what happens there, in the data, the loss or the "
        "model, not at the LR (R1)."
    )


def test_a_loss_that_never_moved_is_no_matter_of_the_learning_rate():
    found, _ = of(Simulated(1e-9, blow_up="collapse"))
    assert "and the loss does not fall: either base LRs up to 10 are too low" in found.summary


def test_a_loss_that_is_nan_before_the_first_update_is_said_to_be():
    found, _ = of(Simulated(broken=True))
    assert found.kind == "unknown"
    assert "the loss is not finite before the first update" in found.summary


def test_a_model_that_never_learns_is_not_called_unstable():
    found, asked = of(Simulated(learns=False))
    assert found.kind == "unknown"
    assert "the loss does not fall" in found.summary
    assert not [
        name for name in steps_asked(asked) if name.startswith(("warmup", "tune", "clipping"))
    ]
    assert found.adopted == ""


# --- the edge -------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.012, 0.03, 0.0501, 0.1, 0.25, 0.9, 4.0])
@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_the_bracket_is_narrow_holds_the_true_edge_and_costs_less_than_a_grid(true, spread):
    found, _ = diagnosed(Simulated(true, best_base_lr=true / 3, spread=spread))
    low, high = found.edge.interval
    assert found.edge.decades <= EDGE_DECADES
    slack = 10 ** (2 * spread)  # half of five seeds say where half of all do, but for their luck
    assert low / slack <= true <= high * slack
    assert low < found.edge.unstable_base_lr < high
    # of the same width over the four decades of the sweep, on five seeds
    grid = math.ceil(4 / found.edge.decades) * 5
    assert found.edge.trainings < grid / 2


def test_a_single_unlucky_seed_in_the_sweep_does_not_place_the_edge():
    def unlucky(point):
        return point.seed == 0 and 0.03 < point.base_lr < 0.04

    found, _ = of(Simulated(2.0, best_base_lr=0.01, unlucky=unlucky))
    assert found.edge.interval[0] <= 2.1
    assert found.edge.interval[1] >= 1.9
    assert found.edge.decades <= EDGE_DECADES
    assert found.kind == "none"
    assert any(one.base_lr < 0.04 and one.infeasible for one in found.edge.tried)


def test_a_lucky_seed_in_the_sweep_does_not_place_the_edge_either():
    edges = Simulated(
        0.25, best_base_lr=0.03, raised=lambda point: 100.0 if point.seed == 0 else 1.0
    )
    found, _ = of(edges)
    assert found.edge.interval[0] <= 0.26
    assert found.edge.interval[1] >= 0.24


def test_seeds_of_an_end_of_the_bracket_are_as_many_as_of_what_lies_between():
    found, _ = of(EARLY)
    low, high = found.edge.interval
    assert all(one.trials >= 5 for one in found.edge.tried if low <= one.base_lr <= high)


# --- the kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind", "onset", "words"),
    [
        (EARLY, "early", 5, "Unstable from the first steps"),
        (MID, "mid_training", 300, "Unstable in mid-training"),
        (COLLAPSE, "edge", None, "Unstable at high base LR, without a blow-up"),
        (
            Simulated(blow_up="recovers", unstable_base_lr=0.25, best_base_lr=0.1),
            "early",
            3,
            "Unstable from the first",
        ),
    ],
)
def test_kinds_are_told_apart_and_their_onset_is_reported(model, kind, onset, words):
    found, _ = of(model)
    assert found.kind == kind
    assert found.summary.startswith(words)
    if onset is None:
        assert found.onset_steps == ()
        assert "collapsed to chance without a rise of the loss" in sentences(found, "kind")
    else:
        assert found.onset_steps
        assert all(abs(step - onset) <= 2 for step in found.onset_steps)
        assert f"half of them by step {onset}" in sentences(found, "kind")


def test_blow_ups_that_recover_are_seen_and_counted():
    found, _ = of(Simulated(blow_up="recovers", unstable_base_lr=0.25, best_base_lr=0.1))
    assert not found.edge.found
    assert "of those recovered (R5)" in sentences(found, "kind")
    assert found.remedies[0].name == "plain"


def test_an_edge_beyond_ten_times_lr_star_is_no_instability():
    found, _ = of(Simulated(1.5, best_base_lr=0.1, spread=0.1))
    low, high = found.headroom
    assert 10 < low < high
    assert found.kind == "none"


def test_the_probe_is_evaluated_at_every_step_at_twice_lr_star():
    found, asked = of(HEALTHY)
    (probe,) = (study for study in asked if study.name.endswith("-probe"))
    (confirm,) = (study for study in asked if study.name.endswith("-confirm"))
    assert {point.base_lr for point in points(probe)} == {2 * found.lr_star}
    assert (probe.evaluate_every(32), probe.stop_after) == (1, 500)
    assert {round(point.base_lr / found.lr_star, 9) for point in points(confirm)} == {5.0, 10.0}


# --- as a whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [HEALTHY, EARLY, MID])
def test_the_same_trials_give_the_same_studies_in_the_same_order(model):
    found, asked = of(model)
    again, asked_again = diagnosed(model)
    assert [study.name for study in asked_again] == [study.name for study in asked]
    assert asked_again == asked
    assert repr(again) == repr(found)


UNSTABLE = Simulated(0.08, best_base_lr=1.0, spread=0.005)
WARMED = replace(UNSTABLE, raised=lambda point: 13.0 if point.warmup_steps >= 10 else 1.0)
BETTER_ADAM = Simulated(
    0.08,
    best_base_lr=0.02,
    spread=0.005,
    raised=lambda point: 100.0 if point.optimizer == "adam" else 1.0,
    better=lambda point, updates: 0.05 if point.optimizer == "adam" else 0.0,
)
BUDGETS = (28, 38, 45, 62, 90, 130, 200)


@pytest.mark.parametrize(
    "model",
    [
        HEALTHY,
        EARLY,
        MID,
        Simulated(0.25, blow_up="recovers"),
        Simulated(1e-9),
        WARMED,
        BETTER_ADAM,
    ],
)
def test_whatever_the_budget_leaves_out_there_is_a_result_of_what_was_trained(model):
    trials_of = cache_by_name(model.trials_of)
    for budget in BUDGETS:
        found, asked = diagnosed(model, budget=budget, trials_of=trials_of)
        assert spent(asked) <= budget
        trained = {study.name for study in asked}
        assert {name for step in found.steps for name in step.studies} <= trained
        for one in found.remedies:
            assert {one.tuned_in, *one.looked_in} <= trained
            assert one.rerun_in in {"", *trained}
        text = " ".join(
            [found.summary, *(sentence for step in found.steps for sentence in step.sentences)]
        )
        assert "nan" not in text
        assert found.summary
        assert bool(found.left_out) == (found.would_do > budget)


@pytest.mark.parametrize("model", [HEALTHY, MID, WARMED, BETTER_ADAM])
@pytest.mark.parametrize("budget", [28, 45, 90])
def test_the_budget_that_is_named_goes_on_to_the_end(model, budget):
    """It reaches the first of what was left out; if results then ask for more, that is named."""
    trials_of = cache_by_name(model.trials_of)
    named = [budget]
    found, _ = diagnosed(model, budget=budget, trials_of=trials_of)
    while found.left_out:
        assert f"About --budget {found.would_do} would do." in found.summary
        more, asked = diagnosed(model, budget=found.would_do, trials_of=trials_of)
        assert spent(asked) <= found.would_do
        assert found.left_out[0] not in more.left_out
        named.append(found.would_do)
        found = more
    assert len(named) <= 4
    assert named == sorted(set(named))


def test_where_training_looks_unstable_the_first_look_is_paid_for_first():
    """The edge and the seeds of lr_star wait: what helps is what the diagnosis is for."""
    for budget in (45, 53, 62, 75):
        _, asked = diagnosed(WARMED, budget=budget)
        looks = {name.partition("-of-")[0] for name in steps_asked(asked)}
        firsts = {"plain", "warmup", "clipping", "adaptive_clipping", "warmup_and_clipping", "adam"}
        assert {f"look-{name}" for name in firsts} <= looks


def test_a_small_budget_adopts_what_is_far_better_and_a_large_one_the_same():
    for budget in (100, 200, math.inf):
        found, asked = diagnosed(BETTER_ADAM, budget=budget)
        assert found.adopted == "adam"
        assert found.winner.decision == "adopt"
        assert spent(asked) <= budget


def test_what_the_budget_shaped_has_it_in_its_name():
    """So a larger budget may ask for another study in its place, in the same folder."""
    budgets = (62, 100, 160, math.inf)
    all_asked = [diagnosed(WARMED, budget=budget)[1] for budget in budgets]
    by_name = {}
    for asked in all_asked:
        for study in asked:
            assert by_name.setdefault(study.name, study) == study
    assert any("-of-100" in study.name for study in all_asked[1])
    assert not any("-of-" in study.name for study in all_asked[-1])


def spent(asked):
    """Trainings of all studies, each of as many updates as the first."""
    return sum(map(updates_of, asked)) / STEPS


def cache_by_name(trials_of):
    known = {}

    def remembered(study):
        if study.name not in known:
            known[study.name] = trials_of(study)
        return known[study.name]

    return remembered


def test_every_group_of_a_sweep_is_diagnosed_on_its_own_trials():
    def raised(point):
        return 10.0 if point.optimizer == "adam" else 1.0

    axis = {"base_lr": {"low": 1e-3, "high": 10.0, "log": True, "points": 9}}
    study = study_of(optimizer={"momentum": axis, "adam": axis})
    model = Simulated(0.5, best_base_lr=0.1, raised=raised)
    edges = {}
    for group in sweep_of(study).groups(32):
        found, _ = follow(diagnosis_of(study, group, 5, {}), model.trials_of)
        edges[group.optimizer] = found.edge.unstable_base_lr
    assert edges["adam"] == pytest.approx(5.0, rel=0.4)
    assert edges["momentum"] == pytest.approx(0.5, rel=0.4)


def test_the_simulated_blow_ups_are_judged_as_they_are_meant():
    outcomes = {
        "early": "non_finite",
        "mid_training": "diverged",
        "collapse": "collapsed",
        "recovers": "feasible",
    }
    for blow_up, outcome in outcomes.items():
        trials = Simulated(0.5, blow_up=blow_up).trials_of(study_of())
        below = [trial for trial in trials if trial.point.base_lr < 0.4]
        above = [trial for trial in trials if trial.point.base_lr > 0.6]
        assert {trial.verdict.outcome for trial in above} == {outcome}
        assert {(trial.verdict.outcome, trial.verdict.instability) for trial in below} == {
            ("feasible", "none")
        }
        assert all(trial.curve.loss[0] == pytest.approx(CHANCE, rel=0.05) for trial in trials)


# --- a diagnosis does not contradict itself -------------------------------------------------------


def diagnosed_of(changed, model=HEALTHY):
    """The diagnosis of trials that are those of a model, each changed."""
    study = study_of()
    trials_of = lambda asked: [changed(trial) for trial in model.trials_of(asked)]  # noqa: E731
    found, asked = follow(diagnosis_of(study, study.groups(32)[0], 5, {}), trials_of)
    return found, asked


def judged(trial, outcome, instability="early", onset_step=3.0):
    return replace(trial, verdict=Verdict(outcome, instability, onset_step, ""))


def drawn(trial, chance):
    """Whether a coin of the trial's own, the same each time, falls on one side."""
    place = zlib.crc32(f"{trial.point.base_lr:.3g} {trial.point.seed}".encode())
    return np.random.default_rng(place).random() < chance


def test_rises_that_are_as_frequent_below_lr_star_are_no_kind_of_instability():
    def hovering(trial):
        onset = (
            30.0
            + 300
            * np.random.default_rng(trial.point.seed + round(1e5 * trial.point.base_lr)).random()
        )
        return (
            judged(trial, "feasible", "mid_training", onset)
            if trial.feasible and drawn(trial, 0.7)
            else trial
        )

    found, _ = diagnosed_of(hovering)
    assert found.kind == "none"
    assert "the loss rises by itself" in sentences(found, "kind")
    assert found.summary.startswith("Stable: ")


def test_an_onset_that_is_the_same_over_decades_of_base_lr_is_the_data():
    def lucky_first_batch(trial):
        return judged(trial, "feasible") if trial.feasible else trial

    found, _ = diagnosed_of(lucky_first_batch)
    assert found.kind == "none"
    assert "At step 3 the loss of" in sentences(found, "kind")
    assert "that is the data, not the learning rate" in sentences(found, "kind")
    assert found.onset_steps == ()


def test_early_blow_ups_at_every_base_lr_of_many_decades_are_not_blamed_on_the_base_lr():
    found, _ = of(Simulated(1e-9))
    assert "whatever the base LR" in found.summary


def test_a_fit_that_its_trials_contradict_is_refused():
    """What is just above lr_star diverges always, what is farther above never."""

    def in_a_band(trial):
        return judged(trial, "diverged") if 0.15 < trial.point.base_lr < 0.4 else trial

    found, _ = diagnosed_of(in_a_band, Simulated())
    assert found.edge.refused == "contradicted"
    assert not found.edge.found
    assert found.kind == "unknown"
    assert found.headroom == (math.inf, math.inf)
    assert "more often than at higher ones" in found.summary
    assert found.adopted == "plain"


def test_an_edge_beyond_a_thousand_times_the_best_base_lr_is_no_edge_that_matters():
    found, asked = of(Simulated(25.0, best_base_lr=0.003))
    assert found.edge.refused == "too far"
    assert (found.kind, found.edge.found, found.edge.trainings) == ("none", False, 0)
    assert "1000 ×" in found.summary
    assert not [name for name in steps_asked(asked) if name.startswith("edge")]


def test_headroom_is_relative_to_the_best_mean_and_not_to_what_is_within_an_error_of_it():
    shallow = [
        diagnosed(replace(FLAT, unstable_base_lr=3.0, curved=0.05), study_of(seed=10 * i))[0]
        for i in range(6)
    ]
    lower = [found for found in shallow if found.lr_star < found.best_base_lr]
    assert lower
    for found in lower:
        assert found.headroom[1] == pytest.approx(found.edge.interval[1] / found.best_base_lr)
        assert "× the best base LR" in found.summary
        assert "The best mean is at" in sentences(found, "sweep")


def test_on_a_flat_basin_headroom_is_relative_to_its_upper_end():
    basin = Simulated(30.0, curved=0.002)
    found = [diagnosed(basin, study_of(seed=10 * i))[0] for i in range(6)]
    wide = [one for one in found if one.as_good[1] > 11 * one.as_good[0]]
    assert wide
    for one in wide:
        assert one.lr_star == one.as_good[0] <= one.best_base_lr <= one.as_good[1]
        assert one.headroom[1] == pytest.approx(one.edge.interval[1] / one.as_good[1])
        assert "× the upper end of a basin" in one.summary
        assert "A basin: " in sentences(one, "sweep")
        assert f"headroom {readable(one.headroom[0])} to" in sentences(one, "edge")


def test_the_edge_is_told_with_a_confidence_beside_how_finely_it_was_tried():
    found, _ = of(EARLY)
    low, high = found.edge.confidence_interval
    assert low <= found.edge.interval[0] < found.edge.interval[1] <= high
    assert "With 95 % confidence it " in sentences(found, "edge")


# --- objectives that rank nothing -----------------------------------------------------------------


def with_values(trial, values):
    curve = replace(trial.curve, metrics={"val_error": values(trial.curve.eval_step)})
    return Trial.from_curve(trial.point, trial.verdict, curve, "val_error", seconds=0.01)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            lambda steps: np.full(len(steps), 0.5),
            "val_error is 0.5 in every evaluation of all 9 trainings, although",
        ),
        (
            lambda steps: np.full(len(steps), math.nan),
            "val_error is nan or inf in every evaluation of all 9 trainings",
        ),
        (
            lambda steps: 0.1 + steps / 1000,
            "if higher is better, set maximize = true",
        ),
    ],
)
def test_an_objective_that_ranks_nothing_ends_the_diagnosis_in_a_sentence(values, words):
    found, asked = diagnosed_of(lambda trial: with_values(trial, values))
    assert words in found.summary
    assert found.fault == found.summary
    assert (found.kind, found.remedies, found.adopted) == ("unknown", (), "")
    assert steps_asked(asked) == ["simulated"]
