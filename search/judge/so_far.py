"""A trial as it stood on its way."""

from __future__ import annotations

from dataclasses import replace

from ..rules.optimizers import average_of
from ..trial import Trial
from .verdict import judge


def so_far(trial: Trial, step: int, objective: str, divergence: bool = True) -> Trial:
    """A trial as it was after `step` updates, judged as if training had stopped there.

    One that ended before is returned as it is.
    """
    curve = trial.curve
    if len(curve.loss) < step:
        return trial
    seen = curve.eval_step <= step
    curve = replace(
        curve,
        loss=curve.loss[:step],
        grad_norm=curve.grad_norm[:step],
        eval_step=curve.eval_step[seen],
        metrics={name: values[seen] for name, values in curve.metrics.items()},
    )
    verdict = judge(
        curve,
        objective,
        maximize=trial.maximize,
        divergence=divergence,
        averaged=average_of(trial.point.optimizer) is not None,
    )
    return Trial.from_curve(
        trial.point, verdict, curve, objective, trial.seconds, maximize=trial.maximize
    )
