"""Framework time per trial outside training: planning it, posting its files, telling the store,
moving the files.

A trial has a curve of 1,000 updates and 51 evaluations, and the checkpoint of a small network. It
takes the way of every trial: the worker's `_post` into the inbox, the driver's `collect` out of it,
one trial at a time. Storage is the default, SQLite in a results folder, here a temporary one. Rows
give the mean of the last hundred trials.

Target: under 20 ms per trial at 1,000 trials.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import optuna
from measure import Spread, print_footer, print_header, print_table

from tunewright.search.pool.driver import Driver, _inbox
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.inbox import Inbox
from tunewright.search.pool.progress import Progress
from tunewright.search.pool.worker import _post
from tunewright.search.show.publish import write_results
from tunewright.search.store.results import Results
from tunewright.search.store.storage import create_store, read_trials
from tunewright.search.study.sampling import next_points
from tunewright.search.study.study import Study, parse_study
from tunewright.search.trial import Curve, Point, Trial, Verdict
from tunewright.search.workload.workload import load_workload

STEPS, EVALUATIONS = 1000, 50
LAST = 100  # trials that a row is the mean of


def large_study(trials: int) -> Study:
    document = {
        "workload": "tunewright.models.digits:mlp",
        "objective": "val_loss",
        "max_train_steps": STEPS,
        "batch_sizes": [32],
        "trials": trials,
        "space": {
            "warmup_steps": {"orders_of_magnitude": True},
            "clip_norm": [math.inf, 1.0],
            "optimizer": {
                name: {"base_lr": {"low": 1e-4, "high": 1.0, "log": True}}
                for name in ("momentum", "rmsprop", "adam")
            },
        },
    }
    return parse_study(document, "framework", "framework")


def invented(point: Point, rng: np.random.Generator) -> Trial:
    """A trial with noise for a curve, which compresses as badly as a real one."""
    metrics = {name: rng.random(EVALUATIONS + 1) for name in ("val_loss", "val_error")}
    steps = np.linspace(0, STEPS, EVALUATIONS + 1).astype(np.int64)
    loss, grad_norm = (rng.random(STEPS).astype(np.float32).astype(np.float64) for _ in range(2))
    curve = Curve(loss, grad_norm, steps, metrics, STEPS, math.log(10))
    verdict = Verdict("feasible", "none", math.inf, "stable: loss 2.3 to 0.1")
    return Trial.from_curve(point, verdict, curve, "val_loss", seconds=1.0)


def milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def measure(study: Study, results: Path) -> tuple[list[float], list[float], float, float]:
    """Milliseconds per trial of posting and of collecting; of reading all back, and of writing the
    tables.
    """
    checkpoint = load_workload(study.workload, {}).build_model(0).state_dict()
    rng = np.random.default_rng(0)
    store = create_store(study, results)
    driver = Driver([store], InProcess(), 1, devices=["cpu"], slots=1, threads=1, compiled=None)
    desk = Inbox(_inbox(store))
    posting, collecting = [], []
    with Progress(driver.finished_trials(), shown=False) as driver.show:
        points = next_points(study, [])
        driver.show.plan(study, points)
        for point in points:
            trial = invented(point, rng)
            posting.append(milliseconds(lambda trial=trial: _post(desk, trial, checkpoint)))
            collecting.append(milliseconds(driver.collect))
    reading = milliseconds(lambda: read_trials(store))
    return posting, collecting, reading, milliseconds(lambda: write_results(Results.read(store)))


def rows_at(
    sizes: Sequence[int], planning: float, posting: list[float], collecting: list[float]
) -> list[dict]:
    rows = []
    for size in sizes:
        last = slice(max(0, size - LAST), size)
        parts = {
            "plan": planning,
            "post (worker)": mean(posting[last]),
            "tell, move (driver)": mean(collecting[last]),
        }
        shown = {name: f"{value:.2f}" for name, value in parts.items()}
        slowest = max(a + b for a, b in zip(posting[last], collecting[last], strict=True))
        rows.append(
            {
                "trials": size,
                **shown,
                "sum, ms": f"{sum(parts.values()):.2f}",
                "slowest": f"{slowest:.1f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 trials only")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sizes = (100,) if options.quick else (100, 500, 1000)
    print_header("Framework time per trial, in ms")
    study = large_study(sizes[-1])
    planning = (
        Spread.of([milliseconds(lambda: next_points(study, [])) for _ in range(5)]).median
        / sizes[-1]
    )
    with tempfile.TemporaryDirectory() as folder:
        posting, collecting, reading, writing = measure(study, Path(folder))
    print_table(rows_at(sizes, planning, posting, collecting))
    print(
        f"once per run, for {sizes[-1]} trials: reading them back {reading:.0f} ms, all tables "
        f"{writing:.0f} ms"
    )
    print_footer()


if __name__ == "__main__":
    main()
