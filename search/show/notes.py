"""Verdicts and axis plots on the pages of Optuna Dashboard, one page per batch size.

A note per study, never per trial: the dashboard sends all of them with every refresh.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from ..judge.analysis import EDGE_HEADROOM, GroupSummary, GroupVerdict, varied_names
from ..judge.comparison import Comparison
from ..judge.diagnosis import Diagnosis
from ..judge.scaled import ScalingReport
from ..playbook import CITATION, rule
from ..store.results import Results
from ..store.rows import stored_trials
from ..study.study import Study
from ..trial import Group
from ..words import headroom_in_words, readable
from .chapter import told_by
from .importance import importances
from .plots import axis_figure, axis_info
from .scaling import COLUMNS as SCALING_COLUMNS
from .scaling import size_rows
from .tables import as_good_in_words, baseline_cells, remedy_rows, signed, with_gain

KEPT = "*What you write below this line stays when the verdict is written anew.*"
COLUMNS = (
    "group",
    "lr_star",
    "as good",
    "best value",
    "unstable_base_lr",
    "headroom",
    "infeasible",
    "at step",
    "verdict",
)
REMEDY_COLUMNS = ("remedy", "base_lr", "trains up to", "tuned", "rerun", "gain", "decision")
MEANING: dict[GroupVerdict, str] = {
    "on the edge": (
        f"the best base_lr is within {EDGE_HEADROOM:g} × of where training breaks (R6). Fix the "
        "instability first: warmup, clipping, another optimizer; lowering the learning rate is "
        "the last resort (R18)."
    ),
    "edge not reached": (
        "nothing above lr_star is infeasible, or only one trial was tried above what is as good. "
        "Widen base_lr upwards and run again (S4)."
    ),
    "stable": "training breaks above lr_star, but not near it.",
    "unstable": (
        "training breaks: lower base_lr by an order of magnitude if nothing trains; else the "
        "diagnosis says what helps."
    ),
    "no evidence": "every trial crashed or is unfinished, which says nothing of its point.",
}
READING = f"""\
- **lr_star** is the lowest base_lr that is not shown to be worse than the best; **as good** are
  those from there on. **best value** is that of the best configuration, over the whole run.
- **unstable_base_lr**: training still worked at the first number and broke at the second, the
  smallest above lr_star; the edge lies between.
- **headroom** is unstable_base_lr / the best base_lr; up to {EDGE_HEADROOM:g} means that this sits
  on the edge. Where more than a decade is as good, it is a basin, and headroom is relative to its
  upper end.
- **infeasible** trials diverged or collapsed: a result, not a failure. They are drawn grey here and
  red in the axis plots, and are never the best trial."""
TRAINED_HERE = "The objective value shown for them is that of the untrained\n  model."

BASELINE_TRIAL = (
    "The baseline is a trial of its own, with `verdict` baseline and its checkpoint as artifact."
)


def annotate(results: Results, importance: bool = False) -> None:
    """Write the verdict note and the axis plots of each batch size into its Optuna study.

    With `importance` the note also says what matters within each optimizer: that takes a second or
    two, for which no run should wait. Writing again replaces them, and keeps what somebody wrote
    below the note.
    """
    study, comparison = results.study, results.comparison
    baseline = comparison.checkpoint.value if comparison else None
    for batch_size, optuna_study in results.store.optuna_studies.items():
        own = [trial for trial in results.on_axes if trial.point.batch_size == batch_size]
        summaries = [row for row in results.summaries if row.group.batch_size == batch_size]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna_study.set_metric_names([study.objective])
        note = verdict_note(study, batch_size, summaries, comparison)
        if importance:
            note = "\n".join([note, *_importance_lines(study, stored_trials(optuna_study))])
        if results.diagnosis:
            note = f"{diagnosis_note(results.diagnosis, batch_size, results.folder)}\n\n{note}"
        if results.scaling:
            note = f"{note}\n\n{scaling_note(results.scaling)}"
        _save_note(optuna_study, note)
        for axis in varied_names(own):
            info = axis_info(
                own,
                axis,
                study.objective,
                log=_is_log(study, axis),
                scientific=study.scientific_names,
                baseline=baseline,
                told=told_by(results),
            )
            save_plotly_graph_object(
                optuna_study, axis_figure(info), graph_object_id=_figure_id(axis)
            )


def verdict_note(
    study: Study,
    batch_size: int,
    summaries: Sequence[GroupSummary],
    comparison: Comparison | None = None,
) -> str:
    """The verdict on one batch size as Markdown: a row per group, and how to read it.

    With a comparison the decision stands first, and the table has the baseline and the distance to
    it.
    """
    judged = sum(row.feasible + row.infeasible for row in summaries)
    crashed = sum(row.crashed for row in summaries)
    unfinished = sum(row.unfinished for row in summaries)
    verdicts = dict.fromkeys(row.verdict for row in summaries)
    decision = [f"Against the baseline: **{comparison.decision}**.", ""] if comparison else []
    baseline = [_baseline_row(comparison)] if comparison else []
    rows = [_cells(row, comparison) for row in summaries]
    lines = [
        f"## {study.objective} at batch size {batch_size}: {judged} trials",
        study.question,
        "",
        *decision,
        *_table([with_gain(COLUMNS, comparison), *baseline, *rows]),
        "",
        *(f"- **{verdict}**: {CITATION.sub(_link, MEANING[verdict])}" for verdict in verdicts),
        READING if study.imported else f"{READING} {TRAINED_HERE}",
    ]
    if comparison:
        lines.append(f"- {comparison.gain_in_words}. {BASELINE_TRIAL}")
    if crashed:
        again = "" if study.imported else " `tunewright run` tries them again."
        lines.append(f"- **crashed**, not counted: {crashed}.{again}")
    if unfinished:
        lines.append(f"- **unfinished**, pruned or stopped, not counted: {unfinished}.")
    return "\n".join(lines)


def _importance_lines(study: Study, trials: Sequence[FrozenTrial]) -> list[str]:
    """What matters within each optimizer; the dashboard's own panel mixes them."""
    lines = []
    for optimizer in study.optimizers:
        own = [one for one in trials if one.params.get("optimizer", optimizer) == optimizer]
        found = importances(own, study.direction)
        prefix = f"{optimizer}."
        told = [f"{name.removeprefix(prefix)} {share:.0%}" for name, share in found.items()]
        if told:
            lines.append(f"- **importance within {optimizer}** (fANOVA): {', '.join(told)}.")
    return lines


def diagnosis_note(found: Diagnosis, batch_size: int, folder: Path) -> str:
    """What a diagnosis says of one batch size as Markdown: of each group its verdict in a sentence,
    what is adopted and every remedy; and where the recipe is.
    """
    lines = [f"## Diagnosis at batch size {batch_size}"]
    for one in found.groups:
        if one.group.batch_size != batch_size:
            continue
        lines += ["", f"**{_name(one.group)}**: {one.summary}", ""]
        if one.adopted:
            lines += [f"Adopted: **{one.adopted}**", ""]
        rows = [[row[name] for name in REMEDY_COLUMNS] for row in remedy_rows(one)]
        if rows:
            lines += _table([REMEDY_COLUMNS, *rows])
    if recipe := found.recipes.get(str(batch_size)):
        lines += ["", f"Recipe: `tunewright run {folder / recipe} --results {folder}`"]
    return "\n".join(lines)


def scaling_note(report: ScalingReport) -> str:
    """What batch sizes say together as Markdown: of each group its answer and every batch size."""
    lines = ["## Scaling with the batch size"]
    for told in report.groups:
        lines += ["", f"**{told.label}**: {told.sentence}.", ""]
        rows = [[row[name] for name in SCALING_COLUMNS] for row in size_rows(told)]
        lines += _table([SCALING_COLUMNS, *rows])
    return "\n".join(lines)


def _link(citation: re.Match[str]) -> str:
    """The id of a rule as a Markdown link to its section; its title says the rule."""
    one = rule(citation[1])
    return f'[{one.id}]({one.address} "{one.sentence}")'


def _baseline_row(comparison: Comparison) -> list[str]:
    cells = baseline_cells(comparison)
    return [cells.get(column, "") for column in with_gain(COLUMNS, comparison)]


def _cells(row: GroupSummary, comparison: Comparison | None) -> tuple[str, ...]:
    none = "–"
    last_feasible, unstable = row.unstable_base_lr
    lr_star = headroom = best_value = best_step = infeasible = none
    edge = f"> {readable(last_feasible)}"
    if math.isfinite(unstable):
        edge = f"{readable(last_feasible)} – {readable(unstable)}"
    if row.point:
        lr_star, best_value = readable(row.lr_star), readable(row.best_value)
        best_step = none if math.isnan(row.best_step) else str(row.best_step)
        if math.isfinite(unstable):
            headroom = headroom_in_words(row.headroom)
    if not math.isnan(row.infeasible_fraction):
        infeasible = f"{row.infeasible_fraction:.0%}"
    gain = [signed(comparison.gain(row.best_value))] if comparison else []
    known = _name(row.group), lr_star, as_good_in_words(row), best_value
    return (*known, *gain, edge, headroom, infeasible, best_step, f"**{row.verdict}**")


def _name(group: Group) -> str:
    return ", ".join(
        [group.optimizer, *(f"{name} = {readable(value)}" for name, value in group.scientific)]
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _save_note(optuna_study: optuna.Study, verdict: str) -> None:
    before = get_note(optuna_study)
    _, line, below = before.partition(KEPT)
    theirs = below if line else before  # a note without our line was all written by somebody
    body = f"{verdict}\n\n---\n{KEPT}\n\n{theirs.strip()}".rstrip() + "\n"
    if body != before:  # make no new version without need: an open editor refuses to save over one
        save_note(optuna_study, body)


def _is_log(study: Study, axis: str) -> bool:
    return any(ranges[axis][2] for ranges in study.ranges.values() if axis in ranges)


def _figure_id(axis: str) -> str:
    """An id that depends on the axis alone: a new figure replaces the old one. ASCII only."""
    return "axis-" + re.sub(r"[^A-Za-z0-9_.-]", "-", axis)
