"""A trial as it was after some of its updates."""

import math
from dataclasses import replace

import numpy as np

from tunewright.search.judge.so_far import so_far
from tunewright.search.trial import Curve, Point, Trial, Verdict

STEPS = 60


def trial(**curve):
    loss = np.linspace(2.0, 1.0, STEPS)
    evaluations = np.arange(0, STEPS + 1, 20)
    measured = {
        "loss": loss,
        "grad_norm": loss,
        "eval_step": evaluations,
        "metrics": {"val_loss": 2.0 - evaluations / STEPS},
        "total_steps": STEPS,
    }
    found = Trial.from_curve(
        Point(0, 8, "adam", 0.1, clip_tensor=1.05),
        Verdict("feasible", "none", math.inf, ""),
        Curve(**{**measured, **curve}),
        "val_loss",
        1.0,
    )
    return replace(found, near_epsilon=0.25)


def test_what_was_clipped_of_each_tensor_ends_with_the_losses():
    shares = np.where(np.arange(STEPS) < 20, 0.5, 0.0)
    early = so_far(trial(tensors_clipped=shares), 40, "val_loss")
    assert len(early.curve.loss) == len(early.curve.tensors_clipped) == 40
    assert early.clip_fraction == 0.25


def test_what_is_measured_at_the_end_is_kept_where_that_is_the_end():
    assert so_far(trial(), STEPS, "val_loss").near_epsilon == 0.25
    assert math.isnan(so_far(trial(), 40, "val_loss").near_epsilon)
