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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

import cloudpickle

from ..errors import UserError

MOST_JSON = 64 * 2**20  # bytes of what a worker says; a record with its traceback has thousands
MOST_BYTES = 2**36  # of a curve, a checkpoint or a state: 64 GiB
# Without a byte from the other side for so long it counts as gone: a host that vanished says
# nothing. A worker that has nothing to say says so, SECONDS_BETWEEN_SIGNS apart.
SECONDS_OF_SILENCE = 60.0
SECONDS_BETWEEN_SIGNS = 10.0
# A stranger has so long to show that it knows the key, and may send no more than the 256 bytes that
# `multiprocessing` reads of an answer.
SECONDS_TO_SHOW_THE_KEY = 10.0
KEY, KEY_FILE = "TUNEWRIGHT_KEY", "TUNEWRIGHT_KEY_FILE"  # environment variables
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

    def hear(self) -> Any:
        return pickle.loads(self._connection.recv_bytes())

    # --- a driver's side --------------------------------------------------------------------------

    def tell(self, what: object) -> None:
        content = cloudpickle.dumps(what)
        with self._writing:
            self._connection.send_bytes(content)

    def listen(self) -> Said:
        """Raises WireError for what is not a message."""
        try:
            values = json.loads(self._connection.recv_bytes(MOST_JSON))
            kind, count = str(values.pop("kind")), int(values.pop("parts"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WireError("is no message of a worker") from error
        return Said(kind, values, [self._connection.recv_bytes(MOST_BYTES) for _ in range(count)])

    def close(self) -> None:
        """End the connection, also where another thread waits for it."""
        try:
            with socket.socket(fileno=os.dup(self._connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended already
            pass


def pair() -> tuple[Wire, socket.socket]:
    """A driver's side, and the socket of a worker's side, to be inherited by a process."""
    ours, theirs = socket.socketpair()
    return Wire(Connection(ours.detach())), theirs


def inherited(descriptor: int) -> Wire:
    return Wire(_closed_in_forks(Connection(descriptor)))


def _closed_in_forks(connection: Connection) -> Connection:
    """A process that is forked off would keep the connection open after this one has ended."""
    os.register_at_fork(after_in_child=connection.close)
    return connection


def accepted(end: socket.socket, key: bytes | None) -> Wire:
    """A driver's side of a connection that came in, once the other side has shown the key.

    Raises WireError, EOFError or OSError if it does not.
    """
    connection = Connection(end.detach())
    _wait_at_most(connection, SECONDS_TO_SHOW_THE_KEY)
    with _closed_on_error(connection, "does not know the key"):
        if key is not None:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
        _wait_at_most(connection, SECONDS_OF_SILENCE)
    return Wire(connection)


def connect(host: str, port: int, key: bytes | None) -> Wire:
    """A worker's side of a new connection.

    Raises WireError if the driver has another key, EOFError or OSError if there is none.
    """
    end = socket.create_connection((host, port), timeout=SECONDS_OF_SILENCE)
    end.settimeout(None)
    connection = Connection(end.detach())
    _wait_at_most(connection, SECONDS_OF_SILENCE)
    with _closed_on_error(connection, "the driver has another key"):
        if key is not None:
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
        _wait_at_most(connection, 0.0)  # a driver says nothing while a worker trains
    return Wire(_closed_in_forks(connection))


@contextmanager
def _closed_on_error(connection: Connection, wrong_key: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        connection.close()
        if isinstance(error, AuthenticationError | ValueError | AssertionError):
            raise WireError(wrong_key) from error  # the last two where it sent something else
        raise


def _wait_at_most(connection: Connection, seconds: float) -> None:
    """Let every read and write fail that waits longer; 0 waits for ever."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, direction, limit)
        # a host that vanished acknowledges nothing
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SECONDS_OF_SILENCE * 1000))


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
