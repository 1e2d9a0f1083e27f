"""From the last trial's end to the report: what `tunewright run` and `tunewright report` do once
nothing is left to train.

The results folder is made of invented trials, with curves of 1,000 updates and 51 evaluations: the
upper third of the base LRs diverges. Each command runs in a process of its own, whose clock starts
when the driver has nothing more to train (`run`), or at the command (`report`); imports are not
counted. Memory is the process's peak, and what it had before the clock started. A page is open
once a browser can draw its figures; what is near the screen is drawn then.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Spread, print_footer, print_header, print_table

EVALUATIONS = 51
STUDY = """\
workload = "tunewright.models.digits:mlp"
objective = "val_loss"
max_train_steps = {updates}
batch_sizes = [32]
trials = {trials}

[space]
warmup_steps = {{ orders_of_magnitude = true }}
clip_norm = [inf, 1.0]

[space.optimizer]
momentum.base_lr = {{ low = 1e-4, high = 1.0, log = true }}
rmsprop.base_lr = {{ low = 1e-4, high = 1.0, log = true }}
adam.base_lr = {{ low = 1e-4, high = 1.0, log = true }}
"""


def invent(folder: Path, trials: int, updates: int) -> Path:
    """The study file, beside a results folder in which all its trials are finished."""
    import numpy as np
    import optuna

    from tunewright.search.store.files import curve_path, write_curve
    from tunewright.search.store.storage import create_store, tell
    from tunewright.search.study.sampling import plan
    from tunewright.search.study.study import load_study
    from tunewright.search.trial import Curve, Trial, Verdict

    path = folder / "many.toml"
    path.write_text(STUDY.format(trials=trials, updates=updates))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, rng = load_study(path), np.random.default_rng(0)
    store = create_store(study, folder)
    stable = Verdict("feasible", "none", math.inf, "stable: loss 2.3 to 0.1")
    for point in plan(study):
        diverges = math.log10(point.base_lr) > -4 / 3
        taken = updates // 3 if diverges else updates
        fall = -np.linspace(0.0, 1.0 + 100.0 * min(point.base_lr, 0.02), updates)
        loss = 2.3 * np.exp(fall + 0.1 * rng.standard_normal(updates))
        loss = loss[:taken].astype(np.float32).astype(np.float64)
        steps = np.unique(np.linspace(0, taken, EVALUATIONS).astype(np.int64))
        values = np.interp(steps, np.arange(taken), loss)
        verdict = stable
        if diverges:
            loss[-1] = math.inf
            verdict = Verdict("non_finite", "early", taken - 1, f"loss inf at step {taken - 1}")
        norms = (1.0 + rng.random(taken)).astype(np.float32).astype(np.float64)
        metrics = {"val_loss": values, "val_error": values / 2.6}
        curve = Curve(loss, norms, steps, metrics, updates, math.log(10))
        trial = Trial.from_curve(point, verdict, curve, "val_loss", seconds=1.0)
        write_curve(curve_path(store.folder, point), curve)
        tell(store, trial)
    return path


def clocked(arguments: list[str]) -> dict[str, float]:
    """Seconds and megabytes of a command in this process, from where nothing is left to train."""
    import optuna  # noqa: F401  # imports are not counted

    import tunewright.search.compare  # noqa: F401
    from tunewright.search.cli import main
    from tunewright.search.pool.driver import Driver

    began = (time.perf_counter(), time.process_time())
    before = _peak()
    run = Driver.run

    def watched(driver: Driver) -> None:
        nonlocal began, before
        run(driver)
        began, before = (time.perf_counter(), time.process_time()), _peak()

    Driver.run = watched
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    assert code == 0, arguments
    wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    return {"wall": wall, "processor": processor, "before": before, "peak": _peak()}


def _peak() -> float:
    """The most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def seconds_to_open(page: Path) -> float:
    """From the call of the page in Chromium until its figures can be drawn; nan without it."""
    program = shutil.which("chromium")
    if program is None:
        return math.nan
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        tab = browser.new_page()
        began = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-figures=ready]", timeout=120_000)
        taken = time.perf_counter() - began
        browser.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="30 trials, once")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(clocked(json.loads(options.child))))
        return
    trials, rounds = (30, 1) if options.quick else (options.trials, options.rounds)
    print_header(f"From the last trial's end to the report: {trials} × {options.updates} updates")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        study = invent(Path(folder), trials, options.updates)
        commands = {
            "run": ["run", str(study), "--results", folder],
            "report": ["report", str(study.with_suffix(""))],
        }
        for name, arguments in commands.items():
            found = [in_a_process(arguments) for _ in range(rounds)]
            seconds = {key: Spread.of([one[key] for one in found]) for key in ("wall", "processor")}
            megabytes = {key: max(one[key] for one in found) for key in ("before", "peak")}
            rows.append(
                {
                    "command": name,
                    "seconds": seconds["wall"],
                    "of processor": seconds["processor"],
                    "MB before": f"{megabytes['before']:.0f}",
                    "MB peak": f"{megabytes['peak']:.0f}",
                }
            )
        page = study.with_suffix("") / "report.html"
        megabytes_of_page = page.stat().st_size / 1e6
        opening = Spread.of([seconds_to_open(page) for _ in range(rounds)])
    print_table(rows)
    print(f"\nThe page has {megabytes_of_page:.1f} MB, and opens in {opening} s.")
    print_footer()


if __name__ == "__main__":
    main()
