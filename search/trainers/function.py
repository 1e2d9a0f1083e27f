"""Trials of a function of the user's own: `train = "module:function"`, called once per trial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..errors import UserError
from ..study.study import Study
from ..train.checkpoints import fit
from ..train.loop import Keeper, Trained
from ..trial import Point
from ..workload.randomness import RandomState, own_random_numbers, seed_all
from ..workload.workload import import_object
from .run import Run, StartAgainError, Stateful
from .watched import MisuseError

UNMEASURED = (
    "does not let a checkpoint be measured: call run.restore(model, ...), which puts it into the "
    "model, and then run.report where run.evaluation_due, before run.steps"
)


def load_function(study: Study) -> Callable[[Run], object]:
    """Import the function that a study names.

    Raises UserError naming what is missing, and for an argument of [workload_args] that `run` would
    hide.
    """
    function = import_object(study.train, "train", "function")
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"train: {study.train} must be a function of one argument, `run`: {error}"
        ) from error
    refuse_hidden_arguments(study)
    return function


def refuse_hidden_arguments(study: Study) -> None:
    """Raise UserError for an argument of [workload_args] that `run` would hide."""
    for name in study.workload_args:
        if hasattr(Run, name) or name in Run.__annotations__:
            raise UserError(
                f"workload_args.{name}: is also an attribute of `run`; rename the argument"
            )


def train_by_function(
    study: Study, points: Sequence[Point], device: str = "cpu", keeper: Keeper | None = None
) -> Iterator[Trained]:
    """Train points of a study one after the other; yield each as it finishes.

    Each trial has its own random numbers, of Python, NumPy and torch, seeded by its point; the
    caller's are as they were at each yield. Exceptions of the function are not caught. Raises
    MisuseError for what every trial would repeat.
    """
    function = load_function(study)
    for point in points:
        outside = RandomState.now()
        try:
            trained = _train(function, study, point, device, keeper)
        finally:
            outside.restore()
        yield trained


def measure_by_function(
    study: Study, point: Point, path: Path, tensors: Mapping[str, Tensor], device: str = "cpu"
) -> dict[str, float]:
    """What a study's function reports of a checkpoint, without an update: metrics by name.

    Raises UserError if the checkpoint does not fit, or the function does not let it be measured.
    """
    function = load_function(study)
    with own_random_numbers():
        seed_all(point.seed)
        run = _CheckpointRun(study, point, device, path, tensors)
        try:
            function(run)
        finally:
            run.release()
    if not run.is_fitted or not run.recorder.metrics:
        raise UserError(f"{study.name}: {study.train}: {UNMEASURED}")
    return {name: values[-1] for name, values in run.recorder.metrics.items()}


class _CheckpointRun(Run):
    """A run of no update: `restore` puts a checkpoint into the model, which is then evaluated."""

    def __init__(
        self, study: Study, point: Point, device: str, path: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        super().__init__(study, point, device, updates=0)
        self._path, self._tensors = path, tensors
        self.is_fitted = False

    def restore(self, *objects: Stateful) -> bool:
        for model in objects:
            if isinstance(model, nn.Module) and not self.is_fitted:
                fit(model, self._tensors, self._path)
                self.is_fitted = True
        return False

    def report(self, *, model: nn.Module | None = None, **metrics: Tensor | float) -> None:
        if not self.is_fitted:
            raise UserError(f"{self.study.name}: {self.study.train}: {UNMEASURED}")
        super().report(model=None, **metrics)


def _train(
    function: Callable[[Run], object],
    study: Study,
    point: Point,
    device: str,
    keeper: Keeper | None,
) -> Trained:
    seed_all(point.seed)
    run = Run(study, point, device, keeper)
    try:
        function(run)
        return run.finish()
    except StartAgainError as error:
        if keeper is None:
            raise
        keeper.start_again(point, str(error))
    except MisuseError as error:
        raise MisuseError(f"{study.name}: {study.train}: {error}") from error
    finally:
        run.release()
    return _train(function, study, point, device, keeper)
