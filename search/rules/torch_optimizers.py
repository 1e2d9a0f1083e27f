"""The update rules as optimizers of torch, for a training loop that is somebody else's.

`make` is all that such a loop asks: a row of RULES by its name becomes a `RuleOptimizer`, whose
updates are those of the training loop here (`search/train/loop.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError
from .optimizers import RULES, Columns

SMALL = 2**16  # numbers of a parameter, up to which starting an operation costs as much as doing it


def make(name: str, params: Iterable[Any], settings: Mapping[str, Any], lr: float) -> Optimizer:
    """An optimizer by its name in a study file, with its settings, as one of torch's.

    `params` is what every optimizer of torch takes: tensors, named tensors, or groups of them.
    Raises UserError for a name that is no row of RULES, and for a setting that it does not have.
    """
    if name not in RULES:
        raise UserError(f"optimizer: must be one of {', '.join(RULES)}, got {name!r}")
    return RuleOptimizer(params, name, lr, **settings)


class RuleOptimizer(Optimizer):
    """A row of RULES as an optimizer of torch: each update is the row's, parameter by parameter.

    Coefficients are computed in float64 from the group's `lr` of now and the number of its update.
    States and coefficients are float32 at least, whatever the parameters are. A parameter whose
    gradient is None rests, with its state and weight decay, while the updates are counted on: bias
    correction follows the count of the group, `updates`, where torch's own counts for each
    parameter.
    """

    def __init__(self, params: Iterable[Any], rule: str, lr: float, **settings: float) -> None:
        """Optimize `params` by the row of RULES of this name.

        Raises KeyError for an unknown rule, UserError for settings that it does not have or that
        are not what their rows ask for, and for parameters that have no update rules.
        """
        self.rule, row = rule, RULES[rule]
        if fault := row.fault_of_settings(settings):
            raise UserError(f"optimizer {rule}: {fault}")
        # by the place of its group, made by the next step: ids of the parameters, and their buckets
        self._buckets: dict[int, tuple[tuple[int, ...], list[_Bucket]]] = {}
        super().__init__(params, {"lr": lr, **row.defaults, **settings, "updates": 0})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "_buckets": {}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Raises UserError for a parameter that is no tensor of real numbers."""
        super().add_param_group(param_group)
        self._buckets = {}
        for parameter in param_group["params"]:
            if not parameter.is_floating_point():
                raise UserError(
                    f"optimizer {self.rule}: has no update for parameters of {parameter.dtype}: "
                    "keep real and imaginary parts as two real parameters (torch.view_as_complex)"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their dtype, where torch's take that of the parameter."""
        super().load_state_dict(state_dict)
        self._buckets = {}
        ours = [p for group in self.param_groups for p in group["params"]]
        saved = [place for group in state_dict["param_groups"] for place in group["params"]]
        for parameter, place in zip(ours, saved, strict=True):
            for name, value in state_dict["state"].get(place, {}).items():
                self.state[parameter][name] = value.detach().to(
                    parameter.device, _wide(parameter), copy=True
                )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient. Returns the loss of a closure.

        Raises UserError for a gradient that is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, group in enumerate(self.param_groups):
            group["updates"] += 1
            own = {name: group[name] for name in RULES[self.rule].defaults}
            tables = RULES[self.rule].coefficients(
                own, np.array([float(group["lr"])]), np.array([group["updates"]])
            )
            columns: dict[tuple[torch.device, torch.dtype], Columns] = {}
            for bucket in self._buckets_of(place):
                if bucket.kind not in columns:
                    values = torch.tensor(np.stack(list(tables.values()))[:, :, None])
                    moved = values.to(*bucket.kind).unbind()
                    columns[bucket.kind] = dict(zip(tables, moved, strict=True))
                self._update(bucket, columns[bucket.kind])
        return loss

    def _update(self, bucket: _Bucket, columns: Columns) -> None:
        gradients = [one.grad for one in bucket.parameters if one.grad is not None]
        if any(gradient.layout != torch.strided for gradient in gradients):
            raise UserError(
                f"optimizer {self.rule}: takes no sparse gradients: make layers with sparse=False"
            )
        theta = _row(bucket.parameters)
        RULES[self.rule].update(theta, _row(gradients), bucket.state, columns)
        if theta.data_ptr() != bucket.parameters[0].data_ptr():  # a copy
            torch._foreach_copy_(bucket.parameters, _parts(theta, bucket.parameters))

    def _buckets_of(self, place: int) -> list[_Bucket]:
        """The parameters of a group that have a gradient, in the same buckets while these are the
        same.
        """
        given = [one for one in self.param_groups[place]["params"] if one.grad is not None]
        known, buckets = self._buckets.get(place, ((), []))
        ids = tuple(map(id, given))
        if ids != known:
            buckets = list(self._fill_buckets(given))
            self._buckets[place] = ids, buckets
        return buckets

    def _fill_buckets(self, given: Iterable[Tensor]) -> Iterator[_Bucket]:
        """Small parameters of a kind together, which takes fewer operations; large ones alone."""
        small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in given:
            kind = (parameter.device, _wide(parameter))
            if parameter.numel() <= SMALL:
                small.setdefault(kind, []).append(parameter)
            else:
                yield self._bucket([parameter], kind)
        for kind, parameters in small.items():
            yield self._bucket(parameters, kind)

    def _bucket(self, parameters: list[Tensor], kind: tuple[torch.device, torch.dtype]) -> _Bucket:
        """Parameters in a row, whose states become parts of the row's."""
        rows = {}
        for name, start in RULES[self.rule].state.items():
            known = [
                self.state[one].get(name, torch.full_like(one, start, dtype=kind[1]))
                for one in parameters
            ]
            rows[name] = torch.cat([one.reshape(-1) for one in known]).view(1, -1)
            for parameter, part in zip(parameters, _parts(rows[name], parameters), strict=True):
                self.state[parameter][name] = part
        return _Bucket(parameters, kind, rows)


@dataclass(frozen=True)
class _Bucket:
    """Parameters that are updated together. `state`: by name, [1, P], of which each parameter's is
    a part.
    """

    parameters: list[Tensor]
    kind: tuple[torch.device, torch.dtype]
    state: Mapping[str, Tensor]


def _row(tensors: list[Tensor]) -> Tensor:
    """Tensors end to end in their wide dtype, [1, P]; of one alone, itself where that is so."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    row = flat[0] if len(flat) == 1 else torch.cat(flat)
    return row.to(_wide(row)).view(1, -1)


def _parts(row: Tensor, like: list[Tensor]) -> list[Tensor]:
    """A row, [1, P], as tensors of these shapes, which share its memory."""
    parts = torch.split(row.view(-1), [one.numel() for one in like])
    return [part.view(one.shape) for part, one in zip(parts, like, strict=True)]


def _wide(parameter: Tensor) -> torch.dtype:
    """The dtype of its states and coefficients."""
    return torch.promote_types(parameter.dtype, torch.float32)
