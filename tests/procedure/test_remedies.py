"""Remedies of simulated instabilities: what is looked for, what is found, and what is adopted."""

import math
import re
from dataclasses import replace
from functools import cache, partial
from statistics import fmean

import pytest
from simulated import STEPS, Simulated, diagnosed, sentences, steps_asked, study_of

from tunewright.search.judge.analysis import rank_configurations
from tunewright.search.procedure.arms import TUNED
from tunewright.search.procedure.ladder import LADDER
from tunewright.search.procedure.tournament import MOST_FAILING, SAFE_SEEDS
from tunewright.search.procedure.warmup import FEWEST_SCREENED, screened_updates, warmup_lengths
from tunewright.search.study.sampling import plan
from tunewright.search.trial import as_told

# bracketed from 0.075 to 0.1; better ones beyond it
UNSTABLE = Simulated(0.08, best_base_lr=1.0, spread=0.005)
of = cache(diagnosed)


def by_warmup(factors, point):
    """The factor of the longest warmup that a point's is no shorter than."""
    return max(
        (factor for steps, factor in factors.items() if point.warmup_steps >= steps), default=1.0
    )


def by_clipping(factors, point):
    """The factor of the largest threshold that a point's is no larger than."""
    return max(
        (factor for threshold, factor in factors.items() if point.clip_norm <= threshold),
        default=1.0,
    )


@cache
def warmed(*factors):
    """UNSTABLE where a warmup of so many steps raises the edge by a factor: (steps, factor), …"""
    return replace(UNSTABLE, raised=partial(by_warmup, dict(factors)))


@cache
def clipped(*factors, norm=1.0):
    """UNSTABLE where thresholds up to one raise the edge by a factor: (threshold, factor), …"""
    return replace(
        UNSTABLE, raised=partial(by_clipping, dict(factors)), norm=partial(growing, norm)
    )


def growing(factor, point):
    """Norms above the edge are larger by a factor."""
    return factor if point.base_lr > 0.076 else 1.0


def named(found, name):
    return next(one for one in found.remedies if one.name == name)


# --- warmup ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reach", "multiple"), [(13.0, 10), (6.5, 5), (3.9, 3), (1.4, 1), (250.0, 100), (50.0, 30)]
)
def test_the_multiple_that_a_warmup_reaches_is_reported(reach, multiple):
    found, asked = of(warmed((40, reach)))
    assert (
        f"40 steps are the shortest of 10, 40 that reach {multiple} × unstable_base_lr"
        in sentences(found, "warmup")
    )
    assert "on 5 of 5 seeds" in sentences(found, "warmup")
    assert f"warmup-40-at-{multiple}x" in steps_asked(asked)
    assert named(found, "warmup").point.warmup_steps == 40


def test_a_multiple_below_the_highest_is_confirmed_only_where_higher_ones_fail():
    _, asked = of(warmed((40, 3.9)))
    assert [name for name in steps_asked(asked) if "-at-" in name] == ["warmup-40-at-3x"]


def test_only_where_10_times_works_100_times_is_tried():
    tenfold = of(warmed((40, 13.0)))[1]
    assert "warmup-40-screen-100x" in steps_asked(tenfold)
    fivefold = of(warmed((40, 6.5)))[1]
    assert not [name for name in steps_asked(fivefold) if "100x" in name]


def test_the_shortest_length_that_reaches_as_far_is_taken():
    found, _ = of(warmed((10, 13.0)))
    assert named(found, "warmup").point.warmup_steps == 10
    further, _ = of(warmed((10, 6.5), (40, 13.0)))
    assert named(further, "warmup").point.warmup_steps == 40


def test_no_warmup_that_works_is_no_remedy():
    found, asked = of(UNSTABLE)
    assert "No warmup of 10, 40 steps reaches even 1 × unstable_base_lr" in sentences(
        found, "warmup"
    )
    assert not [name for name in steps_asked(asked) if name.startswith("tune-warmup")]


def test_a_confirmation_that_fails_falls_back_to_the_next_rung():
    """In mid-training a blow-up comes after the screening run: 5 × and 10 × look well, and are
    not.
    """
    model = replace(warmed((40, 3.9)), blow_up="mid_training")
    found, asked = of(model)
    assert [name for name in steps_asked(asked) if "-at-" in name] == [
        "warmup-10-at-10x",
        "warmup-40-at-10x",
        "warmup-10-at-5x",
        "warmup-40-at-5x",
        "warmup-10-at-3x",
        "warmup-40-at-3x",
    ]
    assert "that reach 3 × unstable_base_lr" in sentences(found, "warmup")


def test_more_than_a_twentieth_of_the_steps_is_said_to_be_much():
    assert "That is 10% of max_train_steps: it may have to grow (R12)" in sentences(
        of(warmed((40, 13.0)))[0], "warmup"
    )
    assert "R12" not in sentences(of(warmed((10, 13.0)))[0], "warmup")


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [(5, []), (10, [1]), (100, [10]), (400, [10, 40]), (1000, [10, 100]), (5000, [10, 100, 500])],
)
def test_warmups_are_orders_of_magnitude_and_a_tenth_of_the_steps(steps, lengths):
    assert warmup_lengths(steps) == lengths


def test_a_screening_run_is_three_warmups_long_within_what_can_be_judged_and_the_whole():
    assert screened_updates(100, 5000) == 300
    assert screened_updates(10, 5000) == FEWEST_SCREENED
    assert screened_updates(10, 100) == 110
    for study in of(warmed((40, 13.0)))[1]:
        if "-screen-" in study.name:
            assert {study.updates(point) for point in plan(study)} == {FEWEST_SCREENED}


def test_training_too_short_for_a_warmup_has_none():
    found, asked = diagnosed(UNSTABLE, study_of(max_train_steps=8, evaluations=8))
    assert not [name for name in steps_asked(asked) if name.startswith("warmup")]
    assert found.summary


# --- clipping -------------------------------------------------------------------------------------


def test_of_thresholds_that_reach_equally_far_the_largest_is_taken():
    found, _ = of(clipped((2.0, 13.0)))
    words = sentences(found, "clipping")
    assert "their 90th percentile, training reaches 10 × unstable_base_lr on every seed" in words
    assert named(found, "clipping").point.clip_norm == pytest.approx(
        math.exp(1.2816 * 0.3), rel=0.05
    )
    assert "control" not in " ".join(found.steps[5].studies)


def test_a_smaller_threshold_that_reaches_further_is_taken():
    found, _ = of(clipped((2.0, 3.9), (1.3, 13.0)))
    assert "their 75th percentile, training reaches 10 ×" in sentences(found, "clipping")
    assert named(found, "clipping").clip_fraction == pytest.approx(0.25, abs=0.08)


def test_of_thresholds_that_clip_no_more_than_half_the_one_that_reaches_furthest_is_taken():
    found, asked = of(clipped((2.0, 3.9), (1.3, 6.5), (0.9, 13.0)))
    words = sentences(found, "clipping")
    assert "their 75th percentile, training reaches 5 ×" in words
    assert "it would reach 10 ×, by clipping 7" in words
    assert "clipping-control" not in steps_asked(asked)


def test_where_every_threshold_that_works_clips_more_than_half_the_base_lr_is_cut_instead():
    found, asked = of(clipped((2.0, 13.0), norm=4.0))
    assert "clipping-control" in steps_asked(asked)
    (control,) = (study for study in asked if study.name.endswith("clipping-control"))
    (clip_norm, base_lr) = named(found, "clipping").point.clip_norm, plan(control)[0].base_lr
    assert {point.clip_norm for point in plan(control)} == {math.inf}
    highest = 10 * found.edge.interval[1]
    assert base_lr == pytest.approx(highest * clip_norm / 4.0 * math.exp(0.3**2 / 2), rel=0.1)
    assert "More than half: a strange way of cutting the learning rate (R17)." in sentences(
        found, "clipping"
    )


def test_thresholds_are_percentiles_of_the_norms_at_lr_star():
    _, asked = of(UNSTABLE)
    (study,) = (study for study in asked if study.name == "momentum-32-clipping")
    expected = [math.exp(0.3 * z) for z in (1.2816, 0.6745, 0.0, -0.6745)]
    thresholds = sorted({point.clip_norm for point in plan(study)}, reverse=True)
    assert thresholds == pytest.approx(expected, rel=0.05)


def test_no_threshold_that_works_is_no_remedy():
    found, asked = of(UNSTABLE)
    assert "trains at 1 × unstable_base_lr on every seed" in sentences(found, "clipping")
    assert "tune-clipping" not in steps_asked(asked)


# --- what is tuned --------------------------------------------------------------------------------


def test_what_works_is_tuned_alone_and_together_and_adaptive_clipping_always():
    def raised(point):
        return 13.0 if point.warmup_steps >= 10 or point.clip_norm <= 2 else 1.0

    found, asked = diagnosed(replace(UNSTABLE, raised=raised))
    tuned = [name for name in steps_asked(asked) if name.startswith("tune-")]
    assert tuned == [
        "tune-plain",
        "tune-warmup",
        "tune-clipping",
        "tune-adaptive_clipping",
        "tune-warmup_and_clipping",
        "tune-adam",
    ]
    assert [one.name for one in found.remedies] == [
        name.removeprefix("tune-").replace("_", " ") for name in tuned
    ]


def test_remedies_are_tuned_at_the_same_base_lrs_on_the_same_seeds():
    _, asked = of(warmed((10, 13.0)))
    tuned = [study for study in asked if "-tune-" in study.name and "adam" not in study.name]
    grids = {tuple((point.base_lr, point.seed) for point in plan(study)) for study in tuned}
    assert len(tuned) == 3
    assert len(grids) == 1
    (grid,) = grids
    assert len({base_lr for base_lr, _ in grid}) == TUNED
    found, _ = of(warmed((10, 13.0)))
    assert max(base_lr for base_lr, _ in grid) == pytest.approx(LADDER[0] * found.edge.interval[1])
    assert min(base_lr for base_lr, _ in grid) == pytest.approx(found.lr_star / 3)


def test_the_other_optimizers_of_a_study_are_tuned_in_their_own_ranges():
    sweep = {"low": 1e-3, "high": 10.0, "log": True, "points": 9}
    adam = {"base_lr": {"low": 2e-4, "high": 0.2, "log": True, "points": 3}, "beta2": 0.99}
    _, asked = diagnosed(
        UNSTABLE, study_of(optimizer={"momentum": {"base_lr": sweep}, "adam": adam})
    )
    (tuned,) = (study for study in asked if study.name.endswith("tune-adam"))
    rates = [point.base_lr for point in plan(tuned)]
    assert (min(rates), max(rates)) == pytest.approx((2e-4, 0.2))
    assert {point.settings["beta2"] for point in plan(tuned)} == {0.99}


def test_an_adaptive_optimizer_is_compared_with_momentum():
    axis = {"base_lr": {"low": 1e-3, "high": 10.0, "log": True, "points": 9}}
    _, asked = diagnosed(UNSTABLE, study_of(optimizer={"adam": axis}))
    assert [study.name for study in asked if "-tune-" in study.name][-1] == "adam-32-tune-momentum"


def test_an_architecture_that_the_workload_declares_is_one_more_remedy():
    def raised(point):
        return 30.0 if point.workload_args.get("norm") == "pre" else 1.0

    study = study_of(workload_args={"norm": "post", "depth": 4})
    found, asked = diagnosed(
        replace(UNSTABLE, raised=raised),
        study,
        architectures={"pre-norm": {"norm": "pre"}, "as it is": {"norm": "post"}},
    )
    assert "tune-pre-norm" in steps_asked(asked)
    assert not [name for name in steps_asked(asked) if "as_it_is" in name]
    assert found.adopted == "pre-norm"
    assert found.winner.point.workload_args == {"norm": "pre", "depth": 4}


def test_an_optimizer_that_trains_at_no_base_lr_is_said_to():
    def raised(point):
        return 1e-9 if point.optimizer == "adam" else 1.0

    found, _ = diagnosed(replace(UNSTABLE, raised=raised))
    assert sentences(found, "arms") == "adam: no base LR from 0.0001 to 0.1 trains."
    assert "adam" not in [one.name for one in found.remedies]


# --- what is adopted ------------------------------------------------------------------------------


def test_ways_that_are_equally_good_leave_plain_training_as_it_is():
    """Warmup reaches further here, and no base LR there is better."""
    model = replace(warmed((10, 13.0)), best_base_lr=0.023, noise=0.003)
    found, _ = of(model)
    assert found.kind != "none"
    assert found.adopted == "plain"
    assert {one.decision for one in found.remedies[1:] if one.values} <= {
        "not enough evidence",
        "keep baseline",
    }
    assert "Not enough evidence that any remedy is better" in sentences(found, "tournament")
    assert found.summary.endswith("no remedy is shown to be better.")


def test_a_remedy_that_makes_more_base_lrs_usable_is_named_where_none_is_better():
    model = replace(warmed((10, 13.0)), best_base_lr=0.04, noise=0.003, curved=0.02)
    found, _ = of(model)
    assert found.adopted == "plain"
    assert "warmup is not shown to be worse, and makes" in sentences(found, "tournament")


def test_a_clearly_better_way_is_adopted():
    found, _ = of(warmed((10, 13.0)))
    winner = found.winner
    assert found.adopted == "warmup"
    assert (winner.decision, winner.infeasible) == ("adopt", 0)
    assert winner.evidence.gain > 0
    assert winner.point.base_lr > found.edge.interval[1]
    assert found.summary.startswith("Unstable from the first steps: ")
    assert "Adopt warmup: " in found.summary


def test_of_two_ways_that_cannot_be_told_apart_the_simpler_is_adopted():
    """Clipping and both together reach as far, and are as good."""

    def raised(point):
        return 13.0 if point.warmup_steps >= 10 or point.clip_norm <= 2 else 1.0

    for noise in (0.003, 0.01):
        found, _ = diagnosed(replace(UNSTABLE, raised=raised, noise=noise))
        adopted = [one.name for one in found.remedies if one.decision == "adopt"]
        assert set(adopted) >= {"warmup", "clipping"}
        assert found.adopted == "warmup"


def test_a_way_that_is_better_than_a_simpler_one_is_adopted_over_it():
    def raised(point):
        return (3.9 if point.warmup_steps >= 10 else 1.0) * (4.0 if point.clip_norm <= 2 else 1.0)

    found, _ = diagnosed(replace(UNSTABLE, raised=raised))
    assert found.adopted == "warmup and clipping"


def test_reruns_are_paired_on_seeds_that_chose_nothing():
    found, asked = of(warmed((10, 13.0)))
    reruns = [study for study in asked if "-rerun-" in study.name]
    seeds = [[p.seed for p in plan(study)] for study in reruns if not study.name.endswith("-more")]
    more = [[p.seed for p in plan(study)] for study in reruns if study.name.endswith("-more")]
    assert all(own == seeds[0] for own in seeds)
    assert all(own == more[0] for own in more)
    assert not set(seeds[0]) & set(more[0])
    before = {p.seed for study in asked if "-rerun-" not in study.name for p in plan(study)}
    assert not before & set(seeds[0])
    assert all(one.evidence.paired for one in found.remedies if one.evidence)


def test_a_prepended_warmup_has_plain_training_for_as_many_updates_as_a_control():
    found, asked = of(warmed((10, 13.0)))
    warmup, plain = named(found, "warmup"), named(found, "plain")
    assert (plain.updates, warmup.updates) == (STEPS, STEPS + 10)
    (control,) = (study for study in asked if study.name.endswith(f"rerun-plain-{STEPS + 10}"))
    (rerun,) = (study for study in asked if study.name == plain.rerun_in)
    assert [study_point.base_lr for study_point in plan(control)] == [plain.point.base_lr] * len(
        plan(rerun)
    )
    assert warmup.equal_steps.gain == pytest.approx(warmup.evidence.gain, abs=0.02)
    assert named(found, "adaptive clipping").equal_steps is None


def test_a_gain_that_is_that_of_training_longer_is_said_to_be():
    def better(point, updates):
        return 0.05 if updates > STEPS else 0.0

    model = replace(warmed((10, 13.0)), best_base_lr=0.02, noise=0.002, better=better)
    found, _ = of(model)
    assert found.adopted == "warmup"
    assert named(found, "warmup").equal_steps.p_better > 0.05
    assert "it may be that of training longer (R11)" in sentences(found, "tournament")


def test_an_infeasible_rerun_counts_as_its_untrained_model():
    model = replace(UNSTABLE, raised=lambda point: 0.01 if point.seed == 1002 else 1.0)
    found, _ = diagnosed(model)
    plain = named(found, "plain")
    assert plain.infeasible >= 1
    assert max(plain.values) == pytest.approx(0.9)


def test_the_best_few_are_rerun_and_plain_training_always():
    def worth(point, updates):
        return (
            -0.2
            if (point.warmup_steps, point.clip_norm, point.clip_z) == (0, math.inf, math.inf)
            else 0.0
        )

    def raised(point):
        return 1.0 if (point.warmup_steps, point.clip_norm) == (0, math.inf) else 13.0

    found, _ = diagnosed(replace(UNSTABLE, better=worth, raised=raised))
    rerun = [one.name for one in found.remedies if one.values]
    assert rerun[0] == "plain"
    assert len(rerun) == 5
    left = min(one.tuned_value for one in found.remedies if not one.values)
    assert all(named(found, name).tuned_value <= left for name in rerun[1:])


def test_a_remedy_is_tuned_where_the_mean_of_its_seeds_is_best():
    model = warmed((10, 13.0))
    found, asked = of(model)
    for one in found.remedies:
        (study,) = (study for study in asked if study.name == one.tuned_in)
        assert (
            one.point.configuration
            == rank_configurations(model.trials_of(study))[0].point.configuration
        )


# --- budget ---------------------------------------------------------------------------------------


def updates_before(asked, name):
    """The updates of all studies asked before the one of this name, as a budget."""
    earlier = asked[: steps_asked(asked).index(name)]
    return sum(study.updates(point) for study in earlier for point in plan(study))


def test_an_optimizer_that_the_budget_left_out_is_not_said_to_train_nowhere():
    model = warmed((10, 13.0))
    _, asked = of(model)
    found, _ = diagnosed(model, budget=updates_before(asked, "tune-adam"))
    assert sentences(found, "arms") == "adam: left out for budget."


def test_reruns_that_the_budget_left_out_leave_plain_training():
    model = warmed((10, 13.0))
    _, asked = of(model)
    names = steps_asked(asked)
    found, _ = diagnosed(model, budget=updates_before(asked, "rerun-warmup"))
    assert found.adopted == "plain"
    assert "The budget left out the reruns" in sentences(found, "tournament")
    assert len(named(found, "plain").values) == len(plan(asked[names.index("rerun-plain")]))
    assert "shown to be better" not in found.summary
    assert found.summary.endswith(
        "the budget left out the rerun of warmup, adaptive clipping, adam: whether a remedy is "
        "better is not known."
    )


def test_where_plain_training_was_not_tuned_it_is_kept_at_lr_star():
    model = warmed((10, 13.0))
    _, asked = of(model)
    found, _ = diagnosed(model, budget=updates_before(asked, "tune-plain"))
    assert found.adopted == "plain"
    assert found.winner.point.base_lr == found.lr_star
    assert found.summary.endswith("adam: whether a remedy is better is not known.")


def test_what_trains_on_a_lucky_seed_alone_is_no_recipe():
    model = Simulated(
        0.012, best_base_lr=1.0, raised=lambda point: 30.0 if point.seed == 0 else 1.0
    )
    found, _ = diagnosed(model)
    assert found.edge.interval[1] < found.lr_star
    assert (found.adopted, found.winner) == ("", None)
    assert found.summary.endswith("no remedy could be compared.")


# --- plain training is tuned as well; the edge asks for seeds -------------------------------------


def test_plain_training_is_tuned_at_lr_star_too_and_the_better_of_the_two_counts():
    """The edge is far and the grid coarse: the base LR beside lr_star is worse, and luck takes
    it.
    """
    seen = 0
    for seed in range(0, 50, 10):
        model = replace(UNSTABLE, unstable_base_lr=0.9, best_base_lr=0.1, curved=0.4, noise=0.02)
        found, asked = diagnosed(model, study_of(seed=seed))
        if "tune-plain" not in steps_asked(asked):
            continue
        (tuned,) = (study for study in asked if study.name.endswith("tune-plain"))
        assert found.lr_star in {point.base_lr for point in plan(tuned)}
        reruns = [
            study for study in asked if study.name.endswith(("rerun-plain", "rerun-plain-lr_star"))
        ]
        rates = {plan(study)[0].base_lr for study in reruns}
        assert found.lr_star in rates
        worth = [
            fmean(as_told(trial).value for trial in model.trials_of(study)) for study in reruns
        ]
        assert fmean(named(found, "plain").values[:7]) == pytest.approx(min(worth))
        seen += 1
    assert seen >= 2


def risky(point):
    """Two of the seeds that come after the first reruns fail with a warmup."""
    if point.warmup_steps < 10:
        return 1.0
    return 0.01 if point.seed in (1010, 1020) else 13.0


def test_what_fails_in_some_runs_on_the_edge_is_not_adopted_and_it_says_so():
    model = replace(UNSTABLE, raised=risky)
    found, asked = diagnosed(model)
    (more,) = (study for study in asked if study.name.endswith("rerun-warmup-more"))
    warmup = named(found, "warmup")
    assert len(plan(more)) < SAFE_SEEDS
    assert len(warmup.values) == SAFE_SEEDS
    assert warmup.infeasible == 2
    assert warmup.failure_bound > MOST_FAILING
    assert warmup.decision == "not enough evidence"
    assert found.adopted != "warmup"
    assert "more than 10%: not adopted" in sentences(found, "tournament")


def test_what_never_fails_is_adopted_on_the_edge_with_the_seeds_that_show_it():
    found, _ = of(warmed((10, 13.0)))
    assert found.adopted == "warmup"
    assert len(found.winner.values) == len(named(found, "plain").values) == SAFE_SEEDS
    assert found.winner.failure_bound <= MOST_FAILING
    assert "with 29 seeds without a failure, up to 10% may fail" in found.summary


def test_where_the_budget_left_out_the_seeds_that_the_edge_asks_for_it_is_not_adopted():
    model = warmed((10, 13.0))
    _, asked = of(model)
    found, _ = diagnosed(model, budget=updates_before(asked, "rerun-plain-more"))
    assert found.adopted == "plain"
    assert re.search(r"the 2[23] more seeds that the edge asks of warmup", " ".join(found.left_out))
    assert "shown to be better" not in found.summary
    assert re.search("2[23] more seeds", found.summary)
