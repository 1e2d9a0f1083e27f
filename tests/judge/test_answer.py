"""The answer per batch size: which configuration wins, what is as good, which word its edge has."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tunewright.search.judge.analysis import Group, summarize
from tunewright.search.judge.answer import answers, with_diagnosis
from tunewright.search.judge.diagnosis import Diagnosis, Edge, GroupDiagnosis, Remedy
from tunewright.search.judge.stability_edge import Tried
from tunewright.search.trial import EMPTY_CURVE, Outcome, Point, Trial, Verdict


def trial(
    base_lr: float,
    value: float = 0.5,
    outcome: Outcome = "feasible",
    *,
    seed: int = 0,
    number: int = 0,
    batch_size: int = 32,
    optimizer: str = "momentum",
    maximize: bool = False,
) -> Trial:
    point = Point(number, batch_size, optimizer, base_lr, seed=seed)
    verdict = Verdict(outcome, "none", math.inf, "")
    sign = -1.0 if maximize else 1.0
    return Trial(point, verdict, EMPTY_CURVE, sign * value, 10, 0.9, 0.1, 0.0, 1.0, "", maximize)


def answers_of(trials: list[Trial], **options: object):
    return answers(trials, summarize(trials), **options)


def valley(rng: np.random.Generator, sigma: float, seeds: int = 1, **own: object) -> list[Trial]:
    """A parabola over base LRs with its bottom at 0.1, and noise between runs."""
    rates = np.logspace(-3, 1, 33)
    return [
        trial(
            rate, 0.1 + 0.2 * math.log10(rate / 0.1) ** 2 + sigma * rng.standard_normal(), **own,
            seed=seed, number=seeds * i + seed,
        )
        for i, rate in enumerate(rates)
        for seed in range(seeds)
    ]  # fmt: skip


def test_what_is_as_good_ends_below_the_first_infeasible_base_lr() -> None:
    trials = [trial(rate, value) for rate, value in ((0.05, 0.2), (0.1, 0.1), (0.2, 0.2))]
    trials += [trial(0.15, outcome="diverged"), trial(0.07, 0.12), trial(0.18, 0.11)]
    [answer] = answers_of(trials)
    assert answer.as_good[1] == 0.1
    assert answer.summary.unstable_base_lr == (0.1, 0.15)


def test_too_few_runs_say_nothing_of_the_noise() -> None:
    [answer] = answers_of([trial(0.1, 0.1), trial(0.2, 0.2), trial(0.4, outcome="diverged")])
    assert all(map(math.isnan, answer.as_good))
    assert answer.rivals == ()


@pytest.mark.parametrize("maximize", [False, True])
def test_the_best_group_wins_and_the_best_batch_size_comes_first(maximize: bool) -> None:
    rng = np.random.default_rng(3)
    trials = valley(rng, 0.01, maximize=maximize)
    near = [one.best_value + (-0.3 if maximize else 0.3) for one in trials]
    worse = [replace(one, best_value=value) for one, value in zip(trials, near, strict=True)]
    far = [replace(one, point=replace(one.point, optimizer="adam")) for one in worse]
    same = [replace(one, point=replace(one.point, optimizer="rmsprop")) for one in trials]
    other = [replace(one, point=replace(one.point, batch_size=64)) for one in worse]
    failed = trial(0.1, outcome="diverged", batch_size=128)
    found = answers_of([*other, *far, *same, *trials, failed])
    assert [one.batch_size for one in found] == [32, 64, 128]
    first, _, last = found
    assert first.summary.group == Group(32, "momentum")
    assert [row.group.optimizer for row in first.rivals] == ["rmsprop"]
    assert [row.group.optimizer for row in first.others] == ["rmsprop", "adam"]
    assert (last.verdict, last.point) == ("unstable", None)
    assert all(map(math.isnan, last.as_good))


def diagnosis(kind: str, edge: Edge, lr_star: float = 0.05) -> Diagnosis:
    group = GroupDiagnosis(
        Group(32, "momentum"), kind, lr_star, edge, (), (), (), "", "so it is", best_base_lr=0.1
    )
    return Diagnosis("one", "val_error", 5, 0, math.inf, (), (group,), {})


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("none", "stable"),
        ("early", "unstable"),
        ("mid_training", "unstable"),
        ("edge", "on the edge"),
        ("unknown", "on the edge"),  # the sweep's
    ],
)
def test_a_diagnosis_gives_lr_star_edge_and_verdict_of_its_group(kind: str, verdict: str) -> None:
    trials = [trial(0.1, 0.1), trial(0.2, 0.2), trial(0.3, outcome="diverged")]
    [row] = summarize(trials)
    edge = Edge((0.15, 0.2), (Tried(0.2, 3, 5),), 10)
    found = with_diagnosis(row, diagnosis(kind, edge))
    assert (found.lr_star, found.unstable_base_lr) == (0.05, (0.15, 0.2))
    assert (found.headroom, found.unstable_trials) == (pytest.approx(2.0), (3, 5))
    assert (found.verdict, found.diagnosed_with) == (verdict, 5)
    assert found.record()["diagnosed_with"] == 5
    assert "diagnosed_with" not in row.record()
    [other] = summarize([replace(one, point=replace(one.point, batch_size=64)) for one in trials])
    assert with_diagnosis(other, diagnosis(kind, edge)) == other
    assert with_diagnosis(row, None) == row


def test_without_an_edge_in_the_diagnosis_that_of_the_sweep_stays() -> None:
    [row] = summarize([trial(0.1, 0.1), trial(0.3, outcome="diverged")])
    found = with_diagnosis(row, diagnosis("none", Edge((0.1, math.inf), (), 0)))
    assert found.unstable_base_lr == row.unstable_base_lr


def test_with_diagnoses_the_best_of_what_they_adopted_comes_first() -> None:
    trials = [
        trial(rate, value, batch_size=batch_size)
        for batch_size, value in ((32, 0.1), (64, 0.2))
        for rate in (0.1, 0.2)
    ]
    groups = []
    for batch_size, values in ((32, (0.3, 0.3)), (64, (0.05, 0.05))):
        remedy = Remedy(
            "warmup", Point(0, batch_size, "momentum", 0.1), 100, 0.1, 1.0, 0.1, 0.0, 0.1, "t",
            "r", values,
        )  # fmt: skip
        edge = Edge((0.15, 0.2), (), 10)
        found = GroupDiagnosis(
            Group(batch_size, "momentum"), "early", 0.1, edge, (), (), (remedy,), "warmup", ""
        )
        groups.append(found)
    both = Diagnosis("one", "val_error", 5, 0, math.inf, (), tuple(groups), {})
    found = answers_of(trials, diagnosis=both)
    assert [(one.batch_size, one.value) for one in found] == [(64, 0.05), (32, 0.3)]
