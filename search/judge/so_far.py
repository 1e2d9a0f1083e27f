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
        tensors_clipped=None if curve.tensors_clipped is None else curve.tensors_clipped[:step],
    )
    verdict = judge(
        curve,
        objective,
        maximize=trial.maximize,
        divergence=divergence,
        averaged=average_of(trial.point.optimizer) is not None,
    )
    found = Trial.from_curve(
        trial.point, verdict, curve, objective, trial.seconds, maximize=trial.maximize
    )
    ends_here = len(trial.curve.loss) == step  # what is measured at the end is then of this step
    return replace(found, near_epsilon=trial.near_epsilon) if ends_here else found
