"""The tensors of a lone model, tied to the rows that its optimizer updates.

It is checked that they still are.

A workload's methods may do with the model what a plain training loop allows: `model.zero_grad()`,
`p.grad = None`, `p.data = …`, `model.double()` and back. Each of these can leave a parameter on
memory that the optimizer does not update. What a plain loop would train is trained: gradients are
taken from the parameters after each backward pass, and new values go into the rows. What a plain
loop would silently not train is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError


def fixed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a trial beside its trained parameters: buffers, and parameters not trained."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return dict(model.named_buffers()) | frozen


def checkpoint_names(model: nn.Module) -> dict[str, str]:
    """The names in a model's state_dict, each with the first name of its tensor.

    Tied weights have several names.
    """
    first = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    state = model.state_dict(keep_vars=True)
    return {name: first[id(tensor)] for name, tensor in state.items() if id(tensor) in first}


@dataclass(frozen=True)
class _Tie:
    """One trained parameter: where its module holds it, and its parts of the rows."""

    name: str
    parameter: nn.Parameter
    holder: Mapping[str, Tensor | None]
    attribute: str
    values: Tensor
    gradient: Tensor
    address: int


class Ties:
    """Ties the trained parameters of a model to views of rows.

    `gather` and `mend` are called after each call of a workload.
    """

    def __init__(
        self, model: nn.Module, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> None:
        self._model = model
        self._ties = []
        own = dict(model.named_parameters())
        # get_submodule refuses TorchScript
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, value in values.items():
            path, _, attribute = name.rpartition(".")
            holder = modules[path]._parameters
            own[name].data = value
            address = value.data_ptr()
            tie = _Tie(name, own[name], holder, attribute, value, gradients[name], address)
            self._ties.append(tie)
        self._parameters = [tie.parameter for tie in self._ties]
        self._gradients = [tie.gradient for tie in self._ties]
        self._frozen = {name: p for name, p in own.items() if name not in values}
        self._known = {id(p) for p in own.values()}

    def forget_gradients(self) -> None:
        """Before a loss is computed, as `optimizer.zero_grad()` does."""
        for parameter in self._parameters:
            parameter.grad = None

    def gather(self, add: bool = False) -> list[str]:
        """Copy, or add, the gradients into their row.

        Returns the names of the parameters that have none, which count as 0. Raises UserError for a
        parameter that the optimizer can no longer train.
        """
        self.mend()
        found = [parameter.grad for parameter in self._parameters]
        dense = [gradient for gradient in found if gradient is not None and not gradient.is_sparse]
        if not add and len(dense) == len(found):
            torch._foreach_copy_(self._gradients, dense)
            return []
        missing = []
        for tie, gradient in zip(self._ties, found, strict=True):
            if gradient is None:
                missing.append(tie.name)
                if not add:
                    tie.gradient.zero_()
                continue
            strided = gradient.to_dense() if gradient.is_sparse else gradient
            if add:
                tie.gradient.add_(strided)
            else:
                tie.gradient.copy_(strided)
        return missing

    def mend(self) -> None:
        """Put parameters whose `.data` was bound elsewhere back on their rows.

        They keep the values that they have now. Raises UserError for a parameter that is no longer
        the model's, that changed its dtype, shape or device, or that was frozen when training began
        and is not any more.
        """
        for tie in self._ties:
            # Of TorchScript, the holder has no `get`.
            if tie.attribute not in tie.holder or tie.holder[tie.attribute] is not tie.parameter:
                raise UserError(
                    f"workload: the parameter {tie.name!r} was replaced by another object while "
                    "it was trained, which no optimizer updates: write the values into it, as by "
                    "load_state_dict(state) without assign=True"
                )
            if tie.parameter.data_ptr() != tie.address:
                self._rebind(tie)
        for name, parameter in self._frozen.items():
            if parameter.requires_grad:
                raise UserError(
                    f"workload: the parameter {name!r} was frozen when training began, and "
                    "requires a gradient now: an optimizer of what was trained until then does "
                    "not update it. Let build_model return it with requires_grad=True, and keep "
                    "it from changing by detach() in loss"
                )

    def look_for_new_ones(self) -> None:
        """Raise UserError for a parameter that came after training began: by a new layer, say."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._known:
                raise UserError(
                    f"workload: the parameter {name!r} came into the model after training began, "
                    "and no optimizer updates it: let build_model make all layers"
                )

    @staticmethod
    def _rebind(tie: _Tie) -> None:
        now, trained = tie.parameter.data, tie.values
        if (now.dtype, now.shape, now.device) != (trained.dtype, trained.shape, trained.device):
            raise UserError(
                f"workload: the parameter {tie.name!r} was left as {_kind(now)} while it is "
                f"trained as {_kind(trained)}: change the model back before the method returns, "
                "or change a copy of it"
            )
        trained.copy_(now)
        tie.parameter.data = trained


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}"
