"""Public training runs of the AlgoPerf benchmark: shared by test_algoperf.py,
benchmarks/verdicts.py and benchmarks/lookup.py.

A line of runs.jsonl.gz holds the losses and gradient norms as logged, every few hundred updates,
the evaluations of the validation loss, and what validation alone says of the run.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.search.judge.verdict import judge
from tunewright.search.trial import Array, Curve


@dataclass(frozen=True, eq=False)
class Run:
    """A run, its curve of one entry per logged row, and its label: trained, nan, worse than
    untrained, lost half.
    """

    name: str
    curve: Curve
    label: str


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """Every line of the folder's file."""
    with gzip.open(folder / "runs.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def runs(folder: Path) -> Iterator[Run]:
    """Every run of the folder's file."""
    for record in records(folder):
        yield Run(record["run"], _curve(record), record["label"])


def agrees(run: Run) -> bool:
    """Whether the verdict is feasible for what trained, and for nothing else."""
    return judge(run.curve).feasible == (run.label == "trained")


def _curve(record: dict[str, Any]) -> Curve:
    logged, loss = columns(record["loss"])
    known = dict(zip(*columns(record["grad_norm"] or []), strict=True))
    evaluated, values = columns(record["validation"])
    return Curve(
        loss=loss,
        grad_norm=np.array([known.get(step, 1.0) for step in logged]),  # 1 where none was logged
        eval_step=np.searchsorted(logged, evaluated).astype(np.int64),
        metrics={record["objective"]: values},
        total_steps=len(loss),
    )


def columns(rows: list[list[Any]]) -> tuple[Array, Array]:
    """Steps and values; nan and inf are written as text."""
    table = np.array([[float(step), float(value)] for step, value in rows]).reshape(-1, 2)
    return table[:, 0], table[:, 1]
