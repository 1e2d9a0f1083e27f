"""The rule errs no more often than it says, and what it reports is what it was given."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from compared import comparison
from scipy import stats

from tunewright.search.judge.comparison import (
    ALPHA,
    CONFIDENCE,
    decide,
    evidence,
    failure_bound,
    failures_in_words,
    fewest_seeds,
    holm,
    runs_without_failure,
    settles,
    smallest_p,
)
from tunewright.search.show.tables import comparison_rows, interval_method
from tunewright.search.store.results import read_comparison

BETTER = [0.10, 0.11, 0.12, 0.10, 0.09, 0.11]
WORSE = [0.20, 0.22, 0.19, 0.21, 0.20, 0.23]


def test_sides_exchanged_are_evidence_exchanged():
    one, other = evidence(BETTER, WORSE), evidence(WORSE, BETTER)
    assert one.gain == -other.gain == pytest.approx(0.62 / 6)
    assert (one.p_better, one.p_worse) == (other.p_worse, other.p_better) == (1 / 64, 1.0)
    assert (one.candidate_spread, one.baseline_spread) == (
        other.baseline_spread,
        other.candidate_spread,
    )
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
        decide([evidence(sample[:-1], sample[-1:])])
        for sample in getattr(rng, draw)(size=(comparisons, 20))
    ]
    pairs = [
        decide([evidence(*sample)])
        # sign flips: exact, and slower
        for sample in getattr(rng, draw)(size=(comparisons // 2, 2, 6))
    ]
    for decisions, count in ((checkpoints, comparisons), (pairs, comparisons // 2)):
        adopted = sum(decision == ["adopt"] for decision in decisions)
        assert adopted <= stats.binom.ppf(0.999, count, ALPHA)


def test_one_checkpoint_needs_19_runs_all_better_and_claims_no_variance():
    enough, few = (
        evidence(np.linspace(0.1, 0.2, 19), [0.3]),
        evidence(np.linspace(0.1, 0.2, 18), [0.3]),
    )
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
        clear, none = (
            evidence(np.arange(seeds) / seeds, baseline),
            evidence(np.full(seeds, 9.0), baseline),
        )
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
    # 27 if gain and spread were known to be those of 4 pairs
    assert settles(evidence(-gains, np.zeros(4)), 1) == 73
    found = []
    while len(found) < 60:
        pilot = rng.normal(0.5, 1.0, 6)
        one = evidence(-pilot, np.zeros(6))
        if decide([one]) == ["not enough evidence"]:
            pairs = int(min(settles(one, 1), 2000))
            found.append(
                decide([evidence(-rng.normal(0.5, 1.0, pairs), np.zeros(pairs))]) == ["adopt"]
            )
    assert sum(found) >= stats.binom.ppf(0.001, len(found), 0.8)


def test_a_checkpoint_in_the_midst_of_the_candidates_values_is_never_settled():
    assert settles(evidence([0.1, 0.2, 0.3, 0.4], [0.25]), 1) == math.inf


@pytest.mark.parametrize(
    ("candidate", "baseline"),
    [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, math.inf], [1.0, 1.0])],
)
def test_values_that_cannot_be_compared_are_refused(candidate, baseline):
    with pytest.raises(ValueError, match=r"needed|finite"):
        evidence(candidate, baseline)


# --- what is promised beyond the decision ---------------------------------------------------------


@pytest.mark.parametrize("seeds", [5, 7])
def test_the_interval_of_the_mean_gain_holds_it_as_often_as_it_says(seeds):
    rng = np.random.default_rng(seeds)
    found = [
        evidence(gains, np.zeros(seeds)).gain_interval
        for gains in rng.standard_normal((800, seeds))
    ]
    held = sum(low <= 0 <= high for low, high in found)
    assert stats.binomtest(held, len(found), CONFIDENCE).pvalue > 0.001


def test_the_interval_is_students_and_says_so():
    gains = np.array([0.3, -0.1, 0.2, 0.05, 0.1])
    one = evidence(-gains, np.zeros(5))
    expected = stats.t.interval(CONFIDENCE, 4, loc=gains.mean(), scale=stats.sem(gains))
    assert one.gain_interval == pytest.approx(expected)
    assert one.interval_method == "Student's t"


@pytest.mark.parametrize(("runs", "bound"), [(5, 0.451), (7, 0.348), (10, 0.259), (29, 0.098)])
def test_without_a_failure_so_many_may_fail(runs, bound):
    assert (
        failure_bound(0, runs)
        == pytest.approx(1 - 0.05 ** (1 / runs))
        == pytest.approx(bound, abs=5e-4)
    )
    assert (
        failures_in_words(0, runs)
        == f"with {runs} seeds without a failure, up to {bound:.0%} may fail"
    )


def test_the_bound_of_the_failure_rate_is_too_low_in_a_twentieth_at_most():
    for rate in (0.05, 0.1, 0.3):
        chances = stats.binom.pmf(np.arange(8), 7, rate)
        too_low = sum(
            chance for failures, chance in enumerate(chances) if failure_bound(failures, 7) < rate
        )
        assert too_low <= 0.05


@pytest.mark.parametrize(("share", "runs"), [(0.1, 29), (0.05, 59), (0.5, 5)])
def test_as_many_runs_without_a_failure_bring_the_bound_below_a_share_and_one_fewer_does_not(
    share, runs
):
    assert runs_without_failure(share) == runs
    assert failure_bound(0, runs) <= share < failure_bound(0, runs - 1)


def test_every_decision_names_the_failure_rate_that_it_cannot_exclude():
    result = comparison([[0.1, 0.2, 0.15, 0.12, 0.11]], [0.3] * 5)
    assert result.failures == ["found 0: with 5 seeds without a failure, up to 45% may fail"]


def test_against_a_checkpoint_the_runs_seen_count_among_those_that_settle():
    one_worse = evidence([0.4, *np.linspace(0.1, 0.2, 37)], [0.3])
    assert settles(one_worse, 1) == 39


RESULTS = Path(__file__).parents[2] / "results"


def test_a_comparison_from_before_still_opens_and_its_intervals_are_called_what_they_are():
    result = read_comparison(RESULTS / "digits_mlp_baseline")
    assert interval_method(result) == "percentile bootstrap"
    assert [row["may fail"] for row in comparison_rows(result)] == ["", "", ""]
    assert len(result.failures) == 2


@pytest.mark.parametrize("seeds", [2, 5, 13, 14, 20])
def test_the_smallest_p_is_that_of_runs_of_which_every_one_is_better(seeds):
    better, worse = [0.1 + 0.001 * i for i in range(seeds)], [0.5] * seeds
    paired = evidence(better, worse).p_better
    assert paired == pytest.approx(smallest_p(True, seeds), rel=0.5 if seeds > 13 else 1e-9)
    assert paired >= smallest_p(True, seeds) * (1 - 1e-9)
    assert evidence(better, [0.5]).p_better == smallest_p(False, seeds)
