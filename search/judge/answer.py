"""The answer for each batch size: which configuration, how sure, how near to instability.

One run of a configuration differs from the next: a value counts as worse than the best one only if
the difference is larger than such noise explains,

    value − best > t · σ · √(1/n + 1/m),

with n and m seeds, σ the standard deviation between runs, and t the quantile of Student's
distribution for a one-sided test at ALPHA. With several seeds σ is that between seeds of one
configuration, pooled. With one seed it is estimated from neighbours on the axis of base LRs, by
what is left when a straight line between the two next ones is taken away:

    e_i = y_i − (w y_{i−1} + (1 − w) y_{i+1}),   Var e_i = σ² (1 + w² + (1 − w)²).

The other hyperparameters differ between neighbours, too, and add to σ: with one seed the interval
of base LRs that are as good is rather too wide. Source of the estimator: Gasser, Sroka &
Jennen-Steinmetz 1986, "Residual variance and residual pattern in nonlinear regression".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from ..trial import Point, Trial, cost
from .analysis import (
    GOOD_REGION,
    BoundaryNote,
    GroupSummary,
    GroupVerdict,
    Space,
    boundary_checks,
    configurations_by_base_lr,
    group_trials,
    mean_cost,
)
from .comparison import ALPHA, Interval
from .diagnosis import Diagnosis, GroupDiagnosis, Kind, Remedy

NOWHERE: Interval = (math.nan, math.nan)
# What a diagnosis says of a group; where its kind is unknown, the sweep's word stays.
VERDICTS: dict[Kind, GroupVerdict] = {
    "none": "stable",
    "early": "unstable",
    "mid_training": "unstable",
    "edge": "on the edge",
}


@dataclass(frozen=True)
class Noise:
    """How much one run differs from the next: standard deviation, and its degrees of freedom.

    The standard deviation is nan, and the degrees of freedom 0, where it is not known.
    """

    sigma: float = math.nan
    freedom: int = 0

    def limit(self, runs: int, of_best: int) -> float:
        """How far above the best mean a mean of `runs` may lie that is not shown to be worse.

        nan if the noise is not known.
        """
        if not self.freedom:
            return math.nan
        quantile = float(scipy.stats.t.ppf(1 - ALPHA, self.freedom))
        return quantile * self.sigma * math.sqrt(1 / runs + 1 / of_best)


@dataclass(frozen=True)
class Answer:
    """What to use at one batch size, how sure that is, and what limits it.

    summary   of the group that wins: its best configuration is the answer
    others    of the other groups at this batch size, best first
    as_good   the lowest and the highest base LR of the winner's group that are not shown to be
              worse than its best; (nan, nan) if the noise between runs is not known, or if only
              one base LR trains
    rivals    those of `others` whose best is not shown to be worse
    notes     borders of the search space that the winner's group crowds, and its instability (S4)
    found     the diagnosis of the winner's group; None if there is none. What it says comes first
    """

    summary: GroupSummary
    others: tuple[GroupSummary, ...]
    as_good: Interval
    rivals: tuple[GroupSummary, ...]
    notes: tuple[BoundaryNote, ...]
    found: GroupDiagnosis | None = None

    @property
    def batch_size(self) -> int:
        return self.summary.group.batch_size

    @property
    def verdict(self) -> GroupVerdict:
        return self.summary.verdict

    @property
    def remedy(self) -> Remedy | None:
        """What a diagnosis adopted, and reran; None if there is none."""
        winner = self.found.winner if self.found else None
        return winner if winner and winner.values else None

    @property
    def point(self) -> Point | None:
        """The configuration to use; None if nothing trains."""
        return self.remedy.point if self.remedy else self.summary.best_point

    @property
    def values(self) -> tuple[float, ...]:
        """Best value of each seed of that configuration; fresh seeds if a diagnosis reran it."""
        return self.remedy.values if self.remedy else self.summary.best_values

    @property
    def value(self) -> float:
        """Their mean; inf if nothing trains."""
        return self.remedy.mean if self.remedy else self.summary.best_value

    @property
    def rows(self) -> tuple[GroupSummary, ...]:
        """Every group at this batch size, the winner first."""
        return self.summary, *self.others

    def is_winner(self, row: GroupSummary) -> bool:
        """Whether a group's best configuration is the answer; none is where nothing trains."""
        return row is self.summary and row.best_point is not None

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rivals = [row.group.label for row in self.rivals]
        notes = [note.sentence for note in self.notes]
        return {
            "batch_size": self.batch_size,
            "verdict": self.verdict,
            "value": self.value,
            "values": self.values,
            "point": self.point.record() if self.point else None,
            "base_lrs_as_good": self.as_good,
            "unstable_base_lr": self.summary.unstable_base_lr,
            "headroom": self.summary.headroom,
            "as_good_groups": rivals,
            "notes": notes,
            "diagnosis": self.found.summary if self.found else None,
        }


def answers(
    trials: Iterable[Trial],
    summaries: Sequence[GroupSummary],
    scientific: Sequence[str] = (),
    space: Space | None = None,
    diagnosis: Diagnosis | None = None,
) -> list[Answer]:
    """An answer for each batch size, the best value first.

    `summaries` are those of the trials; `space` as in `boundary_checks`.
    """
    trials = list(trials)
    groups = group_trials(trials, scientific)
    noises = {group: noise_of(own) for group, own in groups.items()}
    notes = boundary_checks(trials, space, scientific)
    found = []
    for batch_size in dict.fromkeys(row.group.batch_size for row in summaries):
        own = [row for row in summaries if row.group.batch_size == batch_size]
        diagnosed = diagnosis.best(batch_size) if diagnosis else None
        winner, *others = sorted(
            own, key=lambda row: (not _is_of(row, diagnosed), row.cost, row.group)
        )
        noise = noises[winner.group]
        rivals = [
            row
            for row in others
            if not diagnosed and _is_as_good(row, winner, noise, noises[row.group])
        ]
        found.append(
            Answer(
                summary=winner,
                others=tuple(others),
                as_good=_as_good(groups[winner.group], winner, noise),
                rivals=tuple(rivals),
                notes=tuple(note for note in notes if note.group == winner.group),
                found=diagnosed,
            )
        )
    return sorted(found, key=_place)


def _place(answer: Answer) -> tuple[bool, float, int]:
    worth = cost(answer.value, answer.summary.maximize)
    return answer.point is None, worth, answer.batch_size


def _is_of(row: GroupSummary, found: GroupDiagnosis | None) -> bool:
    return found is not None and row.group == found.group


def with_diagnosis(row: GroupSummary, diagnosis: Diagnosis | None) -> GroupSummary:
    """A summary with lr_star, edge and verdict of its group's diagnosis, which used more seeds.

    Without a diagnosis of the group, or where that has no lr_star, the summary stays.
    """
    groups = diagnosis.groups if diagnosis else ()
    found = next((one for one in groups if one.group == row.group), None)
    if diagnosis is None or found is None or math.isnan(found.lr_star):
        return row
    edge, unstable_trials = row.unstable_base_lr, row.unstable_trials
    if found.edge.found:
        edge = found.edge.interval
        tried = [one for one in found.edge.tried if one.base_lr == edge[1]]
        unstable_trials = (sum(one.infeasible for one in tried), sum(one.trials for one in tried))
    best = found.best_base_lr
    return replace(
        row,
        lr_star=found.lr_star,
        best_base_lr=found.lr_star if math.isnan(best) else best,
        unstable_base_lr=edge,
        unstable_trials=unstable_trials,
        verdict=VERDICTS.get(found.kind, row.verdict),
        diagnosed_with=diagnosis.seeds,
    )


# --- noise between runs ---------------------------------------------------------------------------


def noise_of(trials: Iterable[Trial]) -> Noise:
    """The noise between runs of one group, near its lr_star: half a decade to each side."""
    configurations = configurations_by_base_lr(trials)
    if not configurations:
        return Noise()
    star = min(configurations, key=mean_cost)[0].point.base_lr
    near = [
        own
        for own in configurations
        if star / GOOD_REGION <= own[0].point.base_lr <= star * GOOD_REGION
    ]
    return _between_seeds(near) or _between_neighbours(near)


def _between_seeds(configurations: Sequence[Sequence[Trial]]) -> Noise | None:
    """The standard deviation between seeds, pooled; None if there is one seed only."""
    repeated = [np.array([one.cost for one in own]) for own in configurations if len(own) > 1]
    freedom = sum(len(costs) - 1 for costs in repeated)
    if not freedom:
        return None
    squares = sum(float(((costs - costs.mean()) ** 2).sum()) for costs in repeated)
    return Noise(math.sqrt(squares / freedom), freedom)


def _between_neighbours(configurations: Sequence[Sequence[Trial]]) -> Noise:
    """By the configurations that have a neighbour on each side, in the order of base LRs."""
    x = np.log([own[0].point.base_lr for own in configurations])
    y = np.array([mean_cost(own) for own in configurations])
    if len(y) < 3:
        return Noise()
    span = x[2:] - x[:-2]
    w = np.divide(x[2:] - x[1:-1], span, out=np.full_like(span, 0.5), where=span > 0)
    left = y[1:-1] - (w * y[:-2] + (1 - w) * y[2:])
    return Noise(float(np.sqrt(np.mean(left**2 / (1 + w**2 + (1 - w) ** 2)))), len(left))


def _as_good(trials: Sequence[Trial], row: GroupSummary, noise: Noise) -> Interval:
    """The base LRs that are as good; with a diagnosis, those that it found to be."""
    if row.diagnosed_with:
        return min(row.lr_star, row.best_base_lr), max(row.lr_star, row.best_base_lr)
    configurations = configurations_by_base_lr(trials)
    if not (configurations and noise.freedom):
        return NOWHERE
    if len({own[0].point.base_lr for own in configurations}) == 1:
        return NOWHERE
    best = min(configurations, key=mean_cost)
    good = [
        own[0].point.base_lr
        for own in configurations
        if mean_cost(own) - mean_cost(best) <= noise.limit(len(own), len(best))
        and own[0].point.base_lr < row.unstable_base_lr[1]
    ]
    return min(good), max(good)


def _is_as_good(row: GroupSummary, best: GroupSummary, noise: Noise, other: Noise) -> bool:
    """Whether another group's best is not shown to be worse: by the larger noise of the two."""
    if not (row.best_point and noise.freedom and other.freedom):
        return False
    larger = max(noise, other, key=lambda one: one.sigma)
    limit = larger.limit(len(row.best_values), len(best.best_values))
    return row.cost - best.cost <= limit
