"""What a worker does: choose an engine, train points, hand in trials.

A worker never touches the store, and asks a desk for all it needs (`inbox.Desk`): the inbox itself
where it trains in the driver's process, or the driver at the other end of a wire.
"""

from __future__ import annotations

import hashlib
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import UnfinishedError, describe_error, first_line, printable, warn_once
from ..signals import STOPS, stop_if_asked
from ..store.files import name_of, pack_curve
from ..study.study import Study
from ..train.audit import StackingError
from ..train.choose import check_compiler, choose
from ..train.execution import ALONE, Engine, Traces
from ..train.loop import Trained, train
from ..trainers.command import RUNS, train_by_command
from ..trainers.function import train_by_function
from ..trainers.watched import MisuseError
from ..trial import Point, Trial
from ..workload.workload import Workload, load_workload
from .inbox import Desk, EndOfTaskError, LeavingError, saved_state


@dataclass(frozen=True)
class Job:
    """What points of one task have in common, which is all that a worker need know beforehand.

    Same study, batch size, workload arguments, and engine.

    optimizers      of all of the points
    follows_norms   whether a clip threshold of any depends on earlier norms
    folder          of the study's results, where this machine has it: runs of commands go there
    key             of the study: the same in another run of the same study, and in no other study
    to_cut          whether trials are trained up to their cut only, to be decided then
    code            of the study: a hash for each of the user's modules (`code_of`)
    """

    study: Study
    engine: Engine
    optimizers: Collection[str]
    follows_norms: bool
    folder: Path
    key: str
    code: Mapping[str, str]
    to_cut: bool = False


@dataclass(frozen=True)
class Task:
    """Points of one study to be trained: same batch size, same workload arguments.

    code, to_cut   as those of a Job
    """

    study: Study
    inbox: Path
    points: Sequence[Point]
    engine: Engine
    code: Mapping[str, str] = field(default_factory=dict)
    to_cut: bool = False

    @cached_property
    def job(self) -> Job:
        content = f"{self.study.name} {self.study.model_dump()!r}" + " to its cut" * self.to_cut
        return Job(
            self.study,
            self.engine,
            {point.optimizer for point in self.points},
            any(point.follows_norms for point in self.points),
            self.inbox.parent,
            hashlib.sha256(content.encode()).hexdigest(),
            self.code,
            self.to_cut,
        )


@dataclass(frozen=True)
class Choice:
    """Points of one batch size and workload for which a worker finds the engine.

    workers           that will share the points
    compiled, slots   as the user wants them
    code              as that of a Job
    """

    study: Study
    points: Sequence[Point]
    workers: int
    device: str
    compiled: bool | None
    slots: int | None
    code: Mapping[str, str] = field(default_factory=dict)


def choose_engine(choice: Choice) -> Engine:
    """The engine for points of one batch size and workload (`choose.choose`).

    A workload that fails meanwhile trains one after the other: there the failure is a trial's.
    Raises UnfinishedError if this machine cannot compile what a user wants compiled.
    """
    study = choice.study
    torch.set_num_threads(1)
    if study.train or study.command:
        reason = f"its {'function' if study.train else 'command'} trains one after the other"
        return replace(ALONE, reason=reason)
    try:
        workload, traces = _cached_workload(study, choice.points[0])
        return choose(
            study,
            workload,
            choice.points,
            choice.workers,
            choice.device,
            traces,
            choice.compiled,
            choice.slots,
        )
    except UnfinishedError:
        raise
    except BaseException as error:
        if _is_ctrl_c(error):
            raise
        stop_if_asked()  # the error may be what a workload made of an interruption
        return replace(ALONE, reason=f"could not be chosen: {describe_error(error)}")


_is_worker = False  # whether this process is a worker's, which Ctrl-C does not stop


def ignore_ctrl_c() -> None:
    """From here on a KeyboardInterrupt is one that a workload raised."""
    global _is_worker
    _is_worker = True


_leaving = threading.Event()


def leave_when_saved() -> None:
    """From here on training ends as soon as its state is saved, by a LeavingError."""
    _leaving.set()


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether a user interrupts, or leaves a debugger.

    Not in a worker process, which does not hear Ctrl-C: there a workload raised it.
    """
    return isinstance(error, STOPS) and not _is_worker


@dataclass
class _Points:
    """A task's points as a loop takes them, those that it has left unfinished before all others."""

    job: Job
    desk: Desk
    unfinished: dict[int, Point] = field(default_factory=dict)
    _at_hand: list[Point] = field(default_factory=list)
    _has_more: bool = True

    @property
    def optimizers(self) -> Collection[str]:
        return self.job.optimizers

    @property
    def follows_norms(self) -> bool:
        return self.job.follows_norms

    @property
    def is_empty(self) -> bool:
        return not (self._at_hand or self._has_more)

    def first(self, most: int) -> Point | None:
        """Begin anew with what is unfinished, or at most so many others; the first of these."""
        self._at_hand = list(self.unfinished.values()) or self._ask_for(most)
        return self._at_hand[0] if self._at_hand else None

    def take(self, most: int) -> list[Point]:
        points, self._at_hand = self._at_hand[:most], self._at_hand[most:]
        return points + self._ask_for(most - len(points))

    def _ask_for(self, most: int) -> list[Point]:
        if most <= 0 or not self._has_more:
            return []
        points, self._has_more = self.desk.take(most)
        self.unfinished |= {point.number: point for point in points}
        return list(points)


def work(job: Job, desk: Desk, device: str) -> Iterator[Point]:
    """Train the points of a task that the desk gives out, and hand in each; yield it then.

    An exception, SystemExit included, stops a whole stack, and does not say whose it is: the
    unfinished points are trained again, not compiled, then in stacks of half the size (memory may
    have run out), at last alone, and then it is posted as that point's crash. Where a stack was
    found to compute other numbers, here or by another worker, the unfinished points are trained
    alone from their start. Raises UnfinishedError if the inbox cannot be written or what is to be
    compiled cannot be here, and MisuseError if a user's function would fail at every point.
    """
    torch.set_num_threads(job.engine.threads)
    points, engine = _Points(job, desk), job.engine
    while first := points.first(engine.slots):
        keeper = _Keeper(desk)
        began = time.perf_counter()
        try:
            yield from _train_and_post(job, points, first, engine, device, keeper)
        except (UnfinishedError, GeneratorExit, EndOfTaskError):
            raise
        except MisuseError:
            desk.refuse(list(points.unfinished.values()))
            raise
        except StackingError as error:
            if points.unfinished:
                desk.end_stacking(list(points.unfinished.values()), str(error))
            engine = replace(ALONE, threads=engine.threads)
            job = replace(job, engine=engine)
        except BaseException as error:
            if _is_ctrl_c(error):
                raise
            stop_if_asked()  # the error may be what a workload made of an interruption
            if keeper.resumed:  # the saved state may be what is wrong
                keeper.forget(error)
            elif simpler := _simpler(job, engine, points, device, error):
                engine = simpler
            else:
                point = next(iter(points.unfinished.values()))
                lines, seconds = printable(traceback.format_exc()), time.perf_counter() - began
                _post(desk, Trial.from_crash(point, describe_error(error), lines, seconds), {})
                del points.unfinished[point.number]
                engine = job.engine
                yield point


def _train_and_post(
    job: Job, points: _Points, first: Point, engine: Engine, device: str, keeper: _Keeper
) -> Iterator[Point]:
    for trained in _train(job, points, first, engine, device, keeper):
        _post(keeper.desk, trained.trial, trained.checkpoint)
        del points.unfinished[trained.trial.point.number]
        yield trained.trial.point
        if engine.execution.is_stacked and (reason := keeper.desk.why_alone(first)):
            raise StackingError(reason)


def _train(
    job: Job, points: _Points, first: Point, engine: Engine, device: str, keeper: _Keeper
) -> Iterator[Trained]:
    """Train what comes next: points in a stack, or the first of them alone.

    Alone, each has a workload of its own, which may keep state.
    """
    study, to_cut = job.study, job.to_cut
    if study.train:
        yield from train_by_function(study, points.take(1), device, keeper)
    elif study.command:
        (point,) = points.take(1)
        stem = name_of(point)
        run_dir, state = job.folder / RUNS / stem, saved_state(job.folder / "inbox", stem)
        yield train_by_command(study, point, run_dir, state, device, keeper, engine.threads)
    elif engine.execution.builds_anew:
        workload = load_workload(study.workload, first.workload_args)
        yield from train(study, workload, points.take(1), engine, device, keeper, to_cut=to_cut)
    else:
        workload, traces = _cached_workload(study, first)
        yield from train(study, workload, points, engine, device, keeper, traces, to_cut=to_cut)


def _simpler(
    job: Job, engine: Engine, points: _Points, device: str, error: BaseException
) -> Engine | None:
    """How to train again what failed; None if it was alone.

    Raises UnfinishedError if only the compiler is missing: what it was to train would get other
    numbers. Where something else fails, they are told.
    """
    if engine.compiled:
        unfinished = list(points.unfinished.values())
        try:
            check_compiler(job.study, unfinished, device)
        except UnfinishedError:
            points.desk.refuse(unfinished)  # which the next run need not call interrupted
            raise
        warn_once(
            f"{job.study.name}, batch size {unfinished[0].batch_size}: some trials are not "
            f"compiled, and round differently, after {describe_error(error)}"
        )
    return engine.simpler


def _cached_workload(study: Study, point: Point) -> tuple[Workload, Traces]:
    """A workload that can be stacked, and its recordings, kept for this process's next task.

    Such a workload keeps no state.
    """
    key = study.workload + point.workload_key
    if key not in _KNOWN:
        _KNOWN[key] = (load_workload(study.workload, point.workload_args), {})
    return _KNOWN[key]


_KNOWN: dict[str, tuple[Workload, Traces]] = {}


def forget_workloads() -> None:
    """Load workloads anew from here on: their code has changed."""
    _KNOWN.clear()


def _post(desk: Desk, trial: Trial, checkpoint: Mapping[str, Tensor]) -> None:
    if trial.verdict.crashed:
        desk.post(trial, b"", b"")
        return
    best = b"" if trial.verdict.unfinished else save(dict(checkpoint))
    desk.post(trial, pack_curve(trial.curve), best)


@dataclass(frozen=True)
class _Keeper:
    """Has the desk keep the states of what is in training."""

    desk: Desk
    resumed: list[Point] = field(default_factory=list)

    def begin(self, point: Point) -> Mapping[str, Tensor] | None:
        content = self.desk.begin(point)
        if content is None:
            return None
        try:
            state = load(content)
        except SafetensorError as error:
            self.start_again(point, f"it is damaged: {first_line(error)}")
            return None
        self.resumed.append(point)
        return state

    @property
    def is_leaving(self) -> bool:
        return _leaving.is_set()

    def save(self, point: Point, state: Mapping[str, Tensor]) -> None:
        self.desk.save(point, save(dict(state)))

    def all_saved(self) -> None:
        if self.is_leaving:
            raise LeavingError

    def start_again(self, point: Point, reason: str) -> None:
        self.desk.start_again(point, reason)

    def forget(self, error: BaseException) -> None:
        """Begin anew with the points whose saved state was gone on with, and say so."""
        for point in self.resumed:
            self.start_again(point, f"going on from its saved state raised {describe_error(error)}")
