"""What the driver asks of those who train: a few verbs, with tasks and outcomes by value.

A backend gives a task's points to workers, has finished trials put into the inbox that the task
names, and says what became of the task. How it reaches its workers, and how they fail, is its own
matter. `in_process` trains where the driver runs; all others are workers at the end of a wire
(`hub`): `local` starts processes on this machine, `remote` listens for those of other machines, and
`hired` has a cluster start those.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..train.execution import Engine
from ..trial import Point
from .output import WorkersLog
from .worker import Choice, Task


@dataclass(frozen=True)
class TaskResult:
    """A task that is over: its points are in its inbox, but for those that were lost.

    task     the object that was submitted
    engine   what a Choice found; None of a Task, and where the worker that chose vanished
    """

    task: Task | Choice
    engine: Engine | None = None


@dataclass(frozen=True)
class WorkerLost:
    """A worker that vanished.

    in_training    the points that it had begun, which are lost to their task; what it had taken
                   and not begun is given to others
    """

    task: Task | Choice | None
    in_training: Sequence[Point] = ()

    @property
    def is_unprompted(self) -> bool:
        """Whether it had begun no point, nor was it choosing an engine."""
        return not (self.in_training or isinstance(self.task, Choice))


@dataclass(frozen=True)
class WorkerBack:
    """A worker that was only cut off: it goes on with these points, which counted as lost."""

    task: Task
    in_training: Sequence[Point]


Event: TypeAlias = TaskResult | WorkerLost | WorkerBack


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself, as progress and environment.json show it.

    worker              a name that it keeps when it comes back
    updates_per_second  of the trials that it has handed in
    study, batch_size   of the points that it trains now
    in_training         how many these are
    """

    worker: str
    host: str
    device: str
    versions: Mapping[str, str]
    cpu: str
    updates_per_second: float = 0.0
    study: str = ""
    batch_size: int = 0
    in_training: int = 0


def machines(workers: Iterable[WorkerInfo]) -> list[dict[str, object]]:
    """Workers that are alike as one record each, with their number."""
    own = socket.gethostname()
    alike: Counter[tuple[object, ...]] = Counter()
    for worker in workers:
        host = "this machine" if worker.host == own else worker.host
        alike[host, worker.device, worker.cpu, tuple(sorted(worker.versions.items()))] += 1
    return [
        {
            "host": host,
            "workers": count,
            "device": device,
            "cpu": cpu,
            "versions": dict(versions),  # type: ignore[call-overload]
        }
        for (host, device, cpu, versions), count in alike.items()
    ]


class Backend(Protocol):
    """Called by one driver at a time, from one thread. None of these blocks for long but `wait`.

    owns_terminal   what it trains may read and print there, so nothing else may redraw it
    log             where what its processes on this machine print goes, if they are not this one
    """

    log: WorkersLog | None

    @property
    def owns_terminal(self) -> bool: ...

    def count(self, wanted: int | None, devices: Sequence[str]) -> int:
        """How many workers there can be: as many as wanted, where the user says so.

        Raises UserError for a number that it cannot have.
        """

    def start(self, workers: int, sources: str, devices: Sequence[str]) -> None:
        """Have so many workers at hand for the tasks that follow, on these devices in turn.

        Surplus workers are ended; lost ones are replaced. Workers of an earlier call, even of an
        earlier run, are kept, unless `sources` differs: it identifies the workloads' code, which
        they have already imported. Called while no task is running.
        """

    def submit(self, task: Task | Choice) -> None:
        """Have workers perform a task, after those that were submitted before."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened since the last call; without anything, waits so many seconds at most.

        Raises what a task raised.
        """

    def stop(self, saves: bool = False) -> None:
        """End all work, whatever it is: tasks have no outcome.

        At once, or, with `saves`, after what is in training was saved, if that takes seconds only.
        """

    def workers(self) -> Sequence[WorkerInfo]:
        """Those that are there now."""
