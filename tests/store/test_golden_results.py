"""A results folder that an earlier release wrote still opens, and says what it said.

`tests/golden/results/golden` was written by 0.1.0: `tunewright run golden.toml --slots 1`, with its
own study.toml as golden.toml. Write another beside it where a release changes what it writes; this
one stays.
"""

import json
import shutil
from pathlib import Path

import pytest

from tunewright.search.run import run_study
from tunewright.search.show.publish import write_results
from tunewright.search.show.report import write_report
from tunewright.search.store.results import Results
from tunewright.search.store.storage import open_store, read_trials
from tunewright.search.study.study import load_study

GOLDEN = Path(__file__).parents[1] / "golden" / "results" / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "golden")
    return tmp_path / "golden"


def test_its_tables_are_written_again_as_they_were(folder: Path) -> None:
    for name in ("trials.csv", "summary.json"):
        (folder / name).unlink()
    write_results(Results.read(open_store(folder)))
    assert (folder / "trials.csv").read_text() == (GOLDEN / "trials.csv").read_text()
    written = json.loads((folder / "summary.json").read_text())
    before = json.loads((GOLDEN / "summary.json").read_text())
    for now, then in zip(written, before, strict=True):
        then["point"] = then.pop("best_point")  # its name in 0.1.0
        assert {name: now[name] for name in then} == then


def test_its_report_is_built(folder: Path) -> None:
    text = write_report(Results.read(open_store(folder))).read_text(encoding="utf-8")
    assert "Does a results folder of an earlier release still open?" in text


def test_the_same_command_finds_nothing_to_train(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.glob("curves/*")}
    trials = run_study(load_study(folder / "study.toml", name="golden"), results=folder.parent)
    assert trials == read_trials(open_store(folder))
    assert len(trials) == len(before) == 16
    assert {path: path.read_bytes() for path in folder.glob("curves/*")} == before
