"""What watching costs: a loop that clips, watched, against the same loop with `clip_grad_norm_`.

Both train the same updates with fused optimizers, one thread, and read no loss. The watched one
records loss and unclipped norm of every update, clips by the norm that it measures anyway, and
looks for divergence.

Target: at most 1.05 on digits:conv, wide_resnet:digits and transformer:characters.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable

import torch
from instrumentation import BASE_LR, CLIP_NORM, Case, tell
from measure import compare_calls
from torch.optim import Optimizer

import tunewright
from tunewright.search.workload.workload import Workload, load_workload

BATCH = 32


def optimizer_of(name: str, parameters: list[torch.nn.Parameter]) -> Optimizer:
    if name == "adam":
        return torch.optim.Adam(parameters, lr=BASE_LR[name], fused=True)
    return torch.optim.SGD(parameters, lr=BASE_LR[name], momentum=0.9, fused=True)


def watched(workload: Workload, name: str, steps: int) -> None:
    model = workload.build_model(0).train()
    batches = iter(workload.train_batches(BATCH, 0))
    optimizer = optimizer_of(name, list(model.parameters()))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tunewright.watch(optimizer, clip_norm=CLIP_NORM) as run,
    ):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = workload.loss(model, next(batches))
            run.loss(loss)
            loss.backward()
            optimizer.step()
    assert run.recorder.step == steps


def clips(workload: Workload, name: str, steps: int) -> None:
    model = workload.build_model(0).train()
    batches = iter(workload.train_batches(BATCH, 0))
    parameters = list(model.parameters())
    optimizer = optimizer_of(name, parameters)
    for _ in range(steps):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()


def row(case: Case, name: str) -> dict[str, object]:
    workload = load_workload(f"tunewright.models.{case.workload}", {})
    calls: dict[str, Callable[[], None]] = {
        "watched": functools.partial(watched, workload, name, case.steps),
        "clips": functools.partial(clips, workload, name, case.steps),
    }
    return compare_calls(calls, case.rounds, case.steps, [("watched", "clips")])


if __name__ == "__main__":
    title = "A loop that clips, watched, against the same with clip_grad_norm_"
    tell(title, row, str(__doc__))
