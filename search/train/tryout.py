"""Before a study runs: try its workload once, and time an update."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..errors import UserError, describe_error
from ..signals import STOPS
from ..study.sampling import some_points
from ..study.study import Study
from ..threads import torch_threads
from ..workload.factory import argument_sets
from ..workload.workload import check_workload, load_workload, reload_edited_modules
from .loop import train


def check_studies(studies: Sequence[Study]) -> None:
    """Try every workload of the studies once. Raises UserError naming the study and what is
    wrong.
    """
    reload_edited_modules(study.workload for study in studies)
    for study in studies:
        for workload_args in argument_sets(study):
            with _as_user_error(study):
                workload = load_workload(study.workload, workload_args)
                check_workload(
                    workload,
                    study.objective,
                    study.batch_sizes,
                    study.max_train_steps,
                    study.accumulation,
                )


@contextmanager
def _as_user_error(study: Study) -> Iterator[None]:
    """Whatever a workload raises here is a UserError of its study, SystemExit included; Ctrl-C
    stays what it is.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{study.name}: {error}") from error
    except STOPS:
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{study.name}: workload: {describe_error(error)} "
            f"({where.filename}, line {where.lineno})"
        ) from error


def seconds_per_step(study: Study, steps: int = 100) -> dict[int, float]:
    """Measured seconds of one update of one trial, evaluation included, by batch size."""
    every = {"max_train_steps": steps, "evaluations": max(1, steps // study.evaluate_every)}
    short = study.model_copy(update=every | {"prepend_warmup": False, "stop_after": None})
    result = {}
    points = some_points(study, most=1)
    for batch_size in study.batch_sizes:
        point = next(p for p in points if p.batch_size == batch_size)
        point = replace(point, base_lr=0.0, warmup_steps=0)  # no divergence while it is timed
        with _as_user_error(study), torch_threads():
            workload = load_workload(study.workload, point.workload_args)
            # allocations, caches
            list(train(short.model_copy(update={"max_train_steps": 5}), workload, [point]))
            began = time.perf_counter()
            list(train(short, workload, [point]))
        result[batch_size] = (time.perf_counter() - began) / steps
    return result
