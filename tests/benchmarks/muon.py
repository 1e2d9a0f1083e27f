"""A stack of Muon trainings against a plain loop with torch.optim.Muon, one training after another.

The plain loop updates matrices by torch.optim.Muon and all else by torch.optim.AdamW, and neither
clips nor records. Both train as many models on the same batches; nothing is evaluated in between.
"""

from __future__ import annotations

import argparse

import torch
from measure import compare_calls, print_footer, print_header, print_table
from stacking import Unevaluated

from tunewright.search.study.study import parse_study
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Point
from tunewright.search.workload.workload import (
    Workload,
    draw_batches,
    load_workload,
    matrices_of_workload,
)

TRAININGS = 16
LR = 1e-3
CASES: tuple[tuple[str, dict[str, int], int], ...] = (
    ("digits:mlp", {}, 32),
    ("residual_mlp:digits", {}, 32),
    ("transformer:characters", {"d_model": 32}, 8),
)


def by_a_stack(name: str, workload: Workload, batch_size: int, steps: int) -> None:
    document = {
        "workload": f"tunewright.models.{name}",
        "objective": "val_loss",
        "max_train_steps": steps,
        "evaluations": 1,
        "batch_sizes": [batch_size],
        "trials": TRAININGS,
        "space": {"optimizer": {"muon": {"base_lr": LR}}},
    }
    study = parse_study(document, "muon", "muon")
    points = [Point(i, batch_size, "muon", LR) for i in range(TRAININGS)]
    list(train(study, workload, points, Engine(stacked=True, slots=TRAININGS)))


def by_torch(workload: Workload, batch_size: int, steps: int) -> None:
    for _ in range(TRAININGS):
        torch.manual_seed(0)
        model = workload.build_model(0)
        matrices = matrices_of_workload(workload, model)
        inside = [p for name, p in model.named_parameters() if name in matrices]
        others = [p for name, p in model.named_parameters() if name not in matrices]
        optimizers = [
            torch.optim.Muon(inside, lr=LR, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=LR, fused=True),
        ]
        batches = draw_batches(workload, batch_size, 0)
        for _ in range(steps):
            workload.loss(model, next(batches)).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()


def row(
    name: str, arguments: dict[str, int], batch_size: int, steps: int, rounds: int
) -> dict[str, object]:
    workload = Unevaluated(load_workload(f"tunewright.models.{name}", arguments))
    calls = {
        "stack": lambda: by_a_stack(name, workload, batch_size, steps),
        "torch": lambda: by_torch(workload, batch_size, steps),
    }
    cells = compare_calls(calls, rounds, TRAININGS * steps, [("torch", "stack")])
    return {"workload": name, "batch": batch_size, **cells}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short trainings")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print_header("Muon: a stack of 16 against torch.optim.Muon")
    steps, rounds = (3, 1) if quick else (30, 5)
    print_table([row(*case, steps, rounds) for case in CASES])
    print_footer()


if __name__ == "__main__":
    main()
