"""A sweep as its source has it, before anything in it has a name of ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..judge.imported import State
from ..study.study import Axis
from ..trial import EMPTY_CURVE, Curve

STATES: Mapping[str, State] = {
    **dict.fromkeys(("finished", "complete", "completed", "success", "done"), "finished"),
    **dict.fromkeys(("failed", "fail", "crashed", "error"), "failed"),
    **dict.fromkeys(("pruned", "killed", "stopped", "cancelled", "preempted"), "stopped"),
    **dict.fromkeys(("running", "pending", "preempting", "waiting", "scheduled"), "running"),
}  # fmt: skip

# What exports write where there is no value.
NOTHING = frozenset(["", "-", "--", "n/a", "na", "<na>", "#n/a", "nat", "nil", "none", "null"])


def says_nothing(value: Any) -> bool:
    """Whether a value stands for none: one of NOTHING, in capitals or not."""
    return value is None or (isinstance(value, str) and value.strip().lower() in NOTHING)


def is_number(value: Any) -> bool:
    """Whether a value is a number, nan and inf among them; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether a value says something, and is no number."""
    return not (says_nothing(value) or is_number(value))


@dataclass(frozen=True)
class Run:
    """One training. What a source does not have is missing here, too.

    name      what the source calls it, no two alike
    number    its number there, which it keeps; None: it has none
    config    hyperparameters by column: numbers, texts, true and false
    metrics   results by column: numbers, nan and inf among them
    reported  values of the objective on the way, by step
    curve     what its log says, step by step
    seconds   wall time
    """

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    state: State = ""
    number: int | None = None
    reported: Mapping[int, float] = field(default_factory=dict)
    curve: Curve = field(default_factory=lambda: EMPTY_CURVE)
    seconds: float = math.nan


@dataclass(frozen=True)
class Sweep:
    """Runs of one source.

    origin     the source in one line, that shows no password and is the same at every import
    objective  the column of metrics that the source itself ranks runs by; empty if it has none
    maximize   whether a higher value is better; None where the source does not say
    axes       what was searched, by column of config, as far as the source says
    remarks    what a reader should know, a sentence each
    """

    origin: str
    runs: Sequence[Run]
    objective: str = ""
    maximize: bool | None = None
    axes: Mapping[str, Axis] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def config_columns(self) -> list[str]:
        """Columns of hyperparameters, in the order in which they first appear."""
        return _columns(run.config for run in self.runs)

    @property
    def metric_columns(self) -> list[str]:
        """Columns of results, in the order in which they first appear."""
        return _columns(run.metrics for run in self.runs)


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
