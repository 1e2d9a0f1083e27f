"""Is the candidate better than the baseline? Statistics of retrained values, and the one rule that decides (S9).

A value is the objective at a run's best checkpoint; lower is better. gain = baseline − candidate: above 0 the
candidate is better. Two questions are told apart by what is known of the baseline:

- *Paired*: both sides were retrained, run i of each with seed i. p is that of the sign-flip permutation test of the
  mean gain: if the two recipes were equally good, every gain would be as likely with the other sign. Exact wherever
  gains are then symmetric about 0, normal or not: over all sign patterns up to 13 seeds, over 9,999 random ones beyond.
- *Against one checkpoint*: the baseline is a single value, and its retrain variance is unknown. p is the share of all
  N + 1 runs that are at least as bad as the baseline: were the checkpoint one more run of the candidate, every
  place among the N + 1 would be equally likely. Exact, and nothing is assumed of the unknown variance;
  the price is that no fewer than 1/ALPHA − 1 = 19 seeds can decide.

The rule, `decide`: **adopt** if the test says better, **keep baseline** if it says worse, otherwise **not enough
evidence**, each with p corrected by Holm's method for the number of candidates. Among any number of candidates
that are no better than the baseline, one is adopted with probability ALPHA at most, if the number of
seeds was fixed beforehand. Looking, adding seeds and looking again makes it more.

Sources: Tuning Playbook (S9); Bouthillier et al. 2021, "Accounting for variance in machine learning
benchmarks" (paired runs, P(A > B)); Phipson & Smyth 2010 (sampled permutations); Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .best_of import BestOf
from .trial import Point

ALPHA = 0.05  # error rate of each kind: of adopting what is no better, of rejecting what is no worse
LIMIT = ALPHA * (1 + 1e-9)  # p is a multiple of 1/(N + 1) or 1/2^N, and may equal ALPHA but for rounding
CONFIDENCE = 0.95  # of intervals
POWER = 0.8  # chance of a decision with the number of seeds that `settles` recommends
RESAMPLES = 9_999  # of a bootstrap or of sign patterns; with the one observed, p has steps of 1/10,000
MOST_SEEDS = 10_000  # more than this is no recommendation
DELTA = "delta = best value − that of the baseline checkpoint: below 0 is better. A gain has the other sign."

Decision = Literal["adopt", "keep baseline", "not enough evidence"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """What the retrained values of one candidate say, before any correction for other candidates.

    gain                 mean of baseline − candidate; its bootstrap interval (percentile); their standard deviation
    better_fraction      share of runs in which the candidate is strictly better; Clopper-Pearson interval
    candidate_spread, baseline_spread   standard deviation over seeds; nan for a single checkpoint
    p_better, p_worse    of the two one-sided tests
    """

    paired: bool
    seeds: int
    gain: float
    gain_interval: Interval
    gain_spread: float
    better_fraction: float
    better_interval: Interval
    candidate_spread: float
    baseline_spread: float
    p_better: float
    p_worse: float


def evidence(candidate: ArrayLike, baseline: ArrayLike) -> Evidence:
    """Compare values [N] of a candidate with those of the baseline: [N], paired, or [1], a checkpoint.

    Raises ValueError unless N ≥ 2, every value is finite and the shapes are these.
    """
    candidate_N, baseline_N = np.asarray(candidate, np.float64), np.asarray(baseline, np.float64)
    paired, seeds = len(baseline_N) > 1, len(candidate_N)
    if seeds < 2 or baseline_N.shape not in ((seeds,), (1,)):
        raise ValueError(f"N ≥ 2 values against N or 1 are needed, got {candidate_N.shape} and {baseline_N.shape}")
    if not (np.isfinite(candidate_N).all() and np.isfinite(baseline_N).all()):
        raise ValueError("values must be finite")
    gain_N = baseline_N - candidate_N
    wins = int((gain_N > 0).sum())
    test = _sign_flip if paired else _place_of_one
    return Evidence(
        paired=paired,
        seeds=seeds,
        gain=float(gain_N.mean()),
        gain_interval=_bootstrap(gain_N),
        gain_spread=float(gain_N.std(ddof=1)),
        better_fraction=wins / seeds,
        better_interval=_plain(stats.binomtest(wins, seeds).proportion_ci(CONFIDENCE, method="exact")),
        candidate_spread=float(candidate_N.std(ddof=1)),
        baseline_spread=float(baseline_N.std(ddof=1)) if paired else math.nan,
        p_better=test(gain_N),
        p_worse=test(-gain_N),
    )


def _sign_flip(gain_N: NDArray[np.float64]) -> float:
    """P(mean gain at least this large) if every gain may as well have the other sign."""
    result = stats.permutation_test(
        (gain_N, np.zeros_like(gain_N)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _place_of_one(gain_N: NDArray[np.float64]) -> float:
    """P(as few of N runs at least as bad as the checkpoint) if it is one run among N + 1 alike."""
    return float((1 + (gain_N <= 0).sum()) / (1 + len(gain_N)))


def _bootstrap(values_N: NDArray[np.float64]) -> Interval:
    result = stats.bootstrap(
        (values_N,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",  # BCa is undefined for equal values, and no better for the mean of so few
        rng=np.random.default_rng(0),
    )
    return _plain(result.confidence_interval)


def _plain(interval: Sequence[float]) -> Interval:
    low, high = interval
    return float(low), float(high)


def decide(found: Sequence[Evidence]) -> list[Decision]:
    """The decision about each candidate: the one rule, as stated at the top of this file."""
    better = holm([one.p_better for one in found])
    worse = holm([one.p_worse for one in found])
    return [
        "adopt" if up <= LIMIT else "keep baseline" if down <= LIMIT else "not enough evidence"
        for up, down in zip(better, worse, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number m: the k-th smallest, k = 0, 1, …, times m − k, none below an earlier one."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.maximum.accumulate(np.minimum(np.take(p_values, order) * factors, 1.0))
    result = np.empty(len(p_values))
    result[order] = corrected
    return [float(p) for p in result]


def fewest_seeds(paired: bool, candidates: int) -> int:
    """The smallest N with which the rule can decide at all, whatever the values are."""
    return math.ceil(math.log2(candidates / LIMIT)) if paired else math.ceil(candidates / LIMIT) - 1


def settles(one: Evidence, candidates: int) -> float:
    """The number of seeds that would settle an undecided comparison, if they are like those seen; inf: none would.

    Paired, with α = ALPHA / candidates, z the quantiles of the normal distribution and s the standard deviation of the
    gains:

        N = ((z_{1−α} + z_{POWER}) s / gain)² + z_{1−α}² / 2.

    Against a checkpoint, where the candidate's runs are on one side but for a share q: (1 + q N) / (N + 1) = α.
    Source: W. C. Guenther 1981 (the second term, for N small).
    """
    alpha, least = ALPHA / candidates, fewest_seeds(one.paired, candidates)
    if one.paired:
        z, z_power = stats.norm.ppf(1 - alpha), stats.norm.ppf(POWER)
        needed = ((z + z_power) * one.gain_spread / one.gain) ** 2 + z**2 / 2 if one.gain else math.inf
    else:
        minority = min(one.p_better, one.p_worse) * (one.seeds + 1) - 1
        share = minority / one.seeds
        needed = (1 - alpha) / (alpha - share) if share < alpha else math.inf
    return math.inf if needed > MOST_SEEDS else float(max(least, math.ceil(needed - 1e-9)))


# --- records: what comparison.json holds ---------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """The baseline's file, and its value of the objective."""

    path: str
    sha256: str
    value: float


@dataclass(frozen=True)
class Side:
    """One side: its point, what finding it took, and its runs with fresh seeds.

    trials, space, search_seconds   of the search that the point is the best of: configurations tried; ranges in words;
                                    wall time of all trials together
    max_train_steps, total_steps    updates without and with a prepended warmup (R11)
    values, infeasible              of each run, by seed, the value as Optuna is told it (an infeasible run is
                                    worth its untrained model); how many runs were infeasible
    run_seconds                     mean wall time of a run
    best_of                         best of n trials of the search; None for one trial, or for a sampler that
                                    learns, whose trials are not independent
    """

    name: str
    point: Point
    trials: int
    space: str
    search_seconds: float
    max_train_steps: int
    total_steps: int
    values: tuple[float, ...]
    infeasible: int
    run_seconds: float
    best_of: BestOf | None


@dataclass(frozen=True)
class Candidate:
    """A candidate, the evidence and the decision about it.

    seeds_needed   that would settle it if it is undecided; inf: none would
    equal_steps    against the baseline trained for as many updates as the candidate; None where they are equal
    """

    side: Side
    evidence: Evidence
    decision: Decision
    seeds_needed: float
    equal_steps: Evidence | None


@dataclass(frozen=True)
class Comparison:
    """Everything about a comparison. `baseline` is None where only its checkpoint is known.

    test   metrics on the test split of the final pair, by side; empty while undecided
    """

    objective: str
    first_seed: int
    seeds: int
    checkpoint: Checkpoint
    baseline: Side | None
    candidates: tuple[Candidate, ...]
    test: Mapping[str, Mapping[str, float]]
    warnings: tuple[str, ...]

    def delta(self, value: float) -> float:
        """value − that of the checkpoint: below 0 is better than the baseline; nan for what never had a value."""
        return value - self.checkpoint.value if math.isfinite(value) else math.nan

    @property
    def decision(self) -> Decision:
        """Adopt if any candidate is to be adopted; keep the baseline if it is better than each of them."""
        decisions = [candidate.decision for candidate in self.candidates]
        if "adopt" in decisions:
            return "adopt"
        return "keep baseline" if set(decisions) == {"keep baseline"} else "not enough evidence"

    @property
    def known_settings(self) -> dict[str, Any]:
        """Hyperparameters of the baseline, if its settings are known; of its seed they say nothing."""
        values = self.baseline.point.values if self.baseline else {}
        return {name: value for name, value in values.items() if name != "seed"}

    @property
    def sides(self) -> list[tuple[str, Side]]:
        """The retrained sides under the names they are shown by: the baseline first, if it was retrained."""
        baseline = [(f"baseline: {self.baseline.name}", self.baseline)] if self.baseline else []
        return baseline + [(one.side.name, one.side) for one in self.candidates]

    @property
    def final(self) -> Candidate:
        """The candidate of the final pair: of those decided like the whole, the one with the largest mean gain."""
        alike = [candidate for candidate in self.candidates if candidate.decision == self.decision]
        return max(alike, key=lambda candidate: candidate.evidence.gain)
