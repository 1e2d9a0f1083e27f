"""Workers on other machines: the driver listens, and they come and go."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from ..errors import UserError, describe_error, warn_once
from . import wire
from .backend import WorkerInfo
from .hub import Farewell, Sign
from .local import Local
from .process import about_this_process
from .wire import KEY_FILE, Wire, WireError

# Connections at once that have not shown the key: the oldest is closed for one more, since a worker
# shows it at once.
MOST_STRANGERS = 256
SECONDS_WITHOUT_FILES = 0.5  # before it is tried again to accept a connection
WAITING = 1024  # connections that the system lets wait to be accepted


class Remote(Local):
    """A backend that listens for workers on other machines, beside its own on this one."""

    def __init__(self, host: str, port: int, key: bytes | None) -> None:
        """Raises UserError if it cannot listen there."""
        super().__init__(silence=wire.SECONDS_OF_SILENCE)
        self._key, self._workers_here = key, 0
        _allow_many_files()
        self._strangers: list[Wire] = []  # guarded by `_changed`
        self._accepting: threading.Thread | None = None
        self._is_closed = threading.Event()
        try:
            self._listener = _listener(host, port)
        except (OSError, UnicodeError) as error:  # the latter for what is no name of a machine
            reason = getattr(error, "strerror", None) or describe_error(error)
            raise UserError(f"--listen: {host}:{port} cannot be listened at: {reason}") from error
        if key is None and not wire.is_this_machine(self._listener.getsockname()[0]):
            self._listener.close()
            raise UserError(
                f"--listen: without a key only this machine may be listened to (127.0.0.1), got "
                f"{host}: write a key into a file that its owner alone may read, and name it in "
                f"{KEY_FILE}"
            )
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
            threading.Thread(target=self._give_signs, daemon=True).start()

    def close(self) -> None:
        """Let all workers end: what there was to train is done."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._is_closed.set()
        self._end(self._processes)
        with self._changed:
            peers = list(self._peers)
        self._say_farewell(Farewell(comes_back=False), awaited=peers)

    def _accept(self) -> None:
        while True:
            try:
                end, address = self._listener.accept()
            except OSError:
                if self._is_closed.wait(SECONDS_WITHOUT_FILES):
                    return
                continue  # this process has too many files open: some connection may end
            stranger = wire.from_socket(end)
            with self._changed:
                self._strangers.append(stranger)
                surplus = self._strangers[:-MOST_STRANGERS]
                del self._strangers[:-MOST_STRANGERS]
            for one in surplus:
                one.close()
            threading.Thread(target=self._admit, args=(stranger, address[0]), daemon=True).start()

    def _admit(self, stranger: Wire, host: str) -> None:
        try:
            stranger.ask_for_key(self._key)
            self.serve(stranger)
        except WireError as error:
            warn_once(f"a connection from {host} was refused: it {error}")
        except (EOFError, OSError):
            pass
        finally:
            with self._changed:
                if stranger in self._strangers:
                    self._strangers.remove(stranger)

    def _give_signs(self) -> None:
        while not self._is_closed.wait(self._silence / wire.SIGNS):
            with self._changed:
                peers = list(self._peers)
            for peer in peers:
                with suppress(OSError):
                    peer.wire.tell_unless_busy(Sign())

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


def _listener(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(WAITING)
    except OSError:
        listener.close()
        raise
    return listener


def _allow_many_files() -> None:
    """A connection is one open file, and by default a process may have 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
