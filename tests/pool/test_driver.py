"""Whatever interrupts a run, the same command ends with the table that an uninterrupted run
gives.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from operator import attrgetter

import optuna
import pytest
import torch
from commanded import start, wait_until
from filelock import FileLock
from stored import small_study

from tunewright.search.cli import main
from tunewright.search.errors import UnfinishedError, UserError
from tunewright.search.pool.backend import TaskResult, WorkerLost
from tunewright.search.pool.driver import MOST_DEATHS, Driver
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.progress import Progress
from tunewright.search.pool.worker import Choice
from tunewright.search.run import run_studies, run_study
from tunewright.search.store.files import name_of
from tunewright.search.store.storage import create_store
from tunewright.search.study.study import load_study
from tunewright.search.train.loop import ALONE, Engine

STUDY = """
question = "Does it run?"
workload = "tunewright.models.digits:mlp"
objective = "val_loss"
max_train_steps = {steps}
batch_sizes = [16, 64]
trials = {trials}
[space]
clip_norm = [inf, 1.0]
[space.optimizer.momentum]
base_lr = {{ low = 1e-3, high = 100.0, log = true }}
[space.optimizer.adam]
base_lr = {{ low = 1e-5, high = 1.0, log = true }}
"""
LINE = """
import itertools
import os
import torch

class Line:
    def __init__(self, fault):
        self.fault = fault
        self.steps = 0

    def build_model(self, seed):
        return torch.nn.Linear(1, 1)

    def train_batches(self, batch_size, seed):
        return itertools.repeat((torch.ones(batch_size, 1), torch.ones(batch_size, 1)))

    def loss(self, model, batch):
        self.steps += 1
        if self.steps > 3 and self.fault == "raise":
            raise RuntimeError("no luck in step 3")
        if self.steps > 3 and self.fault == "kill":
            os.kill(os.getpid(), 9)
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    def evaluate(self, model):
        with torch.no_grad():
            return {"val_loss": self.loss(model, (torch.ones(1, 1), torch.ones(1, 1)))}

def line(fault="none"):
    return Line(fault)
"""
NOT_A_RESULT = ("seconds",)
RUN = ("--workers", 2)
QUIET = {"backend": InProcess(), "progress": False}


@pytest.fixture
def study_file(tmp_path):
    def write(steps=150, trials=6, name="small", text=STUDY):
        path = tmp_path / f"{name}.toml"
        path.write_text(text.format(steps=steps, trials=trials))
        return path

    return write


def rows(folder):
    """trials.csv without what may differ between two runs of the same study."""
    with (folder / "trials.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in NOT_A_RESULT} for row in csv.DictReader(file)
        ]


def finish(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def trained_in(folder, options):
    """A study of longer trials that `run` has trained, and its table."""
    path = folder / "small.toml"
    path.write_text(STUDY.format(steps=600, trials=8))
    assert finish(start("run", path, *options, cwd=folder))[0] == 0
    return path, rows(folder / "runs" / "small")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A study of longer trials, and the table of its uninterrupted run."""
    return trained_in(tmp_path_factory.mktemp("uninterrupted"), RUN)


@pytest.mark.slow
def test_points_trained_equal_trials_and_the_table_is_the_same_for_one_and_three_workers(
    study_file, tmp_path
):
    study = load_study(study_file())
    one = run_study(study, results=tmp_path / "one", slots=1, **QUIET)
    three = run_study(study, results=tmp_path / "three", workers=3, slots=1, progress=False)
    assert len(one) == len(three) == 12
    assert rows(tmp_path / "one" / "small") == rows(tmp_path / "three" / "small")
    assert all(a.curve == b.curve for a, b in zip(one, three, strict=True))
    assert {t.verdict.outcome for t in one} > {"feasible"}
    names = {p.name for p in (tmp_path / "one" / "small").iterdir()}
    assert {
        "study.toml",
        "study.db",
        "trials.csv",
        "summary.json",
        "environment.json",
        "curves",
    } <= names
    assert len(list((tmp_path / "one" / "small" / "checkpoints").iterdir())) == 12
    again = time.time()
    run_study(study, results=tmp_path / "one", slots=1, **QUIET)
    assert all(p.stat().st_mtime < again for p in (tmp_path / "one" / "small" / "curves").iterdir())


@pytest.mark.slow
def test_stacks_of_other_sizes_in_other_numbers_of_workers_give_the_same_table_and_are_recorded(
    study_file, tmp_path
):
    study = load_study(study_file(trials=12))
    for name, workers, slots in (("one", 1, 8), ("three", 3, 3)):
        run_study(study, results=tmp_path / name, workers=workers, slots=slots, progress=False)
        environment = json.loads((tmp_path / name / "small" / "environment.json").read_text())
        engines = [engine for of in environment["engines"].values() for engine in of.values()]
        forced = {
            "stacked": True,
            "slots": slots,
            "reason": "forced",
            "threads": 1,
        }
        assert engines == [forced | {"compiled": False}] * 2
    assert rows(tmp_path / "one" / "small") == rows(tmp_path / "three" / "small")


STACK = Engine(stacked=True, slots=2, reason="by rule")


class Choosing(InProcess):
    """Finds STACK for every Choice, but loses the first that it is handed so many times."""

    def __init__(self, losses=0):
        super().__init__()
        self.losses, self.asked = losses, []

    def wait(self, seconds):
        if not (self._waiting and isinstance(self._waiting[0], Choice)):
            return super().wait(seconds)
        waiting = list(self._waiting)
        self._waiting.clear()
        self.asked += [task.points[0].batch_size for task in waiting]
        found = [STACK if i or self.losses <= 0 else None for i in range(len(waiting))]
        self.losses -= 1
        return [TaskResult(task, engine) for task, engine in zip(waiting, found, strict=True)]


def chosen_by(backend, results, slots=None, compiled=None, trains=False, **changes):
    """What a new run of a study chooses for its points, which it may train then."""
    store = create_store(small_study(**changes), results)
    driver = Driver([store], backend, 1, ["cpu"], slots, None, compiled)
    driver.show = Progress(driver.finished_trials(), shown=False)
    planned = driver.plan()
    engines = driver.choose_engines(planned)
    assert driver.choose_engines(planned) == engines  # also where the next round is of the same run
    driver.collect()
    if trains:
        driver.run()
    return engines


def test_a_worker_chooses_by_rule_and_what_was_trained_so_is_trained_so_to_the_end(tmp_path):
    (first,) = chosen_by(InProcess(), tmp_path, trains=True)
    assert first.stacked
    assert first.reason.startswith("by rule: an update is 1.43 MFLOP")
    assert chosen_by(None, tmp_path, trials=6) == [first]  # nobody is asked
    backend = Choosing()
    assert chosen_by(backend, tmp_path, compiled=True, trials=6) == [STACK]  # wanted: is chosen
    assert backend.asked == [32]


def test_a_choice_that_has_trained_nothing_is_made_anew(tmp_path):
    (forced,) = chosen_by(None, tmp_path, slots=1)
    assert forced.reason == "forced"
    assert chosen_by(Choosing(), tmp_path) == [STACK]


def test_what_was_trained_as_a_user_forced_it_stays_so_unless_the_user_says_otherwise(tmp_path):
    (forced,) = chosen_by(InProcess(), tmp_path, slots=1, trains=True)
    assert chosen_by(None, tmp_path, trials=6) == [forced]
    (other,) = chosen_by(InProcess(), tmp_path, slots=3, trials=6)
    assert (other.stacked, other.slots) == (True, 3)


def test_what_is_to_be_compiled_is_refused_where_nothing_can_be(tmp_path, monkeypatch):
    def no_compiler(program, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UnfinishedError, match="small, batch size 32: is to be trained compiled"):
        chosen_by(InProcess(), tmp_path, compiled=True)
    assert chosen_by(InProcess(), tmp_path, compiled=False)[0].stacked


def test_a_worker_that_is_killed_while_it_chooses_changes_no_choice(tmp_path):
    backend = Choosing(losses=1)
    assert chosen_by(backend, tmp_path, batch_sizes=[8, 16, 32, 64]) == [STACK] * 4
    assert backend.asked == [8, 16, 32, 64, 8]


def test_a_choice_that_kills_each_worker_is_given_up_and_told(tmp_path, caplog):
    backend = Choosing(losses=MOST_DEATHS)
    (engine,) = chosen_by(backend, tmp_path)
    assert backend.asked == [32] * MOST_DEATHS
    assert engine == replace(ALONE, reason="worker processes were killed 3 times before a choice")
    assert "small, batch size 32: trained one after the other: worker processes" in caplog.text


def test_checkpoints_of_the_best_trials_are_kept_at_each_batch_size(study_file, tmp_path):
    path = study_file()
    path.write_text("keep_checkpoints = 2\n" + path.read_text())
    trials = run_study(load_study(path), results=tmp_path, slots=8, **QUIET)
    ranking = sorted((trial for trial in trials if trial.feasible), key=attrgetter("best_value"))
    best = []
    for size in (16, 64):
        own = [trial for trial in ranking if trial.point.batch_size == size]
        best += [name_of(trial.point) for trial in own[:2]]
    kept = (tmp_path / "small" / "checkpoints").iterdir()
    assert sorted(file.name for file in kept) == sorted(f"{name}.safetensors" for name in best)


def test_two_studies_share_one_pool(study_file, tmp_path):
    studies = [load_study(study_file(trials=2, name=name)) for name in ("a", "b")]
    stores = run_studies(studies, results=tmp_path / "r", **QUIET)
    assert [len(rows(store.folder)) for store in stores] == [4, 4]


def test_two_studies_of_one_name_are_refused_before_anything_is_written(study_file, tmp_path):
    study = load_study(study_file())
    with pytest.raises(UserError, match="the studies must differ in name"):
        run_studies([study, study], results=tmp_path / "r", **QUIET)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9 of the driver"]
)
def test_an_interrupted_run_goes_on_where_it_stopped(uninterrupted, tmp_path, number):
    path, want = uninterrupted
    folder = tmp_path / "again" / "small"
    first = start("run", path, *RUN, "--results", tmp_path / "again", cwd=tmp_path)
    wait_until(lambda: len(list((folder / "curves").glob("*.npz"))) >= 3, first)
    os.kill(first.pid, number)
    status, _, err = finish(first)
    if number == signal.SIGINT:
        assert status == 1
        assert "the same command goes on from here" in err
        assert "Traceback" not in err
    kept = set((folder / "curves").glob("*.npz"))
    assert 3 <= len(kept) < 16
    before = {p: p.stat().st_mtime_ns for p in kept}
    states = {t.state for name in (16, 64) for t in optuna_trials(folder, name)}
    assert states == {optuna.trial.TrialState.COMPLETE}
    status, _, err = finish(start("run", path, *RUN, "--results", tmp_path / "again", cwd=tmp_path))
    assert status == 0, err
    assert rows(folder) == want
    assert {p: p.stat().st_mtime_ns for p in kept} == before
    assert sum(len(optuna_trials(folder, name)) for name in (16, 64)) == 16


@pytest.mark.slow
def test_a_killed_worker_loses_no_finished_trial(uninterrupted, tmp_path):
    path, want = uninterrupted
    folder = tmp_path / "again" / "small"
    run = start("run", path, *RUN, "--results", tmp_path / "again", cwd=tmp_path)
    wait_until(lambda: len(list((folder / "curves").glob("*.npz"))) >= 3, run)
    os.kill(workers_of(run.pid)[0], signal.SIGKILL)
    status, _, err = finish(run)
    assert status == 0, err
    assert rows(folder) == want
    assert sum(len(optuna_trials(folder, name)) for name in (16, 64)) == 16


def optuna_trials(folder, batch_size):
    url = f"sqlite:///{folder / 'study.db'}"
    return optuna.load_study(study_name=f"small/batch_size={batch_size}", storage=url).trials


def workers_of(pid):
    """The worker processes below a driver."""
    children = subprocess.run(
        ["ps", "-eww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    found = [line.split(None, 2) for line in children.stdout.splitlines()]
    own = "main_on_this_machine"
    return [int(child) for child, parent, args in found if int(parent) == pid and own in args]


FAULTY = """
workload = "line_workload:line"
objective = "val_loss"
max_train_steps = 20
batch_sizes = [4]
trials = 4
evaluations = 2
[workload_args]
fault = ["none", "{fault}"]
[space.optimizer.sgd]
base_lr = {{ low = 1e-3, high = 0.1, log = true }}
"""


@pytest.mark.parametrize(
    ("fault", "reason"), [("raise", "RuntimeError: no luck in step 3"), ("kill", "killed 3 times")]
)
def test_crashed_trials_are_told_as_such_and_the_others_go_on(
    tmp_path, fault, reason, monkeypatch, capsys
):
    (tmp_path / "line_workload.py").write_text(LINE)
    (tmp_path / "faulty.toml").write_text(FAULTY.format(fault=fault))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "line_workload", raising=False)
    who = ["--in-process"] if fault == "raise" else ["--workers", "2"]
    assert main(["run", "faulty.toml", *who]) == 1
    out, err = capsys.readouterr()
    assert "2 of 4 trials crashed" in err
    folder = tmp_path / "runs" / "faulty"
    table = rows(folder)
    assert sorted(row["verdict"] for row in table) == ["crashed", "crashed", "feasible", "feasible"]
    assert all(reason in row["reason"] for row in table if row["verdict"] == "crashed")
    assert all(row["fault"] == fault for row in table if row["verdict"] == "crashed")
    if fault == "raise":
        assert "no luck in step 3" in (folder / "crashed.log").read_text()
        assert "line_workload.py" in (folder / "crashed.log").read_text()
    (summary,) = [
        s
        for s in json.loads((folder / "summary.json").read_text())
        if s["scientific"]["fault"] == fault
    ]
    assert (summary["crashed"], summary["infeasible"]) == (2, 0)
    assert "report.html" in out


class Losing(InProcess):
    """Trains, but loses its worker whenever a point of a number is in training; it is given up
    after so many times at `most`.
    """

    def __init__(self, guilty, most=MOST_DEATHS):
        super().__init__()
        self.guilty, self.most, self.handed_out = guilty, most, []

    def wait(self, seconds):
        task = self._waiting[0]
        numbers = [point.number for point in task.points]
        if self._running is None:
            self.handed_out.append(numbers)
        if self.guilty not in numbers:
            return super().wait(seconds)
        assert self.handed_out.count(numbers) <= self.most, "it is retried for ever"
        self._waiting.popleft()
        return [WorkerLost(task, task.points), TaskResult(task)]


def test_who_was_in_training_when_a_worker_died_trains_last_and_alone_up_to_three_times(
    study_file, tmp_path, monkeypatch
):
    stack = Engine(stacked=True, slots=3)
    monkeypatch.setattr(Driver, "choose_engines", lambda self, planned: [stack] * len(planned))
    path = study_file(steps=5)
    path.write_text(path.read_text().replace("[16, 64]", "[16]"))
    backend = Losing(guilty=2)
    trials = run_study(load_study(path), results=tmp_path, slots=3, progress=False, backend=backend)
    everybody, *alone = backend.handed_out
    assert everybody == [0, 1, 2, 3, 4, 5]
    assert alone == [[0], [1], [2], [3], [4], [5], [2]]
    assert [trial.verdict.crashed for trial in trials] == [n == 2 for n in range(6)]
    assert trials[2].verdict.evidence == "its worker process was killed 3 times (out of memory?)"


def test_a_point_of_a_later_round_that_kills_its_worker_is_crashed_after_three_times(
    study_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(Driver, "choose_engines", lambda self, planned: [ALONE] * len(planned))
    path = study_file(steps=5, trials=9, text='sampler = "tpe"\n' + STUDY)
    text = path.read_text().replace("[16, 64]", "[16]").replace("clip_norm = [inf, 1.0]", "")
    path.write_text(text.partition("[space.optimizer.adam]")[0])
    backend = Losing(guilty=8, most=4)
    trials = run_study(load_study(path), results=tmp_path, progress=False, backend=backend)
    assert backend.handed_out.count([8]) == 3
    assert [trial.verdict.crashed for trial in trials] == [n == 8 for n in range(9)]


def test_a_folder_that_another_run_writes_to_is_left_alone(study_file, tmp_path):
    study = load_study(study_file(trials=2))
    (tmp_path / "small").mkdir()
    with (
        FileLock(tmp_path / "small" / ".lock"),
        pytest.raises(UserError, match="another run is writing here"),
    ):
        run_studies([study], results=tmp_path, workers=1, progress=False)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_adaptive_studies_are_the_same_for_any_number_of_workers(study_file, tmp_path, sampler):
    path = study_file(trials=18, steps=20, text=f'sampler = "{sampler}"\n' + STUDY)
    path.write_text(path.read_text().replace("[16, 64]", "[64]"))
    study = load_study(path)
    run_study(study, results=tmp_path / "1", **QUIET)
    run_study(study, results=tmp_path / "2", workers=2, progress=False)
    assert rows(tmp_path / "1" / "small") == rows(tmp_path / "2" / "small")
    assert len(rows(tmp_path / "1" / "small")) == 18


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("digits:mlp", "digits:mpl"), "workload: 'tunewright.models.digits' has no 'mpl'"),
        (
            ("val_loss", "val_eror"),
            "objective: evaluate() returns val_error, val_loss; got 'val_eror'",
        ),
        (("[16, 64]", "[16, 100000]"), "train_batches(batch_size=100000) raised ValueError"),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_is_written(
    study_file, tmp_path, capsys, change, message
):
    path = study_file()
    path.write_text(path.read_text().replace(*change))
    assert main(["run", str(path), "--results", str(tmp_path / "results")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
