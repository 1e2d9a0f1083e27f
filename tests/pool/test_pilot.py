"""`tunewright worker`: whatever happens to it, to its driver or to what is between them, the table
is the one of an uninterrupted run, and no update is taken twice that need not be.
"""

import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from commanded import start, wait_until

STEPS, TRIALS = 300, 4
STUDY = f"""
workload = "long_line:Line"
objective = "val_loss"
max_train_steps = {STEPS}
batch_sizes = [4]
trials = {TRIALS}
[space.optimizer.momentum]
base_lr = {{ low = 1e-7, high = 1e-5, log = true }}
"""
# Every update is a line of a log: how many, and which process took them.
WORKLOAD = """
import itertools, os, time
import torch

class Line:
    def build_model(self, seed):
        return torch.nn.Sequential(torch.nn.Linear(2, 10_000), torch.nn.Linear(10_000, 1))

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in itertools.count():
            yield torch.randn(batch_size, 2, generator=generator)

    def loss(self, model, batch):
        time.sleep(0.004)
        with open(os.environ["UPDATES"], "a") as file:
            file.write(f"{os.getpid()}\\n")
        return ((model(batch) - batch.sum(1, keepdim=True)) ** 2).mean()

    def evaluate(self, model):
        inputs = torch.linspace(-1, 1, 20).reshape(10, 2)
        with torch.no_grad():
            return {"val_loss": ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()}
"""
KEY = "0123456789abcdefgh"
ALONE = ("--slots", "1")  # so that a trial's updates are the log's, and no clock decides
PATIENT = ("--patience", "60")
SECONDS = 120  # for a run on a busy machine
SECONDS_TO_STOP = 20  # for what takes five where nothing else runs

pytestmark = [pytest.mark.slow, pytest.mark.apart]


class Place:
    """A folder with a study, a port, and the programs that a test has started."""

    def __init__(self, folder):
        self.folder, self.updates, self.started = folder, folder / "updates.log", []
        (folder / "s.toml").write_text(STUDY)
        (folder / "long_line.py").write_text(WORKLOAD)
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]

    def start(self, *words, patch="", cwd=None, **environ):
        environ = {"TUNEWRIGHT_KEY": KEY, "UPDATES": str(self.updates)} | environ
        where = cwd or self.folder
        if patch:
            program = f"import sys; {patch}\nfrom tunewright.search.cli import run_program as go\n"
            process = subprocess.Popen(
                [sys.executable, "-c", f"{program}go()", *words],
                cwd=where,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | environ,
            )
        else:
            process = start(*words, cwd=where, **environ)
        self.started.append(process)
        return process

    def driver(self, **options):
        words = ("run", "s.toml", "--listen", f"127.0.0.1:{self.port}", "--workers", "0", *ALONE)
        return self.start(*words, **options)

    def worker(self, count=1, port=None, **options):
        driver = f"127.0.0.1:{port or self.port}"
        return self.start("worker", driver, "--workers", str(count), *PATIENT, **options)

    def taken(self):
        """The processes that took the updates so far, one for each update."""
        with suppress(FileNotFoundError):
            return [int(line) for line in self.updates.read_text().split()]
        return []

    def trained(self, *but):
        """How many updates workers took, without the driver's, which tries the workload."""
        return sum(pid not in [one.pid for one in but] for pid in self.taken())

    def rows(self):
        return rows(self.folder / "runs" / "s")

    def close(self):
        for process in self.started:
            own = [] if process.returncode is not None else [*children(process.pid), process.pid]
            for pid in own:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def rows(folder):
    """trials.csv without what may differ between two runs of the same study."""
    with (folder / "trials.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def children(pid):
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(process, seconds=SECONDS):
    """Exit status and what it said on stderr."""
    _, err = process.communicate(timeout=seconds)
    assert "Traceback" not in err, err
    return process.returncode, err


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def want(tmp_path_factory):
    """The table of an uninterrupted run of this machine's own workers."""
    place = Place(tmp_path_factory.mktemp("uninterrupted"))
    run = place.start("run", "s.toml", "--workers", "2", *ALONE)
    assert ended(run)[0] == 0
    assert place.trained(run) == TRIALS * STEPS
    return place.rows()


def until_in_training(place, *processes, updates=STEPS // 4):
    """Until so many updates were taken, and a trial is in the middle of its training."""
    wait_until(lambda: place.trained(*processes) >= updates, processes[0], SECONDS)


# --- they come and go -----------------------------------------------------------------------------


def test_a_worker_waits_for_its_driver_and_another_joins_in_the_middle(place, want):
    first = place.worker()
    time.sleep(1)
    run = place.driver()
    until_in_training(place, run)
    (own,) = children(first.pid)
    os.kill(own, signal.SIGSTOP)  # so that there is something left to do, however slow the other is
    second = place.worker()
    wait_until(lambda: len(set(place.taken()) - {run.pid}) == 2, run, SECONDS)
    os.kill(own, signal.SIGCONT)
    status, err = ended(run)
    assert status == 0, err
    assert [ended(one)[0] for one in (first, second)] == [0, 0]
    assert place.rows() == want
    assert place.trained(run) == TRIALS * STEPS
    assert len(set(place.taken()) - {run.pid}) == 2


@pytest.mark.parametrize("who", ["worker", "pilot"])
def test_a_worker_or_its_pilot_that_is_killed_loses_no_trial(place, want, who):
    run, pilot = place.driver(), place.worker(2)
    until_in_training(place, run)
    own = children(pilot.pid)
    assert len(own) == 2
    os.kill(own[0] if who == "worker" else pilot.pid, signal.SIGKILL)
    if who == "pilot":
        end = time.monotonic() + SECONDS_TO_STOP
        while any(map(is_running, own)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(is_running, own))  # they leave in order
        pilot = place.worker(2)
    status, err = ended(run)
    assert status == 0, err
    assert ended(pilot)[0] == 0
    assert place.rows() == want
    again = place.trained(run) - TRIALS * STEPS
    assert 0 <= again <= STEPS if who == "worker" else again == 0


def test_a_driver_that_is_killed_finds_its_workers_and_what_they_trained(place, want):
    run, pilot = place.driver(), place.worker(2)
    until_in_training(place, run)
    own = children(pilot.pid)
    run.kill()
    run.communicate()
    time.sleep(3)  # they go on
    assert place.trained(run) > STEPS // 4 + 50
    again = place.driver()
    status, err = ended(again)
    assert status == 0, err
    assert ended(pilot)[0] == 0
    assert place.rows() == want
    # the worker that is back first may be given what the other one has in training
    assert TRIALS * STEPS <= place.trained(run, again) <= (TRIALS + 1) * STEPS
    assert set(place.taken()) - {run.pid, again.pid} <= set(own)


SHORT_SILENCE = "import tunewright.search.pool.wire as wire; wire.SECONDS_OF_SILENCE = 3.0"


def test_a_worker_that_hangs_is_lost_and_comes_back(place, want):
    run, pilot = place.driver(patch=SHORT_SILENCE), place.worker(2)
    until_in_training(place, run)
    hung, other = children(pilot.pid)
    os.kill(hung, signal.SIGSTOP)
    time.sleep(4.5)
    before = place.taken().count(hung)
    os.kill(hung, signal.SIGCONT)
    status, err = ended(run)
    assert status == 0, err
    assert ended(pilot)[0] == 0
    assert place.rows() == want
    assert place.taken().count(hung) > before > 0
    assert place.taken().count(other) > 0
    # the trial that hung may have been given to the other worker meanwhile
    assert TRIALS * STEPS <= place.trained(run) <= (TRIALS + 1) * STEPS


# --- what is between them -------------------------------------------------------------------------


@contextmanager
def proxy(port, bytes_before_cut):
    """A port that leads to another, and cuts a connection after so many bytes of a worker's.

    One number for each connection; those that come later are not cut.
    """
    limits, cuts = list(bytes_before_cut), []

    def carry(source, target, limit):
        with suppress(OSError):
            while content := source.recv(4096):
                limit -= len(content)
                if limit < 0:
                    cuts.append(limit)
                    break
                target.sendall(content)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept(listener, open_ends):
        with suppress(OSError):
            while True:
                worker, _ = listener.accept()
                open_ends.append(worker)
                try:
                    driver = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    worker.close()
                    continue
                open_ends.append(driver)
                limit = limits.pop(0) if limits else 10**12
                for pair in ((worker, driver, limit), (driver, worker, 10**12)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    open_ends = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=[listener, open_ends], daemon=True)
        thread.start()
        yield listener.getsockname()[1], cuts
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    for one in open_ends:
        one.close()


def test_a_connection_that_is_cut_in_the_middle_of_a_checkpoint_costs_no_trial(place, want):
    run = place.driver()
    with proxy(place.port, [60_000, 100_000, 150_000]) as (port, cuts):
        pilot = place.worker(port=port)
        status, err = ended(run)
        assert status == 0, err
        assert ended(pilot)[0] == 0
    assert len(cuts) == 3
    assert place.rows() == want
    assert place.trained(run) == TRIALS * STEPS


# --- who is refused -------------------------------------------------------------------------------


def test_other_code_of_the_workload_is_refused_in_a_sentence_on_both_sides(place, want):
    other = place.folder / "other"
    other.mkdir()
    (other / "long_line.py").write_text(WORKLOAD.replace("0.004", "0.005"))
    run = place.driver()
    refused = place.worker(cwd=other)
    status, err = ended(refused)
    assert status == 2
    words = "its copy of long_line, which s trains with, differs from the driver's"
    assert f"error: this worker was refused: {words}" in err
    pilot = place.worker()
    status, err = ended(run)
    assert status == 0, err
    assert f"was refused: {words}" in err
    assert ended(pilot)[0] == 0
    assert place.rows() == want


def test_another_version_and_another_key_are_refused_in_a_sentence_on_both_sides(place):
    patch = "import tunewright.search.pool.process as own; own._own_code = lambda: 'other'"
    run = place.driver(patch=patch)
    status, err = ended(place.worker())
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "has tunewright " in line
    assert line.endswith(": both must be the same")
    for key in ("another key of one", ""):
        status, err = ended(place.worker(TUNEWRIGHT_KEY=key))
        assert status == 2
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "the driver has another key" in line
    run.send_signal(signal.SIGINT)
    status, err = ended(run)
    assert status == 1
    assert "has tunewright " in err
    assert err.count("was refused: it does not know the key") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_where_no_driver_answers_a_worker_says_so_and_ends(place, host):
    worker = place.start("worker", f"{host}:1", "--workers", "2", "--patience", "2")
    status, err = ended(worker)
    assert status == 1
    assert err.count("waiting for a driver: ") == 1
    assert "error: no driver answered for 2 s: " in err


# --- signals of schedulers ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_is_told_to_leave_saves_and_another_goes_on_inside_the_trial(
    place, want, number
):
    run, pilot = place.driver(), place.worker(2)
    until_in_training(place, run)
    own = children(pilot.pid)
    pilot.send_signal(number)
    began = time.monotonic()
    assert ended(pilot)[0] == 75
    assert time.monotonic() - began < SECONDS_TO_STOP
    assert not any(map(is_running, own))
    another = place.worker(2)
    status, err = ended(run)
    assert status == 0, err
    assert ended(another)[0] == 0
    assert place.rows() == want
    assert place.trained(run) == TRIALS * STEPS  # none of them twice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_process_that_is_told_to_leave_is_followed_by_another(place, want, number):
    run, pilot = place.driver(), place.worker(1)
    until_in_training(place, run)
    (own,) = children(pilot.pid)
    os.kill(own, number)
    status, err = ended(run)
    assert status == 0, err
    assert ended(pilot)[0] == 0
    assert place.rows() == want
    assert place.trained(run) == TRIALS * STEPS
    assert len(set(place.taken()) - {run.pid}) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_driver_that_is_told_to_stop_has_all_saved_and_the_same_command_goes_on(
    place, want, number, where
):
    pilot = place.worker(2) if where == "elsewhere" else None

    def run_it():
        if pilot:
            return place.driver()
        return place.start("run", "s.toml", "--workers", "2", *ALONE)

    run = run_it()
    until_in_training(place, run)
    run.send_signal(number)
    began = time.monotonic()
    status, err = ended(run)
    assert time.monotonic() - began < SECONDS_TO_STOP
    assert status == 75
    assert "Interrupted. Finished trials are kept; the same command goes on from here." in err
    assert list((place.folder / "runs" / "s" / "inbox").glob("*.state"))
    again = run_it()
    status, err = ended(again)
    assert status == 0, err
    assert not pilot or ended(pilot)[0] == 0
    assert place.rows() == want
    assert place.trained(run, again) == TRIALS * STEPS
