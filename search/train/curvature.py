"""The sharpest direction of the training loss, λ₁, and the base LR that it allows: at given
parameters, and at a few steps of a training.

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

from ..judge.edge_ratio import EdgeRatio, EdgeRun
from ..rules.optimizers import optimizer_of
from ..rules.schedule import learning_rates
from ..study.study import Study
from ..trial import Point
from ..workload.batches import move_batch
from ..workload.randomness import own_random_numbers
from ..workload.workload import Workload, build_model, draw_batches
from .loop import train

EXAMPLES = 512  # see some_batches
# residual relative to λ₁, whose own error is of second order in it; float32 allows about 1e-6
TOLERANCE = 1e-3
MAX_RESTARTS = 50  # of Lanczos, some ten Hessian-vector products each; one to three are usual
# of the start vector and of what a model draws (dropout): one loss, not a new one at every product
SEED = 0
LOOKS = 6  # steps of a training at which λ₁ is measured, evenly spaced on a log axis


class NotFiniteError(ValueError):
    """There is no curvature at parameters whose loss, or its derivative, is not finite."""


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


def largest_eigenvalue(
    workload: Workload, model: nn.Module, batches: Sequence[Any], divisor: Tensor | None = None
) -> float:
    """λ₁, the largest (algebraic) eigenvalue of the training loss's Hessian at the parameters.

        H = ∇² (1/n) Σ_b loss(batch_b),    b = 1 … n,    [P, P], never formed: Lanczos on products H
                                           v

    With a divisor P, [P], > 0, of the trainable parameters in the model's order: λ₁ of P⁻¹ H, which
    is that of P^(−1/2) H P^(−1/2), symmetric. Where P is inf the parameter is held.

    In training mode, each batch normalized by its own statistics. The model is left as it was,
    buffers, gradients and the caller's random numbers included. Raises NotFiniteError if the loss
    or a product is not finite, and ValueError if the loss cannot be differentiated twice, and if
    Lanczos does not converge. Source: Gilmer et al. 2021, "A Loss Curvature Perspective on Training
    Instability in Deep Learning" (arXiv 2110.04369).
    """
    call = _Loss(workload, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    scale_P = np.ones(count) if divisor is None else divisor.double().cpu().numpy() ** -0.5

    def product(v_P: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled_P = torch.from_numpy(scale_P * v_P.ravel())
        parts = torch.split(scaled_P, [p.numel() for p in parameters])
        v = [part.view(p.shape).to(p) for part, p in zip(parts, parameters, strict=True)]
        result_P = sum((_product(call, batch, v) for batch in batches), np.zeros(count)) / len(
            batches
        )
        if not np.isfinite(result_P).all():
            raise NotFiniteError(
                "the second derivatives of the training loss are not finite: it has no curvature "
                "here"
            )
        return np.asarray(scale_P * result_P)

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
        raise NotFiniteError(
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
    """The learning rate above which an update rule diverges on a quadratic of curvature λ₁.

    The rule has the full gradient. λ₁ is that of H, or of P⁻¹ H for a rule that divides its steps
    by P (`SecondMoment.divisor`), which is held.

        sgd             2 / λ₁
        momentum        (2 + 2γ) / λ₁
        nesterov        (2 + 2γ) / ((1 + 2γ) λ₁)
        rmsprop         (2 + 2γ) / λ₁
        adam, adamw     (2 + 2β₁) / ((1 − β₁) λ₁), 38 / λ₁ by default
        nadam           (2 + 2β₁) / ((1 + 2β₁) (1 − β₁) λ₁)

    There an eigenvalue of the linear map (θ, v) → (θ′, v′) passes −1. inf if λ₁ ≤ 0. nan for other
    rules. Weight decay, which adds next to nothing, is left out. Noise of small batches makes
    training diverge earlier; clipping and warmup, later. Raises KeyError for an unknown one.

    Source: Gilmer et al. 2021 (arXiv 2110.04369); Cohen et al. 2021, "Gradient Descent on Neural
    Networks Typically Occurs at the Edge of Stability" (arXiv 2103.00065), and 2022, "Adaptive
    Gradient Methods at the Edge of Stability" (arXiv 2207.14484), whose P has the bias correction
    of m, as here.
    """
    rule = optimizer_of(optimizer)
    if rule.max_stable_lr is None:
        return math.nan
    if eigenvalue <= 0:
        return math.inf
    return rule.max_stable_lr({**rule.defaults, **settings}, eigenvalue)


# --- at a few steps of a training ---------------------------------------------------------------


class _Snapshots:
    """Keeps what a training was at some of its steps."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps
        self.seen: list[tuple[int, Mapping[str, Tensor], Tensor | None]] = []

    def look(self, step: int, values: Mapping[str, Tensor], divisor: Tensor | None) -> None:
        self.seen.append((step, values, divisor))


def follow_edge(
    study: Study,
    workload: Workload,
    point: Point,
    examples: int = EXAMPLES,
    most_steps: int | None = None,
) -> EdgeRun:
    """Train a point again, alone on the CPU, and measure how near it is to the edge of stability.

    Looks after LOOKS numbers of updates, log-spaced from 1 to the end, or to `most_steps`; it ends
    there. λ₁ is that of `some_batches`, and the learning rate that of the next update. Raises
    ValueError as `largest_eigenvalue`, but for a loss that is not finite.
    """
    updates = study.updates(point)
    last = min(updates, most_steps or updates)
    steps = sorted({round(step) for step in np.geomspace(1, last, LOOKS)})
    snapshots = _Snapshots(steps)
    (trained,) = train(study, workload, [point], observer=snapshots)
    rates = learning_rates(point, study.schedule(point))
    with own_random_numbers():
        model = build_model(workload, point.seed, point.batch_size, torch.device("cpu"))
    batches = some_batches(workload, point.batch_size, point.seed, examples)
    found = []
    for step, values, divisor in snapshots.seen:
        _put(model, values)
        try:
            eigenvalue = largest_eigenvalue(workload, model, batches, divisor)
        except NotFiniteError:  # it has diverged
            break
        rate = float(rates[min(step, updates - 1)])
        limit = stability_limit(point.optimizer, point.settings, eigenvalue)
        found.append(EdgeRatio(step, rate, eigenvalue, rate / limit))
    return EdgeRun(point.base_lr, point.optimizer, trained.trial.verdict.outcome, tuple(found))


@torch.no_grad()
def _put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a model the parameters and buffers of a snapshot."""
    for own in (model.named_parameters(), model.named_buffers()):
        for name, tensor in own:
            if name in values:
                tensor.copy_(values[name])
