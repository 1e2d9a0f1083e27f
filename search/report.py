"""report.html: one file that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .analysis import (
    GroupSummary,
    GroupVerdict,
    Space,
    boundary_checks,
    group_trials,
    ranked,
    readable,
    summarize,
    varied,
)
from .files import atomic
from .flags import checkpoint_note, curve_flags
from .plots import (
    axis_figure,
    axis_info,
    curves_figure,
    curves_info,
    norms_figure,
    norms_info,
)
from .storage import Store, read_trials
from .tables import summary_cells
from .trial import Trial

TEMPLATE = Path(__file__).with_name("report.html.jinja")
PANEL_WIDTH, MARGIN_WIDTH = 300, 160  # pixels: narrower figures scroll instead of shrinking
SUMMARY_COLUMNS = (
    "group", "trials", "infeasible", "crashed", "near lr_star", "lr_star", "unstable_base_lr", "headroom",
    "best value", "at step", "verdict",
)  # fmt: skip
OUTCOMES = (
    "verdict", "instability", "onset_step", "best_value", "best_step", "clip_fraction", "seconds", "reason",
)  # fmt: skip
TEXT_COLUMNS = ("optimizer", "decay", "verdict", "instability", "reason")
COLOURS: dict[GroupVerdict, str] = {
    "stable": "good",
    "unstable at the edge": "bad",
    "boundary": "warn",
    "no feasible trial": "bad",
}


@dataclass(frozen=True)
class Cell:
    """A table cell: what is read, and what it is sorted by."""

    text: str
    value: Any
    style: str = ""


def build_report(store: Store) -> Path:
    """Write report.html of a results folder, and return its path."""
    study, path = store.study, store.folder / "report.html"
    environment = store.folder / "environment.json"
    space = study.ranges
    write_report(
        path,
        name=study.name,
        question=study.question,
        trials=read_trials(store),
        objective=study.objective,
        log_axes={"base_lr"} | {axis for own in space.values() for axis, (_, _, log) in own.items() if log},
        space=space,
        scientific=study.scientific_names,
        environment=json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else None,
    )
    return path


def write_report(
    path: str | Path,
    *,
    name: str,
    question: str,
    trials: Iterable[Trial],
    objective: str,
    log_axes: Collection[str] = ("base_lr",),
    space: Space | None = None,
    scientific: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    log_steps: bool = False,
) -> None:
    """Write the report of a study's finished trials to `path`, all of it or nothing.

    `space` bounds the axes, as in `analysis.boundary_checks`; `notes` are sentences of the caller, put
    first among those to look at; `environment` is the provenance. The same arguments give the same bytes.
    """
    trials = sorted(trials, key=lambda trial: (trial.point.batch_size, trial.point.number))
    summaries = summarize(trials, scientific, space)
    names = _hyperparameters(trials)
    document = _template().render(
        name=name,
        question=question,
        objective=objective,
        counts=_counts(trials),
        summaries=[_summary_row(row, varied(trials)) for row in summaries],
        summary_columns=SUMMARY_COLUMNS,
        sentences=[*notes, *_sentences(trials, objective, space, scientific)],
        sections=_sections(trials, objective, log_axes, scientific, log_steps),
        trial_columns=["number", *names, *OUTCOMES],
        text_columns=TEXT_COLUMNS,
        trials=[_trial_row(trial, names) for trial in trials],
        provenance=list((environment or {}).items()),
        plotly_js=Markup(get_plotlyjs()),
    )
    with atomic(Path(path)) as temporary:
        temporary.write_text(document, encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _counts(trials: list[Trial]) -> str:
    feasible = sum(trial.feasible for trial in trials)
    crashed = sum(trial.verdict.crashed for trial in trials)
    infeasible = len(trials) - feasible - crashed
    return f"{len(trials)} trials: {feasible} feasible, {infeasible} infeasible, {crashed} crashed"


def _sentences(trials: list[Trial], objective: str, space: Space | None, scientific: Sequence[str]) -> list[str]:
    """Boundaries (S4), lengths of training (S8) and the flags of each group's best curve (S6)."""
    sentences = [note.sentence for note in boundary_checks(trials, space, scientific)]
    for group, own in group_trials(trials, scientific).items():
        if note := checkpoint_note(own, objective):
            sentences.append(f"{group.label}: {note}.")
        sentences += [
            f"{group.label}, best trial {best.point.number}: {flag.sentence}."
            for best in ranked(own)[:1]
            for flag in curve_flags(best, objective)
        ]
    return sentences


# --- figures -----------------------------------------------------------------------------------------------


def _sections(
    trials: list[Trial],
    objective: str,
    log_axes: Collection[str],
    scientific: Sequence[str],
    log_steps: bool,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings with their figures."""
    if not trials:
        return []
    axes = sorted(varied(trials), key=lambda axis: axis != "base_lr")
    norms = norms_info(trials, scientific=scientific)
    sections = {
        "Axis plots": [
            axis_figure(axis_info(trials, axis, objective, log=axis in log_axes, scientific=scientific))
            for axis in axes
        ],
        "Training curves": [curves_figure(curves_info(trials, objective, log_steps=log_steps, scientific=scientific))],
        "Gradient norms": [norms_figure(norms)] if norms.panels else [],
    }
    columns = {"Gradient norms": 3}
    batch_sizes = len({trial.point.batch_size for trial in trials})
    return [
        (
            heading,
            [_div(figure, f"{heading} {k}", columns.get(heading, batch_sizes)) for k, figure in enumerate(figures)],
        )
        for heading, figures in sections.items()
    ]


def _div(figure: go.Figure, label: str, columns: int) -> dict[str, Any]:
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=label.lower().replace(" ", "-"),  # its default is random
        config={"displaylogo": False, "responsive": True},
    )
    return {"html": Markup(html), "min_width": MARGIN_WIDTH + PANEL_WIDTH * columns}


# --- tables ------------------------------------------------------------------------------------------------


def _summary_row(row: GroupSummary, names: Collection[str]) -> dict[str, Any]:
    cells = summary_cells(row, names)
    return {
        "cells": [cells[column] for column in SUMMARY_COLUMNS[:-1]],
        "verdict": row.verdict,
        "colour": COLOURS[row.verdict],
        "best": cells["best point"],
    }


def _hyperparameters(trials: list[Trial]) -> list[str]:
    """Names of all hyperparameters that any trial has, in the order they first appear."""
    return list(dict.fromkeys(name for trial in trials for name in trial.point.values))


def _trial_row(trial: Trial, names: list[str]) -> list[Cell]:
    verdict, values = trial.verdict, trial.point.values
    style = "good" if trial.feasible else "off" if verdict.crashed else "bad"
    return [
        _cell(trial.point.number),
        *(_cell(values.get(name, "")) for name in names),
        Cell(verdict.outcome, verdict.outcome, f"text verdict {style}"),
        _cell(verdict.instability),
        _cell(verdict.onset_step),
        _cell(trial.best_value),
        _cell(trial.best_step),
        _cell(trial.clip_fraction),
        _cell(trial.seconds),
        Cell(verdict.evidence, verdict.evidence, "text wide"),
    ]


def _cell(value: Any) -> Cell:
    return Cell(readable(value), value, "text" if isinstance(value, str) else "")
