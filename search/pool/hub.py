"""The driver's end of all wires: workers ask for points, and hand in trials.

Each connection has a thread, which answers one worker. A worker takes points as its slots become
free, so that the faster ones take more. What a worker holds when it vanishes goes back to the
queue, but for the points that it had begun: one of these may be what ended it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from ..errors import UnfinishedError, first_line, warn_once
from ..store.files import trial_of
from ..train.execution import Engine
from ..trainers.watched import MisuseError
from ..trial import Point
from .backend import Event, TaskResult, WorkerBack, WorkerInfo, WorkerLost
from .inbox import Inbox
from .wire import Said, Wire, WireError
from .worker import Choice, Task

# A worker that has nothing to do asks again after so long, so that one that is gone is noticed.
SECONDS_TO_WAIT = 5.0
SECONDS_TO_PLAN = 30.0  # for a worker that comes back to a driver that has just begun
SECONDS_TO_TELL = 1.0
SECONDS_TO_END = 60.0  # for the thread of a connection that was closed: it may be writing
SECONDS_TO_SAVE = 5.0  # for workers that are told to end, but for this
# what a task may raise in a worker, by name; anything else is a fault of this program
RAISED: dict[str, type[Exception]] = {one.__name__: one for one in (UnfinishedError, MisuseError)}

# what a worker may say of these
_INFO, _ENGINE = TypeAdapter(WorkerInfo), TypeAdapter(Engine)
_POINTS = TypeAdapter(list[Point])


@dataclass(frozen=True)
class Welcome:
    """To a worker that says hello.

    silence   seconds without a sign of the other side after which either counts it as gone; 0: none
    """

    silence: float


@dataclass(frozen=True)
class Sign:
    """To a worker: the driver is there."""


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
    """A task that is not over: its points by number, those that nobody has taken in their order.

    taken   how many are with a worker
    lost    begun by a worker that vanished: nobody else trains them for this task
    """

    task: Task | Choice
    points: Mapping[int, Point]
    waiting: OrderedDict[int, Point]
    taken: int = 0
    lost: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, task: Task | Choice) -> _Open:
        points = task.points[:1] if isinstance(task, Choice) else task.points
        by_number = OrderedDict((point.number, point) for point in points)
        return cls(task, dict(by_number), by_number)

    @property
    def is_over(self) -> bool:
        return not (self.waiting or self.taken)

    def put_back(self, points: Collection[Point]) -> None:
        """Before all others, as these were."""
        for point in reversed(list(points)):
            self.waiting[point.number] = point
            self.waiting.move_to_end(point.number, last=False)
        self.taken -= len(points)


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
    has_left: bool = False  # in order
    was_busy: bool = False  # when it was lost: it chose an engine, or had begun a point
    is_gone: threading.Event = field(default_factory=threading.Event)


class Hub:
    """The part of a backend that gives out points and takes trials, whoever the workers are.

    silence   seconds after which a worker that gives no sign is gone; 0: never
    """

    workers_come_back = True  # and wait for another run, when this one was stopped

    def __init__(self, silence: float = 0.0) -> None:
        self._silence = silence
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
            "chosen": self._chosen,
            "done": self._done,
            "failed": self._failed,
            "refused": self._refused,
            "again": self._again,
        }

    # --- what the driver's thread calls -----------------------------------------------------------

    def submit(self, task: Task | Choice) -> None:
        with self._changed:
            self._tasks.append(_Open.of(task))
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
        with self._changed:
            at_work = [peer for peer in self._peers if peer.open]
        farewell = Farewell(comes_back=self.workers_come_back, saves=saves)
        self._say_farewell(farewell, at_work if saves else ())
        self._drop_tasks()

    def _say_farewell(self, farewell: Farewell, awaited: Sequence[Peer]) -> None:
        """To all workers at once; wait a few seconds for these to leave."""
        with self._changed:
            peers = list(self._peers)
        threads = [
            threading.Thread(target=_tell_if_there, args=[peer, farewell], daemon=True)
            for peer in peers
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + SECONDS_TO_TELL
        for thread in threads:  # one that was stopped may not even take it
            thread.join(max(0.0, deadline - time.monotonic()))
        deadline = time.monotonic() + SECONDS_TO_SAVE
        for peer in awaited:
            peer.is_gone.wait(max(0.0, deadline - time.monotonic()))

    def _at_most(self, seconds: float) -> float:
        """So long, or as long as a worker can wait for an answer before it counts as lost."""
        return min(seconds, self._silence / 2) if self._silence else seconds

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
            warn_once(f"worker on {host}: it {error}; its connection is ended")
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
        except WireError:
            raise
        except Exception as error:  # whatever values of a wrong kind lead to
            words = first_line(error)
            raise WireError(f"said {said.kind!r} with what makes no sense: {words}") from error

    def _let_go(self, peer: Peer) -> None:
        """A worker leaves in order: all that it has taken goes back, and nothing is suspected."""
        with self._changed:
            peer.has_left = True
            peer.begun.clear()

    def _lose(self, peer: Peer) -> None:
        """A worker is gone: others may take what it had taken, but for what it had begun."""
        with self._changed:
            self._peers.remove(peer)
            current = peer.open
            if current is None:
                return
            is_choosing = isinstance(current.task, Choice) and not peer.has_left
            peer.was_busy = is_choosing or bool(peer.begun)
            lost = [peer.taken.pop(number) for number in sorted(peer.begun)]
            current.lost.update(peer.begun)
            current.taken -= len(lost)
            if is_choosing:
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

    def _hello(self, peer: Peer, said: Said) -> Refusal | Welcome:
        info = _INFO.validate_python(said.values)
        reason = self._why_refused(info)
        if reason:
            return Refusal(reason)
        with self._changed:
            same = [one for one in self._peers if one.info and one.info.worker == info.worker]
        for earlier in same:  # it comes back before this side has seen the end of its connection
            earlier.wire.close()
            earlier.is_gone.wait(SECONDS_TO_END)
        with self._changed:
            peer.info = info
        return Welcome(self._silence)

    def _why_refused(self, info: WorkerInfo) -> str:
        """Why a worker is not wanted; empty if it is."""
        return ""

    def _ask(self, peer: Peer, _: Said) -> Any:
        """What to do next: a Job, a Choice, or None after a while without anything."""
        with self._changed:
            self._put_down(peer)
            deadline = time.monotonic() + self._at_most(SECONDS_TO_WAIT)
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
        """At most so many points, and no more than this worker's share of all that are left.

        That counts what each has in training: whoever asks second gets as many as the first.
        """
        with self._changed:
            current = _current(peer)
            workers = sum(one.info is not None for one in self._peers)
            sharers = max(self._expected, workers)
            share = math.ceil((len(current.waiting) + current.taken) / sharers)
            own = max(1, share - len(peer.taken))
            points = self._hand_out(peer, current, min(int(said.values["most"]), own))
            return points, bool(current.waiting)

    def _hand_out(self, peer: Peer, current: _Open, most: int) -> list[Point]:
        count = min(most, len(current.waiting))
        points = [current.waiting.popitem(last=False)[1] for _ in range(count)]
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
        trial = trial_of(said.values["record"])
        point, inbox = self._own(peer, said)
        if trial.point != point:
            raise WireError("handed in a trial of another point")
        updates = int(said.values["updates"])
        curve, checkpoint = said.parts
        inbox.post(trial, curve, checkpoint)
        with self._changed:
            current = _current(peer)
            del peer.taken[point.number]
            peer.begun.discard(point.number)
            current.taken -= 1
            peer.updates += updates
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

    def _chosen(self, peer: Peer, said: Said) -> None:
        engine = _ENGINE.validate_python(said.values["engine"])
        with self._changed:
            current = _current(peer)
            if not isinstance(current.task, Choice):
                raise WireError("chose what it was not asked to")
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
        taken = {point.number: point for point in _POINTS.validate_python(said.values["points"])}
        begun = {int(number) for number in said.values["begun"]}
        if not begun <= taken.keys():
            raise WireError("has begun what it has not taken")
        deadline = time.monotonic() + self._at_most(SECONDS_TO_PLAN)
        with self._changed:
            self._put_down(peer)
            while not (current := self._task_of(str(said.values["study"]), taken)):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _GoneError
                self._changed.wait(left)
            assert isinstance(current.task, Task)
            for number in taken:
                current.waiting.pop(number, None)
            back = current.lost & begun
            current.lost -= taken.keys()
            current.taken += len(taken)
            peer.open, peer.taken, peer.begun = current, taken, begun
            if back:
                points = [taken[number] for number in sorted(back)]
                self._events.append(WorkerBack(current.task, points))
                self._changed.notify_all()

    def _task_of(self, study: str, taken: Mapping[int, Point]) -> _Open | None:
        """The task whose points these are, if nobody else trains them."""
        for one in self._tasks:
            if not isinstance(one.task, Task) or one.task.job.key != study:
                continue
            held = {number for peer in self._peers if peer.open is one for number in peer.taken}
            own = all(one.points.get(number) == point for number, point in taken.items())
            if own and not held & taken.keys():
                return one
        return None

    # --- whose points -----------------------------------------------------------------------------

    def _put_down(self, peer: Peer) -> None:
        """A worker is through with its task; if it left points, these are as before."""
        if current := peer.open:
            current.put_back(peer.taken.values())
            self._end_if_over(current)
        peer.open = None
        peer.taken.clear()
        peer.begun.clear()

    def _of_task(self, peer: Peer) -> tuple[_Open, Inbox]:
        with self._changed:
            current = _current(peer)
        assert isinstance(current.task, Task)  # a Choice has no inbox, and asks for nothing
        return current, Inbox(current.task.inbox)

    def _own(self, peer: Peer, said: Said) -> tuple[Point, Inbox]:
        with self._changed:  # so that the point is of the task that is found
            _, inbox = self._of_task(peer)
            return peer.taken[int(said.values["number"])], inbox

    def _own_ones(self, peer: Peer, said: Said) -> tuple[Sequence[Point], Inbox]:
        with self._changed:
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


def _tell_if_there(peer: Peer, farewell: Farewell) -> None:
    with suppress(OSError):
        peer.wire.tell(farewell)


def _current(peer: Peer) -> _Open:
    if peer.open is None:
        raise _GoneError
    return peer.open
