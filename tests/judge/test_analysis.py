import math
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.search.judge.analysis import (
    BoundaryNote,
    best_few,
    boundary_checks,
    group_trials,
    just_above,
    summarize,
    unstable_interval,
    varied_names,
)
from tunewright.search.trial import EMPTY_CURVE, Group, Instability, Outcome, Point, Trial, Verdict

MOMENTUM = {"momentum": {"base_lr": (1e-3, 10.0, True)}}


def trial(
    base_lr: float,
    best_value: float = math.inf,
    outcome: Outcome = "feasible",
    number: int = 0,
    **point: Any,
) -> Trial:
    kind: Instability = "none" if outcome in ("feasible", "crashed") else "mid_training"
    return Trial(
        point=Point(
            **{"number": number, "batch_size": 32, "optimizer": "momentum", "base_lr": base_lr}
            | point
        ),
        verdict=Verdict(outcome, kind, math.inf, ""),
        curve=EMPTY_CURVE,
        best_value=best_value,
        best_step=90,
        initial_value=0.9,
        last_loss=1.0,
        clip_fraction=0.0,
        seconds=1.0,
    )


def figure_7a() -> list[Trial]:
    """10 LRs, log-spaced from 10^-3.5 to 10^-1, 6 feasible; the best is two grid points below the
    edge.
    """
    base_lrs = np.logspace(-3.5, -1, 10)
    values = [0.40, 0.34, 0.30, 0.27, 0.25, 0.29]
    return [trial(lr, value) for lr, value in zip(base_lrs, values, strict=False)] + [
        trial(lr, 0.1, "diverged") for lr in base_lrs[6:]
    ]


rates = st.floats(1e-6, 1e2)
feasible_trials = st.builds(trial, rates, st.floats(0, 1))
lost_trials = st.builds(  # of other configurations than those of the feasible ones
    trial,
    rates,
    st.floats(0, 1),
    st.sampled_from(["non_finite", "diverged", "collapsed", "crashed"]),
    clip_norm=st.just(1),
)


@given(st.lists(feasible_trials, min_size=1, max_size=20), st.lists(lost_trials, max_size=20))
def test_an_infeasible_or_crashed_trial_never_moves_the_best_and_is_never_lr_star(
    kept: list[Trial], lost: list[Trial]
) -> None:
    [before], [after] = summarize(kept), summarize(lost + kept)
    assert (after.best_base_lr, after.best_mean) == (before.best_base_lr, before.best_mean)
    assert before.lr_star <= after.lr_star <= after.best_base_lr
    crashed = [one for one in lost if one.verdict.crashed]
    [same] = summarize(crashed + kept)
    assert (same.lr_star, same.best_value, same.point, same.as_good) == (
        before.lr_star,
        before.best_value,
        before.point,
        pytest.approx(before.as_good, nan_ok=True),
    )


@given(st.lists(feasible_trials | lost_trials, min_size=1, max_size=20), st.randoms())
def test_the_order_of_trials_does_not_matter(trials: list[Trial], random: Any) -> None:
    shuffled = random.sample(trials, len(trials))
    assert repr(summarize(shuffled)) == repr(summarize(trials))


@given(st.lists(feasible_trials | lost_trials, min_size=1, max_size=20))
def test_every_trial_is_counted_once_and_the_edge_lies_above_lr_star(trials: list[Trial]) -> None:
    [row] = summarize(trials)
    assert row.feasible + row.infeasible + row.crashed == row.trials == len(trials)
    if row.feasible:
        assert row.lr_star <= row.best_base_lr <= row.unstable_base_lr[0] < row.unstable_base_lr[1]
        assert row.as_good[1] < row.unstable_base_lr[1] or math.isnan(row.as_good[1])
        assert row.headroom > 1
        between = (row.lr_star, row.best_base_lr)
        lost = [one.point.base_lr for one in trials if one.verdict.infeasible]
        assert not [rate for rate in lost if between[0] < rate < between[1]]
        assert row.good_region >= 1


def repeated(base_lr: float, *values: float, infeasible: int = 0) -> list[Trial]:
    """One configuration: a feasible trial per value, then infeasible ones, with seeds 0, 1, ..."""
    outcomes: list[Outcome] = ["feasible"] * len(values) + ["diverged"] * infeasible
    best = [*values, *[0.01] * infeasible]
    return [
        trial(base_lr, best[seed], outcomes[seed], number=seed, seed=seed)
        for seed in range(len(best))
    ]


several = st.lists(st.floats(0, 1), min_size=3, max_size=3)


@given(st.dictionaries(rates, several, min_size=1, max_size=6))
def test_values_are_those_at_lr_star_which_is_at_or_below_the_best_mean_over_seeds(
    values: dict[float, list[float]],
) -> None:
    [row] = summarize([one for base_lr, own in values.items() for one in repeated(base_lr, *own)])
    means = {base_lr: fmean(own) for base_lr, own in values.items()}
    assert means[row.best_base_lr] == row.best_mean == min(means.values())
    assert row.point.base_lr == row.lr_star <= row.best_base_lr
    assert list(row.best_values) == values[row.lr_star]
    assert row.best_value == means[row.lr_star]
    assert row.seeds == 3


@given(st.dictionaries(rates, several, min_size=1, max_size=6), rates)
def test_a_configuration_with_an_infeasible_seed_is_never_the_best(
    values: dict[float, list[float]], edge: float
) -> None:
    kept = [
        one for base_lr, own in values.items() for one in repeated(base_lr, *own) if base_lr != edge
    ]
    partly = repeated(edge, 0.0, 0.0, infeasible=1)
    [row] = summarize(kept + partly)
    assert row.lr_star != edge
    assert row.unstable_base_lr[1] == (edge if edge > row.lr_star or not kept else math.inf)


def test_the_edge_is_the_first_base_lr_with_any_infeasible_seed_and_its_share_is_reported() -> None:
    trials = [
        *repeated(0.01, 0.8, 0.8, 0.9),
        *repeated(0.1, 0.1, 0.2, 0.3),
        *repeated(0.2, 0.1, 0.1, infeasible=1),
    ]
    [row] = summarize([*trials, *repeated(0.4, infeasible=3)])
    assert (row.lr_star, row.best_value) == (0.1, pytest.approx(0.2))
    assert (row.unstable_base_lr, row.unstable_trials) == ((0.1, 0.2), (1, 3))
    assert row.point == Point(0, 32, "momentum", 0.1)  # the best seed's
    assert row.record()["best_values"] == (0.1, 0.2, 0.3)


def test_a_crashed_seed_is_no_evidence_about_its_configuration() -> None:
    [row] = summarize([*repeated(0.1, 0.2, 0.3), trial(0.1, outcome="crashed", number=2, seed=2)])
    assert (row.lr_star, row.best_values) == (0.1, (0.2, 0.3))


def test_one_seed_adds_nothing_to_the_summary() -> None:
    [row] = summarize(figure_7a())
    assert row.seeds == 1
    assert not {"seeds", "best_values", "unstable_trials"} & row.record().keys()


def test_the_best_few_are_configurations_not_seeds() -> None:
    trials = [one for lr in (0.1, 0.2, 0.3, 0.4) for one in repeated(lr, lr, lr + 0.01)]
    assert [one.point.base_lr for one in best_few(trials)] == [0.1, 0.2, 0.3]


def test_figure_7a_is_on_the_edge() -> None:
    [row] = summarize(figure_7a())
    assert row.lr_star == pytest.approx(10**-2.389, rel=1e-3)
    assert row.headroom == pytest.approx(3.6, rel=0.01)
    assert row.unstable_base_lr == pytest.approx((10**-2.111, 10**-1.833), rel=1e-3)
    assert row.infeasible_fraction == 0.4
    assert row.good_region == 3  # the grid steps by 1.9: one neighbour to each side is within √10
    assert row.verdict == "on the edge"


def test_stable_means_that_the_edge_was_found_and_is_far() -> None:
    trials = [
        trial(0.01, 0.3),
        trial(0.1, 0.1),
        trial(0.4, 0.2),
        trial(1.0, 0.3),
        trial(2.0, outcome="diverged"),
    ]
    [row] = summarize(trials)
    assert (row.verdict, row.headroom) == ("stable", pytest.approx(20))
    assert boundary_checks(trials, MOMENTUM) == []


def test_without_an_infeasible_trial_above_lr_star_the_headroom_is_unbounded() -> None:
    trials = [
        trial(0.01, outcome="diverged"),
        trial(0.1, 0.1),
        trial(1.0, 0.2),
        trial(3.0, outcome="crashed"),
    ]
    assert unstable_interval(trials) == (1.0, math.inf)
    assert summarize(trials)[0].headroom == math.inf


def test_a_group_without_a_feasible_trial_has_no_lr_star() -> None:
    [row] = summarize([trial(0.1, outcome="non_finite"), trial(0.01, outcome="collapsed")])
    assert math.isnan(row.lr_star)
    assert math.isnan(row.headroom)
    assert row.unstable_base_lr == (0.0, 0.01)
    assert (row.point, row.best_value) == (None, math.inf)
    assert row.verdict == "unstable"


def test_a_group_of_crashed_trials_is_no_evidence() -> None:
    trials = [trial(0.1, outcome="crashed")]
    [row] = summarize(trials)
    assert math.isnan(row.infeasible_fraction)
    assert row.verdict == "no evidence"
    assert boundary_checks(trials, MOMENTUM) == []


def test_on_a_tie_lr_star_is_the_smaller_one() -> None:
    assert summarize([trial(0.3, 0.1), trial(0.1, 0.1), trial(0.2, 0.1)])[0].lr_star == 0.1


def test_groups_are_ordered_by_batch_size_optimizer_and_scientific_values() -> None:
    trials = [
        trial(0.1, 0.1, batch_size=256),
        trial(0.1, 0.1, clip_norm=math.inf),
        trial(0.1, 0.1, clip_norm=10.0),
        trial(0.1, 0.1, optimizer="adam"),
    ]
    assert list(group_trials(trials)) == [
        Group(32, "adam"),
        Group(32, "momentum"),
        Group(256, "momentum"),
    ]
    assert [group.scientific for group in group_trials(trials, ["clip_norm"])] == [
        (("clip_norm", math.inf),),
        (("clip_norm", 10.0),),
        (("clip_norm", math.inf),),
        (("clip_norm", math.inf),),
    ]


def test_a_hyperparameter_is_varied_if_it_differs_within_one_optimizer() -> None:
    trials = [
        trial(0.1, 0.1, settings={"momentum": 0.9}, seed=1),
        trial(0.2, 0.1, settings={"momentum": 0.9}, batch_size=64),
        trial(0.2, 0.1, settings={"momentum": 0.0}, optimizer="rmsprop"),
    ]
    assert varied_names(trials) == ["optimizer", "base_lr"]


def test_the_best_few_are_three_or_a_tenth() -> None:
    assert [len(best_few([trial(0.1 + i, i) for i in range(n)])) for n in (2, 10, 64)] == [2, 3, 7]


def test_just_above_what_is_as_good_are_the_next_three_learning_rates() -> None:
    above = just_above(
        [trial(0.1, 0.1), trial(0.05, 0.2), trial(0.15, outcome="crashed")]
        + [
            trial(lr, outcome="diverged", number=i)
            for i, lr in enumerate((0.5, 0.4, 0.3, 0.2, 0.2))
        ]
    )
    assert [(t.point.base_lr, t.point.number) for t in above] == [
        (0.2, 3),
        (0.2, 4),
        (0.3, 2),
        (0.4, 1),
    ]
    assert just_above([trial(0.5, outcome="diverged")]) == []


def test_best_points_at_the_border_ask_for_a_wider_space() -> None:
    trials = [trial(lr, 1 / lr) for lr in np.logspace(-3, 1, 10)]
    [note] = boundary_checks(trials, MOMENTUM)
    assert note == BoundaryNote(
        Group(32, "momentum"),
        "base_lr",
        "high",
        "expand",
        10.0,
        "batch size 32, momentum: expand base_lr above 10: 1 of the 3 best trials lie in the "
        "outermost 10% of its range, the best at 10 (S4).",
    )
    assert boundary_checks(trials)[0].border == 10.0  # the tried range stands for the space
    assert summarize(trials)[0].verdict == "edge not reached"


def test_everything_infeasible_above_is_instability_not_a_boundary() -> None:
    trials = [trial(lr, 1 / lr) for lr in np.logspace(-3, 0, 10)]
    trials += [trial(2.0, outcome="diverged"), trial(1.8, outcome="diverged")]
    space = {"momentum": {"base_lr": (1e-3, 2.0, True)}}
    [note] = boundary_checks(trials, space)
    assert note.kind == "instability"
    assert "2 of the 2 trials at base_lr ≥ 1.8 are infeasible, which is 1.8 × the" in note.sentence
    assert "the best base LR, 1 (feasible up to 1)" in note.sentence
    [alone] = boundary_checks(trials[:-1], space)
    assert alone.kind == "expand"
    assert note.sentence.endswith("(R6, S4).")
    assert boundary_checks(figure_7a())[0].kind == "instability"


def test_one_good_trial_at_the_border_of_many_is_no_boundary() -> None:
    space = {"momentum": {"momentum": (0.0, 1.0, False)}}
    trials = [trial(0.1, m, settings={"momentum": m}) for m in (0.30, 0.40, 0.50, 0.60)]
    lucky = trial(0.1, 0.1, settings={"momentum": 0.99})
    unlucky = [trial(0.1, 0.9, settings={"momentum": m}) for m in (0.92, 0.95)]
    assert boundary_checks([*trials, lucky, *unlucky], space) == []
    assert [note.side for note in boundary_checks([*trials, lucky], space)] == ["high"]


def test_a_log_axis_must_begin_above_zero() -> None:
    with pytest.raises(ValueError, match="low > 0 must hold on a log axis"):
        boundary_checks([trial(0.1, 0.1)], {"momentum": {"base_lr": (0.0, 1.0, True)}})


@pytest.mark.parametrize(
    ("name", "low", "high", "sides"),
    [
        ("restarts", 0, 8, [None, "high"]),
        ("restarts", 1, 8, ["low", "high"]),
        ("decay_fraction", 0.1, 1.0, ["low", None]),
        ("momentum", 0.0, 0.9, [None, "high"]),
        ("weight_decay", 0.0, 0.1, [None, "high"]),
        ("epsilon", 1e-8, 1e-4, ["low", "high"]),
        ("width", 2, 8, ["low", "high"]),
        ("layers", 1, 8, [None, "high"]),
        ("dropout", 0.0, 1.0, [None, None]),
    ],
)
def test_a_border_beyond_which_there_is_no_value_is_none_to_expand(
    name: str, low: float, high: float, sides: list[str | None]
) -> None:
    space = {"momentum": {name: (low, high, False)}}
    for best, side in zip((low, high), sides, strict=True):
        middle = [low + share * (high - low) for share in (0.3, 0.5, 0.7)]
        trials = [trial(0.1, abs(value - best), settings={name: value}) for value in middle]
        trials.append(trial(0.1, 0.0, settings={name: best}))
        notes = boundary_checks(trials, space)
        assert [note.side for note in notes if note.axis == name] == [side] * (side is not None)
