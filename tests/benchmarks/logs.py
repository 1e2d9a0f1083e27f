"""How long `tunewright judge` takes for the log of a million steps, from the shell's point of view,
and how much memory: against reading the same file, by Python's csv or json and by pandas.

    python tests/benchmarks/logs.py [--quick]

Targets: under 2 s, and under 500 MB. pandas takes part where it is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from measure import Spread, installed, print_footer, print_header, print_table, ratio

STEPS, QUICK_STEPS = 1_000_000, 20_000
PYTHON = {
    ".csv": "import csv, sys\nfor row in csv.reader(open(sys.argv[1], newline='')): pass",
    ".jsonl": "import json, sys\nfor line in open(sys.argv[1]): json.loads(line)",
}
PANDAS = {
    ".csv": "import pandas, sys; pandas.read_csv(sys.argv[1])",
    ".jsonl": "import pandas, sys; pandas.read_json(sys.argv[1], lines=True)",
}


@dataclass(frozen=True)
class Used:
    """Of one process: seconds by the clock and of the processor, and megabytes at its peak."""

    wall: float
    processor: float
    peak: float


def used(*command: str | Path) -> Used:
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}")
    return Used(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def write(folder: Path, steps: int) -> list[Path]:
    """A healthy run as CSV, with an evaluation every hundredth of it, and as JSON lines."""
    rng = np.random.default_rng(0)
    loss = 2.3 / (1 + np.arange(steps) / (steps / 100)) * np.exp(0.1 * rng.standard_normal(steps))
    norm = np.exp(0.3 * rng.standard_normal(steps))
    table, lines = folder / "log.csv", folder / "log.jsonl"
    with table.open("w") as csv, lines.open("w") as jsonl:
        csv.write("step,train_loss,grad_norm,val_loss\n")
        for step, (a, b) in enumerate(zip(loss.tolist(), norm.tolist(), strict=True)):
            evaluated = repr(a) if step % (steps // 100) == 0 else ""
            csv.write(f"{step},{a!r},{b!r},{evaluated}\n")
            jsonl.write(f'{{"step": {step}, "train_loss": {a!r}, "grad_norm": {b!r}}}\n')
    return [table, lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 steps, 2 rounds")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    steps = QUICK_STEPS if options.quick else STEPS
    print_header(f"The verdict of a log of {steps} steps")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in write(Path(folder), steps):
            commands = {
                "tunewright judge": (installed("tunewright"), "judge", path),
                "python reads it": (sys.executable, "-c", PYTHON[path.suffix], path),
            }
            if find_spec("pandas"):
                commands["pandas reads it"] = (sys.executable, "-c", PANDAS[path.suffix], path)
            found: dict[str, list[Used]] = {name: [] for name in commands}
            for turn in range(2 if options.quick else options.rounds):
                for name in list(commands)[:: 1 if turn % 2 == 0 else -1]:
                    found[name].append(used(*commands[name]))
            ours = [one.processor for one in found["tunewright judge"]]
            for name, own in found.items():
                processor = [one.processor for one in own]
                rows.append(
                    {
                        "format": path.suffix.removeprefix("."),
                        "command": name,
                        "seconds by the clock": Spread.of([one.wall for one in own]),
                        "of the processor": Spread.of(processor),
                        "judge / this": ratio(ours, processor),
                        "MB peak": f"{max(one.peak for one in own):.0f}",
                    }
                )
    print_table(rows)
    print_footer()


if __name__ == "__main__":
    main()
