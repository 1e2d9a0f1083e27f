"""A study file that changed since its results began: what may grow, and what that makes of them.

Each Optuna study holds the study file that its results are of (`STUDY`), and those that they were
of before it grew (`GROWN`), each with the number of the first configuration that it did not plan.
Trials stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from ..errors import UserError
from ..study.earlier import Earlier, Generation, completed
from ..study.sampling import next_number
from ..study.study import Range, Study, parse_study
from ..trial import Point
from .changes import as_stated, changes_besides, document_of
from .files import parse_trial
from .rows import RECORD, stored_trials

STUDY, GROWN = "study", "grown"  # user attributes of an Optuna study
WARM = "warm_start"  # another: its warm start is done; and a key of what GROWN has of one
# Keys by which a study may grow: how its points are trained and judged does not depend on them.
MAY_GROW = (
    *("batch_sizes", "trials", "sampler", "space", "workload_args", "warm_start"),
    "train_examples",  # from none: `_refused`
)


@dataclass(frozen=True)
class History:
    """What an Optuna study says of the study files that its results are of; None: it is new.

    known   the latest one, as `changes.document_of`
    before  those before it grew, the oldest first, with the end of each (`earlier.Generation`)
    """

    known: dict[str, Any] | None
    before: list[dict[str, Any]]

    @classmethod
    def of(cls, optuna_study: optuna.Study, study: Study) -> History:
        """Of a study as it is now, which says what its documents leave open (`as_stated`)."""
        attributes = optuna_study.user_attrs
        known, before = attributes.get(STUDY), attributes.get(GROWN, [])
        return cls(
            known and as_stated(known, study),
            [{**one, "study": as_stated(one["study"], study)} for one in before],
        )


def documents_of(optuna_study: optuna.Study) -> Iterator[dict[str, Any]]:
    """The study files that its own results are of; those of a warm start began elsewhere."""
    attributes = optuna_study.user_attrs
    if STUDY in attributes:
        yield attributes[STUDY]
    yield from (one["study"] for one in attributes.get(GROWN, []) if not one.get(WARM))


def grow(
    study: Study, optuna_studies: Mapping[int, optuna.Study]
) -> tuple[Study, dict[int, list[dict[str, Any]]]]:
    """The study, as it began, as one that goes on from its results; what to write before it does.

    The latter is the attribute GROWN of each batch size whose study file has changed. Raises
    ValueError, with a line per key, if more has changed than may.
    """
    earlier: dict[int, Earlier] = {}
    grown: dict[int, list[dict[str, Any]]] = {}
    for batch_size, optuna_study in optuna_studies.items():
        history = History.of(optuna_study, study)
        before = history.before
        if history.known is not None and _has_grown(history, study):
            was = _as_study(history.known, study)
            if refused := _refused(was, study):
                raise ValueError("\n".join(refused))
            end = next_number(was.grown_from(_earlier(optuna_study, study, before)), batch_size)
            before = grown[batch_size] = [*before, {"study": history.known, "end": end}]
        earlier |= _earlier(optuna_study, study, before)
    return study.grown_from(earlier), grown


def _has_grown(history: History, study: Study) -> bool:
    """Whether a plan has to begin anew from what there is.

    More trials alone keep all points, in a study that never grew by anything else.
    """
    known, now = history.known or {}, document_of(study)
    more = bool(history.before) and known.get("trials") != now.get("trials")
    return more or bool(changes_besides(known, now, ["batch_sizes"]))


def _earlier(
    optuna_study: optuna.Study, study: Study, before: Sequence[Mapping[str, Any]]
) -> dict[int, Earlier]:
    """What an Optuna study was before, by its batch size; nothing if it never grew."""
    if not before:
        return {}
    generations = tuple(Generation(_as_study(one["study"], study), one["end"]) for one in before)
    found: dict[int, Point] = {}
    for frozen in stored_trials(optuna_study):
        if RECORD not in frozen.user_attrs:
            continue
        trial = parse_trial(frozen.user_attrs[RECORD])
        configuration = trial.point.number // study.most_seeds
        if configuration < generations[-1].end and not trial.verdict.crashed:
            point = completed(study, trial.point)
            found[configuration] = point.with_number(configuration, study.seed)
    if not found:
        return {}
    points = tuple(found[number] for number in sorted(found))
    return {points[0].batch_size: Earlier(generations, points)}


def _as_study(document: Mapping[str, Any], study: Study) -> Study:
    return parse_study(document, study.name, place=f"{study.name}, as it was")


def _refused(was: Study, now: Study) -> list[str]:
    """A line for each key that changed and may not."""
    before, after = document_of(was), document_of(now)
    lines = changes_besides(before, after, MAY_GROW)
    if was.sampling.is_grid != now.sampling.is_grid:
        lines.append(f"sampler: was {was.sampler}, is {now.sampler}")
    fewer = (was.trials or 0) > (now.trials or 0)
    if fewer and not changes_besides(before, after, ["trials"]):
        lines.append(f"trials: was {was.trials}, is {now.trials}: it may grow")
    if was.train_examples and now.train_examples not in (None, was.train_examples):
        lines.append(f"train_examples: was {was.train_examples}, is {now.train_examples}")
    both = [optimizer for optimizer in was.optimizers if optimizer in now.optimizers]
    return lines + [line for optimizer in both for line in _other_kinds(was, now, optimizer)]


def _other_kinds(was: Study, now: Study, optimizer: str) -> Iterator[str]:
    """A line for each range of an optimizer that is of another kind than it was."""
    old, new = was.axes(optimizer), now.axes(optimizer)
    for name in [name for name in old if name in new]:
        one, other = old[name], new[name]
        if not (isinstance(one, Range) and isinstance(other, Range)):
            continue
        before, after = (study.axis_name(optimizer, name) for study in (was, now))
        key = now.key_of(optimizer, name)
        if before != after:
            yield f"{key}: was a range of {before}, is one of {after}"
        elif one.log != other.log:
            yield f"{now.key_of(optimizer, after)}.log: was {_toml(one.log)}, is {_toml(other.log)}"


def _toml(value: bool) -> str:
    return str(value).lower()


def refusal(folder: object, lines: str) -> UserError:
    """That results are of another study file, and what may be done."""
    shown = "\n".join(f"  {line}" for line in lines.splitlines())
    return UserError(
        f"{folder}: holds results of a different study file. Changed since:\n{shown}\nRanges, "
        "lists, batch sizes, optimizers and trials may change, and what was trained stays. Undo "
        "the other changes, or give the study a new name, or remove the folder."
    )
