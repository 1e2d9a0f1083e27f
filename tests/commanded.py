"""`tunewright` as a user starts it, in a process of its own: shared by tests that interrupt it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def start(*arguments: object, cwd: Path, **environ: str) -> "subprocess.Popen[str]":
    """The command with its output caught; it hears Ctrl-C even where the shell ignores that."""
    return subprocess.Popen(
        [sys.executable, "-m", "tunewright.search.cli", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_until(
    condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 90
) -> None:
    """Until a condition holds, while the process goes on."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
