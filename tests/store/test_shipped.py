"""Results that come from git have no database, curves or checkpoints: one is made of trials.csv."""

import shutil
from pathlib import Path

import pytest

from tunewright.search.errors import UserError
from tunewright.search.show.publish import write_results
from tunewright.search.show.report import write_report
from tunewright.search.store.results import Results
from tunewright.search.store.storage import open_store, read_trials

SHIPPED = Path(__file__).parents[2] / "results"
GOLDEN = Path(__file__).parents[1] / "golden" / "results" / "golden"
KEPT = ("*.csv", "*.json", "*.toml")


def from_git(source: Path, target: Path) -> Path:
    """A copy with the files that git keeps."""
    for path in sorted(path for kind in KEPT for path in source.rglob(kind)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return target


def opened(folder: Path) -> Results:
    return Results.read(open_store(folder))


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SHIPPED.glob("*/study.toml")))
def test_every_shipped_result_opens_and_is_written_back_as_it_is(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = from_git(SHIPPED / name, tmp_path / name)
    caplog.set_level("INFO", "tunewright")
    results = opened(folder)
    assert "study.db was made of trials.csv" in caplog.text
    write_results(results)
    for file in ("trials.csv", "summary.json"):
        assert (folder / file).read_bytes() == (SHIPPED / name / file).read_bytes(), file
    assert f"<title>{name}" in write_report(results).read_text(encoding="utf-8")
    caplog.clear()
    assert opened(folder).trials == results.trials
    assert "trials.csv" not in caplog.text


def test_what_is_read_back_is_what_was_trained(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "whole" / "golden")
    whole = read_trials(open_store(tmp_path / "whole" / "golden"))
    folder = from_git(GOLDEN, tmp_path / "golden")
    again = read_trials(open_store(folder))
    assert [trial.point for trial in again] == [trial.point for trial in whole]
    assert [trial.verdict for trial in again] == [trial.verdict for trial in whole]
    assert [trial.best_value for trial in again] == [trial.best_value for trial in whole]
    assert not any(len(trial.curve.loss) for trial in again)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("0,32,", "0,48,", "plans no trial 0 at batch size 48"),
        ("0,32,", "99,32,", "plans no trial 99"),
        ("constant", "cosine", "decay: must be constant, as the study plans it, got cosine"),
        ("feasible", "fine", "is damaged"),
        ("verdict", "what", "is damaged"),
    ],
)
def test_a_table_that_is_not_of_the_study_is_refused_and_leaves_nothing(
    tmp_path: Path, before: str, after: str, words: str
) -> None:
    folder = from_git(GOLDEN, tmp_path / "golden")
    table = folder / "trials.csv"
    table.write_text(table.read_text().replace(before, after, 1))
    with pytest.raises(UserError, match=words):
        open_store(folder)
    assert not list(folder.glob("*.db*"))
    assert not list(folder.glob(".study.db*"))


def test_a_study_whose_sampler_learns_is_refused(tmp_path: Path) -> None:
    folder = from_git(GOLDEN, tmp_path / "golden")
    file = folder / "study.toml"
    file.write_text('sampler = "tpe"\n' + file.read_text().replace("sampler", "# sampler"))
    with pytest.raises(UserError, match="chosen by tpe as it learns"):
        open_store(folder)


def test_without_a_table_the_message_says_what_to_do(tmp_path: Path) -> None:
    folder = from_git(GOLDEN, tmp_path / "golden")
    (folder / "trials.csv").unlink()
    with pytest.raises(UserError, match=r"no trials.csv to make one of; run the study"):
        open_store(folder)
