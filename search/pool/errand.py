"""What a cluster runs for a driver: a call that starts a pilot (`pilot`) and waits for it.

The pilot is a process of its own: clusters call in threads, set up memory and signals as they like,
and end what they call by any means. It ends with the process that started it. Little is imported
here, so that a cluster's process that calls it stays small.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from dataclasses import dataclass, field

from .interpreter import command_of
from .wire import KEY, KEY_FILE

SECONDS_TO_END = 10.0  # for a pilot, which has its workers save what they train
# Set by Dask: memory is given back to the system after every update, which costs time.
UNWANTED = ("MALLOC_TRIM_THRESHOLD_", KEY_FILE)


@dataclass(frozen=True)
class Errand:
    """What a pilot has to know, for one worker, by value.

    number      differs for all that a driver sends: a cluster may take equal calls for one
    key         is never shown: clusters write what they call into logs
    device      torch devices, as "cuda" or "cuda:0,cuda:1": the worker takes the first
    patience    seconds for which a driver that does not answer is tried again
    folder      where runs of commands go
    directory   where the driver was started; the pilot is started there, if the machine has it
    """

    number: int
    host: str
    port: int
    key: str = field(repr=False)
    device: str
    patience: float
    folder: str
    directory: str


def run_errand(errand: Errand) -> int:
    """Start a pilot and wait for it; its exit status (`Pilot.run`)."""
    options = {
        "host": errand.host,
        "port": errand.port,
        "workers": 1,
        "device": errand.device,
        "patience": errand.patience,
        "folder": errand.folder,
    }
    inherited = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    child = subprocess.Popen(
        command_of("pilot", "main", json.dumps(options)),
        stdin=subprocess.PIPE,
        env={**inherited, KEY: errand.key},
        cwd=errand.directory if os.path.isdir(errand.directory) else None,
        start_new_session=True,
    )
    try:
        return child.wait()
    finally:  # the cluster may have interrupted the call
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()


def end_with_parent() -> None:
    """Ask this process to end, by SIGTERM, when the process that started it has ended.

    Its standard input must be a pipe that the other holds, and closes by its end, whatever that is.
    Nothing else can be read from there any more.
    """
    held = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)

    def wait() -> None:
        while os.read(held, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def be_worker() -> None:
    """The program of a worker process that a pilot starts."""
    end_with_parent()
    # only now: it takes seconds, in which the pilot may end
    from .process import main_elsewhere

    main_elsewhere()
