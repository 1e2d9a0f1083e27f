"""Memory of a stack of K slots, against K times the model's own training state.

    own state = 5 P · 4 bytes + 2 · buffers          parameters, gradient, two moments, best
                                                     checkpoint
    ratio     = (peak − before) / (K · own state)

`peak` is the process's largest resident set (getrusage) after `train` with K slots. `before` is its
resident set just before: everything imported, the data loaded, and a stack of K tiny models of the
same kind trained to its end, so that what the first training loads is not counted. Nothing of the
measured model exists by then: its module, its initial values, its activations and whatever is
temporary count against the stack. Each row is a process of its own. Of the two models one has its
parameters spread over 16 equal matrices, the other 97 % of them in one.

Target: at most 1.20.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from measure import print_footer, print_header, print_table

STEPS = 30  # beyond the first check, at which a divergent trial is stopped
SLOTS, QUICK_SLOTS = 16, 2
MEGABYTE = 2**20
# By workload: its arguments at full size, and those of a tiny one of the same kind.
WORKLOADS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "residual_mlp:digits": ({"width": 512, "depth": 8}, {"width": 8, "depth": 8}),
    "digits:mlp": ({"width": 2048}, {"width": 8}),
}
CASES = {
    f"{workload}, {case}": (workload, optimizer, diverges)
    for workload in WORKLOADS
    for case, optimizer, diverges in (
        ("adam, all to the end", "adam", False),
        ("momentum, all to the end", "momentum", False),
        ("adam, one diverges", "adam", True),
    )
}


def resident() -> int:
    """Bytes of this process now in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Largest number of bytes of this process ever in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: str, slots: int) -> None:
    """Train in this process, and print what it took as JSON."""
    import torch

    torch.set_num_threads(1)
    full, tiny = WORKLOADS[CASES[case][0]]
    train_stack(case, slots, tiny)
    before = resident()
    own_state = train_stack(case, slots, full)
    print(json.dumps({"before": before, "peak": peak(), "own_state": own_state}))


def train_stack(case: str, slots: int, arguments: dict[str, int]) -> int:
    """Train one point per slot, dropping each trial as it comes; returns the bytes of one model's
    own state.
    """
    from tunewright.search.study.study import parse_study
    from tunewright.search.train.execution import Engine
    from tunewright.search.train.loop import train
    from tunewright.search.trial import Point
    from tunewright.search.workload.workload import load_workload

    name, optimizer, diverges = CASES[case]
    document = {
        "workload": f"tunewright.models.{name}",
        "workload_args": arguments,
        "objective": "val_loss",
        "max_train_steps": STEPS,
        "evaluations": 2,
        "batch_sizes": [32],
        "trials": slots,
        "space": {"optimizer": {optimizer: {"base_lr": {"low": 1e-6, "high": 1e-4, "log": True}}}},
    }
    study = parse_study(document, "memory", "memory")
    workload = load_workload(study.workload, study.workload_args)
    points = [Point(number, 32, optimizer, 1e-5, clip_norm=1.0) for number in range(slots)]
    if diverges:
        points[0] = Point(0, 32, optimizer, 1e30)
    outcomes = [
        trained.trial.verdict.outcome
        for trained in train(study, workload, points, Engine(stacked=True, slots=slots))
    ]
    assert outcomes.count("feasible") == slots - diverges
    model = workload.build_model(0)
    parameters, buffers = (
        sum(t.numel() * t.element_size() for t in tensors)
        for tensors in (model.parameters(), model.buffers())
    )
    return 5 * parameters + 2 * buffers


def rows(slots: int, cases: Iterable[str]) -> Iterator[dict[str, object]]:
    for case in cases:
        # This process is small: a child's peak begins at its parent's.
        command = [sys.executable, __file__, "--measure", case, "--slots", str(slots)]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        )
        stack, own = found["peak"] - found["before"], found["own_state"]
        yield {
            "case": case,
            "own state, MB": f"{own / MEGABYTE:.1f}",
            f"{slots} × own state": f"{slots * own / MEGABYTE:.0f}",
            "process before": f"{found['before'] / MEGABYTE:.0f}",
            "peak": f"{found['peak'] / MEGABYTE:.0f}",
            "peak − before": f"{stack / MEGABYTE:.0f}",
            "ratio": f"{stack / (slots * own):.2f}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SLOTS} slots, one case")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.slots)
        return
    slots = options.slots or (QUICK_SLOTS if options.quick else SLOTS)
    print_header(f"Memory of a stack of {slots}")
    print_table(list(rows(slots, list(CASES)[:1] if options.quick else CASES)))
    print_footer()


if __name__ == "__main__":
    main()
