"""Is the candidate better than the baseline? The statistics, and the one rule that decides (S9).

A value is the objective at a run's best checkpoint. gain = baseline − candidate, or candidate −
baseline if the objective is maximized: above 0 the candidate is better. What is known of the
baseline decides between two tests:

- *Paired*: both sides were retrained, run i of each with seed i. p is that of the sign-flip
  permutation test of the mean gain: if the two recipes were equally good, every gain would be as
  likely with the other sign. It is exact wherever gains are then symmetric about 0, normal or
  not. It takes all sign patterns up to 13 seeds, and 9,999 random ones beyond.
- *Against one checkpoint*: the baseline is a single value, and its retrain variance is unknown. p
  is the share of all N + 1 runs that are at least as bad as the baseline: were the checkpoint one
  more run of the candidate, every place among the N + 1 would be equally likely. Exact, and nothing
  is assumed of the unknown variance; the price is that no fewer than 1/ALPHA − 1 = 19 seeds can
  decide.

The rule, `decide`: **adopt** if the test says better, **keep baseline** if it says worse, otherwise
**not enough evidence**, each with p corrected by Holm's method for the number of candidates. Among
any number of candidates that are no better than the baseline, one is adopted with probability ALPHA
at most, if the number of seeds was fixed beforehand. Looking, adding seeds and looking again raises
that probability.

What the rule cannot see is a failure that did not happen: a candidate that is a little better in
nine runs of ten and fails in the tenth has gains that are not symmetric, and with few seeds mostly
shows none of it. So every decision comes with `failure_bound`, an upper bound of the share of runs
that fail.

Sources: Tuning Playbook (S9); Bouthillier et al. 2021, "Accounting for variance in machine learning
benchmarks" (paired runs, P(A > B)); Phipson & Smyth 2010 (sampled permutations); Holm 1979; Clopper
& Pearson 1934. How often each promise is kept: tests/benchmarks/promises.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ..trial import Point
from ..words import readable
from .best_of import BestOf

# error rate of each kind: of adopting what is no better, of rejecting what is no worse
ALPHA = 0.05
# p is a multiple of 1/(N + 1) or 1/2^N, and may equal ALPHA but for rounding
LIMIT = ALPHA * (1 + 1e-9)
CONFIDENCE = 0.95  # of intervals, and of the bound of the failure rate
POWER = 0.8  # chance of a decision with the number of seeds that `settles` recommends
RESAMPLES = 9_999  # of sign patterns; with the one observed, p has steps of 1/10,000
# equally likely values that stand for a distribution where power is averaged over it
QUANTILES = 40
MOST_SEEDS = 10_000  # more than this is no recommendation
STUDENT = "Student's t"  # of Evidence.interval_method

Decision = Literal["adopt", "keep baseline", "not enough evidence"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """What the retrained values of one candidate say, before any correction for other candidates.

    gain                 mean of baseline − candidate, or of candidate − baseline if maximized; its
                         interval; their standard deviation
    interval_method      how the interval was found; files without it have a percentile bootstrap
    better_fraction      share of runs in which the candidate is strictly better; Clopper-Pearson
                         interval
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
    interval_method: str = "percentile bootstrap"


def evidence(candidate: ArrayLike, baseline: ArrayLike, maximize: bool = False) -> Evidence:
    """Compare values [N] of a candidate with those of the baseline.

    The baseline has N values (paired), or 1 (a checkpoint). `maximize`: higher values are better.
    Raises ValueError unless N ≥ 2, every value is finite and the shapes are these.
    """
    candidate_N, baseline_N = np.asarray(candidate, np.float64), np.asarray(baseline, np.float64)
    paired, seeds = len(baseline_N) > 1, len(candidate_N)
    if seeds < 2 or baseline_N.shape not in ((seeds,), (1,)):
        raise ValueError(
            f"N ≥ 2 values against N or 1 are needed, got {candidate_N.shape} and "
            f"{baseline_N.shape}"
        )
    if not (np.isfinite(candidate_N).all() and np.isfinite(baseline_N).all()):
        raise ValueError("values must be finite")
    gain_N = candidate_N - baseline_N if maximize else baseline_N - candidate_N
    wins = int((gain_N > 0).sum())
    test = _sign_flip if paired else _place_of_one
    return Evidence(
        paired=paired,
        seeds=seeds,
        gain=float(gain_N.mean()),
        gain_interval=_student(gain_N),
        gain_spread=float(gain_N.std(ddof=1)),
        better_fraction=wins / seeds,
        better_interval=_plain(
            scipy.stats.binomtest(wins, seeds).proportion_ci(CONFIDENCE, method="exact")
        ),
        candidate_spread=float(candidate_N.std(ddof=1)),
        baseline_spread=float(baseline_N.std(ddof=1)) if paired else math.nan,
        p_better=test(gain_N),
        p_worse=test(-gain_N),
        interval_method=STUDENT,
    )


def _sign_flip(gain_N: NDArray[np.float64]) -> float:
    """P(mean gain at least this large) if every gain may as well have the other sign."""
    result = scipy.stats.permutation_test(
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


def _student(gain_N: NDArray[np.float64]) -> Interval:
    """mean ± t · s / √N, t the quantile of Student's distribution with N − 1 degrees of freedom.

    It covers the true mean gain in 95 % of comparisons if gains are normally distributed, from two
    seeds on, and in 95 to 98 % if they are symmetric with heavy tails. It covers it less often if a
    few gains are far off on one side, as any interval of so few values does. The percentile
    bootstrap covers it in 85 % at 5 seeds. The sign-flip test cannot be inverted to 95 % at 5
    seeds: its smallest p is 1/32, on either side.
    """
    count, mean = len(gain_N), float(gain_N.mean())
    quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    reach = quantile * float(gain_N.std(ddof=1)) / math.sqrt(count)
    return mean - reach, mean + reach


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
    """p-values corrected by Holm's method for their number m.

    The k-th smallest, k = 0, 1, …, is multiplied by m − k; none is below an earlier one.
    """
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
    """The number of seeds that would settle an undecided comparison with probability POWER.

    inf if no number would.

    What the seeds seen leave uncertain is taken into account. With m the mean and s the standard
    deviation of n paired gains,

        σ = s √((n − 1) / χ²_{n−1}),    μ ~ Normal(m, σ² / n),

    and N is the smallest number for which the test of N fresh pairs, as powerful as Student's,
    decides with probability POWER on the average over σ and μ, whichever way it decides.

    Against a checkpoint the seeds seen are kept. If k of n runs are on the side of the minority,
    their share is q ~ Beta(k + ½, n − k + ½), and N is the smallest number for which (1 + k +
    Binomial(N − n, q)) / (N + 1) ≤ α.

    α = ALPHA / candidates. Sources: O'Hagan, Stevens & Campbell 2005, "Assurance in clinical trial
    design"; Jeffreys's prior in both.
    """
    least = fewest_seeds(one.paired, candidates)
    needed = _pairs(one, ALPHA / candidates) if one.paired else _runs(one, ALPHA / candidates)
    return math.inf if needed > MOST_SEEDS else float(max(least, needed))


def _pairs(one: Evidence, alpha: float) -> float:
    """The smallest number of pairs with enough power.

    inf if it is more than MOST_SEEDS, or if no run differs.
    """
    if one.gain_spread == 0:
        return 2 if one.gain else math.inf
    chances = (np.arange(QUANTILES) + 0.5) / QUANTILES
    freedom = one.seeds - 1
    shrunk_Q = np.sqrt(scipy.stats.chi2.ppf(chances, freedom) / freedom)  # s / σ
    off_Q = scipy.stats.norm.ppf(chances) / math.sqrt(one.seeds)  # (μ − m) / σ
    effect_QQ = one.gain / one.gain_spread * shrunk_Q[:, None] + off_Q

    def decides(pairs: int) -> bool:
        better, worse = (_power(sign * effect_QQ, pairs, alpha) for sign in (1, -1))
        return bool((better + worse).mean() >= POWER)

    low, high = 1, 2
    while not decides(high):
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _power(effect: NDArray[np.float64], pairs: int, alpha: float) -> NDArray[np.float64]:
    """P(Student's one-sided test of `pairs` gains decides), by the size of their mean.

    `effect` is the mean gain, in standard deviations. By a normal approximation of the noncentral
    t: Abramowitz & Stegun 1964, 26.7.10.
    """
    freedom = pairs - 1
    limit = scipy.stats.t.ppf(1 - alpha, freedom)
    above = effect * math.sqrt(pairs) - limit * (1 - 1 / (4 * freedom))
    return np.asarray(scipy.stats.norm.cdf(above / math.sqrt(1 + limit**2 / (2 * freedom))))


def _runs(one: Evidence, alpha: float) -> float:
    """The smallest number of runs against a checkpoint with enough power; inf if none has it."""
    seeds = one.seeds
    minority = round(min(one.p_better, one.p_worse) * (seeds + 1) - 1)
    chances = (np.arange(QUANTILES) + 0.5) / QUANTILES
    share_Q = scipy.stats.beta.ppf(chances, minority + 0.5, seeds - minority + 0.5)
    for allowed in range(minority, round(MOST_SEEDS * alpha)):
        runs = max(math.ceil((1 + allowed) / alpha - 1 - 1e-9), seeds + 1)
        chance_Q = scipy.stats.binom.cdf(allowed - minority, runs - seeds, share_Q)
        if chance_Q.mean() >= POWER:
            return runs
    return math.inf


# --- failures that were not seen ------------------------------------------------------------------


def failure_bound(failures: int, runs: int) -> float:
    """The largest share of failing runs that `failures` of `runs` do not exclude.

    The one-sided upper Clopper-Pearson limit at CONFIDENCE; without a failure 1 − (1 −
    CONFIDENCE)^(1 / runs). Raises ValueError unless 0 ≤ failures ≤ runs and runs ≥ 1.
    """
    test = scipy.stats.binomtest(failures, runs, alternative="less")
    return float(test.proportion_ci(CONFIDENCE, method="exact").high)


def runs_without_failure(share: float) -> int:
    """How many runs, none of which fails, bring `failure_bound` to `share` or below."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - share) - 1e-9)


def failures_in_words(failures: int, runs: int) -> str:
    """What the runs leave open: "with 7 seeds without a failure, up to 35 % may fail"."""
    seen = "without a failure" if failures == 0 else f"and {failures} failed"
    return f"with {runs} seeds {seen}, up to {failure_bound(failures, runs):.0%} may fail"


# --- records: what comparison.json holds ----------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """The baseline's file, and its value of the objective."""

    path: str
    sha256: str
    value: float


@dataclass(frozen=True)
class Side:
    """One side: its point, what finding it took, and its runs with fresh seeds.

    trials, space, search_seconds   of the search that the point is the best of: configurations
                                    tried; ranges in words; wall time of all trials together
    max_train_steps, total_steps    updates without and with a prepended warmup (R11)
    values, infeasible              of each run, by seed, the value as Optuna is told it (an
                                    infeasible run is worth its untrained model); how many runs were
                                    infeasible
    failure_bound                   upper confidence bound of the share of infeasible runs; nan in
                                    older files
    run_seconds                     mean wall time of a run
    best_of                         best of n trials of the search; None for one trial, or for a
                                    sampler that learns, whose trials are not independent
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
    failure_bound: float = math.nan


@dataclass(frozen=True)
class Candidate:
    """A candidate, the evidence and the decision about it.

    seeds_needed   that would settle it if it is undecided; inf: none would
    equal_steps    against the baseline trained for as many updates as the candidate; None where
                   they are equal
    """

    side: Side
    evidence: Evidence
    decision: Decision
    seeds_needed: float
    equal_steps: Evidence | None


@dataclass(frozen=True)
class Comparison:
    """Everything about a comparison. `baseline` is None where only its checkpoint is known.

    test       metrics on the test split of the final pair, by side; empty while undecided
    maximize   whether higher values of the objective are better
    """

    objective: str
    first_seed: int
    seeds: int
    checkpoint: Checkpoint
    baseline: Side | None
    candidates: tuple[Candidate, ...]
    test: Mapping[str, Mapping[str, float]]
    warnings: tuple[str, ...]
    maximize: bool = False

    def gain(self, value: float) -> float:
        """By how much a value is better than the checkpoint's; nan if it never had a value."""
        if not math.isfinite(value):
            return math.nan
        return value - self.checkpoint.value if self.maximize else self.checkpoint.value - value

    @property
    def gain_in_words(self) -> str:
        """What a gain is, and on which side of 0 it is one."""
        sides = "value − baseline" if self.maximize else "baseline − value"
        return f"gain = {sides}: above 0 is better"

    @property
    def decision(self) -> Decision:
        """Adopt if any candidate is to be adopted; keep the baseline if it beats every one."""
        decisions = [candidate.decision for candidate in self.candidates]
        if "adopt" in decisions:
            return "adopt"
        return "keep baseline" if set(decisions) == {"keep baseline"} else "not enough evidence"

    @property
    def decision_in_words(self) -> str:
        """The decision, and which candidate it adopts."""
        if self.decision != "adopt":
            return self.decision
        return f"adopt {self.final.side.name}: gain {readable(self.final.evidence.gain)}"

    @property
    def known_settings(self) -> dict[str, Any]:
        """Hyperparameters of the baseline without its seed; empty if they are not known."""
        values = self.baseline.point.values if self.baseline else {}
        return {name: value for name, value in values.items() if name != "seed"}

    @property
    def sides(self) -> list[tuple[str, Side]]:
        """The retrained sides by the names that are shown, a retrained baseline first."""
        baseline = [(f"baseline: {self.baseline.name}", self.baseline)] if self.baseline else []
        return baseline + [(one.side.name, one.side) for one in self.candidates]

    @property
    def failures(self) -> list[str]:
        """What the runs of each candidate leave open: how many of its runs may fail."""
        sides = [one.side for one in self.candidates]
        return [
            f"{one.name}: {failures_in_words(one.infeasible, len(one.values))}" for one in sides
        ]

    @property
    def final(self) -> Candidate:
        """The candidate of the final pair.

        Of those decided like the whole, it is the one with the largest mean gain.
        """
        alike = [candidate for candidate in self.candidates if candidate.decision == self.decision]
        return max(alike, key=lambda candidate: candidate.evidence.gain)
