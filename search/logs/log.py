"""A log of one training: losses, gradient norms and evaluations, each with its steps.

Whatever was guessed, left out or is not to be seen in it is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..trial import UNTRAINED_STEPS, Array, Curve
from .formats import find_format
from .roles import GivenColumns, guess
from .steps import Restarts, Steps, counted_on, find_restarts, in_order, steps_of
from .table import Column, Table

NAMES_SHOWN = 30  # of the columns of a log, in a message
EPOCH = "epoch"
CALLS = "_step"  # W&B's own column
LARGEST_STEP = 2**53  # the whole numbers that a float holds

Series = tuple[Steps, Array, int]  # steps, values, and how many values gave way to later ones


@dataclass(frozen=True, eq=False)
class Log:
    """What one training logged. Steps are updates as the log counts them, and rise.

    source, format   the path, and what kind of file it is
    step, loss       [L]  training losses as logged; empty where there are none
    grad_norm_step, grad_norm   [N]  gradient norms as logged; empty where there are none. Those of
                     updates that were skipped, as nothing else explains the finite losses after
                     them, are left out.
    metrics          every other column of numbers: name → (steps, values)
    objective        the name of the evaluations that count; empty where there are none
    guessed          role → the column that was guessed for it
    notes            what is to be known of these numbers, in sentences
    total_steps      updates that were planned; the last step where the log does not say
    """

    source: str
    format: str
    step: Steps
    loss: Array
    grad_norm_step: Steps
    grad_norm: Array
    metrics: Mapping[str, tuple[Steps, Array]]
    objective: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    guessed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    total_steps: int = 0

    def curve(self, chance_loss: float = math.nan) -> Curve:
        """The losses with their steps, the norm of each, and the evaluations of the objective.

        The norm of a loss is the last one that was logged since the loss before it; where there is
        none, that of the loss before. A norm that is not finite is never passed over.
        """
        nothing: tuple[Steps, Array] = np.empty(0, np.int64), np.empty(0)
        eval_step, values = self.metrics.get(self.objective, nothing)
        return Curve(
            loss=self.loss,
            grad_norm=self._norm_of_each_loss(),
            eval_step=eval_step,
            metrics={self.objective: values} if self.objective else {},
            total_steps=self.total_steps,
            chance_loss=chance_loss,
            loss_step=self.step,
        )

    def _norm_of_each_loss(self) -> Array:
        count = len(self.loss)
        if not len(self.grad_norm) or not count:
            return np.empty(0)
        if np.array_equal(self.grad_norm_step, self.step):
            return self.grad_norm
        place = np.minimum(np.searchsorted(self.step, self.grad_norm_step), count - 1)
        norm, known = np.empty(count), np.zeros(count, bool)
        norm[place], known[place] = self.grad_norm, True  # of several the last one stays
        broken = ~np.isfinite(self.grad_norm)
        norm[place[broken]] = self.grad_norm[broken]
        before = np.maximum.accumulate(np.where(known, np.arange(count), -1))
        return np.asarray(norm[np.where(before < 0, place[0], before)])


def read_log(path: Path, columns: GivenColumns | None = None) -> Log:
    """The log at a path: a file, or a folder of event files of one run.

    `columns` names what is not to be guessed. Raises UserError, with the place, for what is no log,
    for a column that is not there or holds text, and where neither losses nor evaluations are
    known.
    """
    try:
        kind = find_format(path)
        table = kind.read(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8, byte {error.start}") from error
    if not table.count:
        raise UserError(f"{path}: has no rows")
    return _log(str(path), kind.name, kind.note, table, columns or GivenColumns())


def _log(source: str, kind: str, note: str, table: Table, columns: GivenColumns) -> Log:
    given = columns.given()
    for role, name in given.items():
        _check(source, role, name, table)
    roles = [role for role in vars(columns) if role not in given]
    lengths = {name: len(column.rows) for name, column in table.columns.items()}
    guessed = guess(lengths, roles)
    found = given | guessed
    missing = [role for role in _OWN if role not in found]
    for role, name in guess(dict.fromkeys(table.texts, 1), missing).items():
        raise UserError(
            f"{source}: column {name!r} holds text: {table.texts[name]}; name another column by "
            f"--{role.replace('_', '-')}"
        )
    if "loss" not in found and "objective" not in found:
        raise UserError(
            f"{source}: no column is known to be a training loss or an evaluation: name it by "
            f"--loss or --objective; {_names(table)}"
        )
    step = table.columns[found["step"]] if "step" in found else None
    if step is not None:
        _check_steps(source, found["step"], step)
    own = step
    if own is not None and EPOCH in table.columns:
        step = counted_on(own, table.columns[EPOCH])
    read = _Reader(table, step, found.get("loss") or found["objective"])
    losses = read.series(found.get("loss"))
    norms = read.series(found.get("grad_norm"))
    others = [name for name in table.columns if name not in {found.get(role) for role in _OWN}]
    metrics = {name: read.series(name)[:2] for name in others if len(table.columns[name].rows)}
    sound, skipped = _without_skipped(losses, norms)
    every = [losses[0], norms[0], *(steps for steps, _ in metrics.values())]
    last = max((int(steps[-1]) for steps in every if len(steps)), default=0)
    notes = [
        *table.notes,
        *([note] if note else []),
        *_of_steps(found.get("step"), step is not own),
        *read.notes(losses),
        *_of_losses(losses[:2], skipped, last),
        *_of_evaluations(metrics.get(found.get("objective", ""))),
    ]
    return Log(
        source=source,
        format=kind,
        step=losses[0],
        loss=losses[1],
        grad_norm_step=sound[0],
        grad_norm=sound[1],
        metrics=metrics,
        objective=found.get("objective", ""),
        hyperparameters=table.hyperparameters,
        guessed=guessed,
        notes=tuple(notes),
        total_steps=max(table.total_steps, last),
    )


_OWN = ("step", "loss", "grad_norm")  # roles whose columns are no metrics


class _Reader:
    """Columns in the order of their steps. Where training went back is seen in one of them."""

    def __init__(self, table: Table, step: Column | None, leading: str) -> None:
        self._table, self._step = table, step
        column, steps = steps_of(table.columns[leading], step)
        self._restarts: Restarts = find_restarts(column.rows, steps)

    def series(self, name: str | None) -> Series:
        """The series of a column; an empty one without a name."""
        if name is None:
            return np.empty(0, np.int64), np.empty(0), 0
        column, steps = steps_of(self._table.columns[name], self._step)
        return in_order(column, steps, self._restarts)

    def notes(self, losses: Series) -> Iterator[str]:
        if self._restarts.note:
            yield self._restarts.note
        if losses[2]:
            what = "1 loss gives" if losses[2] == 1 else f"{losses[2]} losses give"
            yield f"{what} way to a later one of the same step."


def _check(source: str, role: str, name: str, table: Table) -> None:
    option = f"--{role.replace('_', '-')}"
    if name in table.texts:
        raise UserError(f"{source}: {option}: column {name!r} holds text: {table.texts[name]}")
    if name not in table.columns:
        raise UserError(f"{source}: {option}: no column {name!r}; {_names(table)}")
    if not len(table.columns[name].rows):
        raise UserError(f"{source}: {option}: column {name!r} is empty")


def _names(table: Table) -> str:
    names = [
        *table.columns,
        *(f"{name} (text)" for name in table.texts if name not in table.columns),
    ]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"it has {', '.join(names[:NAMES_SHOWN])}{more}"


def _of_steps(name: str | None, is_by_epoch: bool) -> Iterator[str]:
    if is_by_epoch:
        yield "Steps begin anew with each epoch: they are counted on from one to the next."
    if name is None:
        yield "There is no column of steps: rows are counted."
    elif name == CALLS:
        yield f"{CALLS} counts calls of wandb.log, which may be no updates: name others by --step."


def _check_steps(source: str, name: str, step: Column) -> None:
    with np.errstate(invalid="ignore"):
        whole = (step.values >= 0) & (step.values <= LARGEST_STEP) & (step.values % 1 == 0)
    if not whole.all():
        bad = step.values[~whole][0]
        raise UserError(
            f"{source}: column {name!r} holds {bad:g}: steps are whole numbers from 0 on; name "
            "another column by --step"
        )


def _without_skipped(losses: Series, norms: Series) -> tuple[tuple[Steps, Array], int]:
    """The norms without those of updates that were skipped, and how many these are.

    Such a norm is not finite, though a loss after it is. An update by its gradient would leave no
    finite loss, so there was none, as where losses are scaled for half precision.
    """
    step, loss, _ = losses
    finite = step[np.isfinite(loss)]
    last = finite[-1] if len(finite) else -1
    skipped = ~np.isfinite(norms[1]) & (norms[0] < last)
    return (norms[0][~skipped], norms[1][~skipped]), int(skipped.sum())


def _of_losses(losses: tuple[Steps, Array], skipped: int, last: int) -> Iterator[str]:
    """What is to be said of losses as they were logged."""
    step, loss = losses
    if not len(step):
        yield "There are no training losses: the evaluations alone are judged."
        return
    spacing = np.diff(step)
    typical = int(np.median(spacing)) if len(spacing) else 1
    if typical > 1:
        longest = int(spacing.max())
        up_to = f", at the most {longest} apart" if longest > 2 * typical else ""
        yield (
            f"Losses are logged every {typical} steps{up_to}: an instability that comes and goes "
            f"between two of them is not seen (R5), and an onset is known to within {typical} "
            "steps. Where the verdict counts updates, it counts losses."
        )
    if last > step[-1] + 2 * typical:
        yield (
            f"The last loss is of step {step[-1]}, and the log goes on to step {last}: if losses "
            "that are nan were written as empty cells, the training is infeasible."
        )
    bad = np.flatnonzero(~np.isfinite(loss))
    after = np.flatnonzero(np.isfinite(loss[bad[0] :])) if len(bad) else bad
    if len(after):
        yield (
            f"Losses are finite again from step {step[bad[0] + after[0]]} on: if only updates "
            "between were skipped, as in mixed precision, the training is sound, whatever its "
            "verdict."
        )
    if skipped:
        what = "A gradient norm is" if skipped == 1 else f"{skipped} gradient norms are"
        yield (
            f"{what} not finite, with finite losses after: these updates were skipped, as in "
            "mixed precision, and are left out."
        )


def _of_evaluations(evaluated: tuple[Steps, Array] | None) -> Iterator[str]:
    if evaluated is None:
        yield "There are no evaluations: the training losses alone are judged."
    elif len(evaluated[0]) and evaluated[0][0] > UNTRAINED_STEPS:
        first = f"The first evaluation is of step {evaluated[0][0]}, not of the untrained model"
        yield f"{first}: it says little of what was learned, and nothing of what was lost."
