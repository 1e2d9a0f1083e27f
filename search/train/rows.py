"""K models of one shape as rows of one buffer: norm, clip and update for all at once.

Shapes: K slots, P trainable parameters of one model. `theta` [K, P] holds the parameters, a row a
slot, and `gradient` [K, P] their gradients; the model's tensors are views of them. So norm,
clipping and update are a few operations on whole rows, however many tensors a model has.

Where losses, gradients and metrics come from is the execution's (execution.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..rules.clipping import (
    Gate,
    TensorGate,
    clip_,
    clip_tensors,
    clip_threshold,
    global_norm,
    share_clipped,
    tensor_norms,
)
from ..rules.optimizers import (
    PARAMETERS,
    RULES,
    average_of,
    is_of_torch,
    state_of,
    updates_matrices,
)
from ..rules.pieces import Piece, pieces_of
from ..rules.thresholds import update_moments
from ..trial import Point
from .by_torch import ByTorch
from .execution import FEWEST_STACKED, Execution, Rows
from .ties import fixed_tensors

# Parameters that an update touches at once: its intermediate results stay small, and in the cache.
UPDATED_AT_ONCE = 65_536
# What a slot remembers of its earlier gradient norms, and how that begins: mean and variance of
# the global norm, and γ of each tensor (clipping.py).
EARLIER_NORMS = {"norm_mean": 0.0, "norm_variance": 0.0, "tensor_norm": math.inf}


class Stack:
    """K slots, the used ones first and ordered by optimizer: each update rule has one block."""

    def __init__(
        self,
        execution: Execution,
        slots: int,
        optimizers: Iterable[str],
        follows_norms: bool = False,
    ) -> None:
        """A stack with the shape of an execution's model.

        `load` fills its slots, or `adopt` its only one. It has rows for the states of the rules of
        `optimizers`, and trains with no other. With `follows_norms` a slot may have thresholds
        that follow its gradient norms (`clip_threshold`, `clip_tensors`). Raises UserError if the
        model's trainable parameters differ in device or dtype.
        """
        model = execution.model
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kinds = {(p.device, p.dtype) for p in trainable.values()}
        if len(kinds) != 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
            raise UserError(
                f"workload: the model's parameters must share one device and dtype; found {found}"
            )
        if not next(iter(kinds))[1].is_floating_point:
            raise UserError(
                f"workload: the model's parameters are {next(iter(kinds))[1]}, for which there "
                "are no update rules: keep real and imaginary parts as two real parameters "
                "(torch.view_as_complex)"
            )
        self.device, self.dtype = next(iter(kinds))
        # of norms, coefficients and optimizer states
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self._shapes = {name: p.shape for name, p in trainable.items()}
        self._offsets: dict[str, tuple[int, int]] = {}
        width = 0
        for name, p in trainable.items():
            self._offsets[name] = (width, width + p.numel())
            width += p.numel()
        self._execution, self.slots = execution, execution.rows_for(slots)
        shape = (self.slots, width)
        self._rows = {
            name: torch.zeros(shape, device=self.device, dtype=self.dtype)
            for name in ("theta", "best")
        }
        self._pieces = self._pieces_by_rule(optimizers)
        names = dict.fromkeys(name for rule in optimizers for name in state_of(rule))
        self._state = {
            name: torch.zeros(shape, device=self.device, dtype=self.wide) for name in names
        }
        # Not written before the first backward pass, which holds all gradients at once while it is
        # recorded.
        self._rows["gradient"] = torch.empty(shape, device=self.device, dtype=self.dtype)
        # Parameters that are not trained belong to a slot, too: another seed may have drawn others.
        fixed = fixed_tensors(model)
        self._buffers = {name: torch.stack([tensor] * self.slots) for name, tensor in fixed.items()}
        self._best_buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        # Those of the global norm in float64: the host repeats their recurrence
        # (`thresholds.clip_thresholds`), and must find the same updates clipped.
        each = {"tensor_norm": (len(self._offsets), self.wide)}
        self._norms = {}
        for name, value in EARLIER_NORMS.items() if follows_norms else ():
            numbers, dtype = each.get(name, (1, torch.float64))
            size = (self.slots, numbers)
            self._norms[name] = torch.full(size, value, device=self.device, dtype=dtype)
        self._without_gradient: Sequence[str] = []  # parameters, in the last update
        self._by_torch: ByTorch | None = None
        self._optimizers = [""] * self.slots  # of each slot; idle ones may have one
        self._make_views()
        if not execution.builds_anew:  # else the model keeps its values until it is adopted
            execution.bind(self._tensors)

    def _pieces_by_rule(self, optimizers: Iterable[str]) -> dict[str, list[Piece]]:
        """What each rule updates at once: all, or what lies between its matrices, in chunks."""
        shapes = list(self._shapes.values())
        as_numbers = pieces_of(shapes, (), UPDATED_AT_ONCE)
        found = {name: as_numbers for name in optimizers if not is_of_torch(name)}
        of_matrices = list(filter(updates_matrices, found))
        if of_matrices:
            matrices = self._execution.matrices()
            places = {place for place, name in enumerate(self._shapes) if name in matrices}
            pieces = pieces_of(shapes, places, UPDATED_AT_ONCE)
            found |= dict.fromkeys(of_matrices, pieces)
        return found

    def _views(self, rows_KP: Tensor) -> dict[str, Tensor]:
        """The model's tensors, as parts of rows."""
        return {
            name: rows_KP[:, start:stop].view(len(rows_KP), *self._shapes[name])
            for name, (start, stop) in self._offsets.items()
        }

    def _make_views(self) -> None:
        """Of the current rows."""
        self._values = self._views(self._rows["theta"])
        self._gradients = self._views(self._rows["gradient"])
        self._tensors = Rows(self._values, self._gradients, self._buffers)

    def values(self, slot: int) -> dict[str, Tensor]:
        """A slot's parameters and buffers, as views: of training."""
        return {name: rows[slot] for name, rows in self._values.items()} | self.buffers(slot)

    def evaluated(self, slot: int) -> dict[str, Tensor]:
        """The same, but the parameters are those that are evaluated and kept."""
        views = self._views(self._evaluated_row(slot)[None])
        return {name: rows[0] for name, rows in views.items()} | self.buffers(slot)

    def _evaluated_row(self, slot: int) -> Tensor:
        """The parameters that are evaluated and kept, [P]: of some rules an average of them."""
        average = average_of(self._optimizers[slot])
        held = self._state[average.state] if average else self._rows["theta"]
        return held[slot].to(self.dtype)

    def buffers(self, slot: int) -> dict[str, Tensor]:
        """A slot's buffers and parameters that are not trained, as views."""
        return {name: rows[slot] for name, rows in self._buffers.items()}

    def adopt(self, model: nn.Module, point: Point) -> None:
        """Train a new model, alone, with a fresh optimizer state.

        Raises UserError for an optimizer of torch that cannot be made.
        """
        self._execution.adopt(model)
        initial = {name: p.detach() for name, p in model.named_parameters()}
        self._fill(0, {**initial, **dict(model.named_buffers())}, point.optimizer)
        self._execution.bind(self._tensors)
        self.keep_best(0)
        self._by_torch = ByTorch(model, point) if is_of_torch(point.optimizer) else None

    @torch.no_grad()
    def load(self, slot: int, initial: Mapping[str, Tensor], optimizer: str) -> None:
        """Put a model's parameters and buffers, and a fresh optimizer state, into a slot."""
        self._fill(slot, initial, optimizer)
        self.keep_best(slot)

    @torch.no_grad()
    def _fill(self, slot: int, initial: Mapping[str, Tensor], optimizer: str) -> None:
        for name, values in self._values.items():
            values[slot].copy_(initial[name])
        for name, rows in self._buffers.items():
            rows[slot].copy_(initial[name])
        self._optimizers[slot] = optimizer
        for name, rows in self._state.items():
            start = state_of(optimizer).get(name, 0.0)
            rows[slot] = self._rows["theta"][slot] if start == PARAMETERS else start
        for name, rows in self._norms.items():
            rows[slot] = EARLIER_NORMS[name]

    def snapshot(self, slot: int) -> dict[str, Tensor]:
        """A copy of a slot's parameters and buffers, by their names in the model."""
        values = {name: rows[slot] for name, rows in self._values.items()}
        values |= self._execution.buffers(self._tensors, slot)
        return {name: tensor.detach().clone() for name, tensor in values.items()}

    def optimizer_state(self, slot: int, optimizer: str) -> dict[str, Tensor]:
        """A slot's state of the rule that trains it, [P] each, as views."""
        return {name: self._state[name][slot] for name in state_of(optimizer)}

    def arrange(self, order: Sequence[int], shrink: bool) -> None:
        """Move the slots named to the front, in this order.

        To shrink, half of the rows are dropped while they are idle. Halving, not fitting: every K
        that is used costs a trace, and not all may shrink.
        """
        slots, fewest = self.slots, max(len(order), FEWEST_STACKED)
        while shrink and self._execution.may_shrink and slots // 2 >= fewest:
            slots //= 2
        if slots == self.slots and list(order) == list(range(len(order))):
            return
        idle = [k for k in range(self.slots) if k not in order]
        places = [*order, *idle][:slots]
        index = torch.tensor(places, device=self.device)
        self._optimizers = [self._optimizers[k] for k in places]
        # views that would keep the old rows alive
        self._values, self._gradients = {}, {}
        self._tensors = Rows({}, {}, {})
        for held in (self._rows, self._state, self._norms, self._buffers, self._best_buffers):
            for name in held:
                if slots < self.slots:
                    held[name] = held[name][index]
                else:  # in blocks, never two copies of all
                    for block in torch.split(
                        held[name].view(self.slots, -1), UPDATED_AT_ONCE, dim=1
                    ):
                        block.copy_(block[index])
        self.slots = slots
        self._make_views()
        self._execution.bind(self._tensors)

    def gradients(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Loss [K] and unclipped gradient norm [K, 1] at the current parameters.

        Fills the gradient buffer.
        """
        loss, self._without_gradient = self._execution.gradients(self._tensors, batch)
        return loss.view(self.slots), global_norm(self._rows["gradient"])

    def evaluate(self, seeds: Sequence[int]) -> dict[str, list[float]]:
        """What `evaluate` returns for every slot, by metric.

        The process's generators are seeded for each slot. A slot whose rule evaluates an average
        lends its row to that meanwhile, and gets its parameters back as they were.
        """
        theta = self._rows["theta"]
        lent = [k for k, name in enumerate(self._optimizers) if average_of(name)]
        trained = theta[lent]
        with torch.no_grad():
            for k in lent:
                theta[k].copy_(self._evaluated_row(k))
        found = self._execution.evaluate(self._tensors, seeds)
        with torch.no_grad():
            theta[lent] = trained
        return found

    @torch.no_grad()
    def clip_threshold(self, norm_K1: Tensor, gate: Gate) -> Tensor:
        """The clip thresholds of this update, [K, 1]; its norms enter those of the next."""
        mean_K1, variance_K1 = self._norms["norm_mean"], self._norms["norm_variance"]
        limit_K1 = clip_threshold(mean_K1, variance_K1, gate)
        clipped_K1 = torch.minimum(norm_K1.to(torch.float64), limit_K1)
        mean_K1, variance_K1 = update_moments(mean_K1, variance_K1, clipped_K1, gate.share)
        self._norms |= {"norm_mean": mean_K1, "norm_variance": variance_K1}
        return limit_K1.to(self.wide)

    @torch.no_grad()
    def clip(self, norm_K1: Tensor, clip_norm_K1: Tensor) -> None:
        """Clip the gradient buffer, whose norms these are, at thresholds of the global norm."""
        clip_(self._rows["gradient"], norm_K1, clip_norm_K1)

    @torch.no_grad()
    def clip_tensors(self, gate: TensorGate) -> Tensor:
        """Clip each tensor of the gradient buffer at its own threshold, after `clip`.

        Its norms enter the next thresholds. Returns the share of tensors that were clipped, [K].
        """
        sizes = [stop - start for start, stop in self._offsets.values()]
        parts = torch.split(self._rows["gradient"], sizes, dim=1)
        norm_KN = tensor_norms(parts, self.wide)
        factor_KN, self._norms["tensor_norm"] = clip_tensors(
            norm_KN, self._norms["tensor_norm"], gate
        )
        torch._foreach_mul_(parts, torch.split(factor_KN, 1, dim=1))
        return share_clipped(factor_KN, norm_KN)

    @torch.no_grad()
    def update(self, blocks: Iterable[tuple[str, slice, Mapping[str, Tensor]]]) -> None:
        """Apply one update of the gradient buffer, by each optimizer to its rows."""
        rows = self._rows
        if self._by_torch:
            ((_, _, columns),) = blocks
            rate = float(columns["eta"])
            self._by_torch.step(rate, self._gradients, self._without_gradient)
            self._execution.mend()
            return
        skipped = self._held_back()
        for optimizer, block, columns in blocks:
            rule = RULES[optimizer]
            for piece in self._pieces[optimizer]:
                part = {name: held[block, piece.where] for name, held in rows.items()}
                state = {name: self._state[name][block, piece.where] for name in rule.state}
                theta, gradient = part["theta"], part["gradient"]
                if self.wide is not self.dtype:
                    theta, gradient = theta.to(self.wide), gradient.to(self.wide)
                rule.apply(piece, theta, gradient, state, columns)
                if theta is not part["theta"]:
                    part["theta"].copy_(theta)
        for held, values in skipped:
            held.copy_(values)

    def _held_back(self) -> list[tuple[Tensor, Tensor]]:
        """Parts of rows that an update must not change, and their values.

        They belong to parameters without a gradient. As torch's optimizers skip a parameter whose
        gradient is None: its momentum and weight decay rest, too.
        """
        parts = [
            rows[:, slice(*self._offsets[parameter])]
            for parameter in self._without_gradient
            for rows in (self._rows["theta"], *self._state.values())
        ]
        return [(part, part.clone()) for part in parts]

    @torch.no_grad()
    def keep_best(self, slot: int) -> None:
        """Remember a slot's parameters and buffers as its best checkpoint."""
        self._rows["best"][slot].copy_(self._evaluated_row(slot))
        self._best_buffers = self._execution.keep_buffers(self._tensors, slot, self._best_buffers)

    def state(self, slot: int) -> dict[str, Tensor]:
        """All that a slot holds, on the host, for `restore`."""
        buffers = self._execution.buffers(self._tensors, slot)
        held = {name: rows[slot] for name, rows in self._rows.items() if name != "gradient"}
        held |= {f"state/{name}": rows[slot] for name, rows in self._state.items()}
        held |= {name: rows[slot] for name, rows in self._norms.items()}
        held |= {f"buffer/{name}": tensor for name, tensor in buffers.items()}
        held |= {f"best_buffer/{name}": rows[slot] for name, rows in self._best_buffers.items()}
        if self._by_torch:
            held["optimizer"] = self._by_torch.state()
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in held.items()}

    def is_saved_whole(self) -> bool:
        """Whether `state` has all that the optimizers hold."""
        return self._by_torch is None or self._by_torch.is_saved_whole()

    @torch.no_grad()
    def restore(self, slot: int, state: Mapping[str, Tensor], optimizer: str) -> None:
        """Put back what `state` returned of a slot that this optimizer trains.

        Raises ValueError, with nothing changed, if it is of another model, and KeyError if it is of
        another optimizer.
        """
        self._execution.mend()  # batches that were drawn again may have bound parameters elsewhere
        own = self._execution.buffers(self._tensors, slot)
        into = {name: self._rows[name][slot] for name in ("theta", "best")}
        for name in state_of(optimizer):  # of which 0.1.0 saved the name alone
            saved = f"state/{name}"
            into[saved if saved in state else name] = self._state[name][slot]
        # Not there if no neighbour's threshold followed its norms then.
        into |= {name: rows[slot] for name, rows in self._norms.items() if name in state}
        into |= {f"buffer/{name}": tensor for name, tensor in own.items()}
        into |= {f"best_buffer/{name}": self._best_buffers[name][slot] for name in own}
        named = {name for name in state if name.startswith(("buffer/", "best_buffer/"))}
        strangers = named - into.keys()
        other = [name for name, tensor in into.items() if _shape(state.get(name)) != tensor.shape]
        if strangers or other:
            raise ValueError(
                f"saved state of another model: {', '.join(sorted({*strangers, *other}))}"
            )
        if self._by_torch:
            self._by_torch.restore(state["optimizer"])
        for name, tensor in into.items():
            tensor.copy_(state[name])

    def best(self, slot: int) -> dict[str, Tensor]:
        """A slot's best checkpoint on the host, under all state_dict names, tied ones too."""
        tensors = {name: view[slot] for name, view in self._views(self._rows["best"]).items()}
        tensors |= {name: rows[slot] for name, rows in self._best_buffers.items()}
        return {
            name: tensors[first].to("cpu", copy=True).contiguous()
            for name, first in self._execution.names.items()
            if first in tensors
        }


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
