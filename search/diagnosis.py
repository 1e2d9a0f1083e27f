"""Records of a diagnosis: what each step of the playbook's procedure found, and the runs that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy import stats

from .comparison import ALPHA, CONFIDENCE, Decision, Evidence, Interval
from .edge import Tried
from .trial import Group, Point

PLAIN = "plain"  # no remedy: what every remedy is compared with

# early, mid-training: how training blows up above lr_star (R2); edge: it ends there without having blown up;
# none: it does not end within reach of lr_star; unknown: nothing is feasible, or the budget was too small
Kind = Literal["none", "early", "mid_training", "edge", "unknown"]
StepName = Literal[
    "sweep", "boundary", "edge", "kind", "curvature", "warmup", "clipping", "arms", "tournament", "outcome"
]
TITLES: dict[StepName, str] = {
    "sweep": "Base LRs without warmup and clipping",
    "boundary": "Boundary of the search space, or instability",
    "edge": "Where training becomes unstable",
    "kind": "Which kind of instability",
    "curvature": "Curvature",
    "warmup": "Warmup",
    "clipping": "Gradient clipping",
    "arms": "Other optimizers and architectures",
    "tournament": "All remedies, tuned alike",
    "outcome": "Outcome",
}


@dataclass(frozen=True)
class Step:
    """One step: its findings in sentences, the playbook's rules, and the studies whose trials are the evidence."""

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

    interval   (largest base LR at which fewer than half diverge, smallest at which half or more do); high = inf if
               none was found
    tried      how many diverged at each base LR
    trainings  spent on it besides the sweep
    """

    interval: Interval
    tried: tuple[Tried, ...]
    trainings: int

    @property
    def found(self) -> bool:
        return self.interval[0] > 0 and math.isfinite(self.interval[1])

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
    """Largest eigenvalue λ₁ of the training loss's Hessian, and the base LR at which descent on it is unstable.

    The limits are nan for adaptive optimizers (`curvature.stability_limit`).
    """

    eigenvalue_at_start: float
    eigenvalue_at_best: float
    limit_at_start: float
    limit_at_best: float


@dataclass(frozen=True)
class Remedy:
    """A way to train, tuned for its own base LR, and rerun on fresh seeds.

    point               its best configuration of the sweep `tuned_in`
    updates             of one training, a prepended warmup included
    highest_base_lr     up to which every seed of its sweep trained
    usable_decades, lr_sensitivity   of its sweep (`sensitivity`); its base LRs are those of plain training if the
                        optimizer is the same
    clip_fraction       mean share of clipped updates of its best configuration (R17)
    tuned_value         mean over the seeds of the sweep, the same that chose it
    values, infeasible  of the reruns in `rerun_in`, by seed, an infeasible one worth its untrained model; how many
                        were infeasible. Empty if it was not rerun
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

    @property
    def mean(self) -> float:
        return fmean(self.values) if self.values else math.nan

    @property
    def next_run(self) -> Interval:
        """In which one more run falls with probability CONFIDENCE, if runs are normally distributed.

        mean ± t · s · √(1 + 1/N) of the N values, s their standard deviation, t the quantile of Student's
        distribution with N − 1 degrees of freedom. (nan, nan) for fewer than two.
        """
        count = len(self.values)
        if count < 2:
            return math.nan, math.nan
        middle, spread = self.mean, stdev(self.values)
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * spread * math.sqrt(1 + 1 / count))
        return middle - reach, middle + reach


@dataclass(frozen=True)
class GroupDiagnosis:
    """What was found about one batch size and optimizer. `adopted` names one of the remedies; "" if there is none."""

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

    @property
    def headroom(self) -> Interval:
        """unstable_base_lr / lr_star; (inf, inf) if there is no edge within what was tried."""
        low, high = self.edge.interval
        return (low / self.lr_star, high / self.lr_star) if self.edge.found else (math.inf, math.inf)

    @property
    def winner(self) -> Remedy | None:
        return next((remedy for remedy in self.remedies if remedy.name == self.adopted), None)


@dataclass(frozen=True)
class Diagnosis:
    """A whole diagnosis. `skipped` names the studies that the budget left out; updates are counted as planned."""

    study: str
    objective: str
    seeds: int
    updates: int
    budget: float
    skipped: tuple[str, ...]
    groups: tuple[GroupDiagnosis, ...]
    recipes: Mapping[str, str]

    def best(self, batch_size: int) -> GroupDiagnosis | None:
        """The group of a batch size whose adopted training is best; None if nothing is feasible."""
        own = [one for one in self.groups if one.group.batch_size == batch_size and one.winner is not None]
        return min(own, key=lambda one: (math.isnan(_worth(one)), _worth(one)), default=None)


def _worth(one: GroupDiagnosis) -> float:
    winner = one.winner
    assert winner is not None  # asked only of groups that have one
    return winner.mean if winner.values else winner.tuned_value


def adopt(remedies: Sequence[Remedy], better: Mapping[tuple[str, str], float]) -> str:
    """The remedy to adopt: the first, in the order given, that the best one is not shown to beat.

    `remedies` are in order of what they cost to keep, plain training first. Only those whose decision is to adopt
    count, and plain training if there is none: what is not shown to be better is no gain. `better[a, b]` is the
    p-value of "a is better than b"; above ALPHA it is not shown, and then the simpler one will do (S9).
    """
    worthy = [one for one in remedies if one.decision == "adopt"]
    if not worthy:
        return remedies[0].name if remedies else ""
    best = min(worthy, key=lambda one: one.mean)
    return next(one.name for one in worthy if one is best or better[best.name, one.name] > ALPHA)
