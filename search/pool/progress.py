"""A progress bar per study: trials done, their verdicts, and the time left."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from ..study.study import Study
from ..trial import Trial


class Progress:
    """Context manager that shows the bars on standard error while studies run.

    Bars that move take over the terminal: where they may not (`live`), each finished trial is a
    line instead, and what else is printed, or typed at a debugger, is left alone.
    """

    def __init__(
        self, finished: Mapping[str, Iterable[Trial]], shown: bool = True, live: bool = True
    ) -> None:
        """`finished`: the trials that each study has already, by its name."""
        self._has_lines = shown and not live
        self._totals: dict[str, int] = {}
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (shown and live),
        )
        self._counts: dict[str, Counter[str]] = {}
        self._tasks = {}
        for name, trials in finished.items():
            self._counts[name] = Counter(
                _kind(trial) for trial in trials if not trial.verdict.crashed
            )
            self._tasks[name] = self._bars.add_task(
                name,
                total=None,
                completed=self._counts[name].total(),
                counts=_words(self._counts[name]),
            )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def plan(self, study: Study, points: int) -> None:
        """The number of trials known so far, or planned in all."""
        planned = (study.trials or 0) * study.seeds * len(study.batch_sizes)
        total = self._totals[study.name] = max(points, planned)
        self._bars.update(self._tasks[study.name], total=total)

    def finished(self, study: Study, trial: Trial) -> None:
        counts = self._counts[study.name]
        counts[_kind(trial)] += 1
        self._bars.update(self._tasks[study.name], completed=counts.total(), counts=_words(counts))
        if self._has_lines:
            done = f"{counts.total()}/{self._totals.get(study.name, '?')}"
            print(f"{study.name}: {done}: {_words(counts)}", file=sys.stderr)


def _kind(trial: Trial) -> str:
    if trial.verdict.crashed:
        return "crashed"
    return "feasible" if trial.feasible else "infeasible"


def _words(counts: Counter[str]) -> str:
    words = f"{counts['feasible']} feasible, {counts['infeasible']} infeasible"
    return words + (f", {counts['crashed']} crashed" if counts["crashed"] else "")
