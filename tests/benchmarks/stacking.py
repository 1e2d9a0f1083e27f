"""What a stack gains over one after the other, and what the rule predicts (search/train/choose.py).

    gain = processor time of an update alone / of a slot's update in a stack of K

Processor time of this process, one thread: other work on the machine disturbs it least. What it
costs to build models and stacks is subtracted, by a run of one update; evaluations return at once.
`predicted` is at the K that the rule wants, `rule` what it decides. Its costs are fitted to this
table, so a new kind of machine can be fitted anew.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch
from measure import print_footer, print_header, print_table, timed

from tunewright.search.study.study import Study, parse_study
from tunewright.search.train.choose import CPU, WORTH_STACKING
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.train.loop import train
from tunewright.search.train.work import count_work
from tunewright.search.trial import Point
from tunewright.search.workload.workload import Workload, load_workload

SECONDS, QUICK_SECONDS = 0.4, 0.1  # of one run
REPEATS, QUICK_REPEATS = 2, 1  # the fastest counts
SLOTS = (4, 16)
MOST_STEPS = 600
CASES: tuple[tuple[str, dict[str, int], int], ...] = (
    ("diabetes:mlp", {}, 32),
    ("digits:conv", {"width": 4}, 16),
    ("digits:mlp", {}, 32),
    ("transformer:characters", {"d_model": 16}, 4),
    ("residual_mlp:digits", {}, 32),
    ("residual_mlp:digits", {}, 128),
    ("digits:mlp", {}, 256),
    ("wide_resnet:digits", {}, 8),
    ("transformer:characters", {"d_model": 32}, 8),
    ("digits:conv", {}, 32),
    ("digits:mlp", {"width": 256}, 32),
    ("residual_mlp:digits", {}, 512),
    ("wide_resnet:digits", {}, 32),
    ("digits:mlp", {}, 1024),
    ("digits:conv", {}, 128),
    ("transformer:characters", {}, 16),
    ("digits:mlp", {"width": 512}, 32),
    ("wide_resnet:digits", {}, 128),
    ("digits:conv", {"width": 64}, 32),
    ("digits:conv", {}, 512),
    ("digits:mlp", {"width": 1024}, 64),
)
QUICK_CASES = CASES[:3]


@dataclass
class Unevaluated:
    """A workload whose evaluation takes next to no time."""

    workload: Workload

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workload, name)

    def evaluate(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {"val_loss": next(model.parameters()).new_zeros(())}


def study_of(name: str, batch_size: int, steps: int) -> Study:
    document = {
        "workload": f"tunewright.models.{name}",
        "objective": "val_loss",
        "max_train_steps": steps,
        "evaluations": 1,
        "batch_sizes": [batch_size],
        "trials": 1,
        "space": {"optimizer": {"momentum": {"base_lr": 1e-9}}},
    }
    return parse_study(document, "stacking", "stacking")


def seconds_of_update(
    name: str, workload: Workload, batch_size: int, engine: Engine, seconds: float, repeats: int
) -> float:
    """Of one slot."""
    points = [Point(i, batch_size, "momentum", 1e-9) for i in range(engine.slots)]
    unevaluated, traces = Unevaluated(workload), {}

    def run(steps: int) -> float:
        study = study_of(name, batch_size, steps)
        return timed(
            lambda: list(train(study, unevaluated, points, engine, traces=traces))
        ).processor

    run(1)
    start = run(1)
    estimate = max((run(4) - start) / 3, 1e-5)
    steps = min(max(math.ceil(seconds / estimate), 4), MOST_STEPS)
    found = [max(run(steps) - start, 1e-9) / (steps - 1) for _ in range(repeats)]
    return min(found) / len(points)


def row(
    name: str, arguments: dict[str, int], batch_size: int, seconds: float, repeats: int
) -> dict[str, object]:
    workload = load_workload(f"tunewright.models.{name}", arguments)
    work = count_work(workload, batch_size, seed=0, device="cpu")
    engines = [ALONE, *(Engine(stacked=True, slots=slots) for slots in SLOTS), ALONE]
    alone, *stacked, again = (
        seconds_of_update(name, workload, batch_size, engine, seconds, repeats)
        for engine in engines
    )
    wanted = CPU.slots(work)
    predicted = CPU.gain(work, wanted)
    return {
        "workload": ", ".join([name, *(f"{key} {value}" for key, value in arguments.items())]),
        "batch": batch_size,
        "MFLOP": f"{work.flops / 1e6:.3g}",
        "MB": f"{work.bytes / 1e6:.2g}",
        "calls": work.calls,
        **{
            f"gain, K = {slots}": f"{min(alone, again) / one:.2f}"
            for slots, one in zip(SLOTS, stacked, strict=True)
        },
        "predicted": f"{predicted:.2f}",
        "rule": f"K = {wanted}" if predicted >= WORTH_STACKING else "alone",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three networks, short runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print_header("Stacked or alone")
    how = (QUICK_SECONDS, QUICK_REPEATS) if quick else (SECONDS, REPEATS)
    print_table([row(*case, *how) for case in (QUICK_CASES if quick else CASES)])
    print_footer()


if __name__ == "__main__":
    main()
