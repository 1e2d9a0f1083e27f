"""Whatever fails outside of a training ends in one sentence, and the same command goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import optuna
import psycopg2
import pytest
import sqlalchemy
from commanded import start, wait_until
from packaging.requirements import Requirement
from posted import work
from stored import small_study

from tunewright.search import run
from tunewright.search.cli import main
from tunewright.search.errors import UnfinishedError, UserError, describe_error, mask_password
from tunewright.search.pool import worker
from tunewright.search.pool.backend import WorkerLost
from tunewright.search.pool.driver import Driver
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.inbox import read_inbox
from tunewright.search.pool.progress import Progress
from tunewright.search.pool.worker import Task
from tunewright.search.run import run_studies
from tunewright.search.show import publish
from tunewright.search.show.report import write_report
from tunewright.search.store.database import UnansweredError, open_storage
from tunewright.search.store.provenance import environment
from tunewright.search.store.results import Results
from tunewright.search.store.storage import create_store, exclusive, open_store, read_trials, tell
from tunewright.search.train.execution import ALONE
from tunewright.search.trainers.tryout import check_studies
from tunewright.search.trial import Point

SECRET = "opensesame"
WORKLOAD = """
import itertools, sys, time
import torch

class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class Line:
    def __init__(self, fault):
        self.fault, self.calls = fault, 0

    def build_model(self, seed):
        return torch.nn.Linear(1, 1)

    def train_batches(self, batch_size, seed):
        return itertools.repeat(torch.ones(batch_size, 1))

    def loss(self, model, batch):
        self.calls += 1
        time.sleep(0.02 if self.fault == "slow" else 0)
        if self.calls > 3 and self.fault == "exit":
            sys.exit()
        if self.calls > 3 and self.fault == "interrupt":
            raise KeyboardInterrupt
        if self.calls > 3 and self.fault == "base":
            raise BaseException("neither")
        if self.calls > 3 and self.fault == "odd":
            raise Odd
        if self.calls > 3 and self.fault == "surrogate":
            raise FileNotFoundError("/data/caf\\udce9.png")
        if self.fault == "at once":
            sys.exit(3)
        return ((model(batch) - 1) ** 2).mean()

    def evaluate(self, model):
        return {"val": ((model(torch.ones(1, 1)) - 1) ** 2).mean()}

def line(fault="none"):
    if fault == "factory":
        raise SystemExit("no data here")
    return Line(fault)
"""
STUDY = """
workload = "odd_workload:line"
objective = "val"
max_train_steps = 20
batch_sizes = [4]
trials = 5
evaluations = 2
[workload_args]
fault = "{fault}"
[space.optimizer.sgd]
base_lr = {{ low = 1e-3, high = 0.1, log = true }}
"""


@pytest.fixture
def line(tmp_path, monkeypatch):
    (tmp_path / "odd_workload.py").write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_workload", raising=False)

    def study(fault):
        changes = {
            "workload": "odd_workload:line",
            "objective": "val",
            "max_train_steps": 20,
            "batch_sizes": [4],
        }
        return small_study(**changes, workload_args={"fault": fault})

    return study


# --- what a workload raises -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("exit", "SystemExit"),
        ("interrupt", "KeyboardInterrupt"),
        ("base", "BaseException: neither"),
        ("odd", "Odd: its text cannot be shown"),
        ("surrogate", r"FileNotFoundError: /data/caf\udce9.png"),
        ("factory", "SystemExit: no data here"),
    ],
)
def test_whatever_a_workload_raises_is_its_trials_crash(line, tmp_path, fault, reason, monkeypatch):
    # a worker, which does not hear Ctrl-C
    monkeypatch.setattr(worker, "_is_worker", True)
    points = [Point(number, 4, "sgd", 0.01, workload_args={"fault": fault}) for number in range(2)]
    work(Task(line(fault), tmp_path, points, ALONE))
    trials = [trial for trial, _ in read_inbox(tmp_path)]
    assert [trial.verdict.evidence for trial in trials] == [reason] * 2
    assert all("odd_workload.py" in trial.traceback for trial in trials)
    for trial in trials:
        (trial.verdict.evidence + trial.traceback).encode("utf-8")


@pytest.mark.parametrize(
    ("fault", "words"), [("at once", "SystemExit: 3"), ("factory", "SystemExit: no data here")]
)
def test_what_a_workload_raises_while_it_is_checked_is_the_users_to_mend(line, fault, words):
    with pytest.raises(
        UserError,
        match=rf"^small: workload: (loss raised )?{words}( \(.*odd_workload.py, line \d+\))?$",
    ):
        check_studies([line(fault)])


def test_a_long_text_is_cut():
    assert len(describe_error(ValueError("x" * 10_000_000))) < 3_000


def test_a_text_of_several_lines_is_told_in_one():
    error = ValueError("first\n  second\n\nthird\n")
    assert describe_error(error) == "ValueError: first second third"


# --- the disk, the workers, the database ----------------------------------------------------------


def driver_of(store, monkeypatch):
    monkeypatch.setattr(Driver, "choose_engines", lambda self, planned: [ALONE] * len(planned))
    driver = Driver([store], InProcess(), 1, "cpu", None, None, None)
    driver.show = Progress(driver.finished_trials(), shown=False)
    return driver


def test_a_full_disk_is_the_runs_failure_and_not_the_trials(line, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    points = [Point(0, 4, "sgd", 0.01, workload_args={"fault": "none"})]
    with pytest.raises(
        UnfinishedError,
        match=r"batch_size=4-00000.npz: cannot be written: No space left on device$",
    ):
        work(Task(line("none"), tmp_path, points, ALONE))
    assert not list(read_inbox(tmp_path))


def test_a_table_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = create_store(small_study(), tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UnfinishedError, match=r"trials.csv: No space left on device$"),
        run.disk_answers(),
    ):
        publish.write_results(Results.read(store))
    assert not list(store.folder.glob("trials.csv")) + list(store.folder.glob(".trials*"))


def test_workers_that_die_before_they_train_are_a_sentence(line, tmp_path, monkeypatch):
    class Dying(InProcess):
        def wait(self, seconds):
            return [WorkerLost(None)]

    driver = driver_of(create_store(line("none"), tmp_path), monkeypatch)
    driver.backend = Dying()
    with pytest.raises(UnfinishedError, match="were killed 3 times before they began to train"):
        driver.run()


def test_trials_wait_for_a_database_that_does_not_answer(line, tmp_path, monkeypatch):
    study, answers = line("none"), threading.Event()
    store = create_store(study, tmp_path)
    driver = driver_of(store, monkeypatch)

    def tell_or_not(*arguments):
        (tell if answers.is_set() else unanswered)(*arguments)

    monkeypatch.setattr("tunewright.search.pool.driver.tell", tell_or_not)
    (store.folder / "inbox").mkdir(exist_ok=True)
    work(Task(study, store.folder / "inbox", [next(iter(driver.plan()))[1][0]], ALONE))
    driver.collect_patiently()
    assert read_trials(store) == []
    monkeypatch.setattr("tunewright.search.pool.driver.PATIENCE_SECONDS", 0.0)
    with pytest.raises(UnfinishedError, match="connection refused"):
        driver.collect_patiently()
    answers.set()
    driver.collect_patiently()
    assert len(read_trials(store)) == 1


def test_an_engine_waits_for_a_database_that_does_not_answer_and_is_written_once(
    tmp_path, monkeypatch
):
    steps = {"max_train_steps": 2, "evaluations": 1, "objective": "val_loss"}
    study = small_study(**steps, trials=20, sampler="tpe")
    original, written, outage = optuna.Study.set_user_attr, [], []

    def set_or_not(self, name, value):
        if name in ("study", "plan"):
            return original(self, name, value)
        if len(outage) < 3:
            outage.append(name)
            unanswered()
        written.append(name)
        return original(self, name, value)

    monkeypatch.setattr(optuna.Study, "set_user_attr", set_or_not)
    (store,) = run_studies([study], tmp_path, backend=InProcess(), progress=False)
    assert len(read_trials(store)) == 20
    assert len(outage) == 3
    assert written == ["engines"]
    found = json.loads((store.folder / "environment.json").read_text())["engines"]
    assert found == {"32": store.optuna_studies[32].user_attrs["engines"]}


def test_a_database_whose_file_was_removed_is_missed(tmp_path, monkeypatch):
    store = create_store(small_study(), tmp_path)
    driver = driver_of(store, monkeypatch)
    (store.folder / "study.db").unlink()
    with pytest.raises(UnfinishedError, match=r"study\.db: is gone"):
        driver.collect()


# --- two drivers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_a_second_driver_of_one_study_in_one_database_is_refused_from_any_folder(
    where, tmp_path, request
):
    url = (
        f"sqlite:///{tmp_path / 'shared.db'}"
        if where == "sqlite"
        else request.getfixturevalue("postgresql")
    )
    study = small_study(max_train_steps=20).model_copy(update={"name": f"two-{where}"})
    with exclusive(create_store(study, tmp_path / "a", url)):
        for results in ("a", "b"):
            with pytest.raises(UserError, match="another run is writing here"):
                run_studies([study], tmp_path / results, storage=url, progress=False)
        other = study.model_copy(update={"name": f"other-{where}"})
        with exclusive(create_store(other, tmp_path / "b", url)):
            pass
    with exclusive(create_store(study, tmp_path / "b", url)):
        pass


def test_the_database_of_a_results_folder_is_locked_also_for_who_names_it_by_url(tmp_path):
    study = small_study()
    with exclusive(create_store(study, tmp_path / "a")):
        url = f"sqlite:///{tmp_path / 'a' / 'small' / 'study.db'}"
        with (
            pytest.raises(UserError, match="another run is writing here"),
            exclusive(create_store(study, tmp_path / "b", url)),
        ):
            pass


def unanswered(*arguments):
    raise UnansweredError("storage: x: connection refused")


def end_connections(url):
    """What a restart of the server does to those who are connected."""
    plain = sqlalchemy.make_url(url)
    connection = psycopg2.connect(plain.render_as_string(hide_password=False))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
    connection.close()


def test_a_lock_that_went_with_its_connection_is_taken_again_unless_another_run_has_it(
    postgresql, tmp_path, monkeypatch
):
    study = small_study().model_copy(update={"name": "lost"})
    first, second = (create_store(study, tmp_path / name, postgresql) for name in ("a", "b"))
    with exclusive(first):
        end_connections(postgresql)
        with monkeypatch.context() as down:  # twice, while nobody answers
            down.setattr(first.lock, "take", unanswered)
            for _ in range(2):
                with pytest.raises(UnansweredError):
                    first.lock.keep()
        first.lock.keep()
        assert not second.lock.take()
        assert read_trials(first) == []
        end_connections(postgresql)
        assert second.lock.take()
        with pytest.raises(UserError, match="another run writes this study now"):
            first.lock.keep()
    second.lock.release()


# --- passwords ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        f"postgresql://ada:{SECRET}@host/db",
        f"--storage=postgresql+psycopg://ada:{SECRET}@host:5432/db?sslmode=require",
        f"postgresql://host/db?user=ada&password={SECRET}",
        f"postgresql://:{SECRET}@host",
        f"mysql://ada:a@b/c?{SECRET}@host/db",
        f"postgresql://ada:a b{SECRET}@host/db",
    ],
)
def test_a_url_is_shown_without_its_secrets(word):
    assert SECRET not in mask_password(word)
    assert mask_password(word).partition("://")[0] == word.partition("://")[0]
    assert SECRET not in json.dumps(environment(["tunewright", "run", word]))


def test_other_words_are_shown_as_they_are():
    for word in ("--workers", "a@b", "C:/x?y", "postgresql://ada@host/db", "https://example.org/a"):
        assert mask_password(word) == word


def test_a_password_that_an_earlier_version_wrote_is_not_reported(tmp_path):
    store = create_store(small_study(), tmp_path)
    command = f"tunewright run s.toml --storage postgresql://ada:{SECRET}@host/db"
    (store.folder / "environment.json").write_text(json.dumps({"command": command}))
    text = write_report(Results.read(store)).read_text()
    assert SECRET not in text
    assert "postgresql://ada:***@host/db" in text


@pytest.mark.parametrize(
    "arguments", [["judge", "s.csv", "--storage"], ["run", "s.toml", "--slots"]]
)
def test_a_wrong_command_line_does_not_repeat_a_password(arguments, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, f"postgresql://ada:{SECRET}@host/db"])
    err = capsys.readouterr().err
    assert "postgresql://ada:***@host/db" in err
    assert SECRET not in err


def test_the_extra_installs_the_driver_that_a_plain_url_loads():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = map(Requirement, project["optional-dependencies"]["postgresql"])
    driver = sqlalchemy.make_url("postgresql://host/db").get_driver_name()
    assert driver in {one.name for one in extra}
    assert sqlalchemy.create_engine("postgresql://host/db").driver == driver


@pytest.mark.parametrize("driver", ["", "+psycopg", "+psycopg2"])
def test_postgresql_opens_with_either_driver(postgresql, driver):
    storage = open_storage(postgresql.replace("postgresql", f"postgresql{driver}", 1))
    assert storage.get_all_studies() is not None


# --- the command as it is run ---------------------------------------------------------------------


def written(tmp_path, fault="slow"):
    (tmp_path / "odd_workload.py").write_text(WORKLOAD)
    (tmp_path / "s.toml").write_text(STUDY.format(fault=fault))
    return tmp_path / "runs" / "s"


RUN = ("run", "s.toml", "--workers", 1, "--slots", 1)


@pytest.mark.parametrize(
    ("numbers", "status"),
    [([signal.SIGTERM], 75), ([signal.SIGUSR1], 75), ([signal.SIGHUP, signal.SIGINT], 1)],
    ids=["once", "of Slurm", "twice"],
)
def test_a_signal_ends_a_run_in_a_sentence(tmp_path, numbers, status):
    folder = written(tmp_path)
    run = start(*RUN, cwd=tmp_path)
    wait_until(lambda: len(list((folder / "curves").glob("*.npz"))) >= 2, run)
    for number in numbers:
        run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == status
    assert (
        err.count("Interrupted. Finished trials are kept; the same command goes on from here.") == 1
    )
    assert "Traceback" not in err
    if len(numbers) == 1:
        assert len((folder / "trials.csv").read_text().splitlines()) >= 3


def test_ctrl_c_while_it_imports_is_a_sentence(tmp_path):
    written(tmp_path)
    run = start(*RUN, cwd=tmp_path)
    wait_until(lambda: "torch" in Path(f"/proc/{run.pid}/maps").read_text(), run)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert err.startswith("loading torch …\nInterrupted.")
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_results_folder_that_vanishes_is_named(tmp_path):
    folder = written(tmp_path)
    run = start(*RUN, cwd=tmp_path)
    wait_until(lambda: len(list((folder / "curves").glob("*.npz"))) >= 1, run)
    folder.rename(tmp_path / "away")
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert (
        "No such file or directory. The same command tries again." in err
        or "study.db: is gone" in err
    )
    assert "Traceback" not in err


@pytest.mark.slow
def test_output_that_nobody_reads_or_that_is_ascii_loses_nothing(tmp_path):
    folder = written(tmp_path, fault="surrogate")
    command = f"{sys.executable} -m tunewright.search.cli"
    for shell in (
        f"{command} run s.toml --in-process 2>&1 | true",
        f"{command} report runs/s > /dev/full",
    ):
        run = subprocess.run(
            ["bash", "-c", f"{shell}; exit ${{PIPESTATUS[0]}}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
            env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            check=False,
        )
        assert "Traceback" not in run.stdout + run.stderr
        assert "Exception ignored" not in run.stdout + run.stderr
        assert run.returncode == 1  # its trials crashed
    assert (folder / "report.html").is_file()
    assert r"caf\udce9.png" in (folder / "trials.csv").read_text()


@pytest.mark.slow
def test_a_password_is_in_no_list_of_processes_and_no_file(postgresql, tmp_path, monkeypatch):
    folder = written(tmp_path)
    run = start(*RUN, "--storage", postgresql, cwd=tmp_path)
    wait_until(lambda: len(list((folder / "curves").glob("*.npz"))) >= 1, run)
    listed = subprocess.run(
        ["ps", "-eww", "-o", "args="], capture_output=True, text=True, check=True
    ).stdout
    out, err = run.communicate(timeout=90)
    assert run.returncode == 0, err
    assert SECRET not in listed + out + err
    texts = [path for path in folder.rglob("*") if path.is_file()]
    assert len(texts) > 10
    assert not [path for path in texts if SECRET.encode() in path.read_bytes()]
    monkeypatch.setenv("TUNEWRIGHT_STORAGE", postgresql)
    assert main(["report", str(folder)]) == 0
    assert len(read_trials(open_store(folder, postgresql))) == 5
