"""`tunewright scaling`: from the results of several batch sizes to the answer, on the terminal, in
scaling.json and in the report."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

import tunewright
from tunewright.search.cli import main
from tunewright.search.errors import UserError
from tunewright.search.judge.scaled import ScalingReport
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_studies
from tunewright.search.scaling import scaling
from tunewright.search.store.files import json_text
from tunewright.search.store.results import SCALING_FILE, read_results, read_scaling
from tunewright.search.study.study import load_study

STUDY = """
workload = "tunewright.models.digits:mlp"
objective = "val_loss"
max_train_steps = 40
evaluations = 8
batch_sizes = [8, 32, 128]
trials = 8
sampler = "halton"
[workload_args]
width = 16
[space.optimizer.momentum]
base_lr = { low = 1e-2, high = 3.0, log = true }
momentum = 0.9
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a study file beside it."""
    folder = tmp_path_factory.mktemp("scaling")
    (folder / "sizes.toml").write_text(STUDY)
    study = load_study(folder / "sizes.toml")
    run_studies([study], folder / "runs", progress=False, backend=InProcess())
    return folder / "runs" / "sizes"


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(trained, tmp_path / "sizes")


def plain(report: ScalingReport | None) -> object:
    """As scaling.json has it: nan is equal to nan."""
    assert report is not None
    return json.loads(json_text(asdict(report)))


def test_the_answer_is_printed_kept_and_reported(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", str(results), "--predict", "512,64", "--target", "1.9"]) == 0
    printed = capsys.readouterr().out
    kept = read_scaling(results)
    assert kept is not None
    (told,) = kept.groups
    assert f"momentum: {told.sentence}." in printed
    assert [one.batch_size for one in told.sizes] == [8, 32, 128]
    assert [(one.batch_size, one.extrapolated) for one in told.predictions] == [
        (64, False),
        (512, True),
    ]
    assert told.targets is not None
    assert (told.targets.target, told.targets.is_given) == (1.9, True)
    assert "extrapolated" in printed
    assert plain(kept) == plain(scaling(read_results(results), 1.9, [512, 64]))
    assert (results / "report.html").exists()


def test_json_is_scaling_json(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(results), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((results / SCALING_FILE).read_text())


def test_a_study_file_is_trained_first_and_only_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(trained.parents[1] / "sizes.toml")
    command = ["scaling", file, "--results", str(tmp_path), "--in-process"]
    assert main(command) == 0
    curves = {path: path.stat().st_mtime_ns for path in tmp_path.glob("sizes/curves/*")}
    assert len(curves) == 24
    first = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("sizes/curves/*")} == curves
    assert plain(read_scaling(tmp_path / "sizes")) == plain(scaling(read_results(trained)))


def test_without_curves_the_updates_are_those_that_were_counted_on_them(results: Path) -> None:
    """As in a folder from git: the numbers stay, to the byte."""
    assert main(["scaling", str(results), "--target", "1.9"]) == 0
    before = (results / SCALING_FILE).read_bytes()
    assert b'"updates"' in before
    shutil.rmtree(results / "curves")
    (results / "study.db").unlink()
    assert main(["scaling", str(results), "--target", "1.9"]) == 0
    assert (results / SCALING_FILE).read_bytes() == before
    assert main(["scaling", str(results), "--target", "1.8"]) == 0
    kept = read_scaling(results)
    assert kept is not None
    assert not any(one.updates < 1000 for one in kept.groups[0].targets.reached)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([32], "batch size 32 alone has results: a law of the batch size needs three"),
        ([], "there are no results"),
    ],
)
def test_one_batch_size_is_refused(trained: Path, sizes: list[int], says: str) -> None:
    results = read_results(trained)
    few = [trial for trial in results.trials if trial.point.batch_size in sizes]
    with pytest.raises(UserError, match=says):
        tunewright.scaling(tunewright.Results(results.store, few))


def test_two_batch_sizes_show_a_ratio_and_a_note(trained: Path) -> None:
    results = read_results(trained)
    few = [trial for trial in results.trials if trial.point.batch_size != 32]
    (told,) = scaling(tunewright.Results(results.store, few)).groups
    assert any("a law needs 3" in note for note in told.notes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--predict", "0"], "must be a whole number from 1"),
        (["--predict", "8,many"], "must be a whole number from 1"),
        (["--target", "nan"], "must be a finite number"),
    ],
)
def test_a_bad_argument_is_one_sentence(
    trained: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["scaling", str(trained), *arguments])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_what_is_no_results_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_damaged_record_is_left_out(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    (results / SCALING_FILE).write_text("{}")
    assert read_results(results).scaling is None
    assert "`tunewright scaling` writes it anew" in caplog.text
