"""A program that runs one command after the other for a worker, and lets none of their processes
outlive it.

    python -I -S guard.py

A worker may be killed at any moment, and its children with it. So this process leaves the worker's
family at once, and what a command starts stays in its own: whatever a command has left behind when
it ends, is ended, or the worker is gone, gets SIGTERM, and after `grace` seconds SIGKILL, sessions
of their own (as torchrun gives its processes) included. Where the system knows no such families
(Linux does), that goes for the command's process group alone.

Both sides write JSON, an object a line.

stdin   {"argv": […], "cwd": …, "environ": {…}, "stdout": PATH, "stderr": PATH, "lock": PATH,
        "grace": SECONDS}   run a command, once the lock is free; it is held while any of its
                            processes lives
        any line while it runs: end it. The end of the file: end it, and this process
stdout  {"started": PID}, then {"exit_status": N}, as subprocess counts them; or {"error": TEXT}

It imports the standard library alone, and starts in hundredths of a second.
"""

import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
CONTROL = 0  # standard input
SECONDS_BETWEEN_LOOKS = 0.02  # at processes that are ending


def prctl(option: int, value: int) -> None:
    """A call of Linux; nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """The processes that this one has started, and those that they have, as far as known."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parent = path.read_text(errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def send(number: int, processes: list[int]) -> None:
    for pid in processes:
        with suppress(OSError):
            os.kill(pid, number)


class Command:
    """A command that runs, in a process group of its own."""

    def __init__(self, request: dict[str, Any]) -> None:
        """Start it. Raises OSError or ValueError if that cannot be done."""
        self.grace = float(request["grace"])
        self.exit_status: int | None = None
        with open(request["stdout"], "wb") as out, open(request["stderr"], "wb") as err:
            self._process = subprocess.Popen(
                request["argv"],
                cwd=request["cwd"],
                env=request["environ"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                # should this process be killed, too
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        self.pid = self._process.pid

    def reap(self) -> None:
        """Take leave of processes that have ended, the command's orphans among them."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.exit_status = os.waitstatus_to_exitcode(ended[1])
                    self._process.returncode = self.exit_status

    def end(self) -> None:
        """End all of its processes: of a command that runs its group first, which may tell others.

        Returns when none is left.
        """
        if self.exit_status is None:
            self._send_to_group(signal.SIGTERM)
        else:
            send(signal.SIGTERM, descendants())
        patient_until = time.monotonic() + self.grace
        while self._is_alive():
            if time.monotonic() > patient_until:
                self._send_to_group(signal.SIGKILL)
                send(signal.SIGKILL, descendants())
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _is_alive(self) -> bool:
        self.reap()
        return self.exit_status is None or bool(descendants())

    def _send_to_group(self, number: int) -> None:
        with suppress(OSError):
            os.killpg(self.pid, number)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a lock, once whoever has it lets go."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def report(**what: object) -> None:
    print(json.dumps(what), flush=True)


def run(request: dict[str, Any], children: int) -> None:
    """Run one command until it ends, or the worker says so, or is gone. `children`: a pipe that can
    be read when a process has ended.
    """
    with locked(request["lock"]):
        try:
            command = Command(request)
        except (OSError, ValueError) as error:
            report(error=getattr(error, "strerror", None) or str(error))
            return
        try:
            report(started=command.pid)
            while command.exit_status is None:
                ready, _, _ = select.select([CONTROL, children], [], [])
                if CONTROL in ready:
                    break
                os.read(children, 512)
                command.reap()
        finally:
            command.end()
    report(exit_status=command.exit_status)


def requests() -> Iterator[dict[str, Any]]:
    """What the worker asks for, one after the other. A line that ends a command which has just
    ended by itself is passed over.
    """
    with open(CONTROL, "rb", buffering=0, closefd=False) as control:
        while line := control.readline():
            if (request := json.loads(line)) is not None:
                yield request


def stop(_number: int, _frame: object) -> None:
    """Asked to end, as when the machine is shut down."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def main() -> None:
    if os.fork():
        os._exit(0)  # so that the worker is this process's parent no more
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP):  # which the worker ignores, and commands need not
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, stop)
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    with suppress(BrokenPipeError):  # the worker is gone
        for request in requests():
            run(request, ended)


if __name__ == "__main__":
    main()
