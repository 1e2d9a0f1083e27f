"""The procedure of `tunewright diagnose` on networks whose illness is known, trained here and now.

Each is followed as far as its illness shows: what is left out is answered as if the budget had
ended. The edges were measured once with many more seeds (benchmarks/edges.py --golden).
"""

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.illnesses import FIRST_PART, STUDIES, Followed, case_at, follow, trials_of

from tunewright.search.judge.verdict import EARLY_STEPS
from tunewright.search.procedure.group import EDGE_DECADES
from tunewright.search.trial import Trial

pytestmark = pytest.mark.slow

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "edges.json").read_text()
)["networks"]
# by which an interval of 95 % is widened: with 5 seeds, the next base LR may look like the edge
FACTOR = 1.5
# steps beyond the first part; the other remedies of no_norm are left out
REMEDIES = {
    "healthy": ("rerun",),
    "no_norm": ("look-plain", "look-clipping", "tune-plain", "tune-clipping", "clipping"),
}
# Beyond the edge training is chaotic: processors that round differently show different runs of it.
KINDS = {
    "healthy": {"none"},
    "no_norm": {"early"},
    "post_norm": {"early", "edge"},  # falls to chance, on some processors without a blow-up before
    "branch_out": {"early"},
    "spike": {"none"},  # at the same step whatever the base LR: that is the data
    "blow_up": {"unknown"},
    "nan": {"unknown"},
}


@functools.cache
def followed(name: str) -> Followed:
    return follow(STUDIES[name], (*FIRST_PART, *REMEDIES.get(name, ())))


def above(name: str) -> list[Trial]:
    """Trainings above the edge that was found, without a remedy, as seen from lr_star."""
    own = followed(name)
    first = own.found.edge.interval[1]
    trials = [
        trial for step in FIRST_PART for trial in own.at(step) if trial.point.base_lr >= first
    ]
    sweep = [*own.at("sweep"), *own.at("close")]
    return case_at(STUDIES[name], own.found.lr_star, sweep).judged(trials)


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_is_the_known_illness(name: str) -> None:
    found = followed(name).found
    assert found.kind in KINDS[name], found.summary


@pytest.mark.parametrize("name", GOLDEN)
def test_the_edge_is_where_many_more_trainings_place_it(name: str) -> None:
    edge = followed(name).found.edge
    low, high = edge.confidence_interval
    assert edge.decades <= EDGE_DECADES
    assert low / FACTOR <= GOLDEN[name]["unstable_base_lr"] <= high * FACTOR, edge


def test_for_a_healthy_network_no_remedy_is_looked_for() -> None:
    own = followed("healthy")
    assert not [step for step in own.trials if step.startswith(("warmup", "clipping", "tune"))]
    assert [remedy.name for remedy in own.found.remedies] == [own.found.adopted] == ["plain"]
    assert own.found.remedies[0].infeasible == 0
    assert own.found.headroom[0] >= 10  # of the best base LR: nothing diverges within reach


def test_without_normalization_the_numbers_overflow() -> None:
    assert {trial.verdict.outcome for trial in above("no_norm") if trial.verdict.infeasible} == {
        "non_finite"
    }


def test_without_normalization_clipping_raises_the_base_lr_that_can_be_used() -> None:
    own = followed("no_norm")
    (sentence,) = (one for one in own.step("clipping").sentences if one.startswith("Clipped at"))
    reached = re.search(r"reaches ([\d.]+) × unstable_base_lr", sentence)
    assert reached
    assert float(reached[1]) >= 1
    assert "tune-clipping" in own.trials


def test_post_norm_falls_to_chance() -> None:
    assert {trial.verdict.outcome for trial in above("post_norm") if trial.verdict.infeasible} == {
        "collapsed"
    }


def test_an_early_blow_up_is_found_where_training_recovers() -> None:
    own = followed("branch_out")
    recovered = [
        t
        for t in own.at("confirm") + own.at("probe")
        if t.feasible and t.verdict.instability == "early"
    ]
    assert recovered
    assert all(trial.verdict.onset_step <= EARLY_STEPS for trial in recovered)


def test_a_training_that_never_learned_has_collapsed_only_where_a_lower_base_lr_learns() -> None:
    """By itself it may be too slow; seen from lr_star, what lies below may be, what lies above may
    not.
    """
    golden, study = GOLDEN["post_norm"], STUDIES["post_norm"]
    edge = golden["unstable_base_lr"]
    case = case_at(study, golden["lr_star"], learned=golden["learned"])
    asked = case.ask("chance", [golden["lr_star"] / 1000, 2 * edge, 3 * edge], 5)
    too_low, too_high = [], []
    for trial in trials_of(asked):
        (too_low if trial.point.base_lr < golden["lr_star"] else too_high).append(trial)
    assert all(trial.feasible for trial in [*too_low, *case.judged(too_low)])
    assert any(trial.feasible for trial in too_high)
    assert not any(trial.feasible for trial in case.judged(too_high))


def test_a_spike_that_comes_at_the_same_step_at_every_base_lr_is_said_to_be_the_data() -> None:
    (sentence,) = (
        one for one in followed("spike").step("kind").sentences if "that is the data" in one
    )
    assert sentence.startswith("At step 80 the loss of ")


@pytest.mark.parametrize("name", ["blow_up", "nan"])
def test_what_goes_wrong_at_the_same_step_at_every_base_lr_is_not_blamed_on_the_base_lr(
    name: str,
) -> None:
    found = followed(name).found
    assert math.isnan(found.lr_star)
    assert "whatever the base LR" in found.summary
    assert re.search(r"at step 8\d ", found.summary)
