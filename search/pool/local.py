"""Worker processes on this machine, each at the other end of a pair of sockets."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import joblib

from ..signals import COMES_BACK
from .backend import Event, WorkerLost
from .hub import Hub, Peer
from .interpreter import command_of
from .output import Listener, WorkersLog
from .wire import pair

DRIVERS_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # which the driver answers, and no worker


@dataclass(eq=False)
class _Process:
    child: subprocess.Popen[bytes]
    peer: Peer
    device: str
    listener: Listener


class Local(Hub):
    """A backend of worker processes on this machine.

    They stay for the next run of this process, and end by themselves when none follows, or when
    this process ends, whatever ends it.
    """

    owns_terminal = False

    def __init__(self, silence: float = 0.0) -> None:
        super().__init__(silence)
        self._processes: list[_Process] = []
        self._wanted = 0
        self._devices: Sequence[str] = ()
        self._sources = ""
        self.log: WorkersLog | None = None

    def count(self, wanted: int | None, devices: Sequence[str]) -> int:
        """By default one for each core, or for each device that is not the CPU."""
        return wanted or (joblib.cpu_count() if devices[0] == "cpu" else len(devices))

    def start(self, workers: int, sources: str, devices: Sequence[str]) -> None:
        if sources != self._sources:
            self._end(self._processes)
        self._sources, self._devices = sources, devices
        self._wanted = workers
        self._expect(workers)
        self._end([one for one in self._processes if one.device not in devices])
        self._end(self._processes[workers:])
        self._fill()

    def wait(self, seconds: float) -> list[Event]:
        self._fill()
        return super().wait(seconds)

    def stop(self, saves: bool = False) -> None:
        super().stop(saves)
        self._end(self._processes)

    def _fill(self) -> None:
        """Start what is missing, and tell of processes that died before they began anything."""
        dead = [one for one in self._processes if one.child.poll() is not None]
        self._processes = [one for one in self._processes if one not in dead]
        for one in dead:
            one.peer.wire.close()  # a process that it has started may keep its side open
            one.peer.is_gone.wait()
            one.listener.finish()
            if one.child.returncode not in (0, COMES_BACK) and not one.peer.was_busy:
                self._tell(WorkerLost(None))
        while len(self._processes) < self._wanted:
            self._start_one()

    def _start_one(self) -> None:
        used = [one.device for one in self._processes]
        device = min(self._devices, key=used.count)
        ours, theirs = pair()
        method = multiprocessing.get_start_method(allow_none=True)
        arguments = [str(theirs.fileno()), device, json.dumps(method)]
        printed, printing = os.pipe()
        try:
            with theirs, _signals_blocked():
                child = subprocess.Popen(
                    command_of("process", "main_on_this_machine", *arguments),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=printing,
                    stderr=printing,
                )
        finally:
            os.close(printing)
        listener = Listener(printed, f"worker {child.pid}", lambda: self.log)
        self._processes.append(_Process(child, self.serve(ours), device, listener))

    def _end(self, processes: Sequence[_Process]) -> None:
        ended = list(processes)
        for one in ended:
            one.child.kill()
            one.child.wait()
            one.peer.wire.close()
            one.listener.finish()
        self._processes = [one for one in self._processes if one not in ended]


@cache
def this_machine() -> Local:
    """The worker processes of this process, for one run after the other."""
    local = Local()
    atexit.register(local.stop)
    return local


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the driver's signals in a process that starts here, until it ignores them itself.

    A terminal's Ctrl-C goes to all processes, and would end this one in the middle of its imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DRIVERS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
