"""A whole learning-rate study: what the user waits for, by hand and with `run_studies`.

By hand: joblib's loky processes on all cores, one torch thread each; a plain loop per trial with a
fused optimizer, clip_grad_norm_, loss and norm of every update kept as tensors, evaluations; a row
per trial written to a CSV file. No checkpoints, no verdicts, and every trial is trained to its end.
`hand, stops` is the same by somebody who thought of that, too: a look every 20 updates ends a trial
whose loss is not finite.

Ours: `run_studies` on the equivalent study: the same points, batches and updates, with the rules of
`verdict.hopeless` for stopping, and everything that a results folder holds. `ours, cut` is the
same study with CUT, and says whether its best base LR and best value are those of `ours`.

Both sides are processes of their own, timed from start to exit: interpreter, imports, workers,
training, writing. Compiled code, if any, is cached in a new folder for every run (`--cache cold`),
or in one that the uncounted first round fills (`warm`).

Targets: at least 5 × on digits:mlp, 4 × on residual_mlp:digits, 1.8 × on wide_resnet:digits, 1.4 ×
on transformer:characters (d_model 64).
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import Spread, interleaved, print_footer, print_header, print_table, ratio, walls

CHECK_EVERY = 20  # updates between two looks at the loss, by hand as in the library
MOMENTUM = 0.9
BATCH_SIZE = 32
MATMUL_SIZE = 1024


@dataclass(frozen=True)
class Case:
    """A study: points log-spaced over four decades, of which about a third diverge."""

    workload: str
    target: float
    steps: int
    low: float
    points: int = 64
    evaluations: int = 50  # on both sides
    clip_norm: float = math.inf
    slots: int | None = None  # ours only; None: as the library chooses

    @property
    def high(self) -> float:
        return self.low * 1e4


CASES = (
    Case("digits:mlp", 5.0, 5000, 5e-4),
    Case("residual_mlp:digits", 4.0, 3000, 1e-3),
    Case("wide_resnet:digits", 1.8, 200, 1e-2, evaluations=10),
    Case("transformer:characters", 1.4, 120, 1e-3, evaluations=6),
)
QUICK = {"points": 4, "steps": 50, "slots": 4}
QUICK_SIDES = ("hand", "ours")
CUT = {"at": 0.25, "keep": 0.5}


# ---------------------------------------------------------------------------------------- by hand


def build_workload(case: Case) -> Any:
    module, factory = case.workload.split(":")
    return getattr(importlib.import_module(f"tunewright.models.{module}"), factory)()


def train_by_hand(workload: Any, case: Case, base_lr: float, stops: bool) -> dict[str, Any]:
    """One trial, as a careful user writes it."""
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    torch.manual_seed(0)
    model = workload.build_model(0)
    batches = iter(workload.train_batches(BATCH_SIZE, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=base_lr, momentum=MOMENTUM, fused=True)
    every = math.ceil(case.steps / case.evaluations)
    losses, norms, values = [], [], [evaluate(workload, model)]
    for step in range(1, case.steps + 1):
        optimizer.zero_grad()
        loss = workload.loss(model, next(batches))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
        optimizer.step()
        losses.append(loss.detach())
        norms.append(norm)
        if step % every == 0 or step == case.steps:
            values.append(evaluate(workload, model))
        if stops and step % CHECK_EVERY == 0 and not math.isfinite(losses[-1]):
            break
    return {
        "base_lr": base_lr,
        "losses": torch.stack(losses).numpy(),
        "norms": torch.stack(norms).numpy(),
        "best": min((value for value in values if math.isfinite(value)), default=math.inf),
        "seconds": time.perf_counter() - began,
    }


def evaluate(workload: Any, model: Any) -> float:
    import torch

    with torch.no_grad():
        model.eval()
        value = float(workload.evaluate(model)["val_loss"])
        model.train()
    return value


def study_by_hand(case: Case, folder: Path, stops: bool = False) -> dict[str, Any]:
    import joblib
    import numpy as np

    workload, rates = build_workload(case), np.geomspace(case.low, case.high, case.points)
    one = joblib.delayed(train_by_hand)
    found = joblib.Parallel(n_jobs=-1, backend="loky")(
        one(workload, case, float(rate), stops) for rate in rates
    )
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["base_lr", "best", "last_loss", "largest_norm"])
        writer.writerows(
            [t["base_lr"], t["best"], t["losses"][-1], t["norms"].max()] for t in found
        )
    infeasible = [trial for trial in found if not math.isfinite(trial["losses"][-1])]
    return {
        "trained_steps": sum(len(trial["losses"]) for trial in found),
        "infeasible": len(infeasible),
        "values": [trial["best"] for trial in found],
        "training_seconds": sum(trial["seconds"] for trial in found),
        "engine": "a loop per trial",
    }


# ------------------------------------------------------------------------------------------- ours


def study_document(case: Case, cut: bool) -> dict[str, Any]:
    base_lr = {"low": case.low, "high": case.high, "log": True, "points": case.points}
    return {
        "workload": f"tunewright.models.{case.workload}",
        "objective": "val_loss",
        "max_train_steps": case.steps,
        "evaluations": case.evaluations,
        "batch_sizes": [BATCH_SIZE],
        "sampler": "grid",
        **({"cut": CUT} if cut else {}),
        "space": {
            "clip_norm": case.clip_norm,
            "optimizer": {"momentum": {"base_lr": base_lr, "momentum": MOMENTUM}},
        },
    }


def study_by_us(case: Case, folder: Path, cut: bool = False) -> dict[str, Any]:
    import optuna

    from tunewright.search import read_trials, run_studies
    from tunewright.search.study.study import parse_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = parse_study(study_document(case, cut), "lr_study", "lr_study")
    (store,) = run_studies([study], results=folder, slots=case.slots, progress=False)
    trials = read_trials(store)
    assert not any(trial.verdict.crashed for trial in trials)
    engines = json.loads((store.folder / "environment.json").read_text())["engines"]
    infeasible = [trial for trial in trials if trial.verdict.infeasible]
    return {
        "trained_steps": sum(len(trial.curve.loss) for trial in trials),
        "infeasible": len(infeasible),
        "values": [trial.best_value for trial in trials],
        "best": best_of(trials),
        "training_seconds": sum(trial.seconds for trial in trials),
        "engine": engines,
    }


def best_of(trials: Iterable[Any]) -> tuple[float, float]:
    """What is decided: the best base LR, and its value."""
    best = min((one for one in trials if one.feasible), key=lambda one: one.best_value)
    return best.point.base_lr, best.best_value


SIDES = {
    "hand": study_by_hand,
    "hand, stops": functools.partial(study_by_hand, stops=True),
    "ours": study_by_us,
    "ours, cut": functools.partial(study_by_us, cut=True),
}


# --------------------------------------------------------------------------------------- measuring


def run_side(side: str, case: Case, cache: Path | None, results: list[dict[str, Any]]) -> None:
    """One study in a process of its own; appends what it reports."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache or Path(folder) / "cache")}
        command = [
            sys.executable,
            __file__,
            "--side",
            side,
            "--case",
            json.dumps(asdict(case)),
            "--folder",
            folder,
        ]
        process = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
    results.append(json.loads(process.stdout.splitlines()[-1]))


def cost_of_step(case: Case) -> float:
    """Floating point operations of one update: forward and backward pass, by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    workload = build_workload(case)
    model = workload.build_model(0)
    with FlopCounterMode(display=False) as counter:
        workload.loss(model, next(iter(workload.train_batches(BATCH_SIZE, 0)))).backward()
    return float(counter.get_total_flops())


def peak_of_core(repeats: int = 15) -> float:
    """Floating point operations per second of one thread in a large float32 matrix product."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.rand(2, MATMUL_SIZE, MATMUL_SIZE)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return float(2 * MATMUL_SIZE**3 / Spread.of(seconds).median)


def disagreement(hand: list[float], ours: list[float]) -> float:
    """Largest relative difference of a trial's best value between the sides, over the lowest
    quarter of base LRs.

    Higher up, rounding decides on which side of the edge a trial falls.
    """
    calm = slice(0, len(hand) // 4)
    return max(abs(a - b) / abs(a) for a, b in zip(hand[calm], ours[calm], strict=True))


def compare(
    case: Case, rounds: int, cache: Path | None, sides: Collection[str]
) -> list[dict[str, object]]:
    """A row per side."""
    reports: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    calls = {side: functools.partial(run_side, side, case, cache, reports[side]) for side in sides}
    seconds = {
        side: walls(of) for side, of in interleaved(calls, rounds, warm=cache is not None).items()
    }
    cores = os.cpu_count() or 1
    cost, peak = cost_of_step(case), cores * peak_of_core()
    planned = case.points * case.steps
    differs = disagreement(reports["hand"][-1]["values"], reports["ours"][-1]["values"])
    print(
        f"{case.workload}: {reports['ours'][-1]['engine']}; best values at low base LRs differ by "
        f"{differs:.0e}"
    )
    if "ours, cut" in sides:
        whole, cut = (reports[side][-1]["best"] for side in ("ours", "ours, cut"))
        words = "the same" if whole == cut else f"{cut[1]:.4g} at {cut[0]:.3g}"
        print(f"best: {whole[1]:.4g} at base LR {whole[0]:.3g}; with the cut: {words}")
    rows = []
    for side in sides:
        wall, last = Spread.of(seconds[side]), reports[side][-1]
        rows.append(
            {
                "workload": case.workload,
                "points × steps": f"{case.points} × {case.steps}",
                "side": side,
                "seconds": wall,
                "hand/side": ratio(seconds["hand"], seconds[side]),
                "to reach": f"{case.target}" if side in ("ours", "ours, cut") else "",
                "in training": f"{last['training_seconds'] / cores:.1f}",
                "steps trained": f"{last['trained_steps'] / planned:.0%}",
                "infeasible": last["infeasible"],
                "share of peak": f"{cost * last['trained_steps'] / wall.median / peak:.1%}",
            }
        )
    return rows


def measure(options: argparse.Namespace) -> None:
    print_header(
        f"A learning-rate study, by hand and with run_studies (compile cache {options.cache})"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) if options.cache == "warm" else None
        for case in CASES:
            if options.workload and case.workload not in options.workload:
                continue
            changes = {
                name: getattr(options, name)
                for name in ("points", "steps", "clip_norm", "low", "slots")
            }
            changes = (QUICK if options.quick else {}) | {
                n: v for n, v in changes.items() if v is not None
            }
            rows += compare(
                Case(**asdict(case) | changes),
                options.rounds,
                cache,
                options.sides or (QUICK_SIDES if options.quick else SIDES),
            )
    print_table(rows)
    print(
        f"peak of one core: {peak_of_core() / 1e9:.0f} GFLOP/s (float32 matrix product of "
        f"{MATMUL_SIZE})"
    )
    print_footer()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="4 points of 50 updates, digits:mlp, one round, two sides",
    )
    parser.add_argument(
        "--workload", choices=[case.workload for case in CASES], nargs="*", help="default: all"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--points", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--low", type=float, help="lowest base LR; the highest is 10,000 times this"
    )
    parser.add_argument(
        "--clip-norm", type=float, help="default: inf, which computes the norm and never clips"
    )
    parser.add_argument(
        "--slots", type=int, help="force how many trials a worker stacks; 1: one after the other"
    )
    parser.add_argument("--sides", choices=list(SIDES), nargs="*", help="default: all")
    parser.add_argument("--cache", choices=["cold", "warm"], default="cold")
    for hidden in ("--side", "--case", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(
            json.dumps(SIDES[options.side](Case(**json.loads(options.case)), Path(options.folder)))
        )
        return
    options.rounds = options.rounds or (1 if options.quick else 3)
    if options.quick:
        options.workload = options.workload or ["digits:mlp"]
    measure(options)


if __name__ == "__main__":
    main()
