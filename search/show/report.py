"""report.html: one file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..errors import UserError, warn_once
from ..judge.analysis import (
    GroupSummary,
    GroupVerdict,
    boundary_checks,
    group_trials,
    hyperparameters,
    is_rankable,
    rank_configurations,
    varied_names,
)
from ..judge.comparison import Comparison, Decision
from ..judge.diagnosis import GroupDiagnosis
from ..judge.flags import checkpoint_note, curve_flags
from ..judge.readout import clipped_before
from ..playbook import CITATION, rule
from ..rules.counterparts import MADE_BY_RUN, OURS, Counterpart
from ..rules.hyperparameters import HYPERPARAMETERS
from ..rules.optimizers import counterpart
from ..store.files import atomic
from ..store.results import Results
from ..trial import Trial
from ..words import readable
from .chapter import Scene, colour, story
from .plots import (
    axis_figure,
    axis_info,
    comparable,
    curves_figure,
    curves_info,
    is_untuned,
    loss_figure,
    loss_info,
    norms_figure,
    norms_info,
    overlay_figure,
    overlay_info,
    versus_figure,
    versus_info,
)
from .tables import (
    LEFT,
    MAY_FAIL,
    baseline_cells,
    comparison_rows,
    cost_rows,
    interval_method,
    on_test_split,
    remedy_rows,
    signed,
    summary_cells,
    with_gain,
)

TEMPLATE = Path(__file__).with_name("report.html.jinja")
PICTURE_WIDTH, PIXELS_PER_UNIT = 420, 1.0  # of a panel in a PNG; a single one is as wide as two
PANEL_WIDTH, MARGIN_WIDTH = 300, 160  # pixels: narrower figures scroll instead of shrinking
SUMMARY_COLUMNS = (
    "group",
    "trials",
    "infeasible",
    "crashed",
    "near lr_star",
    "lr_star",
    "unstable_base_lr",
    "headroom",
    "best value",
    "at step",
    "verdict",
)
OUTCOMES = (
    "verdict",
    "instability",
    "onset_step",
    "best_value",
    "best_step",
    "clip_fraction",
    "seconds",
    "reason",
)
TEXT_COLUMNS = (
    *("optimizer", "verdict", "instability", "reason"),
    *(name for name, row in HYPERPARAMETERS.items() if row.choices is not None),
)
COLOURS: dict[GroupVerdict, str] = {
    "stable": "good",
    "on the edge": "edge",
    "edge not reached": "warn",
    "unstable": "bad",
    "no evidence": "off",
}

DECISION_COLOURS: dict[Decision, str] = {
    "adopt": "good",
    "keep baseline": "bad",
    "not enough evidence": "warn",
}


@dataclass(frozen=True)
class Cell:
    """A table cell: what is read, and what it is sorted by."""

    text: str
    value: Any
    style: str = ""


def write_report(results: Results, png: bool = False) -> Path:
    """Write report.html of a study's results, and return its path.

    With `png` also plots/*.png. All of the report is written, or nothing. The same results give the
    same bytes.
    """
    path = results.folder / "report.html"
    found, scenes = pictures(results), _scenes(results)
    document = _document(results, found, scenes)
    with atomic(path) as temporary:
        temporary.write_text(document, encoding="utf-8", errors="backslashreplace")
    if png:
        found += [_versus(results.comparison)] if results.comparison else []
        found += [_picture(scene) for scene in scenes if scene.figure]
        write_pictures(results.folder / "plots", found)
    return path


def _scenes(results: Results) -> list[Scene]:
    """The steps of a diagnosis; none (with a warning) if the results of one are missing."""
    try:
        return list(story(results))
    except UserError as error:
        warn_once(f"{results.folder / 'report.html'}: without the diagnosis: {error}")
        return []


def _document(results: Results, found: Iterable[Picture], scenes: Iterable[Scene]) -> str:
    study, trials, comparison = results.study, results.trials, results.comparison
    summaries, names, varied = results.summaries, hyperparameters(trials), varied_names(trials)
    rows = [_trial_row(trial, names, comparison) for trial in trials]
    chapter = baseline_summary = None
    if comparison:
        chapter = _chapter(comparison)
        baseline_summary = _baseline_summary(comparison) if summaries else None
        rows.insert(0, _baseline_row(comparison, names))
    steps = groupby(scenes, key=lambda scene: scene.group)
    told = [_told(group, list(own)) for group, own in steps]
    seeds = max((row.seeds for row in summaries), default=1)
    made_by_run = "" if study.workload else MADE_BY_RUN
    return template(TEMPLATE).render(
        name=study.name,
        question=study.question,
        objective=study.objective,
        direction=f"{study.direction}d",
        counts=_counts(trials),
        unfinished=any(trial.verdict.unfinished for trial in trials),
        summaries=[_summary_row(row, varied, comparison) for row in summaries],
        baseline=baseline_summary,
        summary_columns=with_gain(SUMMARY_COLUMNS, comparison),
        gain=comparison.gain_in_words if comparison else "",
        may_fail=MAY_FAIL.capitalize(),
        seeds=seeds,
        counterparts=list(_counterparts(summaries)),
        made_by_run=made_by_run,
        make=f"{OURS}(name, params, settings, lr)",
        sentences=_sentences(results),
        comparison=chapter,
        diagnosis=told,
        sections=_sections(found),
        trial_columns=["number", *names, *with_gain(OUTCOMES, comparison)],
        text_columns=TEXT_COLUMNS,
        trials=rows,
        provenance=list(results.environment.items()),
        plotly_js=Markup(get_plotlyjs()),
    )


def template(path: Path) -> jinja2.Template:
    """A page, in which `rule` and `cited` say what the rules of an id or a sentence are."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"rule": _abbreviation, "cited": _cite}
    return environment.from_string(path.read_text(encoding="utf-8"))


def _abbreviation(id: str) -> Markup:
    """The id of a rule, with the rule's sentence on hover."""
    return Markup('<abbr title="{}">{}</abbr>').format(rule(id).sentence, id)


def _cite(sentence: str) -> Markup:
    """A sentence, escaped, with the sentence of each cited rule on hover."""
    words = CITATION.split(sentence)  # text, id, text, …, id, text
    words[1::2] = map(_abbreviation, words[1::2])
    return Markup("").join(words)


def _counts(trials: Sequence[Trial]) -> str:
    feasible = sum(trial.feasible for trial in trials)
    crashed = sum(trial.verdict.crashed for trial in trials)
    unfinished = sum(trial.verdict.unfinished for trial in trials)
    infeasible = len(trials) - feasible - crashed - unfinished
    counts = f"{feasible} feasible, {infeasible} infeasible, {crashed} crashed"
    return f"{len(trials)} trials: {counts}" + f", {unfinished} unfinished" * bool(unfinished)


def _counterparts(summaries: Iterable[GroupSummary]) -> Iterator[tuple[str, Counterpart]]:
    """By group, the optimizer of its best point for a script of one's own."""
    for row in summaries:
        if row.best_point:
            point = row.best_point
            yield row.group.label, counterpart(point.optimizer, point.settings, point.base_lr)


def _sentences(results: Results) -> list[str]:
    """Boundaries (S4), lengths of training (S8) and the flags of each group's best curve (S6)."""
    study, trials = results.study, results.trials
    notes = boundary_checks(trials, study.ranges, study.scientific_names)
    sentences = [note.sentence for note in notes]
    for group, own in group_trials(trials, study.scientific_names).items():
        if note := checkpoint_note(own, study.objective):
            sentences.append(f"{group.label}: {note}.")
        for best in rank_configurations(own)[:1]:
            told = [flag.sentence for flag in curve_flags(best, study.objective)]
            told += filter(None, [clipped_before(best)])
            sentences += [f"{group.label}, best trial {best.point.number}: {one}." for one in told]
    return sentences


# --- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure of the report: its heading, its name as a file, and its columns of panels."""

    heading: str
    name: str
    figure: go.Figure
    columns: int


def pictures(results: Results) -> list[Picture]:
    """Every figure about the trials of a study, in the order of the report."""
    study, trials = results.study, results.trials
    objective, scientific, figure = study.objective, study.scientific_names, study.figure
    if not trials:
        return []
    baseline = results.comparison.checkpoint.value if results.comparison else None
    ranges = [own.items() for own in study.ranges.values()]
    log_axes = {"base_lr"} | {axis for own in ranges for axis, (_, _, log) in own if log}
    batch_sizes = len({trial.point.batch_size for trial in trials})
    found = []
    if comparable(trials, scientific):
        overlay = overlay_figure(overlay_info(trials, objective, scientific))
        found.append(Picture("Comparison", "comparison", overlay, 2 * batch_sizes))
    if is_untuned(trials, scientific):
        losses = loss_info(
            trials, scientific, log_steps=figure.log_steps, sparse_every=figure.sparse_every or 0
        )
        found.append(Picture("Comparison", "training_loss", loss_figure(losses), 2))
    for axis in sorted(varied_names(trials), key=lambda axis: axis != "base_lr"):
        info = axis_info(
            trials,
            axis,
            objective,
            log=axis in log_axes,
            scientific=scientific,
            baseline=baseline,
        )
        found.append(Picture("Axis plots", f"axis_{axis}", axis_figure(info), batch_sizes))
    if not any(len(trial.curve.loss) for trial in trials):
        return found
    curves = curves_info(trials, objective, log_steps=figure.log_steps, scientific=scientific)
    found.append(Picture("Training curves", "training_curves", curves_figure(curves), batch_sizes))
    norms = norms_info(trials, scientific=scientific)
    if norms.panels:
        found.append(Picture("Gradient norms", "gradient_norms", norms_figure(norms), 3))
    return found


def write_pictures(folder: Path, found: Iterable[Picture]) -> None:
    """Write each picture as a PNG file.

    Raises UserError if the optional parts that draw them are missing.
    """
    for picture in found:
        try:
            image = picture.figure.to_image(
                "png",
                width=MARGIN_WIDTH + PICTURE_WIDTH * max(picture.columns, 2),
                scale=PIXELS_PER_UNIT,
            )
        except (ValueError, RuntimeError, ImportError) as error:
            raise UserError(
                "--png: needs kaleido and a Chrome or Chromium browser: pip install "
                f"'tunewright[png]', and install chromium. {str(error).strip().splitlines()[0]}"
            ) from error
        with atomic(folder / f"{picture.name}.png") as temporary:
            temporary.write_bytes(image)


def _versus(result: Comparison) -> Picture:
    return Picture("Against the baseline", "versus", versus_figure(versus_info(result)), 2)


def _chapter(result: Comparison) -> dict[str, Any]:
    """The comparison with a baseline, for the template."""
    return {
        "decision": result.decision,
        "failures": result.failures,
        "interval_method": interval_method(result),
        "gain": result.gain_in_words,
        "colour": DECISION_COLOURS[result.decision],
        "checkpoint": result.checkpoint,
        "seeds": range(result.first_seed, result.first_seed + result.seeds),
        "tables": [comparison_rows(result), cost_rows(result)],
        "text_columns": LEFT,
        "test": on_test_split(result),
        "warnings": result.warnings,
        "figure": _div(_versus(result)),
    }


def _picture(scene: Scene) -> Picture:
    assert scene.figure is not None  # the caller looks
    return Picture("Diagnosis", scene.name, scene.figure, scene.columns)


def _told(found: GroupDiagnosis, scenes: Sequence[Scene]) -> dict[str, Any]:
    """The diagnosis of a group, for the template."""
    return {
        "label": found.group.label,
        "summary": found.summary,
        "colour": colour(found),
        "rows": remedy_rows(found),
        "interval_method": interval_method(found),
        "text_columns": LEFT,
        "steps": [
            {
                "title": scene.step.title,
                "rules": scene.step.rules,
                "sentences": scene.step.sentences,
                "studies": scene.step.studies,
                "figure": _div(_picture(scene)) if scene.figure else None,
            }
            for scene in scenes
        ],
    }


def _sections(found: Iterable[Picture]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings with their figures."""
    return [
        (heading, [_div(picture) for picture in members])
        for heading, members in groupby(found, key=lambda picture: picture.heading)
    ]


def figure_html(figure: go.Figure, name: str) -> Markup:
    """A figure for a page that holds plotly's script."""
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,  # its default is random
        config={"displaylogo": False, "responsive": True},
    )
    return Markup(html)


def _div(picture: Picture) -> dict[str, Any]:
    return {
        "html": figure_html(picture.figure, picture.name),
        "min_width": MARGIN_WIDTH + PANEL_WIDTH * picture.columns,
    }


# --- tables ---------------------------------------------------------------------------------------


def _summary_row(
    row: GroupSummary, names: Collection[str], comparison: Comparison | None
) -> dict[str, Any]:
    cells = summary_cells(row, names, comparison)
    return {
        "cells": [cells[column] for column in with_gain(SUMMARY_COLUMNS, comparison)[:-1]],
        "verdict": row.verdict,
        "colour": COLOURS[row.verdict],
        "best": cells["best point"],
    }


def _baseline_summary(comparison: Comparison) -> list[str]:
    cells = baseline_cells(comparison)
    return [cells.get(column, "") for column in with_gain(SUMMARY_COLUMNS, comparison)]


def _baseline_row(comparison: Comparison, names: list[str]) -> list[Cell]:
    """The baseline as the first of all trials, with what is known of it."""
    checkpoint, settings = comparison.checkpoint, comparison.known_settings
    known = settings | {
        "number": "baseline",
        "best_value": checkpoint.value,
        "gain": 0.0,
        "reason": f"checkpoint {checkpoint.path}",
    }
    return [
        _cell(known.get(column, ""))
        for column in ["number", *names, *with_gain(OUTCOMES, comparison)]
    ]


def _trial_row(trial: Trial, names: list[str], comparison: Comparison | None) -> list[Cell]:
    gain = comparison.gain(trial.best_value) if comparison and is_rankable(trial) else math.nan
    verdict = trial.verdict
    style = "good" if trial.feasible else "bad" if verdict.infeasible else "off"
    known = {
        "verdict": Cell(verdict.outcome, verdict.outcome, f"text verdict {style}"),
        "instability": _cell(verdict.instability),
        "onset_step": _cell(verdict.onset_step),
        "best_value": _cell(trial.best_value),
        "gain": Cell(signed(gain), gain),
        "best_step": _cell(trial.best_step),
        "clip_fraction": _cell(trial.clip_fraction),
        "seconds": _cell(trial.seconds),
        "reason": Cell(verdict.evidence, verdict.evidence, "text wide"),
    }
    point = [trial.point.number, *(trial.point.values.get(name, "") for name in names)]
    outcomes = [known[name] for name in with_gain(OUTCOMES, comparison)]
    return [*map(_cell, point), *outcomes]


def _cell(value: Any) -> Cell:
    return Cell(readable(value), value, "text" if isinstance(value, str) else "")
