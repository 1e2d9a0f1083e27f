"""What a worker process does: choose an engine, train points, leave trials for the driver.

A worker never touches the store. It drops files into the study's `inbox/`, the record last: a trial
whose record is there is complete, and outlives whatever happens to the worker or the driver.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UnfinishedError, describe_error, first_line, printable, warn_once
from ..signals import STOPS, stop_if_asked
from ..store.files import atomic, find_curve, name_of, parse_trial, write_checkpoint, write_curve
from ..study.study import Study
from ..train.audit import StackingError
from ..train.choose import check_compiler, choose
from ..train.execution import ALONE, Engine, Traces
from ..train.loop import Trained, train
from ..trainers.command import RUNS, train_by_command
from ..trainers.function import train_by_function
from ..trainers.watched import MisuseError
from ..trial import EMPTY_CURVE, Point, Trial
from ..workload.workload import Workload, load_workload

SECONDS_BETWEEN_WATCHES = 0.5
DRIVERS_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # which the driver answers, and no worker


@dataclass(frozen=True)
class Task:
    """Points of one study that a worker trains: same batch size, same workload arguments."""

    study: Study
    inbox: Path
    points: Sequence[Point]
    engine: Engine
    device: str


@dataclass(frozen=True)
class Measurement:
    """Points of one batch size and workload for which a worker finds the engine (`measure`)."""

    study: Study
    points: Sequence[Point]
    workers: int
    device: str
    compiled: bool | None
    slots: int | None


_FOLLOWS: set[int] = set()  # the driver of this process, if it is a worker's


def follow_driver(driver: int, start_method: str | None = None, sources: str = "") -> None:
    """Bind this process to the driver: it ends when the driver does.

    The driver answers Ctrl-C and a closed terminal; this process ignores them.

    Processes that a workload starts, as those of a DataLoader, are started as the driver would
    (`start_method` of multiprocessing; None: the platform's default). `sources`: what the driver
    knows of the workloads' code; the pool starts new processes where it differs, because those that
    run hold modules imported before.
    """
    _FOLLOWS.add(driver)
    for number in DRIVERS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DRIVERS_SIGNALS)
    # loky's own is for its workers alone
    multiprocessing.set_start_method(start_method, force=True)
    atexit.register(_end, 0)  # at once: all is in files, and torch takes a second to tidy up

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(SECONDS_BETWEEN_WATCHES)
        _end(1)

    threading.Thread(target=watch, name="watch-driver", daemon=True).start()


def _end(status: int) -> None:
    """End this process and those that a workload started."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


def perform(task: Task | Measurement) -> Engine | None:
    """What a worker process is asked to do: it returns the engine of a Measurement."""
    if isinstance(task, Measurement):
        return measure(**vars(task))
    work(task)
    return None


def measure(
    study: Study,
    points: Sequence[Point],
    workers: int,
    device: str,
    compiled: bool | None = None,
    slots: int | None = None,
) -> Engine:
    """The engine for points of one batch size and workload (`choose.choose`).

    A workload that fails meanwhile trains one after the other: there the failure is a trial's.
    Raises UnfinishedError if this machine cannot compile what a user wants compiled.
    """
    torch.set_num_threads(1)
    if study.train or study.command:
        reason = f"its {'function' if study.train else 'command'} trains one after the other"
        return replace(ALONE, reason=reason)
    try:
        workload, traces = _cached_workload(study, points)
        return choose(study, workload, points, workers, device, traces, compiled, slots)
    except UnfinishedError:
        raise
    except BaseException as error:
        if _is_ctrl_c(error):
            raise
        stop_if_asked()  # the error may be what a workload made of an interruption
        return replace(ALONE, reason=f"could not be chosen: {describe_error(error)}")


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether a user interrupts, or leaves a debugger.

    Not in a worker process, which does not hear Ctrl-C: there a workload raised it.
    """
    return isinstance(error, STOPS) and not _FOLLOWS


def work(task: Task) -> None:
    """Train all points of a task (`post_points`)."""
    for _ in post_points(task):
        pass


def post_points(task: Task) -> Iterator[Point]:
    """Train a task's points and post each to its inbox; yield it then.

    An exception, SystemExit included, stops a whole stack, and does not say whose it is: the
    unfinished points are trained again, not compiled, then in stacks of half the size (memory may
    have run out), at last alone, and then it is posted as that point's crash. Where a stack was
    found to compute other numbers, here or by another worker, the unfinished points are trained
    alone from their start. Raises UnfinishedError if the inbox cannot be written or what is to be
    compiled cannot be here, and MisuseError if a user's function would fail at every point.
    """
    torch.set_num_threads(task.engine.threads)
    study = task.study
    unfinished = {point.number: point for point in task.points}
    engine = task.engine
    while unfinished:
        keeper = _InboxKeeper(task.inbox)
        began = time.perf_counter()
        try:
            points = list(unfinished.values())
            for trained in _train(study, points, engine, task.device, keeper):
                _post(task.inbox, trained.trial, trained.checkpoint)
                del unfinished[trained.trial.point.number]
                yield trained.trial.point
                if engine.execution.is_stacked and (reason := why_alone(task.inbox, points[0])):
                    raise StackingError(reason)
        except (UnfinishedError, MisuseError, GeneratorExit) as error:
            _forget_refused(task.inbox, unfinished.values(), error)
            raise
        except StackingError as error:
            _end_stacking(task, unfinished.values(), str(error))
            engine = replace(ALONE, threads=engine.threads)
            task = replace(task, engine=engine)
        except BaseException as error:
            if _is_ctrl_c(error):
                raise
            stop_if_asked()  # the error may be what a workload made of an interruption
            if keeper.resumed:  # the saved state may be what is wrong
                keeper.forget(error)
                continue
            if simpler := _simpler(task, engine, list(unfinished.values()), error):
                engine = simpler
                continue
            point = next(iter(unfinished.values()))
            lines, seconds = printable(traceback.format_exc()), time.perf_counter() - began
            _post(task.inbox, Trial.from_crash(point, describe_error(error), lines, seconds), {})
            del unfinished[point.number]
            engine = task.engine
            yield point


def _train(
    study: Study, points: list[Point], engine: Engine, device: str, keeper: _InboxKeeper
) -> Iterator[Trained]:
    """Train what comes next: all points in a stack, or the first of them alone.

    Alone, each has a workload of its own, which may keep state.
    """
    if study.train:
        yield from train_by_function(study, points[:1], device, keeper)
    elif study.command:
        stem = name_of(points[0])
        run_dir, state = keeper.inbox.parent / RUNS / stem, saved_state(keeper.inbox, stem)
        yield train_by_command(study, points[0], run_dir, state, device, keeper, engine.threads)
    elif engine.execution.builds_anew:
        yield from train(study, _load(study, points), points[:1], engine, device, keeper)
    else:
        workload, traces = _cached_workload(study, points)
        yield from train(study, workload, points, engine, device, keeper, traces)


def _simpler(
    task: Task, engine: Engine, unfinished: Sequence[Point], error: BaseException
) -> Engine | None:
    """How to train again what failed; None if it was alone.

    Raises UnfinishedError if only the compiler is missing: what it was to train would get other
    numbers. Where something else fails, they are told.
    """
    if engine.compiled:
        try:
            check_compiler(task.study, unfinished, task.device)
        except UnfinishedError:
            for point in unfinished:  # which the next run need not call interrupted
                _started_mark(task.inbox, point).unlink(missing_ok=True)
            raise
        warn_once(
            f"{task.study.name}, batch size {unfinished[0].batch_size}: some trials are not "
            f"compiled, and round differently, after {describe_error(error)}"
        )
    return engine.simpler


def _forget_refused(inbox: Path, points: Iterable[Point], error: BaseException) -> None:
    """Points of a study that was refused were not interrupted."""
    for point in points if isinstance(error, MisuseError) else ():
        _started_mark(inbox, point).unlink(missing_ok=True)


def why_alone(inbox: Path, point: Point) -> str:
    """Why points of this batch size and workload are no longer stacked; empty if they may be."""
    mark = _alone_mark(inbox, point)
    return mark.read_text(encoding="utf-8") if mark.exists() else ""


def _end_stacking(task: Task, unfinished: Iterable[Point], reason: str) -> None:
    """Tell the driver and the other workers; forget what the stack saved of unfinished points."""
    mark = _alone_mark(task.inbox, task.points[0])
    with _writing(mark), atomic(mark) as temporary:
        temporary.write_text(reason, encoding="utf-8")
    for point in unfinished:
        saved_state(task.inbox, name_of(point)).unlink(missing_ok=True)


def _alone_mark(inbox: Path, point: Point) -> Path:
    key = hashlib.sha256(point.workload_key.encode()).hexdigest()[:12]
    return inbox / f"batch_size={point.batch_size}-{key}.alone"


def _load(study: Study, points: Sequence[Point]) -> Workload:
    return load_workload(study.workload, points[0].workload_args)


def _cached_workload(study: Study, points: Sequence[Point]) -> tuple[Workload, Traces]:
    """A workload that can be stacked, and its recordings, kept for this process's next task.

    Such a workload keeps no state.
    """
    key = study.workload + points[0].workload_key
    if key not in _KNOWN:
        _KNOWN[key] = (_load(study, points), {})
    return _KNOWN[key]


_KNOWN: dict[str, tuple[Workload, Traces]] = {}


def forget_workloads() -> None:
    """Load workloads anew from here on: their code has changed."""
    _KNOWN.clear()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise a failure to write a file as the run's, not the trial's: the disk is full, say."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        )
        raise UnfinishedError(f"{path}: cannot be written: {reason}") from error


def _post(inbox: Path, trial: Trial, checkpoint: Mapping[str, Tensor]) -> None:
    stem = name_of(trial.point)
    with _writing(inbox / stem):
        if not trial.verdict.crashed:
            write_curve(inbox / f"{stem}.npz", trial.curve)
            write_checkpoint(inbox / f"{stem}.safetensors", checkpoint)
        with atomic(inbox / f"{stem}.json") as temporary:
            temporary.write_text(json.dumps(trial.record()), encoding="utf-8")
        for left in (_started_mark(inbox, trial.point), saved_state(inbox, stem)):
            left.unlink(missing_ok=True)


@dataclass(frozen=True)
class _InboxKeeper:
    """Marks in the inbox what is in training, and keeps its state beside the mark."""

    inbox: Path
    resumed: list[Point] = field(default_factory=list)

    def begin(self, point: Point) -> Mapping[str, Tensor] | None:
        with _writing(_started_mark(self.inbox, point)):
            _started_mark(self.inbox, point).touch()
        try:
            state = load_file(self._path(point))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            self.start_again(point, f"it is damaged: {first_line(error)}")
            return None
        self.resumed.append(point)
        return state

    def save(self, point: Point, state: Mapping[str, Tensor]) -> None:
        with _writing(self._path(point)):
            write_checkpoint(self._path(point), state)

    def start_again(self, point: Point, reason: str) -> None:
        warn_once(f"{self._path(point)}: the trial is trained from its start: {reason}")
        if self._path(point).is_dir():  # somebody put a folder in its place
            shutil.rmtree(self._path(point))
        self._path(point).unlink(missing_ok=True)

    def forget(self, error: BaseException) -> None:
        """Begin anew with the points whose saved state was gone on with, and say so."""
        for point in self.resumed:
            self.start_again(point, f"going on from its saved state raised {describe_error(error)}")

    def _path(self, point: Point) -> Path:
        return saved_state(self.inbox, name_of(point))


def _started_mark(inbox: Path, point: Point) -> Path:
    return inbox / f"{name_of(point)}.started"


def saved_state(inbox: Path, stem: str) -> Path:
    """Where the state of a trial in training is kept."""
    return inbox / f"{stem}.state"


def read_inbox(inbox: Path) -> Iterator[tuple[Trial, Path]]:
    """Finished trials in an inbox, oldest first, with the path of their record.

    A damaged one counts as missing.
    """
    for path in sorted(inbox.glob("*.json"), key=lambda path: path.lstat().st_mtime_ns):
        try:
            trial = parse_trial(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warn_once(f"{path}: is damaged, and left out: {first_line(error)}")
            continue
        yield replace(trial, curve=find_curve(path.with_suffix(".npz")) or EMPTY_CURVE), path


def take_interrupted(inbox: Path) -> set[str]:
    """Stems of the points whose training began and did not end; forgets them."""
    marks = list(inbox.glob("*.started"))
    for path in marks:
        path.unlink(missing_ok=True)
    return {path.stem for path in marks}
