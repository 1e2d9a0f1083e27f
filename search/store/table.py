"""trials.csv: a row per finished trial, for spreadsheets and data frames; and read back."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..errors import UserError, first_line, warn_once
from ..judge.analysis import hyperparameters, is_rankable
from ..judge.comparison import Comparison
from ..study.sampling import plan
from ..study.study import RESULT_COLUMNS, Study
from ..trial import EMPTY_CURVE, OFTEN_UNKNOWN, Point, Trial, Verdict
from .files import atomic

_VERDICT = TypeAdapter(Verdict)
UNKNOWN = "nan"


def write_table(
    path: Path,
    trials: Sequence[Trial],
    comparison: Comparison | None = None,
    study: Study | None = None,
) -> None:
    """trials.csv: a row per finished trial, a column per hyperparameter and per result.

    An existing table with more trials is left as it is, because its database may have been lost;
    but for trials that lie outside of the space of their `study`, which may have been narrowed.
    With a comparison the first row is the baseline, with `baseline` as its number and its
    hyperparameters as far as they are known. There is then also a column `gain`
    (`Comparison.gain`), which is empty for a trial that did not train.
    """
    rows = ([_baseline_row(comparison)] if comparison else []) + [
        table_row(trial, comparison) for trial in trials
    ]
    before = 0 if study and study.earlier else _rows(path, study)
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
        writer = csv.DictWriter(file, columns_of(trials, comparison), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def columns_of(trials: Sequence[Trial], comparison: Comparison | None = None) -> list[str]:
    """The columns of trials.csv in their order, without those that nothing is known of."""
    unknown = {name for name in OFTEN_UNKNOWN if all(math.isnan(getattr(t, name)) for t in trials)}
    unknown |= set() if comparison else {"gain"}
    number, *results = [name for name in RESULT_COLUMNS if name not in unknown]
    return [number, *hyperparameters(trials), *results]


def _rows(path: Path, study: Study | None) -> int:
    """How many trials a table has at a study's batch sizes; 0 if there is none that can be read."""
    sizes = set(map(str, study.batch_sizes)) if study else set()
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("number") or "").isdigit()]
            return sum(not study or row.get("batch_size") in sizes for row in rows)
    except (OSError, csv.Error):
        return 0


def table_row(trial: Trial, comparison: Comparison | None = None) -> dict[str, Any]:
    """What trials.csv says of a trial, by column."""
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
        **{name: getattr(trial, name) for name in OFTEN_UNKNOWN},
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


def read_table(path: Path, study: Study) -> list[Trial]:
    """The trials of a table that `write_table` wrote, without their curves.

    Their points are those of the study's plan. Raises UserError if the study has no plan that is
    known beforehand, if the table is damaged, or if it has points that are not in the plan.
    """
    if study.imported or study.sampling.is_adaptive:
        why = "were imported" if study.imported else f"are chosen by {study.sampler} as it learns"
        raise UserError(f"{path}: the points of this study {why}, and cannot be planned again")
    points = {(str(point.batch_size), str(point.number)): point for point in plan(study)}
    trials = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                if row["number"] != "baseline":
                    point = points.get((row["batch_size"], row["number"]))
                    trials.append(_trial_of(f"{path}, line {line}", row, point, study))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: is damaged: {first_line(error)}") from error
    return trials


def _trial_of(place: str, row: Mapping[str, str], point: Point | None, study: Study) -> Trial:
    if point is None:
        raise UserError(
            f"{place}: number: the study plans no trial {row['number']} at batch size "
            f"{row['batch_size']}"
        )
    for name, value in point.values.items():
        if name in row and row[name] != str(value):
            raise UserError(
                f"{place}: {name}: must be {value}, as the study plans it, got {row[name]}"
            )
    said: dict[str, Any] = {
        "outcome": row["verdict"],
        "instability": row["instability"],
        "onset_step": _number(row["onset_step"]),
        "evidence": row["reason"],
    }
    _VERDICT.validate_python(said)
    names = ("best_value", "best_step", "initial_value", "last_loss", "clip_fraction", "seconds")
    known = [name for name in OFTEN_UNKNOWN if name in row and row[name] != UNKNOWN]
    measured: dict[str, Any] = {name: _number(row[name]) for name in (*names, *known)}
    curve = replace(EMPTY_CURVE, total_steps=study.updates(point))
    return Trial(point, Verdict(**said), curve, **measured, maximize=study.maximize)


def _number(text: str) -> float:
    """A whole number as an int: as it was written, so it is written again."""
    return int(text) if text.lstrip("-").isdigit() else float(text)
