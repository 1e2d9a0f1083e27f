"""What a function that trains costs: a study's trial by `train = "module:function"`, against the
same trial of a workload without stacks, and against a plain loop of torch.

All three train the same updates at the same point, clip, and evaluate twice; the plain loop records
nothing. One thread.

Target: at most 1.05 times the workload's trial. Not reached on the MLP, nor with adam on the
convolutional net (README.md): the norm and the clip of a model whose gradients are the user's own
are an operation for each parameter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from instrumentation import BASE_LR, CLIP_NORM, Case, tell
from measure import compare_calls

from tunewright.search.study.study import Study, parse_study
from tunewright.search.train.loop import train
from tunewright.search.trainers import function
from tunewright.search.trainers.run import Run
from tunewright.search.trial import Point
from tunewright.search.workload.workload import Workload, load_workload

BATCH = 32


def study_of(case: Case, source: str) -> Study:
    return parse_study(
        {
            source: f"tunewright.models.{case.workload}",
            "objective": "val_loss",
            "max_train_steps": case.steps,
            "evaluations": 1,
            "batch_sizes": [BATCH],
            "trials": 1,
            "space": {"optimizer": {"adam": {"base_lr": [1e-3]}}},
        },
        "s",
        "s",
    )


@torch.no_grad()
def evaluate(workload: Workload, model: torch.nn.Module) -> dict[str, float]:
    model.eval()
    found = {name: float(value) for name, value in workload.evaluate(model).items()}
    model.train()
    return found


def main_of(workload: Workload, run: Run) -> None:
    """What a user would write."""
    model = workload.build_model(run.seed).train()
    optimizer = run.optimizer(model)
    run.report(**evaluate(workload, model), model=model)
    for batch in run.steps(workload.train_batches(run.batch_size, run.seed)):
        loss = workload.loss(model, batch)
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            run.report(**evaluate(workload, model), model=model)


def plain(workload: Workload, point: Point, steps: int) -> None:
    model = workload.build_model(point.seed).train()
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, point.base_lr, momentum=0.9)
    if point.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, point.base_lr)
    batches = iter(workload.train_batches(BATCH, point.seed))
    evaluate(workload, model)
    for _ in range(steps):
        workload.loss(model, next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
    evaluate(workload, model)


def row(case: Case, name: str) -> dict[str, object]:
    workload = load_workload(f"tunewright.models.{case.workload}", {})
    point = Point(0, BATCH, name, BASE_LR[name], clip_norm=CLIP_NORM)
    function.load_function = lambda study: functools.partial(main_of, workload)
    as_workload, as_function = (study_of(case, one) for one in ("workload", "train"))
    values: dict[str, float] = {}

    def by_workload() -> None:
        (trained,) = train(as_workload, workload, [point])
        values["workload"] = trained.trial.best_value

    def by_function() -> None:
        (trained,) = function.train_by_function(as_function, [point])
        values["function"] = trained.trial.best_value

    calls: dict[str, Callable[[], None]] = {
        "function": by_function,
        "workload": by_workload,
        "plain": functools.partial(plain, workload, point, case.steps),
    }
    pairs = (("function", "workload"), ("function", "plain"))
    cells = compare_calls(calls, case.rounds, case.steps, pairs)
    assert abs(values["function"] / values["workload"] - 1) < 1e-3, values
    return cells


if __name__ == "__main__":
    title = "A trial of a function, against that of a workload and a plain loop"
    tell(title, row, str(__doc__))
