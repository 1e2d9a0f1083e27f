"""The rule errs no more often than it says, and what it reports is what it was given."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tunewright.search.comparison import (
    ALPHA,
    decide,
    evidence,
    fewest_seeds,
    holm,
    settles,
)

BETTER = [0.10, 0.11, 0.12, 0.10, 0.09, 0.11]
WORSE = [0.20, 0.22, 0.19, 0.21, 0.20, 0.23]


def test_sides_exchanged_are_evidence_exchanged():
    one, other = evidence(BETTER, WORSE), evidence(WORSE, BETTER)
    assert one.gain == -other.gain == pytest.approx(0.62 / 6)
    assert (one.p_better, one.p_worse) == (other.p_worse, other.p_better) == (1 / 64, 1.0)
    assert (one.candidate_spread, one.baseline_spread) == (other.baseline_spread, other.candidate_spread)
    assert decide([one]) == ["adopt"]
    assert decide([other]) == ["keep baseline"]


def test_a_recipe_against_itself_on_the_same_seeds_is_no_evidence():
    one = evidence(BETTER, BETTER)
    assert (one.gain, one.gain_interval, one.better_fraction) == (0.0, (0.0, 0.0), 0.0)
    assert decide([one]) == ["not enough evidence"]
    assert settles(one, 1) == math.inf


def test_the_sign_flip_p_is_the_share_of_sign_patterns():
    gains = np.array([0.3, -0.1, 0.2, 0.05])
    patterns = np.array(list(itertools.product([1, -1], repeat=4)))
    share = np.mean(patterns @ gains >= gains.sum() - 1e-12)
    assert evidence(-gains, np.zeros(4)).p_better == share


@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "exponential"])
def test_a_true_null_is_adopted_in_at_most_the_stated_share_of_comparisons(draw):
    rng = np.random.default_rng(0)
    comparisons = 200
    checkpoints = [
        decide([evidence(sample[:-1], sample[-1:])]) for sample in getattr(rng, draw)(size=(comparisons, 20))
    ]
    pairs = [
        decide([evidence(*sample)])
        for sample in getattr(rng, draw)(size=(comparisons // 2, 2, 6))  # sign flips: exact, and slower
    ]
    for decisions, count in ((checkpoints, comparisons), (pairs, comparisons // 2)):
        adopted = sum(decision == ["adopt"] for decision in decisions)
        assert adopted <= stats.binom.ppf(0.999, count, ALPHA)


def test_one_checkpoint_needs_19_runs_all_better_and_claims_no_variance():
    enough, few = evidence(np.linspace(0.1, 0.2, 19), [0.3]), evidence(np.linspace(0.1, 0.2, 18), [0.3])
    assert math.isnan(enough.baseline_spread)
    assert not enough.paired
    assert (enough.p_better, few.p_better) == (1 / 20, 1 / 19)
    assert decide([enough]) == ["adopt"]
    assert decide([few]) == ["not enough evidence"]
    assert settles(few, 1) == fewest_seeds(False, 1) == 19


@pytest.mark.parametrize("candidates", range(1, 9))
@pytest.mark.parametrize("paired", [True, False])
def test_the_fewest_seeds_can_decide_and_one_fewer_cannot(candidates, paired):
    fewest = fewest_seeds(paired, candidates)
    for seeds, decision in ((fewest, "adopt"), (fewest - 1, "not enough evidence")):
        baseline = np.full(seeds if paired else 1, 9.0)
        clear, none = evidence(np.arange(seeds) / seeds, baseline), evidence(np.full(seeds, 9.0), baseline)
        assert decide([clear, *[none] * (candidates - 1)])[0] == decision


def test_with_one_candidate_more_the_same_evidence_counts_for_less():
    one, none = evidence(BETTER[:5], WORSE[:5]), evidence(BETTER, BETTER)
    assert decide([one]) == ["adopt"]
    assert decide([one, none]) == ["not enough evidence"] * 2
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_recommended_number_of_seeds_decides_as_often_as_promised():
    rng = np.random.default_rng(1)
    gains = stats.zscore([0.0, 1.0, -0.5, 1.5], ddof=1) + 0.5
    assert settles(evidence(-gains, np.zeros(4)), 1) == 73  # 27 if gain and spread were known to be those of 4 pairs
    found = []
    while len(found) < 60:
        pilot = rng.normal(0.5, 1.0, 6)
        one = evidence(-pilot, np.zeros(6))
        if decide([one]) == ["not enough evidence"]:
            pairs = int(min(settles(one, 1), 2000))
            found.append(decide([evidence(-rng.normal(0.5, 1.0, pairs), np.zeros(pairs))]) == ["adopt"])
    assert sum(found) >= stats.binom.ppf(0.001, len(found), 0.8)


def test_a_checkpoint_in_the_midst_of_the_candidates_values_is_never_settled():
    assert settles(evidence([0.1, 0.2, 0.3, 0.4], [0.25]), 1) == math.inf


@pytest.mark.parametrize(
    ("candidate", "baseline"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, math.inf], [1.0, 1.0])]
)
def test_values_that_cannot_be_compared_are_refused(candidate, baseline):
    with pytest.raises(ValueError, match=r"needed|finite"):
        evidence(candidate, baseline)
