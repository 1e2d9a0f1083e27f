"""Before a study runs: try what it trains once, and time an update."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UserError, describe_error, warn_once
from ..rules.matrices import ATTRIBUTE, output_weight
from ..rules.optimizers import average_of, is_of_torch, updates_matrices
from ..signals import STOPS
from ..study.command import check_command
from ..study.sampling import some_points
from ..study.study import Study
from ..threads import torch_threads
from ..train.by_torch import ByTorch
from ..train.loop import train
from ..trial import Point
from ..workload.factory import argument_sets
from ..workload.randomness import own_random_numbers
from ..workload.workload import (
    Workload,
    build_model,
    check_workload,
    load_workload,
    matrices_of_workload,
    reload_edited_modules,
)
from .function import load_function, refuse_hidden_arguments, train_by_function
from .watched import MisuseError

CHECKED_POINTS = 100  # at which optimizers of torch are made before a study runs
WARM_UP_STEPS = 5  # of a first trial, which nobody times
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TINY = 1e-12  # a base LR at which nothing moves


def check_studies(studies: Sequence[Study]) -> None:
    """Try what the studies train. Raises UserError naming the study and what is wrong.

    Every method of a workload is called once. A function, which trains whole trials, is only
    imported, and the program of a command is only looked for.
    """
    reload_edited_modules(path for study in studies for path in study.code_paths)
    for study in studies:
        if study.command:
            check_command(study)
        with _as_user_error(study):
            if study.imported:
                raise UserError(
                    f"imported: its trials come from {study.imported}; to train more, copy the "
                    "file and name a workload, a function or a command"
                )
            if study.command and not study.log:
                refuse_hidden_arguments(study)
            if study.train:
                load_function(study)
            elif study.workload:
                _check_workloads(study)
            _check_optimizers(study)


def _check_workloads(study: Study) -> None:
    for workload_args in argument_sets(study):
        workload = load_workload(study.workload, workload_args)
        model, loss = check_workload(
            workload,
            study.objective,
            study.batch_sizes,
            study.train_steps,
            study.accumulation,
            study.train_examples,
        )
        _warn_of_optimizers(study, workload, model, loss)


def _warn_of_optimizers(study: Study, workload: Workload, model: nn.Module, loss: Tensor) -> None:
    """Warn of optimizers that are of less use on the workload's model than they could be.

    `loss`: one of the model, with its graph.
    """
    averaged = ", ".join(filter(average_of, study.optimizers))
    if averaged and any(map(_follows_batches, model.modules())):
        warn_once(
            f"{study.name}: {averaged} evaluates an average of the parameters, and the model has "
            "batch normalization, whose running statistics are of the parameters in training: "
            "evaluations may be worse than the average is"
        )
    of_matrices = ", ".join(filter(updates_matrices, study.optimizers))
    if not of_matrices or hasattr(workload, ATTRIBUTE):
        return
    weight, matrices = output_weight(loss), matrices_of_workload(workload, model)
    output = [name for name, one in model.named_parameters() if one is weight and name in matrices]
    if output:
        warn_once(
            f"{study.name}: {of_matrices} updates every matrix as such, but should not that of the "
            f"output layer: name its weight in the workload, as {ATTRIBUTE} = {output}, or give "
            f"{ATTRIBUTE} = [] if none is"
        )


def _follows_batches(module: nn.Module) -> bool:
    """Whether it is evaluated by statistics of the batches in training."""
    return isinstance(module, BATCH_NORMS) and module.track_running_stats


def _check_optimizers(study: Study) -> None:
    """Make the optimizers of torch as training will, and let each take an update.

    They are made at some points of the plan, of a workload on its model. Raises UserError with what
    one of them says.
    """
    settings: dict[str, list[Point]] = {}
    for point in some_points(study, most=CHECKED_POINTS):
        if is_of_torch(point.optimizer):
            settings.setdefault(point.optimizer, []).append(point)
    if not settings:
        return
    with own_random_numbers():
        model: nn.Module = nn.Linear(2, 2, bias=False)
        if study.workload:
            workload = load_workload(study.workload, next(argument_sets(study)))
            device = torch.device("cpu")
            model = build_model(workload, study.seed, study.batch_sizes[0], device)
    for points in settings.values():
        first, *_ = [ByTorch(model, point) for point in points]
        first.try_update()
    reload_edited_modules(study.code_paths)  # remembers the files that were just imported


@contextmanager
def _as_user_error(study: Study) -> Iterator[None]:
    """Raise whatever a workload raises as a UserError of its study, SystemExit included.

    Ctrl-C stays what it is.
    """
    try:
        yield
    except MisuseError:
        raise  # it names its study
    except UserError as error:
        raise UserError(f"{study.name}: {error}") from error
    except STOPS:
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{study.name}: {study.source_key}: {describe_error(error)} "
            f"({where.filename}, line {where.lineno})"
        ) from error


def seconds_per_step(study: Study, steps: int = 100) -> dict[int, float]:
    """Measured seconds of one update of one trial, evaluation included, by batch size.

    Empty of a command, which trains as long as it does.
    Of a function, what it does before its first update counts as little as it can be told apart.
    """
    if study.command:
        return {}
    result = {}
    points = some_points(study, most=1)
    for batch_size in study.batch_sizes:
        evaluations = max(1, steps // study.evaluate_every(batch_size))
        whole = study.of_steps(steps, evaluations)
        short = study.of_steps(WARM_UP_STEPS, 1)
        point = next(p for p in points if p.batch_size == batch_size)
        point = replace(point, base_lr=TINY, warmup_steps=0)  # no divergence while it is timed
        with _as_user_error(study), torch_threads():
            _seconds(short, point)  # allocations, caches
            before, updates = 0.0, steps
            if study.train:
                before, updates = _seconds(short, point), steps - WARM_UP_STEPS
            seconds = _seconds(whole, point) - before
        result[batch_size] = max(seconds, 0.0) / updates
    return result


def _seconds(study: Study, point: Point) -> float:
    """How long one trial takes, without what makes its workload."""
    if study.train:
        began = time.perf_counter()
        list(train_by_function(study, [point]))
    else:
        workload = load_workload(study.workload, point.workload_args)
        began = time.perf_counter()
        list(train(study, workload, [point]))
    return time.perf_counter() - began
