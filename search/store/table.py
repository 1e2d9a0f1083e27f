"""trials.csv: a row per finished trial, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import warn_once
from ..judge.analysis import hyperparameters, is_rankable
from ..judge.comparison import Comparison
from ..study.study import RESULT_COLUMNS
from ..trial import Trial
from .files import atomic


def write_table(path: Path, trials: Sequence[Trial], comparison: Comparison | None = None) -> None:
    """trials.csv: a row per finished trial, a column per hyperparameter and per result.

    An existing table with more trials is left as it is, because its database may have been lost.
    With a comparison the first row is the baseline, with `baseline` as its number and its
    hyperparameters as far as they are known. There is then also a column `gain`
    (`Comparison.gain`), which is empty for a trial that did not train.
    """
    rows = ([_baseline_row(comparison)] if comparison else []) + [
        _table_row(trial, comparison) for trial in trials
    ]
    number, *results = [name for name in RESULT_COLUMNS if comparison or name != "gain"]
    before = _rows(path)
    if before > len(trials):
        warn_once(
            f"{path}: is kept: it has {before} trials, and the database only {len(trials)}. If "
            "you do not want it, remove it"
        )
        return
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        # A baseline of another study may have hyperparameters that no trial here has.
        columns = [number, *hyperparameters(trials), *results]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _rows(path: Path) -> int:
    """How many trials a table has; 0 if there is none that can be read."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return sum((row.get("number") or "").isdigit() for row in csv.DictReader(file))
    except (OSError, csv.Error):
        return 0


def _table_row(trial: Trial, comparison: Comparison | None) -> dict[str, Any]:
    verdict = trial.verdict
    return {
        "number": trial.point.number,
        **trial.point.values,
        "verdict": verdict.outcome,
        "instability": verdict.instability,
        "onset_step": verdict.onset_step,
        "best_value": trial.best_value,
        "gain": comparison.gain(trial.best_value) if comparison and is_rankable(trial) else "",
        "best_step": trial.best_step,
        "initial_value": trial.initial_value,
        "last_loss": trial.last_loss,
        "clip_fraction": trial.clip_fraction,
        "seconds": round(trial.seconds, 3),
        "reason": verdict.evidence,
    }


def _baseline_row(comparison: Comparison) -> dict[str, Any]:
    checkpoint = comparison.checkpoint
    return {
        "number": "baseline",
        **comparison.known_settings,
        "best_value": checkpoint.value,
        "gain": comparison.gain(checkpoint.value),
        "reason": f"checkpoint {checkpoint.path}, sha256 {checkpoint.sha256}",
    }
