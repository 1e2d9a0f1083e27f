"""A trial that was interrupted ends as if it had not been: from its saved state, or from its
start.
"""

import functools

import pytest
import torch
import zoo
from posted import work
from test_zoo import points, refusal, study

from tunewright.search.pool.inbox import read_inbox, saved_state
from tunewright.search.pool.worker import Task
from tunewright.search.train import loop
from tunewright.search.train.execution import ALONE
from tunewright.search.train.loop import train

pytestmark = pytest.mark.filterwarnings("ignore")  # of users' habits


class Interrupted(BaseException):
    pass


class Memory:
    """Keeps states; interrupts training after some savings."""

    def __init__(self, savings):
        self.savings, self.states, self.restored, self.again = savings, {}, 0, []

    def begin(self, point):
        state = self.states.get(point.number)
        self.restored += state is not None
        return state

    def save(self, point, state):
        self.states[point.number] = {name: tensor.clone() for name, tensor in state.items()}
        self.savings -= 1
        if self.savings == 0:
            raise Interrupted

    is_leaving = False

    def all_saved(self):
        """Nothing: it stays."""

    def start_again(self, point, reason):
        self.again.append(reason)


def trained(name, keeper=None):
    (one,) = train(study(name), zoo.make(name), points(name)[:1], keeper=keeper)
    return one


@functools.cache
def whole(name):
    return trained(name)


def interrupted(name):
    """A trial that was interrupted after its third saving, if it can be saved, and what its keeper
    saw.
    """
    memory = Memory(savings=3)
    try:
        return trained(name, memory), memory
    except Interrupted:
        return trained(name, memory), memory


@pytest.mark.parametrize("name", zoo.ZOO)
def test_an_interrupted_trial_equals_an_uninterrupted_one_to_the_last_bit(name, monkeypatch):
    if refusal(name):
        return
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    try:
        want = whole(name)
    except Exception as error:
        with pytest.raises(type(error)):
            interrupted(name)
        return
    got, _ = interrupted(name)
    assert got.trial.curve == want.trial.curve
    assert got.checkpoint.keys() == want.checkpoint.keys()
    assert all(torch.equal(got.checkpoint[key], tensor) for key, tensor in want.checkpoint.items())


@pytest.mark.parametrize(
    "name", ["Mlp", "BatchNorm", "Dropout", "NumpyInLoss", "ShufflingLoader", "Lstm", "Lazy"]
)
def test_what_can_be_put_back_is_not_trained_again(name, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    _, memory = interrupted(name)
    assert memory.restored == 1
    assert memory.again == []


@pytest.mark.parametrize(
    "name", ["AnnealsEarly", "AssignedBuffers", "CountsInTheWorkload", "CannotBePickled"]
)
def test_what_keeps_state_in_python_is_not_saved(name, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    _, memory = interrupted(name)
    assert memory.states == {} or name == "CannotBePickled"


def test_batches_that_come_in_another_order_are_noticed(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    _, memory = interrupted("ShufflingLoaderAndDropout")
    assert memory.again == ["its batches come in another order when they are drawn again"]


@pytest.mark.parametrize("left", [0, 7, 1000, -1])
def test_a_torn_state_is_named_and_the_trial_begins_anew(left, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunewright.search.pool.worker.load_workload", lambda *_: zoo.make("Mlp"))
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    task = Task(study("Mlp"), tmp_path, points("Mlp")[:1], ALONE)
    path = saved_state(tmp_path, "batch_size=24-00000")
    original = loop._Loop._save

    def save_and_stop(loop, keeper):
        original(loop, keeper)
        if loop.slots[0].step >= 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Loop, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        work(task)
    monkeypatch.setattr(loop._Loop, "_save", original)
    path.write_bytes(path.read_bytes()[:left])
    work(task)
    ((trial, _),) = read_inbox(tmp_path)
    assert trial.curve == whole("Mlp").trial.curve
    assert "the trial is trained from its start" in caplog.text
    assert not path.exists()


def test_a_state_that_an_earlier_release_saved_goes_on(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    memory = Memory(savings=3)
    with pytest.raises(Interrupted):
        trained("Mlp", memory)
    state = memory.states[0]
    assert {"state/m", "state/v"} <= state.keys()
    memory.states[0] = {name.removeprefix("state/"): tensor for name, tensor in state.items()}
    got = trained("Mlp", memory)
    assert memory.again == []
    assert got.trial.curve == whole("Mlp").trial.curve


def test_a_state_of_another_optimizer_is_named_and_the_trial_begins_anew(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    memory = Memory(savings=3)
    with pytest.raises(Interrupted):
        trained("Mlp", memory)
    del memory.states[0]["state/v"]
    got = trained("Mlp", memory)
    assert memory.again == ["saved state of another model: v"]
    assert got.trial.curve == whole("Mlp").trial.curve
