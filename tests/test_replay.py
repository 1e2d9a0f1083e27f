"""Replayed studies: what is looked up in a table is what training gives, and what it costs."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.study.study import load_study
from tunewright.search.trial import Point

sys.path.insert(0, str(Path(__file__).with_name("benchmarks")))
import lookup
import replay

SEEDS = 2
WORTH = np.array([[0.3, 0.5], [0.2, 0.2], [0.1, 0.9]])  # [base LRs 0.01, 0.1, 1, seeds]


def small(
    worth: np.ndarray = WORTH,
    half: np.ndarray | None = None,
    failed: tuple[int, int] | None = None,
) -> lookup.Table:
    """Base LRs 0.01, 0.1, …, with some seeds each, trained for ten updates.

    What they have reached after five is `half`. One training may have failed then.
    """
    outcome, done = np.zeros(worth.shape, int), np.full(worth.shape, 10)
    if failed:
        outcome[failed], done[failed] = lookup.OUTCOMES.index("diverged"), 5
    base_lrs = tuple(10.0 ** (place - 2) for place in range(len(worth)))
    return lookup.Table(
        name="small",
        axes={"base_lr": base_lrs},
        best_value=worth,
        outcome=outcome,
        onset=np.where(outcome, 5.0, math.inf),
        done=done,
        values=np.stack([np.ones(worth.shape), worth if half is None else half, worth], axis=-1),
        eval_step=np.array([0, 5, 10]),
        study={
            "workload": "nowhere:to_be_found",
            "objective": "loss",
            "max_train_steps": 10,
            "evaluations": 2,
            "batch_sizes": [1],
            "sampler": "grid",
            "space": {"optimizer": {"momentum": {"base_lr": list(base_lrs)}}},
        },
    )


@pytest.fixture
def plan(monkeypatch) -> replay.Plan:
    monkeypatch.setitem(replay.SEEDS, "both", SEEDS)
    return replay.Plan("grid", "both")


def test_a_study_chooses_by_the_mean_of_its_seeds_and_pays_for_each_of_them(plan):
    [choice] = replay.replay(plan, small(), None, seed=0)
    assert choice.place == (1,)
    assert choice.truth == pytest.approx(0.2)
    assert choice.better == 0
    assert choice.spent == 60


def test_with_one_seed_it_takes_what_was_lucky(monkeypatch):
    luck = {seed: np.random.default_rng(seed).permutation(SEEDS)[0] for seed in range(10)}
    for seed, column in luck.items():
        [choice] = replay.replay(replay.Plan("grid", "1 for all"), small(), None, seed)
        assert choice.spent == 30
        assert choice.place == ((2,) if column == 0 else (1,))
        assert choice.better == pytest.approx(200 / 3 if column == 0 else 0)
    assert set(luck.values()) == {0, 1}


def test_what_fails_with_one_seed_is_worth_nothing_and_costs_what_was_trained(plan):
    table = small(failed=(1, 0))
    assert table.truth.tolist() == [0.4, math.inf, 0.5]
    [choice] = replay.replay(plan, table, None, seed=0)
    assert choice.place == (0,)
    assert choice.spent == 55
    assert table.better(math.inf, 1) == 1
    assert table.better(0.5, 1) == 0.5


def test_a_cut_saves_what_it_drops_and_loses_what_is_best_only_at_the_end():
    worth = np.array([[0.5], [0.4], [0.3], [0.6], [0.7], [0.1]])
    half = np.array([[0.6], [0.5], [0.4], [0.7], [0.8], [0.9]])
    table = small(worth, half, failed=(4, 0))
    [whole] = replay.replay(replay.Plan("grid", "1 for all"), table, None, seed=0)
    [cut] = replay.replay(replay.Plan("grid", "1 for all", "at 50 %"), table, None, seed=0)
    assert (whole.place, whole.spent) == ((5,), 55)
    assert (cut.place, cut.spent) == ((2,), 45)
    assert cut.better == pytest.approx(20)


def test_a_point_is_the_nearest_configuration_by_the_logarithm():
    def place(base_lr: float) -> tuple[int, ...]:
        return small().place(Point(0, 1, "momentum", base_lr))

    assert [place(base_lr) for base_lr in (1e-9, 0.031, 0.032, 0.31, 0.32, 9.0)] == [
        *[(0,)] * 2,
        *[(1,)] * 2,
        *[(2,)] * 2,
    ]


def test_the_table_of_the_residual_mlp_holds_what_training_gives(tmp_path):
    """At a good base LR, and at one that breaks."""
    table = lookup.residual_mlp()
    grid = load_study(lookup.GRID)
    assert table.best_value.shape == (33, 2, 2, 6, grid.seeds)
    base_lrs = [table.axes["base_lr"][place] for place in (16, 32)]
    space = {"optimizer": {"momentum": {"base_lr": base_lrs, "momentum": 0.5}}}
    study = grid.with_(name="two", space=space, seeds=SEEDS)
    trained = run_study(study, results=tmp_path, backend=InProcess(), progress=False)
    looked_up = [table.trial(one.point, one.point.seed, study.objective) for one in trained]
    assert [one.feasible for one in trained] == [True, True, False, False]
    for one, other in zip(looked_up, trained, strict=True):
        assert one.verdict.outcome == other.verdict.outcome
        assert len(one.curve.loss) == len(other.curve.loss)
        if other.feasible:
            assert one.best_value == pytest.approx(other.best_value, rel=1e-3)
            assert one.curve.eval_step.tolist() == other.curve.eval_step.tolist()
            values = other.curve.metrics[study.objective]
            assert one.curve.metrics[study.objective] == pytest.approx(values, rel=1e-3)
