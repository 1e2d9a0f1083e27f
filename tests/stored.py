"""A small study and finished trials of it, for what is stored and shown."""

import math

import numpy as np
from numpy.typing import ArrayLike

from tunewright.search.study.study import Study, parse_study
from tunewright.search.trial import Curve, Point, Trial, Verdict

STEPS = 100
EVALUATIONS = 51
UNTRAINED = 0.9  # the objective before training


def small_study(**changes: object) -> Study:
    document = {
        "workload": "tunewright.models.digits:mlp",
        "objective": "val_error",
        "max_train_steps": STEPS,
        "batch_sizes": [32],
        "trials": 4,
        "seed": 1,
        "space": {"optimizer": {"momentum": {"base_lr": {"low": 1e-3, "high": 10.0, "log": True}}}},
    }
    return parse_study(document | changes, name="small", place="small.toml")


def point(number: int, base_lr: float, batch_size: int = 32) -> Point:
    return Point(number, batch_size, "momentum", base_lr, seed=1, settings={"momentum": 0.9})


def feasible(number: int, base_lr: float, best_value: float, batch_size: int = 32) -> Trial:
    """Trained: the loss falls from 2, the objective from UNTRAINED to `best_value`."""
    verdict = Verdict("feasible", "none", math.inf, "")
    fall = np.geomspace(UNTRAINED, best_value, EVALUATIONS)
    return _trial(point(number, base_lr, batch_size), verdict, np.geomspace(2.0, 0.1, STEPS), fall)


def diverged(number: int, base_lr: float, onset_step: int, batch_size: int = 32) -> Trial:
    """Non-finite from `onset_step` on; its objective was first better than any that a test calls
    feasible.
    """
    loss = np.full(onset_step + 1, 2.0)
    loss[-1] = math.nan
    values = np.full(EVALUATIONS, math.nan)
    values[:2] = UNTRAINED, 0.001
    verdict = Verdict("non_finite", "early", onset_step, f"loss nan at step {onset_step}")
    return _trial(point(number, base_lr, batch_size), verdict, loss, values)


def _trial(point: Point, verdict: Verdict, loss: ArrayLike, values: ArrayLike) -> Trial:
    loss = np.asarray(loss)
    steps = np.linspace(0, STEPS, EVALUATIONS).astype(np.int64)
    curve = Curve(
        loss, 3.0 * loss, steps, {"val_error": np.asarray(values)}, STEPS, chance_loss=2.3
    )
    return Trial.from_curve(point, verdict, curve, "val_error", seconds=1.25)
