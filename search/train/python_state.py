"""What Python remembers of a workload and a model, besides the tensors that are trained.

A recording repeats the operations of tensors and none of the statements around them. So what counts
its calls, keeps a list or replaces a buffer must not be recorded or stacked. `python_state` is
compared before and after a few updates: attributes of the workload and of all modules, closures,
class attributes and globals of the user's own modules, by value; buffers by identity. The user's
own modules are those of these classes and all that they import; functions count with their
attributes, defaults and closures.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..workload.workload import is_own, own_modules

LARGE_ARRAY = 2**20  # bytes: hashed in less than a millisecond
TENSORS = ("_parameters", "_buffers", "_modules")  # of a module, apart from its plain attributes
LOCKS = (type(threading.Lock()), type(threading.RLock()))
# of what can be called
HAVE_STATE = (FunctionType, MethodType, BuiltinMethodType, functools.partial, nn.Module, type)


@dataclass(frozen=True)
class PythonState:
    """State as bytes, and the buffers themselves.

    Buffers are the same only if they are the same objects.
    """

    content: bytes
    buffers: tuple[Tensor, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PythonState) or len(self.buffers) != len(other.buffers):
            return False
        pairs = zip(self.buffers, other.buffers, strict=True)
        return self.content == other.content and all(one is another for one, another in pairs)

    __hash__ = None  # type: ignore[assignment]


def python_state(workload: object, model: nn.Module, quick: bool = False) -> PythonState:
    """The state now.

    Raises what pickling raises, where something cannot be pickled, and so may keep state unseen.

    `quick` takes a sum for the contents of tensors and arrays above LARGE_ARRAY: for a look at each
    trial's start, however large its data are.
    """
    own = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    file = io.BytesIO()
    pickler = _Pickler(file, own, quick)
    pickler.dump((workload, model, {name: p.requires_grad for name, p in model.named_parameters()}))
    kinds = [type(workload), *(type(module) for module in model.modules())]
    for module in _modules_of(kinds):
        pickler.dump(_values(vars(module)))
    pickler.dump(dict(os.environ))
    return PythonState(file.getvalue(), tuple(buffer for _, buffer in model.named_buffers()))


def content_hash(value: object) -> str:
    """A hash of a batch, whatever it holds. Raises what pickling raises."""
    file = io.BytesIO()
    _Pickler(file, {}).dump(value)
    return hashlib.sha256(file.getvalue()).hexdigest()


def packed_hash(value: object) -> Tensor:
    """The bytes of `content_hash`, uint8 [32], to be saved among tensors."""
    return torch.tensor(list(bytes.fromhex(content_hash(value))), dtype=torch.uint8)


def _modules_of(kinds: Iterable[type]) -> list[ModuleType]:
    """The user's modules that define these classes and their bases, and what these import."""
    names = {base.__module__ for kind in kinds for base in kind.__mro__}
    found = (sys.modules.get(name) for name in sorted(names))
    return own_modules(module for module in found if isinstance(module, ModuleType))


def _values(names: Mapping[str, Any]) -> dict[str, Any]:
    """What names of a module or class hold that may change, or hold what does."""
    return {name: value for name, value in names.items() if _may_change(name, value)}


def _may_change(name: str, value: object) -> bool:
    if name.startswith("__") and name.endswith("__"):  # of Python, besides methods
        return isinstance(value, FunctionType)
    if isinstance(value, ModuleType) or name == "_abc_impl":
        return False
    # Of libraries' own kinds, as compiled functions are: no state, and many cannot be pickled.
    return not callable(value) or isinstance(value, HAVE_STATE) or _is_own(type(value).__module__)


def _is_own(module_name: str | None) -> bool:
    module = sys.modules.get(module_name or "")
    return isinstance(module, ModuleType) and is_own(module)


def _state_of_function(function: FunctionType) -> tuple[object, ...]:
    """What a function remembers between calls, and what it does.

    The latter counts because another function may have taken its name.
    """
    code: CodeType = function.__code__
    cells = [_content(cell) for cell in function.__closure__ or ()]
    does = code.co_code, str(code.co_consts), code.co_names
    return does, vars(function), function.__defaults__, function.__kwdefaults__, cells


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes values of tensors and arrays as hashes.

    Of the model's own parameters and buffers it writes only names.
    """

    def __init__(self, file: io.BytesIO, own: Mapping[int, str], quick: bool = False) -> None:
        super().__init__(file)
        self._own, self._quick = own, quick

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return str, (self._own.get(id(value)) or self._tensor(value),)
        if isinstance(value, np.ndarray) and value.dtype != object:
            if self._quick and value.nbytes > LARGE_ARRAY and value.flags.c_contiguous:
                content = f"{value.ctypes.data} {_words(value.reshape(-1).view(np.uint8))}"
            else:
                content = hashlib.sha256(value.tobytes()).hexdigest()
            return str, (f"{value.shape} {value.dtype} {content}",)
        # What may hold itself gives its parts as a state: pickle remembers it before it writes
        # them.
        if isinstance(value, nn.Module):
            plain = {name: held for name, held in vars(value).items() if name not in TENSORS}
            held = [dict(getattr(value, name)) for name in TENSORS]
            return str, (type(value).__qualname__,), (plain, held)
        if isinstance(value, type) and _is_own(value.__module__):
            return str, (value.__qualname__,), _values(vars(value))
        if isinstance(value, FunctionType) and _is_own(value.__globals__.get("__name__")):
            return str, (value.__qualname__,), _state_of_function(value)
        return self._of_python(value)

    def _of_python(self, value: Any) -> Any:
        if isinstance(value, staticmethod | classmethod):
            return str, ("method", value.__func__)
        if isinstance(value, property):
            return str, ("property", value.fget)
        if isinstance(value, functools.cached_property):
            return str, ("property", value.func)
        # by a library's decorator, as no_grad or lru_cache
        if callable(value) and hasattr(value, "__wrapped__"):
            return str, ("decorated", value.__wrapped__)
        if isinstance(value, torch.Generator):
            return str, (_hash_of(value.get_state()),)
        if isinstance(value, weakref.ReferenceType):
            return str, ("weak reference",)
        if isinstance(value, LOCKS):
            return str, ("lock",)
        return super().reducer_override(value)

    def _tensor(self, tensor: Tensor) -> str:
        size = tensor.numel() * tensor.element_size()
        if (
            self._quick
            and size > LARGE_ARRAY
            and tensor.layout is torch.strided
            and not tensor.is_inference()
        ):
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            total = _words(flat.cpu().numpy())
            return (
                f"{tuple(tensor.shape)} {tensor.dtype} {tensor.data_ptr()} {tensor._version} "
                f"{total}"
            )
        return _hash_of(tensor)


def _words(content: NDArray[np.uint8]) -> int:
    """The sum of an array's bytes taken as whole numbers of 64 bits.

    It shows any change but one of order.
    """
    whole = len(content) // 8 * 8
    return int(content[:whole].view(np.uint64).sum()) + int(content[whole:].sum())


def _hash_of(tensor: Tensor) -> str:
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    content = plain.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(content.tobytes()).hexdigest()}"
