"""The wire between a driver and a worker: messages over a connection of `multiprocessing`.

What a worker says is a JSON object and bytes beside it, of which the driver never executes
anything. What a driver says is pickled: a worker runs what its driver asks for in any case.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import stat
import struct
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

import cloudpickle

from ..errors import UserError, describe_error

MOST_JSON = 16 * 2**20  # bytes of what a worker says; a record with its traceback has thousands
MOST_BYTES = 2**36  # of a curve, a checkpoint or a state: 64 GiB
MOST_PARTS = 2  # of one message: curve and checkpoint
# Without a byte from the other side for so long it counts as gone: a host that vanished, or a
# process that was stopped, says nothing. Who has nothing to say gives a sign, SIGNS in that time.
SECONDS_OF_SILENCE = 60.0
SIGNS = 6
SECONDS_TO_CONNECT = 10.0
# A stranger has so long to show that it knows the key, and no message of it is read that has more
# than 256 bytes (`multiprocessing.connection`).
SECONDS_TO_SHOW_THE_KEY = 10.0
KEY, KEY_FILE = "TUNEWRIGHT_KEY", "TUNEWRIGHT_KEY_FILE"  # environment variables
NO_KEY = b""  # where neither side has one; so a side that has is told at once
FEWEST_CHARACTERS = 16  # of a key


class WireError(Exception):
    """The other side said what it may not, or is not who it should be."""


@dataclass(frozen=True)
class Said:
    """What a worker said: values by name, and bytes."""

    kind: str
    values: Mapping[str, Any]
    parts: list[bytes]


class Wire:
    """One side of a connection. A connection that ends raises EOFError or OSError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._writing = threading.Lock()

    # --- a worker's side --------------------------------------------------------------------------

    def say(self, kind: str, *parts: bytes, **values: object) -> None:
        head = json.dumps({"kind": kind, "parts": len(parts), **values}).encode()
        with self._writing:
            self._connection.send_bytes(head)
            for part in parts:
                self._connection.send_bytes(part)

    def say_unless_busy(self, kind: str) -> None:
        """Say, unless something is being said for a while: then the other side hears that."""
        self._send_unless_busy(json.dumps({"kind": kind, "parts": 0}).encode(), seconds=1.0)

    def hear(self) -> Any:
        """Raises WireError for what this process cannot read."""
        content = self._connection.recv_bytes()
        try:
            return pickle.loads(content)
        except Exception as error:  # a module that is missing here raises what it likes
            raise WireError(
                f"what the driver says cannot be read: {describe_error(error)}"
            ) from error

    def show_key(self, key: bytes | None) -> None:
        """Show a driver that this side knows the key, and see that it does.

        Raises WireError if it has another, EOFError or OSError if it does not answer.
        """
        sentence = f"the driver has another key: both read it from {KEY_FILE} or {KEY}"
        with _handshake(self._connection, sentence) as other:
            answer_challenge(other, key or NO_KEY)
            deliver_challenge(other, key or NO_KEY)

    # --- a driver's side --------------------------------------------------------------------------

    def tell(self, what: object) -> None:
        content = cloudpickle.dumps(what)
        with self._writing:
            self._connection.send_bytes(content)

    def tell_unless_busy(self, what: object) -> None:
        """Tell, unless something is being told: then the other side hears that."""
        self._send_unless_busy(cloudpickle.dumps(what))

    def listen(self) -> Said:
        """Raises WireError for what is not a message."""
        try:
            values = json.loads(self._read(MOST_JSON))
            kind, count = str(values.pop("kind")), int(values.pop("parts"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WireError("said what is no message of a worker") from error
        if not 0 <= count <= MOST_PARTS:
            raise WireError(f"said that {count} parts follow")
        return Said(kind, values, [self._read(MOST_BYTES) for _ in range(count)])

    def ask_for_key(self, key: bytes | None) -> None:
        """See that a stranger knows the key, and show that this side does.

        Raises WireError, EOFError or OSError if it does not, in SECONDS_TO_SHOW_THE_KEY at most.
        """
        timer = threading.Timer(SECONDS_TO_SHOW_THE_KEY, self.close)
        timer.daemon = True
        timer.start()
        try:
            with _handshake(self._connection, "does not know the key") as other:
                deliver_challenge(other, key or NO_KEY)
                answer_challenge(other, key or NO_KEY)
        finally:
            timer.cancel()

    # --- both -------------------------------------------------------------------------------------

    def limit_silence(self, seconds: float) -> None:
        """Let every read and write fail that waits longer for the other side; 0 waits for ever."""
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        with self._socket() as end:
            for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                end.setsockopt(socket.SOL_SOCKET, direction, limit)
            # a host that vanished acknowledges nothing
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def close(self) -> None:
        """End the connection, also where another thread waits for it."""
        with suppress(OSError), self._socket() as end:  # it may have ended already
            end.shutdown(socket.SHUT_RDWR)

    def _send_unless_busy(self, content: bytes, seconds: float = 0.0) -> None:
        if self._writing.acquire(timeout=seconds):
            try:
                self._connection.send_bytes(content)
            finally:
                self._writing.release()

    def _socket(self) -> socket.socket:
        return socket.socket(fileno=os.dup(self._connection.fileno()))

    def _read(self, most: int) -> bytes:
        try:
            return self._connection.recv_bytes(most)
        except OSError as error:
            if not self._connection.readable:  # so it is after a message that is too long
                raise WireError(f"said more than {most} bytes") from error
            raise


def from_socket(end: socket.socket) -> Wire:
    """A side of a connection over TCP, which ends after SECONDS_OF_SILENCE."""
    end.settimeout(None)
    wire = Wire(Connection(end.detach()))
    wire.limit_silence(SECONDS_OF_SILENCE)
    return wire


def pair() -> tuple[Wire, socket.socket]:
    """A driver's side, and the socket of a worker's side, to be inherited by a process."""
    ours, theirs = socket.socketpair()
    return Wire(Connection(ours.detach())), theirs


def inherited(descriptor: int) -> Wire:
    return closed_in_forks(Wire(Connection(descriptor)))


def closed_in_forks(wire: Wire) -> Wire:
    """A process that is forked off would keep the connection open after this one has ended."""
    known = weakref.ref(wire)

    def close() -> None:
        if found := known():
            found._connection.close()

    os.register_at_fork(after_in_child=close)
    return wire


def connect(host: str, port: int, key: bytes | None) -> Wire:
    """A worker's side of a new connection.

    Raises WireError if the driver has another key, or if there is none and the driver is on another
    machine; EOFError or OSError if nobody answers.
    """
    try:
        end = socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT)
    except UnicodeError as error:
        raise WireError(f"{host}: is no name of a machine") from error
    if key is None and not is_this_machine(end.getpeername()[0]):
        end.close()
        raise WireError(f"{host}: is another machine, and needs a key in {KEY_FILE} or {KEY}")
    wire = from_socket(end)
    wire.show_key(key)
    return closed_in_forks(wire)


def is_this_machine(address: str) -> bool:
    """Whether an IP address is one of those that no other machine can reach."""
    return ip_address(address.partition("%")[0]).is_loopback


@contextmanager
def _handshake(connection: Connection, wrong_key: str) -> Iterator[Connection]:
    """Close a connection at which the other side does not show what it should."""
    try:
        yield connection
    except BaseException as error:
        connection.close()
        if isinstance(error, AuthenticationError | ValueError | AssertionError):
            raise WireError(wrong_key) from error  # the last two where it sent something else
        raise


def read_key() -> bytes | None:
    """The key that driver and workers share; None if there is none.

    From the file that KEY_FILE names, which nobody but its owner may read, or from KEY. Raises
    UserError for a file that cannot be read or that others can, and for a key that is too short.
    """
    if name := os.environ.get(KEY_FILE):
        path = Path(name)
        try:
            mode = path.stat().st_mode
            key = path.read_bytes().strip()
        except OSError as error:
            raise UserError(f"{KEY_FILE}: {name}: cannot be read: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UserError(
                f"{KEY_FILE}: {name}: others than its owner may use it: chmod 600 {name}"
            )
        place = f"{KEY_FILE}: {name}"
    else:
        key, place = os.environb.get(KEY.encode(), b""), KEY
        if not key:
            return None
    if len(key) < FEWEST_CHARACTERS:
        raise UserError(f"{place}: must have {FEWEST_CHARACTERS} characters or more: {len(key)}")
    return key
