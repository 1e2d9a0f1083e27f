"""Code that a study is given as an object, because no import path names it: sent by value.

A class, function or object of a notebook or script exists in one process. Here it is pickled
whole, by cloudpickle, so that any worker can make it, and named by a hash of what it is and does,
so that another start of the same notebook goes on with the same results.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import pickletools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from ..errors import UserError, describe_error, warn_once
from ..source import find_module, make_folder_importable

FORM = re.compile(r"(?P<name>.+), a Python object, sha256 (?P<digest>[0-9a-f]{16})")
UUID = re.compile(r"[0-9a-f]{32}")
# of a class where its source stands, and the order of a set; of a function what is imported by now
NO_CODE = ("__firstlineno__", "__static_attributes__", "_cloudpickle_submodules")
MOST_DEPTH = 5  # parts of parts that are looked into for what cannot be pickled


class Given(str):
    """How a study file names such code: by its name and hash, with the code where it is at hand.

    payload   the code and all that it refers to, pickled; empty if only the text is known, as it
              is read from a study file
    modules   the modules that the payload imports
    """

    payload: bytes
    modules: tuple[str, ...]

    def __new__(cls, text: str, payload: bytes = b"", modules: tuple[str, ...] = ()) -> Given:
        self = super().__new__(cls, text)
        self.payload, self.modules = payload, modules
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return Given, (str(self), self.payload, self.modules)

    def load(self, key: str) -> Any:
        """The object anew: what earlier copies keep in themselves or in globals is not in it.

        Raises UserError if only its name is known, or if it cannot be made here.
        """
        if not self.payload:
            name = self.partition(",")[0]
            raise UserError(
                f"{key}: {name} is a Python object of a notebook or script, of which a file holds "
                f"only the name: run it there, or give it anew, study.with_({key}=...), or put it "
                f"into a module, and name it module:{name}"
            )
        make_folder_importable()
        try:
            return cloudpickle.loads(self.payload)
        except Exception as error:  # whatever a module raises that it imports
            raise UserError(
                f"{key}: {self} cannot be made here: {describe_error(error)}"
            ) from error


def code_in_text(value: object) -> object:
    """What a study is given as its code, as a text: an import path where one names it.

    Raises ValueError for what is no code, or cannot be pickled.
    """
    if isinstance(value, Given):
        return value
    if isinstance(value, str):
        return Given(value) if FORM.fullmatch(value) else value
    if value is None or isinstance(value, bool | int | float | bytes | Mapping | list | tuple):
        raise ValueError(f"must be an import path, a function, a class or an object, got {value!r}")
    return _import_path(value) or _by_value(value)


def _import_path(value: Any) -> str:
    """module:name of what stands at the top of a module that workers can import; else empty."""
    module_name, name = getattr(value, "__module__", None), getattr(value, "__name__", "")
    module = sys.modules.get(module_name or "")
    if module_name == "__main__" or getattr(module, name or "?", None) is not value:
        return ""
    found = find_module(str(module_name))
    is_there = found is not None and found.origin == getattr(module, "__file__", None)
    return f"{module_name}:{name}" if is_there else ""


def _by_value(value: Any) -> Given:
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    name = name.rpartition("<locals>.")[2]
    file, modules = io.BytesIO(), set[str]()
    try:
        _Pickler(file, modules).dump(value)
        content = _hashed(value)
    except Exception as error:  # what pickling raises is not said anywhere
        part = _unpicklable(value, name)
        raise ValueError(
            f"cannot be sent to workers: {part} cannot be pickled: {describe_error(error)}. Make "
            "it where it is used, as in build_model or train_batches"
        ) from error
    if _has_order_of_sets(content):
        warn_once(
            f"{name}: holds a set, whose order differs from start to start of Python: a later "
            "start may take it for other code, and refuse to go on; a sorted tuple stays the same"
        )
    text = f"{name}, a Python object, sha256 {_digest(content)}"
    return Given(text, file.getvalue(), tuple(sorted(modules)))


def _hashed(value: Any) -> bytes:
    file = io.BytesIO()
    _HashPickler(file, set()).dump(value)
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes classes so that each load makes new ones, and code with the name of its file.

    cloudpickle alone finds the class again in the process that it came from, and would put copies
    of the functions into the user's own. Tracebacks and debuggers show lines by the file's name.
    """

    def __init__(self, file: io.BytesIO, modules: set[str]) -> None:
        super().__init__(file)
        self._modules = modules  # those that are imported are added

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, CodeType):
            return self.code(value)
        reduced = super().reducer_override(value)
        if isinstance(value, ModuleType):
            self._modules.add(value.__name__)
        elif not isinstance(value, type | FunctionType):
            return reduced
        elif not isinstance(reduced, tuple):
            self._modules.add(str(value.__module__))
        elif isinstance(value, type):
            make, arguments, *rest = reduced
            return (make, tuple(None if _is_uuid(one) else one for one in arguments), *rest)
        return reduced

    def code(self, value: CodeType) -> Any:
        make, arguments = self.dispatch_table[CodeType](value)
        return make, tuple(value.co_filename if _is_file(one) else one for one in arguments)


class _HashPickler(_Pickler):
    """Writes what code is and does alone: not where it stands, nor what else was imported."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch and isinstance(value, torch.Tensor):
            return str, (_words_of(value),)
        reduced = super().reducer_override(value)
        if not isinstance(value, type | FunctionType) or not isinstance(reduced, tuple):
            return reduced
        if len(reduced) == 2:  # of Python's own, as NoneType
            return reduced
        make, arguments, states, *rest = reduced
        is_place = isinstance(value, FunctionType)  # whose globals begin with those of a module
        own = tuple(None if is_place and isinstance(one, dict) else one for one in arguments)
        does = [{n: one for n, one in state.items() if n not in NO_CODE} for state in states]
        return (make, own, tuple(does), *rest)

    def code(self, value: CodeType) -> Any:
        constants = tuple(map(_ordered, value.co_consts))
        names = value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
        counts = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount
        return tuple, ((value.co_name, value.co_code, constants, names, counts, value.co_flags),)


def _is_uuid(argument: object) -> bool:
    return isinstance(argument, str) and UUID.fullmatch(argument) is not None


def _is_file(argument: object) -> bool:
    return isinstance(argument, str) and argument == "<dynamic-code>"


def _ordered(constant: object) -> object:
    is_set = isinstance(constant, frozenset)
    return tuple(sorted(map(repr, constant))) if is_set else constant  # type: ignore[call-overload]


def _words_of(tensor: Any) -> str:
    """A tensor by its content: pickled, it has the address of its memory in it."""
    plain = tensor.detach().cpu()
    plain = plain if str(plain.layout) == "torch.strided" else plain.to_dense()
    content = plain.contiguous().reshape(-1).view(sys.modules["torch"].uint8).numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad} {digest}"


def _digest(content: bytes) -> str:
    """A hash of pickled bytes that counts equal texts as one.

    Whether they are one object, which the bytes show, depends on what else the process has done.
    """
    found = hashlib.sha256()
    memo: list[object] = []  # texts, and for all else how many of these came before
    count, text = 0, None
    for code, argument, _ in pickletools.genops(content):
        if code.name == "FRAME":
            continue
        if code.name == "MEMOIZE":
            memo.append(count if text is None else text)
            count += text is None
            continue
        one = memo[int(str(argument))] if code.name in ("BINGET", "LONG_BINGET") else argument
        text = one if isinstance(one, str | bytes) else None
        found.update(f"{'text' if text is not None else code.name} {one!r}\n".encode())
    return found.hexdigest()[:16]


def _has_order_of_sets(content: bytes) -> bool:
    """Whether pickled bytes have a set of several items in it."""
    items: list[int] = []  # since each mark that is open
    for code, _, _ in pickletools.genops(content):
        if code.name == "MARK":
            items.append(0)
            continue
        if pickletools.markobject in code.stack_before:
            count = items.pop()
            if code.name in ("ADDITEMS", "FROZENSET") and count > 1:
                return True
        if items and code.name != "MEMOIZE":
            items[-1] += 1
    return False


# --- what cannot be pickled -----------------------------------------------------------------------


def _unpicklable(value: Any, name: str, depth: int = 0) -> str:
    """The innermost part of an object that cannot be pickled, by the way to it."""
    for label, part in _parts(value) if depth < MOST_DEPTH else ():
        try:
            cloudpickle.dumps(part)
        except Exception:
            return _unpicklable(part, f"{name}{label}", depth + 1)
    return f"{name} ({type(value).__name__})"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object refers to, and how that is written after its name."""
    if isinstance(value, FunctionType):
        found = inspect.getclosurevars(value)
        used = {**found.nonlocals, **found.globals}
        yield from ((f", which uses {name}", used[name]) for name in used)
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{place}]", one) for place, one in enumerate(value))
    else:
        yield from ((f".{name}", one) for name, one in _attributes(value).items())
        if not isinstance(value, type):
            yield "", type(value)


def _attributes(value: Any) -> dict[str, Any]:
    own = getattr(value, "__dict__", {})
    plain = {name: one for name, one in own.items() if not name.startswith("__") or callable(one)}
    return {name: _function_in(one) for name, one in plain.items()}


def _function_in(attribute: Any) -> Any:
    """The function of a class or static method, which cannot be pickled by itself."""
    function: Callable[..., Any] | None = getattr(attribute, "__func__", None)
    return function or attribute
