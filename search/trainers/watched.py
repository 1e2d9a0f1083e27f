"""A torch optimizer that somebody else steps, with learning rates, norms and clipping of a trial.

Learning rates are set, gradients measured and clipped, just before each of its updates. The order
within one update is that of the study's own loop: the unclipped norm is taken (R4, R15), then
gradients are clipped (R14), then the optimizer steps with the learning rate of that update. Nothing
here waits for the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError, warn_once
from ..rules.clipping import Gate, TensorGate, clip_tensors, clip_threshold, share_clipped
from ..rules.thresholds import TENSOR_FIRST, TENSOR_GATHERS, clip_z_of, share_of, update_moments
from ..train.recorder import Recorder

MAKE_IT = "make it by run.optimizer(model), or call run.watch(optimizer)"


class MisuseError(UserError):
    """A mistake of a user's own training that every trial of its study would repeat."""


def never_reported(objective: str, told: Collection[str]) -> MisuseError:
    """The mistake of a training that told these metrics, and not the objective."""
    hint = f"what was: {', '.join(told)}" if told else "call run.report where run.evaluation_due"
    return MisuseError(f"objective: {objective!r} was never reported; {hint}")


class Updates:
    """The losses of a training between its updates, and what the recorder is told of each update.

    An update's loss is the mean of the losses since the update before it: of one batch, or of the
    parts over which gradients are accumulated.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._losses: list[Tensor | float] = []

    @property
    def is_waiting(self) -> bool:
        """Whether there is a loss that no update has taken."""
        return bool(self._losses)

    def add_loss(self, loss: Tensor | float) -> None:
        """Remember the loss of a batch. Raises MisuseError unless it is one number."""
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise MisuseError(f"loss: must be one number, got shape {tuple(loss.shape)}")
            loss = loss.detach().reshape(())
        else:
            loss = float(loss)
        self._losses.append(loss)

    def forget_losses(self) -> None:
        """Drop them: the update that they belonged to was skipped."""
        self._losses.clear()

    def record(self, norm: Tensor, clipped: Tensor | None = None) -> None:
        """Add an update of this unclipped gradient norm, and share of tensors that are clipped.

        Raises MisuseError if there is no loss.
        """
        if not self._losses:
            raise MisuseError(
                "loss: none was told before optimizer.step(): call run.loss(loss) for each batch"
            )
        loss = self._losses[0] if len(self._losses) == 1 else sum(self._losses) / len(self._losses)
        self._losses.clear()
        self.recorder.record(loss, norm, clipped)


class Clipping:
    """Clipping of one training at `clip_norm`, at the threshold that `clip_z` sets, or the smaller;
    then of each tensor by `clip_tensor`.

    `clipping` says how thresholds follow the norms.
    """

    def __init__(
        self,
        clip_norm: float = math.inf,
        clip_z: float = math.inf,
        clip_tensor: float = math.inf,
    ) -> None:
        self._clip_norm, self._clip_z, self._clip_tensor = clip_norm, clip_z, clip_tensor
        self._update = 0
        self._moments: tuple[Tensor, Tensor] | None = None  # m and s² of the norms, float64
        self.usual_norms = torch.empty(0)  # γ of each parameter in the order of the optimizer, [N]

    def resume(
        self, norms: NDArray[np.float64], device: torch.device, usual_norms: Tensor | None = None
    ) -> None:
        """Go on after updates of these unclipped norms, [T], with the usual norms that were kept.

        Raises KeyError if there are none, and this clips by tensor.
        """
        self._update, self._moments = 0, None
        for norm in norms:
            self._threshold(torch.tensor(norm, device=device))
            self._update += 1
        if self._clip_tensor < math.inf:
            if usual_norms is None:
                raise KeyError("the usual norm of each tensor")
            self.usual_norms = usual_norms.to(device)

    def clip_(self, parameters: Sequence[Tensor], norm: Tensor) -> Tensor | None:
        """Scale the gradients of parameters, of this global norm, down in place.

        Those that have none are passed over. Returns the share of tensors that were clipped by
        their own norm; None if that is off.
        """
        gradients = [one.grad for one in parameters if one.grad is not None]
        if min(self._clip_norm, self._clip_z) < math.inf:
            scale = (self._threshold(norm) / norm).clamp(max=1.0)
            if len({gradient.device for gradient in gradients}) == 1:
                torch._foreach_mul_(gradients, scale.to(gradients[0].device))
            else:
                for gradient in gradients:
                    gradient.mul_(scale.to(gradient.device))
        share = self._clip_tensors_(parameters) if self._clip_tensor < math.inf else None
        self._update += 1
        return share

    def _clip_tensors_(self, parameters: Sequence[Tensor]) -> Tensor:
        """Scale each gradient down to its own threshold; its norm, clipped, enters γ."""
        gradients = [one.grad for one in parameters if one.grad is not None]
        each = _norms_of(gradients)
        found, zero = iter(each), torch.zeros_like(each[0])
        norms = torch.stack([zero if one.grad is None else next(found) for one in parameters])
        usual = self.usual_norms.to(norms)
        new = norms.new_full((len(norms) - len(usual),), math.inf)  # at first, or of a new group
        gathers = self._update < TENSOR_GATHERS
        gate = TensorGate(
            clip_tensor=norms.new_full((), math.inf if gathers else self._clip_tensor),
            clip_first=norms.new_full((), TENSOR_FIRST if gathers else math.inf),
            gathers=torch.full_like(norms, gathers, dtype=torch.bool),
        )
        factors, self.usual_norms = clip_tensors(norms, torch.cat([usual, new]), gate)
        for one, factor in zip(parameters, factors.unbind(), strict=True):
            if one.grad is not None:
                one.grad.mul_(factor.to(one.grad.device))
        return share_clipped(factors, norms)

    def _threshold(self, norm: Tensor) -> Tensor | float:
        """λ of this update; then its norm, clipped, enters m and s²."""
        if self._clip_z == math.inf:
            return self._clip_norm
        norm = norm.double()
        if self._moments is None:
            self._moments = torch.zeros_like(norm), torch.zeros_like(norm)
        update = np.array([self._update])
        gate = Gate(
            clip_norm=torch.full_like(norm, self._clip_norm),
            clip_z=torch.full_like(norm, float(clip_z_of(update, self._clip_z)[0])),
            share=torch.full_like(norm, float(share_of(update)[0])),
        )
        threshold = clip_threshold(*self._moments, gate)
        self._moments = update_moments(*self._moments, torch.minimum(norm, threshold), gate.share)
        return threshold


class WatchedOptimizer:
    """A torch optimizer whose updates are prepared by `prepare`.

    A hook calls `prepare` before each step of the optimizer; if `hooked` is false, the caller does,
    once gradients are whole, or hands over their norm (`measured`).

    `learning_rate` gives the LR of an update by its number; None leaves LRs as they are. Each
    parameter group keeps its ratio to `reference_lr`, by default the LR of the first group.
    `tell` is called after each step with the norm of its gradients before they were clipped, and
    what `clipping` says of it; a step that a GradScaler skips is none.
    Raises MisuseError for an optimizer whose gradients cannot be seen before they are used.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tell: Callable[[Tensor, Tensor | None], None],
        clipping: Clipping,
        learning_rate: Callable[[], float] | None = None,
        reference_lr: float | None = None,
        hooked: bool = True,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise MisuseError(
                f"watch: must be given a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        self.optimizer, self.clipping = optimizer, clipping
        self._tell, self._learning_rate = tell, learning_rate
        self.reference_lr = reference_lr or float(optimizer.param_groups[0]["lr"]) or math.nan
        if learning_rate and not 0 < self.reference_lr < math.inf:
            raise MisuseError(
                "watch: the first parameter group's lr must be a number > 0, as all groups keep "
                f"their ratio to it, got {optimizer.param_groups[0]['lr']}"
            )
        self._ratios: list[float] = []  # of each group's LR to the reference
        self._lrs: dict[int, float] = {}  # that were set last, by the place of the group
        self._see_groups()
        # of the step that comes next
        self._norm: Tensor | None = None
        self._clipped: Tensor | None = None
        self._had_gradient = False  # since the last step
        self._hooks = [optimizer.register_step_post_hook(self._after_step)]
        self._pre_hook = optimizer.register_step_pre_hook(self._before_step) if hooked else None
        groups = optimizer.param_groups
        first = (one for group in groups for one in group["params"] if one.requires_grad)
        self._hooks += [
            parameter.register_post_accumulate_grad_hook(self._see_gradient)
            for parameter in list(first)[:1]
        ]

    def release(self) -> None:
        """Leave the optimizer alone from here on."""
        self.leave_to_caller()
        for hook in self._hooks:
            hook.remove()

    def leave_to_caller(self) -> None:
        """From here on the caller prepares each step, as with hooked=False."""
        if self._pre_hook:
            self._pre_hook.remove()

    @property
    def is_cleared(self) -> bool:
        """Whether no parameter has a gradient."""
        return all(
            parameter.grad is None
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        )

    def has_skipped(self) -> bool:
        """Whether there were gradients after the last step that are gone without one, as where a
        GradScaler skips it; said once.
        """
        skipped = self._had_gradient and self.is_cleared
        self._had_gradient = self._had_gradient and not skipped
        return skipped

    def measured(self, norm: Tensor) -> None:
        """Take the norm of the update that comes next from who measured it, and clips it."""
        self._norm = norm.detach()

    def prepare(self) -> None:
        """Measure and clip the gradients of the update that comes next, and set its LRs. Without
        gradients none comes.
        """
        self._norm = None
        if not self.is_cleared:
            self._prepare()

    @torch.no_grad()
    def _prepare(self) -> None:
        self._norm = global_norm(self._gradients())
        self._clipped = self.clipping.clip_(self._parameters(), self._norm)
        if self._learning_rate:
            self._set_lr(self._learning_rate())

    def _before_step(self, optimizer: Optimizer, args: Sequence[Any], kwargs: Any) -> None:
        if any(callable(value) for value in (*args[1:], *kwargs.values())):
            raise MisuseError(
                "watch: optimizer.step(closure) computes its gradients after they could be seen: "
                "call loss.backward(), then optimizer.step()"
            )
        if getattr(optimizer, "found_inf", None) is not None:
            raise MisuseError(
                "watch: a fused optimizer decides in its kernel whether it skips an update of a "
                "GradScaler: make it without fused=True"
            )
        self._prepare()

    def _after_step(self, optimizer: Optimizer, args: Sequence[Any], kwargs: Any) -> None:
        norm, self._norm, self._had_gradient = self._norm, None, False
        if norm is not None:
            self._tell(norm, self._clipped)

    def _see_gradient(self, parameter: Tensor) -> None:
        self._had_gradient = True

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _gradients(self) -> list[Tensor]:
        found = [one.grad for one in self._parameters() if one.grad is not None]
        if not found:
            raise MisuseError(
                "watch: no parameter has a gradient at optimizer.step(): call loss.backward() "
                "before it, and zero_grad() after it"
            )
        if any(gradient.layout != torch.strided for gradient in found):
            raise MisuseError("watch: sparse gradients cannot be measured: use sparse=False")
        return found

    def _see_groups(self) -> None:
        """Remember the LR of groups that are new: `prepare` overwrites it."""
        for group in self.optimizer.param_groups[len(self._ratios) :]:
            self._ratios.append(float(group["lr"]) / self.reference_lr)

    def _set_lr(self, learning_rate: float) -> None:
        self._see_groups()
        for place, group in enumerate(self.optimizer.param_groups):
            wanted = learning_rate * self._ratios[place]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(wanted)
                continue
            if group["lr"] != self._lrs.get(place, group["lr"]):
                warn_once(
                    "watch: something else, a scheduler say, sets the learning rate of the watched "
                    "optimizer; the study's own schedule replaces it at every update"
                )
            group["lr"] = self._lrs[place] = wanted


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients together, a scalar, in float32 at least: squares of numbers in
    half precision overflow, or lose what a norm needs.
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(_norms_of(gradients)))
    return norm


def _norms_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norm of each gradient, on the device of the first."""
    dtypes = {gradient.dtype for gradient in gradients}
    wide = functools.reduce(torch.promote_types, dtypes, torch.float32)
    norms = list(torch._foreach_norm(list(gradients), 2.0, wide))
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.to(norms[0].device) for norm in norms]
    return norms
