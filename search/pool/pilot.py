"""`tunewright worker`: keeps worker processes that train for a driver on another machine.

They end with it, whatever ends it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import joblib

from ..errors import UserError
from ..signals import COMES_BACK, SIGNALS
from ..train.choose import devices
from .errand import end_with_parent
from .hub import SECONDS_TO_SAVE
from .interpreter import command_of
from .process import REFUSED
from .wire import read_key

SECONDS_BETWEEN_LOOKS = 0.2
MOST_DEATHS = 3  # one after the other, of processes that lived less than SECONDS_OF_A_LIFE
SECONDS_OF_A_LIFE = 30.0


def run_pilot(
    host: str,
    port: int,
    workers: int | None,
    device: str | None,
    patience: float,
    folder: str | Path,
) -> int:
    """Have so many workers, by default one for each device or core, until `Pilot.run` returns.

    Raises UserError for a device that is not there, and for a key as `read_key`.
    """
    read_key()  # a mistake is said once, and not by each worker
    own = devices(device)
    count = workers or (joblib.cpu_count() if own[0] == "cpu" else len(own))
    each = [own[i % len(own)] for i in range(count)]
    return Pilot(host, port, each, patience, Path(folder)).run()


def main() -> NoReturn:
    """The program of a pilot that a cluster starts (`errand`)."""
    end_with_parent()
    try:
        status = run_pilot(**json.loads(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        status = REFUSED
    sys.exit(status)


class Pilot:
    """Starts worker processes, starts them again, and ends them."""

    def __init__(
        self, host: str, port: int, devices: Sequence[str], patience: float, folder: Path
    ) -> None:
        """A process for each of `devices`, which may name one more than once."""
        common = {"host": host, "port": port, "patience": patience, "folder": str(folder)}
        self._options = [
            common | {"device": device, "tells": i == 0} for i, device in enumerate(devices)
        ]
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._deaths = 0
        self._is_asked = False  # to end

    def run(self) -> int:
        """Until the driver needs no more workers (0), or none answers (1), or it refuses them (2),
        or a signal ends this program (COMES_BACK).
        """
        for number in SIGNALS:
            signal.signal(number, self._ask)
        waiting = set(range(len(self._options)))
        while waiting or self._running:
            for place in waiting:
                self._start(place)
            waiting = set()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if self._is_asked:
                self._end(signal.SIGTERM)
                return COMES_BACK
            for place, (child, began) in list(self._running.items()):
                status = child.poll()
                if status is None:
                    continue
                del self._running[place]
                if status in (1, REFUSED):
                    self._end(signal.SIGTERM)
                    return status
                if status != 0:
                    self._count_death(status, began)
                    waiting.add(place)
                if self._deaths >= MOST_DEATHS:
                    self._end(signal.SIGTERM)
                    print("error: worker processes die as soon as they start", file=sys.stderr)
                    return 1
        return 0

    def _count_death(self, status: int, began: float) -> None:
        is_early = status != COMES_BACK and time.monotonic() - began < SECONDS_OF_A_LIFE
        self._deaths = self._deaths + 1 if is_early else 0

    def _start(self, place: int) -> None:
        child = subprocess.Popen(
            command_of("errand", "be_worker", json.dumps(self._options[place])),
            stdin=subprocess.PIPE,  # by which it notices that this process has ended
            start_new_session=True,  # a terminal's Ctrl-C goes to this program alone
        )
        self._running[place] = child, time.monotonic()

    def _ask(self, _number: int, _frame: object) -> None:
        self._is_asked = True

    def _end(self, number: int) -> None:
        """Ask all to save and leave, and end those that do not within seconds."""
        for child, _ in self._running.values():
            child.send_signal(number)
        deadline = time.monotonic() + SECONDS_TO_SAVE + 1.0
        for child, _ in self._running.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
