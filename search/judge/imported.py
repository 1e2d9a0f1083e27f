"""The verdict of a training that somebody else ran, from what was kept of it.

Where a log of losses was kept, it is judged as any other (`verdict`). Elsewhere only what leaves no
doubt makes a run infeasible, in this order:

    non_finite   the last evaluation on the way, or the objective at the end, is nan or inf
    diverged     evaluations of a minimized objective end far above the first of them; overfitting
                 does not raise a loss to three times what it was
    crashed      its source says that it failed, and nothing kept of it says that training did
    unfinished   it was pruned or stopped, goes on, or has no value. Its values on the way are of a
                 shorter training, and are ranked with no others; that it was pruned says that
                 others were better by then, not that it diverged
    feasible     everything else
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from ..trial import Curve, Point, Trial, Verdict
from ..words import readable
from .evaluations import summarize_evaluations
from .verdict import STOPPED_FACTOR, judge

# What became of a run: "stopped" by a pruner or by hand; "" where its source does not say.
State = Literal["finished", "failed", "stopped", "running", ""]
AS_IT_ENDED: dict[State, str] = {
    "stopped": "was pruned or stopped",
    "running": "was still running",
    "": "has no value of the objective, and nothing says why",
    "finished": "finished without a value of the objective",
}


def imported_trial(
    point: Point,
    curve: Curve,
    objective: str,
    *,
    name: str,
    value: float | None,
    ended: State,
    seconds: float = math.nan,
    maximize: bool = False,
    failed_is_infeasible: bool = False,
) -> Trial:
    """The trial of a run: what was kept of it, judged.

    `value` is the objective that its source states for it, which is its best value, whatever was
    evaluated on the way; None if it states none, and the best evaluation is.
    `failed_is_infeasible`: whoever ran it says that what failed had diverged.
    """
    verdict = _verdict(curve, objective, value, ended, maximize)
    if failed_is_infeasible and verdict.crashed:
        verdict = Verdict("diverged", "none", math.inf, f"{verdict.evidence}, taken for diverged")
    verdict = replace(verdict, evidence=f"{name}: {verdict.evidence}")
    trial = Trial.from_curve(point, verdict, curve, objective, seconds, maximize)
    if value is not None and math.isfinite(value):
        trial = replace(trial, best_value=value, best_step=_step_of(value, curve, objective))
    is_from_start = len(curve.eval_step) and curve.eval_step[0] == 0
    return replace(
        trial,
        initial_value=trial.initial_value if is_from_start else math.nan,
        clip_fraction=trial.clip_fraction if len(curve.grad_norm) else math.nan,
    )


def _step_of(value: float, curve: Curve, objective: str) -> float:
    """Where an evaluation has that value; the last one if none has; nan if there are none."""
    values = curve.metrics.get(objective, np.empty(0))
    if not len(values):
        return math.nan
    same = np.flatnonzero(values == value)
    return int(curve.eval_step[same[0] if len(same) else -1])


def _verdict(
    curve: Curve, objective: str, value: float | None, ended: State, maximize: bool
) -> Verdict:
    if len(curve.loss):
        by_curve = judge(curve, objective, maximize=maximize)
        if by_curve.infeasible:
            return by_curve
    elif by_evaluations := _by_evaluations(curve, objective, maximize):
        return by_evaluations
    if value is not None and not math.isfinite(value):
        return Verdict("non_finite", "none", math.inf, f"{objective} is {readable(value)}")
    if ended == "failed":
        return Verdict("crashed", "none", math.inf, "failed; nothing kept of it says why")
    values = curve.metrics.get(objective, np.empty(0))
    is_valued = value is not None or bool(np.isfinite(values).any())
    if ended in ("stopped", "running") or not is_valued:
        return Verdict("unfinished", "none", math.inf, _as_far(curve, objective, value, ended))
    if len(curve.loss):
        return by_curve
    last = float(values[-1]) if value is None else value
    evidence = f"{objective} is {readable(last)} at its end; no loss was kept"
    return Verdict("feasible", "none", math.inf, evidence)


def _by_evaluations(curve: Curve, objective: str, maximize: bool) -> Verdict | None:
    """The verdict where evaluations leave no doubt that training diverged."""
    seen = summarize_evaluations(curve, objective, maximize)
    if seen.state == "non_finite":
        evidence = f"{objective} is nan or infinite from step {seen.step} on"
        return Verdict("non_finite", "none", seen.step, evidence)
    if maximize or seen.state != "worse":
        return None
    if not seen.ended > seen.first + STOPPED_FACTOR * abs(seen.first):
        return None
    evidence = f"{objective} rose from {seen.first:.3g} to {seen.ended:.3g}"
    return Verdict("diverged", "none", seen.step, evidence)


def _as_far(curve: Curve, objective: str, value: float | None, ended: State) -> str:
    """Why a run is unfinished, and how far it had come."""
    why = AS_IT_ENDED.get(ended, "")
    values = curve.metrics.get(objective, np.empty(0))
    if len(values):
        return (
            f"{why} after step {curve.eval_step[-1]}, where {objective} was "
            f"{readable(float(values[-1]))}: no evidence of divergence, and no final value"
        )
    return why if value is None else f"{why}, at {objective} = {readable(value)}"
