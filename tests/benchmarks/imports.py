"""`tunewright import` of an Optuna study of thousands of trials, then the report of it.

Trials have five parameters and ten intermediate values; a third is pruned, a tenth is nan. The
report is timed against one of a study of our own with as many trials, whose curves hold ten
evaluations and no losses, too. Each command runs in a process of its own, imports included.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import print_footer, print_header, print_table

COMMANDS = ("import", "import again", "report of it", "report of our own")
OWN = """\
workload = "tunewright.models.digits:mlp"
objective = "value"
max_train_steps = 1000
batch_sizes = [32, 64]
trials = {trials}

[workload_args]
width = [64, 128]

[space.optimizer]
adam.base_lr = {{ low = 1e-5, high = 1.0, log = true }}
adam.beta1 = {{ low = 0.8, high = 0.99 }}
"""


def sweep(path: Path, trials: int) -> None:
    """An Optuna study, as somebody else would have it."""
    import numpy as np
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    from tunewright.search.store.database import open_storage
    from tunewright.search.store.rows import add_trials

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="many", storage=open_storage(f"sqlite:///{path}"))
    rng = np.random.default_rng(0)
    searched = {
        "lr": FloatDistribution(1e-5, 1.0, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "n_layers": IntDistribution(1, 4),
        "optimizer": CategoricalDistribution(["Adam", "SGD"]),
        "batch_size": CategoricalDistribution([32, 64]),
    }
    made = []
    for number in range(trials):
        lr = float(10 ** rng.uniform(-5, 0))
        value = abs(math.log10(lr) + 2) + float(rng.uniform(0, 0.3))
        reports = {step: value + 1 / (step + 1) for step in range(10)}
        state = TrialState.PRUNED if number % 3 == 0 else TrialState.COMPLETE
        if lr > 0.3:
            reports[9], state = math.nan, TrialState.FAIL
        params = {
            "lr": lr,
            "dropout": float(rng.uniform(0, 0.5)),
            "n_layers": int(rng.integers(1, 5)),
            "optimizer": ["Adam", "SGD"][number % 2],
            "batch_size": [32, 64][number // 2 % 2],
        }
        made.append(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params=params,
                distributions=searched,
                intermediate_values=reports,
            )
        )
    add_trials(study, made)


def own_study(folder: Path, trials: int) -> Path:
    """Results of a study of our own, with as many trials and groups."""
    import numpy as np

    from tunewright.search.store.storage import create_store, tell_all
    from tunewright.search.study.sampling import plan
    from tunewright.search.study.study import load_study
    from tunewright.search.trial import Curve, Trial, Verdict

    path = folder / "own.toml"
    path.write_text(OWN.format(trials=trials // 2))
    study, rng = load_study(path), np.random.default_rng(0)
    store = create_store(study, folder)
    made = []
    for point in plan(study):
        value = abs(math.log10(point.base_lr) + 2) + rng.uniform(0, 0.3)
        metrics = {"value": value + 1 / np.arange(1, 11)}
        curve = Curve(np.empty(0), np.empty(0), np.arange(10), metrics, 1000)
        verdict = Verdict("feasible", "none", math.inf, "made up")
        if point.base_lr > 0.3:
            verdict = Verdict("diverged", "early", 3, "made up")
        made.append(Trial.from_curve(point, verdict, curve, "value", seconds=1.0))
    tell_all(store, made)
    return store.folder


def timed(folder: Path, *arguments: str) -> tuple[float, float]:
    """Seconds by the clock and of processor time that a command takes."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-m", "tunewright", *arguments],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = os.times()
    processor = after.children_user + after.children_system
    return time.perf_counter() - began, processor - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    trials = 60 if options.quick else options.trials
    print_header("Importing an Optuna study")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep(folder / "many.db", trials)
        own = own_study(folder, trials)
        importing = ("import", "sqlite:///many.db", "--as", "many")
        commands = [importing, importing, ("report", "runs/many"), ("report", str(own))]
        rows = []
        for what, arguments in zip(COMMANDS, commands, strict=True):
            seconds, processor = timed(folder, *arguments)
            row = {"command": what, "trials": trials, "seconds": f"{seconds:.1f}"}
            rows.append(row | {"of processor": f"{processor:.1f}"})
    print_table(rows)
    print_footer()


if __name__ == "__main__":
    main()
