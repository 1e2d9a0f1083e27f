"""A driver that listens: who is let in, and what strangers cost it."""

import resource
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import asdict

import pytest
from stored import feasible, point, small_study

from tunewright.search.cli import main
from tunewright.search.errors import UserError, warn_once
from tunewright.search.pool import remote as remote_module
from tunewright.search.pool import wire as wire_module
from tunewright.search.pool.backend import TaskResult, WorkerLost
from tunewright.search.pool.hub import Farewell, Refusal, Sign, Welcome
from tunewright.search.pool.process import about_this_process
from tunewright.search.pool.remote import MOST_STRANGERS, Remote
from tunewright.search.pool.wire import WireError, connect
from tunewright.search.pool.worker import Task
from tunewright.search.train.execution import ALONE

SECRET = b"0123456789abcdef"
HERE = "127.0.0.1"
BASE_LR, BEST = 0.1, 0.2


class Worker:
    """A worker of another machine that does what a test says."""

    def __init__(self, remote, name="w", key=SECRET, **differs):
        self.wire = connect(HERE, port_of(remote), key)
        info = asdict(about_this_process(name, "cpu")) | differs
        self.welcome = self.ask("hello", **info)

    def ask(self, kind, *parts, **values):
        self.wire.say(kind, *parts, **values)
        while isinstance(heard := self.wire.hear(), Sign):
            pass
        return heard

    def train(self, task):
        """All that there is to do of a task."""
        while self.ask("ask") != task.job:
            pass
        while points := self.ask("take", most=1)[0]:
            number = points[0].number
            self.ask("begin", number=number)
            record = feasible(number, BASE_LR, BEST).record()
            self.ask("post", b"", b"", number=number, record=record, updates=1)


def port_of(remote):
    return int(remote.address.rpartition(":")[2])


@pytest.fixture
def listening():
    """Makes drivers that listen, and have no workers of their own."""
    warn_once.cache_clear()
    made = []

    def make(key=SECRET):
        made.append(Remote(HERE, 0, key))
        made[-1].count(0, ["cpu"])
        made[-1].start(0, "", ["cpu"])
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def task(tmp_path):
    (tmp_path / "inbox").mkdir()
    points = [point(number, BASE_LR) for number in range(3)]
    return Task(small_study(), tmp_path / "inbox", points, ALONE)


def events_until(remote, kind, seconds=20):
    found, end = [], time.monotonic() + seconds
    while not any(isinstance(event, kind) for event in found):
        assert time.monotonic() < end
        found += remote.wait(0.1)
    return found


def finish(remote, task):
    """A worker that joins now trains all, within seconds."""
    began = time.monotonic()
    remote.submit(task)
    Worker(remote, "good").train(task)
    assert [event.task for event in events_until(remote, TaskResult)] == [task]
    assert time.monotonic() - began < 10


# --- where it listens -----------------------------------------------------------------------------


def test_a_port_that_is_taken_is_a_sentence():
    with socket.create_server((HERE, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--listen: {HERE}:{port} .*Address already in use"):
            Remote(HERE, port, SECRET)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, "a..b", "203.0.113.7"])
def test_a_host_that_is_not_this_one_is_a_sentence(host):
    with pytest.raises(UserError, match=r"cannot be listened at: \S") as error:
        Remote(host, 0, SECRET)
    assert "\n" not in str(error.value)


def test_without_a_key_only_this_machine_is_listened_to(listening):
    with pytest.raises(UserError, match="without a key only this machine may be listened to"):
        Remote("0.0.0.0", 0, None)
    with pytest.raises(UserError, match="TUNEWRIGHT_KEY_FILE"):
        Remote("::", 0, None)
    remote = listening(key=None)
    assert isinstance(Worker(remote, key=None).welcome, Welcome)


def test_a_command_that_cannot_listen_ends_with_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(wire_module.KEY, raising=False)
    monkeypatch.delenv(wire_module.KEY_FILE, raising=False)
    main(["new", "mine"])
    capsys.readouterr()
    assert main(["run", "mine/study.toml", "--listen", "0.0.0.0:0"]) == 2
    assert "without a key only this machine" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv(wire_module.KEY, "short")
    for command in (["run", "mine/study.toml", "--listen", f"{HERE}:0"], ["worker", f"{HERE}:1"]):
        assert main(command) == 2
        assert "must have 16 characters or more" in capsys.readouterr().err


# --- who is let in --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["python", "torch", "tunewright"])
def test_another_version_is_refused_in_one_sentence(listening, caplog, name):
    remote = listening()
    versions = about_this_process("w", "cpu").versions | {name: "0.0.1"}
    refused = Worker(remote, versions=versions, host="old-host").welcome
    assert isinstance(refused, Refusal)
    assert f"the worker on old-host has {name} 0.0.1, and the driver " in refused.reason
    assert "\n" not in refused.reason
    assert [record.message for record in caplog.records] == [f"{refused.reason}; it was refused"]
    assert remote.workers() == []


def test_a_processor_that_rounds_otherwise_is_told(listening, caplog):
    remote = listening()
    assert isinstance(Worker(remote, cpu="abacus", host="old-host").welcome, Welcome)
    assert "old-host computes with abacus" in caplog.text


def test_another_key_is_told_once(listening, caplog, task):
    remote = listening()
    for key in (b"x" * 16, b"x" * 16, None):
        with pytest.raises(WireError, match="the driver has another key"):
            connect(HERE, port_of(remote), key)
    finish(remote, task)
    assert [record.message for record in caplog.records] == [
        f"a connection from {HERE} was refused: it does not know the key"
    ]


# --- strangers ------------------------------------------------------------------------------------


def peak_memory():
    """Bytes that this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_open(end):
    """Whether the other side of a connection still holds it."""
    end.setblocking(False)
    try:
        while content := end.recv(4096):
            assert content
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def test_silent_strangers_keep_nobody_out(listening, task):
    remote = listening()
    ends = [socket.create_connection((HERE, port_of(remote))) for _ in range(MOST_STRANGERS + 50)]
    finish(remote, task)
    assert sum(map(is_open, ends)) <= MOST_STRANGERS
    assert len(remote._strangers) <= MOST_STRANGERS
    for end in ends:
        end.close()


def test_strangers_are_gone_after_their_time(listening, monkeypatch):
    monkeypatch.setattr(wire_module, "SECONDS_TO_SHOW_THE_KEY", 0.5)
    remote = listening()
    ends = [socket.create_connection((HERE, port_of(remote))) for _ in range(5)]
    time.sleep(0.2)
    assert all(map(is_open, ends))
    time.sleep(1)
    assert not any(map(is_open, ends))
    assert remote._strangers == []
    for end in ends:
        end.close()


def flood(port, head, content, times):
    with suppress(OSError), socket.create_connection((HERE, port)) as end:
        end.sendall(head)
        for _ in range(times):
            end.sendall(content)


HEADS = {
    "no head": b"",
    "many bytes": struct.pack("!i", 2**31 - 1),
    "endless bytes": struct.pack("!iQ", -1, 2**63),
    "few bytes": struct.pack("!i", 255),
    "fewer than none": struct.pack("!i", -7),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_garbage_of_a_stranger_takes_no_memory_and_keeps_nobody_out(listening, task, head):
    remote = listening()
    content = bytes(range(256)) * 2**12  # 1 MiB
    flood(port_of(remote), head, content, 1)
    before = peak_memory()
    floods = [
        threading.Thread(target=flood, args=[port_of(remote), head, content, 50]) for _ in range(4)
    ]
    for one in floods:
        one.start()
    finish(remote, task)
    for one in floods:
        one.join(20)
    assert peak_memory() - before < 2**23


# --- those who are in -----------------------------------------------------------------------------


def test_a_worker_that_gives_no_sign_is_lost_and_one_that_does_is_not(listening, task, monkeypatch):
    monkeypatch.setattr(wire_module, "SECONDS_OF_SILENCE", 1.0)
    remote = listening()
    remote.submit(task)
    silent, other = Worker(remote, "silent"), Worker(remote, "other")
    assert silent.welcome == Welcome(1.0)
    for one, number in ((silent, 0), (other, 1)):
        one.ask("ask")
        one.ask("take", most=1)
        one.ask("begin", number=number)
    end = threading.Event()

    def give_signs():
        while not end.wait(0.2):
            other.wire.say_unless_busy("alive")

    thread = threading.Thread(target=give_signs, daemon=True)
    thread.start()
    time.sleep(2.5)
    lost = [event for event in remote.wait(0) if isinstance(event, WorkerLost)]
    assert [[one.number for one in event.in_training] for event in lost] == [[0]]
    assert [info.worker for info in remote.workers()] == ["other"]
    end.set()
    thread.join()


def test_the_driver_gives_signs_while_it_reads_what_takes_long(listening, task, monkeypatch):
    """A checkpoint that trickles in: the worker hears that the driver is there."""
    monkeypatch.setattr(wire_module, "SECONDS_OF_SILENCE", 1.0)
    remote = listening()
    remote.submit(task)
    worker = Worker(remote)
    worker.ask("ask")
    worker.ask("take", most=1)
    worker.ask("begin", number=0)
    connection = worker.wire._connection
    connection.send_bytes(b'{"kind": "save", "parts": 1, "number": 0}')
    with socket.socket(fileno=connection.fileno()) as end:
        end.sendall(struct.pack("!i", 12))
        signs = []

        def hear():
            while isinstance(heard := worker.wire.hear(), Sign):
                signs.append(heard)
            signs.append(heard)

        thread = threading.Thread(target=hear, daemon=True)
        thread.start()
        for _ in range(12):
            time.sleep(0.2)
            end.sendall(b"x")
        thread.join(10)
        assert signs[-1] is True
        assert len(signs) > 8
        end.detach()
    assert (task.inbox / next(iter(task.inbox.glob("*.state"))).name).read_bytes() == b"x" * 12


def test_at_the_end_every_worker_hears_a_farewell(listening):
    remote = listening()
    workers = [Worker(remote, str(i)) for i in range(3)]
    heard = []

    def listen(worker):
        while isinstance(one := worker.wire.hear(), Sign):
            pass
        heard.append(one)
        worker.wire.close()

    threads = [threading.Thread(target=listen, args=[one], daemon=True) for one in workers]
    for one in threads:
        one.start()
    began = time.monotonic()
    remote.close()
    assert time.monotonic() - began < 4
    for one in threads:
        one.join(10)
    assert heard == [Farewell(comes_back=False)] * 3


def test_a_worker_that_hangs_does_not_keep_the_driver_from_ending(listening, monkeypatch):
    monkeypatch.setattr(remote_module, "WAITING", 8)
    remote = listening()
    Worker(remote)
    began = time.monotonic()
    remote.close()
    assert time.monotonic() - began < 10
