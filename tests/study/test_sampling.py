"""Points drawn = trials; every optimizer gets its share; the same points every time."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from examples import parse

from tunewright.search.rules.hyperparameters import by_name
from tunewright.search.study.adaptive import check_learners, propose
from tunewright.search.study.samplers import SAMPLERS, Sampler
from tunewright.search.study.sampling import ROUND, next_points, plan, shares, some_points
from tunewright.search.trial import Told, group_of


@pytest.mark.parametrize("sampler", ["halton", "sobol", "random"])
def test_points_drawn_equal_trials_and_every_group_gets_its_share(sampler):
    points = plan(parse(sampler=sampler, trials=15))
    assert Counter(p.batch_size for p in points) == {32: 15, 256: 15}
    counts = Counter((p.batch_size, p.optimizer) for p in points)
    assert set(counts.values()) == {7, 8}
    assert [p.number for p in points if p.batch_size == 32] == list(range(15))


@pytest.mark.parametrize("sampler", ["halton", "grid"])
def test_shares_count_the_configurations_that_are_planned(sampler):
    base_lr = {"low": 0.1, "high": 1.0, "points": 4}
    trials = ... if sampler == "grid" else 15
    study = parse(
        sampler=sampler,
        trials=trials,
        seeds=2,
        space__optimizer__momentum__base_lr=base_lr,
        space__optimizer__adam__base_lr=base_lr,
        workload_args={"depth": [1, 2]},
    )
    planned = Counter(
        group_of(p, study.scientific_names) for p in plan(study) if p.batch_size == 32
    )
    assert {group: 2 * share for group, share in shares(study, 32).items()} == planned


@pytest.mark.parametrize("sampler", ["halton", "sobol", "random"])
def test_the_plan_is_the_same_on_every_call_and_differs_by_seed_and_batch_size(sampler):
    assert plan(parse(sampler=sampler)) == plan(parse(sampler=sampler))
    lrs = {seed: [p.base_lr for p in plan(parse(sampler=sampler, seed=seed))] for seed in (0, 1)}
    assert not set(lrs[0]) & set(lrs[1])
    assert len(set(lrs[0])) == len(lrs[0])


def test_more_trials_keep_the_points_there_were():
    few, more = plan(parse(trials=9)), plan(parse(trials=40))
    assert [p for p in more if p.number < 9] == few


def test_log_axes_are_sampled_log_and_within_bounds():
    lrs = [math.log10(p.base_lr) for p in plan(parse(trials=200)) if p.optimizer == "momentum"]
    assert min(lrs) >= -3
    assert max(lrs) <= 1
    assert np.mean(lrs) == pytest.approx(-1, abs=0.1)  # uniform in log10 on [-3, 1]
    assert np.std(lrs) == pytest.approx(4 / math.sqrt(12), abs=0.05)


def test_quasi_random_points_fill_the_square_more_evenly_than_random_ones():
    from scipy.stats import qmc

    def discrepancy(sampler):
        space = {"low": 0.1, "high": 0.9}
        study = parse(
            sampler=sampler,
            trials=64,
            space__clip_norm=space,
            space__optimizer__momentum__momentum=space,
            space__optimizer__adam=...,
            space__warmup_steps=0,
        )
        points = [p for p in plan(study) if p.batch_size == 32]
        return qmc.discrepancy(
            [[(p.clip_norm - 0.1) / 0.8, (p.settings["momentum"] - 0.1) / 0.8] for p in points]
        )

    assert discrepancy("halton") < 0.5 * discrepancy("random")
    assert discrepancy("sobol") < 0.5 * discrepancy("random")


def test_values_of_a_list_are_drawn_equally_often():
    counts = Counter(p.clip_norm for p in plan(parse(trials=100)))
    assert set(counts) == {math.inf, 1.0}
    assert min(counts.values()) >= 90


def test_grid_is_the_product_of_all_axes():
    study = parse(
        sampler="grid",
        trials=...,
        space__optimizer__adam__base_lr={"low": 1e-4, "high": 1e-1, "log": True, "points": 4},
        space__optimizer__momentum__base_lr=[0.1, 0.2],
    )
    points = [p for p in plan(study) if p.batch_size == 32]
    # adam: 4 base_lr × 2 clip_norm; momentum: 2 × 3 warmups × 2
    assert len(points) == 4 * 2 + 2 * 3 * 2
    adam = sorted({p.base_lr for p in points if p.optimizer == "adam"})
    np.testing.assert_allclose(adam, [1e-4, 1e-3, 1e-2, 1e-1])


def test_scientific_values_reach_the_points():
    study = parse(scientific=["clip_norm"], workload_args={"depth": [2, 4], "width": 8}, trials=16)
    points = [p for p in plan(study) if p.batch_size == 32]
    assert Counter((p.clip_norm, p.workload_args["depth"]) for p in points) == {
        (c, d): 4 for c in (math.inf, 1.0) for d in (2, 4)
    }
    assert all(p.workload_args["width"] == 8 for p in points)


def grid(**changes):
    return parse(
        sampler="grid", trials=..., space__optimizer={"adam": {"base_lr": [0.1, 0.2]}}, **changes
    )


@pytest.mark.parametrize("study", [parse, grid])
def test_every_configuration_is_trained_with_every_seed(study):
    once, thrice = plan(study(seed=5)), plan(study(seed=5, seeds=3))
    assert [p.seed for p in thrice] == [5, 6, 7] * len(once)
    assert [replace(p, number=p.number // 3, seed=5) for p in thrice[::3]] == once
    assert [(p.batch_size, p.number) for p in thrice] == [
        (p.batch_size, 3 * p.number + i) for p in once for i in range(3)
    ]
    assert len({p.configuration for p in thrice}) == len({p.configuration for p in once})


def test_more_trials_keep_the_points_there_were_with_all_their_seeds():
    few, more = plan(parse(trials=9, seeds=3)), plan(parse(trials=40, seeds=3))
    assert [p for p in more if p.number < 27] == few


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_an_adaptive_round_waits_for_every_seed_and_learns_from_their_mean(sampler):
    study = parse(
        sampler=sampler, trials=ROUND + 4, seeds=2, batch_sizes=[32], space__optimizer__adam=...
    )

    def told(points, noise):
        return [
            Told(p, round(8 * p.base_lr) + noise * (1, -1)[p.seed], diverged=-1.0) for p in points
        ]

    first = next_points(study, [])
    assert [p.seed for p in first] == [0, 1] * ROUND
    assert next_points(study, told(first, 0.0)[:-1]) == first
    every = next_points(study, told(first, 0.0))
    assert [p.number for p in every] == list(range(2 * study.trials))
    assert every == next_points(study, told(first, noise=0.5))


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_adaptive_samplers_propose_in_rounds_that_depend_on_results_alone(sampler):
    study = parse(sampler=sampler, trials=2 * (ROUND + 4), batch_sizes=[32])
    first = next_points(study, [])
    assert len(first) == 2 * ROUND
    told = [Told(p, value=math.log10(p.base_lr) ** 2, diverged=-1.0) for p in first]
    assert next_points(study, told[1:])[: 2 * ROUND] != []
    # the momentum group lacks nothing, the adam group one point
    half = next_points(study, told[:-1])
    assert len(half) == ROUND + 4 + ROUND
    every = next_points(study, told)
    assert len(every) == study.trials
    assert every == next_points(study, told[::-1])
    assert len({str(p.values) for p in every}) == study.trials


def test_some_points_of_a_plan_are_its_own_and_leave_no_value_of_a_grid_out():
    study = parse(trials=50)
    first = [point for point in plan(study) if point.batch_size == 32][:10]
    assert [point for point in some_points(study, 20) if point.batch_size == 32] == first
    assert {point.optimizer for point in some_points(study, 1)} == {"momentum", "adam"}
    axes = {
        "space__optimizer__adam__base_lr": [i / 100 for i in range(1, 21)],
        "space__optimizer__momentum": ...,
    }
    grid = parse(
        sampler="grid", trials=..., space__clip_norm=[1.0, 2.0, 3.0], space__warmup_steps=0, **axes
    )
    every = {point.configuration for point in plan(grid)}
    assert len(every) == 2 * 20 * 3
    some = some_points(grid, 24)
    assert {point.configuration for point in some} < every
    assert {point.clip_norm for point in some} == {1.0, 2.0, 3.0}
    assert {point.configuration for point in some_points(grid, 1000)} == every


def test_an_unknown_sampler_is_an_error_never_another_one():
    study = parse().model_copy(update={"sampler": "simplex"})
    with pytest.raises(ValueError, match=r"sampler must be one of halton, .*; got 'simplex'"):
        plan(study)


SHAPED = {
    "space__decay": ["constant", "wsd", "cosine_restarts"],
    "space__decay_fraction": {"low": 0.1, "high": 0.5, "points": 2},
    "space__restarts": [0, 1, 3],
    "scientific": ["decay"],
    "space__optimizer__adam": ...,
    "space__optimizer__momentum__base_lr": [0.1, 0.2],
    "batch_sizes": [32],
}


@pytest.mark.parametrize("sampler", ["halton", "sobol", "random", "tpe", "gp"])
def test_each_group_of_a_decay_varies_the_settings_of_its_own_and_has_no_other(sampler):
    points = next_points(parse(sampler=sampler, trials=24, **SHAPED), [])
    settings = {
        decay: [p.decay_settings for p in points if p.decay == decay]
        for decay in ("constant", "wsd", "cosine_restarts")
    }
    assert settings["constant"] == [{}] * 8
    assert len({one["decay_fraction"] for one in settings["wsd"]}) == 8
    assert {one["restarts"] for one in settings["cosine_restarts"]} == {0, 1, 3}
    assert all(isinstance(one["restarts"], int) for one in settings["cosine_restarts"])
    assert all(len(p.decay_settings) <= 1 and not p.settings for p in points)


def test_a_grid_has_the_settings_of_each_decay_and_counts_them():
    study = parse(sampler="grid", trials=..., **SHAPED)
    points = plan(study)
    # base_lr × warmup_steps × clip_norm, times the settings of constant, wsd, cosine_restarts
    assert len(points) == study.planned_trials() == 2 * 3 * 2 * (1 + 2 + 3)
    assert len({p.configuration for p in points}) == len(points)


def test_a_fixed_setting_is_of_the_points_of_its_decay_alone():
    axes = {"space__decay": ["constant", "wsd"], "space__decay_fraction": 0.1}
    points = plan(parse(trials=40, **axes))
    found = {(p.decay, p.values.get("decay_fraction")) for p in points}
    assert found == {("constant", None), ("wsd", 0.1)}
    grid = parse(sampler="grid", trials=..., space__optimizer={"sgd": {"base_lr": 0.1}}, **axes)
    assert len(plan(grid)) == grid.planned_trials()


def test_settings_are_learned_from_by_adaptive_samplers():
    axes = {
        **{"space__decay": "wsd", "space__decay_fraction": {"low": 0.05, "high": 1.0}},
        **{"space__clip_norm": 1.0, "space__optimizer__momentum__base_lr": 0.1},
    }
    study = parse(sampler="tpe", trials=40, batch_sizes=[32], space__optimizer__adam=..., **axes)
    told = []
    for _ in range(5):
        new = [p for p in next_points(study, told) if p.number >= len(told)]
        told += [Told(p, abs(p.decay_settings["decay_fraction"] - 0.8), diverged=-1.0) for p in new]
    early, late = ([one.value for one in told[part]] for part in (slice(8), slice(24, 40)))
    assert np.mean(late) < np.mean(early) / 2


def test_a_row_is_all_that_a_sampler_takes(monkeypatch):
    middle = Sampler("middle", lambda count, axes, rng: np.full((count, axes), 0.5))
    monkeypatch.setitem(SAMPLERS, "middle", middle)
    points = plan(parse(space__clip_norm=1.0).model_copy(update={"sampler": "middle"}))
    assert {round(math.log10(p.base_lr), 6) for p in points} == {-1.0, -3.0}
    middle = Sampler("middle", SAMPLERS["sobol"].draw, learner=SAMPLERS["tpe"].learner)
    monkeypatch.setitem(SAMPLERS, "middle", middle)
    study = parse(trials=4 * ROUND, batch_sizes=[32]).model_copy(update={"sampler": "middle"})
    first = next_points(study, [])
    assert len(first) == 2 * ROUND
    assert len(next_points(study, [Told(p, p.base_lr, -1.0) for p in first])) == 4 * ROUND


def test_an_incomplete_sampler_is_refused_by_name():
    with pytest.raises(TypeError, match="sampler 'gp': a learner needs draw, for its first round"):
        replace(SAMPLERS["gp"], draw=None)
    with pytest.raises(TypeError, match="sampler 'gp': two rows have this name"):
        by_name([SAMPLERS["gp"], SAMPLERS["gp"]])
    with pytest.raises(TypeError, match="sampler 'gp': its learner 'Gp' is none of Optuna's"):
        check_learners([replace(SAMPLERS["gp"], learner="Gp")])


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda count, axes, rng: rng.random((count - 1, axes)), "for 5 points of 2 axes"),
        (lambda count, axes, rng: rng.random(count), "for 5 points of 2 axes"),
        (lambda count, axes, rng: np.ones((count, axes)), r"outside of \[0, 1\)"),
    ],
)
def test_a_sampler_that_draws_anything_but_points_is_told(draw, reason):
    with pytest.raises(ValueError, match=rf"sampler 'odd' drew .*{reason}"):
        Sampler("odd", draw).sequence(5, 2, np.random.default_rng(0))


def test_a_sampler_without_what_is_asked_of_it_is_an_error_never_another_one():
    with pytest.raises(ValueError, match="sampler 'grid' has no sequence"):
        SAMPLERS["grid"].sequence(5, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="sampler 'sobol' learns nothing"):
        propose(parse(sampler="sobol"), {}, [], 1, 0)
