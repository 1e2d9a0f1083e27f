"""Logs as trainings write them, small."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tunewright.search.trial import Array

RNG = np.random.default_rng(0)
LOSS = 0.1 + 2.2 * np.exp(-np.arange(200) / 40) + 0.02 * RNG.standard_normal(200)
NORM = np.exp(0.3 * RNG.standard_normal(200))


def csv_of(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """A CSV file; None is an empty cell."""
    rows = [columns.keys(), *zip(*columns.values(), strict=True)]
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def json_lines_of(path: Path, records: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def healthy_csv(path: Path, every: int = 1, loss: Array = LOSS) -> Path:
    steps = every * np.arange(len(loss))
    return csv_of(path, {"step": steps, "loss": loss, "grad_norm": NORM[: len(loss)]})


def diverging() -> Array:
    loss = LOSS.copy()
    loss[120:] = 9.0
    return loss


def with_nan(first: int) -> list[float]:
    return [value if place < first else math.nan for place, value in enumerate(LOSS.tolist())]
