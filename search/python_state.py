"""What Python remembers of a workload and a model, besides the tensors that are trained.

A recording repeats the operations of tensors and none of the statements around them. So what counts its calls, keeps a
list or replaces a buffer must not be recorded or stacked. `python_state` is compared before and after a few updates:
attributes of the workload and of all modules, closures, class attributes and globals of the user's own modules, by
value; buffers by identity.
"""

from __future__ import annotations

import hashlib
import io
import sys
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from .workload import is_own

LARGE_ARRAY = 2**24  # bytes: hashed in some ten milliseconds
TENSORS = ("_parameters", "_buffers", "_modules")  # of a module, apart from its plain attributes


@dataclass(frozen=True)
class PythonState:
    """State as bytes, and the buffers themselves, which are the same only if they are the same objects."""

    content: bytes
    buffers: tuple[Tensor, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PythonState) or len(self.buffers) != len(other.buffers):
            return False
        pairs = zip(self.buffers, other.buffers, strict=True)
        return self.content == other.content and all(one is another for one, another in pairs)

    __hash__ = None  # type: ignore[assignment]


def python_state(workload: object, model: nn.Module, quick: bool = False) -> PythonState:
    """The state now. Raises what pickling raises, where something cannot be pickled, and so may keep state unseen.

    `quick` takes the contents of tensors, and of arrays above LARGE_ARRAY, to be the same as long as torch and Python
    do not know of a change: for a look at each trial's start, however large its data are.
    """
    own = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    file = io.BytesIO()
    pickler = _Pickler(file, own, quick)
    pickler.dump((workload, model, {name: p.requires_grad for name, p in model.named_parameters()}))
    kinds = [type(workload), *(type(module) for module in model.modules())]
    for module in sorted(_modules_of(kinds), key=lambda module: module.__name__):
        pickler.dump(_values(vars(module)))
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                pickler.dump(_values(vars(kind)))
    return PythonState(file.getvalue(), tuple(buffer for _, buffer in model.named_buffers()))


def content_hash(value: object) -> str:
    """A hash of a batch, whatever it holds. Raises what pickling raises."""
    file = io.BytesIO()
    _Pickler(file, {}).dump(value)
    return hashlib.sha256(file.getvalue()).hexdigest()


def _modules_of(kinds: Iterable[type]) -> set[ModuleType]:
    """The user's own modules in which classes and their bases are defined."""
    names = {base.__module__ for kind in kinds for base in kind.__mro__}
    found = (sys.modules.get(name) for name in names)
    return {module for module in found if isinstance(module, ModuleType) and is_own(module)}


def _values(names: Mapping[str, Any]) -> dict[str, Any]:
    """What names hold besides modules, classes and what can be called; none of them changes unseen."""
    return {
        name: value
        for name, value in names.items()
        if not name.startswith("__")
        and not isinstance(value, ModuleType | type | classmethod | staticmethod | property)
        and not callable(value)
    }


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes values of tensors and arrays as hashes, and of the model's own parameters and buffers only names."""

    def __init__(self, file: io.BytesIO, own: Mapping[int, str], quick: bool = False) -> None:
        super().__init__(file)
        self._own, self._quick = own, quick

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return str, (self._own.get(id(value)) or self._tensor(value),)
        if isinstance(value, np.ndarray) and value.dtype != object:
            large = self._quick and value.nbytes > LARGE_ARRAY
            content = value.ctypes.data if large else hashlib.sha256(value.tobytes()).hexdigest()
            return str, (f"{value.shape} {value.dtype} {content}",)
        if isinstance(value, nn.Module):
            plain = {name: held for name, held in vars(value).items() if name not in TENSORS}
            return str, (type(value).__qualname__, plain, dict(value._modules), list(value._buffers))
        if isinstance(value, torch.Generator):
            return str, (_hash_of(value.get_state()),)
        if isinstance(value, weakref.ReferenceType):
            return str, ("weak reference",)
        return super().reducer_override(value)

    def _tensor(self, tensor: Tensor) -> str:
        if self._quick and tensor.layout is torch.strided and not tensor.is_inference():
            return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.data_ptr()} {tensor._version}"
        return _hash_of(tensor)


def _hash_of(tensor: Tensor) -> str:
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    content = plain.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(content.tobytes()).hexdigest()}"
