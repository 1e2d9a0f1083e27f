"""What runs in a worker process: choose an engine, train points, leave each finished trial where the driver finds it.

A worker never touches the store. It drops files into the study's `inbox/`, the record last: a trial whose
record is there is complete, and outlives whatever happens to the worker or the driver.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .engine import choose
from .errors import UnfinishedError, first_line, printable, said, warn_once
from .files import atomic, find_curve, name_of, parse_trial, write_checkpoint, write_curve
from .stack import Traces
from .study import Study
from .training import ALONE, Engine, train
from .trial import EMPTY_CURVE, Point, Trial, crashed
from .workload import Workload, load_workload

SECONDS_BETWEEN_WATCHES = 0.5


@dataclass(frozen=True)
class Task:
    """Points of one study that a worker trains: same batch size, same workload arguments."""

    study: Study
    inbox: Path
    points: Sequence[Point]
    engine: Engine
    device: str


def follow_driver(driver: int) -> None:
    """Make this process the driver's, which answers Ctrl-C and a closed terminal: it ends when the driver does."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    atexit.register(os._exit, 0)  # at once: all is in files, and torch takes a second to tidy up

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(SECONDS_BETWEEN_WATCHES)
        os._exit(1)

    threading.Thread(target=watch, name="watch-driver", daemon=True).start()


def measure(
    study: Study, points: Sequence[Point], workers: int, cores: int, device: str, compiled: bool | None = None
) -> Engine:
    """The engine for points of one batch size and workload (`engine.choose`).

    A workload that fails while it is measured trains one after the other: there the failure is a trial's.
    """
    torch.set_num_threads(1)
    try:
        workload, traces = _known(study, points)
        return choose(study, workload, points, workers, cores, device, traces, compiled)
    except BaseException as error:  # sys.exit() in a workload, too
        return replace(ALONE, reason=f"not measured: {said(error)}")


def work(task: Task) -> None:
    """Train a task's points and post each to its inbox.

    An exception, SystemExit included, stops a whole stack, and does not say whose it is: the unfinished points are
    trained again, not compiled, then in stacks of half the size (memory may have run out), at last alone, and then it
    is posted as that point's crash. Raises UnfinishedError if the inbox cannot be written.
    """
    torch.set_num_threads(task.engine.threads)
    study = task.study
    recorded = task.engine.stacked or task.engine.compiled
    unfinished = {point.number: point for point in task.points}
    engine = task.engine
    while unfinished:
        keeper = _InboxKeeper(task.inbox)
        began = time.perf_counter()
        points = list(unfinished.values())
        try:
            workload, traces = _known(study, points) if recorded else (_load(study, points), None)
            for trained in train(study, workload, points, engine, task.device, keeper, traces):
                _post(task.inbox, trained.trial, trained.checkpoint)
                del unfinished[trained.trial.point.number]
        except UnfinishedError:
            raise
        except BaseException as error:
            if keeper.resumed:  # the saved state may be what is wrong
                keeper.forget(error)
                continue
            if engine.compiled:
                engine = replace(engine, compiled=False)
                continue
            if engine.slots > 1:
                engine = replace(engine, slots=engine.slots // 2)
                continue
            point = next(iter(unfinished.values()))
            lines, seconds = printable(traceback.format_exc()), time.perf_counter() - began
            _post(task.inbox, crashed(point, said(error), lines, seconds), {})
            del unfinished[point.number]
            engine = task.engine


def _load(study: Study, points: Sequence[Point]) -> Workload:
    return load_workload(study.workload, points[0].workload_args)


def _known(study: Study, points: Sequence[Point]) -> tuple[Workload, Traces]:
    """A workload that can be stacked keeps no state: this process keeps it and its recordings for its next task."""
    key = study.workload + points[0].workload_key
    if key not in _KNOWN:
        _KNOWN[key] = (_load(study, points), {})
    return _KNOWN[key]


_KNOWN: dict[str, tuple[Workload, Traces]] = {}


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Raise what goes wrong with writing a file as the run's failure, not the trial's: the disk is full, say."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UnfinishedError(f"{path}: cannot be written: {reason}") from error


def _post(inbox: Path, trial: Trial, checkpoint: Mapping[str, Tensor]) -> None:
    stem = name_of(trial.point)
    with _written(inbox / stem):
        if not trial.verdict.crashed:
            write_curve(inbox / f"{stem}.npz", trial.curve)
            write_checkpoint(inbox / f"{stem}.safetensors", checkpoint)
        with atomic(inbox / f"{stem}.json") as temporary:
            temporary.write_text(json.dumps(trial.record()), encoding="utf-8")
        for left in (_started(inbox, trial.point), _state(inbox, trial.point)):
            left.unlink(missing_ok=True)


@dataclass(frozen=True)
class _InboxKeeper:
    """Marks in the inbox what is in training, and keeps its state beside the mark."""

    inbox: Path
    resumed: list[Point] = field(default_factory=list)

    def begin(self, point: Point) -> Mapping[str, Tensor] | None:
        with _written(_started(self.inbox, point)):
            _started(self.inbox, point).touch()
        try:
            state = load_file(_state(self.inbox, point))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            warn_once(f"{_state(self.inbox, point)}: is damaged, and left out: {first_line(error)}")
            return None
        self.resumed.append(point)
        return state

    def save(self, point: Point, state: Mapping[str, Tensor]) -> None:
        with _written(_state(self.inbox, point)):
            write_checkpoint(_state(self.inbox, point), state)

    def forget(self, error: BaseException) -> None:
        """Begin anew with the points whose saved state was gone on with, and say so."""
        for point in self.resumed:
            path = _state(self.inbox, point)
            warn_once(f"{path}: the trial is trained from its start, as going on from its state raised {said(error)}")
            path.unlink(missing_ok=True)


def _started(inbox: Path, point: Point) -> Path:
    return inbox / f"{name_of(point)}.started"


def _state(inbox: Path, point: Point) -> Path:
    return inbox / f"{name_of(point)}.state"


def posted(inbox: Path) -> Iterator[tuple[Trial, Path]]:
    """Finished trials in an inbox, oldest first, with the path of their record. A damaged one counts as missing."""
    for path in sorted(inbox.glob("*.json"), key=lambda path: path.lstat().st_mtime_ns):
        try:
            trial = parse_trial(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warn_once(f"{path}: is damaged, and left out: {first_line(error)}")
            continue
        yield replace(trial, curve=find_curve(path.with_suffix(".npz")) or EMPTY_CURVE), path


def interrupted(inbox: Path) -> set[str]:
    """Stems of the points whose training began and did not end; forgets them."""
    marks = list(inbox.glob("*.started"))
    for path in marks:
        path.unlink(missing_ok=True)
    return {path.stem for path in marks}
