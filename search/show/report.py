"""report.html: one file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..errors import UserError, warn_once
from ..judge.analysis import (
    GroupVerdict,
    group_trials,
    hyperparameters,
    is_rankable,
    rank_configurations,
    varied_names,
)
from ..judge.answer import Answer
from ..judge.comparison import Comparison
from ..judge.diagnosis import GroupDiagnosis
from ..judge.early_signs import attention_sign, early_signs
from ..judge.flags import checkpoint_note, curve_flags
from ..judge.readout import clipped_before
from ..procedure.steps import label
from ..rules.counterparts import MADE_BY_RUN, Counterpart, call_of_ours
from ..rules.hyperparameters import HYPERPARAMETERS
from ..rules.optimizers import counterpart
from ..store.files import atomic
from ..store.results import Results
from ..study.study import Study
from ..trial import OFTEN_UNKNOWN, Point, Trial
from ..words import readable
from .against import chapter, versus
from .answers import answer_in_words, next_in_words
from .chapter import Scene, colour, story, told_by, without_curves
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
)
from .plots.style import trial_id
from .scaling_chapter import HEADING, scaling_chapter, scaling_pictures
from .tables import (
    LEFT,
    MAY_FAIL,
    baseline_cells,
    interval_method,
    remedy_rows,
    signed,
    summary_cells,
    with_gain,
)
from .web import Picture, drawing, render

TEMPLATE = "report.html.jinja"
CURVES, GROUPS = "training_curves", "Comparison of groups"
PICTURE_WIDTH, PIXELS_PER_UNIT = 420, 1.0  # of a panel in a PNG; a single one is as wide as two
MARGIN_WIDTH = 160  # pixels
MOST_ROWS = 1_000  # of the table of all trials: a browser is slow with more
SUMMARY_COLUMNS = (
    *("group", "verdict", "lr_star", "as good", "best value", "unstable_base_lr", "headroom"),
    *("usable decades", "LR sensitivity"),
    *("near lr_star", "trials", "infeasible", "crashed", "at step"),
)
OUTCOMES = (
    "verdict",
    "instability",
    "onset_step",
    "best_value",
    "best_step",
    "clip_fraction",
    *OFTEN_UNKNOWN,
    "seconds",
    "reason",
)
TEXT_COLUMNS = (
    *("optimizer", "verdict", "instability", "reason"),
    *(name for name, row in HYPERPARAMETERS.items() if row.choices is not None),
)
COLOURS: dict[GroupVerdict, str] = {
    "stable": "good",
    "on the edge": "warn",
    "edge not reached": "open",
    "unstable": "bad",
    "no evidence": "off",
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
    found, scenes, scaled = pictures(results), _scenes(results), scaling_pictures(results)
    document = _document(results, found, scenes, scaled)
    with atomic(path) as temporary:
        temporary.write_text(document, encoding="utf-8", errors="backslashreplace")
    if png:
        found += [versus(results.comparison)] if results.comparison else []
        found += [*scaled, *(_picture(scene) for scene in scenes if scene.figure)]
        write_pictures(results.folder / "plots", found)
    return path


def _scenes(results: Results) -> list[Scene]:
    """The steps of a diagnosis; none (with a warning) if the results of one are missing."""
    try:
        return list(story(results))
    except UserError as error:
        warn_once(f"{results.folder / 'report.html'}: without the diagnosis: {error}")
        return []


def _document(
    results: Results,
    found: Sequence[Picture],
    scenes: Iterable[Scene],
    scaled: Sequence[Picture],
) -> str:
    study, trials, comparison = results.study, results.trials, results.comparison
    summaries, names, varied = results.summaries, hyperparameters(trials), varied_names(trials)
    sections = _sections(found)
    if note := without_curves(trials):
        sections.append(_section("Training curves", note=note))
    told = [_told(group, list(own)) for group, own in groupby(scenes, key=lambda one: one.group)]
    against = chapter(comparison) if comparison else None
    drawn = {trace.meta for one in found if one.name == CURVES for trace in one.figure.data}
    listed = _listed(trials, study.scientific_names)
    outcomes = _outcomes(trials, comparison)
    rows = [_trial_row(trial, names, outcomes, comparison, drawn) for trial in listed]
    baseline_summary = None
    if comparison:
        baseline_summary = _baseline_summary(comparison) if summaries else None
        rows.insert(0, _baseline_row(comparison, [*names, *outcomes]))
    left_out = ""
    if len(listed) < len(trials):
        left_out = f"{len(listed)} of {len(trials)} trials: the best of each group."
    unfinished = any(trial.verdict.unfinished for trial in trials)
    cut = any(trial.is_cut for trial in trials)
    seeds = max((row.seeds for row in summaries), default=1)
    gain = comparison.gain_in_words if comparison else ""
    sentences = _sentences(results)
    scaling = scaling_chapter(results.scaling, scaled) if results.scaling else None
    return render(
        TEMPLATE,
        name=study.name,
        question=study.question,
        objective=study.objective,
        direction=f"{study.direction}d",
        counts=_counts(trials),
        contents=_contents(results, sentences, told, sections),
        unfinished=unfinished,
        cut=cut,
        answers=_answers(results, varied),
        summaries=list(_summary_rows(results.answers, varied, comparison)),
        baseline=baseline_summary,
        summary_columns=with_gain(SUMMARY_COLUMNS, comparison),
        gain=gain,
        may_fail=MAY_FAIL.capitalize(),
        seeds=seeds,
        finalists=study.finalists,
        counterparts=list(_counterparts(study, results.answers)),
        made_by_run="" if study.workload else MADE_BY_RUN,
        make=call_of_ours("name, params, settings, lr", study.decays_in_scripts),
        sentences=sentences,
        comparison=against,
        diagnosis=told,
        scaling=scaling,
        sections=sections,
        trial_columns=["number", *names, *outcomes],
        text_columns=TEXT_COLUMNS,
        trials=rows,
        left_out=left_out,
        curves=CURVES if drawn - {None} else "",
        provenance=[(name, _in_words(value)) for name, value in results.environment.items()],
    )


def _contents(
    results: Results,
    sentences: Sequence[str],
    told: Iterable[Mapping[str, Any]],
    sections: Iterable[Mapping[str, Any]],
) -> list[tuple[str, str]]:
    """The anchor and the heading of every section, in the order of the page."""
    return [
        ("result-per-group", "Result per group"),
        *[("what-to-look-at", "What to look at")] * bool(sentences),
        *((group["id"], f"Diagnosis: {group['label']}") for group in told),
        *[("against-the-baseline", "Against the baseline")] * bool(results.comparison),
        *[(HEADING.lower(), HEADING)] * bool(results.scaling),
        *((part["id"], part["heading"]) for part in sections),
        *[("in-a-script-of-your-own", "In a script of your own")]
        * any(row.point for row in results.summaries),
        ("how-to-read-this", "How to read this"),
        ("all-trials", "All trials"),
        *[("provenance", "Provenance")] * bool(results.environment),
    ]


def _counts(trials: Sequence[Trial]) -> str:
    feasible = sum(trial.feasible for trial in trials)
    crashed = sum(trial.verdict.crashed for trial in trials)
    cut = sum(trial.is_cut for trial in trials)
    unfinished = sum(trial.verdict.unfinished for trial in trials) - cut
    infeasible = len(trials) - feasible - crashed - unfinished - cut
    counts = f"{feasible} feasible, {infeasible} infeasible, {crashed} crashed"
    more = f", {cut} cut" * bool(cut) + f", {unfinished} unfinished" * bool(unfinished)
    return f"{len(trials)} trials: {counts}{more}"


def _answers(results: Results, varied: Collection[str]) -> list[dict[str, Any]]:
    """What the first screen says of each batch size, the best first, for the template."""
    objective = results.study.objective
    found = []
    for one in results.answers:
        chosen = None if one.remedy else one.point  # that of a remedy is no trial of the sweep
        diagnosed = f"diagnosis-{label(one.found.group)}" if one.found else ""
        found.append(
            {
                "title": f"Batch size {one.batch_size}",
                "verdict": one.verdict,
                "colour": COLOURS[one.verdict],
                "sentence": answer_in_words(one, objective, varied),
                "next": next_in_words(one, compared=results.comparison is not None),
                "trial": _id(chosen) if chosen else "",
                "number": chosen.number if chosen else "",
                "diagnosis": diagnosed,
                "seeds": one.summary.diagnosed_with,
            }
        )
    return found


def _counterparts(study: Study, found: Iterable[Answer]) -> Iterator[tuple[str, Counterpart]]:
    """By group, the optimizer of its best point for a script of one's own."""
    for answer in found:
        points = [(answer.summary, answer.point)]
        points += [(row, row.point) for row in answer.others]
        for row, point in points:
            if point:
                made = (point.optimizer, point.settings, point.base_lr)
                yield row.group.label, counterpart(*made, study.decays_in_scripts)


def _sentences(results: Results) -> list[str]:
    """Boundaries (S4), lengths of training (S8), the flags of each group's best curve (S6), and
    early signs of instability.
    """
    study, trials = results.study, results.trials
    diagnosed = {row.group for row in results.summaries if row.diagnosed_with}
    sentences = [
        note.sentence
        for note in results.notes
        if note.axis != "base_lr" or note.group not in diagnosed  # the diagnosis tells its own
    ]
    for group, own in group_trials(trials, study.scientific_names).items():
        if note := checkpoint_note(own, study.objective):
            sentences.append(f"{group.label}: {note}.")
        if sign := attention_sign(own):
            sentences.append(f"{group.label}: {sign}.")
        for best in rank_configurations(own)[:1]:
            told = [flag.sentence for flag in curve_flags(best, study.objective)]
            told += filter(None, [clipped_before(best), *early_signs(best)])
            sentences += [f"{group.label}, best trial {best.point.number}: {one}." for one in told]
    return sentences


def _in_words(value: Any) -> str:
    """A value of the environment; names and values if it is a mapping."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{name} {_in_words(own)}" for name, own in value.items())


# --- figures --------------------------------------------------------------------------------------


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
        overlay = overlay_info(trials, objective, scientific)
        found.append(_drawn(GROUPS, "comparison", overlay_figure, overlay, 2 * batch_sizes))
    if is_untuned(trials, scientific):
        losses = loss_info(
            trials, scientific, log_steps=figure.log_steps, sparse_every=figure.sparse_every or 0
        )
        found.append(_drawn(GROUPS, "training_loss", loss_figure, losses, 2))
    for axis in sorted(varied_names(results.on_axes), key=lambda axis: axis != "base_lr"):
        info = axis_info(
            results.on_axes,
            axis,
            objective,
            log=axis in log_axes,
            scientific=scientific,
            baseline=baseline,
            told=told_by(results),
        )
        found.append(_drawn("Axis plots", f"axis_{axis}", axis_figure, info, batch_sizes))
    if not any(len(trial.curve.loss) for trial in trials):
        return found
    curves = curves_info(trials, objective, log_steps=figure.log_steps, scientific=scientific)
    found.append(_drawn("Training curves", CURVES, curves_figure, curves, batch_sizes))
    norms = norms_info(trials, scientific=scientific)
    if norms.panels:
        found.append(_drawn("Gradient norms", "gradient_norms", norms_figure, norms, 3))
    return found


def _drawn(
    heading: str, name: str, draw: Callable[[Any], go.Figure], info: Any, columns: int
) -> Picture:
    return Picture(heading, name, draw(info), columns, info.in_words())


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


def _picture(scene: Scene) -> Picture:
    assert scene.figure is not None  # the caller looks
    return Picture("Diagnosis", scene.name, scene.figure, scene.columns, scene.words)


def _told(found: GroupDiagnosis, scenes: Sequence[Scene]) -> dict[str, Any]:
    """The diagnosis of a group, for the template."""
    return {
        "id": f"diagnosis-{label(found.group)}",
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
                "figure": drawing(_picture(scene)) if scene.figure else None,
                "note": "" if scene.figure else scene.words,
            }
            for scene in scenes
        ],
    }


def _sections(found: Iterable[Picture]) -> list[dict[str, Any]]:
    """Headings with their anchors and figures."""
    return [
        _section(heading, map(drawing, members))
        for heading, members in groupby(found, key=lambda picture: picture.heading)
    ]


def _section(
    heading: str, figures: Iterable[Mapping[str, Any]] = (), note: str = ""
) -> dict[str, Any]:
    """A section for the template; its note says why it has no figures."""
    anchor = heading.lower().replace(" ", "-")
    return {"id": anchor, "heading": heading, "figures": list(figures), "note": note}


# --- tables ---------------------------------------------------------------------------------------


def _summary_rows(
    found: Iterable[Answer], names: Collection[str], comparison: Comparison | None
) -> Iterator[dict[str, Any]]:
    """A row per group: batch sizes as their answers come, and of each the winner first."""
    columns = [name for name in with_gain(SUMMARY_COLUMNS, comparison) if name != "verdict"]
    for answer in found:
        for row in answer.rows:
            cells = summary_cells(row, names, comparison)
            yield {
                "cells": [cells[column] for column in columns],
                "verdict": row.verdict,
                "colour": COLOURS[row.verdict],
                "point": cells["point"] if row.point else "",
                "trial": _id(row.point) if row.point else "",
                "wins": answer.is_winner(row),
                "seeds": row.diagnosed_with,
            }


def _baseline_summary(comparison: Comparison) -> list[str]:
    cells = baseline_cells(comparison)
    return [cells.get(column, "") for column in with_gain(SUMMARY_COLUMNS, comparison)]


def _outcomes(trials: Sequence[Trial], comparison: Comparison | None) -> list[str]:
    """The columns of what came of trials, without those that nothing is known of."""
    known = {
        name for name in OFTEN_UNKNOWN if any(not math.isnan(getattr(t, name)) for t in trials)
    }
    return [
        name
        for name in with_gain(OUTCOMES, comparison)
        if name in known or name not in OFTEN_UNKNOWN
    ]


def _baseline_row(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """The baseline as the first of all trials, with what is known of it."""
    checkpoint, settings = comparison.checkpoint, comparison.known_settings
    known = settings | {
        "number": "baseline",
        "best_value": checkpoint.value,
        "gain": 0.0,
        "reason": f"checkpoint {checkpoint.path}",
    }
    cells = [_cell(known.get(column, "")) for column in ("number", *names)]
    return {"id": "baseline", "curve": False, "cells": cells}


def _listed(trials: Sequence[Trial], scientific: Sequence[str]) -> list[Trial]:
    """The trials that have a row: all of them, or the best of each group, in their order."""
    if len(trials) <= MOST_ROWS:
        return list(trials)
    groups = group_trials(trials, scientific).values()
    share = max(MOST_ROWS // len(groups), 1)
    best = {
        id(trial)
        for own in groups
        for trial in sorted(own, key=lambda trial: (not is_rankable(trial), trial.cost))[:share]
    }
    return [trial for trial in trials if id(trial) in best]


def _trial_row(
    trial: Trial,
    names: Sequence[str],
    outcomes: Sequence[str],
    comparison: Comparison | None,
    drawn: Collection[str],
) -> dict[str, Any]:
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
        **{name: _cell(getattr(trial, name)) for name in OFTEN_UNKNOWN},
        "seconds": _cell(trial.seconds),
        "reason": Cell(verdict.evidence, verdict.evidence, "text wide"),
    }
    point = [trial.point.number, *(trial.point.values.get(name, "") for name in names)]
    return {
        "id": _id(trial.point),
        "curve": _id(trial.point) in drawn,
        "cells": [*map(_cell, point), *(known[name] for name in outcomes)],
    }


def _id(point: Point) -> str:
    return trial_id(point.batch_size, point.number)


def _cell(value: Any) -> Cell:
    return Cell(readable(value), value, "text" if isinstance(value, str) else "")
