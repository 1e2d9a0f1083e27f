"""The repeated proof, in training, that a stack or a recording computes what the model does.

What was equal in the first updates may differ later: another branch is taken, numbers have other
sizes. So before a trial is handed out, the last update of one of the slots is computed again by the
model alone, from the parameters, buffers and batch that the slot had: its loss, its gradient norm,
the buffers after it and, if it was just evaluated, its metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..workload.randomness import seed_all
from ..workload.workload import Workload, evaluation_mode, numbers
from .execution import Call
from .rows import Stack
from .ties import fixed_tensors

# Relative; the same operations in another order. At a ReLU's kink a gradient jumps, and a gradient
# that has become small is a difference of large numbers, so that norms have more room than losses.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
IN_BFLOAT16 = 5e-2  # three decimal digits, and a few of them lost
NORMS = 10.0  # times the tolerance of losses
SMALL = 1e-3  # of its first value: below, a loss, a norm or a metric is compared with this
# buffers are statistics of numbers of size 1: below, rounding would be all that is compared
SMALL_BUFFER = 1e-3


class StackingError(RuntimeError):
    """A stack or a recording computed other values than the model alone, from the same state."""


def relative_difference(ours: ArrayLike, others: ArrayLike, floor: float = 1e-12) -> float:
    """max |a − b| / max(max |a|, floor).

    0 where both are not a number or the same infinity, inf where only one is.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(others, np.float64)
    if a.shape != b.shape:
        return np.inf
    differing = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differing.any():
        return 0.0
    if not (np.isfinite(a[differing]).all() and np.isfinite(b[differing]).all()):
        return np.inf
    largest = np.abs(a[np.isfinite(a)]).max(initial=floor)
    return float(np.abs(a[differing] - b[differing]).max() / largest)


@dataclass
class _Moment:
    """An update of one slot: what it started from, and what the stack made of it."""

    slot: int
    values: dict[str, Tensor]
    batch: Any
    loss: Tensor | None = None
    norm: Tensor | None = None
    buffers: Mapping[str, Tensor] | None = None


class Audit:
    """Checks a stack: `before` and `after` an update of a slot, `check` when it matters."""

    def __init__(self, stack: Stack, workload: Workload, model: nn.Module, bfloat16: bool) -> None:
        self._stack, self._model = stack, model
        self._call = Call(workload, model, bfloat16)
        tolerance = TOLERANCE.get(stack.dtype, TOLERANCE[torch.float32])
        self._tolerance = IN_BFLOAT16 if bfloat16 else tolerance
        self._moment: _Moment | None = None

    def before(self, slot: int, batch: Any) -> None:
        """Remember where a slot stands, before its update on its own batch."""
        values = {name: tensor.clone() for name, tensor in self._stack.values(slot).items()}
        self._moment = _Moment(slot, values, batch)

    def after(self, loss_K: Tensor, norm_K1: Tensor) -> None:
        """Remember what the stack made of it."""
        if self._moment:
            slot = self._moment.slot
            self._moment.loss, self._moment.norm = loss_K[slot].clone(), norm_K1[slot, 0].clone()
            self._moment.buffers = {
                name: tensor.clone() for name, tensor in self._stack.buffers(slot).items()
            }

    def check(
        self,
        first: tuple[float, float],
        metrics: Mapping[str, Sequence[float]] | None,
        seed: int,
    ) -> None:
        """Raise StackingError if the model alone finds other numbers.

        Takes random numbers of the process.

        `first` are the slot's loss and gradient norm at its first update; `metrics` its evaluations
        so far, if the last of them belongs to the parameters that it has now, and `seed` that of
        the last one.
        """
        moment, self._moment = self._moment, None
        if moment is None or moment.loss is None or moment.norm is None:
            return
        self._put(moment.values)
        loss, norm = self._gradients(moment.batch)
        self._compare("loss", float(moment.loss), loss, SMALL * abs(first[0]))
        self._compare("gradient norm", float(moment.norm), norm, SMALL * abs(first[1]), NORMS)
        own = fixed_tensors(self._model)
        for name, tensor in (moment.buffers or {}).items():
            self._compare(f"buffer {name!r}", _array(tensor), _array(own[name]), SMALL_BUFFER)
        if metrics is not None:
            self._put(self._stack.evaluated(moment.slot))
            seed_all(seed)
            with torch.no_grad(), evaluation_mode(self._model):
                found = numbers(self._call("evaluate"))
            for name, values in metrics.items():
                scale = SMALL * abs(values[0]) if np.isfinite(values[0]) else 0.0
                self._compare(f"metric {name!r}", values[-1], found.get(name, np.nan), scale)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        own = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        for name, tensor in values.items():
            own[name].copy_(tensor)

    def _gradients(self, batch: Any) -> tuple[float, float]:
        """Loss and gradient norm of the model alone; its gradients are forgotten at once."""
        loss = self._call("loss", batch)
        loss.backward()
        norms = [
            torch.linalg.vector_norm(p.grad, dtype=torch.promote_types(p.dtype, torch.float32))
            for p in self._model.parameters()
            if p.grad is not None
        ]
        self._model.zero_grad()
        return float(loss.detach()), float(torch.stack(norms).square().sum().sqrt())

    def _compare(self, what: str, ours: Any, alone: Any, small: float, room: float = 1.0) -> None:
        difference = relative_difference(ours, alone, max(small, 1e-30))
        if not difference <= room * self._tolerance:
            raise StackingError(
                f"later in training the {what} differs by {difference:.1e} from the model alone"
            )


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float64).numpy()
