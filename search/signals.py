"""How Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are answered: at once, or at safe points.

A signal handler that raises does so between any two bytecodes: in the middle of a transaction of
SQLAlchemy, with a lock held, or in a finalizer, where the exception is lost. So a command ends at
once where nothing has to be ended in order (`quit_on_signal`), and while a driver is at work a
signal is only noted (`defer_signals`), until `stop_if_asked` raises KeyboardInterrupt at one of the
places that are written for it. Users' code that runs in the driver's process is interrupted where
it is (`interrupt_on_signal`), as in any Python program.

Handlers run in the main thread. In other threads all of this does nothing.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from bdb import BdbQuit
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

# by which a scheduler ends a job that it may start again
REQUEUES = (signal.SIGTERM, signal.SIGUSR1)
SIGNALS = (signal.SIGINT, signal.SIGHUP, *REQUEUES)
COMES_BACK = 75  # exit status after one of REQUEUES: another try goes on (EX_TEMPFAIL)
INTERRUPTED = "Interrupted."
INTERRUPTED_TRAINING = "Interrupted. Finished trials are kept; the same command goes on from here."

# by which a user stops what runs: Ctrl-C, or the end of a debugger's session
STOPS = (KeyboardInterrupt, BdbQuit)


class RequeuedError(KeyboardInterrupt):
    """One of REQUEUES asks this process to stop."""


def status_of_stop(stop: BaseException) -> int:
    """The exit status of a process that one of STOPS ends."""
    return COMES_BACK if isinstance(stop, RequeuedError) else 1


_Handler = Callable[[int, Any], Any]


@dataclass
class _Deferral:
    """What came in while signals are deferred.

    `before`: the handlers to go back to; `thread`: the one that defers, and is interrupted;
    `stop`: what is raised.
    """

    before: dict[int, _Handler] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)
    is_asked: bool = False  # to stop
    stop: type[KeyboardInterrupt] = KeyboardInterrupt
    is_answered: bool = False  # by a KeyboardInterrupt at a safe point: the driver unwinds
    interrupts: bool = False  # users' code runs, and is interrupted where it is


_deferral: _Deferral | None = None


def _own_deferral() -> _Deferral | None:
    """That of this thread: no other is interrupted for it."""
    return _deferral if _deferral and _deferral.thread == threading.get_ident() else None


def stop_if_asked() -> None:
    """A safe point: raise KeyboardInterrupt if a signal came since `defer_signals`.

    Raises only once, so that writing tables during the shutdown is not interrupted again.
    """
    deferral = _own_deferral()
    if deferral and deferral.is_asked and not deferral.is_answered:
        deferral.is_answered = True
        raise deferral.stop


@contextmanager
def _answered_by(handler: _Handler, numbers: Iterable[int]) -> Iterator[None]:
    """Answer some signals by another handler in this block."""
    before = {one: signal.getsignal(one) for one in numbers}
    for one in before:
        signal.signal(one, handler)
    try:
        yield
    finally:
        for one, earlier in before.items():
            signal.signal(one, earlier)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Note a signal that would stop this process, for the next safe point; the end is one.

    A second signal is answered as it would be outside. Handlers of users' own stay.
    """
    global _deferral
    if _deferral or threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = (signal.default_int_handler, quit_at_once)
    found = {one: signal.getsignal(one) for one in SIGNALS}
    own = {one: handler for one, handler in found.items() if handler in stopping}
    _deferral = deferral = _Deferral(before=own)  # type: ignore[arg-type]  # they are functions
    try:
        with _answered_by(_note, own):
            yield
    finally:
        _deferral = None
    if deferral.is_asked and not deferral.is_answered:  # since the last safe point
        raise deferral.stop


def _note(number: int, frame: Any) -> None:
    assert _deferral is not None  # as long as this is the handler
    _deferral.stop = _stop_of(number)
    if _deferral.interrupts:
        # users' code may catch what is raised here; a debugger's prompt does, to clear a line
        _deferral.is_asked = _deferral.is_asked or not _is_at_prompt(frame)
        raise _deferral.stop
    if _deferral.is_asked:
        _deferral.before[number](number, frame)
    _deferral.is_asked = True


def _stop_of(number: int) -> type[KeyboardInterrupt]:
    return RequeuedError if number in REQUEUES else KeyboardInterrupt


def _is_at_prompt(frame: Any) -> bool:
    """Whether a debugger that stopped in this frame's callers waits for a command."""
    while frame is not None:
        if frame.f_code.co_name == "trace_dispatch" and frame.f_globals.get("__name__") == "bdb":
            return True
        frame = frame.f_back
    return False


@contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """Raise KeyboardInterrupt where the process is, every time: users' code runs in this block.

    One that is lost in a finalizer, or that users' code catches, is raised again at the next safe
    point.
    """
    stop_if_asked()
    deferral = _own_deferral()
    if deferral is None:
        yield
        return
    before = sys.unraisablehook

    def note_lost(lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            deferral.is_asked = True
        else:
            before(lost)

    sys.unraisablehook = note_lost
    deferral.interrupts = True
    try:
        yield
    except KeyboardInterrupt:  # then the driver unwinds
        deferral.is_asked = deferral.is_answered = True
        raise
    finally:
        deferral.interrupts = False
        sys.unraisablehook = before


_last_words = INTERRUPTED


@contextmanager
def quit_on_signal(last_words: str = INTERRUPTED) -> Iterator[None]:
    """End this process at once when a signal comes, with these words.

    Signals that are ignored stay so, as under nohup.
    """
    global _last_words
    words_before, _last_words = _last_words, last_words
    is_main = threading.current_thread() is threading.main_thread()
    try:
        with _answered_by(quit_at_once, _heard() if is_main else ()):
            yield
    finally:
        _last_words = words_before


def _heard() -> list[int]:
    """Those signals of SIGNALS that are not ignored."""
    return [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]


def quit_at_once(number: int, _frame: object) -> None:
    """End without a traceback: nothing that is being done has to be ended in order.

    Workers end with this process. `os.write`, as the signal may have come in the middle of a print.
    """
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{_last_words}\n".encode())
    os._exit(status_of_stop(_stop_of(number)()))


def _as_any_other_process() -> None:
    """In a process that was forked, as of a DataLoader: it is not ours to end in order."""
    plain = {signal.SIGINT: signal.default_int_handler}
    for one in SIGNALS:
        if signal.getsignal(one) in (_note, quit_at_once):
            signal.signal(one, plain.get(one, signal.SIG_DFL))


os.register_at_fork(after_in_child=_as_any_other_process)


def end_at_once_with(status: int) -> None:
    """From here on a signal changes nothing of the status that this process has earned.

    It ends at once, as it may wait for a thread; later, while Python takes itself apart, no
    function could answer.
    """
    answered = _heard()
    for one in answered:
        signal.signal(one, lambda _number, _frame: os._exit(status))

    @atexit.register
    def ignore() -> None:
        for one in answered:
            signal.signal(one, signal.SIG_IGN)
