"""Transformers' trainer_state.json: what a Trainer logged, beside each of its checkpoints.

Its loss is the mean over the updates since the entry before. With `logging_nan_inf_filter`, which
is on by default, a Trainer leaves losses out of that mean that are nan or inf; where all are, it
logs a loss of exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic_core

from ..errors import UserError
from .table import Column, Table, TableBuilder

LOSS, NORM = "loss", "grad_norm"
# Losses are rounded to four decimals: after one above this, the next is no 0 by rounding.
NO_ROUNDING = 0.01
SETTINGS = ("train_batch_size", "num_train_epochs", "max_steps", "logging_steps", "eval_steps")


def recognizes(head: bytes) -> bool:
    return b'"log_history"' in head or b'"best_metric"' in head


def read(path: Path) -> Table:
    """The columns of `log_history`. Losses of 0 that stand for nan are nan, and that is said."""
    try:
        state = pydantic_core.from_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UserError(f"{path}: has no log_history")
    builder = TableBuilder()
    builder.add_records(history)
    planned = state.get("max_steps")
    settings = {name: state[name] for name in SETTINGS if state.get(name) is not None}
    settings |= state.get("trial_params") or {}
    total_steps = planned if isinstance(planned, int) and planned > 0 else 0
    table = builder.table(_means(state), settings, total_steps)
    return _with_hidden(table)


def _means(state: Mapping[str, Any]) -> list[str]:
    every = state.get("logging_steps")
    if isinstance(every, int | float) and every <= 1:
        return []
    return ["Each loss is the mean of the updates since the one before, which flattens spikes."]


def _with_hidden(table: Table) -> Table:
    """With nan for losses of 0 that hide it."""
    loss = table.columns.get(LOSS)
    if loss is None or not (loss.values == 0).any():
        return table
    zero = loss.values == 0
    hidden = zero & _has_broken_norm(loss, table.columns.get(NORM))
    last = np.flatnonzero(~zero)
    start = int(last[-1]) + 1 if len(last) else 0
    if start and loss.values[start - 1] > NO_ROUNDING and len(zero) - start > 1:
        hidden[start:] = True
    count = int(hidden.sum()) or int(zero.sum())
    what = "1 loss is" if count == 1 else f"{count} losses are"
    hides = "logging_nan_inf_filter, which is on by default, writes 0 where every loss was nan"
    if hidden.any():
        note = f"{what} exactly 0, and taken as nan: {hides}. Set it to False."
    else:
        note = f"{what} exactly 0: {hides}, so they may be no losses. Set it to False."
    values = np.where(hidden, math.nan, loss.values)
    columns = {**table.columns, LOSS: Column(loss.rows, values)}
    return replace(table, columns=columns, notes=(*table.notes, note))


def _has_broken_norm(loss: Column, norm: Column | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if norm is None:
        return np.zeros(len(loss.rows), bool)
    return np.isin(loss.rows, norm.rows[~np.isfinite(norm.values)])
