"""Clipping by the global gradient norm, fixed or adaptive, and by the norm of each tensor.

The threshold that follows the norms is our answer to a question the playbook leaves open (R19).
With the running mean m and standard deviation s of the norms so far, the norm n_t of update t is
clipped to

    λ_t = min(clip_norm, m + clip_z · s),    after which min(n_t, λ_t) enters m and s²,

so that what the threshold learns from a spike is the clipped norm, and one spike does not open the
gate for the next. m and s² are means with weights β^age, which sum to 1 from the first update on
(bias-corrected):

    w = (1 − β) / (1 − β^(t+1)),    d = min(n_t, λ_t) − m,    m ← m + w d,    s² ← (1 − w)(s² + w
                                    d²).

The first Z_GATHERS updates (the early ones, when norms fall fast) only enter; clip_norm clips them,
too. As long as all norms were equal, s = 0, there is no z-score, and clip_z does not clip. A norm
that is not finite makes m and s² of its own trial meaningless; it is divergence, and ends that
trial (verdict.py).

Source: ZClip, Kumar et al. 2025, arXiv:2504.02507: the z-score, β, the number of first updates, and
that clipped norms enter clipped. Departures: (1) a clipped norm is put *at* the threshold, which is
clipping as R14 defines it; the paper recommends to put a norm of z-score z > clip_z below it, at m
+ clip_z² s / z, the lower the farther out.
(2) m and s² run from the first update on; the paper's start as plain mean and variance of the first
norms.
(3) s² is the exact weighted variance; the paper's code takes both factors of d² from the mean after
the update.
(4) What clip_norm clips enters clipped, too; (5) s = 0 does not clip, where the paper's code adds
1e-6 to s.

Values of 2 to 3 are usual, 2.5 is the paper's. A small clip_z cuts the learning rate (R17), and
below about 1 the threshold cannot follow norms that rise: clipped over and over, s² shrinks, as (1
− w)(1 + w clip_z²) < 1.

Clipping by tensor takes what this leaves of the gradient. With n_i the norm of tensor i, and γ_i
what it usually is, from the update after the first TENSOR_GATHERS on

    h_i = min(1, clip_tensor · γ_i / n_i),    g_i ← h_i g_i,    γ_i ← β γ_i + (1 − β) h_i n_i;

in the first updates h = min(1, 1 / ‖n‖) for all tensors, and γ_i ← min(γ_i, n_i), from γ_i = inf.
A γ grows by at most (1 − β)(clip_tensor − 1) of itself in an update: where norms rise faster, each
is clipped over and over, which is a lower learning rate (R17).

Source: AdaGC, Wang et al. 2025, arXiv:2502.11034: the recurrence, β = 0.98, clip_tensor = 1.05
(λ_rel there), and the global threshold of 1 in the first updates (λ_abs). Departures: (1) the first
updates are 25, not 100, which many trainings hardly have.
(2) clip_norm and clip_z, where they are given, act before it at every update.
(3) A norm of 0 leaves γ_i as it is: of layers behind a weight that starts at 0, the first gradient
is 0, and the paper's γ_i then stays there. A tensor without a gradient in the first updates begins
with its first one.
(4) In the first updates γ_i follows n_i; the paper's follows h n_i, by which norms that are far
above 1 would be cut to a sum of 1 for thousands of updates.

Shapes: K slots of a stack, T updates of one trial, N tensors of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .thresholds import TENSOR_DECAY


def global_norm(gradient_KP: Tensor) -> Tensor:
    """The unclipped L2 norm of each row: [K, P] → [K, 1] (R4, R15).

    In float32 at least: squares overflow float16.
    """
    wide = torch.promote_types(gradient_KP.dtype, torch.float32)
    norm_K1: Tensor = torch.linalg.vector_norm(gradient_KP, dim=1, keepdim=True, dtype=wide)
    return norm_K1


def clip_(gradient_KP: Tensor, norm_K1: Tensor, clip_norm_K1: Tensor) -> None:
    """Scale every row whose norm exceeds its threshold λ down to the threshold, in place:

        g ← g · min(1, λ / ‖g‖).

    λ = inf never clips. Source: Tuning Playbook, "Gradient clipping" (R14); Pascanu et al. 2013.
    """
    gradient_KP.mul_((clip_norm_K1 / norm_K1).clamp_(max=1.0))


@dataclass(frozen=True)
class Gate:
    """What the thresholds of one update depend on besides earlier norms; [K, 1] each, in float64.

    clip_norm   the fixed threshold; inf = off
    clip_z      inf = off, or not yet on
    share       w: what the update's norm contributes to m and s²
    """

    clip_norm: Tensor
    clip_z: Tensor
    share: Tensor


@dataclass(frozen=True)
class TensorGate:
    """What clipping by tensor depends on besides norms; [K, 1] each.

    clip_tensor   a multiple of the usual norm; inf = off, or not yet on
    clip_first    the threshold of the global norm in the first updates; inf = off, or later
    gathers       whether the update is one of the first
    """

    clip_tensor: Tensor
    clip_first: Tensor
    gathers: Tensor


def clip_tensors(norm_KN: Tensor, usual_KN: Tensor, gate: TensorGate) -> tuple[Tensor, Tensor]:
    """The factor of each tensor's gradient, h, and the usual norms γ after this update; [K, N]."""
    global_K1 = torch.linalg.vector_norm(norm_KN, dim=-1, keepdim=True)
    own_KN = gate.clip_tensor * usual_KN / norm_KN
    factor_KN = torch.minimum(own_KN, gate.clip_first / global_K1).clamp_(max=1.0)
    mean_KN = TENSOR_DECAY * usual_KN + (1.0 - TENSOR_DECAY) * factor_KN * norm_KN
    begins_KN = gate.gathers | usual_KN.isinf()
    next_KN = torch.where(begins_KN, torch.minimum(usual_KN, norm_KN), mean_KN)
    return factor_KN, torch.where(norm_KN > 0, next_KN, usual_KN)


def share_clipped(factor_KN: Tensor, norm_KN: Tensor) -> Tensor:
    """The share of the tensors with a gradient that were clipped, [K]."""
    has_gradient_KN = norm_KN > 0
    clipped_K = ((factor_KN < 1.0) & has_gradient_KN).sum(-1)
    return clipped_K / has_gradient_KN.sum(-1).clamp_(min=1)


def tensor_norms(gradients: Sequence[Tensor], wide: torch.dtype) -> Tensor:
    """The L2 norm of each slot's part of each tensor: N times [K, …] → [K, N]."""
    norms = [torch.linalg.vector_norm(one, dim=1, dtype=wide) for one in gradients]
    return torch.stack(norms, dim=1)


def clip_threshold(mean_K1: Tensor, variance_K1: Tensor, gate: Gate) -> Tensor:
    """The threshold of each slot, [K, 1], computed without waiting for the device."""
    z_limit_K1 = torch.where(variance_K1 > 0, mean_K1 + gate.clip_z * variance_K1.sqrt(), math.inf)
    return torch.minimum(gate.clip_norm, z_limit_K1)
