"""What a diagnosis may spend, how much of it is left, and what it does not reach.

The groups of a study share one budget. All that are not done may spend the same in all; what a
group leaves when it is done is for the others. So what a group may spend depends on results and the
budget alone, not on who trains or on interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ..study.study import Study
from ..trial import Trial
from .asking import Answers, Asking

T = TypeVar("T")
TEN = 10  # more exactly nobody can say what results will ask for


def _nothing(study: Study) -> int:
    return 0


@dataclass
class Budget:
    """What all groups may spend together.

    trainings   in all, the sweep included; inf: no limit
    each        updates of one of them
    sweep       updates of the sweep
    cost        updates of a study, as planned
    """

    trainings: float = math.inf
    each: int = 1
    sweep: int = 0
    cost: Callable[[Study], int] = _nothing
    purses: list[Purse] = field(default_factory=list)

    def purse(self) -> Purse:
        """One more group's share. All are taken before any group spends."""
        self.purses.append(Purse(self))
        return self.purses[-1]

    def share(self) -> float:
        """Updates that each group may spend in all, if it is not done."""
        done = sum(one.spent for one in self.purses if one.is_done)
        groups = sum(not one.is_done for one in self.purses)
        return (self.trainings * self.each - self.sweep - done) / max(1, groups)

    def reaching(self, updates: float) -> int:
        """The budget with which every group may spend so many updates, in tens of trainings."""
        return TEN * math.ceil((self.sweep + len(self.purses) * updates) / (TEN * self.each))


@dataclass
class Purse:
    """What one group may spend.

    spent      updates of its studies, as planned
    left_out   what the budget does not reach, in words
    enough     about so many updates reach all of it; 0: nothing is left out
    """

    budget: Budget = field(default_factory=Budget)
    spent: float = 0
    left_out: list[str] = field(default_factory=list)
    enough: float = 0
    missing: float = 0
    is_done: bool = False
    paid: set[str] = field(default_factory=set)

    @property
    def left(self) -> float:
        return self.budget.share() - self.spent

    @property
    def suffix(self) -> str:
        """Of the names of studies that the budget shaped: another budget's are others."""
        return f"-of-{self.budget.trainings:g}" if self.left_out else ""

    @property
    def would_do(self) -> int | None:
        """The budget, in trainings, that about reaches what was left out; None if nothing was.

        The first of it is reached for certain. The others may take more, as results may ask for it.
        """
        return self.budget.reaching(self.enough) if self.left_out else None

    def grants(self, what: str, updates: float, reserve: float = 0) -> bool:
        """Whether so many updates are left besides a reserve. If not, they are left out."""
        if updates + reserve <= self.left:
            return True
        self.leave_out([what], updates, reserve)
        return False

    def leave_out(self, what: Iterable[str], updates: float, reserve: float = 0) -> None:
        """Remember what is left out, which takes so many updates, with as many kept for later."""
        self.left_out += [one for one in what if one not in self.left_out]
        self.missing += updates
        self.enough = max(self.enough, self.spent + self.missing + reserve)

    def pays(self, what: str, studies: Iterable[Study], reserve: float = 0) -> bool:
        """Pay for studies that are asked for next, if they are granted."""
        studies = list(studies)
        if not self.grants(what, sum(map(self.budget.cost, studies)), reserve):
            return False
        for study in studies:
            self._pay(study)
        return True

    def _pay(self, study: Study) -> None:
        if study.name not in self.paid:
            self.spent += self.budget.cost(study)
            self.paid.add(study.name)

    def within(self, asking: Asking[T]) -> Asking[T]:
        """A procedure that asks for no more than is left; for the rest it is given no trials."""
        answers: Answers | None = None
        while True:
            try:
                asked = next(asking) if answers is None else asking.send(answers)
            except StopIteration as done:
                self.is_done = True
                result: T = done.value
                return result
            granted = [one for one in asked if self._has_room(one)]
            trained = (yield granted) if granted else {}
            none: list[Trial] = []
            answers = {study.name: trained.get(study.name, none) for study in asked}

    def _has_room(self, study: Study) -> bool:
        if study.name in self.paid:
            return True
        return self.pays(f"the trainings of {study.question.rpartition(': ')[2]}", [study])
