"""A workload: the model, its batches, its loss and its evaluation, checked by shape."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import UserError

METHODS = ("build_model", "train_batches", "loss", "evaluate")


def autocast(model: nn.Module, bfloat16: bool) -> AbstractContextManager[object]:
    """In which a model runs, trained and measured alike: bfloat16 autocast on its own device, or as it is."""
    if not bfloat16:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)


class Workload(Protocol):
    """What a study trains. Any object with these methods will do; nothing needs to be inherited.

    Optional attributes: `chance_loss`, the loss of a constant predictor (without it, a run stuck at
    chance is recognized only if its loss first rose); `test(model)`, metrics on the test split; and
    `architectures`, name → other arguments of the factory, each a possible remedy of an unstable training (R18).
    """

    def build_model(self, seed: int) -> nn.Module:
        """A new model; the same seed gives the same parameters."""

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Any]:
        """Endless batches of batch_size examples; the same seed gives the same order."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss on a batch: a scalar that can be differentiated."""

    def evaluate(self, model: nn.Module) -> Mapping[str, Tensor | float]:
        """Validation metrics by name; of the study's objective lower is better, unless it is maximized."""


def chance_loss(workload: Workload) -> float:
    return float(getattr(workload, "chance_loss", math.nan))


def architectures_of(workload: Workload) -> Mapping[str, Mapping[str, Any]]:
    """The other architectures that a workload declares. Raises UserError unless they are name → arguments by name."""
    found = getattr(workload, "architectures", {})
    if not isinstance(found, Mapping) or not all(isinstance(own, Mapping) for own in found.values()):
        raise UserError(f"workload: architectures must map names to arguments of the factory, got {found!r}")
    return found


def load_workload(path: str, workload_args: Mapping[str, Any]) -> Workload:
    """Import the factory `package.module:factory` and call it with the workload's arguments.

    The working directory is importable. Raises UserError naming what is missing.
    """
    module_name, separator, factory_name = path.partition(":")
    if not separator or not module_name or not factory_name:
        raise UserError(f"workload: must be package.module:factory, got {path!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"workload: cannot import {module_name!r}: {error}. Run from the folder that contains it, or install it."
        ) from error
    factory: Callable[..., Any] | None = getattr(module, factory_name, None)
    if factory is None:
        raise UserError(f"workload: {module_name!r} has no {factory_name!r}")
    try:
        inspect.signature(factory).bind(**workload_args)
        workload = factory(**workload_args)
    except (TypeError, ValueError) as error:
        arguments = ", ".join(f"{name}={value!r}" for name, value in workload_args.items())
        raise UserError(f"workload: {path}({arguments}): {error}") from error
    missing = [name for name in METHODS if not callable(getattr(workload, name, None))]
    if missing:
        raise UserError(
            f"workload: {path} must return an object with the methods {', '.join(METHODS)}; "
            f"missing: {', '.join(missing)}"
        )
    return workload  # type: ignore[no-any-return]


def examples(batch: Any) -> int:
    """The number of examples of a batch: the leading length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return examples(next(iter(parts)))


def _first_batch(workload: Workload, batch_size: int) -> Any:
    return next(iter(workload.train_batches(batch_size, 0)))


def check_workload(workload: Workload, objective: str, batch_sizes: Sequence[int]) -> None:
    """Try every method once, so that a mistake shows before the first training.

    Raises UserError: a batch size that train_batches cannot serve, a loss that is not a scalar, an
    objective that evaluate() does not return. An exception of the workload itself is quoted.
    """

    def attempt(method: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise UserError(f"workload: {method} raised {type(error).__name__}: {error}") from error

    model = attempt("build_model", lambda: workload.build_model(0))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("workload: build_model returned a model without trainable parameters")
    for batch_size in batch_sizes:
        call = f"train_batches(batch_size={batch_size})"
        batch = attempt(call, partial(_first_batch, workload, batch_size))
        if examples(batch) != batch_size:
            raise UserError(f"batch_sizes: {call} yielded a batch of {examples(batch)} examples")
    loss = attempt("loss", lambda: workload.loss(model, batch))
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        raise UserError("workload: loss must return a scalar tensor that depends on the parameters")
    with torch.no_grad():
        metrics = attempt("evaluate", lambda: workload.evaluate(model))
    if objective not in metrics:
        raise UserError(f"objective: evaluate() returns {', '.join(sorted(metrics)) or 'nothing'}; got {objective!r}")
