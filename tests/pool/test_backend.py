"""Whoever trains, the verbs mean the same and the numbers are the same to the last bit."""

import csv
import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from examples import parse

from tunewright.search.cli import main
from tunewright.search.errors import UserError
from tunewright.search.pool import worker
from tunewright.search.pool.backend import TaskResult, WorkerLost
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.inbox import read_inbox
from tunewright.search.pool.local import Local
from tunewright.search.pool.worker import Choice, Task
from tunewright.search.run import run_study
from tunewright.search.store.storage import create_store
from tunewright.search.train.loop import ALONE, Engine
from tunewright.search.trial import Point

POINTS = [Point(i, 32, "adam", 10.0 ** (i - 4)) for i in range(2)]


def study(**changes):
    known = {
        "workload": "tunewright.models.digits:mlp",
        "objective": "val_loss",
        "max_train_steps": 10,
        "evaluations": 2,
        "batch_sizes": [32],
        "trials": 4,
        "space__warmup_steps": 0,
    }
    return parse(**(known | changes))


def task(inbox, **changes):
    return Task(study(**changes), inbox, POINTS, ALONE)


def ended(backend, *tasks, seconds=120):
    """The outcomes of tasks in the order in which they are over."""
    for one in tasks:
        backend.submit(one)
    found, deadline = [], time.monotonic() + seconds
    while len(found) < len(tasks):
        assert time.monotonic() < deadline
        found += backend.wait(0.2)
    return found


# --- the verbs, of every backend ------------------------------------------------------------------


class Contract:
    """What a driver may rely on. A later backend is another class below."""

    make: type

    @pytest.fixture
    def backend(self):
        backend = self.make()
        backend.start(1, "code", ["cpu"])
        yield backend
        backend.stop()

    def test_trials_are_in_the_inbox_when_their_task_is_over(self, backend, tmp_path):
        assert backend.wait(0.0) == []
        (over,) = ended(backend, task(tmp_path))
        assert over == TaskResult(task(tmp_path))
        assert sorted(trial.point.number for trial, _ in read_inbox(tmp_path)) == [0, 1]

    def test_a_choice_returns_an_engine(self, backend):
        (over,) = ended(backend, Choice(study(), POINTS, 1, "cpu", None, 1))
        assert over.engine == Engine(stacked=False, slots=1, reason="forced")

    def test_what_a_task_raises_is_raised_and_the_next_run_begins_anew(self, backend, tmp_path):
        with pytest.raises(Exception, match="cannot be written"):
            ended(backend, task(tmp_path / "nowhere"))
        backend.stop()
        backend.start(1, "code", ["cpu"])
        (over,) = ended(backend, task(tmp_path))
        assert isinstance(over, TaskResult)

    def test_after_a_stop_nothing_is_waited_for(self, backend, tmp_path):
        backend.submit(task(tmp_path))
        backend.stop()
        backend.start(1, "code", ["cpu"])
        assert backend.wait(0.0) == []


class TestLocal(Contract):
    make = Local

    def test_a_worker_that_dies_loses_what_it_had_begun_and_is_replaced(self, backend, tmp_path):
        long = task(tmp_path, max_train_steps=100_000)
        backend.submit(long)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.started")):
            assert time.monotonic() < deadline
            assert backend.wait(0.1) == []
        (process,) = backend._processes
        process.child.kill()
        (lost,) = backend.wait(20.0)
        assert lost == WorkerLost(long, POINTS[:1])
        while len(list(tmp_path.glob("*.started"))) < 2:  # the next worker begins the other one
            assert time.monotonic() < deadline + 60
            assert backend.wait(0.1) == []

    def test_a_worker_that_dies_before_it_trains_is_told_and_replaced(self, backend, tmp_path):
        (process,) = backend._processes
        process.child.kill()
        process.child.wait()
        assert backend.wait(0.0) == [WorkerLost(None)]
        (over,) = ended(backend, task(tmp_path))
        assert over == TaskResult(task(tmp_path))

    def test_workers_stay_for_the_next_start_unless_the_code_was_edited(self, backend):
        (first,) = backend._processes
        backend.start(2, "code", ["cpu"])
        assert backend._processes[0] is first
        backend.start(1, "code", ["cpu"])
        assert backend._processes == [first]
        backend.start(1, "edited", ["cpu"])
        assert backend._processes[0] is not first
        assert first.child.poll() is not None

    def test_devices_are_shared_out_in_turn(self, backend):
        backend.start(3, "code", ["cpu:0", "cpu:1"])
        assert sorted(one.device for one in backend._processes) == ["cpu:0", "cpu:0", "cpu:1"]

    def test_a_worker_never_hears_ctrl_c_not_even_while_it_starts(self, backend, tmp_path):
        backend.start(1, "other code, and so another process", ["cpu"])
        (process,) = backend._processes
        bits = unheard(process.child.pid)  # while it imports, or before
        ended(backend, task(tmp_path))
        for one in (signal.SIGINT, signal.SIGHUP):
            assert all(found & 1 << (one - 1) for found in (bits, unheard(process.child.pid)))

    def test_there_are_as_many_workers_as_wanted_or_one_for_each_device(self):
        assert Local().count(3, ["cpu"]) == 3
        assert Local().count(None, ["cuda:0", "cuda:1"]) == 2
        assert Local().count(None, ["cpu"]) >= 1


def unheard(pid):
    """The signals that a process blocks or ignores, a bit each."""
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["SigBlk"], 16) | int(lines["SigIgn"], 16)


class TestInProcess(Contract):
    make = InProcess

    def test_the_driver_is_back_after_each_trial(self, backend, tmp_path):
        backend.submit(task(tmp_path))
        seen = []
        while not backend.wait(0.0):
            seen.append(len(list(read_inbox(tmp_path))))
        assert seen == [1, 2]

    def test_more_than_one_worker_is_refused_before_anything_is_written(self, tmp_path):
        assert InProcess().count(None, ["cpu"]) == InProcess().count(1, ["cpu"]) == 1
        with pytest.raises(UserError, match="workers: must be 1 where this process trains, got 2"):
            run_study(study(), results=tmp_path, workers=2, backend=InProcess())
        assert not list(tmp_path.iterdir())

    def test_the_callers_state_is_as_it_was(self, backend, tmp_path, monkeypatch):
        original = worker.load_workload

        def load(*arguments):
            torch.set_default_dtype(torch.float64)  # as a workload may
            random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
            return original(*arguments)

        monkeypatch.setattr(worker, "load_workload", load)
        torch.set_num_threads(2)
        before = state()
        try:
            ended(backend, task(tmp_path))
            ended(backend, Choice(study(), POINTS, 1, "cpu", None, 2))
            assert state() == before
        finally:
            torch.set_num_threads(1)

    def test_a_default_dtype_that_the_caller_sets_holds_for_the_next_run(self, backend, tmp_path):
        choice = Choice(study(), POINTS, 1, "cpu", None, 2)
        found = []
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            try:
                backend.start(1, "code", ["cpu"])
                ended(backend, choice)
                ended(backend, task(tmp_path))
            finally:
                torch.set_default_dtype(torch.float32)
            found.append(backend._inside.dtype)
        assert found == [torch.float32, torch.float64, torch.float32]

    def test_a_default_dtype_that_a_workload_sets_as_it_is_imported_stays(
        self, backend, tmp_path, monkeypatch
    ):
        with monkeypatch.context() as importing:
            original = worker.load_workload

            def load(*arguments):
                torch.set_default_dtype(torch.float64)
                return original(*arguments)

            importing.setattr(worker, "load_workload", load)
            ended(backend, Choice(study(), POINTS, 1, "cpu", None, 2))
        assert torch.get_default_dtype() == torch.float32
        backend.start(1, "code", ["cpu"])  # to train
        ended(backend, task(tmp_path))
        assert backend._inside.dtype == torch.float64

    def test_workloads_are_loaded_anew_where_their_code_was_edited(self, backend):
        choice = Choice(study(), POINTS, 1, "cpu", None, 2)
        ended(backend, choice)
        (known,) = [pair[0] for pair in worker._KNOWN.values()]
        backend.start(1, "code", ["cpu"])
        assert [pair[0] for pair in worker._KNOWN.values()] == [known]
        backend.start(1, "edited", ["cpu"])
        assert not worker._KNOWN


def state():
    numpy = np.random.get_state()  # noqa: NPY002
    return (
        random.getstate(),
        [str(part) for part in numpy],
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
    )


def rows(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def test_both_backends_give_the_same_numbers_to_the_last_bit(tmp_path):
    a_study = study(trials=6, sampler="tpe", batch_sizes=[16])
    found = [
        run_study(a_study, results=tmp_path / name, slots=1, progress=False, **options)
        for name, options in (("a", {"backend": InProcess()}), ("b", {"workers": 1}))
    ]
    assert [trial.curve for trial in found[0]] == [trial.curve for trial in found[1]]
    assert rows(tmp_path / "a" / a_study.name) == rows(tmp_path / "b" / a_study.name)
    assert len(found[0]) == 6


# --- the command ----------------------------------------------------------------------------------

LINE = """
import itertools
import torch

class Line:
    calls = 0

    def build_model(self, seed):
        return torch.nn.Linear(1, 1)

    def train_batches(self, batch_size, seed):
        return itertools.repeat(torch.ones(batch_size, 1))

    def loss(self, model, batch):
        Line.calls += 1
        {in_loss}
        return ((model(batch) - 1) ** 2).mean()

    def evaluate(self, model):
        return {{"val": ((model(torch.ones(1, 1)) - 1) ** 2).mean()}}
"""
STUDY = """
workload = "debugged:Line"
objective = "val"
max_train_steps = {steps}
batch_sizes = [4]
trials = 3
evaluations = 2
[space.optimizer.sgd]
base_lr = {{ low = 1e-3, high = 0.1, log = true }}
"""


def written(folder, in_loss, steps=20):
    (folder / "debugged.py").write_text(LINE.format(in_loss=in_loss))
    (folder / "s.toml").write_text(STUDY.format(steps=steps))


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self, folder, *words):
        self.own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunewright.search.cli", *words],
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        os.close(theirs)
        self.text = ""

    def read_until(self, words, seconds=90):
        """What is shown up to these words, from where the last call ended."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.own], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.own, 10_000).decode()
                except OSError:  # it has ended
                    assert words in self.text, self.text
        before, _, self.text = self.text.partition(words)
        return before

    def type(self, line):
        os.write(self.own, f"{line}\n".encode())


def test_a_breakpoint_in_a_workload_is_a_debuggers_prompt_and_its_end_an_interruption(tmp_path):
    written(tmp_path, "if Line.calls == 60: breakpoint()")  # of the third trial, or so
    run = Terminal(tmp_path, "run", "s.toml", "--in-process", "--slots", "1")
    run.read_until("(Pdb) ")
    run.type("p 'calls', Line.calls + 0.5")
    assert "('calls', 60.5)" in run.read_until("(Pdb) ")
    time.sleep(1)  # until it waits: readline misses a signal that comes just before
    run.process.send_signal(signal.SIGINT)  # which at a prompt ends what is typed, and no run
    run.read_until("(Pdb) ")
    run.type("p 'still', Line.calls + 0.5")
    assert "('still', 60.5)" in run.read_until("(Pdb) ")
    run.type("q")
    shown = run.read_until("goes on from here.")
    assert run.process.wait(60) == 1
    assert "Traceback" not in shown
    assert "Exception" not in shown
    kept = (tmp_path / "runs" / "s" / "trials.csv").read_text().count("feasible")
    assert 1 <= kept < 3


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder whose modules can be imported in this process, and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("debugged", None)


def test_what_a_workload_prints_and_how_far_it_is_are_lines(here, capsys):
    written(here, "Line.calls == 60 and print('sixty')")
    assert main(["run", "s.toml", "--in-process", "--slots", "1"]) == 0
    out, err = capsys.readouterr()
    assert "sixty\n" in out
    assert "s: 1/3: 1 feasible, 0 infeasible\n" in err
    assert err.count("s: ") == 3
    environment = json.loads((here / "runs" / "s" / "environment.json").read_text())
    assert environment["workers"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_training_where_it_is_and_the_same_run_goes_on(here, capsys, number):
    kill = f"if Line.calls == 60: import os; os.kill(os.getpid(), {int(number)}); Line.calls = 1000"
    written(here, kill)
    status = main(["run", "s.toml", "--in-process", "--slots", "1"])
    assert status == (75 if number == signal.SIGTERM else 1)
    err = capsys.readouterr().err
    assert err.splitlines()[-1].endswith("goes on from here.")
    assert "Traceback" not in err
    assert sys.modules["debugged"].Line.calls == 60
    table = here / "runs" / "s" / "trials.csv"
    assert 1 <= table.read_text().count("feasible") < 3
    assert main(["run", "s.toml", "--in-process", "--slots", "1"]) == 0
    assert table.read_text().count("feasible") == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_is_lost_in_a_finalizer_stops_training_soon_after(here, capsys):
    """Python prints and forgets what a finalizer raises."""
    written(here, "if Line.calls == 60: Last()")
    source = (here / "debugged.py").read_text()
    last = "class Last:\n    def __del__(self):\n        import os; os.kill(os.getpid(), 2)\n"
    (here / "debugged.py").write_text(source + last)
    assert main(["run", "s.toml", "--in-process", "--slots", "1"]) == 1
    err = capsys.readouterr().err
    assert "Exception ignored" not in err
    assert 60 <= sys.modules["debugged"].Line.calls < 100


def test_workers_and_in_process_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["run", "s.toml", "--in-process", "--workers", "2"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_later_run_in_this_process_takes_the_same_store(tmp_path):
    backend = InProcess()
    first = run_study(study(), results=tmp_path, slots=1, progress=False, backend=backend)
    again = run_study(study(trials=6), results=tmp_path, slots=1, progress=False, backend=backend)
    assert again[:4] == first
    assert len(create_store(study(trials=6), tmp_path).optuna_studies[32].trials) == 6
