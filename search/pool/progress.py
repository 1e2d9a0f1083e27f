"""What a run shows while it trains: trials done, their verdicts, who trains, and the time left."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from ..study.sampling import next_points, yet_to_plan
from ..study.study import Study
from ..trial import Point, Trial
from ..words import duration
from .backend import WorkerInfo
from .forecast import Forecast

SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal
MORE_KINDS = ("cut", "crashed")  # of trials, named where there are any
LATER = ""  # the study of what steps to come will train, in a forecast: no study is named so
MOST_HOSTS = 4  # in a line; the others are counted
# characters: of a bar, "1234/1234" and "1234 feasible, 1234 infeasible", and of a name beside them
WIDTH_OF_COUNTS, FEWEST_OF_NAME = 52, 16


def _console() -> Console:
    """Standard error. A notebook without ipywidgets, by which bars move there, is no terminal."""
    return Console(stderr=True, force_jupyter=None if find_spec("ipywidgets") else False)


@dataclass
class Whole:
    """Several runs of which each is a step, as those of a diagnosis: what they have in common.

    trainings  of all steps, at most
    updates    of the steps that are still to come, at most, by batch size
    step       what is being trained now
    done       trainings of the steps before
    """

    trainings: int
    updates: dict[int, int]
    step: str = ""
    done: int = 0
    forecast: Forecast = field(default_factory=Forecast)

    def begin(self, step: str, studies: Iterable[Study]) -> None:
        """These studies are trained now, and no longer to come."""
        self.step = step
        for study in studies:
            for point in next_points(study, []):
                left = self.updates.get(point.batch_size, 0) - study.updates(point)
                self.updates[point.batch_size] = max(0, left)


class _Bars(Bars):
    """Bars, and a line below them."""

    line = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.line:
            yield Text(self.line, no_wrap=True, overflow="ellipsis")


class Progress:
    """Context manager that shows on standard error how far studies are.

    On a terminal as bars that move, elsewhere as a line a minute. Bars take over the terminal:
    where they may not (`live`), each finished trial is a line instead, and what else is printed, or
    typed at a debugger, is left alone.
    """

    def __init__(
        self,
        finished: Mapping[str, Iterable[Trial]],
        shown: bool = True,
        live: bool = True,
        whole: Whole | None = None,
    ) -> None:
        """`finished`: the trials that each study has already, by its name; `whole`: if this run is
        a step of several.
        """
        console = _console()
        # a long name is cut, so that bar and counts have their place
        room = max(FEWEST_OF_NAME, console.width - WIDTH_OF_COUNTS)
        name = Column(no_wrap=True, overflow="ellipsis", max_width=room)
        self._has_lines = shown and not live
        self._has_minutes = shown and live and not (console.is_terminal or console.is_jupyter)
        self._totals: dict[str, int] = {}
        self._whole = whole
        self._forecast = whole.forecast if whole else Forecast()
        if whole:
            self._forecast.plan(LATER, whole.updates)
        self._workers: Sequence[WorkerInfo] = ()
        # seconds of all workers together
        self._worked = self._forecast.seconds_trained
        self._looked = time.monotonic()
        self._said = -math.inf  # the first line comes at once
        self._bars = _Bars(
            TextColumn("{task.description}", table_column=name),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[counts]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=whole is not None,
            disable=not (shown and live) or self._has_minutes,
        )
        self._earlier = {
            name: [trial for trial in trials if not trial.verdict.crashed]
            for name, trials in finished.items()
        }
        self._counts = {name: Counter(map(_kind, own)) for name, own in self._earlier.items()}
        self._at_cut: Counter[str] = Counter()
        self._tasks = {
            name: self._bars.add_task(
                name, total=None, completed=counts.total(), counts=_words(counts)
            )
            for name, counts in self._counts.items()
        }

    def __enter__(self) -> Progress:
        self._bars.line = self.line()
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.line = ""
        self._bars.stop()
        if self._whole:
            self._whole.done += self._finished_trials()

    def plan(self, study: Study, points: Sequence[Point]) -> None:
        """The points of a study that are known so far; an adaptive sampler finds more later."""
        to_come = yet_to_plan(study, points)
        total = len(points) + sum(to_come.values())
        self._totals[study.name] = total
        updates: defaultdict[int, int] = defaultdict(int)
        known = Counter(point.batch_size for point in points)
        for point in points:
            updates[point.batch_size] += study.updates(point)
        for batch_size, count in known.items():
            updates[batch_size] = round(updates[batch_size] * (1 + to_come[batch_size] / count))
        self._forecast.plan(study.name, updates)
        for trial in self._earlier.pop(study.name, ()):
            self._count(study, trial, None)  # this run has not seen how long it took
        self._bars.update(self._tasks[study.name], total=total)

    def finished(self, study: Study, trial: Trial) -> None:
        counts = self._counts[study.name]
        counts[_kind(trial)] += 1
        self._count(study, trial, len(trial.curve.loss))
        words = self._counts_of(study.name)
        self._bars.update(self._tasks[study.name], completed=counts.total(), counts=words)
        if self._has_lines:
            print(f"{study.name}: {self._done(study.name)}", file=sys.stderr)

    def at_cut(self, name: str, count: int) -> None:
        """How many trials of a study have come to its cut, and wait there for the others."""
        self._at_cut[name] = count
        self._bars.update(self._tasks[name], counts=self._counts_of(name))

    def tick(self, workers: Sequence[WorkerInfo]) -> None:
        """Called now and then while workers train."""
        now = time.monotonic()
        busy = sum(worker.in_training > 0 for worker in self._workers)
        self._worked += busy * (now - self._looked)
        self._looked, self._workers = now, workers
        self._bars.line = self.line()
        if self._has_minutes and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            print(self._in_a_line(), file=sys.stderr, flush=True)

    def _in_a_line(self) -> str:
        each = "; ".join(f"{name}: {self._done(name)}" for name in self._counts)
        return f"{each}; {self.line()}"

    def line(self) -> str:
        """How much of all is done, how long it will still take, who trains, and how fast."""
        in_training: Counter[tuple[str, int]] = Counter()
        for worker in self._workers:
            in_training[worker.study, worker.batch_size] += worker.in_training
        seconds = self._forecast.seconds_left(len(self._workers), in_training, self._worked)
        word = "at most" if self._whole else "about"
        left = "" if seconds is None else f"{word} {duration(seconds)} left"
        who = who_trains(self._workers) or "workers are starting"
        return "; ".join(part for part in (self._in_all(), left, who) if part)

    def _in_all(self) -> str:
        """The total, where there is more than one bar; empty where its bar says it."""
        done = self._finished_trials()
        if self._whole:
            of = f"{self._whole.done + done} of at most {self._whole.trainings} trainings"
            return f"{self._whole.step}; {of}"
        if len(self._counts) < 2:
            return ""
        totals = [self._totals.get(name, 0) for name in self._counts]
        return f"{done} of {sum(totals)} trials" if all(totals) else f"{done} trials"

    def _finished_trials(self) -> int:
        return sum(counts.total() for counts in self._counts.values())

    def _count(self, study: Study, trial: Trial, trained: int | None) -> None:
        if not trial.verdict.crashed:
            point, planned = trial.point, study.updates(trial.point)
            self._forecast.finish(study.name, point.batch_size, planned, trained, trial.seconds)

    def _done(self, name: str) -> str:
        counts = self._counts[name]
        return f"{counts.total()}/{self._totals.get(name, '?')}: {self._counts_of(name)}"

    def _counts_of(self, name: str) -> str:
        waiting = self._at_cut[name]
        return _words(self._counts[name]) + f", {waiting} at the cut" * bool(waiting)


def who_trains(workers: Sequence[WorkerInfo]) -> str:
    """How many workers there are, on which hosts, and how many updates a second each takes."""
    hosts: defaultdict[str, list[WorkerInfo]] = defaultdict(list)
    for worker in workers:
        hosts[worker.host].append(worker)
    each = []
    for host, own in list(hosts.items())[:MOST_HOSTS]:
        rates = [worker.updates_per_second for worker in own if worker.updates_per_second]
        pace = f" × {sum(rates) / len(rates):,.0f} updates/s" if rates else ""
        each.append(f"{host}: {len(own)}{pace}")
    if len(hosts) > MOST_HOSTS:
        each.append(f"{len(hosts) - MOST_HOSTS} more hosts")
    return f"workers on {', '.join(each)}" if each else ""


def _kind(trial: Trial) -> str:
    if trial.verdict.crashed:
        return "crashed"
    if trial.verdict.unfinished:
        return "cut"
    return "feasible" if trial.feasible else "infeasible"


def _words(counts: Counter[str]) -> str:
    words = f"{counts['feasible']} feasible, {counts['infeasible']} infeasible"
    return words + "".join(f", {counts[kind]} {kind}" for kind in MORE_KINDS if counts[kind])
