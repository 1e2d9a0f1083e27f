"""Who may speak on a connection, for how long either side waits, and what a worker makes of it."""

import os
import pickle
import socket
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import pytest

from tunewright.search.errors import UserError
from tunewright.search.pool import wire as wire_module
from tunewright.search.pool.hub import Abandon, Sign, Welcome
from tunewright.search.pool.inbox import AbandonedError
from tunewright.search.pool.process import Line, LostError
from tunewright.search.pool.wire import (
    KEY,
    KEY_FILE,
    Wire,
    WireError,
    connect,
    from_socket,
    pair,
    read_key,
)

SECRET = b"0123456789abcdef"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.delenv(KEY_FILE, raising=False)


# --- the key --------------------------------------------------------------------------------------


@contextmanager
def driver(key, results):
    """A port at which one connection is asked for its key; what came of it is in `results`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            end, _ = listener.accept()
            wire = from_socket(end)
            try:
                wire.ask_for_key(key)
                results.append(wire)
                wire.tell("hello")
                results.append(wire.listen())
            except (WireError, EOFError, OSError) as error:
                results.append(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("key", [SECRET, None])
def test_both_sides_talk_where_they_have_the_same_key_or_none(key):
    results = []
    with driver(key, results) as port:
        wire = connect("127.0.0.1", port, key)
        assert wire.hear() == "hello"
        wire.say("post", b"curve", b"best", number=3)
    said = results[1]
    assert (said.kind, said.values, said.parts) == ("post", {"number": 3}, [b"curve", b"best"])


@pytest.mark.parametrize(
    ("drivers", "workers"),
    [(SECRET, b"x" * 16), (SECRET, None), (None, SECRET)],
    ids=["another", "the worker has none", "the driver has none"],
)
def test_another_key_is_a_sentence_on_both_sides_at_once(drivers, workers):
    results = []
    began = time.monotonic()
    with (
        driver(drivers, results) as port,
        pytest.raises(WireError, match="the driver has another key: both read it from TUNEWRIGHT"),
    ):
        connect("127.0.0.1", port, workers)
    assert time.monotonic() - began < 5
    assert str(results[0]) == "does not know the key"


def test_without_a_key_a_worker_trusts_this_machine_alone(monkeypatch):
    monkeypatch.setattr(wire_module, "is_this_machine", lambda address: False)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(WireError, match="is another machine, and needs a key"),
    ):
        connect("127.0.0.1", listener.getsockname()[1], None)


def test_addresses_of_this_machine_are_told_from_others():
    own = ["127.0.0.1", "127.8.0.1", "::1"]
    others = ["192.168.0.1", "8.8.8.8", "0.0.0.0", "::", "fe80::1%eth0"]
    assert all(map(wire_module.is_this_machine, own))
    assert not any(map(wire_module.is_this_machine, others))


def test_what_answers_and_is_no_driver_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(wire_module, "SECONDS_OF_SILENCE", 0.3)
    for greeting in (b"", b"SSH-2.0-OpenSSH\r\n" * 100, b"\0\0\0\x05hello"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            done = threading.Event()

            def greet(listener=listener, greeting=greeting, done=done):
                end, _ = listener.accept()
                with end:
                    end.sendall(greeting)
                    done.wait(10)

            thread = threading.Thread(target=greet, daemon=True)
            thread.start()
            began = time.monotonic()
            with pytest.raises((OSError, EOFError, WireError)):
                connect("127.0.0.1", listener.getsockname()[1], SECRET)
            assert time.monotonic() - began < 3
            done.set()
            thread.join(10)


@pytest.mark.parametrize("host", ["x" * 70, "a..b"])
def test_what_is_no_name_of_a_machine_is_a_sentence(host):
    with pytest.raises(WireError, match="is no name of a machine"):
        connect(host, 7777, SECRET)


def test_a_slow_stranger_has_no_more_time_than_a_silent_one(monkeypatch):
    monkeypatch.setattr(wire_module, "SECONDS_TO_SHOW_THE_KEY", 0.5)
    for pause in (0.1, 60.0):
        results = []
        with driver(SECRET, results) as port, socket.create_connection(("127.0.0.1", port)) as end:
            began, stop = time.monotonic(), threading.Event()

            def drip(end=end, stop=stop, pause=pause):
                with suppress(OSError):
                    end.sendall(b"\0\0\0\xff")
                    while not stop.wait(pause):
                        end.sendall(b"x")

            threading.Thread(target=drip, daemon=True).start()
            while not results and time.monotonic() - began < 10:
                time.sleep(0.01)
            stop.set()
        assert time.monotonic() - began < 3
        assert isinstance(results[0], EOFError | OSError)


def test_a_key_comes_from_a_file_of_its_owner_or_from_the_environment(tmp_path, monkeypatch):
    assert read_key() is None
    monkeypatch.setenv(KEY, SECRET.decode())
    assert read_key() == SECRET
    path = tmp_path / "key"
    path.write_bytes(b"another key of a file\n")
    path.chmod(0o600)
    monkeypatch.setenv(KEY_FILE, str(path))
    assert read_key() == b"another key of a file"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o611])
def test_a_key_file_that_others_can_use_is_refused(tmp_path, monkeypatch, mode):
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(mode)
    monkeypatch.setenv(KEY_FILE, str(path))
    with pytest.raises(UserError, match=f"others than its owner may use it: chmod 600 {path}"):
        read_key()


def test_a_key_that_is_short_or_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "short")
    with pytest.raises(UserError, match="TUNEWRIGHT_KEY: must have 16 characters or more: 5"):
        read_key()
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_key()
    monkeypatch.setenv(KEY_FILE, str(tmp_path))
    tmp_path.chmod(0o700)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_key()


# --- a worker's line ------------------------------------------------------------------------------


@pytest.fixture
def line():
    """A worker's line, and the driver's side of it."""
    ours, theirs = pair()
    wire = Wire(Connection(theirs.detach()))
    yield Line(wire), ours
    ours.close()


def answer(ours, *what):
    def serve():
        with suppress(EOFError, OSError):
            ours.listen()
            for one in what:
                ours.tell(one)

    threading.Thread(target=serve, daemon=True).start()


def test_a_request_is_answered_whatever_signs_come_between(line):
    own, ours = line
    answer(ours, Sign(), Sign(), "a job")
    assert own.request("ask") == "a job"
    answer(ours, Abandon())
    with pytest.raises(AbandonedError):
        own.request("ask")


class Missing:
    def __reduce__(self):
        return __import__, ("a_module_that_is_not_here",)


def test_what_cannot_be_read_here_is_raised_and_the_line_goes_on(line):
    own, ours = line
    answer(ours, Missing())
    with pytest.raises(WireError, match="cannot be read: ModuleNotFoundError"):
        own.request("ask")
    answer(ours, "a job")
    assert own.request("ask") == "a job"


def within(seconds, call):
    """What a call raises, which must not take longer."""
    raised = []

    def work():
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive()
    return raised[0]


def test_a_request_to_a_driver_that_dies_ends(line):
    own, ours = line
    threading.Timer(0.2, ours.close).start()
    assert isinstance(within(10, lambda: own.request("ask")), LostError)
    assert isinstance(within(10, lambda: own.request("ask")), LostError)  # and once more


def test_a_request_to_a_driver_that_ends_in_the_middle_of_a_message_ends(line):
    own, ours = line
    os.write(ours._connection.fileno(), b"\0\0\1\0half")
    ours.close()
    assert isinstance(within(10, lambda: own.request("ask")), LostError)


def test_a_request_to_a_driver_that_hangs_ends_after_the_silence(monkeypatch):
    """A host that vanished, or a process that was stopped: nothing comes, and nothing ends."""
    results = []
    with driver(SECRET, results) as port:
        wire = connect("127.0.0.1", port, SECRET)
        assert wire.hear() == "hello"
        wire.say("ask")
    wire.limit_silence(0.3)
    own = Line(wire)
    assert isinstance(within(10, lambda: own.request("ask")), LostError)
    assert len(results) == 2  # the other side had it open all the time


def test_a_request_that_nobody_reads_ends_after_the_silence():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own_end = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
        wire = from_socket(own_end)
        wire.limit_silence(0.3)
        own = Line(wire)
        error = within(10, lambda: own.request("post", bytes(10**8), number=1))
        assert isinstance(error, LostError)
        other.close()


def test_signs_keep_a_line_that_has_nothing_to_say():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own_end = socket.create_connection(listener.getsockname())
        other = from_socket(listener.accept()[0])
        own = Line(from_socket(own_end))

        def serve():
            other.listen()
            other.tell(Welcome(0.5))
            other.listen()
            for _ in range(12):
                time.sleep(0.1)
                other.tell_unless_busy(Sign())
            other.tell("late")

        threading.Thread(target=serve, daemon=True).start()
        assert own.request("hello") == Welcome(0.5)
        assert own.request("ask") == "late"
        assert isinstance(within(10, lambda: own.request("ask")), LostError)  # no more signs
        other.close()


def test_what_a_worker_says_is_never_unpickled():
    ours, theirs = pair()
    connection = Connection(theirs.detach())
    connection.send_bytes(pickle.dumps(Missing()))
    with pytest.raises(WireError, match="no message of a worker"):
        ours.listen()
    connection.close()
