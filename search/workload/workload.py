"""A workload: the model, its batches, its loss and its evaluation, checked by shape."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, IterableDataset

from ..errors import UserError, describe_error, warn_once
from ..rules.matrices import ATTRIBUTE, matrices_of
from ..signals import STOPS
from ..source import import_module
from ..study.given import Given
from .batches import STATED, Parts, endless, examples, first, move_batch, no_batch
from .factory import METHODS
from .randomness import own_random_numbers, seed_all

# Of drawing batches of one size, to see whether they end: hundreds of what lies in memory, and no
# wait that is noticed.
CHECKED_SECONDS = 0.2
SHOWN = 80  # characters of a wrong value in a message
# relative difference above which the loss of a batch is not the mean of its parts
PARTS_TOLERANCE = 1e-3


def autocast(model: nn.Module, bfloat16: bool) -> AbstractContextManager[object]:
    """The context in which a model runs, in training and evaluation alike.

    bfloat16 autocast on its own device, or nothing.
    """
    if not bfloat16:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)


class Workload(Protocol):
    """What a study trains. Any object with these methods will do; nothing needs to be inherited.

    Optional attributes: `chance_loss`, the loss of a constant predictor (without it, a run stuck at
    chance is recognized only if its loss first rose); `test(model)`, metrics on the test split;
    `architectures`, name → other arguments of the factory, each a possible remedy of an unstable
    training (R18); `not_matrices`, names of parameters that a rule of matrices (Muon) is to treat
    as vectors, as the weights of the output layer; and `examples(batch)`, how many examples a batch
    holds, where its tensors do not show it.

    The generators of Python, NumPy and torch are seeded with the trial's seed before each of
    build_model and training, so that none of these methods needs to.
    """

    def build_model(self, seed: int) -> nn.Module:
        """A new model; the same seed gives the same parameters.

        Each of its submodules is trained in the mode in which it is returned: one in eval mode
        stays so. Lazy modules get their shapes from the loss of a first batch.
        """

    def train_batches(self, batch_size: int, seed: int) -> Iterable[Any]:
        """Batches of batch_size examples; the same seed gives the same order.

        Endless, or something that can be iterated again for each epoch, as a DataLoader or a list.
        Of a batch only tensors are moved to the device of the model.
        """

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss on a batch: a scalar that can be differentiated.

        A mean over the examples, if the study accumulates gradients over parts of a batch.
        """

    def evaluate(self, model: nn.Module) -> Mapping[str, Tensor | float]:
        """Validation metrics by name; lower is better of the objective, unless it is maximized."""


def chance_loss(workload: Workload) -> float:
    return float(getattr(workload, "chance_loss", math.nan))


def matrices_of_workload(workload: Workload, model: nn.Module) -> set[str]:
    """The names of the parameters of a workload's model that are matrices.

    Raises UserError unless its `not_matrices` are names of the model's parameters.
    """
    return matrices_of(model, getattr(workload, ATTRIBUTE, ()))


def architectures_of(workload: Workload) -> Mapping[str, Mapping[str, Any]]:
    """The other architectures that a workload declares.

    Raises UserError unless they are name → arguments by name.
    """
    found = getattr(workload, "architectures", {})
    if not isinstance(found, Mapping) or not all(
        isinstance(own, Mapping) for own in found.values()
    ):
        raise UserError(
            f"workload: architectures must map names to arguments of the factory, got {found!r}"
        )
    return found


def load_workload(path: str, workload_args: Mapping[str, Any]) -> Workload:
    """Import the factory `package.module:factory` and call it with the workload's arguments.

    What a study was given as an object is made anew; an object with the methods of a workload is
    one, and takes no arguments. The working directory is importable. Raises UserError naming what
    is missing.
    """
    found = import_object(path, "workload", "factory")
    factory: Callable[..., Any] = (lambda: found) if _is_workload(found) else found
    try:
        inspect.signature(factory).bind(**workload_args)
        workload = factory(**workload_args)
    except (TypeError, ValueError) as error:
        arguments = ", ".join(f"{name}={value!r}" for name, value in workload_args.items())
        raise UserError(f"workload: {path}({arguments}): {error}") from error
    if inspect.iscoroutine(workload):
        workload.close()  # it is refused: nobody awaits it
    missing = [name for name in METHODS if not callable(getattr(workload, name, None))]
    if missing:
        raise UserError(
            f"workload: {path} must return an object with the methods {', '.join(METHODS)}; "
            f"missing: {', '.join(missing)}"
        )
    return workload  # type: ignore[no-any-return]


def _is_workload(found: object) -> bool:
    """Whether an object is a workload itself; a class has the methods only of its instances."""
    has_methods = all(callable(getattr(found, name, None)) for name in METHODS)
    return has_methods and not isinstance(found, type)


def import_object(path: str, key: str, kind: str) -> Callable[..., Any]:
    """What a study names as package.module:name under a key of its file: a factory or function.

    Or what it was given as an object, made anew. The working directory is importable. Raises
    UserError naming what is missing.
    """
    if isinstance(path, Given):
        found = path.load(key)
        if not (callable(found) or _is_workload(found)):
            raise UserError(
                f"{key}: must be a {kind}, or an object with the methods {', '.join(METHODS)}, got "
                f"{type(found).__name__}"
            )
        return found  # type: ignore[no-any-return]
    module_name, separator, name = path.partition(":")
    if not separator or not module_name or not name:
        raise UserError(f"{key}: must be package.module:{kind}, got {path!r}")
    if module_name == "__main__":
        raise UserError(
            f"{key}: {path!r} cannot be imported by worker processes: put the {kind} into a "
            f"file of its own, and name it file:{kind}; or give the study the {kind} itself"
        )
    module = _import_module(module_name, key)
    named: Callable[..., Any] | None = getattr(module, name, None)
    if named is None:
        raise UserError(f"{key}: {module_name!r} has no {name!r}")
    return named


def _import_module(module_name: str, key: str) -> ModuleType:
    """A module of the user; remembers the files of all modules of the user as they are now."""
    module = import_module(module_name, key)
    for name in _own_modules(module, {}) if module_name not in _IMPORTED else ():
        _IMPORTED.setdefault(name, _stamp(sys.modules[name]))
    return module


def reload_edited_modules(paths: Iterable[str]) -> str:
    """Import the edited modules of workloads anew.

    Returns a text that is the same as long as none of the user's modules was edited. Modules count
    that are neither installed nor part of Python, and that the workload's module or one of those
    imports.
    """
    for path in paths:
        module = sys.modules.get(path.partition(":")[0])
        anew: set[str] = set()
        for name, needed in _own_modules(module, {}).items() if module else ():
            changed = _IMPORTED.setdefault(name, _stamp(sys.modules[name])) != _stamp(
                sys.modules[name]
            )
            if changed or needed & anew:
                _attempt(f"reloading {name}", partial(importlib.reload, sys.modules[name]))
                _IMPORTED[name] = _stamp(sys.modules[name])
                anew.add(name)
    own = [
        module
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType) and is_own(module)
    ]
    return " ".join(sorted(f"{module.__file__}:{_stamp(module)}" for module in own))


def code_of(paths: Iterable[str]) -> dict[str, str]:
    """A hash of each of the user's modules that these import paths name, or that those import.

    By name: those that are neither installed nor part of Python.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        module = sys.modules.get(path.partition(":")[0])
        if module:
            _own_modules(module, found)
    return {name: _hash_of_file(sys.modules[name].__file__ or "") for name in sorted(found)}


def _hash_of_file(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "gone"


# the files of own modules, as they were when the modules were imported
_IMPORTED: dict[str, str] = {}
_NOT_OWN = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def _own_modules(module: ModuleType, found: dict[str, set[str]]) -> dict[str, set[str]]:
    """The user's modules that a module imports, and itself; name → names of those it imports.

    Each comes after those that it imports.
    """
    if not is_own(module) or module.__name__ in found:
        return found
    needed: set[str] = set()
    found[module.__name__] = needed  # now, because modules may import each other
    for name in _imports(module):
        other = sys.modules.get(name)
        if isinstance(other, ModuleType) and other is not module and is_own(other):
            needed.add(name)
            _own_modules(other, found)
    found[module.__name__] = found.pop(module.__name__)
    return found


def own_modules(modules: Iterable[ModuleType]) -> list[ModuleType]:
    """The user's own among these modules, and those that they import."""
    found: dict[str, set[str]] = {}
    for module in modules:
        _own_modules(module, found)
    return [sys.modules[name] for name in found]


def _imports(module: ModuleType) -> Iterable[str]:
    """The names in a module's import statements, also inside functions; some may be no modules."""
    return _names_imported_by(module.__file__ or "", module.__package__ or "", _stamp(module))


@lru_cache(maxsize=1000)
def _names_imported_by(file: str, package: str, _: str) -> Sequence[str]:
    """Of a file, as long as its stamp is the same."""
    return list(_names_in(file, package))


def _names_in(file: str, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_own(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if not file or module.__name__ == "__main__" or module.__name__.startswith("tunewright."):
        return False
    return "site-packages" not in file and not file.startswith(_NOT_OWN)


def _stamp(module: ModuleType) -> str:
    """When a module's file was written, and its size."""
    try:
        status = os.stat(module.__file__ or "")
    except OSError:
        return "gone"
    return f"{status.st_mtime_ns}/{status.st_size}"


def draw_batches(workload: Workload, batch_size: int, seed: int) -> Iterator[Any]:
    """Endless training batches, on the device where the workload put them.

    Raises UserError where they end.
    """
    ended = (
        f"workload: train_batches(batch_size={batch_size}) ended after {{count}} batches, and must "
        "be endless: return the DataLoader or list itself, which starts again after each epoch, or "
        "put `while True:` around `yield from loader`"
    )
    return endless(lambda: workload.train_batches(batch_size, seed), no_batch(batch_size), ended)


def build_model(workload: Workload, seed: int, batch_size: int, device: torch.device) -> nn.Module:
    """The untrained model of a seed on a device.

    It takes the process's random numbers, seeded with the same seed. Lazy modules get their shapes
    as in a plain training loop, from the loss of the first batch. Raises UserError if some get
    none, or the model has no trainable parameters.
    """
    seed_all(seed)
    model = workload.build_model(seed).to(device)
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        batch = move_batch(next(draw_batches(workload, batch_size, seed)), device)
        _materialize(model, lambda: workload.loss(model, batch))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("workload: build_model returned a model without trainable parameters")
    return model


def _materialize(model: nn.Module, forward: Callable[[], object]) -> None:
    """Give lazy modules their shapes by one forward pass, which leaves buffers unchanged."""
    buffers = {id(module): _clone_tensors(module) for module in model.modules()}

    def remember(module: nn.Module, _: object) -> None:
        # by now with shapes: torch's own hook, which gives them, is older
        buffers[id(module)] = _clone_tensors(module)

    lazy = [module for module in model.modules() if isinstance(module, LazyModuleMixin)]
    hooks = [module.register_forward_pre_hook(remember) for module in lazy]
    try:
        with torch.no_grad():
            forward()
            for module in model.modules():
                for name, tensor in buffers[id(module)].items():
                    module.get_buffer(name).copy_(tensor)
    finally:
        for hook in hooks:
            hook.remove()
    left = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if left:
        raise UserError(
            "workload: a first call of loss does not give these lazy parameters a shape: "
            f"{', '.join(left)}"
        )


def _clone_tensors(module: nn.Module) -> dict[str, Tensor]:
    own = module.named_buffers(recurse=False)
    return {name: buffer.clone() for name, buffer in own if not is_lazy(buffer)}


def number(name: str, value: object, place: str = "workload: evaluate() returns") -> float:
    """A metric as a number. Raises UserError if it is none, as a confusion matrix or a text."""
    single = isinstance(value, Tensor) and value.numel() == 1
    if (
        single
        or isinstance(value, int | float)
        or (hasattr(value, "__float__") and not isinstance(value, Tensor))
    ):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):  # an array of several
            pass
    shown = repr(value)[:SHOWN]
    if hasattr(value, "shape"):
        shown = f"an array of shape {tuple(value.shape)}"
    raise UserError(f"{place} {shown} as {name!r}; every metric must be one number")


def numbers(metrics: object) -> dict[str, float]:
    """What evaluate() returned, as numbers by name. Raises UserError if it is anything else."""
    if not isinstance(metrics, Mapping):
        raise UserError(
            f"workload: evaluate() must return numbers by name, got {type(metrics).__name__}"
        )
    return {str(name): number(str(name), value) for name, value in metrics.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards, each submodule's own mode as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_workload(
    workload: Workload,
    objective: str,
    batch_sizes: Sequence[int],
    steps: Callable[[int], int] = lambda batch_size: 1,
    accumulation: int = 1,
    train_examples: int | None = None,
) -> tuple[nn.Module, Tensor]:
    """Try every method once, so that a mistake shows before the first training.

    Returns the model that was built, and the loss that was computed, with its graph.

    Batches are drawn for a moment only, and at most `steps` of a batch size.

    Warns if gradients are to be accumulated and the loss is not a mean over examples.

    Raises UserError: a batch size that train_batches cannot serve, batches that end, a loss that is
    not a scalar, an objective that evaluate() does not return, a metric that is no number, another
    number of `train_examples` than a DataLoader shows. An exception of the workload is quoted.
    """
    with own_random_numbers():
        if train_examples:
            _check_epoch(workload, batch_sizes[0], train_examples)
        return _check(workload, objective, batch_sizes, steps, accumulation)


def _check(
    workload: Workload,
    objective: str,
    batch_sizes: Sequence[int],
    steps: Callable[[int], int],
    accumulation: int,
) -> tuple[nn.Module, Tensor]:
    device = torch.device("cpu")
    for batch_size in batch_sizes:
        call = f"train_batches(batch_size={batch_size})"
        batch = _attempt(call, partial(_some_batches, workload, batch_size, steps(batch_size)))
        count = _count(workload, batch, batch_size)
        if count != batch_size:
            raise UserError(
                f"batch_sizes: {call} yielded a batch of {count} examples. If it is full, {STATED}"
            )
    model = _attempt("build_model", lambda: build_model(workload, 0, batch_sizes[-1], device))
    matrices_of_workload(workload, model)
    loss = _attempt("loss", lambda: workload.loss(model, batch))
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        raise UserError("workload: loss must return a scalar tensor that depends on the parameters")
    if accumulation > 1:
        _check_parts(workload, model, batch, Parts(accumulation, batch_sizes[-1]))
    with torch.no_grad(), evaluation_mode(model):
        metrics = numbers(_attempt("evaluate", lambda: workload.evaluate(model)))
    if objective not in metrics:
        raise UserError(
            f"objective: evaluate() returns {', '.join(sorted(metrics)) or 'nothing'}; got "
            f"{objective!r}"
        )
    return model, loss


def _check_epoch(workload: Workload, batch_size: int, train_examples: int) -> None:
    """Raise UserError if a DataLoader draws from another number of examples; others do not tell."""
    call = f"train_batches(batch_size={batch_size})"
    loader = _attempt(call, lambda: workload.train_batches(batch_size, 0))
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    found = {len(loader.dataset), len(loader.sampler)}  # type: ignore[arg-type]
    if train_examples not in found:
        raise UserError(
            f"train_examples: {train_examples}, but the DataLoader of {call} has "
            f"{' or '.join(map(str, sorted(found)))} examples"
        )


def _check_parts(workload: Workload, model: nn.Module, batch: Any, parts: Parts) -> None:
    """Warn if the loss of a batch is not the mean of its parts' losses, weighted by their examples.

    Nothing is said of a loss that draws random numbers, or of a part that has none.
    """

    def loss_of(part: Any, seed: int) -> float:
        seed_all(seed)
        return float(workload.loss(model, part))

    with torch.no_grad(), evaluation_mode(model):
        whole, again = loss_of(batch, 0), loss_of(batch, 1)
        if whole != again or not math.isfinite(whole):
            return
        mean = sum(
            share * _attempt("loss", partial(loss_of, part, 0)) for part, share in parts(batch)
        )
    if abs(mean - whole) > PARTS_TOLERANCE * abs(whole):
        warn_once(
            f"accumulation: the loss of a whole batch is {whole:.4g}, the mean over its "
            f"{parts.count} parts, weighted by examples, {mean:.4g}, and training follows the "
            "second: let `loss` return a mean over examples"
        )


def _attempt(method: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (*STOPS, UserError):
        raise
    except BaseException as error:  # sys.exit(), too
        raise UserError(f"workload: {method} raised {describe_error(error)}") from error


def _some_batches(workload: Workload, batch_size: int, steps: int) -> Any:
    """The first batch, after others were drawn for a while to see whether they end."""
    seed_all(0)
    batches = draw_batches(workload, batch_size, 0)
    one = first(batches, batch_size)
    until = time.monotonic() + CHECKED_SECONDS
    for _ in range(steps - 1):
        if time.monotonic() > until:
            break
        next(batches)
    return one


def _count(workload: Workload, batch: Any, batch_size: int) -> int:
    stated = getattr(workload, "examples", None)
    if callable(stated):
        return int(_attempt("examples", lambda: stated(batch)))
    return examples(batch, batch_size)
