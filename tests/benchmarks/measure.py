"""Timing on a machine that others use too: A B B A, medians, and the ratio within each round.

A ratio is taken between neighbours in time, so that a slow minute slows both sides of it. Imports
neither torch nor the library, so that a script's own process stays small.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("tunewright", "torch", "numpy", "optuna", "joblib")


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: by the clock on the wall, and of processor time of this process."""

    wall: float
    processor: float


def timed(call: Callable[[], object]) -> Timing:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Timing(time.perf_counter() - wall, time.process_time() - processor)


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True
) -> dict[str, list[Timing]]:
    """Run every call once per round, in turn forwards and backwards; `warm` adds a round that is
    not counted.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in calls}
    if warm:
        for call in calls.values():
            call()
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            timings[name].append(timed(calls[name]))
    return timings


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a few numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.2f}–{self.high:.2f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of the ratios within each round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def walls(timings: Sequence[Timing]) -> list[float]:
    return [timing.wall for timing in timings]


def processors(timings: Sequence[Timing]) -> list[float]:
    return [timing.processor for timing in timings]


def compare_calls(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    steps: int,
    pairs: Sequence[tuple[str, str]],
) -> dict[str, object]:
    """Cells of a table: milliseconds of each call per step, and for each pair (a, b) the ratio a/b,
    by the clock and by processor time.
    """
    timings = interleaved(calls, rounds)
    wall = {name: walls(of) for name, of in timings.items()}
    processor = {name: processors(of) for name, of in timings.items()}
    cells: dict[str, object] = {
        f"{name}, ms": f"{1e3 * Spread.of(of).median / steps:.3f}" for name, of in wall.items()
    }
    for a, b in pairs:
        cells[f"{a}/{b}"] = ratio(wall[a], wall[b])
        cells[f"{a}/{b} by processor time"] = ratio(processor[a], processor[b])
    return cells


def print_header(title: str) -> None:
    """What is measured, where, and how busy the machine is."""
    print(title)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, {cpu_model()}; load average before: {os.getloadavg()[0]:.2f}")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}, {versions}; {platform.system()}")


def print_footer() -> None:
    print(f"load average after: {os.getloadavg()[0]:.2f}", flush=True)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    found = [f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields]
    return ", ".join([fields.get("model name", platform.machine()), *found])


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows with the same keys, as a Markdown table with aligned columns."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print("\n" + "\n".join(lines) + "\n", flush=True)


def installed(program: str) -> str:
    """The path of a program that is installed beside this interpreter."""
    return str(Path(sys.executable).with_name(program))
