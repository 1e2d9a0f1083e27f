"""How often `tunewright compare` is wrong, and how soon it is right, on runs that were really
trained.

40 comparisons each of a known null, a recipe against itself with other seeds, and of two known
gains, the recipe against a better learning rate on the same seeds: a clear gain and a small one. To
reach: the null is adopted in 5 % of comparisons at most (over 5 of 40 would happen with probability
0.014 at exactly 5 %), the clear gain in most of them with few seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import optuna
from measure import print_footer, print_header, print_table
from numpy.typing import NDArray

from tunewright.search.judge.comparison import decide, evidence, fewest_seeds
from tunewright.search.run import run_study
from tunewright.search.study.study import parse_study

PAIRED, AGAINST_ONE = 10, 19  # seeds of a comparison: compare's defaults
BASE_LR = 0.01
QUICK = 2
Values: TypeAlias = NDArray[np.float64]
BETTER = {"clear gain": 0.03, "small gain": 0.0105}


def values(base_lr: float, runs: int, folder: Path, slots: int | None) -> Values:
    """The best validation loss of each of `runs` runs of a small MLP on digits, 200 updates, seeds
    0, 1, …
    """
    document = {
        "workload": "tunewright.models.digits:mlp",
        "objective": "val_loss",
        "max_train_steps": 200,
        "evaluations": 10,
        "batch_sizes": [32],
        "trials": 1,
        "seeds": runs,
        "space": {"optimizer": {"momentum": {"base_lr": base_lr}}},
    }
    trials = run_study(
        parse_study(document, name=f"base_lr={base_lr}", place="benchmark"),
        results=folder,
        slots=slots,
    )
    return np.array([trial.best_value for trial in trials])


def row(rule: str, seeds: int, **pairs: Iterable[tuple[Values, Values]]) -> dict[str, object]:
    """In how many comparisons of (candidate, baseline) the candidate is adopted."""
    decisions = {name: [decide([evidence(*pair)]) for pair in of] for name, of in pairs.items()}
    return {"rule": rule, "seeds": seeds} | {
        f"{name} adopted": f"{found.count(['adopt'])} of {len(found)}"
        for name, found in decisions.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} comparisons of each")
    quick = parser.parse_args().quick
    comparisons, slots = (QUICK, PAIRED) if quick else (40, None)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print_header("Decisions of tunewright compare")
    with tempfile.TemporaryDirectory() as folder:
        runs = values(BASE_LR, comparisons * 2 * PAIRED, Path(folder), slots)
        better = {
            name: values(base_lr, comparisons * PAIRED, Path(folder), slots)
            for name, base_lr in BETTER.items()
        }
    for name, own in {"null": runs, **better}.items():
        print(
            f"{name}: base_lr {BETTER.get(name, BASE_LR)}, val_loss {own.mean():.4f} ± "
            f"{own.std():.4f}"
        )
    one, other = runs.reshape(2, comparisons, PAIRED)

    def pairs(first: Values, second: Values, n: int) -> list[tuple[Values, Values]]:
        return [(first[i, :n], second[i, :n]) for i in range(comparisons)]

    rows = []
    for n in range(fewest_seeds(paired=True, candidates=1), PAIRED + 1):
        truly_better = {name: pairs(own.reshape(one.shape), one, n) for name, own in better.items()}
        rows.append(row("paired", n, null=pairs(one, other, n), **truly_better))
    alike = runs.reshape(comparisons, AGAINST_ONE + 1)
    rows.append(
        row(
            "against one checkpoint",
            AGAINST_ONE,
            null=[(own[1:], own[:1]) for own in alike],
            **{
                name: list(
                    zip(np.resize(own, (comparisons, AGAINST_ONE)), alike[:, :1], strict=True)
                )
                for name, own in better.items()
            },
        )
    )
    print_table(rows)
    print_footer()


if __name__ == "__main__":
    main()
