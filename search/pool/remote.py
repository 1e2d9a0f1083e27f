"""Workers on other machines: the driver listens, and they come and go."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from ..errors import UserError, warn_once
from .backend import WorkerInfo
from .hub import Farewell
from .local import Local
from .process import about_this_process
from .wire import KEY_FILE, WireError, accepted

# connections at once that have not shown the key: more are closed unheard
MOST_STRANGERS = 64
WAITING = 1024  # connections that the system lets wait to be accepted


class Remote(Local):
    """A backend that listens for workers on other machines, beside its own on this one."""

    def __init__(self, host: str, port: int, key: bytes | None) -> None:
        """Raises UserError if it cannot listen there."""
        super().__init__()
        self._key, self._workers_here = key, 0
        self._strangers = threading.BoundedSemaphore(MOST_STRANGERS)
        self._accepting: threading.Thread | None = None
        try:
            place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._listener = socket.socket(place[0], place[1])
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(place[4])
        except OSError as error:
            raise UserError(
                f"--listen: {host}:{port} cannot be listened at: {error.strerror}"
            ) from error
        found = self._listener.getsockname()[0]
        if key is None and not found.startswith("127.") and found != "::1":
            self._listener.close()
            raise UserError(
                f"--listen: without a key only this machine may be listened to (127.0.0.1), got "
                f"{host}: write a key into a file that its owner alone may read, and name it in "
                f"{KEY_FILE}"
            )
        self._listener.listen(WAITING)
        self._about_this = about_this_process("driver", "")

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def count(self, wanted: int | None, devices: Sequence[str]) -> int:
        """Of its own; 0 where only others train."""
        self._workers_here = wanted if wanted is not None else super().count(None, devices)
        return max(1, self._workers_here)

    def start(self, workers: int, sources: str, devices: Sequence[str]) -> None:
        super().start(min(workers, self._workers_here), sources, devices)
        if self._accepting is None:
            self._accepting = threading.Thread(target=self._accept, daemon=True)
            self._accepting.start()

    def close(self) -> None:
        """Let all workers end: what there was to train is done."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._say_farewell(Farewell(comes_back=False))
        self._end(self._processes)

    def _accept(self) -> None:
        while True:
            try:
                end, address = self._listener.accept()
            except OSError:  # it was closed
                return
            if not self._strangers.acquire(blocking=False):
                end.close()
                continue
            threading.Thread(target=self._admit, args=(end, address[0]), daemon=True).start()

    def _admit(self, end: socket.socket, host: str) -> None:
        try:
            self.serve(accepted(end, self._key))
        except WireError as error:
            warn_once(f"a connection from {host} was refused: it {error}")
        except (EOFError, OSError):
            pass
        finally:
            self._strangers.release()

    def _why_refused(self, info: WorkerInfo) -> str:
        ours, theirs = self._about_this.versions, info.versions
        if differing := [name for name in ours if ours[name] != theirs.get(name)]:
            name = differing[0]
            reason = (
                f"the worker on {info.host} has {name} {theirs.get(name)}, and the driver "
                f"{ours[name]}: both must be the same"
            )
            warn_once(f"{reason}; it was refused")
            return reason
        if info.cpu != self._about_this.cpu and info.device == "cpu":
            warn_once(
                f"the worker on {info.host} computes with {info.cpu}, this machine with "
                f"{self._about_this.cpu}: the last digits of its trials may differ"
            )
        return ""
