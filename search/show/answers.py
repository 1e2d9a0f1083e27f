"""The answer per batch size in sentences, and what to do next: terminal and report begin so."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..judge.analysis import GroupVerdict, varied_names
from ..judge.answer import Answer
from ..judge.diagnosis import GroupDiagnosis, Remedy
from ..judge.sensitivity import usable_in_words
from ..store.results import Results
from ..trial import CLIPPING, Point
from ..words import headroom_in_words, readable

SHORT = {"warmup_steps": "warmup", "clip_norm": "clip"}
# what to do next, where a page cannot know in which folder somebody reads it
NEXT: dict[GroupVerdict, str] = {
    "stable": "Next: tunewright compare decides whether it is better than your baseline.",
    "on the edge": "Next: tunewright diagnose finds out what helps.",
    "edge not reached": "Next: widen base_lr upwards in the study file, and run it again.",
    "unstable": "Next: tunewright diagnose finds out what helps.",
    "no evidence": "Next: run it again.",
}
# values that mean that a hyperparameter is not used
UNUSED = {
    "warmup_steps": (0, "no warmup"),
    **dict.fromkeys(CLIPPING, (math.inf, "no clipping")),
}


def answer_sentences(results: Results) -> list[str]:
    """A sentence or a few per batch size, the best first."""
    varied, objective = varied_names(results.trials), results.study.objective
    return [answer_sentence(one, objective, varied) for one in results.answers]


def answer_sentence(answer: Answer, objective: str, varied: Collection[str]) -> str:
    """`answer_in_words`, with its batch size."""
    return f"batch size {answer.batch_size}: {answer_in_words(answer, objective, varied)}"


def answer_in_words(answer: Answer, objective: str, varied: Collection[str]) -> str:
    """What to use at a batch size, how sure that is, and how near training is to breaking.

    `varied`: the hyperparameters that the study varies; the others are not told.
    """
    if answer.found:
        return _diagnosed(answer.found, answer.remedy)
    if answer.point is None:
        return _nothing(answer)
    parts = [
        f"{configuration(answer, varied)}: {value_in_words(answer, objective)}.",
        edge_in_words(answer),
        _how_sure(answer),
        *_borders(answer),
    ]
    return " ".join(part for part in parts if part)


def next_in_words(answer: Answer, compared: bool) -> str:
    """What to do next at a batch size; empty if only a comparison with a baseline was left."""
    if answer.remedy:
        return "Next: tunewright run takes the recipe as it stands."
    if answer.verdict == "stable" and compared:
        return ""
    return NEXT[answer.verdict]


def configuration(answer: Answer, varied: Collection[str]) -> str:
    """The optimizer, the base LR with those that are as good, and what else is varied."""
    group, point = answer.summary.group, answer.point
    assert point is not None  # the caller looks
    scientific = [(name, value) for name, value in group.scientific if name != "base_lr"]
    held = [f"{name} {readable(value)}" for name, value in scientific]
    names = [
        name for name in varied if name not in ("optimizer", "base_lr", *dict(group.scientific))
    ]
    own = settings_in_words(point, [name for name in names if name in point.values])
    base_lr = f"base_lr {readable(point.base_lr)}{_as_good(answer)}"
    return ", ".join([point.optimizer, *held, base_lr, *own])


def settings_in_words(point: Point, names: Iterable[str]) -> list[str]:
    """Hyperparameters of a point and their values; no word of what another threshold replaces."""
    clips = [name for name in CLIPPING if point.values[name] < math.inf]
    own = [
        setting(name, point.values[name])
        for name in names
        if not (clips and name in CLIPPING and name not in clips)
    ]
    return list(dict.fromkeys(own))  # "no clipping" once


def setting(name: str, value: Any) -> str:
    """A hyperparameter and its value: "warmup 10", "no clipping"."""
    unused, words = UNUSED.get(name, (None, ""))
    if words and value == unused:
        return words
    return f"{SHORT.get(name, name)} {readable(value)}"


def _as_good(answer: Answer) -> str:
    low, high = answer.as_good
    if math.isnan(low) or answer.remedy:
        return ""
    if low == high:
        return " (no other as good)"
    basin = "a basin, " if answer.summary.is_basin else ""
    return f" ({basin}{readable(low)} to {readable(high)} as good)"


def value_in_words(answer: Answer, objective: str) -> str:
    """The value; with several seeds their mean, the lowest and the highest."""
    told = f"{objective} {readable(answer.value)}"
    values = answer.values
    if len(values) < 2:
        return told
    return (
        f"{told} (mean of {len(values)} seeds, {readable(min(values))} to {readable(max(values))})"
    )


def edge_in_words(answer: Answer) -> str:
    """Where training breaks, relative to the best base LR or a basin, and what follows from it."""
    row = answer.summary
    low, high = row.unstable_base_lr
    base = "the basin's upper end" if row.is_basin else "the best"
    breaks = (
        f"training breaks between base_lr {readable(low)} and {readable(high)}, "
        f"{headroom_in_words(row.headroom)} {base}"
    )
    if row.is_flat:
        breaks += f", {usable_in_words(row.usable)} (LR sensitivity {row.lr_sensitivity:.2f})"
    match answer.verdict:
        case "stable":
            return f"Stable: {breaks}."
        case "on the edge":
            return f"On the edge: {breaks}: try warmup or clipping before all else."
        case "edge not reached" if math.isfinite(high):
            return (
                f"Edge not reached: above base_lr {readable(low)} one trial alone was tried, which "
                f"failed at {readable(high)}: widen the range."
            )
        case "edge not reached":
            return f"Edge not reached up to base_lr {readable(low)}: widen the range."
        case _:
            return ""


def _how_sure(answer: Answer) -> str:
    """Which other groups may be as good."""
    rivals = [
        _name(row.group.optimizer, row.group.scientific, row.best_value) for row in answer.rivals
    ]
    if rivals:
        whose = "the noise of one seed" if answer.summary.seeds == 1 else "the noise between seeds"
        return f"Within {whose} as good: {', '.join(rivals)}."
    return ""


def _name(optimizer: str, scientific: Iterable[tuple[str, Any]], value: float) -> str:
    held = "".join(f", {name} {readable(own)}" for name, own in scientific)
    return f"{optimizer}{held} ({readable(value)})"


def _borders(answer: Answer) -> list[str]:
    """Borders that the best trials crowd; that of base_lr above is told with the edge."""
    notes = [note for note in answer.notes if note.kind == "expand"]
    return [
        f"The best trials crowd a border: widen {note.axis} "
        f"{'above' if note.side == 'high' else 'below'} {readable(note.border)} (S4)."
        for note in notes
        if not (note.axis == "base_lr" and note.side == "high" and answer.verdict != "stable")
    ]


def _nothing(answer: Answer) -> str:
    lowest = answer.summary.unstable_base_lr[1]
    if answer.verdict == "unstable":
        return (
            f"nothing trains: even base_lr {readable(lowest)}, the lowest that was tried, is "
            "infeasible. Lower it by an order of magnitude."
        )
    return "no trial says anything of its point yet."


def _diagnosed(found: GroupDiagnosis, remedy: Remedy | None) -> str:
    """The verdict of a diagnosis, and the configuration that it adopted."""
    return f"{found.summary} Use {_adopted(remedy.point)}." if remedy else found.summary


def _adopted(point: Point) -> str:
    names = [
        name for name in point.shown if name not in ("batch_size", "optimizer", "base_lr", "seed")
    ]
    own = settings_in_words(point, [name for name in names if name not in point.workload_args])
    return ", ".join([point.optimizer, f"base_lr {readable(point.base_lr)}", *own])


def next_commands(results: Results, study: Path | None = None) -> list[str]:
    """Two commands that follow from the results. `study`: the study file, if it is known."""
    folder, file = shlex.quote(str(results.folder)), shlex.quote(str(study))
    look = f"tunewright dashboard {folder}"
    compare = f"tunewright compare {folder} --baseline CHECKPOINT"
    if results.study.imported:
        return [f"tunewright check {folder}", look]
    if results.diagnosis and results.diagnosis.recipes:
        recipe = next(iter(results.diagnosis.recipes.values()))
        path = shlex.quote(str(results.folder / recipe))
        return [f"tunewright run {path} --results {folder}", look]
    verdicts = {answer.verdict for answer in results.answers}
    can_diagnose = study is not None and not results.study.command
    if verdicts & {"on the edge", "unstable"} and can_diagnose:
        return [f"tunewright diagnose {file}", look]
    if "edge not reached" in verdicts:
        return [f"tunewright check {file if study else folder}", look]
    return [f"tunewright check {folder}" if results.study.command else compare, look]
