"""Trials of a function of the user's own: `train = "module:function"`, called once per trial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

from ..errors import UserError
from ..study.study import Study
from ..train.loop import Keeper, Trained
from ..trial import Point
from ..workload.randomness import RandomState, seed_all
from ..workload.workload import import_object
from .run import Run, StartAgainError
from .watched import MisuseError


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
    for name in study.workload_args:
        if hasattr(Run, name) or name in Run.__annotations__:
            raise UserError(
                f"workload_args.{name}: is also an attribute of `run`; rename the argument"
            )
    return function


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
