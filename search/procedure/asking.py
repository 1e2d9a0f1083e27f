"""Procedures as generators: they yield studies, and go on when these are trained.

So a procedure reads like the playbook, and knows nothing of workers and files. Studies that do not
depend on one another are asked for `together`, and trained side by side. The answer to a study that
the budget left out is no trials.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeAlias, TypeVar

from ..study.study import Study
from ..trial import Trial

T = TypeVar("T")
U = TypeVar("U")
Answers: TypeAlias = Mapping[str, list[Trial]]  # trials by the name of the study that was asked for
Asking: TypeAlias = Generator[list[Study], Answers, T]


def train_all(*studies: Study) -> Asking[list[list[Trial]]]:
    """The trials of each study."""
    answers = yield list(studies)
    return [answers[study.name] for study in studies]


def together(*parts: Asking[T]) -> Asking[list[T]]:
    """Run several procedures side by side, and return what each returns.

    Studies that they ask for at the same time are trained together.
    """
    results: dict[int, T] = {}
    asked: dict[int, list[Study]] = {}

    def go_on(i: int, answers: Answers | None) -> None:
        try:
            asked[i] = next(parts[i]) if answers is None else parts[i].send(answers)
        except StopIteration as done:
            results[i] = done.value
            asked.pop(i, None)

    for i in range(len(parts)):
        go_on(i, None)
    while asked:
        answers = yield list(
            {study.name: study for own in asked.values() for study in own}.values()
        )
        for i in list(asked):
            go_on(i, {study.name: answers[study.name] for study in asked[i]})
    return [results[i] for i in range(len(parts))]


def both(first: Asking[T], second: Asking[U]) -> Asking[tuple[T, U]]:
    """`together` of two procedures that return different things."""
    parts: list[Asking[Any]] = [first, second]
    found = yield from together(*parts)
    return found[0], found[1]
