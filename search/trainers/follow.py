"""A log that a program writes, followed while it grows: its rows, and what they say of a training.

CSV, or JSON lines where the first line begins with a brace. A last line without its end waits for
that. A log that is written anew, as CSV loggers do once they meet another column, is read anew.
What follows from a log depends on its rows alone, not on when they were read.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..judge.verdict import hopeless, judge
from ..rules.optimizers import average_of
from ..study.study import CommandLog, Study
from ..train.recorder import CHECK_EVERY
from ..trial import Curve, Point, Verdict
from .watched import MisuseError, never_reported

METRIC = "metric/"  # before the names of metrics in a log of `current_run`
TENSORS_CLIPPED = "tensors_clipped"  # its column of what clip_tensor did at each update
MOST_SHOWN = 80  # characters of a cell in a message

Cells = Mapping[str, object]


class LogError(Exception):
    """A log that cannot be understood, in a sentence."""


class LogFile:
    """The rows of a log, as far as they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, None] = {}  # of all rows so far, in order
        self._offset = self._line = self._file = 0
        self._head = b""  # the first line: another one means another log
        self._is_json = False
        self._rest = b""  # the beginning of a line that has no end yet
        self._open = ""  # the beginning of a CSV row that goes on in the next line
        self._header: list[str] = []
        self._delimiter = ","

    def is_replaced(self) -> bool:
        """Whether what was read is no longer what the file begins with."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                head = file.read(len(self._head))
        except FileNotFoundError:
            return False
        replaced = self._file not in (0, status.st_ino) or status.st_size < self._offset
        return replaced or head != self._head

    def rows(self, status: int | None = None) -> Iterator[tuple[int, Cells]]:
        """The rows that are new, each with its line's number, counted from 1.

        `status`: the exit status of what writes the log, once that has ended; then a last line
        without its end counts, unless it is only half a row. A row of a CSV file may be that where
        what wrote it failed: its last number may be cut off. Raises LogError for a line that is
        none of a log.
        """
        try:
            with self.path.open("rb") as file:
                self._file = os.fstat(file.fileno()).st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._head = self._head or line + b"\n"
            if row := self._row(line):
                yield row
        if self._rest and (status == 0 or (status is not None and self._is_json)):
            try:
                row = self._row(self._rest)
            except LogError:
                return
            if row and self._is_full(row[1]):
                yield row

    def _row(self, line: bytes) -> tuple[int, Cells] | None:
        """The row of a line; None of a blank one, a header, or the first part of a row."""
        self._line += 1
        text = line.decode("utf-8-sig" if self._line == 1 else "utf-8", "replace").rstrip("\r")
        if not (self._header or self.columns):
            self._is_json = text.lstrip().startswith("{")
        if not (self._open or text.strip()):
            return None
        cells = self._json(text) if self._is_json else self._csv(self._open + text)
        if cells is None:
            return None
        self.columns |= dict.fromkeys(cells)
        return self._line, cells

    def _json(self, text: str) -> Cells:
        try:
            cells = json.loads(text)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise LogError(f"line {self._line} is no JSON object, got {_shown(text.strip())}")
        return cells

    def _csv(self, text: str) -> Cells | None:
        self._open = f"{text}\n" if text.count('"') % 2 else ""
        if self._open:
            return None
        try:
            if not self._header:
                self._delimiter = next((one for one in ",\t;" if one in text), ",")
            values = next(csv.reader([text], delimiter=self._delimiter), [])
        except csv.Error as error:
            raise LogError(f"line {self._line} is no row of a CSV file: {error}") from error
        if not self._header:
            self._header = [name.strip() for name in values]
            self.columns |= dict.fromkeys(self._header)
            return None
        if len(values) > len(self._header):
            raise LogError(
                f"line {self._line} has {len(values)} cells, and the header {len(self._header)}"
            )
        names_again = [value.strip() for value in values] == self._header
        return None if names_again else dict(zip(self._header, values, strict=False))

    def _is_full(self, cells: Cells) -> bool:
        """Whether a row that was read from half a line is a whole one."""
        return len(cells) >= len(self._header)


@dataclass(frozen=True)
class Row:
    """What a row says: an update's loss and gradient norm, None if it has none; metrics by name.

    `tensors_clipped`: what clip_tensor did at the update, in the log of `current_run` alone.
    """

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tensors_clipped: float | None = None


@dataclass(frozen=True)
class LogColumns:
    """Which columns of a log say what. `metrics`: name → column."""

    step: str
    loss: str
    grad_norm: str | None
    metrics: Mapping[str, str]
    tensors_clipped: str | None = None

    @classmethod
    def of(cls, log: CommandLog, objective: str) -> LogColumns:
        names = dict.fromkeys([objective, *log.metrics])
        return cls(log.step, log.loss, log.grad_norm, {name: name for name in names})

    @property
    def needed(self) -> list[str]:
        """Those without which nothing can be judged."""
        named = [self.step, self.loss, self.grad_norm, *self.metrics.values()]
        return [column for column in dict.fromkeys(named) if column]

    def row(self, line: int, cells: Cells) -> Row | None:
        """The row of some cells; None if it says nothing.

        Raises LogError for text in a column of numbers, and for a step that is no whole number.
        """

        def of(column: str | None) -> float | None:
            return None if column is None else _number(line, column, cells.get(column))

        loss, norm = of(self.loss), of(self.grad_norm)
        found = {name: of(column) for name, column in self.metrics.items()}
        metrics = {name: value for name, value in found.items() if value is not None}
        if loss is None and not metrics:
            return None
        step = of(self.step)
        if step is None or step < 0 or not step.is_integer():
            raise LogError(
                f"line {line}: {self.step}: must be a whole number ≥ 0, got "
                f"{_shown(cells.get(self.step))}"
            )
        return Row(int(step), loss, norm, metrics, of(self.tensors_clipped))


def _number(line: int, column: str, cell: object) -> float | None:
    """A cell's number; None of an empty one."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        if isinstance(cell, bool) or not isinstance(cell, int | float | str):
            raise ValueError
        return float(cell)
    except OverflowError:
        return math.inf
    except ValueError as error:
        raise LogError(f"line {line}: {column}: must be a number, got {_shown(cell)}") from error


def _shown(cell: object) -> str:
    text = repr(cell)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


class Measured:
    """What a log has said so far of a training, and whether that is hopeless.

    Logs count updates from 0 or from 1: from 1, if their first loss has a step of 1 or more. A
    metric is of the model after as many updates as its step says, and after all whose losses stand
    before it. Where losses are missing, the curve has a `loss_step`. A loss without a norm has the
    one before, or the first one; where there is none at all, the curve has none.
    """

    def __init__(self, study: Study, point: Point) -> None:
        self._study, self._averaged = study, average_of(point.optimizer) is not None
        self.total_steps = study.updates(point)
        self.chance_loss = math.nan
        self._is_over = False
        self.losses = 0
        self._loss, self._norm = np.empty(self.total_steps), np.empty(self.total_steps)
        self._clipped: list[float] = []  # by clip_tensor: of each loss, or of none
        self._update = np.empty(self.total_steps, np.int64)
        self._norms = 0  # that are there
        self.seconds_before = 0.0  # of training, where it was interrupted and is gone on with
        self._first = 0  # the number of the first update in the log
        self._metrics_step, self._metrics = -1, dict[str, float]()  # of the last row that has some
        self._evaluations: dict[int, Mapping[str, float]] = {}  # by updates done
        self._judged_at = 0  # losses when it was last asked whether training is hopeless
        self._is_evaluated = False  # since then

    def add(self, row: Row) -> None:
        """Add a row.

        Raises LogError where steps go back, and MisuseError where they go beyond what is planned.
        """
        if row.loss is not None:
            self._look()
            if self.is_over:
                return
            self._add_loss(row.step, row.loss, row.grad_norm, row.tensors_clipped)
        if row.metrics and not self.is_over:
            self._add_metrics(row.step, row.metrics)

    def _add_loss(self, step: int, loss: float, norm: float | None, clipped: float | None) -> None:
        self._first = min(step, 1) if self.losses == 0 else self._first
        update = step - self._first
        if update < self.done:
            raise LogError(f"its steps must rise: {step} comes after {self.done - 1 + self._first}")
        if update >= self.total_steps:
            self._end_at(step, update)
            return
        self._loss[self.losses], self._update[self.losses] = loss, update
        if norm is not None:
            self._norm[self.losses if self._norms else slice(self.losses + 1)] = norm
            self._norms += 1
        elif self._norms:
            self._norm[self.losses] = self._norm[self.losses - 1]
        if clipped is not None:
            self._clipped.append(clipped)
        self.losses += 1

    def _end_at(self, step: int, update: int) -> None:
        """Pass over a row beyond the planned updates, as some scripts log one more of.

        With `stop_after` training ends here, else more of them are a mistake.
        """
        if self._study.stop_after is not None:
            self._is_over = True
        elif update > self.total_steps:
            raise MisuseError(
                f"log: it goes on to step {step}, beyond the {self.total_steps} updates that are "
                "planned: let the command end there, by the placeholder {total_steps}, say"
            )

    def _add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self.total_steps:
            self._end_at(step, step - 1)
            return
        done = max(step, self.done, self._metrics_step)
        if done != self._metrics_step:
            self._metrics_step, self._metrics = done, {}
        self._metrics |= metrics
        if self._study.objective in self._metrics:
            self._is_evaluated = self._is_evaluated or self._study.objective in metrics
            self._evaluations[done] = self._metrics

    @property
    def done(self) -> int:
        """Updates whose losses are there, or lie between them."""
        return int(self._update[self.losses - 1]) + 1 if self.losses else 0

    def _look(self) -> None:
        """Ask whether training is hopeless, as often as a recorder does.

        It is asked once the next loss is there, so that all that was said before that counts.
        """
        more = self.losses - self._judged_at
        last = slice(max(self.losses - 1, 0), self.losses)
        is_finite = np.isfinite(self._loss[last]).all()
        if self._norms:
            is_finite = is_finite and np.isfinite(self._norm[last]).all()
        if not is_finite or more >= CHECK_EVERY or (more and self._is_evaluated):
            self._judged_at, self._is_evaluated = self.losses, False
            study = self._study
            self._is_over = hopeless(
                self.curve(), study.objective, maximize=study.maximize, divergence=study.divergence
            )

    def finish(self) -> None:
        """Nothing more follows."""
        if not self.is_over:
            self._look()

    @property
    def is_over(self) -> bool:
        """Whether training may end here: no row that follows counts."""
        return self._is_over

    @property
    def is_infeasible(self) -> bool:
        """Whether it was stopped, or may be, because training is hopeless."""
        return self.is_over and not self.verdict().feasible

    @property
    def is_complete(self) -> bool:
        """Whether the log tells of all updates, up to its own spacing."""
        gaps = np.diff(self._update[: self.losses])
        spacing = int(gaps.max()) if len(gaps) else 1
        seen = max(self.done, *self._evaluations, 0)
        return seen > self.total_steps - spacing

    @property
    def is_evaluated_at_end(self) -> bool:
        """Whether the log tells of the objective after the last update.

        A log whose first loss has a step of 2 or more may count from 0 after all: its last update
        then has a step less.
        """
        if not (self.losses and self.is_complete):
            return False
        last = self.total_steps - int(self._update[0] > 0)
        return max(self._evaluations, default=0) >= last

    @property
    def has_objective(self) -> bool:
        return bool(self._evaluations)

    def curve(self) -> Curve:
        """All that was measured so far."""
        each = slice(self.losses)
        is_whole = self._norms > 0 and self.done == self.losses
        evaluations = self._evaluations.values()
        names = {self._study.objective: None}
        for one in evaluations:
            names |= dict.fromkeys(one)
        metrics = {
            name: np.array([one.get(name, math.nan) for one in evaluations], np.float64)
            for name in names
        }
        return Curve(
            loss=self._loss[each],
            grad_norm=self._norm[each] if self._norms else np.empty(0),
            eval_step=np.array(list(self._evaluations), np.int64),
            metrics=metrics,
            total_steps=self.total_steps,
            chance_loss=self.chance_loss,
            loss_step=None if is_whole else self._update[each],
            tensors_clipped=np.array(self._clipped) if self._clipped else None,
        )

    def verdict(self) -> Verdict:
        study = self._study
        return judge(
            self.curve(),
            study.objective,
            maximize=study.maximize,
            divergence=study.divergence,
            averaged=self._averaged,
        )


class LogFollower:
    """Follows the log of one training: that of a study's `log`, or that of `current_run`."""

    def __init__(self, path: Path, study: Study, point: Point) -> None:
        self.path, self._objective = path, study.objective
        self.file, self.measured = LogFile(path), Measured(study, point)
        self.columns = LogColumns.of(study.log, study.objective) if study.log else None
        self._reported: set[str] = set()  # columns of metrics that `current_run` was told
        self._anew: Callable[[], Measured] = lambda: Measured(study, point)

    def read(self, status: int | None = None) -> None:
        """Add what is new. Raises LogError and MisuseError as `Measured.add`.

        `status`: the exit status of what writes the log, once that has ended.
        """
        if self.file.is_replaced():
            self.file, self.measured = LogFile(self.path), self._anew()
        for line, cells in self.file.rows(status):
            self._add(line, cells)
        if status is not None:
            self.measured.finish()

    def _add(self, line: int, cells: Cells) -> None:
        if self.measured.is_over:
            return
        row = self.columns.row(line, cells) if self.columns else self._own_row(line, cells)
        if row:
            self.measured.add(row)

    def _own_row(self, line: int, cells: Cells) -> Row | None:
        """A row of a log that `current_run` writes. Raises MisuseError where that met a mistake."""
        if "misuse" in cells:
            raise MisuseError(str(cells["misuse"]))
        if "chance_loss" in cells:
            self.measured.chance_loss = float(str(cells["chance_loss"]))
        if "seconds" in cells:
            self.measured.seconds_before = float(str(cells["seconds"]))
        names = [name for name in cells if name.startswith(METRIC)]
        self._reported |= {name for name in names if cells[name] is not None}
        # an evaluation without the objective counts as one that was nan, as in a recorder
        filled = {**cells, **{name: math.nan for name in names if cells[name] is None}}
        metrics = {name.removeprefix(METRIC): name for name in names}
        columns = LogColumns("step", "loss", "grad_norm", metrics, TENSORS_CLIPPED)
        return columns.row(line, filled)

    def check_log(self) -> None:
        """Raise MisuseError naming what the log lacks, if it lacks what any training needs."""
        if self.columns is None:
            self._check_own_log()
            return
        if not self.path.exists():
            raise MisuseError(f"log: the command did not write {self.path}")
        known = ", ".join(self.file.columns) or "none"
        for column in self.columns.needed:
            if column not in self.file.columns:
                raise MisuseError(f"log: {self.path} has no column {column!r}; it has {known}")
        if not self.measured.losses:
            raise MisuseError(f"log: {self.path} has no loss in column {self.columns.loss!r}")
        if not self.measured.has_objective:
            raise MisuseError(f"log: {self.path} has no value in column {self._objective!r}")

    def _check_own_log(self) -> None:
        if not self.path.exists():
            raise MisuseError(
                "command: it never called tunewright.current_run(), or told it nothing; if it "
                "writes a log of its own, name that by `log`"
            )
        if not self.measured.losses:
            raise MisuseError(
                "command: it made no update that was seen: make the optimizer by "
                "run.optimizer(model), or call run.watch(optimizer)"
            )
        if f"{METRIC}{self._objective}" not in self._reported:
            names = [name.removeprefix(METRIC) for name in sorted(self._reported)]
            raise never_reported(self._objective, names)
