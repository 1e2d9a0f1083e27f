"""Make tests/golden/curves.npz: losses and gradient norms of real runs, trained to the end.

    python tests/golden/make_curves.py

The verdicts that judge/test_verdict.py expects of them were written down after looking at each
curve.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import torch

from tunewright.search.study.study import parse_study
from tunewright.search.train import loop
from tunewright.search.trial import Point
from tunewright.search.workload.workload import load_workload

MODELS = "tunewright.models."
# name: workload, its arguments, optimizer, base_lr, seed, steps
RUNS = {
    "mlp_lr_star": ("digits:mlp", {}, "momentum", 0.04, 0, 1000),
    "mlp_too_low_to_learn": ("digits:mlp", {}, "momentum", 1e-6, 0, 400),
    "mlp_slow_collapse": ("digits:mlp", {}, "momentum", 0.25, 1, 1000),
    "mlp_collapse_at_once": ("digits:mlp", {}, "momentum", 1.6, 0, 400),
    "mlp_adam_early_spike_recovers": ("digits:mlp", {}, "adam", 0.1, 0, 1000),
    "residual_no_norm_non_finite": (
        "residual_mlp:digits",
        {"normalization": "none"},
        "momentum",
        0.316,
        0,
        400,
    ),
    "residual_post_norm_diverged": (
        "residual_mlp:digits",
        {"normalization": "post"},
        "momentum",
        0.316,
        0,
        400,
    ),
    "branch_out_early_blow_up_recovers": (
        "residual_mlp:digits",
        {"normalization": "branch_out"},
        "momentum",
        0.06,
        0,
        600,
    ),
    "wide_resnet_noisy_but_stable": ("wide_resnet:digits", {}, "momentum", 0.3, 0, 150),
    "cue_late_blow_up": (
        "on_cue:linear",
        {"cue_step": 150, "kind": "blow_up"},
        "momentum",
        0.05,
        0,
        400,
    ),
    "cue_late_spike_recovers": (
        "on_cue:linear",
        {"cue_step": 200, "kind": "spike"},
        "momentum",
        0.05,
        0,
        400,
    ),
    "cue_nan_late": ("on_cue:linear", {"cue_step": 300, "kind": "nan"}, "momentum", 0.05, 0, 400),
}


def broken(loss, grad_norm, *_):
    return not (np.isfinite(loss).all() and np.isfinite(grad_norm).all())


def main():
    torch.set_num_threads(1)
    arrays = {}
    for name, (workload, arguments, optimizer, base_lr, seed, steps) in RUNS.items():
        document = {
            "workload": MODELS + workload,
            "objective": "val_loss",
            "max_train_steps": steps,
            "batch_sizes": [32],
            "trials": 1,
            "evaluations": 1,
            "space": {"optimizer": {optimizer: {"base_lr": base_lr}}},
        }
        study = parse_study(document, name, name)
        # the whole curve, not only until it is hopeless
        with mock.patch.object(loop, "hopeless", broken):
            point = Point(0, 32, optimizer, base_lr, seed=seed)
            (trained,) = loop.train(study, load_workload(study.workload, arguments), [point])
        curve = trained.trial.curve
        arrays |= {
            f"{name}/loss": curve.loss.astype(np.float32),
            f"{name}/grad_norm": curve.grad_norm.astype(np.float32),
            f"{name}/limits": np.array([curve.total_steps, curve.chance_loss]),
        }
        print(name, trained.trial.verdict)
    np.savez_compressed(Path(__file__).with_name("curves.npz"), **arrays)


if __name__ == "__main__":
    main()
