"""The update rules as optimizers of torch, for a training loop that is somebody else's.

`make` is all that such a loop asks: a row of RULES by its name becomes a `RuleOptimizer`, whose
updates are those of the training loop here (`search/train/loop.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError
from .optimizers import RULES, Columns


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
        super().__init__(params, {"lr": lr, **row.defaults, **settings, "updates": 0})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Raises UserError for a parameter that is no tensor of real numbers."""
        super().add_param_group(param_group)
        for parameter in param_group["params"]:
            if not parameter.is_floating_point():
                raise UserError(
                    f"optimizer {self.rule}: has no update for parameters of {parameter.dtype}: "
                    "keep real and imaginary parts as two real parameters (torch.view_as_complex)"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their dtype, where torch's take that of the parameter."""
        super().load_state_dict(state_dict)
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
        for group in self.param_groups:
            group["updates"] += 1
            own = {name: group[name] for name in RULES[self.rule].defaults}
            tables = RULES[self.rule].coefficients(
                own, np.array([float(group["lr"])]), np.array([group["updates"]])
            )
            columns: dict[tuple[torch.device, torch.dtype], Columns] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                kind = (parameter.device, _wide(parameter))
                if kind not in columns:
                    values = torch.tensor(np.stack(list(tables.values()))[:, :, None])
                    columns[kind] = dict(zip(tables, values.to(*kind).unbind(), strict=True))
                self._update(parameter, columns[kind])
        return loss

    def _update(self, parameter: Tensor, columns: Columns) -> None:
        """One parameter's, as a stack of one row: [1, P]."""
        gradient = parameter.grad
        assert gradient is not None  # step
        if gradient.is_sparse:
            raise UserError(
                f"optimizer {self.rule}: takes no sparse gradients: make layers with sparse=False"
            )
        rule, wide = RULES[self.rule], _wide(parameter)
        state = self.state[parameter]
        for name, start in rule.state.items():
            if name not in state:
                state[name] = torch.full(
                    parameter.shape, start, dtype=wide, device=parameter.device
                )
        theta = parameter.detach().to(wide).reshape(1, -1)
        rows = {name: state[name].view(1, -1) for name in rule.state}
        rule.update(theta, gradient.detach().to(wide).reshape(1, -1), rows, columns)
        if theta.data_ptr() != parameter.data_ptr():  # of another dtype, or laid out otherwise
            parameter.copy_(theta.view(parameter.shape))


def _wide(parameter: Tensor) -> torch.dtype:
    """The dtype of its states and coefficients."""
    return torch.promote_types(parameter.dtype, torch.float32)
