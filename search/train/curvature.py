"""The sharpest direction of the training loss, λ₁, and the base LR that it allows.

P  trainable parameters
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..rules.optimizers import optimizer_of
from ..workload.batches import move_batch
from ..workload.workload import Workload, draw_batches

EXAMPLES = 512  # see some_batches
# residual relative to λ₁, whose own error is of second order in it; float32 allows about 1e-6
TOLERANCE = 1e-3
MAX_RESTARTS = 50  # of Lanczos, some ten Hessian-vector products each; one to three are usual
# of the start vector and of what a model draws (dropout): one loss, not a new one at every product
SEED = 0


def some_batches(
    workload: Workload, batch_size: int, seed: int, examples: int = EXAMPLES
) -> list[Any]:
    """The first training batches of a seed that hold at most `examples` examples together.

    There is at least one.

    The default bounds the cost: a Hessian-vector product is some three forward and backward passes,
    and λ₁ takes 20 to 40 of them. From fewer examples λ₁ comes out too large, being the largest
    value of a noisier matrix: of the digits MLP in training by 20 to 50 % with 128 examples, by 3
    to 10 % with 512, against all 1,077.
    """
    return list(islice(draw_batches(workload, batch_size, seed), max(1, examples // batch_size)))


def largest_eigenvalue(workload: Workload, model: nn.Module, batches: Sequence[Any]) -> float:
    """λ₁, the largest (algebraic) eigenvalue of the training loss's Hessian at the parameters.

        H = ∇² (1/n) Σ_b loss(batch_b),    b = 1 … n,    [P, P], never formed: Lanczos on products H
                                           v

    In training mode, each batch normalized by its own statistics. The model is left as it was,
    buffers, gradients and the caller's random numbers included. Raises ValueError if the loss or a
    product is not finite, if the loss cannot be differentiated twice, and if Lanczos does not
    converge. Source: Gilmer et al. 2021, "A Loss Curvature Perspective on Training Instability in
    Deep Learning" (arXiv 2110.04369).
    """
    call = _Loss(workload, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)

    def product(v_P: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = torch.split(torch.from_numpy(v_P.ravel()), [p.numel() for p in parameters])
        v = [part.view(p.shape).to(p) for part, p in zip(parts, parameters, strict=True)]
        result_P = sum((_product(call, batch, v) for batch in batches), np.zeros(count)) / len(
            batches
        )
        if not np.isfinite(result_P).all():
            raise ValueError(
                "the second derivatives of the training loss are not finite: it has no curvature "
                "here"
            )
        return result_P

    start_P = np.random.default_rng(SEED).standard_normal(count)
    with _as_in_training(model, parameters[0].device):
        first_P = product(start_P)
        # Lanczos needs two dimensions, and a matrix that is not 0
        if count == 1 or not first_P.any():
            return float(first_P[0] / start_P[0])
        hessian = LinearOperator((count, count), matvec=product, dtype=np.float64)
        try:
            found = eigsh(
                hessian,
                k=1,
                which="LA",
                v0=start_P,
                tol=TOLERANCE,
                maxiter=MAX_RESTARTS,
                return_eigenvectors=False,
            )
        except ArpackNoConvergence as error:
            raise ValueError(
                f"λ₁ did not converge in {MAX_RESTARTS} restarts of Lanczos"
            ) from error
    return float(found[0])


class _Loss(nn.Module):
    """A workload's loss as a module around the model.

    So functional_call can lend the model other buffers.
    """

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        super().__init__()
        self.workload, self.model = workload, model

    def forward(self, batch: Any) -> Tensor:
        return self.workload.loss(self.model, batch)


@contextmanager
def _as_in_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode, with gradients, own random numbers, and twice differentiable attention."""
    modes = [(module, module.training) for module in model.modules()]
    if not model.training:  # else a submodule in evaluation mode is trained so
        model.train()
    accelerators = [] if device.type == "cpu" else [device]
    try:
        with (
            torch.random.fork_rng(accelerators, device_type=device.type),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),  # the fused kernels have first derivatives alone
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _product(call: _Loss, batch: Any, v: Sequence[Tensor]) -> NDArray[np.float64]:
    """H v of one batch, [P]: the gradient of gᵀ v."""
    torch.manual_seed(SEED)
    # Lent to the model: a forward pass in training mode writes into buffers, and backward() into
    # leaves.
    leaves = {
        name: p.detach().requires_grad_() for name, p in call.named_parameters() if p.requires_grad
    }
    buffers = {name: buffer.clone() for name, buffer in call.named_buffers()}
    batch = move_batch(batch, v[0].device)
    loss = functional_call(call, leaves | buffers, (batch,))
    if not loss.isfinite():
        raise ValueError(
            f"the training loss is {loss.item()} at these parameters: it has no curvature"
        )
    try:
        gradient = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=True, materialize_grads=True
        )
        slope = torch.stack([(g * part).sum() for g, part in zip(gradient, v, strict=True)]).sum()
        if slope.requires_grad:  # else the loss is linear in the parameters
            # Not autograd.grad, which goes around an operation without second derivative that ends
            # a branch.
            slope.backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"the training loss cannot be differentiated twice: {error}") from error
    parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()]
    return cast(
        NDArray[np.float64], torch.cat([part.double().flatten() for part in parts]).cpu().numpy()
    )


def stability_limit(optimizer: str, settings: Mapping[str, float], eigenvalue: float) -> float:
    """The base LR above which an update rule diverges on a quadratic of curvature λ₁.

    The rule has the full gradient.

        sgd        2 / λ₁
        momentum   (2 + 2γ) / λ₁
        nesterov   (2 + 2γ) / ((1 + 2γ) λ₁)

    There an eigenvalue of the linear map (θ, v) → (θ′, v′) passes −1. inf if λ₁ ≤ 0. nan for the
    adaptive rules: what bounds them is the Hessian preconditioned by their second moments, which λ₁
    does not tell. Noise of small batches makes training diverge earlier; clipping and warmup,
    later. Raises KeyError for an unknown one.

    Source: Gilmer et al. 2021 (arXiv 2110.04369); Cohen et al. 2021, "Gradient Descent on Neural
    Networks Typically Occurs at the Edge of Stability" (arXiv 2103.00065).
    """
    rule = optimizer_of(optimizer)
    if rule.max_stable_lr is None:
        return math.nan
    if eigenvalue <= 0:
        return math.inf
    return rule.max_stable_lr({**rule.defaults, **settings}, eigenvalue)
