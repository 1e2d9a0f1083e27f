"""The command of a study: its words, their placeholders, and which hyperparameters they pass on.

    command = ["python", "train.py", "--lr", "{base_lr}", "--out={run_dir}", "--json", "{{}}"]

A placeholder is a name in braces. It stands for a hyperparameter of the trial or an argument in
[workload_args], or for one of PLACEHOLDERS. Two braces mean one. Values are written as a study
file writes them: numbers so that they are read back exactly, `inf` for infinity, which Python's
`float` and C's `strtod` read, and `true` and `false`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..rules.schedule import applies
from ..trial import Point

if TYPE_CHECKING:
    from .study import Study

UNSEEN = "clip_tensor"  # does what a script's own log does not tell
# besides the hyperparameters of the point, batch_size, optimizer and seed among them
PLACEHOLDERS = {
    "run_dir": "the trial's own folder, an absolute path",
    "device": "on which to train, a name of torch's",
    "total_steps": "updates of the trial's whole schedule, a prepended warmup included",
    "max_train_steps": "updates of the study's baseline schedule",
    "evaluate_every": "updates between two evaluations",
}
CHANGED_BY_DIAGNOSES = (
    *("base_lr", "warmup_steps", "clip_norm", "seed"),
    *("total_steps", "evaluate_every"),
)
OWN_LOG = "log.jsonl"  # in the trial's folder: what `tunewright.current_run()` writes


def names_in(text: str) -> list[str]:
    """The placeholders of a text. Raises ValueError for braces that hold no plain name."""
    names = []
    for _, name, form, conversion in Formatter().parse(text):
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError("braces must hold a name and nothing else; write {{ and }} for braces")
        names.append(name)
    return names


def fill(text: str, values: Mapping[str, Any]) -> str:
    """A text with values in place of its placeholders."""
    words = {name: _written(value) for name, value in values.items()}
    return text.format_map(words)


def is_passed_on(study: Study, name: str) -> bool:
    """Whether trials that differ in a hyperparameter are different trainings.

    They are not where a log is followed, and its command does not use it.
    """
    return not study.log or any(name in names_in(word) for word in study.command)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def values_of_run(study: Study, point: Point, run_dir: str, device: str) -> dict[str, Any]:
    """What every placeholder stands for in the command of a trial."""
    return {
        **point.values,
        "run_dir": run_dir,
        "device": device,
        "total_steps": study.schedule(point),
        "max_train_steps": study.train_steps(point.batch_size),
        "evaluate_every": study.evaluate_every(point.batch_size),
    }


def problems_of_command(study: Study) -> Iterator[tuple[str, str]]:
    """Mistakes in `command` and `log`, as (key, what is wrong)."""
    for name in sorted(PLACEHOLDERS.keys() & study.workload_args.keys()):
        yield f"workload_args.{name}", "is also a placeholder of every command; rename it"
    used: set[str] = set()
    texts = [("command", word) for word in study.command]
    if study.log:
        texts.append(("log.path", study.log.path))
    for key, text in texts:
        try:
            names = names_in(text)
        except ValueError as error:
            yield key, f"{error}, got {text!r}"
            continue
        for name in names:
            if mistake := _mistake_of(name, study):
                yield key, f"{mistake}, got {text!r}"
        used |= set(names) if key == "command" else set()
    if study.log:
        yield from _unseen_clipping(study)
    # without a log the script asks `tunewright.current_run()`, which nobody sees here
    for name in _varied(study) if study.log else ():
        if name in used or name == UNSEEN:
            continue
        yield (
            "command",
            f"no placeholder uses {name}, which varies: add {{{name}}}, or give it one value",
        )


def _unseen_clipping(study: Study) -> Iterator[tuple[str, str]]:
    """Clipping by tensor, of which a script's own log does not tell."""
    axes = {study.key_of(one, UNSEEN): study.axes(one)[UNSEEN] for one in study.optimizers}
    for key, axis in axes.items():
        if axis == (math.inf,):
            continue
        got = list(axis) if isinstance(axis, tuple) else f"{axis.low} to {axis.high}"
        yield (
            key,
            "must be inf, its default, where the command writes a log of its own: that does not "
            "say which tensors were clipped; without `log`, tunewright.current_run() clips them, "
            f"got {got}",
        )


def _mistake_of(name: str, study: Study) -> str:
    """What is wrong with a placeholder; empty if every trial has a value for it."""
    if name in PLACEHOLDERS or name in study.workload_args:
        return ""
    having = [optimizer for optimizer in study.optimizers if name in _sure(study, optimizer)]
    if having == study.optimizers:
        return ""
    if not any(name in _known(study, optimizer) for optimizer in study.optimizers):
        known = [one for optimizer in study.optimizers for one in _known(study, optimizer)]
        listed = ", ".join(dict.fromkeys([*known, *study.workload_args, *PLACEHOLDERS]))
        return f"{{{name}}} is unknown: placeholders are {listed}"
    lacking = next(one for one in study.optimizers if one not in having)
    return f"{{{name}}} has no value in some trials of {lacking}: put these into a study of its own"


def _known(study: Study, optimizer: str) -> list[str]:
    """The hyperparameters that trials of an optimizer may have."""
    return ["batch_size", "optimizer", "seed", *study.axes(optimizer)]


def _sure(study: Study, optimizer: str) -> list[str]:
    """Those that every one of these trials has: a setting may belong to some decays alone."""
    axes = study.axes(optimizer)
    decays = axes["decay"] if isinstance(axes["decay"], tuple) else ()
    return [
        name
        for name in _known(study, optimizer)
        if name not in axes or all(applies(name, decay) for decay in decays)
    ]


def _varied(study: Study) -> list[str]:
    """The hyperparameters of which trials have more than one value."""
    names = [
        name
        for optimizer in study.optimizers
        for name, axis in study.axes(optimizer).items()
        if not isinstance(axis, tuple) or len(axis) > 1 or _follows(study, optimizer, name)
    ]
    if len(study.batch_sizes) > 1:
        names.append("batch_size")
    if len(study.optimizers) > 1:
        names.append("optimizer")
    if study.most_seeds > 1:
        names.append("seed")
    return list(dict.fromkeys([*names, *study.scientific_workload_args]))


def _follows(study: Study, optimizer: str, name: str) -> bool:
    """Whether a hyperparameter differs with others, though its quantity does not."""
    tie = study.ties[optimizer].get(name)
    several = len(study.batch_sizes) > 1
    return tie is not None and (tie.by_epochs or (tie.by_batch_size and several))


def check_command(study: Study) -> None:
    """Raise UserError naming the study if its program is not there, or may not be started."""
    program = study.command[0]
    if not names_in(program) and shutil.which(fill(program, {})) is None:
        raise UserError(
            f"{study.name}: command: {program!r} is no program that can be started: not found, or "
            "not executable"
        )


def refuse_undiagnosable(study: Study) -> None:
    """Raise UserError for a study with a cut, and for a command whose log is followed, if it does
    not take what the steps of a diagnosis change, or its log lacks what they look at.
    """
    if study.cut:
        raise UserError(
            f"{study.name}: cut: cannot be diagnosed: the question is the edge, and a training "
            "that ends early does not say whether it would have become unstable (R3)"
        )
    if not (study.command and study.log):
        return
    used = {name for word in study.command for name in names_in(word)}
    lacking = [f"{{{name}}}" for name in CHANGED_BY_DIAGNOSES if name not in used]
    if lacking:
        raise UserError(
            f"{study.name}: command: must use {', '.join(lacking)} to be diagnosed: the steps of a "
            "diagnosis have other values of them"
        )
    if study.log.grad_norm is None:
        raise UserError(
            f"{study.name}: log: must name the column of grad_norm to be diagnosed: clip "
            "thresholds are taken from it"
        )
