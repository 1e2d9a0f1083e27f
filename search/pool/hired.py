"""Workers that a cluster starts: any executor that takes calls, as those of Dask, Ray and Slurm.

A cluster is asked for one thing: to call `run_errand` on some machine. What it promises beside is
not relied on: some call again what has died, none can stop what runs. Workers come over the wire,
as all others do, and how many there are is kept here.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import UnfinishedError, UserError, describe_error, first_line
from ..signals import COMES_BACK
from ..store.places import RUNS
from .errand import Errand, run_errand
from .hub import Peer
from .process import REFUSED
from .remote import Remote
from .wire import KEY, Said, read_key

MOST_DEATHS = 3  # of a worker and those in its place, one after the other, that hand in nothing
# A worker that ended sooner is replaced only after a while: what ended it may end the next.
SECONDS_OF_A_LIFE = 30.0
SECONDS_TO_REPLACE = 5.0
# for which a worker tries to reach the driver, which listens before it asks for workers
PATIENCE = 30.0
SECONDS_TO_LEAVE = 5.0  # for workers that have heard that the run is over
EVERYWHERE = ("0.0.0.0", "::")  # addresses on which a driver can listen, and nobody can reach it


class Future(Protocol):
    """What is asked of a call that a cluster took."""

    def done(self) -> bool: ...
    def result(self) -> Any: ...
    def cancel(self) -> Any: ...


class Executor(Protocol):
    """What is asked of a cluster: of `concurrent.futures.Executor`, `submit` alone."""

    def submit(self, call: Callable[[Errand], int], errand: Errand, /) -> Future: ...


@dataclass(eq=False)
class _Place:
    """A worker that there should be, and the call that keeps it."""

    future: Future | None = None
    since: float = 0.0  # when it was asked for
    vacant_until: float = 0.0
    deaths: int = 0  # one after the other, without anything handed in by anybody


class Hired(Remote):
    """A backend whose workers an executor starts, on whatever machine, one with each call."""

    workers_come_back = False  # nobody else has the key

    def __init__(
        self,
        executor: Executor,
        listen: tuple[str, int] | None = None,
        near: str | None = None,
        device: str = "cpu",
        folder: Path = RUNS,
        name: str = "executor",
    ) -> None:
        """Raises UserError if it cannot listen, and for a key as `read_key`.

        listen   host and port at which workers reach the driver; by default a free port of an
                 address of this machine: that which it has towards the host `near`, the loopback
                 for executors of this machine, or else its host name
        device   torch device of each worker
        folder   where runs of commands go, on each worker's machine
        name     of the cluster, in messages
        """
        key = read_key() or secrets.token_hex(32).encode()
        if b"\0" in key:
            raise UserError(f"{KEY}: a cluster is handed a text: it must not have null characters")
        is_here = isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor)
        own, port = listen or (_own_address("127.0.0.1" if is_here else near), 0)
        super().__init__(own, port, key)
        self._host = socket.gethostname() if own in EVERYWHERE else own
        self._port = self._listener.getsockname()[1]
        self._executor, self._name = executor, name
        self._device, self._folder, self._key_text = device, folder, os.fsdecode(key)
        self._wanted_there = 0
        self._places: list[_Place] = []
        self._calls = 0
        self._handed_in = 0.0  # when a worker last did so

    @property
    def address(self) -> str:
        """Where workers reach this driver."""
        return f"{self._host}:{self._port}"

    def count(self, wanted: int | None, devices: Sequence[str]) -> int:
        if not wanted:
            raise UserError(f"workers: how many {self._name} starts must be said, got {wanted}")
        self._wanted_there = wanted
        return wanted

    def start(self, workers: int, sources: str, devices: Sequence[str]) -> None:
        """However many share a task: all workers are kept, as each may take long to come."""
        missing = (self._wanted_there or workers) - len(self._places)
        self._places += [_Place() for _ in range(missing)]
        super().start(workers, sources, devices)
        self._expect(workers)

    def stop(self, saves: bool = False) -> None:
        super().stop(saves)
        self._dismiss()

    def close(self) -> None:
        super().close()
        self._dismiss()

    def _fill(self) -> None:
        """Have a worker asked for in each place whose last one has ended."""
        super()._fill()
        for place in self._places:
            if place.future and place.future.done():
                self._vacate(place, place.future)
            if place.future is None and time.monotonic() >= place.vacant_until:
                place.since = time.monotonic()
                place.future = self._ask_for_one()

    def _ask_for_one(self) -> Future:
        self._calls += 1
        errand = Errand(
            number=self._calls,
            host=self._host,
            port=self._port,
            key=self._key_text,
            device=self._device,
            patience=PATIENCE,
            folder=str(self._folder),
            directory=os.getcwd(),
        )
        try:
            return self._executor.submit(run_errand, errand)
        except Exception as error:  # of whatever executor
            # the first is refused for what the user said; later ones for what happened there
            kind = UserError if self._calls == 1 else UnfinishedError
            raise kind(f"{self._name}: starts no worker: {first_line(error)}") from error

    def _vacate(self, place: _Place, future: Future) -> None:
        now = time.monotonic()
        place.future = None
        place.deaths = 0 if self._handed_in > place.since else place.deaths + 1
        if now - place.since < SECONDS_OF_A_LIFE:
            place.vacant_until = now + SECONDS_TO_REPLACE
        if place.deaths == MOST_DEATHS:
            raise UnfinishedError(
                f"{self._name}: {MOST_DEATHS} workers ended one after the other before anything "
                f"was trained, the last because {self._why_ended(future)}"
            )

    def _why_ended(self, future: Future) -> str:
        try:
            status = future.result()
        except BaseException as error:  # also a cancellation
            return f"its call raised {describe_error(error)}"
        known = {
            1: f"it could not reach this driver at {self.address}; name another of its addresses "
            "by --listen HOST:PORT, or see the worker's own log",
            REFUSED: "it was refused, or misses its device: see above, or the worker's own log",
            COMES_BACK: "it was told to end",
        }
        return known.get(status, f"it ended with status {status}")

    def _dismiss(self) -> None:
        """Wait a little for calls whose workers have heard, and cancel those that have none yet."""
        futures = [place.future for place in self._places if place.future]
        self._places = []
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        while time.monotonic() < deadline and not all(future.done() for future in futures):
            time.sleep(0.05)
        for future in futures:
            if not future.done():
                with suppress(Exception):  # of whatever executor; the worker ends by itself
                    future.cancel()

    def _post(self, peer: Peer, said: Said) -> bool:
        self._handed_in = time.monotonic()
        return super()._post(peer, said)

    def _save(self, peer: Peer, said: Said) -> bool:
        self._handed_in = time.monotonic()
        return super()._save(peer, said)


def _own_address(near: str | None) -> str:
    """The address of this machine from which it reaches a host; all of them, if there is none."""
    if near is None:
        return EVERYWHERE[0]
    try:
        place = socket.getaddrinfo(near, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(place[0], place[1]) as end:
            end.connect(place[4])  # of datagrams: nothing is sent
            return str(end.getsockname()[0])
    except OSError:
        return EVERYWHERE[0]
