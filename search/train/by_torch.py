"""An optimizer of torch that updates a lone model: set and saved as a plain loop would."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError, describe_error
from ..rules.torch_optimizers import make
from ..trial import Point
from .checkpoints import packed, unpacked
from .python_state import content_hash

SAVED = ("state", "param_groups")  # what an optimizer's state_dict has of it


class ByTorch:
    """The optimizer of one point, on the parameters of its model that are trained."""

    def __init__(self, model: nn.Module, point: Point) -> None:
        """Raises UserError if it cannot be made (`torch_optimizers.make`)."""
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = make(
            point.optimizer, list(self._parameters.values()), point.settings, point.base_lr
        )
        self._name, self._base_lr = point.optimizer, point.base_lr
        self._python = self._python_state()

    def step(self, rate: float, gradients: Mapping[str, Tensor], without: Collection[str]) -> None:
        """One update at a learning rate, by gradients of shape [1, *shape] each.

        Parameters `without` a gradient get none, and rest.
        """
        for name, parameter in self._parameters.items():
            parameter.grad = None if name in without else gradients[name][0]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def try_update(self) -> None:
        """Take an update by gradients of 0. Raises UserError with what the optimizer says."""
        zeros = {name: torch.zeros_like(p)[None] for name, p in self._parameters.items()}
        try:
            with torch.no_grad():
                self.step(self._base_lr, zeros, ())
        except Exception as error:
            raise UserError(
                f"optimizer {self._name}: its update raised {describe_error(error)}"
            ) from error

    def is_saved_whole(self) -> bool:
        """Whether its state_dict has all that changed since it was made."""
        return self._python is not None and self._python_state() == self._python

    def state(self) -> Tensor:
        """Its state_dict as bytes, for `restore`."""
        return packed(self._optimizer.state_dict())

    def restore(self, state: Tensor) -> None:
        """Put back what `state` returned.

        Raises ValueError if it is another optimizer's, or has more than tensors and plain values.
        """
        try:
            self._optimizer.load_state_dict(unpacked(state))
        except (pickle.UnpicklingError, RuntimeError, KeyError) as error:
            raise ValueError(f"its optimizer's state cannot be put back: {error}") from error

    def _python_state(self) -> str | None:
        """What its attributes hold besides the state_dict; None where that cannot be seen."""
        plain = {name: held for name, held in vars(self._optimizer).items() if name not in SAVED}
        try:
            return content_hash(plain)
        except Exception:
            return None
