"""A worker process: it asks the driver at the other end of a wire for points, and trains them.

On the driver's machine it ends when the driver does. Elsewhere it goes on without: what it has in
training is trained to its end and kept, until a driver answers again that wants it.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import multiprocessing
import os
import platform
import queue
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..errors import UnfinishedError, UserError, describe_error, first_line
from ..signals import COMES_BACK, REQUEUES
from ..source import import_module
from ..trainers.watched import MisuseError
from ..trial import Point, Trial
from ..workload.workload import code_of, reload_edited_modules
from .backend import WorkerInfo
from .hub import SECONDS_TO_SAVE, Abandon, Farewell, Refusal, Sign, Welcome
from .inbox import AbandonedError, LeavingError
from .local import DRIVERS_SIGNALS
from .wire import SECONDS_OF_SILENCE, SIGNS, Wire, WireError, connect, inherited, read_key
from .worker import (
    Choice,
    Job,
    choose_engine,
    forget_workloads,
    ignore_ctrl_c,
    leave_when_saved,
    work,
)

REFUSED = 2  # exit status: the driver does not want it
SECONDS_IDLE = 30.0  # of a worker on the driver's machine; then it ends
SECONDS_BETWEEN_CALLS = 2.0  # for a driver that does not answer


def about_this_process(worker: str, device: str) -> WorkerInfo:
    return WorkerInfo(
        worker=worker,
        host=socket.gethostname(),
        device=device,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tunewright": f"{version('tunewright')} ({_own_code()})",
        },
        cpu=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    )


@cache
def _own_code() -> str:
    """A hash of this package: revisions have the same version for a while."""
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()[:12]


def main_on_this_machine() -> None:
    """The program of a worker process that a driver starts (`local`)."""
    descriptor, device, method = sys.argv[1:]
    # what is printed goes through a pipe: of a process that crashes nothing may be missing
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    wire = inherited(int(descriptor))
    _become_worker(json.loads(method))
    Worker(lambda: wire, device, name=str(os.getpid())).run()


def main_elsewhere() -> None:
    """The program of a worker process that `tunewright worker` starts (`pilot`)."""
    options = json.loads(sys.argv[1])
    _become_worker(None)
    try:
        key = read_key()
    except UserError as error:  # the file has changed
        _end_refused(str(error))
    Worker(
        lambda: connect(options["host"], options["port"], key),
        options["device"],
        options["patience"],
        Path(options["folder"]),
        name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
        tells=options["tells"],
    ).run()


def _become_worker(start_method: str | None) -> None:
    """The driver answers Ctrl-C and a closed terminal; this process ignores them.

    Processes that a workload starts, as those of a DataLoader, are started as the driver would
    (`start_method` of multiprocessing; None: the platform's default).
    """
    for number in DRIVERS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DRIVERS_SIGNALS)
    for number in REQUEUES:
        signal.signal(number, lambda _number, _frame: _leave(COMES_BACK))
    ignore_ctrl_c()
    multiprocessing.set_start_method(start_method, force=True)


def end_process(status: int) -> NoReturn:
    """End this process and those that a workload started, at once.

    All that matters is with the driver, and torch takes a second to tidy up.
    """
    for stream in (sys.stdout, sys.stderr):  # what a workload printed is not lost
        with suppress(OSError, ValueError):
            stream.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


# --- the line to a driver -------------------------------------------------------------------------


class LostError(Exception):
    """There is no driver at the other end any more; says how that was seen."""


class Line:
    """A wire with a thread that reads it, so that a farewell is heard while training goes on."""

    def __init__(self, wire: Wire, on_end: Callable[[], object] | None = None) -> None:
        """`on_end`: called when the other side is gone; by default requests raise LostError."""
        self._wire, self._on_end = wire, on_end
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended_by: LostError | None = None
        threading.Thread(target=self._read, name="read-driver", daemon=True).start()

    def request(self, kind: str, *parts: bytes, **values: object) -> Any:
        """What the driver answers.

        Raises LostError, AbandonedError, and WireError for what this process cannot read.
        """
        if self._ended_by:
            raise self._ended_by
        try:
            self._wire.say(kind, *parts, **values)
        except OSError:
            self._wire.close()  # so that the thread that reads sees an end, too
        answer = self._heard.get()
        if isinstance(answer, LostError):
            self._ended_by = answer
            raise answer
        if isinstance(answer, WireError):
            raise answer
        if isinstance(answer, Abandon):
            raise AbandonedError
        return answer

    def say(self, kind: str) -> None:
        """Say something that has no answer, if there is anybody to hear it."""
        with suppress(OSError):
            self._wire.say_unless_busy(kind)

    def _read(self) -> None:
        while True:
            try:
                heard = self._wire.hear()
                if isinstance(heard, Welcome) and not self._on_end:
                    self._wire.limit_silence(heard.silence)
            except WireError as error:
                heard = error
            except (EOFError, OSError) as error:
                lost = LostError(describe_error(error))
                break
            if isinstance(heard, Farewell):
                _answer_farewell(heard)
            elif not isinstance(heard, Sign):
                self._heard.put(heard)
        self._wire.close()
        if self._on_end:
            self._on_end()
        self._heard.put(lost)


def _answer_farewell(farewell: Farewell) -> None:
    status = COMES_BACK if farewell.comes_back else 0
    if farewell.saves:
        _leave(status)
    else:
        end_process(status)


def _leave(status: int) -> None:
    """End as soon as what is in training is saved, or after a few seconds."""
    if not _in_training.is_set():
        _leave_unsaved(status)
    leave_when_saved()
    timer = threading.Timer(SECONDS_TO_SAVE - 1.0, _leave_unsaved, [status])
    timer.daemon = True
    timer.start()


def _leave_unsaved(status: int) -> NoReturn:
    """What is at work is not to blame, though it is lost as far as it was not saved."""
    for line in _lines:
        line.say("leave")
    end_process(status)


def _end_refused(reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    end_process(REFUSED)


_in_training = threading.Event()
_lines: list[Line] = []  # of this process, which works for one driver at most


# --- what a worker does ---------------------------------------------------------------------------


@dataclass
class WireDesk:
    """The desk of a task at the other end of the line.

    Where there is no driver any more, what would be handed in is kept, and no more points are
    taken, until `again` reaches a driver that goes on with the same task.
    """

    job: Job
    worker: Worker
    taken: dict[int, Point] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    states: dict[int, bytes] = field(default_factory=dict)
    finished: dict[int, tuple[Trial, bytes, bytes]] = field(default_factory=dict)

    def take(self, most: int) -> tuple[Sequence[Point], bool]:
        points, has_more = self._ask("take", most=most) or ([], False)
        self.taken |= {point.number: point for point in points}
        return points, has_more

    def begin(self, point: Point) -> bytes | None:
        self.begun.add(point.number)
        found: bytes | None = self._ask("begin", number=point.number)
        return found

    def save(self, point: Point, state: bytes) -> None:
        self.states[point.number] = state
        self._hand_in()

    def start_again(self, point: Point, reason: str) -> None:
        self.states.pop(point.number, None)
        self._ask("start_again", number=point.number, reason=reason)

    def post(self, trial: Trial, curve: bytes, checkpoint: bytes) -> None:
        if not trial.verdict.unfinished:
            self.states.pop(trial.point.number, None)
        self.finished[trial.point.number] = trial, curve, checkpoint
        self._hand_in()

    def refuse(self, points: Iterable[Point]) -> None:
        self._ask("refuse", numbers=[point.number for point in points])

    def end_stacking(self, points: Sequence[Point], reason: str) -> None:
        numbers = [point.number for point in points]
        self._ask("end_stacking", numbers=numbers, reason=reason)

    def why_alone(self, point: Point) -> str:
        return self._ask("why_alone", point=point.record()) or ""

    def _hand_in(self) -> None:
        """Hand in what is saved and what is finished, as far as somebody takes it.

        States come first: one that has come to its cut goes on from there.
        """
        for number, state in list(self.states.items()):
            if self._ask("save", state, number=number) is None:
                return
            del self.states[number]
        for number, (trial, curve, checkpoint) in list(self.finished.items()):
            values = {
                "number": number,
                "record": trial.record(),
                "updates": len(trial.curve.loss),
            }
            if self._ask("post", curve, checkpoint, **values) is None:
                return
            del self.finished[number], self.taken[number]
            self.begun.discard(number)

    def hand_in_late(self) -> None:
        """At the end of a task: hand in what is kept, as soon as a driver answers."""
        while self.finished:
            self.worker.connect_patiently()
            if self._goes_on():
                self._hand_in()

    def _ask(self, kind: str, *parts: bytes, **values: object) -> Any:
        """What the driver answers; None if there is none that goes on with this task."""
        for _ in range(2):
            try:
                return self.worker.line.request(kind, *parts, **values)
            except LostError:
                if not (self.worker.connect() and self._goes_on()):
                    break
        return None

    def _goes_on(self) -> bool:
        """Whether the driver goes on with this task, after the line was lost.

        Raises AbandonedError if it wants no more of it.
        """
        try:
            self.worker.line.request(
                "again",
                study=self.job.key,
                points=[point.record() for point in self.taken.values()],
                begun=sorted(self.begun),
            )
        except LostError:
            return False
        return True


class Worker:
    """A worker process.

    call      makes a connection; raises OSError, EOFError or WireError if there is none
    patience  seconds for which it is tried again when it is lost
    folder    where runs of commands go; None: where the driver says, on the same machine
    tells     whether to say so, when it waits for a driver
    """

    def __init__(
        self,
        call: Callable[[], Wire],
        device: str,
        patience: float = 0.0,
        folder: Path | None = None,
        name: str = "",
        tells: bool = True,
    ) -> None:
        self._call, self._device, self._patience = call, device, patience
        self._idle_since = time.monotonic()
        self._folder, self._name, self._tells = folder, name, tells
        self._sources = ""
        self._silence, self._unanswered = SECONDS_OF_SILENCE, ""
        self.line: Line

    def connect(self) -> bool:
        """Try once to reach a driver; ends this process if it refuses this worker."""
        try:
            line = Line(self._call(), None if self._patience else lambda: end_process(1))
            self.line = line
            _lines[:] = [line]
            hello = about_this_process(self._name, self._device)
            answer = line.request("hello", **asdict(hello))
        except (OSError, EOFError, LostError) as error:
            self._unanswered = first_line(error)
            return False
        except WireError as error:
            _end_refused(str(error))
        if isinstance(answer, Refusal):
            _end_refused(answer.reason)
        assert isinstance(answer, Welcome)
        self._silence = answer.silence
        return True

    def connect_patiently(self) -> None:
        """Ends this process when no driver has answered for `patience` seconds."""
        deadline = time.monotonic() + self._patience
        while not self.connect():
            if time.monotonic() > deadline:
                words = f"no driver answered for {self._patience:g} s: {self._unanswered}"
                print(f"error: {words}", file=sys.stderr, flush=True)
                end_process(1)
            if self._tells:
                print(f"waiting for a driver: {self._unanswered}", file=sys.stderr, flush=True)
            self._tells = False
            time.sleep(SECONDS_BETWEEN_CALLS)

    def run(self) -> None:
        """Train until the driver says farewell, which ends this process."""
        self.connect_patiently()
        if self._patience:
            threading.Thread(target=self._give_signs, name="give-signs", daemon=True).start()
        while True:
            try:
                what = self.line.request("ask")
                if isinstance(what, Choice):
                    self._choose(what)
                elif isinstance(what, Job):
                    self._train(what)
                elif not self._patience and time.monotonic() - self._idle_since > SECONDS_IDLE:
                    end_process(0)
                if what is not None:
                    self._idle_since = time.monotonic()
            except LostError:
                self.connect_patiently()
            except AbandonedError:
                pass
            except WireError as error:
                self._refuse(str(error))

    def _refuse(self, reason: str) -> NoReturn:
        """Say on both sides that this machine cannot do what the driver asks for, and end."""
        with suppress(LostError, AbandonedError):
            self.line.request("refused", reason=reason)
        _end_refused(f"this worker was refused: {reason}")

    def _give_signs(self) -> None:
        while True:
            time.sleep(self._silence / SIGNS)
            self.line.say("alive")

    def _choose(self, choice: Choice) -> None:
        if self._folder:
            self._check_code(choice)
        try:
            engine = choose_engine(replace(choice, device=self._device))
        except UnfinishedError as error:
            self._tell_failure(error)
        else:
            self.line.request("chosen", engine=asdict(engine))

    def _tell_failure(self, error: Exception) -> None:
        self.line.request("failed", error=type(error).__name__, text=str(error))

    def _train(self, job: Job) -> None:
        if self._folder:
            job = replace(job, folder=self._folder / job.study.name)
            (job.folder / "inbox").mkdir(parents=True, exist_ok=True)
            self._check_code(job)
        desk = WireDesk(job, self)
        _in_training.set()
        try:
            for _ in work(job, desk, self._device):
                pass
            desk.hand_in_late()
            self.line.request("done")
        except LeavingError:
            self.line.say("leave")
            end_process(COMES_BACK)
        except (UnfinishedError, MisuseError) as error:
            self._tell_failure(error)
        except (LostError, AbandonedError):
            raise
        except BaseException:
            self.line.request("failed", error="", text=traceback.format_exc())
        finally:
            _in_training.clear()

    def _check_code(self, job: Job | Choice) -> None:
        """Leave if this machine's copy of the workload is missing, or not the driver's."""
        for path in filter(None, job.study.code_paths):
            try:
                import_module(path.partition(":")[0], f"{job.study.name} on {socket.gethostname()}")
            except UserError as error:
                self._refuse(str(error))
        sources = reload_edited_modules(job.study.code_paths)
        if sources != self._sources:
            forget_workloads()
            self._sources = sources
        own, drivers = code_of(job.study.code_paths), job.code
        names = sorted(own.keys() | drivers.keys())
        if differing := [name for name in names if own.get(name) != drivers.get(name)]:
            reason = (
                f"its copy of {differing[0]}, which {job.study.name} trains with, differs from the "
                "driver's: copy the same code to both machines"
            )
            self._refuse(reason)
