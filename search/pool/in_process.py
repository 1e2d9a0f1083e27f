"""The driver's own process is the only worker: breakpoints, debuggers and Ctrl-C work as usual."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..signals import interrupt_on_signal
from ..trial import Point
from ..workload.randomness import RandomState
from .backend import Event, TaskResult, WorkerInfo
from .inbox import OwnDesk
from .output import WorkersLog
from .worker import Choice, Task, choose_engine, forget_workloads, work


@dataclass(frozen=True)
class _Globals:
    """What training changes in a process: its random numbers, its threads, its default dtype."""

    random: RandomState
    threads: int
    dtype: torch.dtype

    @classmethod
    def now(cls) -> _Globals:
        return cls(RandomState.now(), torch.get_num_threads(), torch.get_default_dtype())

    def restore(self) -> None:
        self.random.restore()
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)


class InProcess:
    """A backend that trains while the driver waits, and hands back each time that a trial ends.

    Numbers are those of a worker process. The caller's random numbers, number of torch threads and
    default dtype are as they were whenever it waits no longer. What stays: the modules of the
    workloads, what those keep in globals, and stackable workloads with what was recorded of them,
    which the next run goes on with. A default dtype that the caller has set before a run holds for
    its training, and one that a workload has set for the trainings after it, as in a worker.
    KeyboardInterrupt is Ctrl-C here, also where a workload raises it.
    """

    owns_terminal = True

    def __init__(self) -> None:
        self.log: WorkersLog | None = None  # nothing goes there
        self._waiting: deque[Task | Choice] = deque()
        self._running: Iterator[Point] | None = None  # the first of those that wait
        self._inside: _Globals | None = None  # as the last task left it
        self._device = "cpu"
        # the workloads' code and the caller's default dtype: what is kept depends on them
        self._kept_for: tuple[str, torch.dtype | None] = ("", None)

    def count(self, wanted: int | None, devices: Sequence[str]) -> int:
        if wanted not in (None, 1):
            raise UserError(f"workers: must be 1 where this process trains, got {wanted}")
        return 1

    def start(self, workers: int, sources: str, devices: Sequence[str]) -> None:
        self._device = devices[0]
        now = (sources, torch.get_default_dtype())
        if now != self._kept_for:
            forget_workloads()
            self._inside = None
        self._kept_for = now

    def submit(self, task: Task | Choice) -> None:
        self._waiting.append(task)

    def wait(self, seconds: float) -> list[Event]:
        """Choose an engine, or train up to the next trial that ends, however long that takes."""
        if not self._waiting:
            return []
        task, engine = self._waiting[0], None
        with interrupt_on_signal(), self._as_worker():
            if isinstance(task, Choice):
                engine = choose_engine(task)
            else:
                if self._running is None:
                    desk = OwnDesk(task.inbox, deque(task.points))
                    self._running = work(task.job, desk, self._device)
                if next(self._running, None) is not None:
                    return []
        self._waiting.popleft()
        self._running = None
        return [TaskResult(task, engine)]

    def stop(self, saves: bool = False) -> None:
        self._waiting.clear()
        self._running = None

    def workers(self) -> list[WorkerInfo]:
        return []

    @contextmanager
    def _as_worker(self) -> Iterator[None]:
        outside = _Globals.now()
        if self._inside:
            self._inside.restore()
        try:
            yield
        finally:
            self._inside = _Globals.now()
            outside.restore()
