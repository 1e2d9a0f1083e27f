"""The driver's end of all wires: workers ask for points, and hand in trials.

Each connection has a thread, which answers one worker. A worker takes points as its slots become
free, so that the faster ones take more. What a worker holds when it vanishes goes back to the
queue, but for the points that it had begun: one of these may be what ended it.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UnfinishedError, warn_once
from ..store.files import parse_trial
from ..train.execution import Engine
from ..trainers.watched import MisuseError
from ..trial import Point
from .backend import Event, TaskResult, WorkerBack, WorkerInfo, WorkerLost
from .inbox import Inbox
from .wire import Said, Wire, WireError
from .worker import Measurement, Task

# A worker that has nothing to do asks again after so long, so that one that is gone is noticed.
SECONDS_TO_WAIT = 5.0
SECONDS_TO_PLAN = 30.0  # for a worker that comes back to a driver that has just begun
SECONDS_TO_SAVE = 5.0  # for workers that are told to end, but for this
# what a task may raise in a worker, by name; anything else is a fault of this program
RAISED: dict[str, type[Exception]] = {one.__name__: one for one in (UnfinishedError, MisuseError)}


@dataclass(frozen=True)
class Abandon:
    """To a worker: what you train is no longer wanted."""


@dataclass(frozen=True)
class Refusal:
    """To a worker that says hello: the driver does not want it."""

    reason: str


@dataclass(frozen=True)
class Farewell:
    """To a worker, unasked: end.

    comes_back    another run may want this worker later
    saves         what is in training is saved before, as far as that takes seconds only
    """

    comes_back: bool = False
    saves: bool = False


@dataclass(eq=False)
class _Open:
    """A task that is not over: its points that nobody has taken, and how many are taken."""

    task: Task | Measurement
    waiting: deque[Point]
    taken: int = 0

    @property
    def is_over(self) -> bool:
        return not (self.waiting or self.taken)


@dataclass(eq=False)
class Peer:
    """A worker at the other end of a wire, and what it has taken, by number."""

    wire: Wire
    info: WorkerInfo | None = None  # once it has said hello
    open: _Open | None = None
    taken: dict[int, Point] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    updates: int = 0  # of the trials that it has handed in
    training: float = 0.0  # seconds of these
    was_busy: bool = False  # when it was lost: it measured, or had begun a point
    is_gone: threading.Event = field(default_factory=threading.Event)


class Hub:
    """The part of a backend that gives out points and takes trials, whoever the workers are."""

    def __init__(self) -> None:
        # `_changed` guards all below; it is notified when there is something to take or to tell
        self._changed = threading.Condition()
        self._tasks: list[_Open] = []
        self._events: list[Event] = []
        self._raised: Exception | None = None
        self._peers: list[Peer] = []
        self._expected = 1  # workers, of which some may still be starting
        self._answers: dict[str, Callable[[Peer, Said], Any]] = {
            "hello": self._hello,
            "ask": self._ask,
            "take": self._take,
            "begin": self._begin,
            "save": self._save,
            "start_again": self._start_again,
            "post": self._post,
            "refuse": self._refuse,
            "end_stacking": self._end_stacking,
            "why_alone": self._why_alone,
            "measured": self._measured,
            "done": self._done,
            "failed": self._failed,
            "refused": self._refused,
            "again": self._again,
        }

    # --- what the driver's thread calls -----------------------------------------------------------

    def submit(self, task: Task | Measurement) -> None:
        points = task.points[:1] if isinstance(task, Measurement) else task.points
        with self._changed:
            self._tasks.append(_Open(task, deque(points)))
            self._changed.notify_all()

    def wait(self, seconds: float) -> list[Event]:
        with self._changed:
            if not (self._events or self._raised):
                self._changed.wait(seconds)
            if self._raised:
                raise self._raised
            events, self._events = self._events, []
        return events

    def workers(self) -> list[WorkerInfo]:
        """Those that are connected."""
        with self._changed:
            return [_now(peer, peer.info) for peer in self._peers if peer.info]

    def stop(self, saves: bool = False) -> None:
        self._say_farewell(Farewell(comes_back=True, saves=saves))
        self._drop_tasks()

    def _say_farewell(self, farewell: Farewell) -> None:
        """To all workers; one that has to save something is waited for a few seconds."""
        with self._changed:
            peers = list(self._peers)
        for peer in peers:
            with suppress(OSError):
                peer.wire.tell(farewell)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        for peer in peers if farewell.saves else ():
            peer.is_gone.wait(max(0.0, deadline - time.monotonic()))

    def _expect(self, workers: int) -> None:
        """So many workers will share what there is to do, even where some are still starting."""
        with self._changed:
            self._expected = max(1, workers)

    def _tell(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)

    def _drop_tasks(self) -> None:
        """Forget all tasks; what workers say of them from now on is answered by Abandon."""
        with self._changed:
            self._tasks.clear()
            self._events.clear()
            self._raised = None
            for peer in self._peers:
                peer.open = None
                peer.taken.clear()
                peer.begun.clear()

    # --- a connection's thread --------------------------------------------------------------------

    def serve(self, wire: Wire) -> Peer:
        """Answer a worker in a thread of its own until it is gone."""
        peer = Peer(wire)
        with self._changed:
            self._peers.append(peer)
        threading.Thread(target=self._serve, args=[peer], daemon=True).start()
        return peer

    def _serve(self, peer: Peer) -> None:
        try:
            while True:
                said = peer.wire.listen()
                if said.kind == "alive":
                    continue
                if said.kind == "leave":
                    self._let_go(peer)
                    break
                if not (peer.info or said.kind == "hello"):
                    raise WireError("did not say who it is")
                peer.wire.tell(self._answer(peer, said))
        except WireError as error:
            host = peer.info.host if peer.info else "an unknown host"
            warn_once(f"worker on {host}: {error}; its connection is ended")
        except (EOFError, OSError):
            pass
        finally:
            peer.wire.close()
            self._lose(peer)
            peer.is_gone.set()

    def _answer(self, peer: Peer, said: Said) -> Any:
        answer = self._answers.get(said.kind)
        if answer is None:
            raise WireError(f"said {said.kind[:40]!r}, which means nothing here")
        try:
            return answer(peer, said)
        except _GoneError:
            return Abandon()
        except UnfinishedError as error:  # the inbox cannot be written
            self._raise(error)
            return Abandon()
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise WireError(f"said {said.kind!r} with what makes no sense: {error}") from error

    def _let_go(self, peer: Peer) -> None:
        """A worker leaves in order: all that it has taken goes back, and nothing is suspected."""
        with self._changed:
            peer.begun.clear()

    def _lose(self, peer: Peer) -> None:
        """A worker is gone: others may take what it had taken, but for what it had begun."""
        with self._changed:
            self._peers.remove(peer)
            current = peer.open
            if current is None:
                return
            peer.was_busy = isinstance(current.task, Measurement) or bool(peer.begun)
            lost = [peer.taken.pop(number) for number in sorted(peer.begun)]
            current.taken -= len(lost)
            if isinstance(current.task, Measurement):
                current.taken -= len(peer.taken)
                peer.taken.clear()
            if peer.was_busy:
                self._events.append(WorkerLost(current.task, lost))
            self._put_down(peer)
            self._changed.notify_all()

    def _raise(self, error: Exception) -> None:
        with self._changed:
            self._raised = self._raised or error
            self._changed.notify_all()

    def _end_if_over(self, one: _Open, engine: Engine | None = None) -> None:
        if one.is_over and one in self._tasks:
            self._tasks.remove(one)
            self._events.append(TaskResult(one.task, engine))
            self._changed.notify_all()

    # --- answers ----------------------------------------------------------------------------------

    def _hello(self, peer: Peer, said: Said) -> Refusal | None:
        info = WorkerInfo(**said.values)
        reason = self._why_refused(info)
        if reason:
            return Refusal(reason)
        with self._changed:
            peer.info = info
        return None

    def _why_refused(self, info: WorkerInfo) -> str:
        """Why a worker is not wanted; empty if it is."""
        return ""

    def _ask(self, peer: Peer, _: Said) -> Any:
        """What to do next: a Job, a Measurement, or None after a while without anything."""
        with self._changed:
            self._put_down(peer)
            deadline = time.monotonic() + SECONDS_TO_WAIT
            while not (found := [one for one in self._tasks if one.waiting]):
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            peer.open = found[0]
            task = found[0].task
            if isinstance(task, Task):
                return task.job
            self._hand_out(peer, found[0], 1)
            return task

    def _take(self, peer: Peer, said: Said) -> tuple[list[Point], bool]:
        """At most so many points, and of the last ones no more than this worker's share."""
        with self._changed:
            current = _current(peer)
            sharers = max(self._expected, len(self._peers))
            share = math.ceil(len(current.waiting) / sharers)
            points = self._hand_out(peer, current, min(int(said.values["most"]), share))
            return points, bool(current.waiting)

    def _hand_out(self, peer: Peer, current: _Open, most: int) -> list[Point]:
        points = [current.waiting.popleft() for _ in range(min(most, len(current.waiting)))]
        peer.taken |= {point.number: point for point in points}
        current.taken += len(points)
        return points

    def _begin(self, peer: Peer, said: Said) -> bytes | None:
        point, inbox = self._own(peer, said)
        with self._changed:
            peer.begun.add(point.number)
        return inbox.begin(point)

    def _save(self, peer: Peer, said: Said) -> bool:
        point, inbox = self._own(peer, said)
        inbox.save(point, said.parts[0])
        return True

    def _start_again(self, peer: Peer, said: Said) -> None:
        point, inbox = self._own(peer, said)
        inbox.start_again(point, str(said.values["reason"]))

    def _post(self, peer: Peer, said: Said) -> bool:
        trial = parse_trial(json.dumps(said.values["record"]))
        point, inbox = self._own(peer, said)
        if trial.point != point:
            raise WireError("handed in a trial of another point")
        inbox.post(trial, said.parts[0], said.parts[1])
        with self._changed:
            current = _current(peer)
            del peer.taken[point.number]
            peer.begun.discard(point.number)
            current.taken -= 1
            peer.updates += int(said.values["updates"])
            peer.training += trial.seconds
            self._end_if_over(current)
        return True

    def _refuse(self, peer: Peer, said: Said) -> None:
        points, inbox = self._own_ones(peer, said)
        inbox.refuse(points)

    def _end_stacking(self, peer: Peer, said: Said) -> None:
        points, inbox = self._own_ones(peer, said)
        inbox.end_stacking(points, str(said.values["reason"]))

    def _why_alone(self, peer: Peer, said: Said) -> str:
        _, inbox = self._of_task(peer)
        return inbox.why_alone(Point(**said.values["point"]))

    def _measured(self, peer: Peer, said: Said) -> None:
        engine = Engine(**said.values["engine"])
        with self._changed:
            current = _current(peer)
            current.taken -= len(peer.taken)
            peer.taken.clear()
            peer.open = None
            self._end_if_over(current, engine)

    def _done(self, peer: Peer, _: Said) -> None:
        with self._changed:
            self._put_down(peer)

    def _failed(self, peer: Peer, said: Said) -> None:
        with self._changed:
            _current(peer)
        kind, text = str(said.values["error"]), str(said.values["text"])
        self._raise(RAISED.get(kind, RuntimeError)(text))

    def _refused(self, peer: Peer, said: Said) -> None:
        """A worker found that it has other code."""
        assert peer.info is not None
        warn_once(f"worker on {peer.info.host} was refused: {said.values['reason']}")

    def _again(self, peer: Peer, said: Said) -> None:
        """A worker whose connection was lost goes on with what it trains, if it is still wanted."""
        points = [Point(**record) for record in said.values["points"]]
        begun = {int(number) for number in said.values["begun"]}
        deadline = time.monotonic() + SECONDS_TO_PLAN
        with self._changed:
            while not self._tasks and time.monotonic() < deadline:  # this driver has just begun
                self._changed.wait(deadline - time.monotonic())
            current = self._task_of(str(said.values["study"]), points)
            if current is None:
                raise _GoneError
            assert isinstance(current.task, Task)
            for point in points:
                if point in current.waiting:
                    current.waiting.remove(point)
            current.taken += len(points)
            peer.open, peer.begun = current, begun
            peer.taken = {point.number: point for point in points}
            back = [point for point in points if point.number in begun]
            self._events.append(WorkerBack(current.task, back))
            self._changed.notify_all()

    def _task_of(self, study: str, points: Sequence[Point]) -> _Open | None:
        """The task whose points these are, if nobody else trains them."""
        elsewhere = {(id(peer.open), number) for peer in self._peers for number in peer.taken}
        for one in self._tasks:
            if not isinstance(one.task, Task) or one.task.job.key != study:
                continue
            own = all(point in one.task.points for point in points)
            free = not any((id(one), point.number) in elsewhere for point in points)
            if own and free:
                return one
        return None

    # --- whose points -----------------------------------------------------------------------------

    def _put_down(self, peer: Peer) -> None:
        """A worker is through with its task; if it left points, these are as before."""
        if current := peer.open:
            current.waiting.extendleft(reversed(peer.taken.values()))
            current.taken -= len(peer.taken)
            self._end_if_over(current)
        peer.open = None
        peer.taken.clear()
        peer.begun.clear()

    def _of_task(self, peer: Peer) -> tuple[_Open, Inbox]:
        with self._changed:
            current = _current(peer)
        assert isinstance(current.task, Task)  # a Measurement has no inbox, and asks for nothing
        return current, Inbox(current.task.inbox)

    def _own(self, peer: Peer, said: Said) -> tuple[Point, Inbox]:
        _, inbox = self._of_task(peer)
        return peer.taken[int(said.values["number"])], inbox

    def _own_ones(self, peer: Peer, said: Said) -> tuple[Sequence[Point], Inbox]:
        _, inbox = self._of_task(peer)
        return [peer.taken[int(number)] for number in said.values["numbers"]], inbox


def _now(peer: Peer, info: WorkerInfo) -> WorkerInfo:
    """What a worker has said of itself, with what it does now."""
    begun = [peer.taken[number] for number in peer.begun]
    return replace(
        info,
        updates_per_second=peer.updates / peer.training if peer.training else 0.0,
        study=peer.open.task.study.name if peer.open else "",
        batch_size=begun[0].batch_size if begun else 0,
        in_training=len(begun),
    )


class _GoneError(Exception):
    """The task of a worker is no longer wanted."""


def _current(peer: Peer) -> _Open:
    if peer.open is None:
        raise _GoneError
    return peer.open
