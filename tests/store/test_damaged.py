"""A file of the results that is damaged, foreign or in another's place is named; what it does not
concern goes on.
"""

import csv
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from compared import comparison
from posted import Keeper
from stored import diverged, feasible, point

from tunewright.search.cli import main
from tunewright.search.errors import UserError
from tunewright.search.pool.driver import Driver
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.progress import Progress
from tunewright.search.show.publish import write_results
from tunewright.search.store.files import (
    checkpoint_path,
    curve_path,
    write_checkpoint,
    write_curve,
    write_json,
)
from tunewright.search.store.provenance import environment, write_environment
from tunewright.search.store.results import Results, write_comparison
from tunewright.search.store.storage import create_store, open_store, read_trials, tell
from tunewright.search.study.study import load_study
from tunewright.search.trial import Trial

STUDY = """
workload = "tunewright.models.digits:mlp"
objective = "val_error"
max_train_steps = 100
batch_sizes = [32]
trials = 3
seed = 1
[space.optimizer.momentum]
base_lr = { low = 1e-3, high = 10.0, log = true }
"""
TRIALS = (
    feasible(0, 0.1, 0.05),
    diverged(1, 5.0, 3),
    Trial.from_crash(point(2, 1.0), "MemoryError: no", traceback="Traceback ..."),
)
READ = (
    "study.toml",
    "study.db",
    "environment.json",
    "comparison.json",
    "diagnosis.json",
    "curves/batch_size=32-00000.npz",
)
WRITTEN = ("trials.csv", "summary.json", "report.html", "crashed.log")
NEEDED = ("study.toml", "study.db")  # without which there is nothing to report


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    (path / "something").mkdir(parents=True)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: int(0.9 * path.stat().st_size)]),
    "empty": lambda path: path.write_bytes(b""),
    "random bytes": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "an object": lambda path: path.write_text('{"number": {"a": []}, "command": 3}'),
    "deeply nested": lambda path: path.write_text("[" * 100_000),
    "a folder": folder_in_its_place,
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}
CASES = [(name, damage) for name in READ for damage in DAMAGES]
CASES += [(name, damage) for name in WRITTEN for damage in ("random bytes", "a folder")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a finished study with every kind of file, a record in its inbox included."""
    top = tmp_path_factory.mktemp("whole")
    (top / "small.toml").write_text(STUDY)
    store = create_store(load_study(top / "small.toml"), top / "results")
    for trial in TRIALS:
        tell(store, trial)
        if not trial.verdict.crashed:
            write_curve(curve_path(store.folder, trial.point), trial.curve)
            write_checkpoint(checkpoint_path(store.folder, trial.point), {})
    write_comparison(store.folder, comparison([[0.2, 0.3]], None))
    write_environment(store.folder, environment(["tunewright", "run"]))
    write_results(Results.read(store))
    write_json(store.folder / "diagnosis.json", {"study": "small"})
    assert main(["report", str(store.folder)]) == 1  # a trial crashed
    return top


def rows(folder: Path) -> int:
    with (folder / "trials.csv").open(newline="") as file:
        return len([row for row in csv.DictReader(file) if row["number"].isdigit()])


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "results" / "small"


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_file_is_named_and_the_rest_is_reported(
    folder: Path,
    name: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = (folder / "report.html").stat().st_mtime_ns
    DAMAGES[damage](folder / name)
    status = main(["report", str(folder)])
    out, err = capsys.readouterr()
    said = err + caplog.text
    assert "Traceback" not in err
    if name in NEEDED:
        assert status == 2
        assert name in said
        assert name == "study.db" or (folder / "report.html").stat().st_mtime_ns == before
    else:
        assert status == 1  # a trial crashed, as before
        assert "report: " in out
        assert rows(folder) == 3
    if name in READ and (name, damage) not in UNNOTICED:
        assert name in said


UNNOTICED = {
    ("environment.json", "an object"),  # is what it must be
    *((name, "a link to nowhere") for name in READ if name not in NEEDED),  # is no file
}


def test_results_whose_database_lost_trials_keep_their_table(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "study.db").unlink()
    tell(create_store(load_study(folder / "study.toml", name="small"), folder.parent), TRIALS[0])
    table = (folder / "trials.csv").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "trials.csv").read_bytes() == table
    assert (
        f"{folder / 'trials.csv'}: is kept: it has 3 trials, and the database only 1."
        in caplog.text
    )


def test_an_empty_database_is_begun_anew_by_the_same_study(folder: Path) -> None:
    (folder / "study.db").write_bytes(b"")
    assert (
        read_trials(create_store(load_study(folder / "study.toml", name="small"), folder.parent))
        == []
    )


@pytest.mark.parametrize("results", ["caf\udce9", "caf\udce9/below"])
def test_a_results_path_that_is_not_utf8_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, results: str
) -> None:
    with pytest.raises(UserError, match=r"the path of a results folder must be UTF-8"):
        create_store(load_study(folder / "study.toml", name="small"), tmp_path / results)
    assert not (tmp_path / results).exists()


@pytest.mark.parametrize("made", [1, 3, 8])
def test_a_database_whose_making_was_interrupted_is_made_whole(folder: Path, made: int) -> None:
    path = folder / "study.db"
    with closing(sqlite3.connect(path)) as connection:
        tables = [
            sql
            for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")
        ]
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        for sql in tables[:made]:
            connection.execute(sql)
    assert (
        read_trials(create_store(load_study(folder / "study.toml", name="small"), folder.parent))
        == []
    )


def test_the_database_of_another_program_is_refused_and_left_as_it_is(folder: Path) -> None:
    path = folder / "study.db"
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"study.db: is another program's database, with tables cookies"
    ):
        open_store(folder)
    assert path.read_bytes() == before


def test_a_record_in_the_database_that_cannot_be_read_is_left_out(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = '\"{\"' WHERE key = 'record' AND "
            "trial_id = 1"
        )
        connection.commit()
    assert [trial.point.number for trial in read_trials(open_store(folder))] == [1, 2]
    assert main(["report", str(folder)]) == 1
    assert rows(folder) == 3


@pytest.mark.parametrize("link", [True, False], ids=["a link", "renamed"])
def test_results_under_another_name_are_what_they_were(folder: Path, link: bool) -> None:
    other = folder.with_name("other")
    if link:
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to("elsewhere")
        other.symlink_to("elsewhere")
    else:
        folder.rename(other)
    for place in (other, folder) if link else (other,):
        store = open_store(place)
        assert store.study.name == "small"
        assert len(read_trials(store)) == 3
        assert main(["report", str(place)]) == 1
    assert rows(other) == 3


LATE = feasible(2, 1.0, 0.06)


@pytest.fixture
def inbox(folder: Path) -> Path:
    """Holds a trial that another try has ended better: the database has it as crashed."""
    inbox = folder / "inbox"
    inbox.mkdir()
    write_curve(inbox / "batch_size=32-00002.npz", LATE.curve)
    (inbox / "batch_size=32-00002.json").write_text(json.dumps(LATE.record()))
    return inbox


def collected(folder: Path) -> list[str]:
    """Outcomes of all trials after a driver has looked into the inbox, twice."""
    store = open_store(folder)
    driver = Driver([store], InProcess(), 1, "cpu", None, None, None)
    driver.show = Progress(driver.finished_trials(), shown=False)
    driver.collect()
    driver.collect()
    return [trial.verdict.outcome for trial in read_trials(store)]


def test_a_whole_record_in_the_inbox_is_told(folder: Path, inbox: Path) -> None:
    assert collected(folder) == ["feasible", "non_finite", "feasible"]
    assert not list(inbox.iterdir())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_damaged_record_in_the_inbox_is_named_and_its_point_tried_again(
    folder: Path, inbox: Path, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = inbox / f"batch_size=32-00002.{suffix}"
    DAMAGES[damage](path)
    assert collected(folder)[:2] == ["feasible", "non_finite"]
    assert "batch_size=32-00002" in caplog.text


def test_a_record_of_another_study_is_left_out(
    folder: Path, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = LATE.record()
    for number, batch_size in ((2, 999), (7, 32)):
        record["point"] |= {"number": number, "batch_size": batch_size}
        (inbox / "batch_size=999-00002.json").write_text(json.dumps(record))
        collected(folder)
    assert "batch_size=999-00002.json: is ignored: it belongs to another study" in caplog.text


def test_a_damaged_state_is_trained_from_its_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(tmp_path)
    state = tmp_path / "batch_size=32-00002.state"
    for damage in DAMAGES.values():
        keeper.save(LATE.point, {"theta": torch.ones(3)})
        damage(state)
        assert keeper.begin(LATE.point) is None
        assert not state.exists()
    assert f"{state}: the trial is trained from its start: it is damaged" in caplog.text
