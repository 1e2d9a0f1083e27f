"""Verdicts of public training runs of other people, against what their validation says.

The data is no part of the repository: TUNEWRIGHT_ALGOPERF names a folder that holds runs.jsonl.gz
(see algoperf.py).
"""

import os
from pathlib import Path

import pytest
from algoperf import Run, agrees, runs

FOLDER = os.environ.get("TUNEWRIGHT_ALGOPERF", "")
AGREEMENT = 0.99

pytestmark = pytest.mark.skipif(not FOLDER, reason="TUNEWRIGHT_ALGOPERF is not set")


@pytest.fixture(scope="module")
def every_run() -> list[Run]:
    return list(runs(Path(FOLDER)))


def test_verdicts_agree_with_validation(every_run: list[Run]) -> None:
    wrong = [run.name for run in every_run if not agrees(run)]
    assert len(every_run) > 100
    assert len(wrong) <= (1 - AGREEMENT) * len(every_run), wrong


def test_what_did_not_train_is_found(every_run: list[Run]) -> None:
    """They are so few that all of them could be wrong within the agreement that is asked for."""
    assert [run.name for run in every_run if run.label != "trained" and not agrees(run)] == []
