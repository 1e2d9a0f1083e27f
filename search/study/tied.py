"""Trials as their study's axes have them: of what is tied, the quantity that it follows from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..trial import Point, Trial
from .study import Study


def on_axes(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """Trials whose settings are on the study's axes: to be drawn, and held against its ranges.

    In place of a tied hyperparameter stands its quantity, by its name as an axis:
    beta2.half_life_examples. Other trials are as they were.
    """
    return [replace(trial, point=_on_axes(study, trial.point)) for trial in trials]


def _on_axes(study: Study, point: Point) -> Point:
    ties = study.ties.get(point.optimizer, {})
    if not ties:
        return point
    settings: dict[str, Any] = {}
    for name, value in point.settings.items():
        is_tied = name in ties
        called = study.axis_name(point.optimizer, name) if is_tied else name
        settings[called] = study.quantity(point, name) if is_tied else value
    return replace(point, settings=settings)
