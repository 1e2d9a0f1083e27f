"""Worker processes on this machine, in a pool of loky."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from multiprocessing import resource_tracker

import joblib
from loky import BrokenProcessPool, ProcessPoolExecutor, get_reusable_executor

from ..train.execution import Engine
from .backend import TaskResult
from .worker import DRIVERS_SIGNALS, Measurement, Task, follow_driver, perform


class Local:
    """A backend of worker processes on this machine.

    They stay for the next run of this process, and end by themselves when none follows.

    loky tells of a worker that dies by ending its whole pool: then all tasks that are not done are
    lost.
    """

    owns_terminal = False

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._running: dict[Future[Engine | None], Task | Measurement] = {}

    def count(self, wanted: int | None, devices: Sequence[str]) -> int:
        """By default one for each core, or for each device that is not the CPU."""
        return wanted or (joblib.cpu_count() if devices[0] == "cpu" else len(devices))

    def start(self, workers: int, sources: str) -> None:
        how = (os.getpid(), multiprocessing.get_start_method(allow_none=True), sources)
        with _signals_blocked():
            self._pool = get_reusable_executor(workers, initializer=follow_driver, initargs=how)

    def submit(self, task: Task | Measurement) -> None:
        assert self._pool is not None  # after start
        try:
            with _signals_blocked():
                future = self._pool.submit(perform, task)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        self._running[future] = task

    def wait(self, seconds: float) -> list[TaskResult]:
        over, _ = wait(self._running, seconds, FIRST_COMPLETED)
        return [self._outcome(future) for future in over]

    def _outcome(self, future: Future[Engine | None]) -> TaskResult:
        task = self._running.pop(future)
        try:
            return TaskResult(task, future.result())
        except BrokenProcessPool:
            return TaskResult(task, is_lost=True)

    def stop(self) -> None:
        """What threads of the pool raise meanwhile tells the user nothing."""
        self._running.clear()
        before = threading.excepthook
        threading.excepthook = lambda _: None
        try:
            if self._pool is not None:
                self._pool.shutdown(kill_workers=True)
        finally:
            threading.excepthook = before


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the driver's signals in a process that starts here, until it ignores them itself.

    A terminal's Ctrl-C goes to all processes, and would end this one in the middle of its imports.
    """
    # which a first worker starts, too, and which then lets SIGINT through again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DRIVERS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
