"""What our measurements cost: one trial by `train` with one slot, against a bare torch loop.

Ours records loss and unclipped gradient norm of every update, clips, follows a schedule, and looks
for divergence. The bare loops do none of it, but for one that clips; both evaluate twice, as ours
does at its first and last step. Same model, batches, learning rate and number of updates; one
thread; fused optimizers.

Targets: at most 1.10 × the loop that clips, on digits:conv; at most 1.05 × the loop that does
nothing but train, on wide_resnet:digits and transformer:characters.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import compare_calls, print_footer, print_header, print_table

from tunewright.search.study.study import Study, parse_study
from tunewright.search.train.loop import train
from tunewright.search.trial import Point
from tunewright.search.workload.workload import Workload, load_workload

CLIP_NORM = 1.0
BASE_LR = {"momentum": 1e-2, "adam": 1e-3}


@dataclass(frozen=True)
class Case:
    workload: str
    steps: int
    rounds: int


CASES = (
    Case("digits:mlp", 1000, 15),
    Case("digits:conv", 300, 15),
    Case("wide_resnet:digits", 60, 15),
    Case("transformer:characters", 40, 15),
)


def bare(workload: Workload, point: Point, steps: int, clips: bool) -> None:
    """The shortest loop that trains the same."""
    model = workload.build_model(point.seed).train()
    batches = iter(workload.train_batches(point.batch_size, point.seed))
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer
    if point.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=point.base_lr, fused=True)
    else:
        optimizer = torch.optim.SGD(parameters, lr=point.base_lr, momentum=0.9, fused=True)
    workload.evaluate(model)
    for _ in range(steps):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        if clips:
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
    workload.evaluate(model)


def ours(study: Study, workload: Workload, point: Point) -> None:
    (trained,) = train(study, workload, [point])
    assert len(trained.trial.curve.loss) == study.max_train_steps  # nothing was stopped


def one_evaluation(case: Case, optimizer: str) -> Study:
    document = {
        "workload": f"tunewright.models.{case.workload}",
        "objective": "val_loss",
        "max_train_steps": case.steps,
        "evaluations": 1,
        "batch_sizes": [32],
        "trials": 1,
        "space": {"optimizer": {optimizer: {"base_lr": BASE_LR[optimizer]}}},
    }
    return parse_study(document, "instrumentation", "instrumentation")


def calls(case: Case, optimizer: str) -> dict[str, Callable[[], None]]:
    study = one_evaluation(case, optimizer)
    workload = load_workload(study.workload, {})
    point = Point(0, 32, optimizer, BASE_LR[optimizer], clip_norm=CLIP_NORM)
    return {
        "ours": functools.partial(ours, study, workload, point),
        "clips": functools.partial(bare, workload, point, case.steps, True),
        "bare": functools.partial(bare, workload, point, case.steps, False),
    }


def row(case: Case, optimizer: str) -> dict[str, object]:
    pairs = (("ours", "clips"), ("ours", "bare"))
    return compare_calls(calls(case, optimizer), case.rounds, case.steps, pairs)


def tell(title: str, row: Callable[[Case, str], dict[str, object]], description: str) -> None:
    """Print a row for each case and optimizer, as the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="the first case, 1 round of a twentieth of the steps"
    )
    parser.add_argument(
        "--workload", choices=[case.workload for case in CASES], nargs="*", help="default: all"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header(title)
    rows = []
    for case in CASES[:1] if options.quick else CASES:
        if options.workload and case.workload not in options.workload:
            continue
        shown = Case(case.workload, case.steps // 20, 1) if options.quick else case
        rows += [
            {"workload": case.workload, "optimizer": name, **row(shown, name)} for name in BASE_LR
        ]
    print_table(rows)
    print_footer()


if __name__ == "__main__":
    tell("Our loop with one slot against a bare torch loop", row, str(__doc__))
