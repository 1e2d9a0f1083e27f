"""K models of one shape as rows of one buffer: forward, backward, norm, clip and update for all at once.

Shapes: K slots, P trainable parameters of one model, B examples. `theta` [K, P] holds the parameters, a row a
slot, and `gradient` [K, P] their gradients; the model's tensors are views of them. So norm, clipping and update
are a few operations on whole rows, however many tensors a model has.

K = 1 runs the model as it is. K > 1 runs it under torch.func.vmap, with every slot's buffers (BatchNorm's
running statistics) stacked too. Either way the numbers of a slot depend on nothing in its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from .clipping import clip_, global_norm
from .errors import UserError
from .optimizers import RULES
from .workload import Workload


class _Call(nn.Module):
    """A workload's method as a module around the model, so that functional_call can swap what it contains."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.workload = workload

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.workload, method)(self.model, *arguments)


class Stack:
    """K slots. Rows are ordered by optimizer, so that each update rule works on one contiguous block."""

    def __init__(self, workload: Workload, model: nn.Module, slots: int) -> None:
        """A stack of `slots` copies of a model's shape; their contents are loaded by `load`.

        Raises UserError if the model's trainable parameters differ in device or dtype.
        """
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kinds = {(p.device, p.dtype) for p in trainable.values()}
        if len(kinds) != 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
            raise UserError(f"workload: the model's parameters must share one device and dtype; found {found}")
        self.workload, self.model = workload, model
        self.device, self.dtype = next(iter(kinds))
        self._call = _Call(workload, model)
        self._shapes = {name: p.shape for name, p in trainable.items()}
        self._offsets: dict[str, tuple[int, int]] = {}
        width = 0
        for name, p in trainable.items():
            self._offsets[name] = (width, width + p.numel())
            width += p.numel()
        self.optimizers: list[str] = [""] * slots
        self._rows = {
            name: torch.zeros(slots, width, device=self.device, dtype=self.dtype)
            for name in ("theta", "gradient", "m", "v", "best")
        }
        self._buffers = {name: torch.stack([buffer] * slots) for name, buffer in model.named_buffers()}
        self._best_buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._evaluates_stacked = True
        self._bind()

    @property
    def slots(self) -> int:
        return len(self.optimizers)

    def _views(self, rows_KP: Tensor) -> dict[str, Tensor]:
        return {
            name: rows_KP[:, start:stop].view(len(rows_KP), *self._shapes[name])
            for name, (start, stop) in self._offsets.items()
        }

    def _bind(self) -> None:
        """Tie leaves, gradients and (for one slot) the model itself to the current rows."""
        values, gradients = self._views(self._rows["theta"]), self._views(self._rows["gradient"])
        if self.slots == 1:
            parameters = dict(self.model.named_parameters())
            for name in self._offsets:
                parameters[name].data = values[name][0]
                parameters[name].grad = gradients[name][0]
            own = dict(self.model.named_buffers())
            for name, buffer in self._buffers.items():
                own[name].data = buffer[0]
            return
        self._leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        self._gradients = gradients

    @torch.no_grad()
    def load(self, slot: int, initial: Mapping[str, Tensor], optimizer: str) -> None:
        """Put a model's parameters and buffers, and a fresh optimizer state, into a slot."""
        for name, (start, stop) in self._offsets.items():
            self._rows["theta"][slot, start:stop].copy_(initial[name].flatten())
        for name, rows in self._buffers.items():
            rows[slot].copy_(initial[name])
        for name in ("m", "v"):
            self._rows[name][slot] = RULES[optimizer].state.get(name, 0.0)
        self.optimizers[slot] = optimizer

    def arrange(self, order: Sequence[int]) -> None:
        """Keep the slots named, in this order; the others are dropped."""
        if list(order) == list(range(self.slots)):
            return
        index = torch.tensor(order, device=self.device)
        self._rows = {name: rows[index] for name, rows in self._rows.items()}
        self._buffers = {name: rows[index] for name, rows in self._buffers.items()}
        self._best_buffers = {name: rows[index] for name, rows in self._best_buffers.items()}
        self.optimizers = [self.optimizers[slot] for slot in order]
        self._bind()

    def gradients(self, batch: Any, shared: bool) -> tuple[Tensor, Tensor]:
        """Loss [K] and unclipped gradient norm [K, 1] at the current parameters; fills the gradient buffer.

        A shared batch serves every slot; otherwise its tensors have a leading slot dimension.
        """
        gradient_KP = self._rows["gradient"]
        if self.slots == 1:
            gradient_KP.zero_()
            loss = self.workload.loss(self.model, batch if shared else tree_map(lambda part: part[0], batch))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()[None], global_norm(gradient_KP)
        loss_K = vmap(
            lambda leaves, buffers, one: functional_call(self._call, _inside(leaves, buffers), ("loss", one)),
            in_dims=(0, 0, None if shared else 0),
            randomness="error",
        )(self._leaves, self._buffers, batch)
        gradients = torch.autograd.grad(loss_K.sum(), list(self._leaves.values()), materialize_grads=True)
        torch._foreach_copy_(list(self._gradients.values()), list(gradients))
        return loss_K.detach(), global_norm(gradient_KP)

    @torch.no_grad()
    def update(
        self,
        norm_K1: Tensor,
        clip_norm_K1: Tensor | None,
        blocks: Iterable[tuple[slice, Mapping[str, Tensor]]],
    ) -> None:
        """Clip the gradient buffer and apply one update: per block of rows, the coefficients of its rule."""
        rows = self._rows
        if clip_norm_K1 is not None:
            clip_(rows["gradient"], norm_K1, clip_norm_K1)
        for block, columns in blocks:
            state = {name: rows[name][block] for name in ("m", "v")}
            RULES[self.optimizers[block.start]].update(rows["theta"][block], rows["gradient"][block], state, columns)

    @torch.no_grad()
    def evaluate(self, wanted: Sequence[int]) -> dict[str, list[float]]:
        """What `evaluate` returns for the slots wanted, by metric."""
        self.model.eval()
        try:
            if self.slots == 1:
                metrics = self.workload.evaluate(self.model)
                return {name: [float(value)] for name, value in metrics.items()}
            values = self._views(self._rows["theta"])
            if self._evaluates_stacked:
                try:
                    index = torch.tensor(wanted, device=self.device)
                    some = {name: value[index] for name, value in values.items()}
                    buffers = {name: buffer[index] for name, buffer in self._buffers.items()}
                    stacked = vmap(
                        lambda leaves, buffers: functional_call(self._call, _inside(leaves, buffers), ("evaluate",)),
                        randomness="error",
                    )(some, buffers)
                    return {name: value.tolist() for name, value in stacked.items()}
                except (RuntimeError, ValueError, TypeError, AttributeError):
                    # evaluate() is free to use .item() and Python numbers, which vmap refuses.
                    self._evaluates_stacked = False
            rows: dict[str, list[float]] = {}
            for slot in wanted:
                one = {name: value[slot] for name, value in values.items()}
                buffers = {name: buffer[slot] for name, buffer in self._buffers.items()}
                metrics = functional_call(self._call, _inside(one, buffers), ("evaluate",))
                for name, value in metrics.items():
                    rows.setdefault(name, []).append(float(value))
            return rows
        finally:
            self.model.train()

    @torch.no_grad()
    def keep_best(self, slot: int) -> None:
        """Remember a slot's parameters and buffers as its best checkpoint."""
        self._rows["best"][slot].copy_(self._rows["theta"][slot])
        # A lone model may have replaced its buffers instead of writing into them.
        own = dict(self.model.named_buffers()) if self.slots == 1 else {}
        for name, rows in self._buffers.items():
            self._best_buffers[name][slot].copy_(own.get(name, rows[slot]))

    def best(self, slot: int) -> dict[str, Tensor]:
        """A slot's best checkpoint, named as the model's state_dict, on the host."""
        tensors = {name: view[slot] for name, view in self._views(self._rows["best"]).items()}
        tensors |= {name: rows[slot] for name, rows in self._best_buffers.items()}
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
        kept = {**tensors, **frozen}
        return {
            name: kept[name].detach().to("cpu", copy=True).contiguous()
            for name in self.model.state_dict()
            if name in kept
        }


def _inside(leaves: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in {**leaves, **buffers}.items()}
