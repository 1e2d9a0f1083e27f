"""What the driver asks of those who train: a few verbs, with tasks and outcomes by value.

A backend starts workers, takes tasks, and says what became of them; a worker leaves finished trials
in the inbox that its task names. How it reaches its workers, and how they fail, is its own matter.
`local` has worker processes on this machine, `in_process` trains where the driver runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..train.execution import Engine
from .worker import Measurement, Task


@dataclass(frozen=True)
class TaskResult:
    """A task that is over.

    task     the object that was submitted
    engine   what a Measurement found; None of a Task, whose trials are in its inbox
    is_lost  its worker vanished before the task was done: which of its points are finished, and
             which were in training, their inbox knows
    """

    task: Task | Measurement
    engine: Engine | None = None
    is_lost: bool = False


class Backend(Protocol):
    """Called by one driver at a time, from one thread. None of these blocks for long but `wait`.

    owns_terminal   what it trains may read and print there, so nothing else may redraw it
    """

    @property
    def owns_terminal(self) -> bool: ...

    def count(self, wanted: int | None, devices: Sequence[str]) -> int:
        """How many workers there can be: as many as wanted, where the user says so.

        Raises UserError for a number that it cannot have.
        """

    def start(self, workers: int, sources: str) -> None:
        """Have so many workers at hand for the tasks that follow.

        Surplus workers are ended; lost ones are replaced. Workers of an earlier call, even of an
        earlier run, are kept, unless `sources` differs: it identifies the workloads' code, which
        they have already imported. Called while no task is running.
        """

    def submit(self, task: Task | Measurement) -> None:
        """Have a worker perform a task, after those that it was given before."""

    def wait(self, seconds: float) -> list[TaskResult]:
        """The tasks that ended since the last call; without any, waits so many seconds at most.

        Raises what a task raised.
        """

    def stop(self) -> None:
        """End all workers at once, whatever they do: their tasks have no outcome."""
