"""The answer for each batch size: which configuration, how sure, how near to instability.

Of a group that is the configuration of the best mean; beside it stand the base LRs that are as
good, of which lr_star is the lowest (`plateau`). Of groups it is the one whose best is best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ..trial import Point, Trial, cost
from .analysis import (
    BoundaryNote,
    GroupSummary,
    GroupVerdict,
    boundary_checks,
    configuration_at,
)
from .comparison import Interval
from .diagnosis import PLAIN, Diagnosis, GroupDiagnosis, Kind, Remedy

# What a diagnosis says of a group; where its kind is unknown, the sweep's word stays.
VERDICTS: dict[Kind, GroupVerdict] = {
    "none": "stable",
    "early": "unstable",
    "mid_training": "unstable",
    "edge": "on the edge",
}


@dataclass(frozen=True)
class Answer:
    """What to use at one batch size, how sure that is, and what limits it.

    summary   of the group that wins: its best configuration is the answer
    others    of the other groups at this batch size, best first
    rivals    those of `others` that are as good, by the noise between runs
    notes     borders of the search space that the winner's group crowds, and its instability (S4)
    found     the diagnosis of the winner's group; None if there is none. What it says comes first
    """

    summary: GroupSummary
    others: tuple[GroupSummary, ...]
    rivals: tuple[GroupSummary, ...]
    notes: tuple[BoundaryNote, ...]
    found: GroupDiagnosis | None = None

    @property
    def batch_size(self) -> int:
        return self.summary.group.batch_size

    @property
    def as_good(self) -> Interval:
        """lr_star, and the highest base LR that is as good; (nan, nan) if that is not known."""
        return self.summary.as_good

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
        return self.remedy.point if self.remedy else self.summary.point

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
        """Whether a group's configuration is the answer; none is where nothing trains."""
        return row is self.summary and row.point is not None

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
            "lr_star": self.summary.lr_star,
            "base_lrs_as_good": self.as_good,
            "best_base_lr": self.summary.best_base_lr,
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
    notes: Sequence[BoundaryNote] | None = None,
    diagnosis: Diagnosis | None = None,
) -> list[Answer]:
    """An answer for each batch size, the best value first.

    `summaries` are those of the trials; `notes` those of `boundary_checks`, by default on the range
    of base LRs that was tried.
    """
    notes = boundary_checks(trials, None, scientific) if notes is None else notes
    found = []
    for batch_size in dict.fromkeys(row.group.batch_size for row in summaries):
        own = [row for row in summaries if row.group.batch_size == batch_size]
        diagnosed = diagnosis.best(batch_size) if diagnosis else None
        winner, *others = sorted(
            own, key=lambda row: (not _is_of(row, diagnosed), row.cost, row.group)
        )
        rivals = [row for row in others if not diagnosed and _is_as_good(row, winner)]
        found.append(
            Answer(
                summary=winner,
                others=tuple(others),
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


def with_diagnosis(
    row: GroupSummary, diagnosis: Diagnosis | None, trials: Sequence[Trial] = ()
) -> GroupSummary:
    """A summary with lr_star, edge and verdict of its group's diagnosis, which used more seeds.

    Its configuration is that of the group's `trials` at the best base LR that the diagnosis found,
    or else the plain training that it reran. Without a diagnosis of the group, or where that has no
    lr_star, the summary stays.
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
    best = found.lr_star if math.isnan(found.best_base_lr) else found.best_base_lr
    known = not math.isnan(found.as_good[0])
    return replace(
        _at_best(row, found, best, trials),
        lr_star=found.lr_star,
        as_good=found.as_good if known else (min(found.lr_star, best), max(found.lr_star, best)),
        best_base_lr=best,
        unstable_base_lr=edge,
        unstable_trials=unstable_trials,
        verdict=VERDICTS.get(found.kind, row.verdict),
        diagnosed_with=diagnosis.seeds,
    )


def _at_best(
    row: GroupSummary, found: GroupDiagnosis, base_lr: float, trials: Sequence[Trial]
) -> GroupSummary:
    """The summary with the configuration at a diagnosis' best base LR; without one if none is."""
    values: tuple[float, ...] = ()
    step, point = math.nan, None
    plain = next((one for one in found.remedies if one.name == PLAIN), None)
    if seeds := configuration_at(trials, base_lr):
        best = min(seeds, key=lambda trial: (trial.cost, trial.point.number))
        values, step, point = tuple(one.best_value for one in seeds), best.best_step, best.point
    elif plain and plain.point.base_lr == base_lr and plain.values:
        values, point = plain.values, plain.point
    mean = fmean(values) if values else math.inf
    return replace(row, best_values=values, best_value=mean, best_step=step, point=point)


def _is_as_good(row: GroupSummary, best: GroupSummary) -> bool:
    """Whether another group is as good: by the larger noise of the two."""
    if not (row.point and row.noise.freedom and best.noise.freedom):
        return False
    larger = max(best.noise, row.noise, key=lambda one: one.sigma)
    limit = larger.limit(len(row.best_values), len(best.best_values))
    return row.cost - best.cost <= limit
