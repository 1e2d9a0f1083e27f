"""How true the verdicts are: false alarms of noise, scripted curves, and public runs of other
people.

    python tests/benchmarks/verdicts.py [--quick]

Prints the share of curves called unstable or infeasible that learn nothing, by kind of noise and
batch size, and of healthy ones, by kind of noise and shape; the scripts that are judged as a
practitioner does; and, where the environment variable TUNEWRIGHT_ALGOPERF names a folder with
runs.jsonl.gz, the agreement with their validation.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from algoperf import agrees, runs
from scripted import (
    BATCH_SIZES,
    HEALTHY,
    NOTHING_LEARNED,
    SHAPES,
    healthy,
    nothing_learned,
    scripted,
)

from tunewright.search.judge.verdict import judge
from tunewright.search.trial import Curve


def alarms(curves: Iterable[Curve]) -> tuple[int, int]:
    """(curves called unstable or infeasible, all)."""
    verdicts = [judge(curve) for curve in curves]
    return sum(one.infeasible or one.instability != "none" for one in verdicts), len(verdicts)


def share(alarmed: int, count: int) -> str:
    return f"{alarmed:4d} of {count} ({alarmed / count:.2%})"


def of_noise(repetitions: int) -> None:
    for known in (True, False):
        print(
            f"\nNothing learned, {'with' if known else 'without'} chance_loss: called "
            f"unstable or infeasible"
        )
        total = np.zeros(2, int)
        for kind in NOTHING_LEARNED:
            cells = [
                alarms(nothing_learned(kind, b, seed, known) for seed in range(repetitions))
                for b in BATCH_SIZES
            ]
            total += np.sum(cells, axis=0)
            by_batch = "  ".join(
                f"{b}: {bad}" for b, (bad, _) in zip(BATCH_SIZES, cells, strict=True)
            )
            print(f"  {kind:20s} {share(*np.sum(cells, axis=0))}   by batch size  {by_batch}")
        print(f"  {'all':20s} {share(*total)}")


def of_healthy(repetitions: int) -> None:
    for known in (True, False):
        print(
            f"\nHealthy, {'with' if known else 'without'} chance_loss: called unstable or "
            f"infeasible"
        )
        total = np.zeros(2, int)
        for kind in HEALTHY:
            cells = [
                alarms(healthy(shape, kind, seed, known) for seed in range(repetitions))
                for shape in SHAPES
            ]
            total += np.sum(cells, axis=0)
            by_shape = "  ".join(
                f"{shape}: {bad}" for shape, (bad, _) in zip(SHAPES, cells, strict=True) if bad
            )
            print(f"  {kind:20s} {share(*np.sum(cells, axis=0))}   {by_shape}")
        print(f"  {'all':20s} {share(*total)}")


def of_scripts(repetitions: int) -> None:
    right, wrong = 0, Counter[str]()
    for seed in range(repetitions):
        for script in scripted(seed):
            verdict = judge(script.curve)
            same = (verdict.outcome, verdict.instability) == (script.outcome, script.instability)
            near = script.onset_step == verdict.onset_step
            near = near or abs(verdict.onset_step - script.onset_step) <= script.tolerance
            right += same and near
            if not (same and near):
                wrong[
                    (
                        f"{script.name}: {verdict.outcome}, {verdict.instability}, "
                        f"{verdict.onset_step:g}"
                    )
                ] += 1
    count = right + wrong.total()
    print(f"\nScripted curves: {right} of {count} right ({right / count:.1%})")
    for what, times in wrong.most_common(30):
        print(f"  {times} × {what}")


def of_public_runs() -> None:
    folder = os.environ.get("TUNEWRIGHT_ALGOPERF")
    if not folder:
        print("\nTUNEWRIGHT_ALGOPERF is not set: no public runs")
        return
    counts: dict[str, list[bool]] = {}
    for run in runs(Path(folder)):
        counts.setdefault(run.label, []).append(agrees(run))
    print("\nPublic runs (AlgoPerf): verdicts that agree with validation")
    for label, found in counts.items():
        print(f"  {label:22s} {sum(found)} of {len(found)}")


def of_time(steps: int) -> None:
    rng = np.random.default_rng(0)
    loss = 2.3 * np.exp(0.1 * rng.standard_normal(steps))
    began = time.process_time()
    judge(Curve(loss, np.ones(steps), np.array([0]), {"value": np.ones(1)}, steps))
    print(
        f"\nA curve of {steps} updates is judged in {time.process_time() - began:.2f} s of "
        f"processor time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: some seconds")
    quick = parser.parse_args().quick
    of_noise(10 if quick else 100)
    of_healthy(5 if quick else 40)
    of_scripts(2 if quick else 20)
    of_public_runs()
    of_time(100_000 if quick else 1_000_000)


if __name__ == "__main__":
    main()
