"""Records of a diagnosis: what each step of the procedure found, and the runs that say so."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import scipy

from ..markup import html_table
from ..trial import Group, Point, cost
from .comparison import ALPHA, CONFIDENCE, Decision, Evidence, Interval
from .edge_ratio import EdgeRun
from .plateau import NOWHERE, headroom_base
from .stability_edge import Tried

PLAIN = "plain"  # no remedy: what every remedy is compared with
# an edge farther from the best base LR limits nobody who tunes over three decades
MOST_HEADROOM = 1000.0
MOST_OF_SUMMARY = 200  # characters of a group's, where a diagnosis is shown in two lines

# early, mid-training: when training above lr_star blows up (R2); edge: it fails there without a
# blow-up; none: it does not fail within reach of lr_star; unknown: nothing is feasible, or the
# budget was too small
Kind = Literal["none", "early", "mid_training", "edge", "unknown"]
StepName = Literal[
    "sweep",
    "boundary",
    "edge",
    "kind",
    "curvature",
    "warmup",
    "clipping",
    "arms",
    "tournament",
    "outcome",
]
TITLES: dict[StepName, str] = {
    "sweep": "Base LRs without warmup and clipping",
    "boundary": "Boundary of the search space, or instability",
    "edge": "Where training becomes unstable",
    "kind": "Which kind of instability",
    "curvature": "Curvature",
    "warmup": "Warmup",
    "clipping": "Gradient clipping",
    "arms": "A first look at every remedy, and rounds of tuning",
    "tournament": "All remedies, tuned alike",
    "outcome": "Outcome",
}


@dataclass(frozen=True)
class Step:
    """One step: its findings in sentences, the playbook's rules, and the studies as evidence."""

    name: StepName
    rules: tuple[str, ...]
    sentences: tuple[str, ...]
    studies: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return TITLES[self.name]


@dataclass(frozen=True)
class Edge:
    """Where half of the trainings diverge.

    interval   (largest base LR at which fewer than half diverge, smallest at which half or more
               do); high = inf if none was found
    tried      how many diverged at each base LR
    trainings  spent on it besides the sweep
    confidence_interval   holds the base LR at which half diverge with 95 % confidence; nan in
               older files (`stability_edge.confidence_interval`). `interval` is only how finely
               base LRs were tried
    refused    why there is no edge, whatever `interval` is: "contradicted", trainings diverge more
               often at lower base LRs; "too far", beyond MOST_HEADROOM times the best base LR; else
               ""
    """

    interval: Interval
    tried: tuple[Tried, ...]
    trainings: int
    confidence_interval: Interval = (math.nan, math.nan)
    refused: Literal["", "contradicted", "too far"] = ""

    @property
    def found(self) -> bool:
        return not self.refused and self.interval[0] > 0 and math.isfinite(self.interval[1])

    @property
    def decades(self) -> float:
        """Width of the interval; inf if there is no edge."""
        return math.log10(self.interval[1] / self.interval[0]) if self.found else math.inf

    @property
    def unstable_base_lr(self) -> float:
        """The middle of the interval on the log axis; inf if there is no edge."""
        return math.sqrt(self.interval[0] * self.interval[1]) if self.found else math.inf


@dataclass(frozen=True)
class Curvature:
    """Largest eigenvalue λ₁ of the training loss's Hessian, and the base LRs that it limits.

    Above a limit, descent on a quadratic of that curvature is unstable. The limits are nan for
    adaptive optimizers, which it does not bound (`GroupDiagnosis.edge_runs`).
    """

    eigenvalue_at_start: float
    eigenvalue_at_best: float
    limit_at_start: float
    limit_at_best: float


@dataclass(frozen=True)
class Remedy:
    """A way to train, tuned for its own base LR, and rerun on fresh seeds.

    point               its best configuration of `tuned_in`
    updates             of one training, a prepended warmup included
    highest_base_lr     up to which every seed of its sweep trained
    fails_from          the lowest base LR from its own on that is not known to train, where a seed
                        was infeasible there or above; inf: none was
    usable_decades      of all base LRs that it was tried at (`sensitivity`)
    lr_sensitivity      of those of the first look, the same for all with one optimizer
    clip_fraction       mean share of clipped updates of its best configuration (R17)
    tuned_value         mean over the seeds that chose it
    looked_in           the studies of rounds before it
    values, infeasible  of the reruns in `rerun_in`, by seed, an infeasible one worth its untrained
                        model; how many were infeasible. Empty if it was not rerun
    failure_bound       upper confidence bound of the share of infeasible runs, by the reruns; nan:
                        none, or older files
    evidence, decision  against plain training on the same seeds; None for plain training itself
    equal_steps         against plain training for as many updates; None where they are equal
    """

    name: str
    point: Point
    updates: int
    highest_base_lr: float
    usable_decades: float
    lr_sensitivity: float
    clip_fraction: float
    tuned_value: float
    tuned_in: str
    rerun_in: str = ""
    values: tuple[float, ...] = ()
    infeasible: int = 0
    evidence: Evidence | None = None
    decision: Decision | None = None
    equal_steps: Evidence | None = None
    failure_bound: float = math.nan
    fails_from: float = math.inf
    looked_in: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return fmean(self.values) if self.values else math.nan

    @property
    def next_run(self) -> Interval:
        """The interval that holds one more run with probability CONFIDENCE, if runs are normal.

        mean ± t · s · √(1 + 1/N) of the N values, s their standard deviation, t the quantile of
        Student's distribution with N − 1 degrees of freedom. (nan, nan) for fewer than two.
        """
        count = len(self.values)
        if count < 2:
            return math.nan, math.nan
        middle, spread = self.mean, stdev(self.values)
        reach = float(
            scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * spread * math.sqrt(1 + 1 / count)
        )
        return middle - reach, middle + reach


@dataclass(frozen=True)
class GroupDiagnosis:
    """What was found about one batch size and optimizer.

    lr_star        the lowest base LR that is not shown to be worse than the best (`plateau`)
    best_base_lr   the one with the best mean, which headroom is relative to; nan in older files
    as_good        the lowest and the highest base LR that are not; nan if that is not known
    adopted        names one of the remedies; "" if there is none
    left_out       what the budget left out, as "the rerun of warmup"
    would_do       about the budget, in trainings, that reaches it; 0: nothing was left out
    fault          what is wrong with the objective, so that nothing was concluded; else ""
    edge_runs      trainings whose nearness to the edge was measured: plain training at lr_star, and
                   at both ends of the edge; none in older files
    """

    group: Group
    kind: Kind
    lr_star: float
    edge: Edge
    onset_steps: tuple[float, ...]
    steps: tuple[Step, ...]
    remedies: tuple[Remedy, ...]
    adopted: str
    summary: str
    curvature: Curvature | None = None
    best_base_lr: float = math.nan
    left_out: tuple[str, ...] = ()
    fault: str = ""
    as_good: Interval = NOWHERE
    would_do: int = 0
    edge_runs: tuple[EdgeRun, ...] = ()

    @property
    def budget_in_words(self) -> str:
        """What the budget left out, in a sentence; empty if nothing was."""
        if not self.left_out:
            return ""
        would = f" About --budget {self.would_do} would do." if self.would_do else ""
        return f"The budget left out {join_names(self.left_out)}.{would}"

    @property
    def headroom(self) -> Interval:
        """unstable_base_lr / the best base LR, or / the upper end of a basin (`headroom_base`).

        (inf, inf) if no edge was found. Relative to lr_star it would depend on the noise: in a
        shallow valley lr_star is half of the best base LR.
        """
        if not self.edge.found:
            return math.inf, math.inf
        best = self.lr_star if math.isnan(self.best_base_lr) else self.best_base_lr
        base, (low, high) = headroom_base(best, self.as_good), self.edge.interval
        return low / base, high / base

    @property
    def winner(self) -> Remedy | None:
        return next((remedy for remedy in self.remedies if remedy.name == self.adopted), None)


@dataclass(frozen=True)
class Diagnosis:
    """A whole diagnosis.

    `skipped` says of each group what the budget left out; updates are counted as planned;
    `maximize`: higher values of the objective are better.
    """

    study: str
    objective: str
    seeds: int
    updates: int
    budget: float
    skipped: tuple[str, ...]
    groups: tuple[GroupDiagnosis, ...]
    recipes: Mapping[str, str]
    maximize: bool = False

    def __repr__(self) -> str:
        first = self.groups[0].summary if self.groups else "no group has a feasible trial"
        more = f" (and {len(self.groups) - 1} groups more)" if len(self.groups) > 1 else ""
        shown = textwrap.shorten(first, MOST_OF_SUMMARY, placeholder=" …")
        return f"Diagnosis of {self.study!r}: {self.updates} updates\n{shown}{more}"

    def _repr_html_(self) -> str:
        rows = [(one.group.label, one.summary) for one in self.groups]
        return html_table(f"Diagnosis of {self.study}", rows, ("group", "what was found"))

    def best(self, batch_size: int) -> GroupDiagnosis | None:
        """The group of a batch size whose adopted training is best; None if nothing is feasible."""
        own = [
            one
            for one in self.groups
            if one.group.batch_size == batch_size and one.winner is not None
        ]
        return min(own, key=lambda one: cost(_worth(one), self.maximize), default=None)


def _worth(one: GroupDiagnosis) -> float:
    winner = one.winner
    assert winner is not None  # asked only of groups that have one
    return winner.mean if winner.values else winner.tuned_value


def adopt(
    remedies: Sequence[Remedy], better: Mapping[tuple[str, str], float], maximize: bool = False
) -> str:
    """The remedy to adopt: the first, in the order given, that the best one is not shown to beat.

    `remedies` are in order of what they cost to keep, plain training first. Only those whose
    decision is to adopt count, and plain training if there is none: what is not shown to be better
    is no gain. `better[a, b]` is the p-value of "a is better than b"; above ALPHA it is not shown,
    and then the simpler one will do (S9). `maximize`: higher values are better.
    """
    worthy = [one for one in remedies if one.decision == "adopt"]
    if not worthy:
        return remedies[0].name if remedies else ""
    best = min(worthy, key=lambda one: cost(one.mean, maximize))
    return next(one.name for one in worthy if one is best or better[best.name, one.name] > ALPHA)


def join_names(left_out: Sequence[str]) -> str:
    """What was left out, in words, each common beginning said once.

    "the tuning of a", "the rerun of a", "the rerun of b" become "the tuning of a; the rerun of a,
    b".
    """
    by_what: dict[str, list[str]] = {}
    for one in left_out:
        what, _, name = one.partition(" of ")
        by_what.setdefault(what, []).append(name)
    return "; ".join(
        f"{what} of {', '.join(names)}" if any(names) else what for what, names in by_what.items()
    )
