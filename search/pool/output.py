"""What worker processes of this machine print, by Python or by native code: a log, no terminal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

WORKERS_LOG = "workers.log"
MOST_BYTES = 10_000_000  # of a log
FULL = f"\n--- {WORKERS_LOG} is full: what workers print from here on is not kept ---\n"
BLOCK = 65536  # bytes that are read at once
SECONDS_TO_READ = 1.0  # the last words of a process that has ended


class WorkersLog:
    """A log in a results folder, made when something is printed.

    It goes on where an earlier run's ended, unless that was full.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / WORKERS_LOG
        self.has_more = False  # than before this run
        self._said_last = ""  # the worker whose block is at the end
        self._lock = threading.Lock()
        self._size = self.path.stat().st_size if self.path.exists() else 0
        if self._size >= MOST_BYTES:
            self.path.unlink()
            self._size = 0

    def write(self, worker: str, content: bytes) -> None:
        """Add what a worker has printed, below its name and the time where another was before.

        A log that cannot be written stays as it is: training goes on.
        """
        with self._lock:
            self.has_more = True
            if self._size >= MOST_BYTES:
                return
            if worker != self._said_last:
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                content = f"\n--- {worker}, {now} ---\n".encode() + content
            self._said_last = worker
            content = content[: MOST_BYTES - self._size]
            self._size += len(content)
            if self._size >= MOST_BYTES:
                content += FULL.encode()
            try:
                with self.path.open("ab") as file:
                    file.write(content)
            except OSError:
                self._size = MOST_BYTES


class Listener:
    """Reads what a process prints, until it and all that it has started have ended."""

    def __init__(self, descriptor: int, worker: str, log: Callable[[], WorkersLog | None]) -> None:
        """`log`: where it goes at the time; where there is none it is dropped."""
        self._descriptor, self._worker, self._log = descriptor, worker, log
        self._thread = threading.Thread(target=self._read, name="read-worker", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last words of a process that has ended."""
        self._thread.join(SECONDS_TO_READ)

    def _read(self) -> None:
        while content := os.read(self._descriptor, BLOCK):
            if log := self._log():
                log.write(self._worker, content)
        os.close(self._descriptor)
