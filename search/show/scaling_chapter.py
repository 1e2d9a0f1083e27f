"""Scaling against the batch size as a chapter of the report: answers, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from ..judge.scaled import ScalingReport, ScalingTold
from ..store.results import Results
from ..trial import Group
from ..words import capitalized
from .plots import (
    law_figure,
    law_info,
    overlay_figure,
    overlay_info,
    target_figure,
    target_info,
    trends_figure,
    trends_info,
)
from .scaling import (
    law_rows,
    miss_rows,
    prediction_rows,
    scaling_notes,
    scaling_sentences,
    size_rows,
)
from .web import Picture, drawing

HEADING = "Scaling"
NOTE = "note"  # what heads a column that has no name
TEXT_COLUMNS = ("law", "base_lr η at batch size B", "parameter (95 %)", "rests on", NOTE)


def scaling_pictures(results: Results) -> list[Picture]:
    """The figures of a study's scaling report, in the order of the chapter; none without one."""
    report = results.scaling
    if report is None or not report.groups:
        return []
    targets = target_info(report)
    optima = {
        Group(one.batch_size, told.optimizer, told.scientific): one.optimum
        for told in report.groups
        for one in told.sizes
    }
    found = [_drawn("law", law_figure, law_info(report))]
    if targets.panels:
        found.append(_drawn("updates", target_figure, targets))
    if results.trials:
        names = results.study.scientific_names
        overlay = overlay_info(results.trials, report.objective, names, optima)
        found.append(_drawn("base_lr", overlay_figure, overlay))
    trends = trends_info(report)
    if trends.panels:
        found.append(_drawn("trends", trends_figure, trends, len(trends.panels)))
    return found


def _drawn(name: str, draw: Callable[[Any], go.Figure], info: Any, columns: int = 2) -> Picture:
    return Picture(HEADING, f"scaling_{name}", draw(info), columns, info.in_words())


def scaling_chapter(report: ScalingReport, found: Sequence[Picture]) -> dict[str, Any]:
    """The chapter, for the template."""
    return {
        "id": HEADING.lower(),
        "heading": HEADING,
        "text_columns": TEXT_COLUMNS,
        "groups": list(map(_group, report.groups)),
        "figures": list(map(drawing, found)),
    }


def _group(told: ScalingTold) -> dict[str, Any]:
    """The answer, what else is to be said, and the tables that have rows."""
    _, *sentences = scaling_sentences(told)
    return {
        "label": told.label,
        "answer": f"{capitalized(told.sentence)}.",
        "sentences": sentences,
        "sizes": size_rows(told),
        "predictions": list(map(_headed, prediction_rows(told))),
        "laws": list(map(_headed, law_rows(told))),
        "misses": miss_rows(told),
        "notes": list(scaling_notes(told)),
    }


def _headed(row: dict[str, str]) -> dict[str, str]:
    return {name or NOTE: cell for name, cell in row.items()}
