"""A signal is answered at safe points alone, and never between two bytecodes of a library."""

import csv
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager, nullcontext

import pytest
import sqlalchemy
from stored import small_study

from tunewright.search import cli, signals
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.signals import defer_signals, interrupt_on_signal, stop_if_asked
from tunewright.search.workload.workload import load_workload

ROUNDS = 6


def send(number=signal.SIGINT):
    """The handler has run when this returns."""
    os.kill(os.getpid(), number)


@contextmanager
def handled_by(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


# --- a run on SQLite ------------------------------------------------------------------------------


@pytest.fixture
def at_statement():
    """Call something when a run has sent so many statements to its database."""
    asked = {"count": 0, "at": None, "call": None}

    def look(*_):
        asked["count"] += 1
        if asked["count"] == asked["at"]:
            asked["call"]()

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", look)
    yield asked
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", look)


def train(results):
    """Trained to its end, or up to a signal: the exception it ended with."""
    study = small_study(objective="val_loss", max_train_steps=10, evaluations=2)
    try:
        run_study(study, results=results, slots=1, progress=False, backend=InProcess())
    except KeyboardInterrupt as error:
        return error
    return None


def rows(results):
    with (results / "small" / "trials.csv").open(newline="") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def test_a_signal_in_the_middle_of_a_transaction_stops_the_run_elsewhere(tmp_path, at_statement):
    assert train(tmp_path / "whole") is None
    statements, wanted = at_statement["count"], rows(tmp_path / "whole")
    rng = random.Random(0)
    moments = sorted(rng.sample(range(1, statements + 1), ROUNDS))
    for moment in moments:
        at_statement.update(count=0, at=moment, call=send)
        results = tmp_path / str(moment)
        error = train(results)
        assert error is not None
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        assert not [name for name in files if "sqlalchemy" in name or "optuna" in name]
        at_statement["at"] = None
        assert train(results) is None
        assert rows(results) == wanted


# --- how signals are answered ---------------------------------------------------------------------


class Catches:
    """A workload that catches what interrupts its second loss: it goes on, or raises its own."""

    def __init__(self, inner, raises):
        self.inner, self.raises, self.calls = inner, raises, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def loss(self, model, batch):
        self.calls += 1
        try:
            if self.calls == 2:
                send()
        except BaseException as error:
            if self.raises:
                raise RuntimeError("wrapped") from error
        return self.inner.loss(model, batch)


@pytest.mark.parametrize("raises", [False, True])
def test_a_signal_that_a_workload_catches_stops_the_run_and_is_no_crash(
    tmp_path, monkeypatch, raises
):
    study = small_study(objective="val_loss", max_train_steps=200, evaluations=2)
    made = Catches(load_workload(study.workload, {}), raises)
    monkeypatch.setattr("tunewright.search.pool.worker.load_workload", lambda *_: made)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, results=tmp_path, slots=1, progress=False, backend=InProcess())
    assert rows(tmp_path) == []
    assert made.calls <= 100  # within the first trial


def test_a_signal_is_noted_and_raised_at_the_next_safe_point_once():
    with defer_signals():
        stop_if_asked()
        send()
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
        stop_if_asked()  # of what ends the work in order


def deferred(*calls):
    with defer_signals():
        for call in calls:
            call()


def test_the_end_is_a_safe_point_and_outside_nothing_is_deferred():
    passed = []
    with pytest.raises(KeyboardInterrupt):
        deferred(send, lambda: passed.append("inside"))
    assert passed == ["inside"]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        send()
    stop_if_asked()


def test_a_failure_is_not_hidden_by_a_signal():
    with pytest.raises(ZeroDivisionError):
        deferred(send, lambda: 1 / 0)


def test_a_second_signal_is_answered_as_outside():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        deferred(send, lambda: reached.append(1), send, lambda: reached.append(2))
    assert reached == [1]


def test_one_block_inside_another_leaves_the_answer_to_the_outer():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        deferred(lambda: deferred(send), lambda: reached.append(1))
    assert reached == [1]


def test_handlers_of_a_users_own_stay():
    seen = []
    with handled_by(signal.SIGTERM, lambda *_: seen.append("own")), defer_signals():
        send(signal.SIGTERM)
        stop_if_asked()
    assert seen == ["own"]


def test_in_another_thread_nothing_is_changed():
    found = []

    def work():
        with defer_signals():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_another_thread_takes_no_signal_from_the_main_one():
    raised, reached = [], []

    def work():
        try:
            stop_if_asked()
            with interrupt_on_signal():
                stop_if_asked()
        except KeyboardInterrupt as error:
            raised.append(error)

    def in_another_thread():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    with pytest.raises(KeyboardInterrupt):
        deferred(send, in_another_thread, lambda: reached.append(1), stop_if_asked)
    assert (raised, reached) == ([], [1])


def test_a_block_of_another_thread_interrupts_nothing_of_the_main_one():
    is_inside, may_end = threading.Event(), threading.Event()

    def work():
        with interrupt_on_signal():
            is_inside.set()
            may_end.wait()

    def send_meanwhile():
        try:
            send()
        finally:
            may_end.set()
            thread.join()

    thread = threading.Thread(target=work)
    reached = []
    with pytest.raises(KeyboardInterrupt):
        deferred(thread.start, is_inside.wait, send_meanwhile, lambda: reached.append(1))
    assert reached == [1]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["report", "r"], "Interrupted.\n"),
        (["check", "s.toml"], "Interrupted.\n"),
        (["new", "f"], "Interrupted.\n"),
        (
            ["run", "s.toml"],
            "Interrupted. Finished trials are kept; the same command goes on from here.\n",
        ),
    ],
)
@pytest.mark.parametrize("is_deferred", [False, True], ids=["at once", "at a safe point"])
def test_a_command_that_does_not_train_says_nothing_of_trials(
    words, wanted, is_deferred, monkeypatch, capfd
):
    def stopped(_options):
        with defer_signals() if is_deferred else nullcontext():
            send()

    monkeypatch.setattr(cli, f"_{words[0]}", stopped)
    monkeypatch.setattr(os, "_exit", sys.exit)
    try:
        status = cli.main(words)
    except SystemExit as error:
        status = error.code
    assert (status, capfd.readouterr().err) == (1, wanted)


def test_a_process_that_a_workload_forks_dies_of_a_signal_as_any_other():
    with defer_signals(), handled_by(signal.SIGTERM, signals.quit_at_once):
        child = os.fork()
        if child == 0:
            handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
            os._exit(handlers != [signal.default_int_handler, signal.SIG_DFL])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "later",
    [
        "os.kill(os.getpid(), 15)",
        "class Last:\n    __del__ = lambda _: kill(own, 15)\nlast = Last()",
    ],
    ids=["at once", "while Python takes itself apart"],
)
def test_a_signal_after_the_work_is_done_leaves_its_status(later):
    code = (
        "import os\nfrom tunewright.search.signals import end_at_once_with\n"
        f"kill, own = os.kill, os.getpid()\nend_at_once_with(3)\n{later}\nraise SystemExit(3)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", "")
