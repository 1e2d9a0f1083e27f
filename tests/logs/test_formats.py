"""Formats by their files, and the logs of a folder of runs."""

import os

import pytest
from logged import csv_of, healthy_csv, json_lines_of

from tunewright.search.errors import UserError
from tunewright.search.logs.formats import find_format, logs_in
from tunewright.search.logs.log import read_log

HEADERS = {
    "epoch,step,train_loss\n0,1,2.0\n": "Lightning's metrics.csv",
    "_step,_runtime,loss\n0,1,2.0\n": "W&B history",
    "global_step,accumulated_submission_time,loss\n0,1,2.0\n": "AlgoPerf's measurements.csv",
    "step,loss\n0,2.0\n": "CSV",
    '{"step": 0, "loss": 2.0}\n': "JSON lines",
    '{"_step": 0, "loss": 2.0}\n': "JSON lines",
}


@pytest.mark.parametrize("content", HEADERS)
def test_a_format_is_known_by_its_first_line(tmp_path, content):
    path = tmp_path / "log"
    path.write_text(content)
    assert find_format(path).name == HEADERS[content]
    assert read_log(path).loss.tolist() == [2.0]


def test_the_logs_of_a_folder_of_runs(tmp_path):
    for name in ("b/version_1", "b/version_0", "a", "other", "events/train"):
        (tmp_path / name).mkdir(parents=True)
    healthy_csv(tmp_path / "b/version_1/metrics.csv")
    healthy_csv(tmp_path / "b/version_0/metrics.csv")
    healthy_csv(tmp_path / "a/measurements.csv")
    healthy_csv(tmp_path / "other/table.csv")  # by no known name
    (tmp_path / "events/events.out.tfevents.1").write_bytes(b"")
    (tmp_path / "events/train/events.out.tfevents.2").write_bytes(b"")  # of add_scalars
    found = [str(path.relative_to(tmp_path)) for path in logs_in(tmp_path)]
    assert found == [
        "a/measurements.csv",
        "b/version_0/metrics.csv",
        "b/version_1/metrics.csv",
        "events",
    ]


def test_of_a_trainers_checkpoints_the_last_one_counts(tmp_path):
    for run in ("one", "two"):
        for step in (500, 1000, 90):
            folder = tmp_path / run / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text('{"log_history": []}')
    (tmp_path / "two" / "trainer_state.json").write_text('{"log_history": []}')
    found = [str(path.relative_to(tmp_path)) for path in logs_in(tmp_path)]
    assert found == ["one/checkpoint-1000/trainer_state.json", "two/trainer_state.json"]


def test_a_file_is_its_own_log(tmp_path):
    path = json_lines_of(tmp_path / "anything", [{"step": 1, "loss": 2.0}])
    assert logs_in(path) == [path]


def test_a_folder_without_logs_and_a_path_that_is_not_there(tmp_path):
    csv_of(tmp_path / "table.csv", {"step": [1], "loss": [2]})
    with pytest.raises(UserError, match="a folder without logs: it holds no event files, trainer"):
        logs_in(tmp_path)
    with pytest.raises(UserError, match="missing: is no file and no folder"):
        logs_in(tmp_path / "missing")


def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    """Else the look at its format empties it, and it is said to be empty, or to have no names."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a pipe, which is read once"):
        logs_in(tmp_path / "pipe")
