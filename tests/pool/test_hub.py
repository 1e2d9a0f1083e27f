"""Who holds which point: workers that are scripted, and train nothing, over real connections."""

import json
import math
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from stored import feasible, point, small_study

from tunewright.search.errors import UnfinishedError, warn_once
from tunewright.search.pool import hub as hub_module
from tunewright.search.pool.backend import TaskResult, WorkerBack, WorkerInfo, WorkerLost
from tunewright.search.pool.hub import Abandon, Farewell, Hub, Sign, Welcome
from tunewright.search.pool.wire import MOST_JSON, Wire, pair
from tunewright.search.pool.worker import Choice, Job, Task
from tunewright.search.train.execution import ALONE

SILENCE = 0.04  # seconds; a hub waits half of it before it says that there is nothing to do
BASE_LR, BEST = 0.1, 0.2


class Peer:
    """The other end of a hub's wire: says what a test makes it say."""

    def __init__(self, hub, name="w", says_hello=True, host="here"):
        ours, theirs = pair()
        self.connection = Connection(theirs.detach())
        self.wire, self.name = Wire(self.connection), name
        self.end = hub.serve(ours)
        self.taken, self.begun = {}, set()
        info = WorkerInfo(name, host, "cpu", {"torch": "2"}, "x86_64 AVX2")
        if says_hello:
            assert isinstance(self.ask("hello", **asdict(info)), Welcome)

    def ask(self, kind, *parts, **values):
        self.wire.say(kind, *parts, **values)
        while isinstance(heard := self.wire.hear(), Sign):
            pass
        return heard

    def take(self, most):
        points, has_more = self.ask("take", most=most)
        self.taken |= {one.number: one for one in points}
        return [one.number for one in points], has_more

    def begin(self, number):
        state = self.ask("begin", number=number)
        self.begun.add(number)
        return state

    def say_post(self, number):
        record = feasible(number, BASE_LR, BEST).record()
        self.wire.say("post", b"curve", b"best", number=number, record=record, updates=100)

    def post(self, number):
        self.say_post(number)
        assert self.wire.hear() is True
        self.forget(number)

    def forget(self, number):
        del self.taken[number]
        self.begun.discard(number)

    def lose(self):
        """End the connection; what it had taken and begun is still known here."""
        self.wire.close()
        self.connection.close()
        assert self.end.is_gone.wait(10)

    def leave(self):
        self.wire.say("leave")
        assert self.end.is_gone.wait(10)

    def comes_back(self, hub):
        """Another connection of the same worker, which knows what it had taken and begun."""
        back = Peer(hub, self.name)
        back.taken, back.begun = self.taken, self.begun
        return back

    def again(self, task):
        points = [one.record() for one in self.taken.values()]
        key = task.job.key
        return self.ask("again", study=key, points=points, begun=sorted(self.begun))


def at_work(hub, name="w", takes=1, begins=None):
    """A worker that has asked for a task, taken so many of its points, and begun one of them."""
    peer = Peer(hub, name)
    peer.ask("ask")
    peer.take(takes)
    if begins is not None:
        peer.begin(begins)
    return peer


@pytest.fixture
def hub():
    warn_once.cache_clear()
    return Hub(silence=SILENCE)


@pytest.fixture
def make_task(tmp_path):
    def make(count=4, batch_size=32, name="inbox"):
        inbox = tmp_path / name
        inbox.mkdir(exist_ok=True)
        points = [point(number, BASE_LR, batch_size) for number in range(count)]
        return Task(small_study(), inbox, points, ALONE)

    return make


def lost(events):
    """Points that a hub said were lost."""
    found = [event for event in events if isinstance(event, WorkerLost)]
    return [[one.number for one in event.in_training] for event in found]


def over(events):
    return [event.task for event in events if isinstance(event, TaskResult)]


def posted(task):
    """Numbers of the points whose records are in an inbox."""
    records = [json.loads(path.read_text()) for path in task.inbox.glob("*.json")]
    return sorted(record["point"]["number"] for record in records)


# --- one thing at a time --------------------------------------------------------------------------


def test_points_are_given_out_once_and_a_task_ends_with_its_last_trial(hub, make_task):
    task = make_task(3)
    hub.submit(task)
    first, second = Peer(hub, "a"), Peer(hub, "b")
    jobs = [peer.ask("ask") for peer in (first, second)]
    assert jobs == [task.job] * 2
    assert all(isinstance(job, Job) for job in jobs)
    assert first.take(1) == ([0], True)
    assert second.take(1) == ([1], True)
    assert first.take(1) == ([2], False)
    assert second.take(1) == ([], False)
    for peer, number in ((first, 0), (second, 1), (first, 2)):
        assert hub.wait(0) == []
        assert peer.begin(number) is None
        peer.post(number)
    assert over(hub.wait(0)) == [task]
    assert posted(task) == [0, 1, 2]
    assert first.ask("ask") is None


def test_the_last_points_are_shared_by_those_who_are_there(hub, make_task):
    hub.submit(make_task(10))
    peers = [Peer(hub, name) for name in "abc"]
    for peer in peers:
        peer.ask("ask")
    taken = [len(peer.take(8)[0]) for peer in peers]
    assert taken == [4, 4, 2]
    assert peers[0].take(100)[0] == []


def test_workers_that_still_start_have_their_share(hub, make_task):
    hub._expect(4)
    hub.submit(make_task(8))
    peer = Peer(hub)
    peer.ask("ask")
    assert len(peer.take(8)[0]) == 2


def test_a_connection_that_said_no_hello_has_no_share(hub, make_task):
    strangers = [Peer(hub, says_hello=False) for _ in range(5)]
    hub.submit(make_task(8))
    peer = Peer(hub)
    peer.ask("ask")
    assert len(peer.take(8)[0]) == 8
    assert not any(one.end.is_gone.is_set() for one in strangers)


def test_what_was_taken_and_not_begun_goes_back_and_what_was_begun_is_told(hub, make_task):
    task = make_task(4)
    hub.submit(task)
    first = at_work(hub, "a", takes=3, begins=1)
    first.lose()
    assert hub.wait(0) == [WorkerLost(task, [task.points[1]])]
    second = Peer(hub, "b")
    second.ask("ask")
    assert second.take(4) == ([0, 2, 3], False)
    for number in (0, 2, 3):
        second.post(number)
    assert over(hub.wait(0)) == [task]


def test_a_worker_that_began_nothing_is_not_suspected(hub, make_task):
    hub.submit(make_task(2))
    first = at_work(hub, "a", takes=2)
    first.lose()
    assert hub.wait(0) == []
    second = Peer(hub, "b")
    second.ask("ask")
    assert second.take(2)[0] == [0, 1]


def test_a_worker_that_leaves_in_order_gives_all_back_and_nothing_is_suspected(hub, make_task):
    hub.submit(make_task(2))
    first = at_work(hub, "a", takes=2, begins=0)
    first.ask("save", b"a state", number=0)
    first.leave()
    assert hub.wait(0) == []
    second = Peer(hub, "b")
    second.ask("ask")
    assert second.take(2)[0] == [0, 1]
    assert second.begin(0) == b"a state"  # which has travelled


def test_the_state_of_a_lost_point_is_there_for_the_next_task(hub, make_task):
    task = make_task(1)
    hub.submit(task)
    first = at_work(hub, "a", takes=1, begins=0)
    first.ask("save", b"a state", number=0)
    first.lose()
    assert [type(event) for event in hub.wait(0)] == [WorkerLost, TaskResult]
    hub.submit(make_task(1))
    second = at_work(hub, "b", takes=1)
    assert second.begin(0) == b"a state"


def test_after_a_cut_a_worker_goes_on_with_what_it_had_taken(hub, make_task):
    task = make_task(4)
    hub.submit(task)
    peer = at_work(hub, "a", takes=2, begins=0)
    peer.lose()
    assert lost(hub.wait(0)) == [[0]]
    again = peer.comes_back(hub)
    assert again.again(task) is None
    assert hub.wait(0) == [WorkerBack(task, [task.points[0]])]
    other = Peer(hub, "b")
    other.ask("ask")
    assert other.take(4)[0] == [2, 3]
    again.post(0)
    again.post(1)
    assert again.take(4)[0] == []
    other.post(2)
    other.post(3)
    assert over(hub.wait(0)) == [task]


def test_a_worker_that_comes_back_before_its_end_was_seen_takes_over_from_itself(hub, make_task):
    task = make_task(2)
    hub.submit(task)
    peer = at_work(hub, "a", takes=2, begins=0)
    again = peer.comes_back(hub)  # the driver's side of the other connection is still open
    assert peer.end.is_gone.is_set()
    assert again.again(task) is None
    assert [type(event) for event in hub.wait(0)] == [WorkerLost, WorkerBack]
    again.post(0)
    again.post(1)
    assert over(hub.wait(0)) == [task]
    assert len(hub.workers()) == 1


def test_a_trial_whose_answer_was_lost_is_handed_in_once_more_and_counts_once(hub, make_task):
    task = make_task(2)
    hub.submit(task)
    peer = at_work(hub, "a", takes=2, begins=0)
    peer.say_post(0)
    assert peer.wire.hear() is True
    peer.lose()  # as if it had not heard
    assert hub.wait(0) == []
    again = peer.comes_back(hub)
    assert again.again(task) is None
    assert hub.wait(0) == []  # nobody suspects what nobody lost
    again.post(0)
    again.post(1)
    assert over(hub.wait(0)) == [task]
    assert posted(task) == [0, 1]


def test_a_worker_waits_for_a_driver_that_has_just_begun_to_plan_its_task(make_task):
    hub = Hub(silence=20.0)
    task = make_task(2)
    peer = Peer(hub, "a")
    peer.taken, peer.begun = {0: task.points[0]}, {0}
    hub.submit(Choice(task.study, task.points, 1, "cpu", None, None))
    threading.Timer(0.2, hub.submit, [task]).start()
    assert peer.again(task) is None
    peer.post(0)
    assert peer.take(2)[0] == [1]


@pytest.mark.parametrize("case", ["over", "other study", "others train it", "other point"])
def test_what_is_no_longer_wanted_is_abandoned(hub, make_task, case):
    task = make_task(2)
    peer = Peer(hub, "a")
    peer.taken, peer.begun = {0: task.points[0]}, {0}
    if case == "others train it":
        hub.submit(task)
        other = Peer(hub, "b")
        other.ask("ask")
        other.take(1)
    if case == "other study":
        hub.submit(Task(small_study(seed=2), task.inbox, task.points, ALONE))
    if case == "other point":
        hub.submit(task)
        peer.taken = {0: point(0, 2 * BASE_LR)}
    assert isinstance(peer.again(task), Abandon)
    assert not peer.end.is_gone.is_set()


def test_after_a_stop_what_workers_say_of_their_tasks_is_answered_by_abandon(hub, make_task):
    hub.submit(make_task(3))
    peer = at_work(hub, "a", takes=1, begins=0)
    hub.stop()
    assert peer.wire.hear() == Farewell(comes_back=True, saves=False)
    requests = [("begin", {"number": 0}), ("take", {"most": 1})]
    for kind, values in requests:
        assert isinstance(peer.ask(kind, **values), Abandon)
    peer.say_post(0)
    assert isinstance(peer.wire.hear(), Abandon)
    assert hub.wait(0) == []
    task = make_task(2)
    hub.submit(task)
    assert peer.ask("ask") == task.job
    assert peer.take(2)[0] == [0, 1]


def test_two_tasks_are_performed_one_after_the_other_and_end_by_themselves(hub, make_task):
    one, two = make_task(2, 32, "one"), make_task(1, 64, "two")
    hub.submit(one)
    hub.submit(two)
    a, b = Peer(hub, "a"), Peer(hub, "b")
    assert a.ask("ask") == one.job
    a.take(1)
    assert b.ask("ask") == one.job
    b.take(1)
    b.ask("done")  # puts back what it took
    assert b.ask("ask") == one.job
    b.take(1)
    c = Peer(hub, "c")
    assert c.ask("ask") == two.job
    assert c.take(1)[0] == [0]
    record = feasible(0, BASE_LR, BEST, batch_size=64).record()
    c.ask("post", b"", b"", number=0, record=record, updates=1)
    assert over(hub.wait(0)) == [two]
    a.post(0)
    b.post(1)
    assert over(hub.wait(0)) == [one]


def choice_of(task):
    return Choice(task.study, task.points, 1, "cpu", None, None)


def test_a_choice_is_one_workers_and_ends_with_what_it_found(hub, make_task):
    asked = choice_of(make_task(3))
    hub.submit(asked)
    peer, other = Peer(hub, "a"), Peer(hub, "b")
    assert peer.ask("ask") == asked
    assert other.ask("ask") is None
    peer.ask("chosen", engine=asdict(ALONE))
    assert hub.wait(0) == [TaskResult(asked, ALONE)]


def test_a_choice_whose_worker_dies_ends_without_and_one_that_was_left_goes_on(hub, make_task):
    asked = choice_of(make_task(3))
    hub.submit(asked)
    peer = Peer(hub, "a")
    peer.ask("ask")
    peer.leave()
    assert hub.wait(0) == []
    peer = Peer(hub, "b")
    assert peer.ask("ask") == asked
    peer.lose()
    assert hub.wait(0) == [WorkerLost(asked, []), TaskResult(asked, None)]


def test_what_a_task_raises_is_raised_by_name_and_no_other_name_is_believed(hub, make_task):
    for name, kind in (("UnfinishedError", UnfinishedError), ("SystemExit", RuntimeError)):
        hub.submit(make_task(1))
        peer = Peer(hub, name)
        peer.ask("ask")
        peer.ask("failed", error=name, text="no luck")
        with pytest.raises(kind, match="no luck") as found:
            hub.wait(1)
        assert type(found.value) is kind
        hub.stop()


def test_a_full_disk_is_the_runs_failure(hub, make_task, monkeypatch):
    task = make_task(1)
    hub.submit(task)
    peer = at_work(hub, takes=1)
    shutil.rmtree(task.inbox)
    peer.say_post(0)
    assert isinstance(peer.wire.hear(), Abandon)
    with pytest.raises(UnfinishedError, match="cannot be written"):
        hub.wait(1)


def test_a_farewell_waits_for_nobody_who_cannot_hear_it(hub, make_task, monkeypatch):
    """A worker that was stopped while its driver told it something long."""
    monkeypatch.setattr(hub_module, "SECONDS_TO_SAVE", 0.5)
    hub.submit(make_task(1))
    peer = at_work(hub, takes=1)
    Peer(hub, "b")

    def tell():
        with suppress(OSError):
            peer.end.wire.tell(bytes(10**7))

    stuck = threading.Thread(target=tell, daemon=True)
    stuck.start()
    began = time.monotonic()
    hub.stop(saves=True)
    assert time.monotonic() - began < 3
    assert stuck.is_alive()
    peer.lose()
    stuck.join(10)


# --- a worker that says what it may not -----------------------------------------------------------

FOREIGN = {"number": 77}
MINE = {"number": 0}
RECORD = feasible(0, BASE_LR, BEST).record()
NONSENSE = {
    "an unknown kind": ("dance", {}, ()),
    "a kind of many letters": ("x" * 10**6, {}, ()),
    "begins a foreign point": ("begin", FOREIGN, ()),
    "begins no number": ("begin", {"number": [1]}, ()),
    "begins an endless number": ("begin", {"number": math.inf}, ()),
    "begins nothing": ("begin", {}, ()),
    "takes no number": ("take", {"most": {}}, ()),
    "saves without a state": ("save", MINE, ()),
    "posts a foreign point": ("post", FOREIGN | {"record": RECORD, "updates": 1}, (b"", b"")),
    "posts another point": (
        "post",
        MINE | {"record": feasible(1, BASE_LR, BEST).record(), "updates": 1},
        (b"", b""),
    ),
    "posts no record": ("post", MINE | {"record": [], "updates": 1}, (b"", b"")),
    "posts half a record": ("post", MINE | {"record": {"point": 1}, "updates": 1}, (b"", b"")),
    "posts without a curve": ("post", MINE | {"record": RECORD, "updates": 1}, ()),
    "posts without updates": ("post", MINE | {"record": RECORD}, (b"", b"")),
    "posts with odd updates": ("post", MINE | {"record": RECORD, "updates": "many"}, (b"", b"")),
    "refuses what is not its own": ("refuse", {"numbers": [0, 77]}, ()),
    "refuses no list": ("refuse", {"numbers": 5}, ()),
    "ends stacking of nothing": ("end_stacking", {"numbers": [], "reason": "r"}, ()),
    "asks of no point": ("why_alone", {"point": {"a": 1}}, ()),
    "is again with no points": ("again", {"study": "s", "points": 5, "begun": []}, ()),
    "is again with half a point": ("again", {"study": "s", "points": [{}], "begun": []}, ()),
    "began what it has not": ("again", {"study": "s", "points": [], "begun": [1]}, ()),
    "chose unasked": ("chosen", {"engine": asdict(ALONE)}, ()),
    "chose nonsense": ("chosen", {"engine": {"slots": "all"}}, ()),
    "failed without a word": ("failed", {}, ()),
    "says hello wrongly": ("hello", {"worker": 1, "host": 2}, ()),
    "says hello with odd versions": (
        "hello",
        {"worker": "w", "host": "h", "device": "cpu", "versions": 5, "cpu": "c"},
        (),
    ),
}


@pytest.mark.parametrize(("kind", "values", "parts"), NONSENSE.values(), ids=list(NONSENSE))
def test_nonsense_ends_its_connection_with_one_warning_and_the_task_goes_on(
    hub, make_task, caplog, kind, values, parts
):
    task = make_task(3)
    hub.submit(task)
    bad, good = Peer(hub, "bad", host="odd"), Peer(hub, "good")
    bad.ask("ask")
    bad.take(1)
    bad.begin(0)
    bad.wire.say(kind, *parts, **values)
    assert bad.end.is_gone.wait(10)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].message.startswith("worker on odd: it ")
    assert len(caplog.records[0].message) < 1_000
    finish_with(hub, task, good)


HEADS = {
    "no JSON": b"\x80\x04nonsense",
    "no object": b"[1, 2]",
    "no kind": b'{"parts": 0}',
    "no count": b'{"kind": "ask"}',
    "odd count": b'{"kind": "ask", "parts": "x"}',
    "a negative count": b'{"kind": "ask", "parts": -1}',
    "countless parts": b'{"kind": "ask", "parts": 1000000000}',
    "deep JSON": b"[" * 10**6,
    "huge JSON": b'{"kind": "ask", "parts": 0, "x": "' + b"x" * MOST_JSON + b'"}',
    "a huge number": b'{"kind": "take", "parts": 0, "most": 1' + b"0" * 10**5 + b"}",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_what_is_no_message_ends_its_connection_with_one_warning(hub, make_task, caplog, head):
    task = make_task(3)
    hub.submit(task)
    bad, good = Peer(hub, "bad", host="odd"), Peer(hub, "good")
    bad.ask("ask")
    bad.take(1)
    bad.begin(0)
    with suppress(OSError):  # the other side reads no more than it must
        bad.connection.send_bytes(head)
    assert bad.end.is_gone.wait(10)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    finish_with(hub, task, good)


def finish_with(hub, task, peer):
    """A worker trains what is left; the point that a bad one had begun is told as lost."""
    assert lost(hub.wait(0)) == [[0]]
    assert peer.ask("ask") == task.job
    while numbers := peer.take(8)[0]:
        for number in numbers:
            peer.post(number)
    assert over(hub.wait(0)) == [task]
    assert posted(task) == [1, 2]


def test_what_cannot_be_said_before_hello_is_not_heard(hub, make_task, caplog):
    hub.submit(make_task(1))
    stranger = Peer(hub, says_hello=False)
    stranger.wire.say("ask")
    assert stranger.end.is_gone.wait(10)
    assert caplog.records[0].message.startswith("worker on an unknown host: it did not say who")


# --- any order ------------------------------------------------------------------------------------


class Interleaved(RuleBasedStateMachine):
    """Workers that join, take, begin, post, vanish and come back, as a search strategy likes."""

    @initialize(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=2))
    def begin(self, sizes):
        self.folder = Path(tempfile.mkdtemp())
        self.hub, self.tasks = Hub(silence=SILENCE / 4), []
        for index, size in enumerate(sizes):
            inbox = self.folder / str(index)
            inbox.mkdir()
            points = [point(number, BASE_LR) for number in range(size)]
            study = small_study(seed=index)  # by which a worker that comes back finds its task
            self.tasks.append(Task(study, inbox, points, ALONE))
            self.hub.submit(self.tasks[-1])
        self.names = iter(range(10**6))
        self.peers = []  # connected
        self.gone = []  # cut off, with what they still hold
        self.lost = {id(task): set() for task in self.tasks}
        self.ended = []

    def some(self, data, peers):
        return data.draw(st.sampled_from(peers))

    @rule()
    def join(self):
        if len(self.peers) < 4:
            self.peers.append(Peer(self.hub, str(next(self.names))))
            self.peers[-1].task = None

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def ask(self, data):
        peer = self.some(data, self.peers)
        job = peer.ask("ask")
        peer.taken, peer.begun = {}, set()
        peer.task = next((task for task in self.tasks if job and task.job.key == job.key), None)

    @precondition(lambda self: any(peer.task for peer in self.peers))
    @rule(data=st.data(), most=st.integers(0, 4))
    def take(self, data, most):
        peer = self.some(data, [peer for peer in self.peers if peer.task])
        held = {n for one in self.peers if one.task is peer.task for n in one.taken}
        numbers, _ = peer.take(most)
        assert not held & set(numbers)

    @precondition(lambda self: any(peer.taken for peer in self.peers))
    @rule(data=st.data())
    def start(self, data):
        peer = self.some(data, [peer for peer in self.peers if peer.taken])
        peer.begin(data.draw(st.sampled_from(sorted(peer.taken))))

    @precondition(lambda self: any(peer.taken for peer in self.peers))
    @rule(data=st.data(), is_heard=st.booleans())
    def post(self, data, is_heard):
        peer = self.some(data, [peer for peer in self.peers if peer.taken])
        number = data.draw(st.sampled_from(sorted(peer.taken)))
        if is_heard:
            peer.post(number)
            return
        peer.say_post(number)
        assert peer.wire.hear() is True  # and as if this had not arrived
        self.cut(peer)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def lose(self, data):
        self.cut(self.some(data, self.peers))

    def cut(self, peer):
        peer.lose()
        self.peers.remove(peer)
        if peer.task:
            self.gone.append(peer)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def leave(self, data):
        peer = self.some(data, self.peers)
        peer.leave()
        self.peers.remove(peer)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def again(self, data):
        earlier = self.some(data, self.gone)
        self.gone.remove(earlier)
        peer = Peer(self.hub, earlier.name)
        peer.task, peer.taken, peer.begun = earlier.task, earlier.taken, earlier.begun
        if isinstance(peer.again(peer.task), Abandon):
            peer.task, peer.taken, peer.begun = None, {}, set()
        self.peers.append(peer)

    @rule()
    def wait(self):
        for event in self.hub.wait(0):
            if isinstance(event, TaskResult):
                self.ended.append(event.task)
                continue
            numbers = {one.number for one in event.in_training}
            own = self.lost[id(event.task)]
            if isinstance(event, WorkerLost):
                assert not numbers & own
                own |= numbers
            else:
                assert numbers <= own
                own -= numbers

    @invariant()
    def every_point_is_in_one_place(self):
        with self.hub._changed:
            for one in self.hub._tasks:
                held = [n for peer in self.hub._peers if peer.open is one for n in peer.taken]
                assert one.taken == len(held) == len(set(held))
                free = set(one.waiting)
                assert not free & set(held)
                assert not one.lost & (free | set(held))
                done = set(posted(one.task))
                assert free | set(held) | one.lost | done == set(one.points)
                assert not one.is_over

    def teardown(self):
        if not hasattr(self, "hub"):
            return
        try:
            self.finish()
        finally:
            shutil.rmtree(self.folder)

    def finish(self):
        """Whatever was before, a worker that stays trains the rest, and every task ends."""
        for peer in list(self.peers):
            peer.lose()
        last = Peer(self.hub, "last")
        while last.ask("ask"):
            last.taken = {}
            while numbers := last.take(8)[0]:
                for number in numbers:
                    last.post(number)
        last.lose()
        self.wait()
        assert sorted(map(id, self.ended)) == sorted(map(id, self.tasks))
        for task in self.tasks:
            numbers = {one.number for one in task.points}
            assert numbers - self.lost[id(task)] <= set(posted(task))
        assert self.hub.workers() == []


@pytest.mark.slow
def test_in_any_order_every_point_is_posted_or_told_as_lost_and_every_task_ends():
    run_state_machine_as_test(
        Interleaved,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
