"""Clipping by the global gradient norm."""

from __future__ import annotations

import torch
from torch import Tensor


def global_norm(gradient_KP: Tensor) -> Tensor:
    """The unclipped L2 norm of each row: [K, P] → [K, 1] (R4, R15)."""
    norm_K1: Tensor = torch.linalg.vector_norm(gradient_KP, dim=1, keepdim=True)
    return norm_K1


def clip_(gradient_KP: Tensor, norm_K1: Tensor, clip_norm_K1: Tensor) -> None:
    """Scale every row whose norm exceeds its threshold λ down to the threshold, in place:

        g ← g · min(1, λ / ‖g‖).

    λ = inf never clips. Source: Tuning Playbook, "Gradient clipping" (R14); Pascanu et al. 2013.
    """
    gradient_KP.mul_((clip_norm_K1 / norm_K1).clamp_(max=1.0))
