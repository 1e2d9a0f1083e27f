"""The folder of a study where finished trials wait for the driver, and interrupted ones for a
worker.

Of each point:

    STEM.started        while it is in training
    STEM.state          its state, from now and then, for whoever goes on with its training
    STEM.npz, STEM.safetensors, STEM.json    curve, best checkpoint and record of a finished trial
    STEM.npz, STEM.cut  curve and record of one that has come to its cut, until it is finished

The record is written last: a trial whose record is there is complete, and outlives whatever happens
to the worker or the driver. All of it is bytes here, so that workers need not share the disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..errors import UnfinishedError, describe_error, first_line, warn_once
from ..store.files import find_curve, name_of, parse_trial, write_bytes
from ..trial import EMPTY_CURVE, Point, Trial


class EndOfTaskError(BaseException):
    """This worker's part in a task ends here, whatever is in training."""


class LeavingError(EndOfTaskError):
    """The worker was asked to leave, and what is in training is saved."""


class AbandonedError(EndOfTaskError):
    """The driver no longer wants what the worker trains."""


class Desk(Protocol):
    """What a worker asks and tells of one task, wherever the driver is.

    Every call may raise what ends the task: UnfinishedError, where the inbox cannot be written, and
    EndOfTaskError.
    """

    def take(self, most: int) -> tuple[Sequence[Point], bool]:
        """At most so many of the task's points, which nobody else trains from now on.

        And whether there are more to take later.
        """

    def begin(self, point: Point) -> bytes | None:
        """Say that a point's training begins; returns the state that was saved of it, if any."""

    def save(self, point: Point, state: bytes) -> None:
        """Keep a state in place of an earlier one."""

    def start_again(self, point: Point, reason: str) -> None:
        """Say that a saved state is of no use: training begins anew."""

    def post(self, trial: Trial, curve: bytes, checkpoint: bytes) -> None:
        """Hand in a finished trial; of one that crashed, the record alone.

        One that is unfinished has come to its cut, and the state that was saved of it stays.
        """

    def refuse(self, points: Iterable[Point]) -> None:
        """Say that points were not interrupted, but refused with their study."""

    def end_stacking(self, points: Sequence[Point], reason: str) -> None:
        """Say that stacks compute other numbers, to all who train points like these.

        And forget what a stack saved of these points.
        """

    def why_alone(self, point: Point) -> str:
        """Why points of this batch size and workload are not stacked; empty if they may be."""


@dataclass(frozen=True)
class Inbox:
    """The files. Raises UnfinishedError where one cannot be written."""

    folder: Path

    def begin(self, point: Point) -> bytes | None:
        mark = started_mark(self.folder, point)
        with _writing(mark):
            mark.touch()
        path = saved_state(self.folder, name_of(point))
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.start_again(point, f"it is damaged: {first_line(error)}")
            return None

    def save(self, point: Point, state: bytes) -> None:
        _write(saved_state(self.folder, name_of(point)), state)

    def start_again(self, point: Point, reason: str) -> None:
        path = saved_state(self.folder, name_of(point))
        warn_once(f"{path}: the trial is trained from its start: {reason}")
        if path.is_dir():  # somebody put a folder in its place
            shutil.rmtree(path)
        path.unlink(missing_ok=True)

    def post(self, trial: Trial, curve: bytes, checkpoint: bytes) -> None:
        stem, record = name_of(trial.point), json.dumps(trial.record()).encode()
        if not trial.verdict.crashed:
            _write(self.folder / f"{stem}.npz", curve)
        left = [started_mark(self.folder, trial.point)]
        if trial.verdict.unfinished:
            _write(cut_mark(self.folder, stem), record)
        else:
            if not trial.verdict.crashed:
                _write(self.folder / f"{stem}.safetensors", checkpoint)
            _write(self.folder / f"{stem}.json", record)
            left += [saved_state(self.folder, stem), cut_mark(self.folder, stem)]
        self._remove(left)

    def at_cut(self, point: Point) -> Trial | None:
        """A trial as it came to its cut; None, with nothing left of it, if it has not, or if that
        is damaged.
        """
        path = cut_mark(self.folder, name_of(point))
        if not path.exists():
            return None
        curve = find_curve(path.with_suffix(".npz"))
        try:
            trial = parse_trial(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warn_once(f"{path}: is damaged, and the trial is trained again: {first_line(error)}")
            curve = None
        if curve is None:
            self._remove([path, saved_state(self.folder, path.stem)])
            return None
        return replace(trial, curve=curve)

    def count_at_cut(self) -> int:
        return sum(1 for _ in self.folder.glob(cut_mark(self.folder, "*").name))

    def stop(self, trial: Trial) -> None:
        """Have a trial told that came to its cut and does not go on; its curve is there."""
        stem = name_of(trial.point)
        _write(self.folder / f"{stem}.json", json.dumps(trial.record()).encode())
        self._remove([saved_state(self.folder, stem), cut_mark(self.folder, stem)])

    def _remove(self, left: Iterable[Path]) -> None:
        with _writing(self.folder):
            for path in left:
                path.unlink(missing_ok=True)

    def refuse(self, points: Iterable[Point]) -> None:
        for point in points:
            started_mark(self.folder, point).unlink(missing_ok=True)

    def end_stacking(self, points: Sequence[Point], reason: str) -> None:
        _write(self._alone_mark(points[0]), reason.encode())
        for point in points:
            saved_state(self.folder, name_of(point)).unlink(missing_ok=True)

    def why_alone(self, point: Point) -> str:
        mark = self._alone_mark(point)
        return mark.read_text(encoding="utf-8") if mark.exists() else ""

    def _alone_mark(self, point: Point) -> Path:
        key = hashlib.sha256(point.workload_key.encode()).hexdigest()[:12]
        return self.folder / f"batch_size={point.batch_size}-{key}.alone"


@dataclass(frozen=True)
class OwnDesk(Inbox):
    """The desk of the only worker, which trains where the driver runs."""

    points: deque[Point]

    def take(self, most: int) -> tuple[Sequence[Point], bool]:
        taken = [self.points.popleft() for _ in range(min(most, len(self.points)))]
        return taken, bool(self.points)


def started_mark(folder: Path, point: Point) -> Path:
    return folder / f"{name_of(point)}.started"


def saved_state(folder: Path, stem: str) -> Path:
    """Where the state of a trial in training is kept."""
    return folder / f"{stem}.state"


def cut_mark(folder: Path, stem: str) -> Path:
    """The record of a trial that has come to its cut."""
    return folder / f"{stem}.cut"


def read_inbox(folder: Path) -> Iterator[tuple[Trial, Path]]:
    """Finished trials in an inbox, oldest first, with the path of their record.

    A damaged one counts as missing.
    """
    for path in sorted(folder.glob("*.json"), key=lambda path: path.lstat().st_mtime_ns):
        try:
            trial = parse_trial(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warn_once(f"{path}: is damaged, and left out: {first_line(error)}")
            continue
        yield replace(trial, curve=find_curve(path.with_suffix(".npz")) or EMPTY_CURVE), path


def take_interrupted(folder: Path) -> set[str]:
    """Stems of the points whose training began and did not end; forgets them."""
    marks = list(folder.glob("*.started"))
    for path in marks:
        path.unlink(missing_ok=True)
    return {path.stem for path in marks}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise a failure to write a file as the run's, not the trial's: the disk is full, say."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or describe_error(error)
        raise UnfinishedError(f"{path}: cannot be written: {reason}") from error


def _write(path: Path, content: bytes) -> None:
    with _writing(path):
        write_bytes(path, content)
